"""Reading supports from LabelMe's JSON files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import FormatError
from diffup.formats.checks import MarksNothing
from diffup.formats.fields import decode_base64, field, stated_size
from diffup.formats.shapes import (
    Kind,
    Reading,
    check_inside,
    check_shape_types,
    drawn,
    filled,
    numbers,
    pasted,
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
    cut_box,
    embedded_image,
    path_list,
    path_text,
    read_index,
    upright_size,
)
from diffup.inputs.images import ImageLike
from diffup.inputs.recorded import Files, read_json
from diffup.inputs.strokes import mark_discs

_VERTICES = {
    "polygon": (3, None),
    "rectangle": (2, 4),
    "rotation": (4, 4),
    "oriented_rectangle": (4, 4),
    "quadrilateral": (4, 4),
    "circle": (2, 2),
    "point": (1, 1),
    "points": (1, None),
    "line": (2, 2),
    "linestrip": (2, None),
    "mask": (2, 2),
}
"""Least and greatest number of points of each shape type, those of X-AnyLabeling included."""

SHAPE_TYPES: dict[str, Kind] = {
    **dict.fromkeys(("polygon", "rotation", "oriented_rectangle", "quadrilateral", "circle", "mask"), "mask"),
    "rectangle": "box",
    **dict.fromkeys(("line", "linestrip"), "scribble"),
    **dict.fromkeys(("point", "points"), "points"),
}
"""The kind of annotation that each shape type makes."""


def read_labelme(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    label: str,
    *,
    images: str | os.PathLike[str] | None = None,
    shape_types: Sequence[str] | None = None,
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports from files of LabelMe or X-AnyLabeling: the shapes with one label.

    Polygons, rotated rectangles, circles and masks become a `Mask`, rectangles a `Box`, lines and linestrips a
    `Scribble`, points `Points`. LabelMe counts positions from the corner of the first pixel, `Scribble` and `Points`
    from its centre, so positions are moved by half a pixel.

    Args:
        paths: one JSON file or several. Files without the label are ignored.
        label: label of the class.
        images: folder that `imagePath` is relative to; by default each file's own folder.
        shape_types: shape types to read, such as `("polygon",)`; all by default. Needed if the shapes of one image
            would become several kinds of annotation.
        shots: number of supports K, the first of the files; all by default.
        on_error: "raise" the error of a faulty file, or "skip" the file.

    Returns:
        Support images (the embedded `imageData` if there is one, else the path) and annotations; `skipped` lists the
        faulty files. The path in `imagePath` is found by the rules of `diffup.inputs.recorded.Files`. Shapes without
        area are ignored if their image has others.

    Raises:
        FormatError: a file or a field of it does not follow LabelMe's format, the image is missing or has another size
            than the file says, no file or fewer than `shots` have the label, or the shapes of an image are of several
            kinds. The message names the file and the field.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    files = path_list(paths, "paths")
    check_shots(shots)
    check_shape_types(shape_types, SHAPE_TYPES)
    if images is not None:
        path_text(images, "images")
    found, folders = Gathering(on_error), dict[Path, Files]()
    for path in files:
        if len(found) == shots:
            break
        name = os.fspath(path)
        with found.record(name):
            content = read_json(path)
            shapes = _shapes(content, label, shape_types, name, found)
            if shapes:
                folder = Path(path).parent if images is None else Path(images)
                image, size = _image(folders.setdefault(folder, Files(folder)), content, name)
                found.add(image, together((partial(_read, *shape, size) for shape in shapes), size, name))
    return found.shots(f"label={label!r}: none of {len(files)} files has such a shape", shots)


def _shapes(
    content: dict[str, Any], label: str, shape_types: Sequence[str] | None, name: str, found: Gathering
) -> list[tuple[str, str, dict[str, Any]]]:
    """The shapes of a file that have the label, each as its name in error messages, its type, and the shape."""
    shapes = []
    for index, shape in enumerate(field(content, "shapes", list, name)):
        where = f"{name}: shapes[{index}]"
        if not isinstance(shape, dict):
            raise FormatError(f"{where}: expected an object, got {type(shape).__name__}")
        found.saw([shape.get("label")])
        kind = str(shape.get("shape_type") or "polygon")
        if shape.get("label") == label and (shape_types is None or kind in shape_types):
            shapes.append((where, kind, shape))
    return shapes


def _image(folder: Files, content: dict[str, Any], name: str) -> tuple[ImageLike, tuple[int, int]]:
    """The image of a file and its (height, width)."""
    image: Path | Image.Image
    if content.get("imageData"):
        data = decode_base64(field(content, "imageData", str, name), f"{name}: imageData")
        image = embedded_image(data, f"{name}: imageData")
        size = upright_size(image, f"{name}: imageData")
    else:
        image = folder.find(field(content, "imagePath", str, name), f"{name}: imagePath")
        size = upright_size(image, f"{name}: imagePath")
    check_size(stated_size(content, "imageHeight", "imageWidth", name), size, name)
    return image, size


def _read(where: str, kind: str, shape: dict[str, Any], size: tuple[int, int]) -> Reading:
    """Read one shape."""
    vertices = _vertices(where, kind, shape)
    at = f"{where}.points"
    if kind == "rectangle":
        (x0, y0), (x1, y1) = vertices.min(axis=0), vertices.max(axis=0)
        box = cut_box((float(x0), float(y0), float(x1), float(y1)), size, at)
        check_pixels(vertices, size, at)
        return "box", box
    if kind == "circle":
        check_pixels(vertices, size, at)
        return "mask", _disc(vertices, size, at)
    if kind == "mask":
        return _pasted(vertices, shape, size, where)
    if SHAPE_TYPES[kind] == "mask":
        check_outline(vertices, size, at)
        return filled(vertices, size, at)
    return drawn(SHAPE_TYPES[kind], vertices, size, at)


def _vertices(where: str, kind: str, shape: dict[str, Any]) -> npt.NDArray[np.float64]:
    """The points (N, 2) of a shape."""
    if kind not in _VERTICES:
        raise FormatError(f"{where}.shape_type: {kind!r} unknown; expected one of {', '.join(_VERTICES)}")
    at_least, at_most = _VERTICES[kind]
    given = field(shape, "points", list, where)
    if not given:
        raise MarksNothing(f"{where}.points: a {kind} has {at_least} or more, got 0")
    vertices = numbers(given, f"{where}.points")
    count = len(vertices)
    if kind == "polygon" and count < at_least:
        raise MarksNothing(f"{where}.points: a polygon has 3 or more, got {count}")
    if count < at_least or (at_most is not None and count > at_most):
        expected = at_least if at_most == at_least else f"{at_least} or {at_most or 'more'}"
        raise FormatError(f"{where}.points: a {kind} has {expected}, got {count}")
    if kind == "rectangle" and count > 2 and not _is_upright(vertices):
        raise FormatError(f"{where}.points: they are no corners of an upright rectangle; is it a polygon?")
    return vertices


def _is_upright(corners: npt.NDArray[np.float64]) -> bool:
    """Whether four vertices are the corners of the box around them, as far as rounding goes."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    at_edge = np.minimum(np.abs(corners - low), np.abs(corners - high)) <= 1
    return len(corners) == 4 and bool(at_edge.all())


def _disc(vertices: npt.NDArray[np.float64], size: tuple[int, int], at: str) -> npt.NDArray[np.bool_]:
    """A circle from its centre and a point on it."""
    check_inside(vertices[:1], size, at)
    canvas = np.zeros(size, dtype=bool)
    mark_discs(canvas, np.maximum(vertices[:1] - 0.5, 0.0), math.dist(vertices[0], vertices[1]))
    return canvas


def _pasted(vertices: npt.NDArray[np.float64], shape: dict[str, Any], size: tuple[int, int], where: str) -> Reading:
    """A mask from LabelMe's form: a cropped PNG, and the first and last pixel of its bounding box."""
    data = decode_base64(field(shape, "mask", str, where), f"{where}.mask")
    crop = read_index(embedded_image(data, f"{where}.mask"), f"{where}.mask") > 0
    (left, top), (right, bottom) = vertices.astype(int).tolist()
    if crop.shape != (bottom - top + 1, right - left + 1):
        raise FormatError(f"{where}.mask: {crop.shape[1]} x {crop.shape[0]} pixels do not fill the place of its points")
    return pasted(crop, left, top, size, f"{where}.points")
