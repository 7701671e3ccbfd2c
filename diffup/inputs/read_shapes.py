"""What users give as boxes, points and strokes, read and checked."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.errors import AnnotationError, ImageError
from diffup.inputs.coordinates import check_not_fractions
from diffup.inputs.drawing import Boxes
from diffup.inputs.images import describe, fetch
from diffup.inputs.masks import read_mask

_WIDEST = 1e9  # greatest width of a stroke in pixels: beyond any image, and its square is still finite


def _number_table(rows: Any, columns: int, kind: str, row_form: str) -> list[list[float]]:
    """Rows of finite numbers from any nested sequence or array."""
    try:
        table = np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AnnotationError(f"{kind}: expected {row_form} or a list of them, got {describe(rows)}.") from error
    if table.shape == (columns,):
        table = table[None]
    if table.ndim != 2 or table.shape[1] != columns or not len(table):
        raise AnnotationError(
            f"{kind}: expected at least one {row_form}, {columns} numbers each, got {describe(rows)}."
        )
    if not np.isfinite(table).all():
        raise AnnotationError(f"{kind}: {describe(rows)} contains NaN or infinity. Give finite pixel coordinates.")
    return [[float(number) for number in row] for row in table]


def read_points(points: Any) -> tuple[tuple[float, float], ...]:
    """Read points (x, y) in pixels.

    Args:
        points: one point or several, in any nested sequence or array.

    Raises:
        AnnotationError: they are no such points, not finite, or fractions of the image.
    """
    table = _number_table(points, 2, "Points", "(x, y)")
    check_not_fractions(np.array(table), "Points")
    return tuple((x, y) for x, y in table)


def read_boxes(boxes: Any) -> Boxes:
    """Read boxes (left, top, right, bottom) in pixels.

    Args:
        boxes: one box or several, in any nested sequence or array.

    Raises:
        AnnotationError: they are no such boxes, not finite, fractions of the image, or inverted or empty.
    """
    table = _number_table(boxes, 4, "Box", "(x0, y0, x1, y1)")
    check_not_fractions(np.array(table), "Box")
    for index, (x0, y0, x1, y1) in enumerate(table):
        if x0 >= x1 or y0 >= y1:
            raise AnnotationError(
                f"Box: box {index} is ({x0:g}, {y0:g}, {x1:g}, {y1:g}), which is inverted or empty. "
                "Give (left, top, right, bottom) with left < right and top < bottom."
            )
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in table)


def positive(value: float | None, kind: str, name: str) -> float | None:
    """Read a width or radius in pixels, above 0; None stays None.

    Args:
        value: the number.
        kind: kind of the annotation, for error messages.
        name: name of the number, for error messages.

    Raises:
        AnnotationError: it is no positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise AnnotationError(f"{kind}: expected {name} in pixels or None, got {describe(value)}.")
    if not 0 < value < math.inf:
        raise AnnotationError(f"{kind}: {name} must be a positive number of pixels, got {value}.")
    return float(min(value, _WIDEST))


def read_strokes(strokes: Any) -> tuple[npt.NDArray[np.float64], ...] | Tensor:
    """Read the strokes of a scribble.

    Args:
        strokes: one polyline of (x, y) in pixels, several polylines, or a stroke image.

    Returns:
        The polylines, (V, 2) each; or the stroke image as a mask.

    Raises:
        AnnotationError: they are none of these, not finite, or fractions of the image.
        MissingPackageError: the package of the file system of a stroke image's URL is not installed.
    """
    if isinstance(strokes, str | os.PathLike | bytes | Image.Image):
        return read_mask(fetched(strokes, "Scribble"), "Scribble")
    if isinstance(strokes, np.ndarray | Tensor):
        is_bool = strokes.dtype == (
            torch.bool if isinstance(strokes, Tensor) else np.bool_
        )  # never coordinates, however narrow the image
        if strokes.ndim != 2 or strokes.shape[1] != 2 or is_bool:
            return read_mask(strokes, "Scribble")
        polylines: list[Any] = [strokes]
    elif isinstance(strokes, list | tuple) and strokes:
        polylines = [strokes] if _is_vertex(strokes[0]) else list(strokes)
    else:
        raise AnnotationError(
            "Scribble: expected a polyline [(x, y), ...], a list of polylines or a stroke image, "
            f"got {describe(strokes)}."
        )
    vertices = tuple(np.array(_number_table(line, 2, "Scribble", "(x, y)")) for line in polylines)
    check_not_fractions(np.concatenate(vertices), "Scribble")
    return vertices


def _is_vertex(value: Any) -> bool:
    """Whether a value is one (x, y) rather than a polyline."""
    return len(np.shape(value)) == 1 if isinstance(value, np.ndarray | Tensor) else not _nested(value)


def _nested(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(
        isinstance(item, list | tuple | np.ndarray | Tensor) for item in value
    )


def fetched(mask: Any, argument: str) -> Any:
    """Read the file of a mask or stroke image that the user has given by its URL; anything else stays as it is.

    Args:
        mask: the mask or stroke image.
        argument: name of the argument, for error messages.

    Raises:
        AnnotationError: it cannot be read.
        MissingPackageError: the package of the URL's file system is not installed.
    """
    try:
        return fetch(mask, argument)
    except ImageError as error:
        raise AnnotationError(str(error)) from error
