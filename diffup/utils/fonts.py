"""Fonts for class names in pictures, and the texts that a legend shows for names that no font has."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence

from PIL import ImageFont, features

_SIZE = 12
_MISSING = "\U0010ffff"  # in no font, so it is drawn as any character that a font lacks
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)
"""Fonts to look for in the system's folders when Pillow's own font, little more than ASCII, lacks a character."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: float | None = None) -> Font | None:
    """Find a font that has every character of a text.

    Args:
        text: the text to draw.
        size: font size in pixels; None is the size of legends.

    Returns:
        The first such font, Pillow's own before the system's; None if there is none.
    """
    fonts = (_font(index, size) for index in range(-1, len(_SYSTEM_FONTS)))
    return next((font for font in fonts if font is not None and _covers(font, text)), None)


def fitting_text(text: str, width: float) -> str:
    """Return a text cut to a width, or the form in which Python escapes it if no available font can show it.

    Args:
        text: the text.
        width: greatest width in pixels.
    """
    return _cut(text if font_for(text) else text.encode("unicode_escape").decode(), width)


def legend_texts(names: Sequence[str], width: float) -> list[str]:
    """The text that a legend shows for each class name: the name cut to the width, or its number and an escaped form.

    A number (the position among the names, from 1) precedes names that no available font can show, whose characters
    are written as Python escapes them, and names that would look alike: when cut to the width, in another Unicode
    form, or in letters of another script.

    Args:
        names: names of all classes, in their order.
        width: widest text in pixels.

    Returns:
        One text for each name.
    """
    shown = [_cut(name, width) for name in names]
    numbered = [_numbered(number, name, width) for number, name in enumerate(names, start=1)]
    looks, others = [_look(text) for text in shown], [_look(text) for text in numbered]
    chosen = {index for index, look in enumerate(looks) if not look or looks.count(look) > 1}
    while clashes := {i for i, look in enumerate(looks) if look in {others[j] for j in chosen}} - chosen:
        chosen |= clashes  # a class is called '1', and another shown as 1
    return [numbered[index] if index in chosen else text for index, text in enumerate(shown)]


def legend_key(names: Sequence[str], width: float = float("inf")) -> dict[int, str]:
    """The class names that a legend shows by number, keyed by that number (from 1).

    Args:
        names: names of all classes, in their order.
        width: widest text in pixels.
    """
    texts = legend_texts(names, width)
    pairs = enumerate(zip(texts, names, strict=True), start=1)
    return {number: name for number, (text, name) in pairs if text == _numbered(number, name, width)}


def _numbered(number: int, name: str, width: float) -> str:
    """A number, and as much of the name's ASCII escape as fits the width."""
    font = ImageFont.load_default()
    rest = _cut(f": {name.encode('unicode_escape').decode()}", width - font.getlength(str(number)))
    return f"{number}{rest}"


def _cut(name: str, width: float) -> str:
    """A name cut at its end to fit the width; empty if nothing fits."""
    font = font_for(name)
    if font is None or font.getlength(name) <= width:
        return name
    kept = len(name)
    while kept and font.getlength(name[:kept].rstrip() + "...") > width:
        kept -= 1
    return name[:kept].rstrip() + "..." if kept else ""


def _look(text: str) -> bytes:
    """The pixels of a drawn text, to compare looks; empty if no font can draw it."""
    font = font_for(text)
    if font is None:
        return b""
    mask = font.getmask(text)
    box = mask.getbbox()  # spaces at the end look like nothing
    return b"" if box is None else repr(box).encode() + bytes(mask.crop(box))


@functools.cache
def _font(index: int, size: float | None) -> Font | None:
    """Pillow's own font (index -1) or one of `_SYSTEM_FONTS`; None if it is not installed."""
    try:
        return ImageFont.load_default(size) if index < 0 else ImageFont.truetype(_SYSTEM_FONTS[index], size or _SIZE)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _covers(font: Font, text: str) -> bool:
    """Whether a font has every character of a text, and the text can be laid out."""
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType has a bitmap of Latin-1
        return text.isascii()
    text = unicodedata.normalize("NFC", text)
    if any(_needs_shaping(letter) for letter in text) and not features.check("raqm"):
        return False
    return all(letter == " " or _has_glyph(font, letter) for letter in text)


@functools.cache
def _unshaped(font: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    """The font without the library Raqm, which draws a lone character differently from one within a text."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def _has_glyph(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    missing, drawn = _unshaped(font).getmask(_MISSING), _unshaped(font).getmask(letter)
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _needs_shaping(letter: str) -> bool:
    """Whether a character joins others or runs from right to left, which needs the library Raqm."""
    return unicodedata.category(letter).startswith("M") or unicodedata.bidirectional(letter) in ("R", "AL", "AN")
