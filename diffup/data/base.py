"""The interface of data sets for evaluation and training, and what data sets share: targets, class areas, lists."""

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
"""Name of an image and id of a class that it shows."""

Areas: TypeAlias = dict[str, dict[int, int]]
"""Pixel counts: image name -> class id -> pixels of the class, images in the data set's order."""

IGNORE = 255
"""Mask value of pixels that count neither as object nor as background."""

MIN_PIXELS = 2 * 32 * 32
"""Least pixels of a class in an (image, class) pair: two cells at stride 32, the filter of OSLSM, PFENet and BAM."""

MIN_AREA_FRACTION = 0.01
"""The same as a fraction of the image, for training crops, whose sizes vary."""


@dataclass(frozen=True, eq=False)
class Target:
    """Ground truth of one class in an image.

    Args:
        mask: (H, W) bool, pixels of the class.
        ignore: (H, W) bool, pixels that are not scored; none of them is in `mask`.
    """

    mask: npt.NDArray[np.bool_]
    ignore: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FoldLists:
    """Lists from which HSNet's protocol draws the episodes of one fold.

    Args:
        supports: image names by class id of the fold, classes and images in list order.
        queries: (image, class) pairs in the order in which they are queries; empty if the class is drawn first
            (COCO-20i).
        once: whether every query is used exactly once (FSS-1000), so that the number of episodes is fixed.
    """

    supports: dict[int, tuple[str, ...]]
    queries: tuple[Pair, ...] = ()
    once: bool = False


