"""Features, annotations, prototypes and saliency at one feature level (BAFT, eqs. 9-11)."""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.priors.affinity import affinity, enhance
from diffup.priors.config import PriorConfig
from diffup.priors.normalisation import normalise
from diffup.priors.saliency import saliency
from diffup.priors.similarity import masked_average_pooling, resize_weights
from diffup.utils.resize import average_pool

LARGEST = 1e6
"""Greatest feature value that is not scaled down: squares of 1e19 would overflow, and similarity ignores scale."""


def pool_to_grid(features: Tensor, grid: int) -> Tensor:
    """Average-pool features to a greatest side; smaller ones are unchanged.

    Args:
        features: (N, C, h, w).
        grid: greatest side in positions.

    Returns:
        (N, C, min(h, grid), min(w, grid)).
    """
    size = (min(features.shape[-2], grid), min(features.shape[-1], grid))
    if size == tuple(features.shape[-2:]):
        return features
    scale = scale_of(features)
    if scale == 1:
        return average_pool(features, size)
    return average_pool(features / scale, size) * scale  # sums of large ones would overflow


def scale_of(features: Tensor) -> float:
    """Factor by which features are divided before they are compared: their greatest value above `LARGEST`, else 1."""
    if torch.compiler.is_exporting():
        return 1.0  # a graph cannot branch on values
    peak = _peak(features)
    return float(peak) if bool(peak > LARGEST) else 1.0


def _peak(features: Tensor) -> Tensor:
    """The greatest absolute value, without the copy that `abs` makes."""
    low, high = features.aminmax()
    return torch.maximum(-low, high)


def contrast_prototypes(support: Tensor, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Prototypes of foreground and background (eq. 9); the whole image if the background is unknown.

    Args:
        support: (B, K, C, P), support features of P positions.
        foreground: (B, K, P) in [0, 1], weights of the class.
        background: (B, K, P) in [0, 1], weights of the background; all zero if unknown.

    Returns:
        Foreground and background prototypes, (B, K, C) each.
    """
    known = background.amax(dim=2, keepdim=True) > 0
    rest = torch.where(known, masked_average_pooling(support, background), support.mean(dim=3))
    return masked_average_pooling(support, foreground), rest


def centre(features: Tensor, config: PriorConfig) -> Tensor:
    """Subtract each image's mean feature if `PriorConfig.centre` is on.

    Args:
        features: (N, C, h, w), features of images.
        config: config of the priors.

    Returns:
        (N, C, h, w).
    """
    return features - features.mean(dim=(2, 3), keepdim=True) if config.centre else features


def annotation_at_level(
    views: Tensor, foreground: Tensor, background: Tensor, annotated: Tensor, config: PriorConfig
) -> tuple[Tensor, Tensor]:
    """Resize annotations to a feature level; a view without an annotation is marked by its own saliency.

    Args:
        views: (B, K, C, h, w), support features of the level.
        foreground: (B, K, H, W) in [0, 1], weights of the class.
        background: (B, K, H, W) in [0, 1], weights of the background; all zero if unknown.
        annotated: (B, K) bool, False if the annotation does not say where the class is.
        config: config of the priors.

    Returns:
        Foreground and background, (B, K, h * w) in [0, 1] each.
    """
    size = (views.shape[3], views.shape[4])
    weights = resize_weights(foreground.flatten(0, 1), size).flatten(1)
    complement = resize_weights(background.flatten(0, 1), size).flatten(1)
    bare = ~annotated.flatten()
    if bool(bare.any()):
        salient = salient_map(views.flatten(0, 1)[bare], config)
        weights[bare], complement[bare] = salient, 1 - salient
    return weights.view(*views.shape[:2], -1), complement.view(*views.shape[:2], -1)


def salient_map(features: Tensor, config: PriorConfig, spread: Tensor | None = None) -> Tensor:
    """Saliency, enhanced with the affinity and normalised like any prior.

    Args:
        features: (N, C, h, w), features of images.
        config: config of the priors.
        spread: (N, h * w, h * w), affinity of the images' positions; None computes it if it is needed.

    Returns:
        (N, h * w) in [0, 1].
    """
    maps = saliency(features)[:, None]
    if config.affinity:
        maps = enhance(maps, affinity_of(features, config) if spread is None else spread)
    return normalise(maps, config.normalisation)[:, 0]


def affinity_of(features: Tensor, config: PriorConfig) -> Tensor:
    """Affinity of the positions of images: (N, C, h, w) -> (N, h * w, h * w), by the config's centring and power."""
    return affinity(centre(features, config).flatten(2), config.affinity_power)
