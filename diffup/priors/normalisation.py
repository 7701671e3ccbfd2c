"""Normalisation of similarity maps of any encoder to [0, 1] (paper, Fig. 6; docs/how_it_works.md)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Normalisation = Literal["minmax", "rank", "affine"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)

_EPS = 1e-6


def normalise(maps: Tensor, method: Normalisation = "minmax") -> Tensor:
    """Normalise every map to [0, 1].

    Args:
        maps: (..., P), maps of P positions.
        method: `minmax` stretches each map to [0, 1]; `rank` replaces each value by its rank, which makes the
            histograms of all encoders equal; `affine` is (1 + value) / 2, meant for plain cosines.

    Returns:
        (..., P) in [0, 1]. A constant map is 0 under `minmax` and 1/2 under `rank`.
    """
    if method == "minmax":
        low, high = maps.aminmax(dim=-1, keepdim=True)
        return (maps - low) / (high - low).clamp_min(_EPS)
    if method == "rank":
        # Equal values share the mean of their ranks: a constant map must not become a ramp.
        ordered = maps.sort(dim=-1).values
        ranks = torch.searchsorted(ordered, maps) + torch.searchsorted(ordered, maps, right=True) - 1
        return ranks.to(maps.dtype) / (2 * max(maps.shape[-1] - 1, 1))
    return ((1 + maps) / 2).clamp(0, 1)


def gamma(maps: Tensor, exponent: Tensor) -> Tensor:
    """Gamma correction of maps; 0 and 1 are unchanged.

    Training draws the exponent at random, so that a decoder does not learn how peaked one encoder's priors are.

    Args:
        maps: maps of any shape in [0, 1].
        exponent: exponent above 0, of a shape that broadcasts to the maps'.
    """
    return torch.pow(maps.clamp_min(_EPS), exponent)
