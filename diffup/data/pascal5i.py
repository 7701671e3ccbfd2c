"""PASCAL-5i: VOC 2012 with the masks of SBD (`SegmentationClassAug`), 20 classes in four folds of five.

Class ids are 1-based, as in the masks; HSNet's published lists and streams count them from 0 (id - 1).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffup.data.base import (
    IGNORE,
    Areas,
    FoldedMasks,
    FoldLists,
    Pair,
    by_class,
    check_layout,
    check_listed_once,
    class_areas,
    fold_classes,
    pairs_of,
    read_index_mask,
    read_lines,
)
from diffup.errors import DataError
from diffup.inputs.images import image_suffixes
from diffup.inputs.recorded import Pictures, without_ending

LAYOUT = """PASCAL-5i looks like this (ROOT is often VOCdevkit/VOC2012):
  ROOT/JPEGImages/IMAGEID.jpg                  the photos of VOC 2012
  ROOT/SegmentationClassAug/IMAGEID.png        masks of VOC and SBD: class id 1..20, 0 = background, 255 = ignore
  ROOT/ImageSets/Segmentation/val.txt          the 1449 test images, one IMAGEID per line
  ROOT/SegmentationObject/IMAGEID.png          optional: instances
and, optional, a folder of HSNet's lists (its data/splits/pascal/val):
  LISTS/fold0.txt .. fold3.txt                 lines IMAGEID__CC, CC = class id 01..20"""

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
)
CLASSES = dict(enumerate(_NAMES.split(), start=1))
"""Class names by id, in VOC's order."""

FOLDS = {fold: tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4)}
"""Class ids by fold of PASCAL-5i."""

COCO_TO_PASCAL = {
    0: (1, 4, 9, 11, 12, 15),
    1: (2, 6, 13, 18),
    2: (3, 7, 16, 17, 19, 20),
    3: (5, 8, 10, 14),
}
"""COCO-20i to PASCAL: by fold, the class ids that a decoder trained on that fold of COCO-20i never saw (FPTrans)."""

_LINE = re.compile(r"(\S+)__(\d{1,2})")
_VAL = "ImageSets/Segmentation/val.txt"


