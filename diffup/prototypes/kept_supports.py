"""Support images stored in prototypes, from which these can be recomputed for another encoder."""

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
    """A support image and its annotation at the image's own size, encoded as PNG.

    Photos are stored with 8 bits per channel and regions with 256 levels, so ordinary photos and binary annotations are
    restored exactly.

    Attributes:
        photo: PNG file of the RGB image.
        foreground: PNG file of the foreground in grey: 255 where a pixel certainly belongs to the class.
        background: PNG file of the background in grey: 255 where a pixel certainly does not belong to the class.
        annotated: whether the image is annotated; None in older files, which do not store it.
    """

    photo: bytes
    foreground: bytes
    background: bytes
    annotated: bool | None

    @classmethod
    def of(cls, support: Support) -> KeptSupport:
        """Encode a support.

        Args:
            support: support image with its annotated regions.
        """
        regions = (support.regions.foreground, support.regions.background)
        grey = [Image.fromarray((region * 255).round().to(torch.uint8).numpy()) for region in regions]
        photo, foreground, background = (_png(picture) for picture in (to_pil(support.image), *grey))
        return cls(photo, foreground, background, support.regions.annotated)

    def support(self, argument: str) -> Support:
        """Decode the support. Its annotation is None, because only the regions are used.

        Args:
            argument: name of the support in error messages.

        Raises:
            PrototypesError: a stored image is damaged.
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
    """Pack stored supports into named uint8 tensors.

    Args:
        kept: the supports.
    """
    tensors = {}
    for index, item in enumerate(kept):
        for name in _PICTURES:
            content = bytearray(getattr(item, name))
            tensors[f"kept.{index}.{name}"] = torch.frombuffer(content, dtype=torch.uint8)
        if item.annotated is not None:
            tensors[f"kept.{index}.annotated"] = torch.tensor([item.annotated], dtype=torch.uint8)
    return tensors


def unpack(tensors: dict[str, Tensor], count: int) -> tuple[KeptSupport, ...]:
    """Unpack stored supports from named uint8 tensors.

    Args:
        tensors: tensors of a prototype file by name.
        count: number of supports.

    Raises:
        KeyError: a tensor is missing.
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
    """Decode a PNG file after checking its size.

    Raises:
        ValueError: the file cannot be decoded.
    """
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
    except OSError as error:
        raise ValueError(str(error)) from error
    return open_image(picture, argument)[0]
