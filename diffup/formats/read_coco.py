"""Supports from a COCO instances file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from diffup.annotation import Annotation
from diffup.errors import FormatError
from diffup.formats.coco import decode_segmentation
from diffup.formats.shots import Shots, check_shots, check_size, cut_box, field, gather, read_json, unite, upright_size
from diffup.images import ImageLike


def read_coco(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str],
    category: str,
    *,
    shots: int | None = None,
    seed: int | None = None,
    boxes: bool = False,
) -> Shots:
    """Supports of one category: a `Mask` of all its objects in an image, or a `Box` around each.

    Args:
        path: the JSON file.
        images: folder that the `file_name` fields are relative to.
        category: its name, or its supercategory's if no category has that name.
        shots: how many images; all that show the category by default.
        seed: draw them at random; by default they are the first of the file.
        boxes: take the `bbox` fields instead of the masks. Files without masks have boxes in any case.

    Returns:
        Paths and annotations. Regions marked as crowds are of the category and count.

    Raises:
        FormatError: the file or a field of it is not as COCO's format says, the category does not exist or has fewer
            images than `shots`, an image is missing or of another size than the file says. The message names the file
            and the field.
        MissingPackageError: masks need pycocotools (`pip install "diffup[formats]"`).
    """
    check_shots(shots)
    name = os.fspath(path)
    content = read_json(path)
    wanted = _category_ids(content, category, name)
    objects: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, annotation in enumerate(field(content, "annotations", list, name)):
        where = f"{name}: annotations[{index}]"
        if field(annotation, "category_id", int, where) in wanted:
            objects.setdefault(field(annotation, "image_id", (int, str), where), []).append((index, annotation))
    records = {}
    for index, record in enumerate(field(content, "images", list, name)):
        records[field(record, "id", (int, str), f"{name}: images[{index}]")] = (f"{name}: images[{index}]", record)
    lost = [entries[0][0] for image_id, entries in objects.items() if image_id not in records]
    if lost:
        raise FormatError(f"{name}: annotations[{lost[0]}].image_id: no image has this id")
    shown = [image_id for image_id in records if image_id in objects]
    if shots is not None and len(shown) < shots:
        raise FormatError(f"{name}: {len(shown)} images show the category {category!r}, shots={shots} were asked for")
    if seed is not None:
        shown = [shown[index] for index in np.random.default_rng(seed).permutation(len(shown))]
    found = [_support(*records[i], objects[i], Path(images), name, boxes) for i in shown[:shots]]
    return gather(found, f"{name}: no image shows the category {category!r}")


def _category_ids(content: dict[str, Any], category: str, name: str) -> set[int]:
    """Ids of the category, or of all in the supercategory."""
    entries = field(content, "categories", list, name)
    by_field: dict[str, set[int]] = {"name": set(), "supercategory": set()}
    names = []
    for index, entry in enumerate(entries):
        where = f"{name}: categories[{index}]"
        number = field(entry, "id", int, where)
        names.append(field(entry, "name", str, where))
        for key, ids in by_field.items():
            if entry.get(key) == category:
                ids.add(number)
    ids = by_field["name"] or by_field["supercategory"]
    if not ids:
        raise FormatError(f"{name}: category={category!r}: the file has {', '.join(sorted(names)) or 'none'}")
    return ids


def _support(
    where: str, record: dict[str, Any], objects: list[tuple[int, dict[str, Any]]], folder: Path, name: str, boxes: bool
) -> tuple[ImageLike, Annotation]:
    """One image and the annotation of its objects."""
    path = folder / field(record, "file_name", str, where)
    size = upright_size(path, f"{where}.file_name")
    check_size((field(record, "height", int, where), field(record, "width", int, where)), size, where)
    masks, frames = [], []
    for index, entry in objects:
        at = f"{name}: annotations[{index}]"
        if entry.get("segmentation") and not boxes:
            masks.append(decode_segmentation(entry["segmentation"], size, f"{at}.segmentation"))
            continue
        numbers = field(entry, "bbox", list, at)
        if len(numbers) != 4 or not all(isinstance(number, int | float) for number in numbers):
            raise FormatError(f"{at}.bbox: expected [x, y, width, height], got {numbers}")
        x, y, width, height = numbers
        frames.append(cut_box((x, y, x + width, y + height), size, f"{at}.bbox"))
    if masks and frames:
        raise FormatError(f"{where}: some of its objects have masks, some none; give boxes=True")
    return path, unite(masks, frames, where)
