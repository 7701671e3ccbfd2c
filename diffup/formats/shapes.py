"""The shapes that labelling tools draw, and the annotation that they make together.

Positions are (x, y) in pixels from the corner of the first pixel, as these tools count them. `Scribble` and `Points`
count from its centre, so what they get is moved by half a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.coco import decode_segmentation
from diffup.formats.supports import check_pixels, cut_box, unite, with_area
from diffup.inputs.annotations import Annotation
from diffup.inputs.images import describe

Kind: TypeAlias = Literal["mask", "box", "scribble", "points"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Reading: TypeAlias = tuple[Kind, Any]
"""The kind of annotation that a shape makes, and the shape: an (H, W) bool mask, a box, or (N, 2) positions."""

Vertices: TypeAlias = npt.NDArray[np.float64]


def check_shape_types(chosen: Collection[str] | None, known: Mapping[str, Kind]) -> None:
    """Check that the shape types to read exist.

    Args:
        chosen: names of shape types, or None for all.
        known: the shape types of the format.

    Raises:
        FormatError: a name is unknown, or there is no list.
    """
    if isinstance(chosen, str) or not isinstance(chosen, Collection | None):
        raise FormatError(f"shape_types: expected a list of {', '.join(known)}, got {describe(chosen)}")
    unknown = sorted(map(str, set(chosen or ()) - set(known)))
    if unknown:
        raise FormatError(f"shape_types: {', '.join(unknown)} unknown; there are {', '.join(known)}")


def described(label: str, shape_types: Sequence[str] | None) -> str:
    """What is asked of a file, for the error message that it has no such thing.

    Args:
        label: label of the class.
        shape_types: names of shape types, or None for all.
    """
    return f"the label {label!r}" + ("" if shape_types is None else f" and the type {' or '.join(shape_types)}")


def numbers(value: Any, where: str, form: str = "[[x, y], ...]") -> Vertices:
    """Read positions.

    Args:
        value: pairs of numbers.
        where: name of the field in error messages.
        form: expected form in error messages.

    Returns:
        (N, 2) float64.

    Raises:
        FormatError: the value is no list of pairs of finite numbers.
    """
    try:
        vertices = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: expected {form}") from error
    if vertices.ndim != 2 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
        raise FormatError(f"{where}: expected {form} of finite numbers")
    return vertices


def number(value: Any, where: str) -> float:
    """Read a number, which may be a string.

    Raises:
        FormatError: the value is no finite number.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: expected a number, got {describe(value)}") from error
    if isinstance(value, bool) or not np.isfinite(found):
        raise FormatError(f"{where}: expected a finite number, got {describe(value)}")
    return found


def filled(vertices: Vertices, size: tuple[int, int], where: str) -> Reading:
    """The mask of a polygon.

    Args:
        vertices: (N, 2) vertices (x, y) in pixels.
        size: (height, width) of the image in pixels.
        where: name of the field in error messages.

    Raises:
        MarksNothing: there are fewer than three vertices.
        FormatError: a vertex lies far outside of the image.
        MissingPackageError: pycocotools is not installed.
    """
    return "mask", decode_segmentation([vertices.ravel().tolist()], size, where)


def framed(
    corners: tuple[float, float, float, float],
    degrees: float,
    pivot: tuple[float, float],
    size: tuple[int, int],
    where: str,
) -> Reading:
    """A rectangle: a box, or a mask if it is turned.

    Args:
        corners: left, top, right and bottom in pixels before it is turned.
        degrees: angle by which it is turned, clockwise.
        pivot: position (x, y) in pixels that it is turned around.
        size: (height, width) of the image in pixels.
        where: name of the rectangle in error messages.

    Raises:
        MarksNothing: it has no area within the image.
        FormatError: it leaves the image.
        MissingPackageError: it is turned, and pycocotools is not installed.
    """
    left, top, right, bottom = corners
    if degrees % 360 == 0:
        return "box", cut_box(corners, size, where)
    upright = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return filled(np.array(pivot) + (upright - pivot) @ _turn(degrees), size, where)


