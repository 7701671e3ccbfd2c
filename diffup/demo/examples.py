"""Examples of a class: annotated support images, or text prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from diffup.inputs.annotations import Annotation
from diffup.inputs.support_picture import draw_annotation

WORD = "word"
"""Kind of an example that is a class name instead of an image."""

PHOTO = "photo"
"""Kind of an example that is a marked photo with its mask."""

_CARD = 160


@dataclass(frozen=True, eq=False)
class Example:
    """One example of a class: an annotated support image, or a text prompt.

    Attributes:
        name: name of the class.
        kind: what the annotation was made with: a tool (`diffup.demo.marks.TOOLS`), `PHOTO` or `WORD`.
        image: (H, W, 3) uint8, the support image; None for a text prompt.
        annotation: annotation of the image.
        word: the text prompt, a name of the class; empty for an image.
        photo: key of the photo whose marked image this is; None for an image of its own.
    """

    name: str
    kind: str
    image: npt.NDArray[np.uint8] | None = None
    annotation: Annotation = None
    word: str = ""
    photo: int | None = None

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
