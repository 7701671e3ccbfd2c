"""What evaluation and training need of a data set, and what data sets share: targets, areas of classes, lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffup.errors import DataError
from diffup.inputs.images import open_image, read_image, upright_size
from diffup.inputs.recorded import read_text, same_name, without_ending

Pair: TypeAlias = tuple[str, int]
"""An image's name and the id of a class in it."""

Areas: TypeAlias = dict[str, dict[int, int]]
"""Pixels of each class in each image, images in the data set's order."""

IGNORE = 255
"""Mask value that counts neither as object nor as background."""

MIN_PIXELS = 2 * 32 * 32
"""Pixels that a class must cover to make a pair: two cells at stride 32, the filter of OSLSM, PFENet and BAM."""

MIN_AREA_FRACTION = 0.01
"""The same as a share of a photo, for training views, whose sizes vary."""


@dataclass(frozen=True, eq=False)
class Target:
    """What an image is scored against for one class.

    Args:
        mask: (H, W), where the class is.
        ignore: (H, W), pixels that do not count; none of them is in `mask`.
    """

    mask: npt.NDArray[np.bool_]
    ignore: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FoldLists:
    """What HSNet's protocol draws the episodes of one fold from.

    Args:
        supports: images of each class of the fold, classes and images in list order.
        queries: (image, class) pairs that are queries in this order; none where the class is drawn first (COCO-20i).
        once: every query is used exactly once (FSS-1000), whatever number of episodes the protocol draws elsewhere.
    """

    supports: dict[int, tuple[str, ...]]
    queries: tuple[Pair, ...] = ()
    once: bool = False


