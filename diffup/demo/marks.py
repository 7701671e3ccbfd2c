"""What is drawn in the browser: tools and their marks, which become annotations of examples and corrections of results.

A browser sends marks as JSON. Positions are fractions of the picture, so that they do not depend on the size at which
it is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from diffup.errors import AnnotationError
from diffup.inputs.annotations import Annotation, Box, Mask, Points, Scribble
from diffup.inputs.strokes import mark_polyline

MAX_MARKS, MAX_VERTICES = 1000, 2000
"""Maximum number of marks on a picture, and of positions of one mark."""

_MAX_TEXT = 2**21  # characters of JSON
_BRUSH, _WIDEST = 0.05, 0.2  # default and greatest width of the brush, as a fraction of the picture's longer side


@dataclass(frozen=True)
class Mark:
    """A click, a stroke, a box or a line around something.

    Attributes:
        tool: name of the tool, one of `TOOLS`.
        path: its positions (x, y) as fractions of the picture's width and height, in [0, 1].
        negative: whether it marks what is not the class.
        width: width of the brush, as a fraction of the picture's longer side, in (0, 0.2].
    """

    tool: str
    path: tuple[tuple[float, float], ...]
    negative: bool = False
    width: float = _BRUSH


def read_drawing(text: object) -> tuple[str, list[Mark]]:
    """Read what the canvas of an example sends.

    Args:
        text: JSON of an object with `tool`, the chosen tool, and `marks`, a list as `read_mark` takes them.

    Returns:
        The chosen tool, and the marks that were made with it.

    Raises:
        AnnotationError: it is not such JSON.
    """
    if not text:
        return "points", []
    try:
        value = json.loads(text) if isinstance(text, str) and len(text) <= _MAX_TEXT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not _is_tool(value.get("tool")) or not isinstance(value.get("marks"), list):
        raise AnnotationError("What is drawn cannot be read: expected a tool and its marks. Load the page again.")
    if len(value["marks"]) > MAX_MARKS:
        raise AnnotationError(f"There are {len(value['marks'])} marks, more than {MAX_MARKS}: remove some.")
    marks = [read_mark(item) for item in value["marks"]]
    return value["tool"], [mark for mark in marks if mark.tool == value["tool"]]


def read_mark(value: object) -> Mark:
    """Read one mark.

    Args:
        value: mapping with the attributes of a `Mark`; `negative` and `width` may be missing.

    Raises:
        AnnotationError: the tool is unknown, or the path is no list of positions in the picture.
    """
    if not isinstance(value, Mapping) or not _is_tool(value.get("tool")):
        raise AnnotationError(f"tool: expected one of {', '.join(TOOLS)}. Load the page again.")
    path, width = value.get("path"), value.get("width", _BRUSH)
    if not isinstance(path, list | tuple) or not 0 < len(path) <= MAX_VERTICES:
        raise AnnotationError(f"path: expected 1 to {MAX_VERTICES} positions. Draw a shorter line.")
    if not all(isinstance(at, list | tuple) and len(at) == 2 and all(map(_is_fraction, at)) for at in path):
        raise AnnotationError("path: expected positions (x, y) in the picture, as fractions from 0 to 1.")
    if not _is_fraction(width) or not 0 < width <= _WIDEST:
        raise AnnotationError(f"width: expected a fraction of the picture above 0 and up to {_WIDEST}.")
    places = tuple((float(x), float(y)) for x, y in path)
    return Mark(value["tool"], places, bool(value.get("negative")), float(width))


def to_annotation(tool: str, marks: Sequence[Mark], size: tuple[int, int]) -> Annotation:
    """Convert the marks of one tool to an annotation.

    Args:
        tool: name of the tool, one of `TOOLS`.
        marks: marks that were made with it.
        size: (height, width) of the image in pixels.

    Raises:
        AnnotationError: the tool is unknown, or nothing of the class is marked.
    """
    if tool not in TOOLS:
        raise AnnotationError(f"tool={tool!r}: expected one of {', '.join(TOOLS)}")
    if tool != "whole image" and not any(not mark.negative for mark in marks):
        raise AnnotationError(
            "Nothing is marked: click on the object, draw a box, a scribble or a line around it, or choose 'whole "
            "image' if it is enough to know that the image shows the class."
        )
    return _KINDS[tool](marks, size)


def to_correction(mark: Mark, size: tuple[int, int]) -> Points | Scribble:
    """Convert a mark on a result to a correction: a click, or a stroke.

    Args:
        mark: mark of the tool `points` or `scribble`.
        size: (height, width) of the photo in pixels.

    Raises:
        AnnotationError: it is of another tool.
    """
    if mark.tool not in ("points", "scribble"):
        raise AnnotationError(f"tool={mark.tool!r}: a result is corrected by clicks and strokes")
    return _points([mark], size) if mark.tool == "points" else _scribble([mark], size)


def _is_tool(value: object) -> bool:
    return isinstance(value, str) and value in TOOLS


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _pixels(mark: Mark, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Whole pixels under the positions of a mark: the centre of a pixel has whole coordinates."""
    height, width = size
    return [(min(math.floor(x * width), width - 1), min(math.floor(y * height), height - 1)) for x, y in mark.path]


