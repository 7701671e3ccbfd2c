"""Printing never ends a command: encodings, readers that have gone, streams that are not there, full disks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import TINY, FakeBackbone, make_folder, save_tiny_decoder, shape_image
from PIL import Image

from diffup import cli
from diffup.backbones import registry
from diffup.commands.streams import Printer, printing

NAMES = {
    "Chinese": "图片",
    "Cyrillic": "собака",
    "Arabic": "كلب",
    "Hindi": "हिन्दी",
    "decomposed": "e\u0301",
    "emoji": "🐈",
    "no Unicode": "caf\udce9",
    "half a pair": "\ud800",
}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_an_encoding_lacks_is_escaped(encoding: str, name: str) -> None:
    buffer = io.BytesIO()
    printer = Printer(io.TextIOWrapper(buffer, encoding=encoding))
    print(f"a {name}.jpg", file=printer, flush=True)
    assert buffer.getvalue().decode(encoding) == f"a {name}.jpg\n".encode(encoding, "backslashreplace").decode(encoding)
    assert printer.failure is None


def test_what_an_encoding_has_is_left_alone() -> None:
    buffer = io.BytesIO()
    printer = Printer(io.TextIOWrapper(buffer, encoding="cp1252"))
    print("Müller 犬", file=printer, flush=True)
    assert buffer.getvalue() == b"M\xfcller \\u72ac\n"


class Broken(io.StringIO):
    """A stream that cannot be written to, for a reason."""

    def __init__(self, reason: OSError) -> None:
        super().__init__()
        self.reason, self.attempts = reason, 0

    def write(self, text: str) -> int:
        self.attempts += 1
        raise self.reason


def test_a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() -> None:
    for reason, failure in ((BrokenPipeError(32, "Broken pipe"), False), (OSError(28, "No space left"), True)):
        stream = Broken(reason)
        printer = Printer(stream)
        for _ in range(3):
            print("text", file=printer, flush=True)
        assert stream.attempts == 1, "the rest is dropped"
        assert (printer.failure is reason) is failure


def test_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    before = sys.stderr
    with printing() as out:
        assert sys.stdout is out and sys.stderr is not before
        print("into nowhere", flush=True)
        assert not sys.stdout.isatty()
    assert sys.stdout is None and sys.stderr is before


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    assert cli.main(["backbones", "--json"]) == cli.FAILED
    assert "what was printed could not be written" in capsys.readouterr().err


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from fakes import FakeBackbone
from diffup import cli
from diffup.backbones import registry
registry._RUNTIME["fake"] = lambda variant, **options: FakeBackbone(input_size=(64, 64))
sys.exit(cli.main(sys.argv[1:]))
"""


def run(words: Sequence[str], folder: Path, encoding: str, redirect: str = "") -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, behind a shell that redirects its output."""
    program = folder / "program.py"
    program.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = ["bash", "-c", f'set -o pipefail; "$@" {redirect}', "-", sys.executable, str(program), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)


def run_here(words: Sequence[str], encoding: str) -> tuple[int, str, str]:
    """A command in this process, on a console of an encoding: its status, what it printed, its errors."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]  # type: ignore[attr-defined]
    return status, texts[0], texts[1]


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder with the files, and the encoder, for commands in this process."""
    monkeypatch.chdir(work)
    monkeypatch.setitem(registry._RUNTIME, "fake", lambda variant, **options: FakeBackbone(input_size=(64, 64)))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny_decoder(folder / "decoder", backbone="fake", steps=1, ensemble=1)
    image = Image.fromarray(shape_image((1,), size=(40, 48))[0])
    (folder / "图片").mkdir()
    for name in ("图片.png", "图片/犬.png", "a.png"):
        image.save(folder / name)
    make_folder(folder / "данные")
    return folder


MODEL = ["--decoder", "decoder", "--device", "cpu"]
SEGMENT = ["segment", "图片.png", "--support", "图片/犬.png", "--points", "20,20", *MODEL, "-o"]
GONE = {"closed": ">&- 2>&-", "head": "2>&1 | true", "devices": ">/dev/null 2>/dev/null"}


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize("redirect", GONE.values(), ids=GONE)
def test_results_are_written_whoever_reads(work: Path, redirect: str, tmp_path: Path) -> None:
    done = run([*SEGMENT, str(tmp_path / "out")], work, "ascii", redirect)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["query"] == "图片.png"


def test_every_command_prints_every_name(here: None, work: Path, tmp_path: Path) -> None:
    """Of all commands that print names, with a console that knows hardly any."""
    prototypes = str(tmp_path / "犬.safetensors")
    run_folder, labels, scores = (str(tmp_path / name) for name in ("обучение", "метки", "оценка"))
    settings = work / "настройки.json"
    decoder = {**TINY, "timesteps": 50, "steps": 1, "ensemble": 1, "backbone": "fake", "priors": {"grid": 8}}
    views = {"crops": 1, "pasted": 3}
    settings.write_text(json.dumps({"decoder": decoder, "views": views, "backbones": ["fake"], "steps": 1}))
    data = ["данные", "--device", "cpu"]
    lines = {
        "segment": [*SEGMENT, str(tmp_path / "выход")],
        "teach": ["teach", "--support", "a.png", "--points", "20,20", "--name", "犬", *MODEL, "-o", prototypes],
        "label": ["label", "图片", "--prototypes", prototypes, "--format", "overlay", *MODEL, "-o", labels],
        "train": ["train", *data, "--config", settings.name, "--batch-size", "2", "-o", run_folder],
        "evaluate": ["evaluate", *data, "--decoder", "decoder", "--episodes", "1", "--fold", "0", "-o", scores],
        "push": ["push", "decoder", "user/repo", "--dry-run", str(tmp_path / "склад")],
        "an error": ["segment", "кошка.png", "--support", "a.png", "-o", str(tmp_path / "нет")],
    }
    for name, words in lines.items():
        status, printed, complaint = run_here(words, "cp1252")
        assert status == (cli.FAILED if name == "an error" else 0), (name, complaint)
        assert "\\u" in (complaint if name == "an error" else printed), name


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_names_that_are_no_unicode(here: None, work: Path, tmp_path: Path) -> None:
    raw = os.fsdecode(b"caf\xe9")
    for name in (f"{raw}.png", f"{raw}/a\udcff.png", f"{raw}/b.png"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes((work / "a.png").read_bytes())
    (tmp_path / raw).mkdir()
    prototypes = str(tmp_path / f"{raw}.safetensors")
    decoder = work / f"{raw}decoder"
    decoder.mkdir(exist_ok=True)
    for file in (work / "decoder").iterdir():
        (decoder / file.name).write_bytes(file.read_bytes())
    model = ["--decoder", str(decoder), "--device", "cpu"]
    shot = ["--support", f"{raw}.png", "--points", "20,20", *model]
    for words in (
        ["segment", f"{raw}.png", *shot, "-o", str(tmp_path / raw / "out")],
        ["teach", *shot, "--name", "dog", "-o", prototypes],
        ["label", raw, "--prototypes", prototypes, *model, "-o", str(tmp_path / f"{raw}labels")],
    ):
        status, printed, complaint = run_here(words, "utf-8")
        assert status == 0, complaint
        assert "caf\\udce9" in printed
    assert "a\\udcff.png: its name is not UTF-8" in complaint  # one recorded failure, and the run goes on
    assert json.loads((tmp_path / raw / "out" / "result.json").read_text())["query"] == f"{raw}.png"
    assert [path.name for path in (tmp_path / f"{raw}labels" / "labels").iterdir()] == ["b.png"]
