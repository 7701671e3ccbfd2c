"""Panels with titles and legends; colours of classes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diffup.utils.panels import GREY, HEAT, SIGNED, Panel, Scale, stack, strip, with_legend
from diffup.utils.pictures import RED, class_colours


def test_scales_paint_their_stops_and_clip() -> None:
    np.testing.assert_array_equal(GREY.paint(np.array([[-1.0, 0.0, 0.2, 1.0, 9.0]]))[0, :, 0], [0, 0, 51, 255, 255])
    assert [tuple(colour) for colour in SIGNED.paint(np.array([[-1.0, 0.0, 1.0]]))[0]] == list(SIGNED.stops)
    half = Scale(HEAT.stops, high=0.5).paint(np.linspace(0, 0.5, len(HEAT.stops))[None])[0]
    assert [tuple(colour) for colour in half] == list(HEAT.stops)


def test_a_strip_has_titles_pictures_and_legends() -> None:
    red = np.full((10, 20, 3), (200, 0, 0), dtype=np.uint8)
    plain = np.asarray(strip([Panel("one", red), Panel("two", red)], 40))
    assert plain.shape == (18 + 40, 2 * 80 + 4, 3)
    assert (plain[18:, :80] == (200, 0, 0)).all() and (plain[18:, 80:84] == 255).all()
    assert (plain[:18, :80] < 128).any() and (plain[:18, 84:] < 128).any()
    named = np.asarray(strip([Panel("one", red, "words"), Panel("two", red, GREY)], 40))
    np.testing.assert_array_equal(named[:58], plain)
    assert len(named) == len(plain) + 16 and (named[58:, :80] < 128).any()
    ramp = named[66, 100:150, 0].astype(int)
    assert (np.diff(ramp) >= 0).all() and ramp[0] < 64 and ramp[-1] > 128


def test_a_legend_shows_the_whole_scale_and_its_numbers() -> None:
    scale = Scale(((255, 0, 0), (0, 0, 255)), low=-2, high=0.25, ends=("less", "more"))
    assert scale.labels() == ("-2 less", "more 0.25")
    picture = np.asarray(with_legend(stack([strip([Panel("", np.zeros((4, 4, 3), np.uint8))], 200)]), scale))
    bar = picture[-8]
    for colour in scale.stops:
        assert (bar == colour).all(axis=1).any()
    narrow = with_legend(strip([Panel("", np.zeros((40, 4, 3), np.uint8))], 40), scale)
    assert narrow.width == 4, "no room for a scale, and no error"


@pytest.mark.parametrize("title", ["a very long title indeed, longer than its picture", "猫犬", "собака", "a\nb", ""])
def test_titles_stay_above_their_picture(title: str) -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    picture = np.asarray(strip([Panel(title, pixels), Panel("", pixels)], 40))
    assert (picture[:18, 40:] == 255).all()
    assert (picture[:18, :40] < 255).any() == bool(title)


def test_class_colours_are_bright_and_differ() -> None:
    colours = class_colours(255)
    assert colours[0] == RED and len(set(colours)) == 255 and colours[:3] == class_colours(3)
    assert all(max(colour) == 255 for colour in colours)
    assert min(np.abs(np.subtract(a, b)).max() for a, b in pairwise(colours)) > 60
