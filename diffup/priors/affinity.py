"""The query's affinity with itself, which spreads a prior over similar positions (BAFT, eq. 11)."""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.priors.similarity import unit

_EPS = 1e-6


def affinity(features: Tensor, power: float = 1.0) -> Tensor:
    """Row-normalised affinity of every query position with every other (eq. 11).

    `A(i, j) = relu(cos(F(i), F(j))) ** power`, each row divided by its sum. A power above 1 sharpens: a position is
    then averaged with its most similar positions only.

    Args:
        features: (N, C, P), features of P positions.
        power: exponent, above 0; 1 is the paper's.

    Returns:
        (N, P, P), rows summing to 1 (to 0 where the features are all zero).
    """
    direction = unit(features, dim=1)
    weights = torch.bmm(direction.mT, direction).clamp_min_(0)
    if power != 1:
        weights = weights.square_() if power == 2 else weights.pow_(power)
    return weights.div_(weights.sum(dim=2, keepdim=True).clamp_min(_EPS))


def enhance(priors: Tensor, weights: Tensor) -> Tensor:
    """Affinity-enhanced priors `A vec(P)` (eq. 11).

    Args:
        priors: (N, M, P), M maps over P query positions.
        weights: (N, P, P), affinity of the query positions, rows summing to 1.

    Returns:
        (N, M, P).
    """
    return torch.bmm(priors, weights.mT)
