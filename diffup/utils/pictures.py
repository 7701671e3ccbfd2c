"""Pictures from arrays: colour scales, tints, contours and labelled strips. Pure functions."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffup.utils.fonts import font_for, legend_key, legend_texts

Bytes: TypeAlias = npt.NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]

RED: Colour = (255, 60, 40)
"""Colour of what was found."""

GREEN: Colour = (40, 210, 80)
"""Colour of what was given."""

_GOLDEN = 0.5 * (5**0.5 - 1)  # turns of the hue by this part of the circle come near to each other latest

WIDEST = 8
"""Greatest width of a picture, relative to the height that is asked for."""

_LABEL_HEIGHT, _GAP = 18, 4
_COMMENT = 65_000  # bytes; JPEG allows 65533


def class_colours(count: int) -> list[Colour]:
    """Colours that stand out on dark and light photos: bright, and far apart in hue from their neighbours in the list.

    Args:
        count: number of colours, 0 to 256; all differ.

    Returns:
        Colours (red, green, blue), 0 to 255 each; the first is `RED`.
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in RED))
    colours = []
    for index in range(count):
        fade = 0.15 * (index // 8 % 4)  # neighbours in hue differ in saturation
        part = colorsys.hsv_to_rgb((hue + index * _GOLDEN) % 1, saturation - fade, value)
        colours.append((round(255 * part[0]), round(255 * part[1]), round(255 * part[2])))
    return colours


def tint(image: Bytes, mask: npt.NDArray[np.bool_], colour: Colour, alpha: float) -> Bytes:
    """Blend a colour over the masked pixels of an image, and draw the mask's contour.

    The contour has the full colour between a light and a dark edge, one of which stands out on any photo. Colour and
    light edge lie within the mask, the dark edge around it. An edge is 0.25 % of the image's shorter side wide, at
    least a pixel, and the colour twice that.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        colour: red, green and blue, 0 to 255.
        alpha: opacity of the colour within the contour, in [0, 1].

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(image)
    flat = Image.new("RGB", picture.size, colour)
    picture.paste(Image.blend(picture, flat, alpha), mask=Image.fromarray(mask))
    edge = max(1, round(0.0025 * min(mask.shape)))
    around = ~mask
    for line, part in (
        ("white", mask & spread(around, 3 * edge)),
        (colour, mask & spread(around, 2 * edge)),
        ("black", around & spread(mask, edge)),
    ):
        picture.paste(line, mask=Image.fromarray(part))
    return np.asarray(picture)


def add_legend(
    pixels: Bytes, entries: Sequence[tuple[str, tuple[int, int, int]]], names: Sequence[str] | None = None
) -> Image.Image:
    """Add a legend of names and their colours on white below a picture, in as many rows as the names need.

    A name that cannot be shown is replaced by a number, its position among the names
    (`diffup.utils.fonts.legend_texts`). The picture's `info["comment"]`, which Pillow writes into JPEG files, lists the
    names by these numbers.

    Args:
        pixels: picture, (H, W, 3) uint8.
        entries: pairs of a name and its colour (red, green, blue; 0 to 255); without any the picture has no legend.
        names: all names that pictures of this kind may show, so that a number means the same in each; by default those
            of the entries.
    """
    if not entries:
        return Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    places, left, row = [], 0, 0
    names = [name for name, _ in entries] if names is None else names
    text_of = dict(zip(names, legend_texts(names, legend_width(width)), strict=True))
    texts = [text_of[name] for name, _ in entries]
    fonts = [font_for(text) or ImageFont.load_default() for text in texts]
    for text, font in zip(texts, fonts, strict=True):
        need = _LABEL_HEIGHT + int(font.getlength(text)) + 3 * _GAP
        if left and left + need > width:
            left, row = 0, row + 1
        places.append((left, height + row * _LABEL_HEIGHT))
        left += need
    canvas = Image.new("RGB", (width, height + (row + 1) * _LABEL_HEIGHT), "white")
    canvas.paste(Image.fromarray(pixels))
    draw = ImageDraw.Draw(canvas)
    for (_, colour), text, font, (x, y) in zip(entries, texts, fonts, places, strict=True):
        draw.rectangle((x + 3, y + 3, x + _LABEL_HEIGHT - 4, y + _LABEL_HEIGHT - 4), fill=colour)
        draw.text((x + _LABEL_HEIGHT, y + 3), text, fill="black", font=font)
    key = "; ".join(f"{number} = {name}" for number, name in legend_key(names, legend_width(width)).items())
    if key:
        canvas.info["comment"] = key.encode("utf-8", "backslashreplace")[:_COMMENT]
    return canvas


def legend_width(width: int) -> int:
    """Widest name, in pixels, in the legend of a picture of a given width in pixels."""
    return width - _LABEL_HEIGHT - _GAP


def fitted_size(size: tuple[int, int], height: int) -> tuple[int, int]:
    """Return the (height, width) of a picture that is resized to a height, keeping its proportions.

    A picture more than `WIDEST` times as wide as high becomes `WIDEST * height` wide, and lower.

    Args:
        size: height and width of the picture in pixels.
        height: new height in pixels.
    """
    scale = min(height / size[0], WIDEST * height / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrink(values: npt.NDArray[np.float32], height: int) -> npt.NDArray[np.float32]:
    """Shrink values to a height with antialiasing, keeping their proportions; lower ones are unchanged.

    Args:
        values: (H, W) float32.
        height: greatest height in pixels.
    """
    if values.shape[0] <= height:
        return values
    width = max(1, round(values.shape[1] * height / values.shape[0]))
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def spread(mask: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.bool_]:
    """Dilate a mask by some pixels in all eight directions, in steps that double.

    Args:
        mask: (H, W) bool.
        reach: number of pixels.
    """
    done = 0
    while done < reach:
        step = min(done + 1, reach - done)
        for axis in (0, 1):
            before = np.moveaxis(mask, axis, 0)
            after = np.array(before)
            after[step:] |= before[:-step]
            after[:-step] |= before[step:]
            mask = np.moveaxis(after, 0, axis)
        done += step
    return mask
