"""Weak annotations made from masks: what a user in a hurry would have drawn. Pure functions of a seeded generator.

A tight box around the whole mask and free-form strokes clipped to it are VRP-SAM's protocol (Sun et al., CVPR 2024).
Fast enough to draw anew for every training episode: well under a millisecond at 128 x 128.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from diffup.annotation import Annotation, Box, Mask, Points, Scribble
from diffup.errors import AnnotationError, ConfigError
from diffup.masks import bounding_box

AnnotationKind: TypeAlias = Literal["mask", "box", "scribble", "points", "none"]
"""The kinds of annotation that `weaken` makes."""

_STROKES = (1, 3)  # of a scribble
_VERTICES = (2, 5)  # of a stroke
_WIDTHS = (0.01, 0.04)  # of a stroke, as a part of the shorter side; the default for a user's own is 0.02
_POINTS = (1, 5)


def weaken(mask: npt.NDArray[Any], kind: AnnotationKind, generator: np.random.Generator) -> Annotation:
    """Replace a mask by an annotation of the given kind.

    Args:
        mask: (H, W), non-zero where the object is.
        kind: "mask" (as it is), "box" (tight), "scribble" (1 to 3 strokes), "points" (1 to 5) or "none".
        generator: source of all randomness; not touched for "mask", "box" and "none".

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty.
        ConfigError: an unknown kind.
    """
    if kind == "mask":
        return Mask(_checked(mask))
    if kind == "box":
        return tight_box(mask)
    if kind == "scribble":
        return random_scribble(mask, generator)
    if kind == "points":
        return random_points(mask, generator, int(generator.integers(*_POINTS, endpoint=True)))
    if kind == "none":
        return None
    raise ConfigError(f"kind: expected one of {', '.join(get_args(AnnotationKind))}, got {kind!r}.")


def tight_box(mask: npt.NDArray[Any]) -> Box:
    """The smallest box that holds the whole mask, (H, W) and non-zero where the object is.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty.
    """
    box = bounding_box(_checked(mask))
    assert box is not None  # the mask is not empty
    return Box(*box)


def random_points(mask: npt.NDArray[Any], generator: np.random.Generator, count: int = 1) -> Points:
    """Distinct random pixels of the mask, `count` of them or all there are.

    Args:
        mask: (H, W), non-zero where the object is.
        generator: source of all randomness.
        count: number of points, at least 1.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, or `count` is below 1.
    """
    if count < 1:
        raise AnnotationError(f"count: expected at least 1 point, got {count}.")
    return Points(_random_pixels(_checked(mask), generator, count))


def random_scribble(
    mask: npt.NDArray[Any],
    generator: np.random.Generator,
    strokes: int | None = None,
    width: float | None = None,
) -> Scribble:
    """Smooth free-form strokes through random pixels of the mask, clipped to it.

    Each stroke is a Catmull-Rom curve through 2 to 5 pixels, taken in their order along a random direction, as a hand
    sweeps over an object.

    Args:
        mask: (H, W), non-zero where the object is.
        generator: source of all randomness.
        strokes: their number, at least 1; `None` draws 1 to 3.
        width: of all strokes, in pixels; `None` draws 1 to 4 % of the shorter side.

    Returns:
        A scribble that holds a stroke image (H, W), a non-empty part of the mask.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, or `strokes` or `width` is not positive.
    """
    mask = _checked(mask)
    if (strokes is not None and strokes < 1) or (width is not None and not width > 0):
        raise AnnotationError(f"strokes and width must be positive, got strokes={strokes}, width={width}.")
    if strokes is None:
        strokes = int(generator.integers(*_STROKES, endpoint=True))
    if width is None:
        width = float(generator.uniform(*_WIDTHS)) * min(mask.shape)
    canvas = np.zeros(mask.shape, dtype=bool)
    for _ in range(strokes):
        vertices = _random_pixels(mask, generator, int(generator.integers(*_VERTICES, endpoint=True)))
        angle = generator.uniform(0.0, 2 * np.pi)
        order = np.argsort(vertices @ (np.cos(angle), np.sin(angle)), kind="stable")
        x, y = np.rint(_smooth_curve(vertices[order])).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
        canvas[y[inside], x[inside]] = True
    return Scribble(_dilate(canvas, width / 2) & mask)


def _checked(mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or not mask.any():
        raise AnnotationError(
            f"mask: expected an array (H, W) with at least one pixel of the object, got one of shape {mask.shape}"
            f"{'' if mask.ndim != 2 else ' that is all zeros'}."
        )
    return mask


def _random_pixels(mask: npt.NDArray[np.bool_], generator: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """(N, 2) distinct positions (x, y) within the mask, N = count or all there are."""
    pixels = np.flatnonzero(mask)
    chosen = generator.choice(pixels, size=min(count, len(pixels)), replace=False)
    y, x = np.divmod(chosen, mask.shape[1])
    return np.stack([x, y], axis=1).astype(np.float64)


def _smooth_curve(vertices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(M, 2) dense samples, less than a pixel apart, of the Catmull-Rom curve through (N, 2) vertices."""
    if len(vertices) == 1:
        return vertices
    padded = np.concatenate([vertices[:1], vertices, vertices[-1:]])
    before, start, end, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    longest = float(np.abs(np.diff(vertices, axis=0)).max())
    t = np.linspace(0.0, 1.0, 2 * int(longest) + 2)[None, :, None]  # its speed stays below twice the longest segment
    curve = start + 0.5 * t * (
        end - before + t * (2 * before - 5 * start + 4 * end - after + t * (3 * (start - end) + after - before))
    )
    return np.asarray(curve.reshape(-1, 2))


def _dilate(canvas: npt.NDArray[np.bool_], radius: float) -> npt.NDArray[np.bool_]:
    """The canvas with every marked pixel grown to a disc."""
    height, width = canvas.shape
    reach = int(min(radius, max(height, width)))
    grown = np.array(canvas)
    for dy in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        span = min(int(np.sqrt(max(radius**2 - dy**2, 0.0))), width - 1)
        for dx in range(-span, span + 1):
            target = grown[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
            target |= canvas[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return grown
