"""Base of the text spaces of models with a visual and a text tower."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffup.backbones.base import FrozenBackbone, hash_weights
from diffup.errors import BackboneError
from diffup.text.name_bank import read_bank
from diffup.text.positions import normalised
from diffup.text.templates import DEFAULT, prompts

if TYPE_CHECKING:
    from typing_extensions import Self

_BATCH = 64


class TwoTowers(ABC):
    """Base of text spaces (`diffup.text.TextSpace`) of a visual and a text tower.

    Args:
        backbone: visual tower, which is shared and not copied.
        model: whole model, whose visual tower is the backbone's.
        tokenizer: tokenizer of the model.

    Raises:
        BackboneError: no dense features are known for this tower.
    """

    def __init__(self, backbone: FrozenBackbone, model: Any, tokenizer: Any) -> None:
        self.backbone = backbone
        self.model = model.eval().requires_grad_(False).to(backbone.device)
        self.tokenizer = tokenizer
        height, width = backbone.input_size
        self.dense(torch.zeros(1, 3, height, width, device=backbone.device))

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.backbone.name

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the backbone's input."""
        return self.backbone.input_size

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return self.backbone.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """The backbone's fingerprint and a hash of the whole model."""
        return f"{self.backbone.fingerprint}-{hash_weights(self.model)[:16]}"

    @torch.no_grad()
    def dense(self, images: Tensor) -> Tensor:
        """Dense text-space features: (B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) float32, not normalised.

        Raises:
            BackboneError: no dense features are known for this tower.
        """
        try:
            return self._dense(normalised(self.backbone, images)).float()
        except ValueError as error:
            raise BackboneError(f"backbone '{self.name}' has no dense text-space features: {error}") from error

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of N texts, (N, C) float32 on `device`."""
        batches = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat([self._embed(batch).float() for batch in batches])

    def vocabulary_mean(self) -> Tensor:
        """Mean unit embedding of a hundred of ImageNet's class names, (C,)."""
        return self._mean.to(self.device)

    def to(self, device: torch.device | str) -> Self:
        """Move both towers to a device, in place."""
        self.backbone.to(device)
        self.model.to(device)
        return self

    @functools.cached_property
    def _mean(self) -> Tensor:
        return mean_of_vocabulary(self.embed)

    @abstractmethod
    def _dense(self, images: Tensor) -> Tensor:
        """Dense features of normalised images, (B, C, h, w); raises `ValueError` if none are known for the tower."""

    @abstractmethod
    def _embed(self, texts: list[str]) -> Tensor:
        """Unit embeddings of a batch of texts, (N, C)."""


def mean_of_vocabulary(embed: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """Mean unit embedding of a hundred of ImageNet's class names in the default template, (C,).

    Args:
        embed: function from N texts to unit embeddings (N, C).
    """
    names = [description.split(":")[0].split(",")[0] for description in read_bank()[0][::10]]
    return torch.mean(embed(prompts(names, [DEFAULT])), dim=0)
