"""Weak annotations derived from masks, as a user would draw them. Pure functions of a seeded generator.

A tight box around the whole mask and free-form strokes clipped to it are VRP-SAM's protocol (Sun et al., CVPR 2024), a
box around every connected component is BAM's (Lang et al., CVPR 2022), boxes of instances and a scribble along the
medial axis are PANet's (Wang et al., ICCV 2019). Dilated, eroded and shifted masks simulate careless or automatic ones.

The first five kinds are fast enough to be drawn for every training episode, well under a millisecond at 128 x 128; the
others need scipy or scikit-image (extra `eval`).
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from diffup.errors import AnnotationError, ConfigError
from diffup.inputs.annotations import Annotation, Box, Mask, Points, Scribble
from diffup.inputs.masks import bounding_box
from diffup.utils.optional import need

AnnotationKind: TypeAlias = Literal[
    "mask",
    "box",
    "scribble",
    "points",
    "none",
    "component_box",
    "instance_box",
    "medial_scribble",
    "dilated",
    "eroded",
    "shifted",
]
"""The kinds of annotation that `weaken` makes."""

_STROKES = (1, 3)  # range of the number of strokes of a scribble
_VERTICES = (2, 5)  # range of the number of vertices of a stroke
_WIDTHS = (0.01, 0.04)  # range of stroke widths as a fraction of the shorter side; the default of `Scribble` is 0.02
_POINTS = (1, 5)  # range of the number of points
_WIDTH = 0.02  # width of a stroke along the medial axis, as a fraction of the shorter side
_AMOUNT = 0.1  # default error of an inaccurate mask, in object sizes
_NEIGHBOURS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))
_DIRECTIONS = 16  # directions of a shift that are tried until some of the object stays within the image


def weaken(
    mask: npt.NDArray[Any], kind: AnnotationKind, generator: np.random.Generator, amount: float | None = None
) -> Annotation:
    """Derive an annotation of some kind from a mask.

    Args:
        mask: (H, W), non-zero in the object; for "instance_box" integers, the number of the instance.
        kind: "mask" (unchanged), "box" (tight), "scribble" (1 to 3 strokes), "points" (1 to 5), "none",
            "component_box" (one per connected component), "instance_box" (one per instance), "medial_scribble" (one
            stroke along the medial axis), or an inaccurate mask: "dilated", "eroded" or "shifted".
        generator: source of randomness; only "scribble", "points", "medial_scribble" and "shifted" draw from it.
        amount: error of an inaccurate mask in object sizes (square root of the area), at least a pixel; None is 0.1.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, `amount` is not positive or moves the whole object
            out of the image, or "instance_box" is given a mask without instances.
        ConfigError: the kind is unknown, or an amount is given for a kind that has none.
        MissingPackageError: the kind needs scipy or scikit-image, which is not installed.
    """
    if kind in ("dilated", "eroded", "shifted"):
        return Mask(_inaccurate(_checked(mask), kind, generator, _AMOUNT if amount is None else amount))
    if amount is not None:
        raise ConfigError(
            f"amount: it is for dilated, eroded and shifted masks, got amount={amount} for kind={kind!r}."
        )
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
    if kind == "component_box":
        return component_boxes(mask)
    if kind == "instance_box":
        return instance_boxes(mask)
    if kind == "medial_scribble":
        return medial_scribble(mask, generator)
    raise ConfigError(f"kind: expected one of {', '.join(get_args(AnnotationKind))}, got {kind!r}.")


def tight_box(mask: npt.NDArray[Any]) -> Box:
    """The smallest box around the whole object.

    Args:
        mask: (H, W), non-zero in the object.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty.
    """
    box = bounding_box(_checked(mask))
    assert box is not None  # the mask is not empty
    return Box(*box)


def component_boxes(mask: npt.NDArray[Any]) -> Box:
    """A tight box around every connected component (of eight neighbours).

    Args:
        mask: (H, W), non-zero in the object.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty.
        MissingPackageError: scipy is not installed.
    """
    components, _ = _ndimage().label(_checked(mask), structure=np.ones((3, 3)))
    found = _ndimage().find_objects(components)
    return Box([(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in found])


def instance_boxes(instances: npt.NDArray[Any]) -> Box:
    """A tight box around every instance.

    Args:
        instances: (H, W) integers: 0 for the background, else the number of the instance.

    Raises:
        AnnotationError: the array is not two-dimensional, is empty, or does not hold integers, so that instances cannot
            be distinguished.
    """
    instances = np.asarray(instances)
    if instances.dtype.kind not in "iu":
        raise AnnotationError(
            f"instances: expected integers (H, W), the number of the instance, got type {instances.dtype}. A mask "
            "alone does not tell instances apart; component_box takes connected components."
        )
    _checked(instances)
    return Box([bounding_box(instances == number) for number in np.unique(instances) if number])


def random_points(mask: npt.NDArray[Any], generator: np.random.Generator, count: int = 1) -> Points:
    """Draw distinct random pixels of the object; all of them if there are fewer than asked for.

    Args:
        mask: (H, W), non-zero in the object.
        generator: source of randomness.
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
    """Draw smooth free-form strokes through random pixels of the object, clipped to it.

    Each stroke is a Catmull-Rom curve through 2 to 5 pixels, ordered along a random direction, as a hand sweeps over an
    object.

    Args:
        mask: (H, W), non-zero in the object.
        generator: source of randomness.
        strokes: number of strokes, at least 1; `None` draws 1 to 3.
        width: width of all strokes in pixels; `None` draws 1 to 4 % of the image's shorter side.

    Returns:
        A scribble with a stroke image (H, W), a non-empty subset of the mask.

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


def medial_scribble(mask: npt.NDArray[Any], generator: np.random.Generator, width: float | None = None) -> Scribble:
    """Draw one stroke along the medial axis of one connected component, clipped to it.

    The stroke is the longest shortest path of the medial axis, without side branches; the component is drawn with a
    probability proportional to its area.

    Args:
        mask: (H, W), non-zero in the object.
        generator: source of randomness.
        width: width of the stroke in pixels; `None` is 2 % of the image's shorter side.

    Returns:
        A scribble with a stroke image (H, W), a non-empty subset of the mask.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, or `width` is not positive.
        MissingPackageError: scipy or scikit-image is not installed.
    """
    mask = _checked(mask)
    width = _positive("width", _WIDTH * min(mask.shape) if width is None else width)
    components, _ = _ndimage().label(mask, structure=np.ones((3, 3)))
    component = components == components[mask][generator.integers(mask.sum())]
    medial_axis = need("skimage.morphology", "medial_scribble", "eval").medial_axis
    canvas = np.zeros(mask.shape, dtype=bool)
    x, y = np.array(_longest_path(medial_axis(component, rng=generator))).T
    canvas[y, x] = True
    return Scribble(_dilate(canvas, width / 2) & component)


def dilate_mask(mask: npt.NDArray[Any], radius: float) -> npt.NDArray[np.bool_]:
    """Dilate a mask by a disc.

    Args:
        mask: (H, W), non-zero in the object.
        radius: radius of the disc in pixels.

    Returns:
        (H, W) bool.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, or `radius` is not positive.
        MissingPackageError: scipy is not installed.
    """
    distance = _ndimage().distance_transform_edt(~_checked(mask))
    return np.asarray(distance <= _positive("radius", radius))


def erode_mask(mask: npt.NDArray[Any], radius: float) -> npt.NDArray[np.bool_]:
    """Erode a mask by a disc; if no pixel would remain, the innermost ones do.

    The border of the image does not erode the mask, since the object continues beyond it.

    Args:
        mask: (H, W), non-zero in the object.
        radius: radius of the disc in pixels.

    Returns:
        (H, W) bool.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, or `radius` is not positive.
        MissingPackageError: scipy is not installed.
    """
    mask, radius = _checked(mask), _positive("radius", radius)
    if mask.all():  # without a background there is no distance to it
        return np.array(mask)
    distance = _ndimage().distance_transform_edt(mask)
    return np.asarray(distance > min(radius, np.nextafter(distance.max(), 0)))


def shift_mask(mask: npt.NDArray[Any], dx: int, dy: int) -> npt.NDArray[np.bool_]:
    """Shift a mask; pixels that leave the image are lost.

    Args:
        mask: (H, W), non-zero in the object.
        dx: shift to the right in pixels.
        dy: shift down in pixels.

    Returns:
        (H, W) bool.

    Raises:
        AnnotationError: the mask is not two-dimensional or is empty, or all of it leaves the image.
    """
    moved = _moved(_checked(mask), dx, dy)
    if not moved.any():
        raise AnnotationError(f"dx, dy: ({dx}, {dy}) moves all of the object out of the image.")
    return moved


def _inaccurate(
    mask: npt.NDArray[np.bool_], kind: str, generator: np.random.Generator, amount: float
) -> npt.NDArray[np.bool_]:
    pixels = max(1.0, _positive("amount", amount) * float(np.sqrt(mask.sum())))
    if kind == "dilated":
        return dilate_mask(mask, pixels)
    if kind == "eroded":
        return erode_mask(mask, pixels)
    first = generator.uniform(0.0, 2 * np.pi)
    for angle in first + np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS:
        moved = _moved(mask, round(pixels * np.cos(angle)), round(pixels * np.sin(angle)))
        if moved.any():
            return moved
    raise AnnotationError(f"amount: {amount} moves all of the object out of the image, whatever the direction.")


def _moved(mask: npt.NDArray[np.bool_], dx: int, dy: int) -> npt.NDArray[np.bool_]:
    moved = np.zeros_like(mask)
    height, width = mask.shape
    if abs(dx) < width and abs(dy) < height:
        moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = mask[
            max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
        ]
    return moved


def _longest_path(skeleton: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pixels (x, y) of the longest shortest path between two pixels of a tree-like skeleton of eight neighbours.

    Breadth-first search from any pixel ends at one end of it, and a second one from there at the other.
    """
    pixels = {(int(x), int(y)) for y, x in np.argwhere(skeleton)}
    end = min(pixels)
    for _ in range(2):
        parents: dict[tuple[int, int], tuple[int, int] | None] = {end: None}
        queue = deque([end])
        while queue:
            x, y = end = queue.popleft()
            for step in _NEIGHBOURS:
                neighbour = (x + step[0], y + step[1])
                if neighbour in pixels and neighbour not in parents:
                    parents[neighbour] = end
                    queue.append(neighbour)
    path, at = [], cast("tuple[int, int] | None", end)
    while at is not None:
        path.append(at)
        at = parents[at]
    return path


def _positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise AnnotationError(f"{name}: expected a positive number, got {value}.")
    return value


def _ndimage() -> Any:
    return need("scipy.ndimage", "this kind of annotation", "eval")


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
    """Dilate an (H, W) mask by a disc of a radius in pixels."""
    height, width = canvas.shape
    reach = int(min(radius, max(height, width)))
    grown = np.array(canvas)
    for dy in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        span = min(int(np.sqrt(max(radius**2 - dy**2, 0.0))), width - 1)
        for dx in range(-span, span + 1):
            target = grown[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
            target |= canvas[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return grown
