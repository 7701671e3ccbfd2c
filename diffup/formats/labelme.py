"""Reading supports from LabelMe's JSON files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import FormatError
from diffup.formats.checks import MarksNothing
from diffup.formats.coco import decode_segmentation
from diffup.formats.supports import (
    Gathering,
    OnError,
    SupportSet,
    check_outline,
    check_pixels,
    check_size,
    cut_box,
    decode_base64,
    embedded_image,
    field,
    read_index,
    stated_size,
    unite,
    upright_size,
    with_area,
)
from diffup.inputs.annotations import Annotation
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

_POLYGONS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
_Reading: TypeAlias = tuple[str, Any]  # "masks", "boxes", "strokes" or "points", and the shape as an item of these


def read_labelme(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    label: str,
    *,
    shape_types: Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports from files of LabelMe or X-AnyLabeling: the shapes with one label.

    Polygons, rotated rectangles, circles and masks become a `Mask`, rectangles a `Box`, lines and linestrips a
    `Scribble`, points `Points`. LabelMe counts positions from the corner of the first pixel, `Scribble` and `Points`
    from its centre, so positions are moved by half a pixel.

    Args:
        paths: one JSON file or several. Files without the label are ignored.
        label: label of the class.
        shape_types: shape types to read, such as `("polygon",)`; all by default. Needed if the shapes of one image
            would become several kinds of annotation.
        on_error: "raise" the error of a faulty file, or "skip" the file.

    Returns:
        Support images (the embedded `imageData` if there is one, else the path) and annotations; `skipped` lists the
        faulty files. `imagePath` is relative to the file's own folder and found by the rules of
        `diffup.inputs.recorded.Files`. Shapes without area are ignored if their image has others.

    Raises:
        FormatError: a file or a field of it does not follow LabelMe's format, the image is missing or has another size
            than the file says, no file has the label, or the shapes of an image are of several kinds. The message names
            the file and the field.
        MissingPackageError: polygons need pycocotools (`pip install "diffup[formats]"`).
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    unknown = sorted(set(shape_types or ()) - set(_VERTICES))
    if unknown:
        raise FormatError(f"shape_types: {', '.join(unknown)} unknown; there are {', '.join(_VERTICES)}")
    found, folders = Gathering(on_error), dict[Path, Files]()
    for path in files:
        name = os.fspath(path)
        with found.record(name):
            content = read_json(path)
            shapes = _shapes(content, label, shape_types, name)
            if shapes:
                folder = Path(path).parent
                image, size = _image(folders.setdefault(folder, Files(folder)), content, name)
                found.add(image, _annotation(shapes, size, name))
    return found.shots(f"label={label!r}: none of {len(files)} files has such a shape")


def _shapes(
    content: dict[str, Any], label: str, shape_types: Sequence[str] | None, name: str
) -> list[tuple[str, str, dict[str, Any]]]:
    """The shapes of a file that have the label, each as its name in error messages, its type, and the shape."""
    shapes = []
    for index, shape in enumerate(field(content, "shapes", list, name)):
        where = f"{name}: shapes[{index}]"
        if not isinstance(shape, dict):
            raise FormatError(f"{where}: expected an object, got {type(shape).__name__}")
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


def _annotation(shapes: list[tuple[str, str, dict[str, Any]]], size: tuple[int, int], name: str) -> Annotation:
    """The annotation that the shapes of one image make together."""
    read = with_area(partial(_read, where, kind, shape, size) for where, kind, shape in shapes)
    masks, boxes, strokes, points = (
        [item for what, item in read if what == kind] for kind in ("masks", "boxes", "strokes", "points")
    )
    for drawn in (strokes, points):
        check_pixels(np.concatenate(drawn) if drawn else (), size, f"{name}: points")
    centred = [np.clip(stroke - 0.5, 0.0, (size[1] - 1, size[0] - 1)) for stroke in strokes]
    clicks = [(float(x), float(y)) for one in points for x, y in np.maximum(one - 0.5, 0.0)]
    try:
        return unite(masks, boxes, name, centred, clicks)
    except FormatError as error:
        raise FormatError(f"{error}. Choose with shape_types=") from error


def _read(where: str, kind: str, shape: dict[str, Any], size: tuple[int, int]) -> _Reading:
    """Read one shape; strokes and points still count from the corner of the first pixel."""
    vertices = _vertices(where, kind, shape)
    if kind in _POLYGONS:
        check_outline(vertices, size, f"{where}.points")
        return "masks", decode_segmentation([vertices.ravel().tolist()], size, f"{where}.points")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = vertices.min(axis=0), vertices.max(axis=0)
        box = cut_box((float(x0), float(y0), float(x1), float(y1)), size, f"{where}.points")
        check_pixels(vertices, size, f"{where}.points")
        return "boxes", box
    if kind == "circle":
        check_pixels(vertices, size, f"{where}.points")
        return "masks", _disc(vertices, size, where)
    if kind == "mask":
        return "masks", _pasted(vertices, shape, size, where)
    _check_inside(vertices, size, where)
    return "points" if kind in ("point", "points") else "strokes", vertices


def _vertices(where: str, kind: str, shape: dict[str, Any]) -> npt.NDArray[np.float64]:
    """The points (N, 2) of a shape."""
    if kind not in _VERTICES:
        raise FormatError(f"{where}.shape_type: {kind!r} unknown; expected one of {', '.join(_VERTICES)}")
    at_least, at_most = _VERTICES[kind]
    given = field(shape, "points", list, where)
    if not given:
        raise MarksNothing(f"{where}.points: a {kind} has {at_least} or more, got 0")
    try:
        vertices = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}.points: expected [[x, y], ...]") from error
    count = len(vertices)
    if vertices.ndim != 2 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
        raise FormatError(f"{where}.points: expected [[x, y], ...] of finite numbers")
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


def _check_inside(vertices: npt.NDArray[np.float64], size: tuple[int, int], where: str) -> None:
    if (vertices < 0).any() or (vertices > (size[1], size[0])).any():
        raise FormatError(f"{where}.points: leave the image of {size[1]} x {size[0]} pixels")


def _disc(vertices: npt.NDArray[np.float64], size: tuple[int, int], where: str) -> npt.NDArray[np.bool_]:
    """A circle from its centre and a point on it."""
    _check_inside(vertices[:1], size, where)
    canvas = np.zeros(size, dtype=bool)
    mark_discs(canvas, np.maximum(vertices[:1] - 0.5, 0.0), math.dist(vertices[0], vertices[1]))
    return canvas


def _pasted(
    vertices: npt.NDArray[np.float64], shape: dict[str, Any], size: tuple[int, int], where: str
) -> npt.NDArray[np.bool_]:
    """An (H, W) mask from LabelMe's form: a cropped PNG, and the first and last pixel of its bounding box."""
    data = decode_base64(field(shape, "mask", str, where), f"{where}.mask")
    crop = read_index(embedded_image(data, f"{where}.mask"), f"{where}.mask") > 0
    (left, top), (right, bottom) = vertices.astype(int)
    if crop.shape != (bottom - top + 1, right - left + 1):
        raise FormatError(f"{where}.mask: {crop.shape[1]} x {crop.shape[0]} pixels do not fill the place of its points")
    if left < 0 or top < 0 or right >= size[1] or bottom >= size[0]:
        raise FormatError(f"{where}.points: leave the image of {size[1]} x {size[0]} pixels")
    canvas = np.zeros(size, dtype=bool)
    canvas[top : bottom + 1, left : right + 1] = crop
    return canvas
