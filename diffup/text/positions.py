"""Dense features by applying an encoder's pooling head at every position.

An image-level encoder ends in a pooling. Applied to one position at a time, the same weights give a map in the space of
the pooled embedding, which texts share. Three poolings cover CLIP, SigLIP and classifiers; for each, the tests check
the identity between the map and the pooled embedding.
"""

from __future__ import annotations

import threading
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diffup.backbones.base import FrozenBackbone


def normalised(backbone: FrozenBackbone, images: Tensor) -> Tensor:
    """Normalise images as a backbone's encoder expects them.

    Args:
        backbone: backbone with `mean` and `std`.
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        (B, 3, H, W) in the encoder's precision.
    """
    return ((images.float() - backbone.mean.float()) / backbone.std.float()).to(backbone.dtype)


def head_per_position(model: nn.Module, features: Tensor) -> Tensor:
    """Apply the head of a timm model that pools by a mean, or by attention with a learned query, at every position.

    Pooling a single position changes nothing (mean) or leaves value and output projections (attention).

    Args:
        model: timm model with `forward_head`.
        features: output of its `forward_features`: (B, C, h, w), or (B, h, w, C) from models with channels last; tokens
            (B, N, C) if the model has an attention pool.

    Returns:
        (B, K, h, w) float32, or (B, K, N) for tokens, with K outputs of the head.

    Raises:
        ValueError: the model pools tokens in another way, for instance by a class token.
    """
    timm: Any = model
    if features.ndim == 3:
        if getattr(timm, "attn_pool", None) is None or getattr(timm.attn_pool, "pos_embed", None) is not None:
            raise ValueError("it pools tokens by other means than attention with a learned query")
        tokens = features[:, timm.num_prefix_tokens :]
        heads: Tensor = timm.forward_head(tokens.reshape(-1, 1, tokens.shape[2])).float()
        return heads.view(*tokens.shape[:2], -1).mT
    if features.ndim != 4:
        raise ValueError(f"its last features are of shape {tuple(features.shape)}, neither a map nor tokens")
    channels_last = features.shape[1] != timm.num_features and features.shape[3] == timm.num_features
    rows = features if channels_last else features.permute(0, 2, 3, 1)
    batch, height, width, channels = rows.shape
    shape = (-1, 1, 1, channels) if channels_last else (-1, channels, 1, 1)
    heads = timm.forward_head(rows.reshape(shape)).float()
    return heads.view(batch, height, width, -1).permute(0, 3, 1, 2)


def attention_pool_values(pool: nn.Module, maps: Tensor) -> Tensor:
    """Value and output projections of a CLIP ResNet's attention pool at every position (Zhou et al., ECCV 2022).

    For each head, the pool's output is the mean of this map weighted by the attention, except for the position
    embedding. It is left out, since it encodes where a position is, not what is there, and belongs to one image size.

    Args:
        pool: attention pool with `v_proj` and `c_proj`.
        maps: (B, C, h, w), output of the last stage.

    Returns:
        (B, D, h, w).
    """
    layer: Any = pool
    values: Tensor = layer.c_proj(layer.v_proj(maps.permute(0, 2, 3, 1)))
    return values.permute(0, 3, 1, 2)


def block_values(block: nn.Module, tokens: Tensor) -> Tensor:
    """Apply the last block of a CLIP ViT with every token attending only to itself (MaskCLIP; Zhou et al., ECCV 2022).

    Residual connections and the MLP are kept, so that the result lies in the space of the block's own output.

    Args:
        block: block of OpenCLIP (`attn` is torch's multi-head attention) or of transformers' CLIP (`self_attn`).
        tokens: (B, N, C), input of the block.

    Returns:
        (B, N, C).

    Raises:
        ValueError: the block is of another kind.
    """
    layer: Any = block
    if isinstance(getattr(layer, "attn", None), nn.MultiheadAttention) and hasattr(layer, "ls_1"):
        width = tokens.shape[2]
        weight, bias = layer.attn.in_proj_weight[2 * width :], layer.attn.in_proj_bias[2 * width :]
        attended: Tensor = tokens + layer.ls_1(layer.attn.out_proj(F.linear(layer.ln_1(tokens), weight, bias)))
        change: Tensor = layer.ls_2(layer.mlp(layer.ln_2(attended)))
    elif hasattr(layer, "self_attn") and hasattr(layer.self_attn, "v_proj"):
        attended = tokens + layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(tokens)))
        change = layer.mlp(layer.layer_norm2(attended))
    else:
        raise ValueError(f"no value path is known for blocks of the type {type(block).__name__}")
    return attended + change


def run_and_catch(model: nn.Module, layer: nn.Module, *inputs: Tensor, **options: Any) -> Tensor:
    """Run a model and return the first input of one of its layers.

    Args:
        model: model to run.
        layer: layer of the model.
        *inputs: inputs of the model.
        **options: keyword arguments of the model.
    """
    caught: list[Tensor] = []
    thread = threading.get_ident()

    def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if threading.get_ident() == thread:  # another thread may be running the same layer
            caught.append(args[0] if args else next(iter(kwargs.values())))

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(*inputs, **options)
    finally:
        handle.remove()
    return caught[0]


def to_map(tokens: Tensor, size: tuple[int, int], prefix: int) -> Tensor:
    """Arrange tokens as a map.

    Args:
        tokens: (B, prefix + h * w, C).
        size: (h, w) of the map.
        prefix: number of leading tokens to drop, such as class tokens.

    Returns:
        (B, C, h, w).
    """
    return tokens[:, prefix:].mT.reshape(len(tokens), tokens.shape[2], *size)
