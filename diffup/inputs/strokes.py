"""Exact discs and polylines on a pixel grid: a pixel is marked if its centre is near enough."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_NEAREST = math.sqrt(0.5)  # no point is farther from the nearest pixel centre, so that every mark is visible
_PIECE = 64.0  # segments are cut into pieces of this many pixels, so that a long diagonal scans a band, not a square


def mark_discs(canvas: npt.NDArray[np.bool_], centres: npt.NDArray[np.float64], radius: float) -> None:
    """Mark, in place, the pixels whose centre is within `radius` pixels of one of the centres.

    Args:
        canvas: (H, W) bool, changed in place.
        centres: (N, 2) positions (x, y) in pixels within the canvas; (0, 0) is the centre of the top left pixel.
        radius: radius of the discs in pixels; at least the pixel that is nearest to each centre is marked.
    """
    for centre in centres:
        _mark_segment(canvas, centre, centre, radius)


def mark_polyline(canvas: npt.NDArray[np.bool_], vertices: npt.NDArray[np.float64], radius: float) -> None:
    """Mark, in place, the pixels whose centre is within `radius` pixels of a polyline.

    Args:
        canvas: (H, W) bool, changed in place.
        vertices: (N, 2) positions (x, y) in pixels; (0, 0) is the centre of the top left pixel. One vertex is a dot.
        radius: half the line's width in pixels; the line is never thinner than a pixel.
    """
    if len(vertices) == 1:
        mark_discs(canvas, vertices, radius)
    for start, end in pairwise(vertices):
        pieces = max(1, math.ceil(float(np.hypot(*(end - start))) / _PIECE))
        knots = start + np.linspace(0.0, 1.0, pieces + 1)[:, None] * (end - start)
        for piece_start, piece_end in pairwise(knots):
            _mark_segment(canvas, piece_start, piece_end, radius)


def _mark_segment(
    canvas: npt.NDArray[np.bool_], start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], radius: float
) -> None:
    """Mark the pixels within `radius` of a segment, computing distances only around it."""
    height, width = canvas.shape
    limit = np.array([width - 1, height - 1], dtype=np.float64)
    start, end = np.minimum(start, limit), np.minimum(end, limit)  # the last half pixel has no centre beyond it
    radius = min(max(radius, _NEAREST), float(height + width))
    left, top = np.maximum(np.floor(np.minimum(start, end) - radius), 0).astype(int)
    right, bottom = np.minimum(np.ceil(np.maximum(start, end) + radius), limit).astype(int) + 1
    x = np.arange(left, right)[None, :] - start[0]
    y = np.arange(top, bottom)[:, None] - start[1]
    along_x, along_y = end - start
    length_squared = along_x**2 + along_y**2
    part = np.clip((x * along_x + y * along_y) / length_squared, 0.0, 1.0) if length_squared > 0 else 0.0
    distance_squared = (x - part * along_x) ** 2 + (y - part * along_y) ** 2
    canvas[top:bottom, left:right] |= distance_squared <= radius**2 + 1e-9
