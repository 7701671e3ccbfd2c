"""Reading supports from a COCO instances file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.coco import decode_segmentation
from diffup.formats.fields import field, four_numbers, id_field, stated_size
from diffup.formats.supports import (
    Corners,
    Gathering,
    OnError,
    SupportSet,
    check_outline,
    check_pixels,
    check_shots,
    check_size,
    cut_box,
    path_text,
    unite,
    upright_size,
    with_area,
)
from diffup.inputs.annotations import Annotation
from diffup.inputs.recorded import Files, read_json

Id: TypeAlias = int | str
Objects: TypeAlias = list[tuple[str, dict[str, Any]]]
"""Annotations of an image, each with its name in error messages."""


def read_coco(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str],
    category: str,
    *,
    shots: int | None = None,
    seed: int | None = None,
    boxes: bool = False,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports of one category: a `Mask` of all its objects in an image, or a `Box` around each.

    Args:
        path: the JSON file.
        images: folder that the `file_name` fields are relative to; files are found by the rules of
            `diffup.inputs.recorded.Files`.
        category: name of the category, or of its supercategory if no category has that name.
        shots: number of support images K; by default all that show the category.
        seed: seed for drawing the images at random; by default they are the first of the file.
        boxes: read the `bbox` fields instead of the masks. Files without masks give boxes in any case.
        on_error: "raise" the error of a faulty record, or "skip" its image, since an image that lacks an object would
            show it as background.

    Returns:
        Paths of the support images, and annotations; `skipped` lists the faulty records. Regions marked as crowds count
        as objects of the category. Objects without area, such as boxes of height 0, are ignored if their image has
        others.

    Raises:
        FormatError: the file or a field of it does not follow COCO's format, the category does not exist or has fewer
            images than `shots`, or an image is missing or has another size than the file says. The message names the
            file and the field.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    check_shots(shots)
    name, found = path_text(path, "path"), Gathering(on_error)
    files, taken = Files(path_text(images, "images")), dict[Path, str]()
    content = read_json(path)
    objects = _objects(content, _category_ids(content, category, name), name, found)
    records = _records(content, name, found)
    for image_id in [image_id for image_id in objects if image_id not in records]:
        first = objects.pop(image_id)[0][0]
        with found.record(first):
            raise FormatError(f"{first}.image_id: no image has this id")
    shown = [image_id for image_id in records if image_id in objects]
    if shots is not None and len(shown) < shots:
        raise FormatError(f"{name}: {len(shown)} images show the category {category!r}, shots={shots} were asked for")
    if seed is not None:
        shown = [shown[index] for index in np.random.default_rng(seed).permutation(len(shown))]
    for image_id in shown:
        if len(found) == shots:
            break
        where, record = records[image_id]
        with found.record(where):
            place = _place(where, record, files, taken)
            found.add(place, _annotation(where, record, objects[image_id], place, boxes))
    return found.shots(f"{name}: no image shows the category {category!r}", shots)


def _category_ids(content: dict[str, Any], category: str, name: str) -> set[Id]:
    """Ids of the category, or of all categories in the supercategory of that name."""
    by_field: dict[str, set[Id]] = {"name": set(), "supercategory": set()}
    names: dict[Id, str] = {}
    for index, entry in enumerate(field(content, "categories", list, name)):
        where = f"{name}: categories[{index}]"
        number = id_field(entry, "id", where)
        label = field(entry, "name", str, where)
        if names.setdefault(number, label) != label:
            raise FormatError(f"{where}.id: {number!r} is the id of {names[number]!r} too; give each category its own")
        for key, ids in by_field.items():
            if entry.get(key) == category:
                ids.add(number)
    ids = by_field["name"] or by_field["supercategory"]
    if not ids:
        raise FormatError(f"{name}: category={category!r}: the file has {', '.join(sorted(names.values())) or 'none'}")
    return ids


def _objects(content: dict[str, Any], wanted: set[Id], name: str, found: Gathering) -> dict[Id, Objects]:
    """The annotations of the wanted categories, by image id."""
    objects: dict[Id, Objects] = {}
    for index, entry in enumerate(field(content, "annotations", list, name)):
        where = f"{name}: annotations[{index}]"
        with found.record(where):
            if id_field(entry, "category_id", where) in wanted:
                objects.setdefault(id_field(entry, "image_id", where), []).append((where, entry))
    return objects


def _records(content: dict[str, Any], name: str, found: Gathering) -> dict[Id, tuple[str, dict[str, Any]]]:
    """The images of the file by id, each with its name in error messages."""
    records: dict[Id, tuple[str, dict[str, Any]]] = {}
    for index, record in enumerate(field(content, "images", list, name)):
        where = f"{name}: images[{index}]"
        with found.record(where):
            number = id_field(record, "id", where)
            if records.setdefault(number, (where, record))[1] != record:
                raise FormatError(f"{where}.id: {number!r} is the id of another image too; give each its own")
    return records


def _place(where: str, record: dict[str, Any], files: Files, taken: dict[Path, str]) -> Path:
    """Find the file of an image. No two records may share one: each would show the other's objects as background."""
    path = files.find(field(record, "file_name", str, where), f"{where}.file_name")
    if taken.setdefault(path, where) != where:
        raise FormatError(f"{where}.file_name: {str(path)!r} is the file of {taken[path]} too; list an image once")
    return path


def _annotation(where: str, record: dict[str, Any], objects: Objects, path: Path, boxes: bool) -> Annotation:
    """The annotation that the objects of one image make together."""
    size = upright_size(path, f"{where}.file_name")
    check_size(stated_size(record, "height", "width", where), size, where)
    readings: list[Callable[[], npt.NDArray[np.bool_] | Corners]] = []
    for at, entry in objects:
        masked = entry.get("segmentation") and not boxes
        readings.append(partial(_mask if masked else _box, entry, size, at))
    read = with_area(readings)
    masks = [one for one in read if isinstance(one, np.ndarray)]
    frames = [one for one in read if isinstance(one, tuple)]
    if masks and frames:
        raise FormatError(f"{where}: some of its objects have masks, some none; give boxes=True")
    return unite(masks, frames, where)


def _mask(entry: dict[str, Any], size: tuple[int, int], at: str) -> npt.NDArray[np.bool_]:
    segmentation = entry["segmentation"]
    mask = decode_segmentation(segmentation, size, f"{at}.segmentation")
    if isinstance(segmentation, list):
        vertices = np.concatenate([np.ravel(polygon) for polygon in segmentation]).astype(np.float64).reshape(-1, 2)
        check_outline(vertices, size, f"{at}.segmentation")
    return mask


def _box(entry: dict[str, Any], size: tuple[int, int], at: str) -> Corners:
    numbers = field(entry, "bbox", list, at)
    x, y, width, height = four_numbers(numbers, f"{at}.bbox", "[x, y, width, height]").tolist()
    box = cut_box((x, y, x + width, y + height), size, f"{at}.bbox")
    check_pixels((box[:2], box[2:]), size, f"{at}.bbox")
    return box