class Dataset(Protocol):
    """Images with the masks of classes, and classes in folds. Class ids are 1-based, as pixel values are."""

    @property
    def name(self) -> str:
        """Short name, for tables."""

    @property
    def classes(self) -> dict[int, str]:
        """Class names by id."""

    def fold(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes that are held out in a fold."""

    def image(self, name: str) -> Tensor:
        """An image, (3, H, W) in [0, 1]."""

    def target(self, name: str, class_id: int) -> Target:
        """Where a class is in an image."""


class TrainingData(Dataset, Protocol):
    """A data set with training images and class-index masks."""

    @property
    def ignore(self) -> int:
        """Mask value that counts neither as object nor as background."""

    @property
    def min_area_fraction(self) -> float:
        """Share of a view that a class must cover to be segmented or shown in it."""

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of a split, "train" among them."""

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """A class-index mask, (H, W)."""

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Images of a split that show a class well, of each class that has any, ascending."""

    def files(self, names: Iterable[str]) -> list[Path]:
        """The files that these images and their masks are read from."""


class Benchmark(Dataset, Protocol):
    """A data set that the protocols of the literature are defined for."""

    def lists(self, fold: int) -> FoldLists:
        """What HSNet's protocol draws from."""

    def areas(self, split: str) -> Areas:
        """Pixels of each class in the images of a split, which BAM's protocol filters by."""


class IndexMasks(ABC):
    """What data sets share whose masks are class-index images; each says where its files are."""

    ignore: int

    if TYPE_CHECKING:  # a field of some, a property of others

        @property
        def classes(self) -> dict[int, str]:
            """Class names by id."""

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """Path of an image."""

    @abstractmethod
    def mask_path(self, name: str) -> Path:
        """Path of a mask."""

    def image(self, name: str) -> Tensor:
        """An image, (3, H, W) in [0, 1].

        Raises:
            DataError, ImageError: it is missing or cannot be decoded.
        """
        return read_image(self.image_path(name), argument=name)

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """A class-index mask, (H, W) uint8.

        Raises:
            DataError: it is missing, not an index image, of another size than its image, or holds values that are no
                class.
        """
        path = self.mask_path(name)
        mask = read_index_mask(path)
        check_mask_size(mask.shape, path, self.image_path(name), name)
        check_values(mask, path, self.classes, self.ignore)
        return mask

    def files(self, names: Iterable[str]) -> list[Path]:
        """The files of images and their masks.

        Raises:
            DataError: one cannot be found.
        """
        return [path for name in names for path in (self.image_path(name), self.mask_path(name))]

    def target(self, name: str, class_id: int) -> Target:
        """Where a class is in an image; pixels of the value `ignore` do not count.

        Raises:
            DataError: see `mask`.
        """
        return target_of(self.mask(name), class_id, self.ignore)


class FoldedMasks(IndexMasks):
    """What PASCAL-5i and COCO-20i share: pairs of images and classes by the pixels that a class covers."""

    ignore = IGNORE
    min_area_fraction = MIN_AREA_FRACTION

    @abstractmethod
    def areas(self, split: str) -> Areas:
        """Pixels of each class in the images of a split."""

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Images in which a class covers 2048 pixels, of each class that has any, ascending."""
        found = by_class(pairs_of(self.areas(split), classes), sorted(classes))
        return {c: names for c, names in found.items() if names}


def check_layout(root: Path, parts: Iterable[str], layout: str) -> None:
    """Check that a data set's folder has its parts.

    Raises:
        DataError: one is missing; names it and shows the layout.
    """
    for part in parts:
        if not (root / part).exists():
            raise DataError(f"{root / part} is missing; {layout}")


def fold_classes(folds: Mapping[int, tuple[int, ...]], fold: int, name: str) -> tuple[int, ...]:
    """Class ids of a fold.

    Raises:
        DataError: there is no such fold.
    """
    if fold not in folds:
        raise DataError(f"fold={fold}: {name} has {', '.join(map(str, folds))}")
    return folds[fold]


def read_index_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Read a class-index mask, (H, W) uint8; its size is checked before it is decoded.

    Raises:
        DataError: it is missing or neither a grey nor a palette image.
        ImageError: it cannot be decoded.
    """
    if not path.exists():
        raise DataError(f"{path} is missing")
    image, _ = open_image(path, str(path))
    if image.mode not in ("L", "P"):
        raise DataError(f"{path} has mode {image.mode}; a mask is a grey or palette PNG of class ids")
    return np.array(image)


def check_mask_size(size: tuple[int, ...], path: Path, image: Path, name: str) -> None:
    """Check that a mask has its image's size.

    Args:
        size: (height, width) of the mask.
        path: file of the mask.
        image: file of the image.
        name: what to call the image in error messages.

    Raises:
        DataError: it has another.
        ImageError: the image is missing or cannot be read.
    """
    upright = upright_size(image, name)
    if size != upright:
        raise DataError(
            f"{path} has {size[0]} x {size[1]} pixels (height x width), {image} has {upright[0]} x {upright[1]}; a "
            "mask has the size of its photo as viewers show it, turned as its EXIF orientation says"
        )


def check_values(mask: npt.NDArray[np.uint8], path: Path, classes: Collection[int], ignore: int) -> None:
    """Check that a class-index mask holds nothing but classes, background and ignored pixels.

    Raises:
        DataError: it holds other values.
    """
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    strangers = [value for value in values if value not in classes and value not in (0, ignore)]
    if not strangers:
        return
    shown = ", ".join(map(str, strangers[:6])) + (", ..." if len(strangers) > 6 else "")
    if strangers == [255]:
        remedy = "Is it a two-valued mask, white being the object? Write the number of the class instead of 255"
    elif len(strangers) > 20:
        remedy = "Was it smoothed when it was resized, or saved as JPEG? Resize by nearest neighbour and save as PNG"
    else:
        remedy = "Add these classes to the data set's, or write 0 (background) or the value to be ignored there"
    raise DataError(
        f"{path} holds the values {shown}, which are none of the classes ({_span(classes)}), nor 0, nor {ignore} "
        f"(ignored). {remedy}"
    )


def check_listed_once(names: Iterable[str], where: str, key: Callable[[str], object] | None = None) -> None:
    """Check that a list names no image twice, not with another ending or in other letters either.

    Args:
        names: of images.
        where: what to call the list in error messages.
        key: what a name stands for; by default the name without its ending, in small letters.

    Raises:
        DataError: two names mean one image.
    """
    seen: dict[object, str] = {}
    for name in names:
        known = name_key(name) if key is None else key(name)
        if known in seen:
            first = seen[known]
            twice = f"{name!r} twice" if first == name else f"{first!r} and {name!r}, which are one image"
            raise DataError(
                f"{where} lists {twice}; it would be support and query of one episode. List every image once"
            )
        seen[known] = name


def name_key(name: str) -> str:
    """What names of one image have in common: not the ending, nor capitals, nor how accents and folders are written."""
    return same_name(without_ending(name.replace("\\", "/")))


def read_lines(path: Path, layout: str) -> list[str]:
    """The lines of a list.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; {layout}")
    return read_text(path, DataError).splitlines()


def _span(numbers: Collection[int]) -> str:
    """Numbers in short: 1, 2, 5 or 1 to 80."""
    ordered = sorted(numbers)
    whole = len(ordered) > 4 and ordered[-1] - ordered[0] == len(ordered) - 1
    return f"{ordered[0]} to {ordered[-1]}" if whole else ", ".join(map(str, ordered)) or "there are none"


def target_of(labels: npt.NDArray[np.uint8], class_id: int, ignore: int = IGNORE) -> Target:
    """The target of one class in a class-index mask (H, W)."""
    return Target(labels == class_id, labels == ignore)


def class_areas(names: Iterable[str], mask: Callable[[str], npt.NDArray[np.uint8]], ignore: int = IGNORE) -> Areas:
    """Count the pixels of each class in each image, background and ignored pixels left out.

    Raises:
        DataError: pixels are ignored and none is of a class.
    """
    areas, ignored = {}, False
    for name in names:
        counts = np.bincount(mask(name).ravel(), minlength=256)
        areas[name] = {int(c): int(counts[c]) for c in np.flatnonzero(counts) if c not in (0, ignore)}
        ignored = ignored or bool(counts[ignore])
    if ignored and not any(areas.values()):
        raise DataError(
            f"the masks of all {len(areas)} images hold nothing but 0 and {ignore}, and {ignore} is ignored, so no "
            f"class has a pixel. Are they two-valued masks, {ignore} being the object? Write the number of the class, "
            f"such as 1, instead of {ignore}"
        )
    return areas


def pairs_of(areas: Areas, classes: Collection[int], min_pixels: int = MIN_PIXELS) -> tuple[Pair, ...]:
    """The (image, class) pairs in which a class covers `min_pixels`, by image and then by class id."""
    return tuple(
        (name, c) for name, pixels in areas.items() for c in sorted(pixels) if c in classes and pixels[c] >= min_pixels
    )


def by_class(pairs: Iterable[Pair], classes: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Images of each class, classes in the order given and images in that of the pairs; a class may have none."""
    found: dict[int, list[str]] = {c: [] for c in classes}
    for name, c in pairs:
        found[c].append(name)
    return {c: tuple(names) for c, names in found.items()}
