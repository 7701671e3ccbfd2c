"""Reading supports from the tasks that Label Studio exports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffup.errors import FormatError
from diffup.formats.brush import decode_brush
from diffup.formats.fields import decode_base64, field, stated_size
from diffup.formats.photos import Photos
from diffup.formats.shapes import (
    Kind,
    Reading,
    check_shape_types,
    described,
    drawn,
    filled,
    framed,
    number,
    numbers,
    rounded,
    together,
)
from diffup.formats.supports import (
    Gathering,
    OnError,
    SupportSet,
    check_shots,
    check_size,
    embedded_image,
    path_text,
    upright_size,
)
from diffup.inputs.images import describe, is_image_name
from diffup.inputs.recorded import is_url, parse_json, read_text

SHAPE_TYPES: dict[str, Kind] = {
    "brush": "mask",
    "polygon": "mask",
    "ellipse": "mask",
    "rectangle": "box",
    "keypoint": "points",
}
"""The kind of annotation that each shape type makes."""

_FIELDS = {  # what a region's value has tells its shape, even where its type is only "labels"
    "brush": ("rle",),
    "polygon": ("points",),
    "ellipse": ("radiusX", "radiusY", "x", "y"),
    "rectangle": ("height", "width", "x", "y"),
    "keypoint": ("x", "y"),
}
_UPLOADED = re.compile(r"/upload/\d+/(?:.*/)?[0-9a-f]{8}-(?P<name>[^/]+)$")
"""Path of an uploaded file; Label Studio puts eight digits before the name that it had."""


def read_label_studio(
    path: str | os.PathLike[str],
    label: str,
    *,
    images: str | os.PathLike[str] | None = None,
    shape_types: Sequence[str] | None = None,
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports from Label Studio's export "JSON": the regions that a person gave one label.

    Brush regions, polygons, ellipses and turned rectangles become a `Mask`, upright rectangles a `Box`, keypoints
    `Points`. Positions are percent of the image there. If a task has several annotations, the ground truth is read,
    or else the one that was changed last; cancelled ones and predictions are not read.

    Args:
        path: the JSON file.
        label: label of the class.
        images: folder of the images; by default the file's own, or the folder `images` in it. They are found by the
            rules of `diffup.inputs.recorded.Files`, those of local storage (`/data/local-files/?d=...`) and uploads
            (`/data/upload/1/0123abcd-name.jpg`, also as `name.jpg`) included. No URL is fetched.
        shape_types: shape types to read: brush, polygon, ellipse, rectangle, keypoint; all by default. Needed if the
            regions of one image would become several kinds of annotation.
        shots: number of supports K, the first of the file; all by default.
        on_error: "raise" the error of a faulty task, or "skip" the task.

    Returns:
        Paths of the support images (or the images that were inside the file) and annotations; `skipped` lists the
        faulty tasks. Tasks without the label are ignored, and so are regions without area if their image has others.

    Raises:
        FormatError: the file or a field of it does not follow Label Studio's format; an image is missing, of another
            size than the file says, or turned there; fewer tasks than `shots` have the label; or the regions of an
            image are of several kinds. The message names the file and the field.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    check_shots(shots)
    check_shape_types(shape_types, SHAPE_TYPES)
    name, found = path_text(path, "path"), Gathering(on_error)
    photos = Photos(path, images)
    content = parse_json(read_text(path), path)
    for index, task in enumerate(content if isinstance(content, list) else [content]):
        if len(found) == shots:
            break
        where = f"{name}: [{index}]"
        with found.record(where):
            regions = [
                region
                for region in _regions(task, label, where, found)
                if shape_types is None or region[1] in shape_types
            ]
            if regions:
                _check_one_image(regions, where)
                image, size = _image(task, where, photos)
                readings = (partial(read_region, *region, size) for region in regions)
                found.add(image, together(readings, size, where, pixels=False))
    return found.shots(f"{name}: no task has a region with {described(label, shape_types)}", shots)


def _regions(task: Any, label: str, where: str, found: Gathering) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The regions of a task that have the label, each as its name in error messages, its shape type, and the region."""
    if isinstance(task, dict) and "data" not in task:
        raise FormatError(f"{where}.data: missing; export the tasks as JSON, not as JSON-MIN")
    field(task, "data", dict, where)
    annotation = _annotation(task, where)
    if annotation is None:
        found.without(f"{where} has no annotation that a person has submitted, and predictions are not read")
        return
    at, results = annotation
    for index, region in enumerate(results):
        place = f"{at}.result[{index}]"
        labels = region_labels(region, place)
        found.saw(labels)
        if label in labels:
            yield place, shape_type(region["value"], region["type"], place), region


