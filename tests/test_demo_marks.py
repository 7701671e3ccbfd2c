"""What is drawn on the page becomes annotations, and what a browser sends is checked before it is used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from visits import drawing

from diffup import Box, Mask, Points, Scribble
from diffup.demo import marks
from diffup.demo.marks import TOOLS, Mark, read_drawing, read_mark, to_annotation, to_correction
from diffup.errors import AnnotationError

SIZE = (40, 80)


def annotate(tool: str, *drawn: dict[str, object]) -> object:
    """The annotation of marks on an image of `SIZE`."""
    chosen, read = read_drawing(drawing(tool, *drawn))
    return to_annotation(chosen, read, SIZE)


def test_clicks_are_points_at_whole_pixels() -> None:
    given = annotate("points", {"path": [[0.5, 0.25]]}, {"path": [[1, 1]]}, {"path": [[0, 0.99]], "negative": True})
    assert given == Points([(40, 10), (79, 39)], negative=[(0, 39)])


def test_a_drag_is_a_box_whatever_its_direction() -> None:
    forth = annotate("box", {"path": [[0.1, 0.1], [0.5, 0.55]]}, {"path": [[0.6, 0], [1, 1]], "negative": True})
    back = annotate(
        "box", {"path": [[0.5, 0.55], [0.3, 0.2], [0.1, 0.1]]}, {"path": [[1, 0], [0.6, 1]], "negative": True}
    )
    assert forth == back == Box([(8, 4, 40, 22)], negative=[(48, 0, 80, 40)])
    assert annotate("box", {"path": [[1, 1], [1, 1]]}) == Box(79, 39, 80, 40)  # at least a pixel


def test_lines_are_a_scribble() -> None:
    given = annotate("scribble", {"path": [[0.1, 0.1], [0.5, 0.5]]}, {"path": [[0.9, 0.9]], "negative": True})
    assert isinstance(given, Scribble) and given.width is None
    assert [line.tolist() for line in given.strokes] == [[[8, 4], [40, 20]]]
    assert [line.tolist() for line in given.negative] == [[[72, 36]]]


def test_an_outline_closes_itself_and_negative_ones_cut_out() -> None:
    around = {"path": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]}
    hole = {"path": [[0.5, 0.5], [0.6, 0.5], [0.6, 0.6], [0.5, 0.6]], "negative": True}
    given = annotate("outline", around, hole)
    assert isinstance(given, Mask)
    expected = np.zeros(SIZE, bool)
    expected[10:31, 20:61] = True
    expected[20:25, 40:49] = False
    assert (given.mask.numpy() == expected).all()
    with pytest.raises(AnnotationError, match="encloses nothing"):
        annotate("outline", {"path": [[0.1, 0.1], [0.5, 0.5]]})


def test_the_brush_paints_and_erases_in_turn() -> None:
    stroke, erase = (
        {"path": [[0, 0.5], [1, 0.5]], "width": 0.1},
        {"path": [[0.5, 0.5]], "width": 0.05, "negative": True},
    )
    given = annotate("brush", stroke, erase)
    assert isinstance(given, Mask)
    mask = given.mask.numpy() > 0
    assert mask[16:25, :36].all() and not mask[:16].any() and not mask[25:].any()  # 8 pixels wide, in row 20
    assert not mask[18:23, 40].any() and not mask[20, 38:43].any()
    assert mask.sum() == 9 * 80 - 13  # without a disc of radius 2
    with pytest.raises(AnnotationError, match="erased"):
        annotate("brush", erase, {**stroke, "negative": True}, {"path": [[0.5, 0.5]]}, {**stroke, "negative": True})


def test_the_whole_image_needs_no_marks() -> None:
    assert annotate("whole image") is None
    for tool in TOOLS:
        if tool != "whole image":
            for drawn in ((), ({"path": [[0.5, 0.5], [0.6, 0.6]], "negative": True},)):
                with pytest.raises(AnnotationError, match="Nothing is marked"):
                    annotate(tool, *drawn)


def test_marks_of_other_tools_do_not_count() -> None:
    both = [{"tool": "points", "path": [[0.5, 0.5]]}, {"tool": "box", "path": [[0.1, 0.1], [0.2, 0.2]]}]
    assert read_drawing(json.dumps({"tool": "box", "marks": both})) == ("box", [Mark("box", ((0.1, 0.1), (0.2, 0.2)))])
    assert read_drawing("") == read_drawing(None) == ("points", [])


def test_corrections_are_clicks_and_strokes() -> None:
    assert to_correction(Mark("points", ((0.5, 0.5),)), SIZE) == Points([(40, 20)])
    assert to_correction(Mark("points", ((0.5, 0.5),), negative=True), SIZE) == Points(negative=[(40, 20)])
    stroke = to_correction(Mark("scribble", ((0.5, 0.5), (0.6, 0.5)), negative=True), SIZE)
    assert isinstance(stroke, Scribble) and stroke.negative[0].tolist() == [[40, 20], [48, 20]]
    with pytest.raises(AnnotationError, match="clicks and strokes"):
        to_correction(Mark("box", ((0, 0), (1, 1))), SIZE)


HOSTILE = {
    "no object": "[]",
    "no JSON": "{",
    "a number": 5,
    "deep": "[" * 100_000,
    "an unknown tool": '{"tool": "guess", "marks": []}',
    "an unhashable tool": '{"tool": ["box"], "marks": []}',
    "no marks": '{"tool": "box"}',
    "too long": '{"tool": "box", "marks": []}' + " " * 2**21,
    "too many": json.dumps({"tool": "box", "marks": [{"tool": "box", "path": [[0, 0]]}] * 1001}),
    "no path": drawing("box", {}),
    "an empty path": drawing("box", {"path": []}),
    "a long path": drawing("scribble", {"path": [[0, 0]] * 2001}),
    "one coordinate": drawing("points", {"path": [[0.5]]}),
    "a text": drawing("points", {"path": [["0.5", 0.5]]}),
    "outside": drawing("points", {"path": [[0.5, 1.01]]}),
    "below zero": drawing("points", {"path": [[-0.01, 0.5]]}),
    "NaN": drawing("points", {"path": [[float("nan"), 0.5]]}),
    "infinity": drawing("points", {"path": [[float("inf"), 0.5]]}),
    "true": drawing("points", {"path": [[True, 0.5]]}),
    "a wide brush": drawing("brush", {"path": [[0.5, 0.5]], "width": 0.3}),
    "no brush": drawing("brush", {"path": [[0.5, 0.5]], "width": 0}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_browser_cannot_send_is_refused(name: str) -> None:
    with pytest.raises(AnnotationError):
        read_drawing(HOSTILE[name])


def test_a_mark_must_be_a_mapping() -> None:
    for value in (None, [], "box", {"tool": {}}, {"tool": None}):
        with pytest.raises(AnnotationError, match="expected one of points, box"):
            read_mark(value)
    assert read_mark({"tool": "points", "path": [(0, 1)], "other": 1}) == Mark("points", ((0.0, 1.0),))
    assert marks.MAX_MARKS == 1000
