"""How well the presence tells queries that show the class from photos that do not.

The photo without the class of an episode is the query of an episode before it, so that nothing more has to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from diffup.evaluation.episodes import Episode

RECALL = 0.9
"""Share of the queries with the class at which false alarms are counted."""

_ROUNDING = 1e-9  # of sums of weights

Floats = npt.NDArray[np.float64]


def absent_photos(episodes: Sequence[Episode], shows: Callable[[str, int], bool]) -> list[str | None]:
    """Find for each episode a photo that does not show its class: the query of the nearest episode before it.

    Args:
        episodes: the episodes of a stream.
        shows: function of an image's name and a class id: whether any pixel is of the class.

    Returns:
        Names of photos; None where every query before shows the class.
    """
    queries = [episode.query for episode in episodes]
    known: dict[tuple[str, int], bool] = {}

    def lacks(name: str, class_id: int) -> bool:
        if (name, class_id) not in known:
            known[name, class_id] = not shows(name, class_id)
        return known[name, class_id]

    return [
        next((name for name in reversed(queries[:index]) if lacks(name, episode.class_id)), None)
        for index, episode in enumerate(episodes)
    ]


def auc(shown: Floats, absent: Floats, weights: tuple[Floats, Floats] | None = None) -> Floats:
    """Area under the ROC curve: probability that a presence of `shown` exceeds one of `absent`, ties counting half.

    Args:
        shown: (N,), presence of queries that show the class.
        absent: (M,), presence of photos that do not.
        weights: (R, N) and (R, M), how often each is in each of R resamples; by default all once.

    Returns:
        (R,) in [0, 1], R = 1 without weights; NaN where a side is empty.
    """
    ours, theirs = _weights(shown, absent, weights)
    difference = shown[:, None] - absent[None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    pairs = ours.sum(axis=1) * theirs.sum(axis=1)
    return _ratio(((ours @ wins) * theirs).sum(axis=1), pairs)


def false_alarms(
    shown: Floats, absent: Floats, recall: float = RECALL, weights: tuple[Floats, Floats] | None = None
) -> Floats:
    """Share of the photos without the class whose presence reaches that of `recall` of the queries with it.

    Args:
        shown: (N,), presence of queries that show the class.
        absent: (M,), presence of photos that do not.
        recall: share of the queries whose presence is at least the minimum.
        weights: (R, N) and (R, M), how often each is in each of R resamples; by default all once.

    Returns:
        (R,) in [0, 1], R = 1 without weights; NaN where a side is empty.
    """
    ours, theirs = _weights(shown, absent, weights)
    if not len(shown):
        return np.full(len(ours), math.nan)
    order = np.argsort(-shown)
    reached = ours[:, order].cumsum(axis=1)
    floor = shown[order][(reached >= recall * reached[:, -1:] - _ROUNDING).argmax(axis=1)]
    alarms = _ratio((theirs * (absent >= floor[:, None])).sum(axis=1), theirs.sum(axis=1))
    return np.where(reached[:, -1] > 0, alarms, math.nan)


def _weights(shown: Floats, absent: Floats, weights: tuple[Floats, Floats] | None) -> tuple[Floats, Floats]:
    return (np.ones((1, len(shown))), np.ones((1, len(absent)))) if weights is None else weights


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1), math.nan)
