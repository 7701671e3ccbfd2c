"""What was painted over a support image, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffup.errors import AnnotationError, ImageError
from diffup.formats.contours import connected_components
from diffup.inputs.annotations import Annotation, Box, Mask, Scribble, rasterise
from diffup.inputs.masks import bounding_box
from diffup.utils import pictures
from diffup.utils.optional import need

WORD = "word"
"""The kind of a shot that is a name instead of an image."""

_OPAQUE = 127  # the brush is smooth at its rim
_CARD = 160


@dataclass(frozen=True, eq=False)
class Shot:
    """One example of a class.

    Attributes:
        name: of the class.
        kind: one of `KINDS`, or `WORD`.
        image: (H, W, 3) uint8; of a word None.
        annotation: where the class is in the image.
        word: what the class is called, where that is all that is known.
    """

    name: str
    kind: str
    image: npt.NDArray[np.uint8] | None = None
    annotation: Annotation = None
    word: str = ""

    def picture(self) -> Image.Image:
        """The image with its annotation in green, or a card that stands for a word; at most 160 pixels high.

        The card shows letters and not the word, which Pillow's font can only draw if its letters are Latin.
        """
        if self.image is None:
            card = Image.new("RGB", (_CARD, _CARD), (235, 238, 242))
            ImageDraw.Draw(card).text((_CARD / 2, _CARD / 2), "Aa", "black", ImageFont.load_default(54), anchor="mm")
            return card
        marked = rasterise(self.annotation, (self.image.shape[0], self.image.shape[1])).foreground.numpy() > 0
        strength = 0.9 if self.kind == "scribble" else 0.45  # a stroke is thin, and hides little
        shown = self.image if self.annotation is None else pictures.tint(self.image, marked, (40, 200, 80), strength)
        picture = Image.fromarray(shown)
        picture.thumbnail((2 * _CARD, _CARD))
        return picture


def read_editor(value: Mapping[str, Any] | None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The image and the paint of an image editor.

    Args:
        value: `background`, (H, W, 3 | 4) uint8, and `layers`, a list of (H, W, 4) uint8 whose opaque pixels are paint.

    Returns:
        (H, W, 3) uint8 and (H, W) bool.

    Raises:
        ImageError: there is no image.
        AnnotationError: a layer has another size than the image.
    """
    background = None if value is None else value.get("background")
    if value is None or background is None:
        raise ImageError(
            "There is no example image yet: load one into the editor (PNG, JPEG or WebP; of a damaged file it shows "
            "nothing)."
        )
    image = np.ascontiguousarray(np.asarray(background, dtype=np.uint8)[..., :3])
    height, width = image.shape[:2]
    paint = np.zeros((height, width), dtype=bool)
    for layer in value.get("layers") or ():
        if layer.shape[:2] != (height, width):
            raise AnnotationError(
                f"The paint is {layer.shape[1]} x {layer.shape[0]} pixels, the image {width} x {height}: load the "
                "image again."
            )
        paint |= layer[..., 3] > _OPAQUE
    return image, paint


def read_paint(paint: npt.NDArray[np.bool_], kind: str) -> Annotation:
    """What paint means.

    Args:
        paint: (H, W), true where something is painted.
        kind: one of `KINDS`.

    Raises:
        AnnotationError: another kind, no paint, or an outline that encloses nothing.
        MissingPackageError: the extra `demo` is not installed.
    """
    if kind not in KINDS:
        raise AnnotationError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    if kind != "whole image" and not paint.any():
        raise AnnotationError(
            "Nothing is painted: mark the object with the brush, or choose 'whole image' if it is enough to know that "
            "the image shows the class."
        )
    return KINDS[kind](paint)


def _outline(paint: npt.NDArray[np.bool_]) -> Annotation:
    filled = need("scipy.ndimage", "the fill of an outline", extra="demo").binary_fill_holes(paint)
    if (filled == paint).all():
        raise AnnotationError("The outline encloses nothing: close the line, or choose 'mask' or 'scribble'.")
    return Mask(filled)


def _boxes(paint: npt.NDArray[np.bool_]) -> Annotation:
    return Box([box for part in connected_components(paint) if (box := bounding_box(part)) is not None])


KINDS: dict[str, Callable[[npt.NDArray[np.bool_]], Annotation]] = {
    "scribble": Scribble,
    "mask": Mask,
    "outline": _outline,
    "box": _boxes,
    "whole image": lambda paint: None,
}
"""What paint may mean: strokes over the object, all of its pixels, a line around it, one box around each separate
stroke, or nothing at all."""
