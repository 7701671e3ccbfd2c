"""Reading supports from CVAT's XML files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.fields import field, number_field, stated_size
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
    pasted,
    rounded,
    together,
)
from diffup.formats.supports import (
    Gathering,
    OnError,
    SupportSet,
    check_outline,
    check_pixels,
    check_shots,
    check_size,
    path_text,
    upright_size,
)
from diffup.formats.xml import visit_elements

SHAPE_TYPES: dict[str, Kind] = {
    "mask": "mask",
    "polygon": "mask",
    "ellipse": "mask",
    "box": "box",
    "polyline": "scribble",
    "points": "points",
}
"""The kind of annotation that each shape type makes."""

_DRAWN = (*SHAPE_TYPES, "cuboid", "skeleton")
"""Elements that are shapes, those included that cannot be read."""


class _Shape(NamedTuple):
    kind: str
    fields: dict[str, str]


class _Image(NamedTuple):
    fields: dict[str, str]
    shapes: list[_Shape]


def read_cvat(
    path: str | os.PathLike[str],
    label: str,
    *,
    images: str | os.PathLike[str] | None = None,
    shape_types: Sequence[str] | None = None,
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports from CVAT's export "CVAT for images 1.1": the shapes with one label.

    Masks, polygons, ellipses and turned boxes become a `Mask`, upright boxes a `Box`, polylines a `Scribble`, points
    `Points`. Tags, which mark no place in an image, are ignored.

    Args:
        path: the XML file.
        label: label of the class.
        images: folder that the names of the images start from; by default the file's own, or the folder `images` in it.
            They are found by the rules of `diffup.inputs.recorded.Files`.
        shape_types: shape types to read: mask, polygon, ellipse, box, polyline, points; all by default. Needed if the
            shapes of one image would become several kinds of annotation.
        shots: number of supports K, the first of the file; all by default.
        on_error: "raise" the error of a faulty image, or "skip" the image.

    Returns:
        Paths of the support images, and annotations; `skipped` lists the faulty images. Images without the label are
        ignored, and so are shapes without area if their image has others.

    Raises:
        FormatError: the file or a field of it does not follow CVAT's format, or it declares a document type, whose
            entities could grow without limit; an image is missing or has another size than the file says; fewer images
            than `shots` have the label; or the shapes of an image are of several kinds. The message names the file and
            the field.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    check_shots(shots)
    check_shape_types(shape_types, SHAPE_TYPES)
    name, found = path_text(path, "path"), Gathering(on_error)
    photos = Photos(path, images)
    for index, image in enumerate(_parse(path)):
        if len(found) == shots:
            break
        where = f"{name}: image[{index}]"
        found.saw(shape.fields.get("label") for shape in image.shapes)
        with found.record(where):
            shapes = [
                (f"{where}.{shape.kind}[{place}]", shape)
                for place, shape in enumerate(image.shapes)
                if shape.fields.get("label") == label and (shape_types is None or shape.kind in shape_types)
            ]
            if shapes:
                file = photos.find([field(image.fields, "name", str, where)], where, "name")
                size = upright_size(file, f"{where}.name")
                check_size(stated_size(image.fields, "height", "width", where), size, where)
                found.add(file, together((partial(_read, *shape, size) for shape in shapes), size, where))
    return found.shots(f"{name}: no image has a shape with {described(label, shape_types)}", shots)


def _parse(path: str | os.PathLike[str]) -> list[_Image]:
    """The images of a file and their shapes."""
    name, images = os.fspath(path), list[_Image]()
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise FormatError(f"{name}: cannot be read ({error})") from error
    if content.startswith(b"PK"):
        raise FormatError(f"{name}: a ZIP archive; unpack it, and give the annotations.xml in it")

    def visit(above: list[str], tag: str, fields: dict[str, str]) -> None:
        if not above and tag != "annotations":
            raise FormatError(f"{name}: expected <annotations> as CVAT writes it, got <{tag[:40]}>")
        if len(above) == 1 and tag == "track":
            raise FormatError(f"{name}: the format 'CVAT for video'; export it as 'CVAT for images 1.1'")
        if len(above) == 1 and tag == "image":
            images.append(_Image(fields, []))
        if len(above) == 2 and above[1] == "image" and tag in _DRAWN:
            images[-1].shapes.append(_Shape(tag, fields))

    visit_elements(content, name, visit)
    return images


def _read(where: str, shape: _Shape, size: tuple[int, int]) -> Reading:
    """Read one shape."""
    kind, fields = shape

    def get(name: str) -> float:
        return number(field(fields, name, str, where), f"{where}.{name}")

    if kind not in SHAPE_TYPES:
        raise FormatError(f"{where}: a {kind} cannot be read; expected {', '.join(SHAPE_TYPES)}")
    if kind == "mask":
        return _mask(fields, size, where)
    turned = number(fields.get("rotation", "0"), f"{where}.rotation")
    if kind == "box":
        left, top, right, bottom = get("xtl"), get("ytl"), get("xbr"), get("ybr")
        box = framed((left, top, right, bottom), turned, ((left + right) / 2, (top + bottom) / 2), size, where)
        check_pixels(((left, top), (right, bottom)), size, where)
        return box
    if kind == "ellipse":
        return rounded((get("cx"), get("cy")), (get("rx"), get("ry")), turned, size, where)
    pairs = [pair.split(",") for pair in field(fields, "points", str, where).split(";")]
    vertices = numbers(pairs, f"{where}.points", "x,y;x,y;...")
    if kind == "polygon":
        check_outline(vertices, size, f"{where}.points")
        return filled(vertices, size, f"{where}.points")
    return drawn(SHAPE_TYPES[kind], vertices, size, f"{where}.points")


def _mask(fields: dict[str, str], size: tuple[int, int], where: str) -> Reading:
    """A mask from CVAT's form: runs along the rows of its bounding box, the first of the background."""
    left, top, width, height = (number_field(fields, name, where) for name in ("left", "top", "width", "height"))
    text = field(fields, "rle", str, where)
    runs = [number_field({"rle": run.strip()}, "rle", where) for run in text.split(",")]
    if min(width, height, *runs) < 0 or sum(runs) != width * height:
        raise FormatError(f"{where}.rle: the runs do not add up to {height} x {width} pixels; they are damaged")
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise FormatError(f"{where}: leaves the image of {size[1]} x {size[0]} pixels")
    values: npt.NDArray[np.bool_] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pasted(values.reshape(height, width), left, top, size, where)
