"""Command lines and backbone names of every wrongness: exit status 0 or 2 with a message, and no half-written file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeBackbone, save_photo, save_tiny_decoder
from fuzzing import ANYTHING, outcome
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from diffup import cli, load_backbone

WORDS = st.sampled_from(
    [
        "a.png",
        "a_mask.png",
        "missing.png",
        "broken.png",
        ".",
        "0,0,10,10",
        "5,5,1,1",
        "nan,1",
        "1e999,2",
        "-1",
        "0",
        "1",
        "3",
        "99999999999999999999",
        "0.5",
        "nan",
        "inf",
        "x",
        "fake",
        "fake:a",
        "bundled:x",
        "cpu",
        "meta",
        "xla",
        "decoder",
        "é",
        "=",
        "fake=",
        "query.png",
        "/proc/self/mem",
        "/dev/null",
        "",
        "10,10 20,20",
        "a" * 300,
    ]
)
OPTIONS = [
    "--support",
    "--mask",
    "--box",
    "--scribble",
    "--points",
    "--decoder",
    "--backbone",
    "--backbone-weights",
    "--input-size",
    "--device",
    "--steps",
    "--ensemble",
    "--threshold",
    "--seed",
    "--trace",
    "--quiet",
    "--nonsense",
]


def build(variant: str | None, *, input_size: int = 32, checkpoint_path: str | None = None) -> FakeBackbone:
    from diffup.backbones.base import resolve_input_size

    height, width = resolve_input_size(input_size, "fake")
    return FakeBackbone(input_size=(max(32, min(height, 64)), max(32, min(width, 64))))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny_decoder(folder / "decoder", backbone="fake", steps=1)
    for index, name in enumerate(("query", "a")):
        save_photo(folder, name, seed=index, size=(20, 24))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, families: Callable[..., None], work: Path) -> None:
    families(fake=build)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(work)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A right command line with options added, most of them wrong."""
    line = ["segment", "query.png", "-o", "out", "--decoder", "decoder", "--device", "cpu", "--support", "a.png"]
    for _ in range(draw(st.integers(0, 3))):
        line.append(draw(st.sampled_from(OPTIONS)))
        line += draw(st.lists(WORDS, max_size=2))
    if draw(st.booleans()):
        del line[draw(st.integers(0, len(line) - 1))]
    return line


@given(line=command_lines())
def test_segment_command(offline: None, work: Path, line: list[str]) -> None:
    before = {path.name for path in work.iterdir()}
    try:
        status = cli.main(line)
    except SystemExit as error:  # argparse's own
        status = error.code
    assert status in (0, cli.FAILED)
    assert not [path for path in work.rglob(".*") if path.is_file()], "an unfinished file is left"
    for path in work.glob("out/*.png"):
        Image.open(path).load()
    for path in work.glob("out/*.json"):
        json.loads(path.read_text())
    assert {path.name for path in work.iterdir()} - before <= {"out", *WORDS_AS_FOLDERS}


WORDS_AS_FOLDERS = {"segment", "query.png", "decoder", "cpu", "a.png", "--decoder", "--device", "--support"}


@given(
    command=st.sampled_from(["evaluate", "train", "upgrade-report", "backbones", "export", "nonsense"]),
    words=st.lists(
        st.sampled_from(["--fold", "--shots", "--annotation", "--backbone", "--episodes", "--dataset"]) | WORDS
    ),
)
def test_other_commands_on_what_is_no_data_set(offline: None, command: str, words: list[str]) -> None:
    if command == "export":  # it needs nothing, and so would write
        words = [*words, "--format", "nonsense"]
    try:
        status = cli.main([command, *words, "-o", "out2"])
    except SystemExit as error:
        status = error.code
    assert status in (0, cli.FAILED)


SCRIPTS = [
    *("a", "é", "e\u0301", "ß", "собака", "猫犬", "كلب", "הכלב", "हिन्दी", "🐈", "\U00020000", "ﬁ", "İ"),
    *(" ", "'", "%", "\u00a0"),
]
LETTERS = st.one_of(
    st.sampled_from([*SCRIPTS, *map(os.fsdecode, (b"\xe9", b"\xff\xfe", b"\xb2\xe2"))]),
    st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"),
)
PATHS = st.lists(LETTERS, min_size=1, max_size=8).map("".join).filter(lambda name: name.strip(". ") and name[0] != "-")
ENCODINGS = ["ascii", "cp1252", "latin-1", "cp932", "utf-8", "utf-16"]


def run_with_names(photo: str, folder: str, name: str, encoding: str) -> tuple[list[int], str]:
    """Segment, teach and label with names of a user in a folder of their own, on a console of an encoding."""
    image = Path("a.png").read_bytes()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(streams[0]):
        base = Path(place, folder)
        base.mkdir()
        for name_of_photo in (photo, "ordinary"):  # a name that is not UTF-8 is a failure of that photo alone
            base.joinpath(f"{name_of_photo}.png").write_bytes(image)
        shot = ["--support", str(base / f"{photo}.png"), "--points", "5,5", "--decoder", "decoder", "--device", "cpu"]
        taught = str(Path(place, f"{photo}.safetensors"))
        labels = str(Path(place, "labels", folder))
        lines = [
            ["segment", str(base / f"{photo}.png"), *shot, "-o", str(Path(place, "out", folder))],
            ["teach", *shot, "--name", name, "-o", taught],
            ["label", str(base), "--prototypes", taught, *shot[4:], "--format", "png", "overlay", "csv", "-o", labels],
        ]
        with contextlib.redirect_stderr(streams[1]):
            statuses = [cli.main(line) for line in lines]
        whole = json.loads(Path(place, "out", folder, "result.json").read_text())
        assert whole["query"] == str(base / f"{photo}.png")
        assert not statuses[1] or not Path(taught).exists()
    for stream in streams:
        stream.flush()
    return statuses, streams[1].buffer.getvalue().decode(encoding)


@given(photo=PATHS, folder=PATHS, name=PATHS, encoding=st.sampled_from(ENCODINGS))
def test_names_in_every_script_and_encoding(offline: None, photo: str, folder: str, name: str, encoding: str) -> None:
    assume(all(len(os.fsencode(text)) < 150 for text in (photo, folder)) and folder[0] != "." != photo[0])
    assume(Path(folder).suffix == "" == Path(photo).suffix)
    statuses, errors = run_with_names(photo, folder, name, encoding)
    assert statuses[0] == 0, errors
    assert statuses[1] == (0 if name.strip() and name.isprintable() else cli.FAILED), errors
    assert statuses[2] == statuses[1], errors


NAMES = st.one_of(
    st.text(max_size=20),
    st.builds(
        "{}:{}".format,
        st.sampled_from(["bundled", "timm", "open_clip", "fake", "nonsense", ""]),
        st.text(max_size=12) | st.sampled_from(["RN50/openai", "resnet18.nonsense", "RN50", "../x", "ViT-B-16/"]),
    ),
    ANYTHING,
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "input_size": ANYTHING,
        "levels": ANYTHING,
        "checkpoint_path": st.just("broken.png"),
        "nonsense": ANYTHING,
    },
)


@given(name=NAMES, options=CHOICES)
def test_backbone_names(offline: None, name: object, options: dict[str, object]) -> None:
    backbone = outcome(lambda: load_backbone(name, **options))
    if backbone is not None:
        assert isinstance(backbone.name, str)
