"""The text space of an OpenCLIP model: dense features of its visual tower, embeddings of its text tower."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffup.backbones.base import FrozenBackbone, hash_weights
from diffup.errors import BackboneError
from diffup.text.positions import (
    attention_pool_values,
    block_values,
    head_per_position,
    mean_of_vocabulary,
    normalised,
    run_and_catch,
    to_map,
)

_BATCH = 64


class OpenClipText:
    """Images and texts in the space of a CLIP.

    Args:
        backbone: Its visual tower, which is shared and not copied.
        model: The whole model; its visual tower is let go.
        tokenizer: Texts to (N, L) token ids.

    Raises:
        BackboneError: No dense features are known for this tower.
    """

    def __init__(self, backbone: FrozenBackbone, model: Any, tokenizer: Any) -> None:
        self.backbone = backbone
        model.visual = backbone.encoder
        self.model = model.eval().requires_grad_(False).to(backbone.device)
        self.tokenizer = tokenizer
        height, width = backbone.input_size
        with torch.no_grad():
            self.dense(torch.zeros(1, 3, height, width, device=backbone.device))

    @property
    def name(self) -> str:
        """The backbone's."""
        return self.backbone.name

    @property
    def input_size(self) -> tuple[int, int]:
        """The backbone's."""
        return self.backbone.input_size

    @property
    def device(self) -> torch.device:
        """The backbone's."""
        return self.backbone.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """The backbone's, and a hash of the whole model."""
        return f"{self.backbone.fingerprint}-{hash_weights(self.model)[:16]}"

    @torch.no_grad()
    def dense(self, images: Tensor) -> Tensor:
        """Dense text-space features: (B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) float32."""
        try:
            return dense_features(self.backbone.encoder, normalised(self.backbone, images)).float()
        except ValueError as error:
            raise BackboneError(f"backbone '{self.name}' has no dense text-space features: {error}") from error

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of N texts, (N, C)."""
        found = []
        for start in range(0, len(texts), _BATCH):
            tokens = self.tokenizer(list(texts[start : start + _BATCH])).to(self.device)
            found.append(self.model.encode_text(tokens, normalize=True).float())
        return torch.cat(found)

    def vocabulary_mean(self) -> Tensor:
        """Mean embedding of a hundred of ImageNet's class names, (C,)."""
        if not hasattr(self, "_mean"):
            self._mean = mean_of_vocabulary(self.embed)
        return self._mean.to(self.device)

    def to(self, device: torch.device | str) -> OpenClipText:
        """Move both towers."""
        self.backbone.to(device)
        self.model.to(device)
        return self


def build(backbone: FrozenBackbone, model: Any, architecture: str) -> OpenClipText:
    """The text space of a backbone and the whole model that it is the visual tower of."""
    import open_clip

    return OpenClipText(backbone, model, open_clip.get_tokenizer(architecture))


def dense_features(tower: nn.Module, images: Tensor) -> Tensor:
    """Features at every position in the space of the tower's pooled embedding.

    CLIP's ResNets give value and output projections of the attention pool, its ViTs the value path of the last block,
    the final norm and the projection. Towers that come from timm give their head at every position: behind an attention
    pool with a learned query (SigLIP, SigLIP 2), the head of that one token, its MLP included; behind a mean
    (ConvNeXt), the head of that one pixel.

    Args:
        tower: Visual tower of OpenCLIP.
        images: (B, 3, H, W), normalised; its positional embedding fits their size.

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: The tower pools in another way.
    """
    part: Any = tower
    if hasattr(part, "trunk"):
        features = part.trunk.forward_features(images)
        heads = head_per_position(part.trunk, features)
        rows = heads.movedim(1, -1).to(images.dtype)
        projected: Tensor = part.head(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], -1)
        if projected.ndim == 3:
            return to_map(projected, _grid(part.trunk, images), prefix=0)
        return projected.movedim(-1, 1)
    if hasattr(part, "attnpool"):
        stages = part.forward_intermediates(images, indices=1, intermediates_only=True)["image_intermediates"]
        return attention_pool_values(part.attnpool, stages[-1])
    if part.attn_pool is not None:
        raise ValueError("its ViT pools by attention over several queries (CoCa)")
    block = part.transformer.resblocks[-1]
    tokens = run_and_catch(part, block, images)
    if not getattr(part.transformer, "batch_first", True):
        tokens = tokens.transpose(0, 1)
    values = part.ln_post(block_values(block, tokens))
    return to_map(values if part.proj is None else values @ part.proj, _patches(part.patch_size, images), prefix=1)


def _grid(trunk: Any, images: Tensor) -> tuple[int, int]:
    """Patches of images of this size in a timm ViT."""
    height, width = trunk.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
    return height, width


def _patches(patch: Sequence[int], images: Tensor) -> tuple[int, int]:
    return images.shape[2] // patch[0], images.shape[3] // patch[1]
