"""Prototypes and their similarity to query features (BAFT, paper section III-B, eqs. 9-10, and Table 7).

All functions are pure functions of features and weights: no result depends on the number of channels, and with the
default cosine no result changes when the feature space is rotated. That makes the encoder exchangeable.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.errors import ConfigError

Metric = Literal["cosine", "l2_unit", "l2", "l1"]
Conversion = Literal["identity", "square", "exponential", "reciprocal"]

METRICS: tuple[Metric, ...] = get_args(Metric)
CONVERSIONS: tuple[Conversion, ...] = get_args(Conversion)

_EPS = 1e-6
_VANISHED = 1e-3
_TINY = 1e-30
_FAR = 1e6


def resize_weights(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize annotation weight maps to a feature level.

    Each cell gets the mean weight of its pixels. If a thin annotation vanishes (no cell above 0.1 %), each cell gets
    the greatest weight of its pixels instead, so that a one-pixel annotation still has a prototype.

    Args:
        weights: (N, H, W) in [0, 1], weights of the class or the background.
        size: (h, w) of the feature level.

    Returns:
        (N, h, w) in [0, 1].
    """
    pooled = F.adaptive_avg_pool2d(weights[:, None], size)[:, 0]
    vanished = pooled.amax(dim=(1, 2), keepdim=True) < _VANISHED
    if bool(vanished.any()):
        pooled = torch.where(vanished, F.adaptive_max_pool2d(weights[:, None], size)[:, 0], pooled)
    return pooled


def unit(features: Tensor, dim: int) -> Tensor:
    """Normalise features to unit length along a dimension; zero stays zero.

    Args:
        features: tensor of any shape.
        dim: channel dimension.
    """
    return features * features.square().sum(dim=dim, keepdim=True).clamp_min(_EPS**2).rsqrt()


def masked_average_pooling(features: Tensor, weights: Tensor) -> Tensor:
    """Prototype, the weighted mean of features: `p = sum(M * F) / sum(M)` (eq. 9).

    Args:
        features: (..., C, P), features F of P positions.
        weights: (..., P) in [0, 1], weights M at the resolution of the features (`resize_weights`).

    Returns:
        (..., C); zero if all weights are zero.
    """
    pooled = (features @ weights[..., None])[..., 0]
    return pooled / weights.sum(dim=-1, keepdim=True).clamp_min(_EPS)


