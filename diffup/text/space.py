"""The protocol of text spaces, in which images and texts have comparable embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffup.backbones.base import FrozenEncoder
from diffup.inputs.images import resize_image

MEMBERS = ("name", "input_size", "fingerprint", "device", "dense", "embed", "vocabulary_mean", "to")


@runtime_checkable
class TextSpace(FrozenEncoder, Protocol):
    """A frozen encoder of images and texts into one space. Any object with these members can be used.

    In addition to the methods below it has the members of `diffup.backbones.base.FrozenEncoder`.
    """

    def dense(self, images: Tensor) -> Tensor:
        """Dense text-space features: (B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) float32, not normalised."""
        ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of N texts, (N, C) float32 on `device`."""
        ...

    def vocabulary_mean(self) -> Tensor:
        """Mean unit embedding of a vocabulary, (C,): the part that all names share, which distinguishes none."""
        ...


@runtime_checkable
class TextCapable(Protocol):
    """A backbone that can build a text space of its own model."""

    def text_space(self) -> TextSpace:
        """Build the text space of the same model.

        Raises:
            BackboneError: the model has none.
        """
        ...


def dense_features(space: TextSpace, images: Sequence[Tensor]) -> Tensor:
    """Dense features of images in a text space.

    Args:
        space: text space.
        images: B images, (3, H, W) in [0, 1] each, of any sizes.

    Returns:
        (B, C, h, w) float32.
    """
    return space.dense(torch.stack([resize_image(image, space.input_size) for image in images]).to(space.device))
