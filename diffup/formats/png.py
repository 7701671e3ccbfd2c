"""Label maps as PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import FormatError
from diffup.formats.checks import as_labels
from diffup.utils.files import checked_ending, replacing

Colour = tuple[int, int, int]


def voc_palette(count: int = 256) -> list[Colour]:
    """The colours of PASCAL VOC's label maps, black (the background) first.

    Args:
        count: number of colours, 1 to 256.

    Returns:
        Colours (red, green, blue), 0 to 255 each.
    """
    return [(_spread(i), _spread(i >> 1), _spread(i >> 2)) for i in range(count)]


def write_label_png(
    path: str | os.PathLike[str], labels: npt.ArrayLike, palette: Sequence[Colour] | None = None
) -> Path:
    """Write a label map as an indexed PNG file: pixel values are labels, and viewers show the palette's colours.

    Args:
        path: file to write, ending in .png; an older file is replaced, as a whole or not at all.
        labels: (H, W) integers from 0 (background) to 255.
        palette: colours (red, green, blue; 0 to 255) of the labels from 0 on, at least as many as the greatest label
            needs; by default PASCAL VOC's.

    Returns:
        The path.

    Raises:
        FormatError: the path has another suffix, the labels are not (H, W) integers from 0 to 255, or the palette lacks
            one of them or is not a palette.
        StorageError: the file cannot be written.
    """
    path, content = checked_ending(path, ".png"), encode_label_png(labels, palette)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def encode_label_png(labels: npt.ArrayLike, palette: Sequence[Colour] | None = None) -> bytes:
    """Encode a label map as the bytes of an indexed PNG file.

    Args:
        labels: (H, W) integers from 0 (background) to 255.
        palette: colours (red, green, blue; 0 to 255) of the labels from 0 on; by default PASCAL VOC's.

    Raises:
        FormatError: the labels are not (H, W) integers from 0 to 255, or the palette lacks one of them or is not a
            palette.
    """
    array = as_labels(labels, "labels")
    highest = int(array.max())
    if highest > 255:
        raise FormatError(f"labels: {highest} does not fit into an indexed PNG, whose labels end at 255")
    colours = np.asarray(voc_palette() if palette is None else palette)
    if colours.ndim != 2 or colours.shape[1] != 3 or not 0 < len(colours) <= 256 or colours.dtype.kind not in "iu":
        raise FormatError(f"palette: expected 1 to 256 colours (red, green, blue), got an array {colours.shape}")
    if colours.min() < 0 or colours.max() > 255:
        raise FormatError(f"palette: colours go from 0 to 255, got {colours.min()} to {colours.max()}")
    if highest >= len(colours):
        raise FormatError(f"palette: label {highest} has no colour, there are {len(colours)} (the first is label 0's)")
    image = Image.fromarray(array.astype(np.uint8))
    image.putpalette(colours.astype(np.uint8).tobytes())
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _spread(index: int) -> int:
    """Bits 0, 3 and 6 of a label as the highest bits of a colour (PASCAL VOC's `VOClabelcolormap`)."""
    return sum((index >> 3 * bit & 1) << 7 - bit for bit in range(3))
