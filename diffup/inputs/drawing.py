"""Boxes, clicks and strokes as maps of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffup.errors import AnnotationError
from diffup.inputs.masks import check_mask_size
from diffup.inputs.strokes import mark_discs, mark_polyline

Boxes: TypeAlias = tuple[tuple[float, float, float, float], ...]
"""Boxes (x0, y0, x1, y1) in pixels."""

Strokes: TypeAlias = tuple[npt.NDArray[np.float64], ...] | Tensor
"""Polylines, (N, 2) positions (x, y) in pixels each, or an (H, W) float32 stroke image in [0, 1]."""


def fill_boxes(boxes: Boxes, size: tuple[int, int], argument: str) -> Tensor:
    """Weights of the class in boxes, most in the middle of each.

    Args:
        boxes: the boxes.
        size: (height, width) of the image in pixels.
        argument: name of the annotation in error messages.

    Returns:
        (height, width) in [0, 1].

    Raises:
        AnnotationError: a box leaves the image.
    """
    weights = torch.zeros(size)
    for inside in _insides(boxes, size, argument):
        bump = torch.outer(*(_bump(side.stop - side.start) for side in inside))
        weights[inside] = torch.maximum(weights[inside], bump)
    return weights


def cover_boxes(boxes: Boxes, size: tuple[int, int], argument: str) -> Tensor:
    """1 at the pixels that a box touches, else 0.

    Args:
        boxes: the boxes.
        size: (height, width) of the image in pixels.
        argument: name of the annotation in error messages.

    Returns:
        (height, width) in [0, 1].

    Raises:
        AnnotationError: a box leaves the image.
    """
    covered = torch.zeros(size)
    for inside in _insides(boxes, size, argument):
        covered[inside] = 1.0
    return covered


def _insides(boxes: Boxes, size: tuple[int, int], argument: str) -> list[tuple[slice, slice]]:
    """Rows and columns of the pixels that each box touches."""
    height, width = size
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise AnnotationError(
                f"{argument}: box {index} is ({x0:g}, {y0:g}, {x1:g}, {y1:g}) and leaves its image, which spans "
                f"(0, 0, {width}, {height}). Give (left, top, right, bottom) in pixels within the image."
            )
    return [(slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1))) for x0, y0, x1, y1 in boxes]


def _bump(pixels: int) -> Tensor:
    """Weights along a side of a box of so many pixels: a parabola, 1 in the middle and 0 at the edges."""
    middles = (torch.arange(pixels) + 0.5) / pixels * 2 - 1
    return 1 - middles.square()


def draw_points(points: Sequence[Any], radius: float, size: tuple[int, int], argument: str) -> Tensor:
    """1 in discs around points, else 0.

    Args:
        points: positions (x, y) in pixels; none draws nothing.
        radius: radius of the discs in pixels.
        size: (height, width) of the image in pixels.
        argument: name of the annotation in error messages.

    Returns:
        (height, width), 0 or 1.

    Raises:
        AnnotationError: a point is outside of the image.
    """
    canvas = np.zeros(size, dtype=bool)
    if points:
        centres = np.array(points)
        _check_inside(centres, size, argument, "point")
        mark_discs(canvas, centres, radius)
    return torch.from_numpy(canvas).float()


def draw_strokes(strokes: Strokes, width: float, name: str, size: tuple[int, int], argument: str) -> Tensor:
    """1 along strokes, else 0; a stroke image as it is.

    Args:
        strokes: polylines, none of which draws nothing, or a stroke image.
        width: width of the polylines in pixels.
        name: name of a stroke image in error messages.
        size: (height, width) of the image in pixels.
        argument: name of the annotation in error messages.

    Returns:
        (height, width) in [0, 1].

    Raises:
        AnnotationError: a vertex is outside of the image, or a stroke image has another size.
    """
    if isinstance(strokes, Tensor):
        check_mask_size(strokes.shape, size, name, argument)
        return strokes
    canvas = np.zeros(size, dtype=bool)
    for index, polyline in enumerate(strokes):
        _check_inside(polyline, size, argument, f"stroke {index}, vertex")
        mark_polyline(canvas, polyline, width / 2)
    return torch.from_numpy(canvas).float()


def _check_inside(points: npt.NDArray[np.float64], size: tuple[int, int], argument: str, what: str) -> None:
    outside = (points < 0).any(axis=1) | (points >= (size[1], size[0])).any(axis=1)
    if outside.any():
        index = int(outside.argmax())
        x, y = points[index]
        raise AnnotationError(
            f"{argument}: {what} {index} is ({x:g}, {y:g}), outside of its image of {size[1]} x {size[0]} pixels. "
            "Give (x, y) in pixels within the image."
        )
