"""A folder of labelled images: `images/`, `masks/` and `splits.json`, the format that training and evaluation read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.data.base import IndexMasks, check_layout, fold_classes
from diffup.errors import DataError
from diffup.images import upright_size

LAYOUT = """a data folder looks like this:
  images/NAME.jpg|jpeg|png   the photos
  masks/NAME.png             same size, pixel = class id, 0 = background
  splits.json                {"ignore": 255, "min_area_fraction": 0.01, "classes": {"1": "person", ...},
                              "folds": {"0": [1, 5, ...], ...}, "images": {"train": [NAME, ...], "test": [...]}}"""

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class LabelledFolder(IndexMasks):
    """A folder of images with class-index masks.

    Args:
        root: the folder.
        classes: class names by id, 1-based.
        folds: class ids of each fold.
        images: image names of each split.
        ignore: mask value that counts neither as object nor as background.
        min_area_fraction: share of the image that a class must cover to make an (image, class) pair.
    """

    root: Path
    classes: dict[int, str]
    folds: dict[int, tuple[int, ...]]
    images: dict[str, tuple[str, ...]]
    ignore: int
    min_area_fraction: float

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> LabelledFolder:
        """Open a folder and check its layout.

        Raises:
            DataError: something is missing or not as `LAYOUT` says.
        """
        root = Path(root)
        check_layout(root, ("images", "masks", "splits.json"), LAYOUT)
        try:
            splits: dict[str, Any] = json.loads((root / "splits.json").read_text(encoding="utf-8"))
            classes = {int(key): str(name) for key, name in splits["classes"].items()}
            folds = {int(key): tuple(int(c) for c in ids) for key, ids in splits["folds"].items()}
            images = {str(split): tuple(str(n) for n in names) for split, names in splits["images"].items()}
            ignore, area = int(splits.get("ignore", 255)), float(splits.get("min_area_fraction", 0.01))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{root / 'splits.json'} cannot be read ({error!r}); {LAYOUT}") from error
        impossible = sorted(c for c in classes if not 0 < c <= 255 or c == ignore)
        if impossible:
            raise DataError(
                f"{root / 'splits.json'}: class ids {impossible} cannot be pixels of a mask; give each class a number "
                f"from 1 to 255 other than 'ignore' ({ignore})"
            )
        strangers = {c for ids in folds.values() for c in ids} - set(classes)
        if strangers:
            raise DataError(f"{root / 'splits.json'}: folds name classes {sorted(strangers)} that 'classes' lacks")
        return cls(root, classes, folds, images, ignore, area)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of a split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.images:
            raise DataError(f"split={name!r}: {self.root} has {', '.join(self.images)}")
        return self.images[name]

    def fold(self, fold: int) -> tuple[int, ...]:
        """Class ids of a fold, the ones held out in training.

        Raises:
            DataError: there is no such fold.
        """
        return fold_classes(self.folds, fold, str(self.root))

    def image_path(self, name: str) -> Path:
        """Path of an image.

        Raises:
            DataError: it is missing.
        """
        for suffix in _SUFFIXES:
            path = self.root / "images" / f"{name}{suffix}"
            if path.exists():
                return path
        raise DataError(f"{self.root / 'images' / name} has none of the suffixes {', '.join(_SUFFIXES)}")

    def mask_path(self, name: str) -> Path:
        """Path of a mask.

        Raises:
            DataError: it is missing.
        """
        path = self.root / "masks" / f"{name}.png"
        if not path.exists():
            raise DataError(f"{path} is missing; {LAYOUT}")
        return path

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """A class-index mask, (H, W) uint8.

        Raises:
            DataError: it is missing, not an index image, or of another size than its image.
        """
        mask, image = super().mask(name), self.image_path(name)
        size = upright_size(image, name)
        if mask.shape != size:
            raise DataError(
                f"{self.mask_path(name)} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), {image} has "
                f"{size[0]} x {size[1]}; a mask has the size of its photo as viewers show it, turned as its EXIF "
                "orientation says"
            )
        return mask

    def files(self, names: Iterable[str]) -> list[Path]:
        """The files of images, their masks, and `splits.json`.

        Raises:
            DataError: one is missing.
        """
        return [*super().files(names), self.root / "splits.json"]

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """The (image, class) pairs of a split: a class counts where it covers `min_area_fraction` of the image.

        Returns:
            Image names of each class that has any, classes in ascending order.
        """
        found: dict[int, list[str]] = {c: [] for c in sorted(classes)}
        for name in self.split(split):
            mask = self.mask(name)
            counts = np.bincount(mask.ravel(), minlength=256)
            for c in found:
                if counts[c] > 0 and counts[c] >= self.min_area_fraction * mask.size:
                    found[c].append(name)
        return {c: tuple(names) for c, names in found.items() if names}


def square_mask(mask: npt.NDArray[np.uint8], side: int) -> Tensor:
    """Resize an index mask to (side, side) by nearest neighbour, uint8."""
    return torch.from_numpy(np.array(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)))
