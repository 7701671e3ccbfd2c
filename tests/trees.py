"""Tiny trees of the layouts of COCO, PASCAL VOC and FSS-1000."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (60, 80)
NAME = "val2014/COCO_val2014_{:012d}.jpg".format


def square(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def run_lengths() -> dict[str, Any]:
    """The first five columns, as run lengths that are not compressed."""
    return {"size": list(SIZE), "counts": [0, 5 * SIZE[0], 75 * SIZE[0]]}


OBJECTS = [  # (image, category, segmentation, crowd): the last painted wins, whatever the order of ids
    (2, 1, square(0, 0, 50, 60), 0),
    (2, 5, square(40, 0, 80, 60), 0),
    (1, 90, square(10, 10, 70, 50), 0),
    (1, 1, square(0, 0, 80, 60), 1),
    (3, 5, run_lengths(), 0),
    (3, 5, square(30, 0, 80, 60), 0),
]


def make_coco(root: Path, year: int = 2014, objects: list[tuple[int, int, Any, int]] = OBJECTS) -> Path:
    rng = np.random.default_rng(0)
    names = {2014: "val2014/COCO_val2014_{:012d}.jpg", 2017: "train2017/{:012d}.jpg"}[year]
    for folder in (f"train{year}", f"val{year}", "annotations"):
        (root / folder).mkdir(parents=True)
    for image in (1, 2, 3, 4):
        path = root / (names if image != 4 or year == 2014 else "val2017/{:012d}.jpg").format(image)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)).save(path)
    content = {
        "images": [
            {"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in (3, 1, 2, 4)
        ],
        "annotations": [
            {"id": 100 - index, "image_id": image, "category_id": category, "segmentation": region, "iscrowd": crowd}
            for index, (image, category, region, crowd) in enumerate(objects)
        ],
    }
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    return root


VOC_TEST = {
    "2007_000003": {1: 30},
    "2007_000001": {1: 40, 2: 36},
    "2007_000002": {2: 10, 7: 50},
    "2007_000004": {15: 60},
}
VOC_TRAIN = {"2008_000002": {7: 40}, "2008_000001": {1: 35}}


def make_voc(root: Path) -> Path:
    """Images of noise whose masks have a band of the given number of columns for each class, and an ignored corner."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClassAug", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, contents in (VOC_TEST | VOC_TRAIN).items():
        labels, objects, column = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8), 0
        for number, (c, columns) in enumerate(contents.items(), start=1):
            labels[:, column : column + columns] = c
            objects[:, column : column + columns] = number
            column += columns
        labels[:2, :2] = 255
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{name}.png")
        if name in VOC_TEST:
            Image.fromarray(objects).save(root / "SegmentationObject" / f"{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(VOC_TEST) + "\n")
    return root


CATEGORIES = ("zebra", "ab_wheel", "burj_al")


def make_fss(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for category in CATEGORIES:
        (root / category).mkdir(parents=True)
        for number in range(1, 11):
            grey = np.tile(np.array([0, 127, 128, 255], np.uint8).repeat(4), (12, 1))
            Image.fromarray(np.stack([grey] * 3, axis=2)).save(root / category / f"{number}.png")
            image = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
            Image.fromarray(image).save(root / category / f"{number}.jpg")
    return root
