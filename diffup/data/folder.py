"""Folders of labelled images: `images/`, `masks/` and `splits.json`, the format for training and evaluation."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.data.base import IndexMasks, check_layout, check_listed_once, class_areas, fold_classes, name_key
from diffup.errors import DataError
from diffup.inputs.images import image_suffixes
from diffup.inputs.recorded import Pictures, read_json

LAYOUT = """a data folder looks like this:
  images/NAME.jpg|png|...    the photos, in any format that Pillow reads
  masks/NAME.png             same size, pixel = class id, 0 = background
  splits.json                {"ignore": 255, "min_area_fraction": 0.01, "classes": {"1": "person", ...},
                              "folds": {"0": [1, 5, ...], ...}, "images": {"train": [NAME, ...], "test": [...]}}"""


@dataclass(frozen=True)
class LabelledFolder(IndexMasks):
    """A folder of images with class-index masks.

    Args:
        root: the folder.
        classes: class names by id, 1-based.
        folds: class ids by fold.
        images: image names by split.
        ignore: mask value of pixels that count neither as object nor as background.
        min_area_fraction: least fraction of the image, in [0, 1], that a class covers in an (image, class) pair.
    """

    root: Path
    classes: dict[int, str]
    folds: dict[int, tuple[int, ...]]
    images: dict[str, tuple[str, ...]]
    ignore: int
    min_area_fraction: float
    _pictures: dict[str, Pictures] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> LabelledFolder:
        """Open a folder and check its layout.

        Args:
            root: the folder.

        Raises:
            DataError: something is missing or differs from `LAYOUT`.
        """
        root = Path(root)
        check_layout(root, ("images", "masks", "splits.json"), LAYOUT)
        try:
            splits: dict[str, Any] = read_json(root / "splits.json", DataError)
            classes = {int(key): str(name) for key, name in splits["classes"].items()}
            folds = {int(key): tuple(int(c) for c in ids) for key, ids in splits["folds"].items()}
            images = {str(split): _names(names) for split, names in splits["images"].items()}
            ignore, area = int(splits.get("ignore", 255)), float(splits.get("min_area_fraction", 0.01))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, DataError) else repr(error)
            raise DataError(f"{root / 'splits.json'} cannot be read ({reason}); {LAYOUT}") from error
        if not classes:
            raise DataError(f"{root / 'splits.json'}: 'classes' names no class; {LAYOUT}")
        impossible = sorted(c for c in classes if not 0 < c <= 255 or c == ignore)
        if impossible:
            raise DataError(
                f"{root / 'splits.json'}: class ids {impossible} cannot be pixels of a mask; give each class a number "
                f"from 1 to 255 other than 'ignore' ({ignore})"
            )
        strangers = {c for ids in folds.values() for c in ids} - set(classes)
        if strangers:
            raise DataError(f"{root / 'splits.json'}: folds name classes {sorted(strangers)} that 'classes' lacks")
        data = cls(root, classes, folds, images, ignore, area)
        data._check_lists()
        return data

    def _check_lists(self) -> None:
        """Check that no image is listed twice, and none both for training and for testing."""
        where = f"{self.root / 'splits.json'}: split"
        for split, names in self.images.items():
            check_listed_once(names, f"{where} {split!r}", self._file_of)
        trained = {self._file_of(name): name for name in self.images.get("train", ())}
        for split, names in self.images.items():
            both = [] if "train" in split else [name for name in names if self._file_of(name) in trained]
            if both:
                raise DataError(
                    f"{where} {split!r} lists {both[0]!r}, and so does 'train'"
                    f"{f', {len(both)} images in all' if len(both) > 1 else ''}; what was trained on cannot be tested "
                    "on. List every image in one of them"
                )

    def _file_of(self, name: str) -> object:
        """A key that is equal for two names of one image: the path of its mask, or else the name."""
        return self._found("masks", name) or name_key(name)

    def _found(self, part: str, name: str) -> Path | None:
        """Path of an image or mask; `None` if it is missing."""
        endings = {".png"} if part == "masks" else image_suffixes()
        files = self._pictures.setdefault(part, Pictures(self.root / part, endings))
        return files.search(name, f"{self.root / part}", DataError)

    @property
    def name(self) -> str:
        """Name of the folder, for tables."""
        return self.root.resolve().name

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of a split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.images:
            raise DataError(f"split={name!r}: {self.root} has {', '.join(self.images) or 'none'}")
        if not self.images[name]:
            raise DataError(f"{self.root / 'splits.json'}: split {name!r} lists no image")
        return self.images[name]

    def fold(self, fold: int) -> tuple[int, ...]:
        """Class ids of a fold, which are held out in training.

        Raises:
            DataError: there is no such fold.
        """
        return fold_classes(self.folds, fold, str(self.root))

    def image_path(self, name: str) -> Path:
        """Path of an image.

        Raises:
            DataError: the image is missing.
        """
        path = self._found("images", name)
        if path is None:
            raise DataError(
                f"{self.root / 'images'} holds no image {name!r}, with no ending that Pillow reads; {LAYOUT}"
            )
        return path

    def mask_path(self, name: str) -> Path:
        """Path of the mask of an image.

        Raises:
            DataError: the mask is missing.
        """
        path = self._found("masks", name)
        if path is None:
            raise DataError(f"{self.root / 'masks' / f'{name}.png'} is missing; {LAYOUT}")
        return path

    def files(self, names: Iterable[str]) -> list[Path]:
        """Paths of the files of images and their masks, and of `splits.json`.

        Raises:
            DataError: a file is missing.
        """
        return [*super().files(names), self.root / "splits.json"]

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """The (image, class) pairs of a split in which a class covers `min_area_fraction` of the image.

        Args:
            split: name of the split.
            classes: ids of the classes to consider.

        Returns:
            Image names by class id, classes in ascending order; only classes with any.

        Raises:
            DataError: there is no such split, a mask cannot be used, or the masks hold ignored pixels and no class.
        """
        sizes = dict[str, int]()

        def mask(name: str) -> npt.NDArray[np.uint8]:
            labels = self.mask(name)
            sizes[name] = labels.size
            return labels

        areas = class_areas(self.split(split), mask, self.ignore)
        found: dict[int, tuple[str, ...]] = {}
        for c in sorted(classes):
            enough = [n for n, pixels in areas.items() if pixels.get(c, 0) >= max(1, self.min_area_fraction * sizes[n])]
            if enough:
                found[c] = tuple(enough)
        return found


def _names(listed: Any) -> tuple[str, ...]:
    """Check the image names of a split in `splits.json`."""
    if not isinstance(listed, list) or not all(isinstance(name, str | int) for name in listed):
        raise TypeError("a split is a list of image names")
    return tuple(str(name) for name in listed)


def square_mask(mask: npt.NDArray[np.uint8], side: int) -> Tensor:
    """Resize an index mask (H, W) uint8 to (side, side) pixels by nearest neighbour."""
    return torch.from_numpy(np.array(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)))