def _points(marks: Sequence[Mark], size: tuple[int, int]) -> Points:
    """The clicks of several marks, of each the first position."""
    both = [[_pixels(mark, size)[0] for mark in marks if mark.negative is negative] for negative in (False, True)]
    return Points(both[0], negative=both[1])


def _scribble(marks: Sequence[Mark], size: tuple[int, int]) -> Scribble:
    both = [[_pixels(mark, size) for mark in marks if mark.negative is negative] for negative in (False, True)]
    return Scribble(both[0], negative=both[1])


def _boxes(marks: Sequence[Mark], size: tuple[int, int]) -> Box:
    """Boxes whose corners are the first and the last position of each mark; each has at least one pixel."""
    both: tuple[list[tuple[int, int, int, int]], ...] = ([], [])
    for mark in marks:
        (x0, x1), (y0, y1) = (sorted((mark.path[0][axis], mark.path[-1][axis])) for axis in (0, 1))
        left, right = _edges(x0, x1, size[1])
        top, bottom = _edges(y0, y1, size[0])
        both[mark.negative].append((left, top, right, bottom))
    return Box(both[0], negative=both[1])


def _edges(low: float, high: float, length: int) -> tuple[int, int]:
    first = min(math.floor(low * length), length - 1)
    return first, max(first + 1, math.ceil(high * length))


def _outline(marks: Sequence[Mark], size: tuple[int, int]) -> Mask:
    """What the lines enclose, each closed from its end to its start, in their order; negative ones cut out."""
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for mark in marks:
        corners = _pixels(mark, size)
        if len(corners) > 2:
            draw.polygon(corners, fill=not mark.negative)
    return _mask(np.asarray(canvas), "The line encloses nothing: draw it around the object.")


def _brush(marks: Sequence[Mark], size: tuple[int, int]) -> Mask:
    """All painted pixels, in the order of painting; negative strokes erase."""
    mask = np.zeros(size, dtype=bool)
    for mark in marks:
        stroke = np.zeros(size, dtype=bool)
        mark_polyline(stroke, np.array(_pixels(mark, size), dtype=np.float64), max(0.5, mark.width * max(size) / 2))
        mask = mask & ~stroke if mark.negative else mask | stroke
    return _mask(mask, "All paint is erased: paint over the object.")


def _mask(mask: npt.NDArray[np.bool_], message: str) -> Mask:
    if not mask.any():
        raise AnnotationError(message)
    return Mask(mask)


_KINDS: dict[str, Callable[[Sequence[Mark], tuple[int, int]], Annotation]] = {
    "points": _points,
    "box": _boxes,
    "scribble": _scribble,
    "outline": _outline,
    "brush": _brush,
    "whole image": lambda marks, size: None,
}

TOOLS = {
    "points": "Click on the object; right-click or Shift-click on what is not it.",
    "box": "Drag a box around the object; with the right button or Shift around what is not it.",
    "scribble": "Draw strokes over the object; with the right button or Shift over what is not it.",
    "outline": "Draw a line around the object; with the right button or Shift around what to cut out.",
    "brush": "Paint all pixels of the object; the right button or Shift erases.",
    "whole image": "Nothing to draw: the image shows the class.",
}
"""The tools with which an example is annotated, and how to use them."""
