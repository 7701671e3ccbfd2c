"""FSS-1000: 1000 classes of ten images each, one object class per image.

HSNet numbers the training categories from 0, the validation categories from 520 and the test categories from 760, each
split sorted by name; class ids here are greater by one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from diffup.data.base import (
    Areas,
    FoldLists,
    Target,
    check_listed_once,
    check_mask_size,
    fold_classes,
    read_lines,
)
from diffup.errors import DataError
from diffup.inputs.images import open_image, read_image
from diffup.inputs.recorded import Pictures

LAYOUT = """FSS-1000 looks like this:
  ROOT/CATEGORY/1.jpg .. 10.jpg    the photos
  ROOT/CATEGORY/1.png .. 10.png    masks, grey level 128 and above = the object
and, optional, a list of the categories of a split (HSNet's data/splits/fss/test.txt):
  one CATEGORY per line"""

_FIRST = {"train": 1, "val": 521, "test": 761}
_PHOTOS, _MASKS = (".jpg", ".jpeg"), (".png",)
_NUMBERS = tuple(str(number) for number in range(1, 11))


@dataclass(frozen=True)
class FSS1000:
    """Categories of FSS-1000; all of them are fold 0.

    Args:
        root: folder of the data set, with a folder for each category.
        classes: category names by class id.
    """

    root: Path
    classes: dict[int, str]
    _files: dict[str, Pictures] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        categories: str | os.PathLike[str] | None = None,
        split: Literal["train", "val", "test"] = "test",
    ) -> FSS1000:
        """Open the data set and check that every category has its ten images and masks.

        Args:
            root: folder of the data set, with a folder for each category.
            categories: file with the category names of a split. By default all categories in the folder, numbered from
                1; published figures are for the 240 official test categories, so give their list to compare.
            split: split that `categories` lists, which fixes the class ids. Not used without a list.

        Raises:
            DataError: a file or folder is missing.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root} is missing; {LAYOUT}")
        if split not in _FIRST:
            raise DataError(f"split={split!r}: FSS-1000 has {', '.join(_FIRST)}")
        if categories is None:
            names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
            first = 1
        else:
            names, first = _read_categories(Path(categories)), _FIRST[split]
        if not names:
            raise DataError(f"{root if categories is None else categories} holds no category; {LAYOUT}")
        data = cls(root, dict(enumerate(names, start=first)))
        for name in names:
            for path in (path(f"{name}/{n}") for n in _NUMBERS for path in (data.image_path, data.mask_path)):
                if not path.is_file():
                    raise DataError(f"{path} is missing; {LAYOUT}")
        return data

    def image_path(self, name: str) -> Path:
        """Path of the image with the name CATEGORY/NUMBER."""
        return self._path(name, _PHOTOS)

    def mask_path(self, name: str) -> Path:
        """Path of the mask of an image."""
        return self._path(name, _MASKS)

    def _path(self, name: str, endings: tuple[str, ...]) -> Path:
        category, _, number = name.rpartition("/")
        key = f"{category}{endings[0]}"
        files = self._files.setdefault(key, Pictures(self.root / category, endings))
        return files.search(number, name, DataError) or self.root / f"{name}{endings[0]}"

    @property
    def name(self) -> str:
        """Name of the data set, for tables."""
        return "fss1000"

    def fold(self, fold: int) -> tuple[int, ...]:
        """Class ids of a fold; there is only fold 0.

        Raises:
            DataError: there is no such fold.
        """
        return fold_classes({0: tuple(self.classes)}, fold, self.name)

    def image(self, name: str) -> Tensor:
        """Read the image with the name CATEGORY/NUMBER as (3, H, W) float32 in [0, 1].

        Raises:
            ImageError: the image is missing or cannot be decoded.
        """
        return read_image(self.image_path(name), argument=name)

    def target(self, name: str, class_id: int) -> Target:
        """Read the ground truth of a class in an image of its category; no pixel is ignored.

        Raises:
            DataError: the image is of another category, or the mask has another size or only values below 128.
            ImageError: the image or the mask is missing or cannot be decoded.
        """
        if self.classes.get(class_id) != name.rpartition("/")[0]:
            raise DataError(f"class_id={class_id}: {name} is not an image of class {self.classes.get(class_id)}")
        path = self.mask_path(name)
        image, _ = open_image(path, name)
        grey = np.array(image.convert("L"))
        check_mask_size(grey.shape, path, self.image_path(name), name)
        mask = grey >= 128
        if grey.any() and not mask.any():
            raise DataError(f"{path} holds values up to {grey.max()}, and the object begins at 128: is it 0 and 1?")
        return Target(mask, np.zeros_like(mask))

    def areas(self, split: str) -> Areas:
        """Not available: BAM's protocol is not defined for FSS-1000.

        Raises:
            DataError: always.
        """
        raise DataError("protocol='bam' has no rule for FSS-1000: use 'hsnet'")

    def lists(self, fold: int) -> FoldLists:
        """Lists for HSNet's protocol: every image is a query once, in the order of file names (1, 10, 2, ...).

        Raises:
            DataError: there is no such fold.
        """
        names = {c: self.classes[c] for c in self.fold(fold)}
        queries = tuple((f"{name}/{number}", c) for c, name in names.items() for number in sorted(_NUMBERS))
        return FoldLists({c: tuple(f"{name}/{n}" for n in _NUMBERS) for c, name in names.items()}, queries, once=True)


def _read_categories(path: Path) -> list[str]:
    names = sorted(line.strip() for line in read_lines(path, LAYOUT) if line.strip())
    check_listed_once(names, str(path), str)
    return names
