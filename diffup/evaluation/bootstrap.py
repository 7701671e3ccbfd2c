"""Confidence intervals of an evaluation's figures, from a bootstrap over query photos (Efron, 1979).

Another evaluation would have other photos, so photos are what is drawn anew, with replacement: all episodes of a query
photo (other classes, other supports, other seeds) are drawn together, since they are no independent evidence. Rows are
resampled with the same photos, which makes differences between them paired.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from diffup.errors import ConfigError
from diffup.evaluation.presence import auc, false_alarms
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore, presence_arrays
from diffup.evaluation.sweep import Row
from diffup.utils.options import whole_number

RESAMPLES = 1000
"""Number of resamples of the photos."""

SEED = 0
"""Default random seed of the resamples."""

LEVEL = 0.95
"""Confidence level of the intervals."""

Interval: TypeAlias = tuple[float, float]
"""Lower and upper end of a confidence interval."""

Draws: TypeAlias = npt.NDArray[np.float64]
"""(R,) float64, a figure in each of R resamples."""

_CONSTANT = 1e-12
"""Variance below which values are all the same up to rounding."""


@dataclass(frozen=True)
class Difference:
    """A difference between two evaluations of the same episodes.

    Args:
        value: the difference, in points for figures in percent.
        interval: its 95 % confidence interval.
    """

    value: float
    interval: Interval


def photos(rows: Sequence[Row]) -> list[str]:
    """Return the names of the query photos of some rows, each once, sorted.

    Args:
        rows: rows of a sweep.
    """
    return sorted({episode.query for row in rows for episode in row.episodes})


def intervals(rows: Sequence[Row], *, seed: int = SEED) -> dict[str, Interval]:
    """Return the 95 % confidence interval of each figure's mean over rows, by name of the figure (percentiles).

    With one or two photos of a class, intervals are rough and tend to be too narrow.

    Args:
        rows: a row, or rows of one data set over which figures are averaged, such as those of its folds.
        seed: random seed of the resamples, 0 or more.

    Raises:
        ConfigError: there is no row, or the seed is no whole number from 0.
    """
    return {name: _interval(draws) for name, draws in _mean_draws(rows, seed).items()}


def difference(rows: Sequence[Row], others: Sequence[Row], figure: str = "miou", *, seed: int = SEED) -> Difference:
    """Return the difference between two sets of rows that score the same episodes, each the mean over its rows.

    Episodes are the same if their queries and classes are; supports, annotations, encoders and decoders may differ.

    Args:
        rows: the rows from whose mean is subtracted.
        others: the rows whose mean is subtracted, as many and in the same order.
        figure: name of a figure of `intervals`.
        seed: random seed of the resamples, 0 or more.

    Raises:
        ConfigError: the rows do not score the same episodes, there is no row or no such figure, or the seed is no
            whole number from 0.
    """
    if not paired(rows, others):
        raise ConfigError(
            "rows, others: they score other episodes, so there is no paired difference. Compare rows of the same data "
            "set, folds, seeds and number of episodes whose queries are drawn alike"
        )
    known = [row.scores.figures() for row in (*rows, *others)]
    if known and figure not in known[0]:
        raise ConfigError(f"figure={figure!r}: expected one of {', '.join(known[0])}")
    draws = _mean_draws(rows, seed)[figure] - _mean_draws(others, seed)[figure]
    values = [figures[figure] for figures in known]
    value = statistics.fmean(values[: len(rows)]) - statistics.fmean(values[len(rows) :])
    return Difference(value, _interval(draws))


def paired(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether two sets of rows score the same queries and classes of the same data set, row by row.

    Args:
        rows: rows of a sweep.
        others: other rows of a sweep.
    """
    return len(rows) == len(others) and all(
        a.setting.dataset == b.setting.dataset and _asked(a) == _asked(b) for a, b in zip(rows, others, strict=True)
    )


def resample(count: int, seed: int) -> npt.NDArray[np.float64]:
    """Draw as many photos as there are, with replacement, `RESAMPLES` times.

    Args:
        count: number of photos.
        seed: random seed.

    Returns:
        (RESAMPLES, count) float64, how often each photo is drawn.
    """
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    places = drawn + count * np.arange(RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count).astype(np.float64)


