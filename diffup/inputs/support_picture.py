"""Pictures of support images that show the annotation as it was given: boxes, clicks, strokes, masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from diffup.inputs.annotations import (
    DEFAULT_STROKE,
    Annotation,
    AnnotationLike,
    Box,
    Mask,
    Points,
    Support,
    pair_supports,
)
from diffup.inputs.drawing import Strokes
from diffup.inputs.images import ImageLike, resize_image, to_bytes
from diffup.inputs.strokes import mark_discs, mark_polyline
from diffup.utils.pictures import GREEN, RED, Bytes, Colour, fitted_size, tint
from diffup.utils.resize import resize_maps

HEIGHT = 256
"""Default height of a picture in pixels."""

_LEAST_DOT = 3.0  # pixels of the picture, radius of a click and half width of a stroke; thinner ones would vanish
_STROKE = 0.8  # opacity of strokes and clicks, which hide little of the image
_AREA = 0.3  # opacity of a mask

_Area: TypeAlias = npt.NDArray[np.bool_]
_Floats: TypeAlias = npt.NDArray[np.float64]


def draw_annotation(image: ImageLike, annotation: AnnotationLike = None, height: int = HEIGHT) -> Bytes:
    """Draw an image with its annotation (`draw_support`).

    Args:
        image: the annotated image, in any form that `diffup.inputs.images.read_image` takes.
        annotation: its annotation, or a mask in any form that `Mask` takes; None without.
        height: height of the picture in pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ImageError: the image cannot be read.
        AnnotationError: the annotation does not fit the image.
    """
    return draw_support(pair_supports([image], [annotation])[0], height)


def draw_support(support: Support, height: int = HEIGHT) -> Bytes:
    """Draw a support image with its annotation, in green, and what it says is not the class, in red.

    Boxes are drawn as their outlines, clicks as dots, strokes as strokes, and a mask as a tinted, outlined area. An
    image without annotation is left as it is.

    Args:
        support: support image and annotation.
        height: height of the picture in pixels; it is lower if the image is very wide (`diffup.utils.pictures.WIDEST`).

    Returns:
        (height, width, 3) uint8.
    """
    own = (support.image.shape[1], support.image.shape[2])
    size = fitted_size(own, height)
    picture = to_bytes(resize_image(support.image, size))
    for area, colour, opacity in _areas(support.annotation, own, size):
        picture = tint(picture, area, colour, opacity)
    return picture


def _areas(annotation: Annotation, own: tuple[int, int], size: tuple[int, int]) -> list[tuple[_Area, Colour, float]]:
    """Areas of a picture, (H, W) bool, that an annotation of an image of size `own` marks; colours and opacities."""
    scale = np.array([size[1] / own[1], size[0] / own[0]])  # of x and y
    if annotation is None:
        return []
    if isinstance(annotation, Mask):
        return [(_resized(annotation.mask, size) > 0.5, GREEN, _AREA)]
    if isinstance(annotation, Box):
        sides = ((annotation.boxes, GREEN), (annotation.negative, RED))
        return [
            (_rectangle(np.array(box).reshape(2, 2) * scale, size), colour, 0.0)
            for boxes, colour in sides
            for box in boxes
        ]
    if isinstance(annotation, Points):
        radius = max((annotation.radius or DEFAULT_STROKE * min(own)) * scale.min(), _LEAST_DOT)
        return [
            (_dots(points, scale, radius, size), colour, _STROKE)
            for points, colour in ((annotation.points, GREEN), (annotation.negative, RED))
            if points
        ]
    half = max((annotation.width or DEFAULT_STROKE * min(own)) / 2 * scale.min(), _LEAST_DOT)
    return [
        (_lines(strokes, scale, half, size), colour, _STROKE)
        for strokes, colour in ((annotation.strokes, GREEN), (annotation.negative, RED))
        if len(strokes)
    ]


def _dots(points: Sequence[tuple[float, float]], scale: _Floats, radius: float, size: tuple[int, int]) -> _Area:
    area = np.zeros(size, dtype=bool)
    mark_discs(area, _moved(np.array(points), scale), radius)
    return area


def _lines(strokes: Strokes, scale: _Floats, half: float, size: tuple[int, int]) -> _Area:
    if isinstance(strokes, torch.Tensor):
        return _resized(strokes, size) > 0.25  # thin strokes fade when the image shrinks
    area = np.zeros(size, dtype=bool)
    for stroke in strokes:
        mark_polyline(area, _moved(np.asarray(stroke), scale), half)
    return area


def _rectangle(corners: _Floats, size: tuple[int, int]) -> _Area:
    """Fill a box with corners (x0, y0) and (x1, y1) in pixels of a picture, at least a pixel of it."""
    (left, top), (right, bottom) = np.rint(corners).astype(int)
    area = np.zeros(size, dtype=bool)
    area[min(top, size[0] - 1) : max(bottom, top + 1), min(left, size[1] - 1) : max(right, left + 1)] = True
    return area


def _moved(centres: _Floats, scale: _Floats) -> _Floats:
    """Move (N, 2) positions between images, in which (0, 0) is the centre of the top left pixel."""
    return np.maximum((centres + 0.5) * scale - 0.5, 0.0)


def _resized(weights: torch.Tensor, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    return np.asarray(resize_maps(weights[None, None], size)[0, 0].numpy())
