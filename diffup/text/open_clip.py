"""The text space of an OpenCLIP model: dense features of its visual tower and embeddings of its text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from diffup.backbones.base import FrozenBackbone
from diffup.backbones.open_clip import OpenClipBackbone
from diffup.errors import BackboneError
from diffup.text.positions import attention_pool_values, block_values, head_per_position, run_and_catch, to_map
from diffup.text.two_towers import TwoTowers


class OpenClipText(TwoTowers):
    """The text space of a CLIP model of OpenCLIP.

    Args:
        backbone: visual tower, which is shared and not copied.
        model: whole model of OpenCLIP.
        tokenizer: tokenizer of the model.

    Raises:
        BackboneError: no dense text-space features are known for this tower.
    """

    def __init__(self, backbone: FrozenBackbone, model: Any, tokenizer: Any) -> None:
        model.visual = backbone.encoder  # replaces its own visual tower
        super().__init__(backbone, model, tokenizer)

    def _dense(self, images: Tensor) -> Tensor:
        return dense_features(self.backbone.encoder, images)

    def _embed(self, texts: list[str]) -> Tensor:
        embeddings: Tensor = self.model.encode_text(self.tokenizer(texts).to(self.device), normalize=True)
        return embeddings


def build(backbone: OpenClipBackbone) -> OpenClipText:
    """Build the text space of a backbone's own model, and load its text tower.

    Args:
        backbone: visual tower.

    Raises:
        BackboneError: no dense text-space features are known for this tower, or the backbone has no text tower.
        WeightsError: the weights cannot be loaded.
    """
    import open_clip

    if backbone.load_model is None:
        raise BackboneError(f"backbone '{backbone.name}' was built without its model: it has no text tower")
    model = backbone.load_model()
    tokenizer = open_clip.get_tokenizer(backbone.architecture, context_length=getattr(model, "context_length", None))
    return OpenClipText(backbone, model, tokenizer)


def dense_features(tower: nn.Module, images: Tensor) -> Tensor:
    """Dense features in the space of a visual tower's pooled embedding.

    For CLIP's ResNets they are value and output projections of the attention pool, for its ViTs the value path of the
    last block, the final norm and the projection. For towers from timm they are the head at every position: after an
    attention pool with a learned query (SigLIP, SigLIP 2), the head of one token, its MLP included; after a mean
    (ConvNeXt), the head of one position.

    Args:
        tower: visual tower of OpenCLIP, whose position embeddings fit the images' size.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: the tower pools in another way.
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
    """(height, width) of a timm ViT's grid of patches for images of this size."""
    height, width = trunk.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
    return height, width


def _patches(patch: Sequence[int], images: Tensor) -> tuple[int, int]:
    return images.shape[2] // patch[0], images.shape[3] // patch[1]
