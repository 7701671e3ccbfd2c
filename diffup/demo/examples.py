"""Examples of a class: support images and the annotations painted over them, or text prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffup.errors import AnnotationError, ImageError
from diffup.formats.contours import connected_components
from diffup.inputs.annotations import Annotation, Box, Mask, Scribble
from diffup.inputs.masks import bounding_box
from diffup.inputs.support_picture import draw_annotation
from diffup.utils.optional import need

WORD = "word"
"""Kind of an example that is a class name instead of an image."""

_OPAQUE = 127  # alpha above which a pixel counts as painted; the brush has a soft edge
_CARD = 160


@dataclass(frozen=True, eq=False)
class Example:
    """One example of a class: an annotated support image, or a text prompt.

    Attributes:
        name: name of the class.
        kind: kind of annotation, one of `KINDS`, or `WORD` for a text prompt.
        image: (H, W, 3) uint8, the support image; None for a text prompt.
        annotation: annotation of the image.
        word: the text prompt, a name of the class; None for an image.
    """

    name: str
    kind: str
    image: npt.NDArray[np.uint8] | None = None
    annotation: Annotation = None
    word: str = ""

    def picture(self) -> Image.Image:
        """Draw the image with its annotation in green, or a card for a text prompt; at most 160 pixels high.

        The card shows fixed letters instead of the prompt, because Pillow's font has Latin letters only.
        """
        if self.image is None:
            card = Image.new("RGB", (_CARD, _CARD), (235, 238, 242))
            ImageDraw.Draw(card).text((_CARD / 2, _CARD / 2), "Aa", "black", ImageFont.load_default(54), anchor="mm")
            return card
        picture = Image.fromarray(draw_annotation(self.image, self.annotation, _CARD))
        picture.thumbnail((2 * _CARD, _CARD))
        return picture


def read_editor(value: Mapping[str, Any] | None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Read the image and the painted pixels from the value of an image editor.

    Args:
        value: value of Gradio's image editor: `background`, (H, W, 3 | 4) uint8, and `layers`, a list of (H, W, 4)
            uint8 whose opaque pixels are paint.

    Returns:
        The image (H, W, 3) uint8, and the painted pixels (H, W) bool.

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
    """Convert painted pixels to an annotation.

    Args:
        paint: (H, W) bool, the painted pixels.
        kind: kind of annotation that the paint means, one of `KINDS`.

    Raises:
        AnnotationError: the kind is unknown, nothing is painted, or an outline encloses nothing.
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
"""Kinds of annotation that paint may mean: strokes over the object, its mask, an outline around it, a box around each
separate stroke, or no annotation."""