def _annotation(task: dict[str, Any], where: str) -> tuple[str, list[Any]] | None:
    """The annotation that counts, as its name in error messages and its results."""
    name = "annotations" if "annotations" in task or "completions" not in task else "completions"
    given = task.get(name) or []
    if not isinstance(given, list):
        raise FormatError(f"{where}.{name}: expected list, got {describe(given)}")
    valid = []
    for index, one in enumerate(given):
        at = f"{where}.{name}[{index}]"
        results = field(one, "result", list, at)
        if not one.get("was_cancelled"):
            valid.append((bool(one.get("ground_truth")), str(one.get("updated_at") or ""), index, (at, results)))
    return max(valid, key=lambda item: item[:3])[3] if valid else None


def region_labels(region: Any, where: str) -> list[Any]:
    """The labels of a region; none of a region that marks no place in an image, such as a choice.

    Args:
        region: the region.
        where: name of the region in error messages.

    Raises:
        FormatError: it is no region.
    """
    kind, value = field(region, "type", str, where), region.get("value")
    labels = value.get(kind) if isinstance(value, dict) else None
    return labels if kind.endswith("labels") and isinstance(labels, list) else []


def shape_type(value: Mapping[str, Any], kind: str, where: str) -> str:
    """The shape type of a region, one of `SHAPE_TYPES`.

    Args:
        value: value of the region.
        kind: type of the region, such as "brushlabels", for the error message.
        where: name of the region in error messages.

    Raises:
        FormatError: regions of this type cannot be read.
    """
    found = (shape for shape, fields in _FIELDS.items() if all(name in value for name in fields))
    shape = next(found, None)
    if shape is None:
        raise FormatError(f"{where}: regions of the type {kind!r} cannot be read; expected {', '.join(SHAPE_TYPES)}")
    return shape


def _check_one_image(regions: list[tuple[str, str, dict[str, Any]]], where: str) -> None:
    """Check that no task of several images is read as if all regions were in one."""
    images = {f"{region.get('to_name')} {region.get('item_index') or 0}" for _, _, region in regions}
    if len(images) > 1:
        raise FormatError(f"{where}: its regions are in several images; only tasks of one image can be read")


def _image(task: dict[str, Any], where: str, photos: Photos) -> tuple[Path | Image.Image, tuple[int, int]]:
    """The image of a task, and its (height, width)."""
    data = task["data"]
    texts = {key: text for key, text in data.items() if isinstance(text, str)}
    likely = [key for key, text in texts.items() if text.startswith("data:image/") or _is_image(text)]
    key = "image" if "image" in texts else likely[0] if len(likely) == 1 else None
    if key is None:
        raise FormatError(f"{where}.data: expected one path of an image, in the field 'image', got {describe(data)}")
    text, at = texts[key], f"{where}.data.{key}"
    image: Path | Image.Image
    if text.startswith("data:"):
        image = embedded_image(decode_base64(text, at), at)
    else:
        uploaded = _UPLOADED.search(text)
        names = [text] if uploaded is None else [text, uploaded["name"]]
        image = photos.find(names, where, f"data.{key}")
    return image, upright_size(image, at)


def _is_image(text: str) -> bool:
    return is_image_name(text.partition("?")[0] if is_url(text) else text)


def read_region(where: str, shape: str, region: dict[str, Any], size: tuple[int, int]) -> Reading:
    """Read one region, whose positions are percent of the image's width and height.

    Args:
        where: name of the region in error messages.
        shape: shape type of the region, from `shape_type`.
        region: the region.
        size: (height, width) of the image in pixels.

    Raises:
        MarksNothing: it has no area.
        FormatError: a field is missing or faulty, the image has another size than the region says, or is turned there.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    check_size(stated_size(region, "original_height", "original_width", where), size, where)
    turned = number(region.get("image_rotation") or 0, f"{where}.image_rotation")
    if turned % 360:
        raise FormatError(f"{where}.image_rotation: the image is turned by {turned:g} degrees there; turn it back")
    value, at = region["value"], f"{where}.value"
    if shape == "brush":
        return "mask", decode_brush(value["rle"], size, f"{at}.rle")
    height, width = size
    scale = np.array([width, height]) / 100
    if shape == "polygon":
        points = field(value, "points", list, at)
        return filled(numbers(points, f"{at}.points") * scale, size, f"{at}.points")

    def position(across: str, down: str) -> tuple[float, float]:
        return (
            number(value[across], f"{at}.{across}") * width / 100,
            number(value[down], f"{at}.{down}") * height / 100,
        )

    x, y = position("x", "y")
    if shape == "keypoint":
        return drawn("points", np.array([(x, y)]), size, at)
    degrees = number(value.get("rotation") or 0, f"{at}.rotation")
    if shape == "ellipse":
        return rounded((x, y), position("radiusX", "radiusY"), degrees, size, at)
    across, down = position("width", "height")
    return framed((x, y, x + across, y + down), degrees, (x, y), size, at)