def weighted_figures(row: Row, weights: npt.NDArray[np.float64]) -> dict[str, Draws]:
    """Compute the figures of resampled episodes of a row; with weights of 1 they are those of `Scores.figures`.

    The best thresholds stay those of the row. A class of the episodes that a resample misses does not count in the
    resample's mean over classes; one without any episode counts as 0, as in the figures. A resample without an episode
    has figures of NaN.

    Args:
        row: a row of E episodes.
        weights: (R, E) float64, how often each episode is in each of R resamples.

    Returns:
        The draws of each figure, by its name.
    """
    ids = np.array([episode.class_id for episode in row.episodes])
    best, prior = (THRESHOLDS.index(chosen) for chosen in (row.scores.best_threshold, row.scores.best_prior_threshold))
    overlaps = np.array([(e.mask, e.boundary, e.decoder[best], e.prior[prior]) for e in row.episodes], dtype=np.float64)
    iou, present = np.zeros((len(weights), overlaps.shape[1])), np.zeros(len(weights))
    for class_id in np.unique(ids):
        weight, overlap = weights[:, ids == class_id], overlaps[ids == class_id]
        intersection, union = (weight @ overlap[..., part] for part in range(2))
        iou += intersection / np.maximum(union, 1)
        present += weight.any(axis=1)
    observed = len(np.unique(ids)) / len(row.scores.class_iou)
    with_absent = np.array([episode.absent is not None for episode in row.episodes])
    presences, resampled = presence_arrays(row.episodes), (weights, weights[:, with_absent])
    any_class = np.where(present > 0, present, np.nan)
    miou, boundary_iou, best_miou, prior_best_miou = (100 * observed * iou / any_class[:, None]).T
    return {
        "miou": miou,
        "fb_iou": np.where(present > 0, _fb_iou(row.episodes, weights), np.nan),
        "boundary_iou": boundary_iou,
        "best_miou": best_miou,
        "prior_best_miou": prior_best_miou,
        "gain_over_prior": miou - prior_best_miou,
        "quality_correlation": np.where(present > 0, _correlation(row.episodes, weights), np.nan),
        "presence_auc": 100 * auc(*presences, weights=resampled),
        "false_alarms": 100 * false_alarms(*presences, weights=resampled),
    }


def _mean_draws(rows: Sequence[Row], seed: int) -> dict[str, Draws]:
    """Draws of each figure's mean over rows, which are resampled with the same photos."""
    if not rows:
        raise ConfigError("rows: the list is empty, so there is no figure")
    if whole_number("seed", seed) < 0:
        raise ConfigError(f"seed={seed}: it must be 0 or more")
    names = photos(rows)
    place = {name: index for index, name in enumerate(names)}
    weights = resample(len(names), seed)
    found = [weighted_figures(row, weights[:, [place[e.query] for e in row.episodes]]) for row in rows]
    return {name: _mean_of_known(np.array([draws[name] for draws in found])) for name in found[0]}


def _mean_of_known(draws: npt.NDArray[np.float64]) -> Draws:
    """Mean over rows (N, R): a resample of very few photos may have none of a row, whose figures are NaN."""
    known = ~np.isnan(draws)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, draws, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _interval(draws: Draws) -> Interval:
    known = draws[~np.isnan(draws)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _asked(row: Row) -> list[tuple[int, int, str]]:
    return [(episode.index, episode.class_id, episode.query) for episode in row.episodes]


def _fb_iou(episodes: Sequence[EpisodeScore], weights: npt.NDArray[np.float64]) -> Draws:
    counts = np.array([(*episode.mask, episode.pixels) for episode in episodes], dtype=np.float64)
    intersection, union, pixels = (weights @ counts).T
    foreground = intersection / np.maximum(union, 1)
    background = (pixels - union) / np.maximum(pixels - intersection, 1)
    return np.asarray(100 * (foreground + background) / 2)


def _correlation(episodes: Sequence[EpisodeScore], weights: npt.NDArray[np.float64]) -> Draws:
    """Weighted Pearson correlation of predicted and true IoU; 0 where one of them does not vary, as in the figure."""
    values = np.array([(episode.quality, episode.iou) for episode in episodes])
    x, y = (values - values.mean(axis=0)).T  # centred, so that little is lost in the differences below
    total = np.maximum(weights.sum(axis=1), 1)
    mean_x, mean_y, xx, yy, xy = ((weights @ value) / total for value in (x, y, x * x, y * y, x * y))
    var_x, var_y = xx - mean_x**2, yy - mean_y**2
    varied = np.minimum(var_x, var_y) > _CONSTANT
    scale = np.sqrt(np.where(varied, var_x * var_y, 1))
    return np.where(varied, np.clip((xy - mean_x * mean_y) / scale, -1, 1), 0.0)
