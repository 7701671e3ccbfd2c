"""The config of the priors: part of the decoder's config, since its weights expect these channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from diffup.errors import ConfigError
from diffup.priors.normalisation import NORMALISATIONS, Normalisation
from diffup.priors.similarity import Conversion, Metric, check_metric

PriorKind = Literal["prototype", "contrast", "match"]
PRIOR_KINDS: tuple[PriorKind, ...] = get_args(PriorKind)
Layout = Literal["own", "all"]

MAX_EXTRA_PRIORS = 100

LOW_LEVEL_GRID = 64
"""Greatest side, in positions, to which the low-level features of DiffUp+LFE are pooled: the decoder's finest side."""

LEVELS = 4
"""Feature levels of a backbone and of the decoder (docs/how_it_works.md)."""


@dataclass(frozen=True)
class PriorConfig:
    """Settings of BAFT and UAPF (paper sections III-B and III-C).

    Args:
        kinds: prior kinds, one map each per view; the first also gives the extra priors. `prototype`: similarity to the
            foreground prototype (eq. 10); `contrast`: that minus the similarity to the background prototype; `match`:
            best foreground match minus best background match.
        metric: comparison of features (Table 7), `cosine` or a distance.
        conversion: conversion of a distance to a similarity (Table 7); `identity` for the cosine.
        centre: whether to subtract each image's mean feature before comparing features, for the `prototype` and `match`
            priors and the affinity; it removes what an encoder gives at all positions.
        affinity: whether to enhance each prior with the query's affinity (eq. 11; Table 6).
        affinity_power: exponent of the affinity, above 0; above 1 it is sharper.
        normalisation: method that maps priors to [0, 1].
        extra_priors: number of individual priors in addition to mean and variance, 0 to 100.
        layout: `own` gives U-Net level l the priors of backbone level l (the paper); `all` gives every U-Net level
            the priors of all backbone levels.
        saliency: whether to add a map per level of how much each position of the query differs from the image's border.
        calibration: whether to add how much of the query to expect, which maps stretched to [0, 1] cannot show: a map
            per level, the contrast on the scale of the support's own scores, and a constant per condition, the fraction
            of the supports that may be the class.
        absolute: whether to add each kind's mean over the views before it is stretched to [0, 1]; only these maps can
            tell a query without the class from one with it.
        self_affinity: whether the condition includes affinities of the query's positions, by which the decoder averages
            its own features (`diffup.priors.affinity.self_affinities`).
        edges: whether to add Canny and Sobel channels of the query image (Table 6).
        grid: greatest side, in positions, to which features are pooled before they are compared; half of it for the
            first two levels, which are less semantic.

    Raises:
        ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    kinds: tuple[PriorKind, ...] = PRIOR_KINDS
    metric: Metric = "cosine"
    conversion: Conversion = "identity"
    centre: bool = True
    affinity: bool = True
    affinity_power: float = 2.0
    normalisation: Normalisation = "minmax"
    extra_priors: int = 2
    layout: Layout = "all"
    saliency: bool = True
    calibration: bool = True
    absolute: bool = True
    self_affinity: bool = True
    edges: bool = True
    grid: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        unknown = [kind for kind in self.kinds if kind not in PRIOR_KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise ConfigError(f"kinds={self.kinds!r}: give one or more different ones of {', '.join(PRIOR_KINDS)}")
        check_metric(self.metric, self.conversion)
        if self.normalisation not in NORMALISATIONS:
            raise ConfigError(f"normalisation={self.normalisation!r}: choose one of {', '.join(NORMALISATIONS)}")
        if self.layout not in get_args(Layout):
            raise ConfigError(f"layout={self.layout!r}: choose one of {', '.join(get_args(Layout))}")
        if not 0 < self.affinity_power < math.inf:
            raise ConfigError(f"affinity_power={self.affinity_power}: it must be above 0 and finite")
        if not 0 <= self.extra_priors <= MAX_EXTRA_PRIORS:
            raise ConfigError(f"extra_priors={self.extra_priors}: it must be 0 to {MAX_EXTRA_PRIORS}")
        if self.grid < 1:
            raise ConfigError(f"grid={self.grid}: it must be 1 or more")

    @property
    def grids(self) -> tuple[int, ...]:
        """Greatest side, in positions, of the features at each level."""
        return (max(1, self.grid // 2),) * 2 + (self.grid,) * 2

    @property
    def prior_channels(self) -> int:
        """Channels of one backbone level, in the order that `fused_priors` gives."""
        return (2 + self.absolute) * len(self.kinds) + self.extra_priors + self.calibration + self.saliency

    @property
    def absolute_maps(self) -> slice:
        """Channels of one backbone level that are absolute priors, one of each kind; empty without absolute priors."""
        start = 2 * len(self.kinds) + self.extra_priors + self.calibration
        return slice(start, start + self.absolute * len(self.kinds))

    @property
    def condition_channels(self) -> int:
        """Channels of every condition level."""
        return self.prior_channels * (LEVELS if self.layout == "all" else 1) + 2 * self.edges + self.calibration
