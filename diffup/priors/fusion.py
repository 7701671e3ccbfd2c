"""Uncertainty-aware prior fusion: any number of views become the same channels (UAPF, paper section III-C, eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor


def fuse(views: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance over the views of a query (eq. 12, where all weights are 1).

    Args:
        views: (B, K, P) in [0, 1], K views of P positions.
        weights: (B, K), bool or not negative; 0 for the shots that an episode lacks. At least one is not 0.

    Returns:
        The mean (B, P) in [0, 1] and the biased variance times 4 (B, P) in [0, 1]; 0.25 is the greatest variance of a
        variable in [0, 1].
    """
    weights = weights.to(views.dtype)[:, :, None]
    total = weights.sum(dim=1)
    mean = (views * weights).sum(dim=1) / total
    variance = ((views - mean[:, None]).square() * weights).sum(dim=1) / total
    return mean, variance * 4


def nearest_views(views: Tensor, valid: Tensor, mean: Tensor, count: int) -> Tensor:
    """The individual priors nearest to the mean, as extra channels ("a fixed number of priors", section III-C).

    Choosing by distance to the mean makes the result independent of the order of the supports; of two equally near (two
    views always are) the one with the smaller values comes first. With fewer valid views than `count` the nearest ones
    repeat.

    Args:
        views: (B, K, P) in [0, 1].
        valid: (B, K) bool.
        mean: (B, P) of `fuse`.
        count: number of views to return.

    Returns:
        (B, count, P).
    """
    distance = (views - mean[:, None]).square().mean(dim=2)
    # Rounding errors must not decide between equals: one percent of the distance goes by the views' own mean.
    distance = (distance * (1 + 0.01 * views.mean(dim=2))).masked_fill(~valid, torch.inf)
    order = distance.argsort(dim=1, stable=True)
    position = torch.arange(count, device=views.device)[None] % valid.sum(dim=1, keepdim=True)
    chosen = order.gather(1, position)
    return views.gather(1, chosen[:, :, None].expand(-1, -1, views.shape[2]))
