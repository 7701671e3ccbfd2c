"""Detection of numbers that are not pixel coordinates: fractions of an image, and bare lists of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.errors import AnnotationError
from diffup.inputs.images import describe

_SLACK = 1e-3  # how far fractions may leave [0, 1]: programs round
_TINY = 3  # side in pixels of an image in which coordinates may well lie within the first pixel


def check_not_fractions(table: npt.NDArray[np.float64], kind: str) -> None:
    """Refuse numbers that can only be fractions of an image: all within [0, 1], and not all of them whole.

    Args:
        table: (N, 2 | 4) coordinates of one annotation.
        kind: kind of the annotation in error messages, such as "Box".

    Raises:
        AnnotationError: the numbers are fractions.
    """
    if _within_first_pixel(table) and (table != np.rint(table)).any():
        raise AnnotationError(f"{kind}: {_fractions(table, kind)}.")


def check_beyond_first_pixel(table: npt.NDArray[np.float64], kind: str, size: tuple[int, int], argument: str) -> None:
    """Refuse whole numbers that all lie within the first pixel of a larger image; a single position is a click.

    Args:
        table: (N, 2 | 4) coordinates of one annotation in pixels.
        kind: kind of the annotation in error messages, such as "Box".
        size: (height, width) of the annotated image in pixels.
        argument: name of the argument in error messages.

    Raises:
        AnnotationError: all of them lie within the first pixel.
    """
    if min(size) > _TINY and table.size > 2 and _within_first_pixel(table):
        shape = f" (the image has {size[1]} x {size[0]} pixels, width x height)"
        raise AnnotationError(f"{argument}: {_fractions(table, kind)}{shape}.")


def kind_of_numbers(value: object) -> str:
    """Guess what a bare list or tuple of numbers is meant to be.

    Args:
        value: value that was given as an annotation.

    Returns:
        Text for an error message that shows how to write it as a `Box`, `Points` or `Scribble`; empty if `value` is
        something else.
    """
    if not isinstance(value, list | tuple):
        return ""
    rows = value if value and all(isinstance(row, list | tuple) for row in value) else [value]
    if not all(isinstance(number, int | float | np.number) for row in rows for number in row):
        return ""
    lengths = {len(row) for row in rows}
    if lengths == {4}:
        boxes = f"Box({', '.join(map(str, rows[0]))})" if len(rows) == 1 else f"Box({_short(rows)})"
        return f"{describe(value)} are numbers without their kind. For a box of one image give {boxes}."
    if lengths == {2}:
        return (
            f"{describe(value)} are numbers without their kind. For clicks on one image give Points({_short(rows)}), "
            f"for a stroke Scribble({_short(rows)})."
        )
    return ""


def _short(rows: list[Any] | tuple[Any, ...]) -> str:
    return str(list(rows)) if len(rows) <= 2 else f"[{rows[0]}, {rows[1]}, ...]"


def _within_first_pixel(table: npt.NDArray[np.float64]) -> bool:
    return bool(table.min() >= -_SLACK and table.max() <= 1 + _SLACK)


def _fractions(table: npt.NDArray[np.float64], kind: str) -> str:
    shown = ", ".join(f"{number:g}" for number in table[0])
    edges = " Give (left, top, right, bottom)" if kind == "Box" else " Give (x, y)"
    lie = "and the rest lie" if len(table) > 1 else "lies"
    return (
        f"({shown}) {lie} within the first pixel of the image. Are they fractions of it? Coordinates are pixels: "
        f"multiply x by the image's width and y by its height.{edges}"
    )
