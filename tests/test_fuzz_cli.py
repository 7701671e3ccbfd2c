"""Command lines and backbone names of every wrongness: exit status 0 or 2 with a message, and no half-written file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBackbone, random_decoder, shape_image, tiny_config
from fuzzing import ANYTHING, outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffup import cli, load_backbone
from diffup.decoder.weights import save_decoder

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
    config = tiny_config(backbone="fake", steps=1)
    save_decoder(folder / "decoder", random_decoder(config).state_dict(), config)
    for index, name in enumerate(("query", "a")):
        image, labels = shape_image((1,), size=(20, 24), seed=index)
        Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray(labels * np.uint8(255)).save(folder / f"{name}_mask.png")
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
