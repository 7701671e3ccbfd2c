"""Uncertainty-aware prior fusion: any number of views become the same channels (UAPF, paper section III-C, eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor


def fuse(views: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance over the views of a query (eq. 12, where all weights are 1).

    Args:
        views: (B, K, P) in [0, 1], K views of P positions.
        weights: (B, K), bool or non-negative weights; 0 for padding. At least one is not 0.

    Returns:
        The mean (B, P) in [0, 1], and four times the biased variance (B, P) in [0, 1], since the greatest variance of a
        variable in [0, 1] is 0.25.
    """
    weights = weights.to(views.dtype)[:, :, None]
    total = weights.sum(dim=1)
    mean = (views * weights).sum(dim=1) / total
    variance = ((views - mean[:, None]).square() * weights).sum(dim=1) / total
    return mean, variance * 4


def nearest_views(views: Tensor, valid: Tensor, mean: Tensor, count: int) -> Tensor:
    """The individual priors nearest to the mean, as extra channels ("a fixed number of priors", section III-C).

    The choice by distance to the mean is independent of the order of the supports; of two views at equal distance (two
    views always are) the one with the smaller values comes first. With fewer valid views than `count`, the nearest ones
    are repeated.

    Args:
        views: (B, K, P) in [0, 1], K views of P positions.
        valid: (B, K) bool, False for padding.
        mean: (B, P) in [0, 1], mean of the valid views.
        count: number of views to return.

    Returns:
        (B, count, P), nearest view first.
    """
    distance = (views - mean[:, None]).square().mean(dim=2)
    # Rounding errors must not decide between equal distances, so each is increased by 1 % times the view's own mean.
    distance = (distance * (1 + 0.01 * views.mean(dim=2))).masked_fill(~valid, torch.inf)
    if torch.compiler.is_exporting():  # ONNX has no stable sort, and only equal views need it
        order = distance.topk(distance.shape[1], dim=1, largest=False).indices
    else:
        order = distance.argsort(dim=1, stable=True)
    position = torch.arange(count, device=views.device)[None] % valid.sum(dim=1, keepdim=True)
    chosen = order.gather(1, position)
    return views.gather(1, chosen[:, :, None].expand(-1, -1, views.shape[2]))