def rounded(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float, size: tuple[int, int], where: str
) -> Reading:
    """The mask of an ellipse: the pixels whose centres lie in it.

    Args:
        centre: its centre (x, y) in pixels, within the image.
        radii: its two radii in pixels, along x and y before it is turned.
        degrees: angle by which it is turned, clockwise.
        size: (height, width) of the image in pixels.
        where: name of the ellipse in error messages.

    Raises:
        FormatError: the centre lies outside of the image, or a radius is not above 0.
    """
    check_inside(np.array([centre]), size, where)
    if min(radii) <= 0:
        raise FormatError(f"{where}: the radii of an ellipse are above 0, got {radii[0]:g} and {radii[1]:g}")
    (x, y), reach = centre, max(radii)
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(size[1], int(x + reach) + 1), min(size[0], int(y + reach) + 1)
    rows, columns = np.mgrid[top:bottom, left:right] + 0.5
    along = np.stack([columns - x, rows - y], axis=-1) @ _turn(-degrees)
    with np.errstate(over="ignore"):  # of radii next to 0
        inside = ((along / radii) ** 2).sum(axis=-1) <= 1
    return pasted(inside, left, top, size, where)


def drawn(kind: Kind, vertices: Vertices, size: tuple[int, int], where: str) -> Reading:
    """A stroke ("scribble") or clicks ("points"), which lie in the image.

    Args:
        kind: "scribble" or "points".
        vertices: (N, 2) positions (x, y) in pixels.
        size: (height, width) of the image in pixels.
        where: name of the field in error messages.

    Raises:
        FormatError: a position lies outside of the image.
    """
    check_inside(vertices, size, where)
    return kind, vertices


def check_inside(vertices: Vertices, size: tuple[int, int], where: str) -> None:
    """Check that positions lie in the image.

    Raises:
        FormatError: one lies outside.
    """
    if (vertices < 0).any() or (vertices > (size[1], size[0])).any():
        raise FormatError(f"{where}: leave the image of {size[1]} x {size[0]} pixels")


def pasted(crop: npt.NDArray[np.bool_], left: int, top: int, size: tuple[int, int], where: str) -> Reading:
    """A mask from a part of it.

    Args:
        crop: (h, w) bool, the part.
        left: column of the part's first pixel in the image.
        top: row of the part's first pixel in the image.
        size: (height, width) of the image in pixels.
        where: name of the field in error messages.

    Raises:
        FormatError: the part leaves the image.
    """
    height, width = crop.shape
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise FormatError(f"{where}: leave the image of {size[1]} x {size[0]} pixels")
    canvas = np.zeros(size, dtype=bool)
    canvas[top : top + height, left : left + width] = crop
    return "mask", canvas


def together(
    readings: Iterable[Callable[[], Reading]], size: tuple[int, int], where: str, pixels: bool = True
) -> Annotation:
    """The annotation that the shapes of one image make together. Shapes without area are ignored if there are others.

    Args:
        readings: functions that read one shape each and raise `MarksNothing` if it has no area.
        size: (height, width) of the image in pixels.
        where: name of the image's record in error messages.
        pixels: whether the file states positions in pixels; strokes and clicks that all lie within the first pixel are
            then refused, since they must be fractions.

    Raises:
        FormatError: a shape is faulty, none has an area, or they are of several kinds.
    """
    read = with_area(readings)
    masks, boxes, strokes, clicks = ([item for what, item in read if what == kind] for kind in KINDS)
    for positions in (strokes, clicks) if pixels else ():
        check_pixels(np.concatenate(positions) if positions else (), size, f"{where}: points")
    centred = [np.clip(stroke - 0.5, 0.0, (size[1] - 1, size[0] - 1)) for stroke in strokes]
    points = [(float(x), float(y)) for one in clicks for x, y in np.maximum(one - 0.5, 0.0)]
    try:
        return unite(masks, boxes, where, centred, points)
    except FormatError as error:
        raise FormatError(f"{error}. Choose with shape_types=") from error


def _turn(degrees: float) -> npt.NDArray[np.float64]:
    """The matrix that turns rows (x, y) clockwise, where y is down."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
