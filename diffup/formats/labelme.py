"""Supports from LabelMe's JSON files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.annotation import Annotation
from diffup.errors import FormatError
from diffup.formats.coco import decode_segmentation
from diffup.formats.shots import (
    Corners,
    Shots,
    check_size,
    cut_box,
    decode_base64,
    embedded_image,
    field,
    gather,
    read_index,
    read_json,
    unite,
    upright_size,
)
from diffup.images import ImageLike
from diffup.strokes import mark_discs

_VERTICES = {
    "polygon": (3, None),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "point": (1, 1),
    "points": (1, None),
    "line": (2, 2),
    "linestrip": (2, None),
    "mask": (2, 2),
}
"""How many points each shape type has, at least and at most."""


def read_labelme(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    label: str,
    *,
    shape_types: Sequence[str] | None = None,
) -> Shots:
    """Supports from LabelMe files: the shapes with a label.

    Polygons, circles and masks become a `Mask`, rectangles a `Box`, lines and linestrips a `Scribble`, points `Points`.
    LabelMe counts positions from the corner of the first pixel, `Scribble` and `Points` from its centre; they are moved
    by half a pixel.

    Args:
        paths: one JSON file or several. Those without the label are passed over.
        label: of the shapes.
        shape_types: take these types alone, such as `("polygon",)`; needed where an image's shapes of the label
            would become several kinds of annotation.

    Returns:
        Images, the embedded one (`imageData`) where there is one and else the path, and annotations.

    Raises:
        FormatError: a file or a field of it is not as LabelMe's format says, the image is missing or of another size
            than the file says, no file has the label, or an image's shapes are of several kinds. The message names the
            file and the field.
        MissingPackageError: polygons need pycocotools (`pip install "diffup[formats]"`).
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    unknown = sorted(set(shape_types or ()) - set(_VERTICES))
    if unknown:
        raise FormatError(f"shape_types: {', '.join(unknown)} unknown; there are {', '.join(_VERTICES)}")
    found = []
    for path in files:
        name, content = os.fspath(path), read_json(path)
        shapes = []
        for index, shape in enumerate(field(content, "shapes", list, name)):
            where = f"{name}: shapes[{index}]"
            kind = str(shape.get("shape_type") or "polygon") if isinstance(shape, dict) else "polygon"
            if field(shape, "label", str, where) == label and (shape_types is None or kind in shape_types):
                shapes.append((where, kind, shape))
        if shapes:
            image, size = _image(Path(path), content, name)
            found.append((image, _annotation(shapes, size, name)))
    return gather(found, f"label={label!r}: none of {len(files)} files has such a shape")


def _image(path: Path, content: dict[str, Any], name: str) -> tuple[ImageLike, tuple[int, int]]:
    """The image of a file and its (height, width)."""
    image: Path | Image.Image
    if content.get("imageData"):
        data = decode_base64(field(content, "imageData", str, name), f"{name}: imageData")
        image = embedded_image(data, f"{name}: imageData")
        size = upright_size(image, f"{name}: imageData")
    else:
        image = path.parent / field(content, "imagePath", str, name).replace("\\", "/")  # Windows writes backslashes
        size = upright_size(image, f"{name}: imagePath")
    stated = tuple(content.get(side) for side in ("imageHeight", "imageWidth"))
    if stated != (None, None):
        check_size((field(content, "imageHeight", int, name), field(content, "imageWidth", int, name)), size, name)
    return image, size


def _annotation(shapes: list[tuple[str, str, dict[str, Any]]], size: tuple[int, int], name: str) -> Annotation:
    """What the shapes of one image say together."""
    masks: list[npt.NDArray[np.bool_]] = []
    boxes: list[Corners] = []
    strokes: list[npt.NDArray[np.float64]] = []
    points: list[tuple[float, float]] = []
    for where, kind, shape in shapes:
        vertices = _vertices(where, kind, shape)
        if kind == "rectangle":
            (x0, y0), (x1, y1) = vertices.min(axis=0), vertices.max(axis=0)
            boxes.append(cut_box((float(x0), float(y0), float(x1), float(y1)), size, f"{where}.points"))
        elif kind == "polygon":
            masks.append(decode_segmentation([vertices.ravel().tolist()], size, f"{where}.points"))
        elif kind == "circle":
            masks.append(_disc(vertices, size, where))
        elif kind == "mask":
            masks.append(_pasted(vertices, shape, size, where))
        else:
            _check_inside(vertices, size, where)
            centred = np.maximum(vertices - 0.5, 0.0)
            if kind in ("point", "points"):
                points += [(float(x), float(y)) for x, y in centred]
            else:
                strokes.append(np.minimum(centred, (size[1] - 1, size[0] - 1)))
    try:
        return unite(masks, boxes, name, strokes, points)
    except FormatError as error:
        raise FormatError(f"{error}. Choose with shape_types=") from error


def _vertices(where: str, kind: str, shape: dict[str, Any]) -> npt.NDArray[np.float64]:
    """The points (N, 2) of a shape."""
    if kind not in _VERTICES:
        raise FormatError(f"{where}.shape_type: {kind!r} unknown; expected one of {', '.join(_VERTICES)}")
    at_least, at_most = _VERTICES[kind]
    given = field(shape, "points", list, where)
    try:
        vertices = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}.points: expected [[x, y], ...]") from error
    count = len(vertices)
    if vertices.ndim != 2 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
        raise FormatError(f"{where}.points: expected [[x, y], ...] of finite numbers")
    if count < at_least or (at_most is not None and count > at_most):
        raise FormatError(f"{where}.points: a {kind} has {at_least}{'' if at_most else ' or more'}, got {count}")
    return vertices


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
    """A mask that LabelMe keeps as a small PNG and the first and last pixel of its place."""
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
