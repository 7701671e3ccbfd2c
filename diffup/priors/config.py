"""Which priors a decoder is conditioned on: part of the decoder's config, since its weights expect these channels."""

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

LEVELS = 4
"""Feature levels of a backbone and of the decoder (docs/how_it_works.md)."""


@dataclass(frozen=True)
class PriorConfig:
    """Settings of BAFT and UAPF.

    Args:
        kinds: prior maps per view, the first of them also gives the extra priors: `prototype` similarity to the
            foreground prototype (eq. 10), `contrast` that minus the similarity to the background prototype, `match`
            best foreground match minus best background match.
        metric: similarity of features (Table 7); `cosine` or a distance.
        conversion: distance to similarity (Table 7); `identity` for the cosine.
        centre: subtract from query and support features their own image's mean before comparing them, for the
            `prototype` and `match` priors and the affinity. Takes away what all positions of an encoder share.
        affinity: enhance each prior with the query's affinity (eq. 11; Table 6).
        affinity_power: sharpness of the affinity.
        normalisation: how maps reach [0, 1].
        extra_priors: number of individual priors given besides mean and variance; 0 for none.
        layout: `own` gives U-Net level l the priors of backbone level l (the paper); `all` gives every U-Net level
            the priors of all backbone levels.
        saliency: one more map per level: how unlike its own border each position of the query is.
        calibration: how much of the query to expect, which maps that are stretched to [0, 1] cannot tell: one more map
            per level, the contrast on the scale of the support's own scores, and one constant per condition, the share
            of the supports that may be the class.
        edges: Canny and Sobel channels of the query image (Table 6).
        grid: features are pooled to at most this many positions a side before they are compared; those of the first two
            levels, which say little of what things are, to half as many.

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
        """Most positions a side at each level."""
        return (max(1, self.grid // 2),) * 2 + (self.grid,) * 2

    @property
    def prior_channels(self) -> int:
        """Channels of one backbone level: mean and variance of each kind, extra, calibrated contrast, saliency."""
        return 2 * len(self.kinds) + self.extra_priors + self.calibration + self.saliency

    @property
    def condition_channels(self) -> int:
        """Channels of every condition level."""
        return self.prior_channels * (LEVELS if self.layout == "all" else 1) + 2 * self.edges + self.calibration
