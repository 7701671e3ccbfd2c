"""`save` of the three kinds of results: one rule for endings, folders and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import shape_image, tiny_model
from PIL import Image

from diffup import LabelMap, Prototypes, Segmentation
from diffup.errors import FormatError, StorageError


@pytest.fixture(scope="module")
def results() -> dict[str, Segmentation | LabelMap | Prototypes]:
    model = tiny_model(steps=1)
    image, labels = shape_image((1,))
    dog = model.prototypes(image, labels == 1, name="dog")
    return {"mask": model.segment(image, dog), "labels": model.segment(image, [dog]), "prototypes": dog}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def same_mask(result: Segmentation, path: Path) -> bool:
    return bool((pixels(path) == result.mask * 255).all())


def same_labels(result: LabelMap, path: Path) -> bool:
    return bool((pixels(path) == result.labels).all())


def same_prototypes(result: Prototypes, path: Path) -> bool:
    read = Prototypes.load(path)
    return (read.name, read.shots, read.fingerprint) == (result.name, result.shots, result.fingerprint)


KINDS = [("mask", ".png", same_mask), ("labels", ".png", same_labels), ("prototypes", ".safetensors", same_prototypes)]


@pytest.mark.parametrize(("kind", "ending", "same"), KINDS)
def test_all_save_alike(
    kind: str, ending: str, same: Callable[..., bool], results: dict[str, object], tmp_path: Path
) -> None:
    result = results[kind]
    for name in (f"a{ending}", f"new/folder/a{ending.upper()}"):  # the folder is made
        path = result.save(str(tmp_path / name))
        assert path == tmp_path / name and same(result, path)
    for name in ("a.jpg", "a", f"a{ending}.txt", "folder/"):
        with pytest.raises(FormatError, match=rf"path: expected a file name ending in \{ending}, got '"):
            result.save(tmp_path / "other" / name)
    assert not (tmp_path / "other").exists()
    (tmp_path / "file").write_text("here")
    (tmp_path / f"folder{ending}").mkdir()
    for name in (f"file/a{ending}", f"folder{ending}"):
        with pytest.raises(StorageError, match="cannot be written"):
            result.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "here"
    assert not list(tmp_path.rglob(".diffup-*"))
