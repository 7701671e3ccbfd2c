"""Titled panels side by side, each with a legend below it: a colour scale with its numbers, or a line of text."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffup.utils.fonts import Font, fitting_text, font_for
from diffup.utils.pictures import Bytes, fitted_size

GAP = 4
"""Distance between panels in pixels."""

_TITLE, _LEGEND = 18, 16  # heights of the rows of text
_BAR = 8  # height of a colour scale


@dataclass(frozen=True)
class Scale:
    """A piecewise linear colour scale.

    Attributes:
        stops: colours (red, green, blue; 0 to 255) at equal distances, from the least value to the greatest.
        low: value of the first colour.
        high: value of the last colour, above `low`.
        ends: words for the first and the last colour, which the legend shows beside the numbers.
    """

    stops: tuple[tuple[int, int, int], ...]
    low: float = 0.0
    high: float = 1.0
    ends: tuple[str, str] = ("", "")

    def paint(self, values: npt.NDArray[Any]) -> Bytes:
        """Turn (H, W) values into (H, W, 3) uint8 colours; values beyond the ends have the colours of the ends."""
        position = np.linspace(self.low, self.high, len(self.stops))
        values = np.asarray(values, dtype=np.float32)
        channels = [np.interp(values, position, [stop[channel] for stop in self.stops]) for channel in range(3)]
        pixels: Bytes = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
        return pixels

    def labels(self) -> tuple[str, str]:
        """Texts of the first and the last colour."""
        low, high = (f"{value:.3g}" for value in (self.low, self.high))
        return f"{low} {self.ends[0]}".strip(), f"{self.ends[1]} {high}".strip()


GREY = Scale(((0, 0, 0), (255, 255, 255)))
"""From black (0) to white (1)."""

HEAT = Scale(((0, 0, 0), (60, 20, 110), (190, 55, 80), (250, 150, 30), (255, 255, 190)))
"""Black, violet, red, orange, pale yellow, from 0 to 1."""

SIGNED = Scale(((40, 80, 200), (255, 255, 255), (200, 40, 40)), low=-1.0)
"""From blue (-1) over white (0) to red (1)."""


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture with a title above it and a legend below it.

    Attributes:
        title: text above the picture.
        pixels: (H, W, 3) uint8, of any size.
        legend: what the colours mean: a scale, or a line of text; nothing if it is empty.
    """

    title: str
    pixels: Bytes
    legend: Scale | str = ""


def strip(panels: Sequence[Panel], height: int) -> Image.Image:
    """Set panels side by side on white.

    Args:
        panels: the panels; without a legend in any of them there is no row for it.
        height: height in pixels that each picture is resized to, keeping its proportions (`fitted_size`).
    """
    pictures = [_resized(panel.pixels, height) for panel in panels]
    below = _LEGEND if any(panel.legend for panel in panels) else 0
    total = sum(picture.width + GAP for picture in pictures) - GAP
    canvas = Image.new("RGB", (total, _TITLE + height + below), "white")
    draw, left = ImageDraw.Draw(canvas), 0
    for panel, picture in zip(panels, pictures, strict=True):
        _write(draw, panel.title, (left, 3), picture.width)
        canvas.paste(picture, (left, _TITLE))
        _draw_legend(canvas, panel.legend, (left, _TITLE + height), picture.width)
        left += picture.width + GAP
    return canvas


def with_legend(picture: Image.Image, legend: Scale | str) -> Image.Image:
    """Add a legend below a picture.

    Args:
        picture: RGB picture.
        legend: a scale, or a line of text.
    """
    canvas = Image.new("RGB", (picture.width, picture.height + _LEGEND), "white")
    canvas.paste(picture)
    _draw_legend(canvas, legend, (0, picture.height), picture.width)
    return canvas


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Set pictures one above the other on white, aligned at the left."""
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def _resized(pixels: Bytes, height: int) -> Image.Image:
    size = fitted_size((pixels.shape[0], pixels.shape[1]), height)
    method = Image.Resampling.BILINEAR if size[0] < pixels.shape[0] else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize(size[::-1], method)


def _draw_legend(canvas: Image.Image, legend: Scale | str, at: tuple[int, int], width: int) -> None:
    """Draw a legend of a width at (left, top)."""
    if isinstance(legend, Scale):
        _draw_scale(canvas, legend, at, width)
    else:
        _write(ImageDraw.Draw(canvas), legend, (at[0], at[1] + 2), width)


def _write(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], width: int) -> None:
    """Write a text at (left, top), cut to a width; one that no font has is written as Python escapes it."""
    shown = fitting_text(text, width - GAP)
    draw.text((at[0] + 2, at[1]), shown, fill="black", font=font_for(shown) or _plain())


def _draw_scale(canvas: Image.Image, scale: Scale, at: tuple[int, int], width: int) -> None:
    """Draw a colour scale of a width at (left, top), with its ends' texts to the left and right of it."""
    left, top = at
    draw, (low, high), font = ImageDraw.Draw(canvas), scale.labels(), _plain()
    before, after = (math.ceil(font.getlength(text)) + GAP for text in (low, high))
    draw.text((left + 2, top + 2), low, fill="black", font=font)
    draw.text((left + width - after + 2, top + 2), high, fill="black", font=font)
    length = width - before - after - 2 * GAP
    if length > 0:
        ramp = np.linspace(scale.low, scale.high, length)[None].repeat(_BAR, axis=0)
        canvas.paste(Image.fromarray(scale.paint(ramp)), (left + before + GAP, top + (_LEGEND - _BAR) // 2))


@functools.cache
def _plain() -> Font:
    return ImageFont.load_default()