class Dataset(Protocol):
    """Images with masks of classes, and classes in folds. Class ids are 1-based, like pixel values of masks."""

    @property
    def name(self) -> str:
        """Short name of the data set, for tables."""

    @property
    def classes(self) -> dict[int, str]:
        """Class names by id."""

    def fold(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes that are held out in training and tested in a fold."""

    def image(self, name: str) -> Tensor:
        """Read an image by name as (3, H, W) float32 in [0, 1]."""

    def target(self, name: str, class_id: int) -> Target:
        """Read the ground truth of one class in an image."""


class TrainingData(Dataset, Protocol):
    """A data set with training images and class-index masks."""

    @property
    def ignore(self) -> int:
        """Mask value of pixels that count neither as object nor as background."""

    @property
    def min_area_fraction(self) -> float:
        """Least fraction of a training crop, in [0, 1], that a class covers as query or support."""

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of a split; there is at least the split "train"."""

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """Read the class-index mask of an image, (H, W) uint8."""

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Names of the images of a split that show enough of a class, by class id, ascending; only classes with any."""

    def files(self, names: Iterable[str]) -> list[Path]:
        """Paths of the files that these images and their masks are read from."""


class Benchmark(Dataset, Protocol):
    """A data set that the protocols of the literature are defined for."""

    def lists(self, fold: int) -> FoldLists:
        """Lists from which HSNet's protocol draws the episodes of a fold."""

    def areas(self, split: str) -> Areas:
        """Pixel counts of each class in the images of a split, by which BAM's protocol filters images."""


class IndexMasks(ABC):
    """Base of data sets whose masks are class-index images; a subclass gives the paths of its files."""

    ignore: int

    if TYPE_CHECKING:  # a field of some, a property of others

        @property
        def classes(self) -> dict[int, str]:
            """Class names by id."""

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """Path of the image of a name."""

    @abstractmethod
    def mask_path(self, name: str) -> Path:
        """Path of the mask of an image's name."""

    def image(self, name: str) -> Tensor:
        """Read an image as (3, H, W) float32 in [0, 1].

        Raises:
            DataError, ImageError: the image is missing or cannot be decoded.
        """
        return read_image(self.image_path(name), argument=name)

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """Read the class-index mask of an image, (H, W) uint8.

        Raises:
            DataError: the mask is missing, not an index image, of another size than its image, or holds values that are
                not class ids.
        """
        path = self.mask_path(name)
        mask = read_index_mask(path)
        check_mask_size(mask.shape, path, self.image_path(name), name)
        check_values(mask, path, self.classes, self.ignore)
        return mask

    def files(self, names: Iterable[str]) -> list[Path]:
        """Paths of the files of images and their masks.

        Raises:
            DataError: a file cannot be found.
        """
        return [path for name in names for path in (self.image_path(name), self.mask_path(name))]

    def target(self, name: str, class_id: int) -> Target:
        """Read the ground truth of one class in an image; pixels of the value `ignore` are not scored.

        Raises:
            DataError: the mask cannot be used.
        """
        return target_of(self.mask(name), class_id, self.ignore)


class FoldedMasks(IndexMasks):
    """Base of PASCAL-5i and COCO-20i: (image, class) pairs are chosen by the pixels that a class covers."""

    ignore = IGNORE
    min_area_fraction = MIN_AREA_FRACTION

    @abstractmethod
    def areas(self, split: str) -> Areas:
        """Pixel counts of each class in the images of a split."""

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Names of the images in which a class covers 2048 pixels, by class id, ascending; only classes with any."""
        found = by_class(pairs_of(self.areas(split), classes), sorted(classes))
        return {c: names for c, names in found.items() if names}


def check_layout(root: Path, parts: Iterable[str], layout: str) -> None:
    """Check that the folder of a data set has the files and folders that it needs.

    Args:
        root: folder of the data set.
        parts: paths within it that must exist.
        layout: description of the expected layout, for the error message.

    Raises:
        DataError: a part is missing.
    """
    for part in parts:
        if not (root / part).exists():
            raise DataError(f"{root / part} is missing; {layout}")


def fold_classes(folds: Mapping[int, tuple[int, ...]], fold: int, name: str) -> tuple[int, ...]:
    """Class ids of a fold.

    Args:
        folds: class ids by fold.
        fold: number of the fold.
        name: name of the data set in error messages.

    Raises:
        DataError: there is no such fold.
    """
    if fold not in folds:
        raise DataError(f"fold={fold}: {name} has {', '.join(map(str, folds))}")
    return folds[fold]


def read_index_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Read a class-index mask, (H, W) uint8; its size is checked before it is decoded.

    Raises:
        DataError: the mask is missing or neither a grey nor a palette image.
        ImageError: the mask cannot be decoded.
    """
    if not path.exists():
        raise DataError(f"{path} is missing")
    image, _ = open_image(path, str(path))
    if image.mode not in ("L", "P"):
        raise DataError(f"{path} has mode {image.mode}; a mask is a grey or palette PNG of class ids")
    return np.array(image)


def check_mask_size(size: tuple[int, ...], path: Path, image: Path, name: str) -> None:
    """Check that a mask has the size of its image.

    Args:
        size: (height, width) of the mask in pixels.
        path: file of the mask.
        image: file of the image.
        name: name of the image in error messages.

    Raises:
        DataError: the mask has another size.
        ImageError: the image is missing or cannot be read.
    """
    upright = upright_size(image, name)
    if size != upright:
        raise DataError(
            f"{path} has {size[0]} x {size[1]} pixels (height x width), {image} has {upright[0]} x {upright[1]}; a "
            "mask has the size of its photo as viewers show it, turned as its EXIF orientation says"
        )


def check_values(mask: npt.NDArray[np.uint8], path: Path, classes: Collection[int], ignore: int) -> None:
    """Check that a class-index mask holds only class ids, background and ignored pixels.

    Args:
        mask: (H, W) class ids.
        path: file of the mask, for the error message.
        classes: ids of the data set's classes.
        ignore: value of ignored pixels.

    Raises:
        DataError: the mask holds other values.
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
    """Check that a list names no image twice, even with another suffix or in another letter case.

    Args:
        names: names of images.
        where: name of the list in error messages.
        key: function from a name to a key that is equal for names of one image; `name_key` by default.

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
    """A key that is equal for names of one image: without suffix, letter case, Unicode form and kind of slash."""
    return same_name(without_ending(name.replace("\\", "/")))


def read_lines(path: Path, layout: str) -> list[str]:
    """Read the lines of a list file.

    Args:
        path: the file.
        layout: description of the data set's layout, for the error message.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; {layout}")
    return read_text(path, DataError).splitlines()


def _span(numbers: Collection[int]) -> str:
    """Numbers as short text: "1, 2, 5" or "1 to 80"."""
    ordered = sorted(numbers)
    whole = len(ordered) > 4 and ordered[-1] - ordered[0] == len(ordered) - 1
    return f"{ordered[0]} to {ordered[-1]}" if whole else ", ".join(map(str, ordered)) or "there are none"


def target_of(labels: npt.NDArray[np.uint8], class_id: int, ignore: int = IGNORE) -> Target:
    """The ground truth of one class in a class-index mask.

    Args:
        labels: (H, W) class ids.
        class_id: id of the class.
        ignore: value of pixels that are not scored.
    """
    return Target(labels == class_id, labels == ignore)


def class_areas(names: Iterable[str], mask: Callable[[str], npt.NDArray[np.uint8]], ignore: int = IGNORE) -> Areas:
    """Count the pixels of each class in each image, without background and ignored pixels.

    Args:
        names: names of images.
        mask: function that reads the class-index mask (H, W) of an image's name.
        ignore: value of ignored pixels.

    Raises:
        DataError: there are ignored pixels and none of any class.
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
    """The (image, class) pairs in which a class covers enough pixels, ordered by image and then by class id.

    Args:
        areas: pixel counts of classes in images.
        classes: ids of the classes to consider.
        min_pixels: least number of pixels of a class.
    """
    return tuple(
        (name, c) for name, pixels in areas.items() for c in sorted(pixels) if c in classes and pixels[c] >= min_pixels
    )


def by_class(pairs: Iterable[Pair], classes: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Group (image, class) pairs by class.

    Args:
        pairs: the pairs; images keep their order.
        classes: ids of the classes, in the order of the result.

    Returns:
        Image names by class id; a class may have none.
    """
    found: dict[int, list[str]] = {c: [] for c in classes}
    for name, c in pairs:
        found[c].append(name)
    return {c: tuple(names) for c, names in found.items()}