@dataclass(frozen=True)
class Pascal5i(FoldedMasks):
    """PASCAL-5i, or PASCAL as the test data of decoders trained on COCO-20i.

    Args:
        root: the VOC 2012 folder.
        folds: class ids by fold.
        list_folder: folder of lists in HSNet's format; with None, lists are made from the masks.
        name: name of the data set, for tables.
    """

    root: Path
    folds: dict[int, tuple[int, ...]]
    list_folder: Path | None
    name: str
    _areas: dict[str, Areas] = field(default_factory=dict, init=False, repr=False, compare=False)
    _files: dict[str, Pictures] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        lists: str | os.PathLike[str] | None = None,
        from_coco: bool = False,
    ) -> Pascal5i:
        """Open the data set and check its layout.

        Args:
            root: the VOC 2012 folder.
            lists: folder of HSNet's lists `fold0.txt` .. `fold3.txt`. By default all (image, class) pairs of `val.txt`
                in which a class covers 2048 pixels, which differ by a few percent from HSNet's.
            from_coco: use the folds `COCO_TO_PASCAL`, for decoders trained on COCO-20i.

        Raises:
            DataError: a file or folder is missing.
        """
        root = Path(root)
        check_layout(root, ("JPEGImages", "SegmentationClassAug"), LAYOUT)
        if lists is None:
            check_layout(root, (_VAL,), LAYOUT)
        else:
            check_layout(Path(lists), (f"fold{fold}.txt" for fold in FOLDS), LAYOUT)
        folds, name = (COCO_TO_PASCAL, "coco_to_pascal") if from_coco else (FOLDS, "pascal5i")
        return cls(root, folds, None if lists is None else Path(lists), name)

    @property
    def classes(self) -> dict[int, str]:
        """Class names by id."""
        return CLASSES

    def fold(self, fold: int) -> tuple[int, ...]:
        """Class ids of a fold.

        Raises:
            DataError: there is no such fold.
        """
        return fold_classes(self.folds, fold, self.name)

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of "test" (`val.txt`) or "train" (every other mask, 10582 in the full data set).

        Raises:
            DataError: there is no such split, or `val.txt` is missing, empty or lists an image twice.
        """
        if name not in ("train", "test"):
            raise DataError(f"split={name!r}: {self.name} has train, test")
        check_layout(self.root, (_VAL,), LAYOUT)
        test = tuple(without_ending(line.strip()) for line in read_lines(self.root / _VAL, LAYOUT) if line.strip())
        check_listed_once(test, str(self.root / _VAL))
        if name == "test":
            if not test:
                raise DataError(f"{self.root / _VAL} lists no image")
            return test
        return tuple(sorted(set(self._pictures("SegmentationClassAug").names()) - set(test)))

    def image_path(self, name: str) -> Path:
        """Path of the image of a name."""
        return self._pictures("JPEGImages").search(name, name, DataError) or self.root / "JPEGImages" / f"{name}.jpg"

    def mask_path(self, name: str) -> Path:
        """Path of the mask of an image."""
        folder = "SegmentationClassAug"
        return self._pictures(folder).search(name, name, DataError) or self.root / folder / f"{name}.png"

    def _pictures(self, folder: str) -> Pictures:
        endings = image_suffixes() if folder == "JPEGImages" else {".png"}
        return self._files.setdefault(folder, Pictures(self.root / folder, endings))

    def instances(self, name: str, class_id: int) -> npt.NDArray[np.uint8]:
        """Instances of a class in an image, (H, W) uint8: 0 for none, else the number of the object.

        Raises:
            DataError: the image has no file in `SegmentationObject`; SBD's images have none.
        """
        objects = read_index_mask(self.root / "SegmentationObject" / f"{name}.png")
        return np.where((self.mask(name) == class_id) & (objects != IGNORE), objects, 0).astype(np.uint8)

    def areas(self, split: str) -> Areas:
        """Pixel counts of each class in the images of a split; reads every mask once.

        Raises:
            DataError: there is no such split, or a mask is missing.
        """
        if split not in self._areas:
            self._areas[split] = class_areas(self.split(split), self.mask)
        return self._areas[split]

    def lists(self, fold: int) -> FoldLists:
        """Lists from which HSNet's protocol draws a fold: its own if they were given, else the test images' pairs.

        Raises:
            DataError: there is no such fold, or a list cannot be read.
        """
        classes = self.fold(fold)
        if self.list_folder is None:
            return pair_lists(pairs_of(self.areas("test"), classes), classes)
        files = sorted({(c - 1) // 5 for c in classes})
        pairs = [pair for file in files for pair in read_pascal_list(self.list_folder / f"fold{file}.txt", file)]
        return pair_lists(tuple(pair for pair in pairs if pair[1] in classes), classes)


def pair_lists(pairs: tuple[Pair, ...], classes: tuple[int, ...]) -> FoldLists:
    """Make lists whose queries are (image, class) pairs in their order.

    Args:
        pairs: the pairs.
        classes: class ids of the fold.
    """
    return FoldLists(by_class(pairs, classes), pairs)


def read_pascal_list(path: str | os.PathLike[str], fold: int) -> tuple[Pair, ...]:
    """Read one of HSNet's lists: lines `IMAGEID__CC`, CC = 1-based class id.

    Args:
        path: the file.
        fold: number of the fold of PASCAL-5i whose classes the list holds, 0 to 3.

    Returns:
        (image, class) pairs in the order of the lines.

    Raises:
        DataError: the file is missing or empty, or a line has another form or names a class of another fold.
    """
    path, classes = Path(path), fold_classes(FOLDS, fold, "pascal5i")
    pairs = []
    for number, line in enumerate(read_lines(path, LAYOUT), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(f"{path}, line {number}: {line!r} is not of the form IMAGEID__CC; {LAYOUT}")
        if int(match[2]) not in classes:
            raise DataError(f"{path}, line {number}: class {int(match[2])} is not of fold {fold}, {classes}")
        pairs.append((without_ending(match[1]), int(match[2])))
    if not pairs:
        raise DataError(f"{path} holds no pair; {LAYOUT}")
    return tuple(pairs)
