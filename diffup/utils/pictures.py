"""Pictures from arrays: colour scales, tints, contours and labelled strips. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffup.utils.fonts import font_for, legend_key, legend_texts

Bytes: TypeAlias = npt.NDArray[np.uint8]

_HEAT = ((0, 0, 0), (60, 20, 110), (190, 55, 80), (250, 150, 30), (255, 255, 190))
_SIGNED = ((40, 80, 200), (255, 255, 255), (200, 40, 40))
_LABEL_HEIGHT = 18
WIDEST = 8
"""Greatest width of a picture in a strip, relative to the strip's height."""

_GAP = 4
_COMMENT = 65_000  # bytes; JPEG allows 65533


def grey(values: npt.NDArray[Any]) -> Bytes:
    """Turn (H, W) values in [0, 1] into (H, W, 3) grey."""
    return _scale(values, ((0, 0, 0), (255, 255, 255)))


def heat(values: npt.NDArray[Any]) -> Bytes:
    """Turn (H, W) values in [0, 1] into (H, W, 3) colours: black, violet, red, orange, pale yellow."""
    return _scale(values, _HEAT)


def signed(values: npt.NDArray[Any]) -> Bytes:
    """Turn (H, W) values in [-1, 1] into (H, W, 3) colours: blue below zero, white at zero, red above."""
    return _scale((np.asarray(values) + 1) / 2, _SIGNED)


def tint(image: Bytes, mask: npt.NDArray[np.bool_], colour: tuple[int, int, int], alpha: float) -> Bytes:
    """Blend a colour over the masked pixels of an image, and draw the mask's contour in full colour.

    The contour lies within the mask; its width is 0.4 % of the image's shorter side, at least a pixel.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        colour: red, green and blue, 0 to 255.
        alpha: opacity of the colour within the contour, in [0, 1].

    Returns:
        (H, W, 3) uint8.
    """
    flat = Image.new("RGB", (mask.shape[1], mask.shape[0]), colour)
    picture = Image.fromarray(image)
    picture.paste(Image.blend(picture, flat, alpha), mask=Image.fromarray(mask))
    contour = mask & _spread(~mask, max(1, round(0.004 * min(mask.shape))))
    picture.paste(flat, mask=Image.fromarray(contour))
    return np.asarray(picture)


def strip(pictures: Sequence[tuple[str, Bytes]], height: int) -> Image.Image:
    """Set labelled pictures side by side on white.

    Args:
        pictures: pairs of a label and an (H, W, 3) uint8 image of any size.
        height: height in pixels that each picture is resized to, keeping its proportions; a picture more than `WIDEST`
            times as wide as high becomes `WIDEST * height` wide, and lower.
    """
    resized = []
    for label, pixels in pictures:
        scale = min(height / pixels.shape[0], WIDEST * height / pixels.shape[1])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        method = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST
        resized.append((label, Image.fromarray(pixels).resize(size, method)))
    total = sum(picture.width + _GAP for _, picture in resized) - _GAP
    canvas = Image.new("RGB", (total, height + _LABEL_HEIGHT), "white")
    draw, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(), 0
    for label, picture in resized:
        canvas.paste(picture, (left, _LABEL_HEIGHT))
        draw.text((left + 2, 3), label, fill="black", font=font)
        left += picture.width + _GAP
    return canvas


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


def _scale(values: npt.NDArray[Any], stops: Sequence[tuple[int, int, int]]) -> Bytes:
    """Map (H, W) values in [0, 1] to (H, W, 3) uint8 by a piecewise linear colour scale."""
    position = np.linspace(0.0, 1.0, len(stops))
    clipped = np.clip(np.asarray(values, dtype=np.float32), 0.0, 1.0)
    channels = [np.interp(clipped, position, [stop[channel] for stop in stops]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _spread(mask: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.bool_]:
    """Dilate an (H, W) mask by `reach` pixels in all eight directions, in steps that double."""
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
