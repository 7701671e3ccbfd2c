"""Support images kept inside of prototypes, so that these can follow a change of the encoder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffup.errors import PrototypesError
from diffup.inputs.annotations import Regions, Support
from diffup.inputs.images import open_image, to_pil

_PICTURES = ("photo", "foreground", "background")


@dataclass(frozen=True)
class KeptSupport:
    """A support image at its own size and where the class is in it, as PNG files.

    Photos keep 8 bits a channel and regions 256 steps, so that ordinary photos and two-valued annotations come back
    exactly.

    Attributes:
        photo: RGB.
        foreground: grey, 255 being surely of the class.
        background: grey, 255 being surely not of the class.
        annotated: see `diffup.inputs.annotations.Regions`; None in files that do not say.
    """

    photo: bytes
    foreground: bytes
    background: bytes
    annotated: bool | None

    @classmethod
    def of(cls, support: Support) -> KeptSupport:
        """Keep a support."""
        regions = (support.regions.foreground, support.regions.background)
        grey = [Image.fromarray((region * 255).round().to(torch.uint8).numpy()) for region in regions]
        photo, foreground, background = (_png(picture) for picture in (to_pil(support.image), *grey))
        return cls(photo, foreground, background, support.regions.annotated)

    def support(self, argument: str) -> Support:
        """The support again. Its annotation is None, since nothing looks at more than the regions.

        Args:
            argument: what to call it in error messages.

        Raises:
            PrototypesError: the kept files are damaged.
        """
        try:
            pictures = [np.array(_open(getattr(self, name), argument)) for name in _PICTURES]
        except ValueError as error:
            raise PrototypesError(f"{argument} is damaged ({error}); build the prototypes from the images") from error
        photo, foreground, background = (torch.from_numpy(picture).float() / 255 for picture in pictures)
        sizes = (photo.shape[:2], foreground.shape, background.shape)
        if photo.ndim != 3 or len(set(sizes)) > 1:
            raise PrototypesError(f"{argument} is damaged: photo and regions have sizes {sizes}")
        annotated = bool((foreground < 1).any()) if self.annotated is None else self.annotated
        return Support(photo.permute(2, 0, 1).contiguous(), None, Regions(foreground, background, annotated))


def pack(kept: Sequence[KeptSupport]) -> dict[str, Tensor]:
    """Kept supports as named uint8 tensors."""
    tensors = {}
    for index, item in enumerate(kept):
        for name in _PICTURES:
            content = bytearray(getattr(item, name))
            tensors[f"kept.{index}.{name}"] = torch.frombuffer(content, dtype=torch.uint8)
        if item.annotated is not None:
            tensors[f"kept.{index}.annotated"] = torch.tensor([item.annotated], dtype=torch.uint8)
    return tensors


def unpack(tensors: dict[str, Tensor], count: int) -> tuple[KeptSupport, ...]:
    """Kept supports from named uint8 tensors.

    Raises:
        KeyError: one is missing.
    """
    return tuple(_unpack_one(tensors, f"kept.{index}") for index in range(count))


def _unpack_one(tensors: dict[str, Tensor], prefix: str) -> KeptSupport:
    photo, foreground, background = (tensors[f"{prefix}.{name}"].numpy().tobytes() for name in _PICTURES)
    flag = tensors.get(f"{prefix}.annotated")
    return KeptSupport(photo, foreground, background, None if flag is None else bool(flag.any()))


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=3)  # higher levels take seconds for a photo and gain little
    return stream.getvalue()


def _open(content: bytes, argument: str) -> Image.Image:
    """Decode a PNG file; its size is checked first.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
    except OSError as error:
        raise ValueError(str(error)) from error
    return open_image(picture, argument)[0]
