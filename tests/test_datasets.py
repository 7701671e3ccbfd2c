"""What the data sets have in common: what is missing is named with the layout, and so are unknown folds and splits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import make_folder
from trees import make_coco, make_voc

from diffup.data.base import Benchmark
from diffup.data.coco20i import Coco20i
from diffup.data.folder import LabelledFolder
from diffup.data.pascal5i import Pascal5i
from diffup.errors import DataError

Open = Callable[[Path], object]


def open_2017(root: Path) -> Coco20i:
    return Coco20i.open(root, year=2017)


def make_2017(root: Path) -> Path:
    return make_coco(root, year=2017)


@pytest.mark.parametrize(
    ("make", "open_it", "title", "part"),
    [
        (make_folder, LabelledFolder.open, "a data folder looks", "images"),
        (make_folder, LabelledFolder.open, "a data folder looks", "masks"),
        (make_folder, LabelledFolder.open, "a data folder looks", "splits.json"),
        (make_voc, Pascal5i.open, "PASCAL-5i looks", "JPEGImages"),
        (make_voc, Pascal5i.open, "PASCAL-5i looks", "SegmentationClassAug"),
        (make_voc, Pascal5i.open, "PASCAL-5i looks", "ImageSets/Segmentation/val.txt"),
        (make_coco, Coco20i.open, "COCO-20i looks", "val2014"),
        (make_coco, Coco20i.open, "COCO-20i looks", "annotations/instances_val2014.json"),
        (make_2017, open_2017, "COCO-20i looks", "train2017"),
        (make_2017, open_2017, "COCO-20i looks", "val2017"),
    ],
)
def test_a_missing_part_is_named_with_the_layout(
    make: Callable[[Path], Path], open_it: Open, title: str, part: str, tmp_path: Path
) -> None:
    root = make(tmp_path / "data")
    (root / part).rename(root / "elsewhere")
    with pytest.raises(DataError, match=f"{re.escape(part)} is missing; {title} like this"):
        open_it(root)


@pytest.mark.parametrize(
    ("make", "open_it", "name"), [(make_voc, Pascal5i.open, "pascal5i"), (make_coco, Coco20i.open, "coco20i")]
)
def test_unknown_folds_and_splits_are_refused(
    make: Callable[[Path], Path], open_it: Callable[[Path], Benchmark], name: str, tmp_path: Path
) -> None:
    data = open_it(make(tmp_path / "data"))
    with pytest.raises(DataError, match=f"fold=4: {name} has 0, 1, 2, 3"):
        data.lists(4)
    with pytest.raises(DataError, match=f"split='val': {name} has train, test"):
        data.split("val")
