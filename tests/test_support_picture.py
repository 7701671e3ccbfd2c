"""Pictures of supports show the annotation as it was given, not the weights that come of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffup.errors import AnnotationError
from diffup.inputs.annotations import Annotation, Box, Mask, Points, Scribble
from diffup.inputs.support_picture import draw_annotation
from diffup.utils.pictures import GREEN, WIDEST

HEIGHT, WIDTH = 100, 160


def image(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), 120, dtype=np.uint8)


def drawn(annotation: Annotation, height: int = HEIGHT) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that differ from the image, and those in full green."""
    picture = draw_annotation(image(), annotation, height)
    return (picture != 120).any(axis=2), (picture == GREEN).all(axis=2)


def frame(left: int, top: int, right: int, bottom: int, margin: int, thickness: int) -> np.ndarray:
    """A rectangle's frame, `margin` pixels within it."""
    area = np.zeros((HEIGHT, WIDTH), dtype=bool)
    area[top + margin : bottom - margin, left + margin : right - margin] = True
    inner = margin + thickness
    area[top + inner : bottom - inner, left + inner : right - inner] = False
    return area


def test_a_box_is_a_rectangle_with_nothing_in_it() -> None:
    changed, green = drawn(Box(20, 30, 90, 80))
    np.testing.assert_array_equal(green, frame(20, 30, 90, 80, margin=0, thickness=2))
    np.testing.assert_array_equal(changed, frame(20, 30, 90, 80, margin=-1, thickness=4))  # a dark and a light edge


def test_overlapping_boxes_are_two_rectangles() -> None:
    _, green = drawn(Box([(10, 10, 80, 60), (40, 30, 140, 90)]))
    assert green[59, 20] and green[59, 70] and green[45, 40] and green[30, 60], "the lines within the other box too"


def test_what_is_not_the_class_is_red() -> None:
    """Where it were green if it were the class; what is the class stays green."""
    box, clicks, stroke = (20, 20, 60, 50), [(30, 40)], [(20, 40), (60, 30)]
    pairs = (
        (Box(box), Box(100, 60, 140, 90, negative=box)),
        (Points(clicks), Points([(120, 80)], negative=clicks)),
        (Scribble(stroke), Scribble([(100, 80), (140, 70)], negative=stroke)),
    )
    for alone, both in pairs:
        green, mixed = (draw_annotation(image(), annotation, HEIGHT).astype(int) for annotation in (alone, both))
        shown, left = (green != 120).any(axis=2), slice(None, WIDTH // 2)
        np.testing.assert_array_equal((mixed != 120).any(axis=2)[:, left], shown[:, left])
        marked = green[..., 1] - green[..., 0] > 50
        assert marked.any() and (mixed[..., 0] - mixed[..., 1] > 50)[marked].all()
        assert (mixed[..., 1] - mixed[..., 0] > 50)[:, WIDTH // 2 :].any()


def test_a_box_is_scaled_with_its_image() -> None:
    picture = draw_annotation(image(), Box(20, 30, 90, 80), 3 * HEIGHT)
    rows, columns = np.nonzero((picture == GREEN).all(axis=2))
    assert picture.shape == (3 * HEIGHT, 3 * WIDTH, 3)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (60, 90, 270, 240)


def test_clicks_are_dots() -> None:
    changed, _ = drawn(Points([(30, 40), (120, 70)]))
    for x, y in ((30, 40), (120, 70)):
        assert changed[y, x] and not changed[y, x + 6] and not changed[y - 6, x]
    assert changed.sum() < 2 * 11**2
    wide, _ = drawn(Points([(30, 40)], radius=20))
    assert wide[40, 10:51].all() and not wide[40, 53]


def test_a_scribble_is_its_strokes() -> None:
    changed, _ = drawn(Scribble([(20, 50), (140, 50)]))
    assert changed[50, 20:141].all() and not changed[:42].any() and not changed[58:].any()
    painted = np.zeros((HEIGHT, WIDTH), dtype=bool)
    painted[10:14, 5:150] = True
    changed, _ = drawn(Scribble(painted))
    np.testing.assert_array_equal(changed[:, 30], [9 <= row < 15 for row in range(HEIGHT)])


def test_a_mask_is_outlined() -> None:
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[30:80, 20:90] = 1
    changed, green = drawn(Mask(mask))
    np.testing.assert_array_equal(green, frame(20, 30, 90, 80, margin=0, thickness=2))
    assert changed[31:79, 21:89].all()


def test_without_an_annotation_the_image_is_as_it_was() -> None:
    assert not drawn(None)[0].any()


def test_thin_marks_can_be_seen_in_a_small_picture() -> None:
    large = image(2000, 3200)
    for annotation in (Points([(1600, 1000)], radius=1), Scribble([(100, 1000), (3100, 1000)], width=1)):
        assert (draw_annotation(large, annotation, 100)[50, 80] != 120).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3)])
def test_any_image_can_be_drawn(shape: tuple[int, int]) -> None:
    height, width = shape
    mask = np.zeros(shape, dtype=bool)
    mask[-1, -1] = True
    for annotation in (Box(0, 0, width, height), Points([(width - 1, height - 1)]), Scribble([(0, 0)]), Mask(mask)):
        picture = draw_annotation(image(*shape), annotation, 40)
        assert picture.shape[0] <= 40 and picture.shape[1] <= WIDEST * 40


def test_an_annotation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(AnnotationError, match=r"annotation\[0\].*leaves its image"):
        draw_annotation(image(), Box(0, 0, WIDTH + 1, 10))