def check_metric(metric: str, conversion: str) -> None:
    """Check that metric and conversion are known and can be combined.

    The cosine is a similarity already, so it takes `identity`; `square` (1 - d^2 / 2) is exact on unit vectors only.

    Args:
        metric: one of `METRICS`.
        conversion: one of `CONVERSIONS`.

    Raises:
        ConfigError: one of them is unknown, or they cannot be combined.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric={metric!r} is unknown; choose one of {', '.join(METRICS)}")
    if conversion not in CONVERSIONS:
        raise ConfigError(f"conversion={conversion!r} is unknown; choose one of {', '.join(CONVERSIONS)}")
    if (metric == "cosine") != (conversion == "identity"):
        raise ConfigError(
            f"metric={metric!r} with conversion={conversion!r}: the cosine takes 'identity', a distance takes another"
        )
    if conversion == "square" and metric != "l2_unit":
        raise ConfigError(f"conversion='square' is defined on unit vectors only: use metric='l2_unit', not {metric!r}")


def pairwise_similarity(
    vectors: Tensor, features: Tensor, metric: Metric = "cosine", conversion: Conversion = "identity"
) -> Tensor:
    """Similarity of V vectors to P positions (eq. 10 with the transformations of Table 7).

    Args:
        vectors: (N, V, C), such as prototypes.
        features: (N, C, P), features of P positions.
        metric: `cosine`, or a distance: `l2_unit` (Euclidean between unit vectors), `l2`, `l1`. The last two are
            divided by the features' mean distance to their mean: the norms of encoders' features differ by orders of
            magnitude, and exp(-d) of long ones would be zero everywhere.
        conversion: conversion of a distance d to a similarity: `square` 1 - d^2/2, `exponential` exp(-d), `reciprocal`
            1/(1 + d); `identity` for the cosine.

    Returns:
        (N, V, P); in [-1, 1] for the cosine.

    Raises:
        ConfigError: metric and conversion cannot be combined.
    """
    check_metric(metric, conversion)
    return compare(comparable(vectors, 2, metric), comparable(features, 1, metric), metric, conversion)


def comparable(features: Tensor, dim: int, metric: Metric) -> Tensor:
    """Bring features to the form that `compare` takes: unit vectors for `cosine` and `l2_unit`, else as they are.

    Args:
        features: tensor of any shape.
        dim: channel dimension.
        metric: comparison of features.
    """
    return unit(features, dim) if metric in ("cosine", "l2_unit") else features


def compare(vectors: Tensor, features: Tensor, metric: Metric, conversion: Conversion) -> Tensor:
    """Similarity of vectors to positions, both from `comparable`, so that it is called once for many comparisons.

    Args:
        vectors: (N, V, C), such as prototypes.
        features: (N, C, P), features of P positions.
        metric: comparison of features, as `pairwise_similarity` takes it.
        conversion: conversion of a distance to a similarity.

    Returns:
        (N, V, P); in [-1, 1] for the cosine.
    """
    if metric == "cosine":
        return vectors @ features
    order = 1.0 if metric == "l1" else 2.0
    if metric != "l2_unit":
        vectors, features = _scale_free(vectors, features, order)
    distance = torch.cdist(vectors, features.mT, p=order)
    if conversion == "square":
        return 1 - distance.square() / 2
    if conversion == "exponential":
        return torch.exp(-distance)
    return 1 / (1 + distance)


def _scale_free(vectors: Tensor, features: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """Standardise vectors (N, V, C) and features (N, C, P) by the features' mean and their mean distance to it.

    Both are divided by the greatest value first, so that no square overflows; subtracting a mean changes no distance.
    """
    peak = features.abs().amax(dim=(1, 2), keepdim=True).clamp_min(_TINY)
    vectors, features = vectors / peak, features / peak
    mean = features.mean(dim=2, keepdim=True)
    vectors, features = vectors - mean.mT, features - mean
    spread = torch.linalg.vector_norm(features, ord=order, dim=1).mean(dim=1)[:, None, None].clamp_min(_EPS)
    return (vectors / spread).clamp(-_FAR, _FAR), features / spread


def best_match(similarity: Tensor, foreground: Tensor, background: Tensor, known: Tensor) -> Tensor:
    """Dense best-match prior: each query position's best foreground match minus its best background match.

    If the background is unknown (scribbles, points, no mask), the mean similarity to the whole support image replaces
    the best background match.

    Args:
        similarity: (..., S, P), similarity of S support positions to P query positions.
        foreground: (..., S) in [0, 1], weights; positions of at least half the greatest weight are foreground.
        background: (..., S) in [0, 1], weights; positions above one half are background.
        known: (...) bool, whether the background is known.

    Returns:
        (..., P); in [-2, 2] for cosines.
    """
    is_foreground = foreground >= 0.5 * foreground.amax(dim=-1, keepdim=True).clamp_min(_EPS)
    is_background = (background > 0.5) & ~is_foreground
    known = known & is_background.any(dim=-1)
    to_background = torch.where(known[..., None], _best(similarity, is_background), similarity.mean(dim=-2))
    return _best(similarity, is_foreground) - to_background


def _best(similarity: Tensor, selected: Tensor) -> Tensor:
    """Greatest similarity over the selected rows, 0 if none is selected: (..., S, P), (..., S) bool -> (..., P)."""
    best = similarity.masked_fill(~selected[..., None], -torch.inf).amax(dim=-2)
    return best.masked_fill(~selected.any(dim=-1)[..., None], 0)
