"""The query's affinity with itself, which spreads a prior over similar positions (BAFT, eq. 11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.priors.similarity import unit
from diffup.utils.resize import average_pool

_EPS = 1e-6
_TINY = 1e-30


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


KEY_SIDE = 16
"""Side of the grid of cells that a position's affinities compare it with."""

HEADS: dict[int, tuple[tuple[int, float], ...]] = {
    32: ((2, 3.0), (2, 10.0)),
    16: ((1, 4.0), (2, 3.0), (3, 2.0), (3, 6.0)),
}
"""Self-affinities of a condition: side of the grid of positions -> feature level (0 to 3) and power of each head.

Late levels say which positions show the same thing, early ones which look alike; a high power keeps only the most
similar positions.
"""


def self_affinities(query: Sequence[Tensor], members: Sequence[Sequence[int]] = ()) -> tuple[Tensor, ...]:
    """Affinities of a query's positions with the cells of a coarse grid, by which the decoder averages its features.

    Like the priors they do not depend on the encoder's channels: they do not change when feature space is rotated or
    padded. Features are centred on their mean over the positions.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        members: for each level, channels of each member of a joint backbone, whose affinities are averaged; empty for
            a single backbone.

    Returns:
        For each side s in `HEADS` a tensor (B, heads, s * s, 16 * 16), rows summing to 1.
    """
    found = []
    for side, heads in HEADS.items():
        similar = {level: _cosines(query[level], side, members[level] if members else ()) for level, _ in heads}
        weights = torch.stack([_power(similar[level], power) for level, power in heads], dim=1)
        found.append(weights.div_(weights.sum(dim=3, keepdim=True).clamp_min(_TINY)))
    return tuple(found)


def _power(similar: Tensor, exponent: float) -> Tensor:
    """Raise similarities to a power, negative ones as 0; so are results that processors are slow with, nearly 0."""
    return F.threshold(similar, _TINY ** (1 / exponent), 0.0) ** exponent


def _cosines(features: Tensor, side: int, widths: Sequence[int]) -> Tensor:
    """Centred cosines of positions and cells, the mean over members: (B, C, h, w) -> (B, side * side, 16 * 16)."""
    features = features.float()
    features = features / features.abs().max().clamp_min(_TINY)  # squares of large ones would overflow
    centred = features - features.mean(dim=(2, 3), keepdim=True)
    found = []
    for part in torch.split(centred, list(widths) or features.shape[1], dim=1):
        positions = unit(_at_side(part, side).flatten(2), dim=1)
        cells = positions if side == KEY_SIDE else unit(_at_side(part, KEY_SIDE).flatten(2), dim=1)
        found.append(torch.bmm(positions.mT, cells))
    return torch.stack(found).mean(dim=0) if len(found) > 1 else found[0]


def _at_side(features: Tensor, side: int) -> Tensor:
    """Features (B, C, h, w) at (side, side): their mean over cells, or interpolated where they are coarser."""
    if features.shape[2] == features.shape[3] == side:
        return features
    if min(features.shape[2:]) >= side:
        return average_pool(features, (side, side))
    return F.interpolate(features, (side, side), mode="bilinear", align_corners=False)


def enhance(priors: Tensor, weights: Tensor) -> Tensor:
    """Affinity-enhanced priors `A vec(P)` (eq. 11).

    Args:
        priors: (N, M, P), M maps over P query positions.
        weights: (N, P, P), affinity of the query positions, rows summing to 1.

    Returns:
        (N, M, P).
    """
    return torch.bmm(priors, weights.mT)
