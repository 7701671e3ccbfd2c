"""The pictures of the docs are of the released decoder, and the check of it notices what is not."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from PIL import Image

from diffup.decoder.weights import decoder_hash, load_decoder
from diffup.model import RELEASED

pytest.importorskip("skimage")

IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "pictures.py"))


def test_the_pictures_are_of_the_released_decoder(script: dict[str, Any]) -> None:
    """If this fails, run `python docs/pictures.py` and, for demo.webp, `python docs/recording.py`."""
    assert script["outdated"](IMAGES, decoder_hash(load_decoder(RELEASED))) == []
    with pytest.raises(SystemExit) as ended:
        script["main"](["--check"])
    assert ended.value.code == 0


def repaint(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "front.jpg")


CHANGES: dict[str, Callable[[Path], object]] = {
    "another picture": repaint,
    "no picture": lambda folder: (folder / "front.jpg").unlink(),
    "no record": lambda folder: edit(folder, lambda made: made.pop("front.jpg")),
    "another decoder": lambda folder: edit(folder, lambda made: made["front.jpg"].update(decoder="0" * 64)),
}


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = folder / "made_with.json"
    made = json.loads(record.read_text())
    change(made)
    record.write_text(json.dumps(made))


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_of_other_weights_is_noticed(script: dict[str, Any], change: str, tmp_path: Path) -> None:
    folder = shutil.copytree(IMAGES, tmp_path / "images")
    decoder = json.loads((IMAGES / "made_with.json").read_text())["front.jpg"]["decoder"]
    CHANGES[change](folder)
    assert script["outdated"](folder, decoder) == ["front.jpg"]
    with pytest.raises(SystemExit, match=r"front\.jpg.*; run docs/pictures\.py"):
        script["main"](["--check", "--output", str(folder)])
