"""Calibration of what a decoder says of its masks, and how true it is: presence, quality and score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import (
    ESTIMATES,
    calibrated_presence,
    calibrated_quality,
    calibrated_score,
)
from diffup.errors import ConfigError
from diffup.evaluation.presence import Floats, auc, false_alarms

KEPT = 0.95
"""Share of the queries with the class that a fitted `min_presence` keeps: a mask that is missing costs more than one
that has to be deleted."""

RIDGE = 1e-3
"""Weight of the squared factors of a calibration, which keeps those of separable evidence finite."""

SOURCES = (slice(0, 3), slice(3, 5))
"""Values of `Condition.evidence` that supports give, and those that text gives; the last of each is the offset's."""

FITTED = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Thresholds at which the quality is fitted, so that it holds for whatever threshold a user chooses."""

PARTS = ("threshold", "presence", "quality")
"""What can be fitted: the threshold; presence and minimum presence; quality and score."""

USUAL = ("presence", "quality")
"""What is fitted by default."""

_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a decoder says of N queries that show the class and of N that do not, and what is true.

    Attributes:
        shown: (N, 5), `Condition.evidence` of queries that show the class.
        absent: (N, 5), the same of photos that do not show it.
        thresholds: T thresholds, those of `FITTED` and the decoder's own.
        estimates: (N, T, 4), `quality_estimates` of the masks at the thresholds, in the first ones.
        marked: (N, T) bool, whether these masks mark anything.
        iou: (N, T) in [0, 1], their true IoU.
        photos: N names of the first ones.
    """

    shown: Floats
    absent: Floats
    thresholds: tuple[float, ...]
    estimates: Floats
    marked: npt.NDArray[np.bool_]
    iou: Floats
    photos: tuple[str, ...]

    def column(self, threshold: float) -> int:
        """Index of a threshold.

        Args:
            threshold: a threshold.

        Raises:
            ConfigError: the evidence does not have it.
        """
        if threshold not in self.thresholds:
            raise ConfigError(f"threshold={threshold}: the evidence is of {', '.join(map(str, self.thresholds))}")
        return self.thresholds.index(threshold)


def join(parts: Sequence[Evidence]) -> Evidence:
    """Join evidence of several data sets, annotations or encoders, of the same thresholds."""
    names = ("shown", "absent", "estimates", "marked", "iou")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    photos = tuple(name for part in parts for name in part.photos)
    return Evidence(thresholds=parts[0].thresholds, photos=photos, **arrays)


def calibrate(
    evidence: Evidence, config: DecoderConfig, *, fit: Collection[str] = USUAL, recall: float = KEPT
) -> DecoderConfig:
    """Fit the calibrations of a decoder. Evidence that is not given leaves its factors.

    Args:
        evidence: evidence from queries that the decoder was not trained on, of classes that it was not trained on.
        config: the decoder's config.
        fit: what is fitted, of `PARTS`; the rest is left. Presence depends on the encoder alone.
        recall: share of the queries with the class whose presence reaches the minimum.

    Raises:
        ConfigError: `fit` names something else, or every class has supports and a name.
    """
    if unknown := sorted(set(fit) - set(PARTS)):
        raise ConfigError(f"fit={unknown[0]!r}: choose from {', '.join(PARTS)}")
    if {*USUAL} & {*fit} and not any(rows.any() for rows in _given_alone(evidence.shown)):
        raise ConfigError(
            "evidence: every class has supports and a name, from which the share of each cannot be told; add episodes "
            "with supports alone (mask, box, scribble) or with names alone (text)"
        )
    if "threshold" in fit:
        config = replace(config, threshold=best_threshold(evidence))
    if "presence" in fit:
        config = _with_presence(evidence, config, recall)
    if "quality" in fit:
        config = _with_quality(evidence, config)
    return config


def best_threshold(evidence: Evidence) -> float:
    """Return the threshold of the evidence with the greatest mean IoU; of equal ones the lowest."""
    return max(evidence.thresholds, key=lambda threshold: float(evidence.iou[:, evidence.column(threshold)].mean()))


def _with_presence(evidence: Evidence, config: DecoderConfig, recall: float) -> DecoderConfig:
    given = np.concatenate([evidence.shown, evidence.absent])
    truth = np.repeat([1.0, 0.0], len(evidence.shown))
    factors = np.array(config.presence_calibration)
    for source, rows in zip(SOURCES, _given_alone(given), strict=True):
        if rows.any():
            factors[source] = fit_logistic(given[rows, source], truth[rows])
    config = replace(config, presence_calibration=tuple(factors.tolist()))
    lowest = float(np.quantile(presences(evidence.shown, config), 1 - recall))
    return replace(config, min_presence=round(lowest, 3))


def _with_quality(evidence: Evidence, config: DecoderConfig) -> DecoderConfig:
    config = replace(config, quality_calibration=tuple(_quality_factors(evidence).tolist()))
    quality, iou = answers(evidence, config)
    slope, start = fit_logistic(np.stack([_logit(quality), np.ones(len(quality))], axis=1), (iou > 0.5).astype(float))
    return replace(config, score_calibration=(slope, start))


def _quality_factors(evidence: Evidence) -> Floats:
    """Fit `DecoderConfig.quality_calibration`; a source that is not given alone has the offset of the other."""
    columns = [evidence.column(threshold) for threshold in FITTED]
    alone = _given_alone(evidence.shown)
    rows = np.any(alone, axis=0)
    given = np.repeat(evidence.shown[rows, None], len(columns), axis=1)
    estimates = evidence.estimates[rows][:, columns]
    inputs = np.concatenate([estimates, given], axis=2).reshape(-1, ESTIMATES + given.shape[2])
    factors = np.array(fit_logistic(inputs, evidence.iou[rows][:, columns].reshape(-1)))
    offsets = [ESTIMATES + source.stop - 1 for source in SOURCES]
    given_offsets = [offset for offset, these in zip(offsets, alone, strict=True) if these.any()]
    if len(given_offsets) == 1:
        factors[offsets] = factors[given_offsets]
    return factors


def _given_alone(evidence: Floats) -> tuple[npt.NDArray[np.bool_], ...]:
    """Rows of evidence (N, 5) that have each source and no other."""
    given = [evidence[:, source.stop - 1] > 0 for source in SOURCES]
    return given[0] & ~given[1], given[1] & ~given[0]


def report(evidence: Evidence, config: DecoderConfig) -> dict[str, float]:
    """Compute how well a decoder judges itself.

    Args:
        evidence: evidence from queries that were not used to calibrate it.
        config: the decoder's config.

    Returns:
        `auc`, area under the ROC curve of the presence; `recall`, share of the queries with the class whose presence
        reaches `min_presence`, and `false_alarms`, that of the photos without it; `false_alarms_at_recall`, the latter
        where nine in ten of the queries reach it; `presence_error`, mean absolute difference of the presence to what is
        true; `iou`, mean true IoU of the masks, `best_threshold`, the one with which it is greatest, and
        `best_iou`, its value there; `spearman` and `error`, rank correlation and mean absolute difference of quality
        and true IoU; `score_error`, expected calibration error of the score given presence, in ten bins.

    Raises:
        ConfigError: the evidence does not have the decoder's threshold.
    """
    shown, absent = presences(evidence.shown, config), presences(evidence.absent, config)
    quality, iou = answers(evidence, config)
    best = best_threshold(evidence)
    right = calibrated_score(torch.from_numpy(quality), torch.ones(len(quality)), config.score_calibration).numpy()
    return {
        "auc": float(auc(shown, absent)[0]),
        "recall": float((shown >= config.min_presence).mean()),
        "false_alarms": float((absent >= config.min_presence).mean()),
        "false_alarms_at_recall": float(false_alarms(shown, absent)[0]),
        "presence_error": float(np.concatenate([1 - shown, absent]).mean()),
        "iou": float(iou.mean()),
        "best_threshold": best,
        "best_iou": float(evidence.iou[:, evidence.column(best)].mean()),
        "spearman": spearman(quality, iou),
        "error": float(np.abs(quality - iou).mean()),
        "score_error": calibration_error(right, iou > 0.5),
    }


def presences(evidence: Floats, config: DecoderConfig) -> Floats:
    """Presence from `Condition.evidence`: (N, 5) -> (N,) in [0, 1]."""
    rows = torch.from_numpy(evidence).float()
    return calibrated_presence(rows, config.presence_calibration).double().numpy()


def answers(evidence: Evidence, config: DecoderConfig) -> tuple[Floats, Floats]:
    """Calibrated quality and true IoU of the decoder's masks, (N,) in [0, 1] each; an empty mask has a quality of 0.

    Args:
        evidence: the evidence.
        config: the decoder's config.

    Raises:
        ConfigError: the evidence does not have the decoder's threshold.
    """
    column = evidence.column(config.threshold)
    estimates, given = (torch.from_numpy(part).float() for part in (evidence.estimates[:, column], evidence.shown))
    quality = calibrated_quality(estimates, given, config.quality_calibration).double().numpy()
    return np.where(evidence.marked[:, column], quality, 0.0), evidence.iou[:, column]


def fit_logistic(inputs: Floats, target: Floats) -> tuple[float, ...]:
    """Fit a logistic regression to shares, by Newton's method with a ridge of weight `RIDGE`.

    Args:
        inputs: (N, D), with a column of 1 for an offset.
        target: (N,) in [0, 1].

    Returns:
        D factors.
    """
    weights = np.zeros(inputs.shape[1])
    for _ in range(_ROUNDS):
        fitted = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (fitted - target) + RIDGE * weights
        curvature = (inputs * (fitted * (1 - fitted))[:, None]).T @ inputs + RIDGE * np.eye(len(weights))
        weights = weights - np.linalg.solve(curvature, slope)
    return tuple(float(weight) for weight in weights)


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation; tied values share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def calibration_error(probability: Floats, truth: npt.NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error (Guo et al., ICML 2017) in bins of equal width.

    Args:
        probability: (N,) in [0, 1].
        truth: (N,), what is true.
        bins: number of bins.
    """
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(float((probability[index == b] - truth[index == b]).sum())) for b in range(bins)]
    return sum(gaps) / len(probability)


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])


def _logit(share: Floats) -> Floats:
    return np.asarray(torch.logit(torch.from_numpy(share), eps=1e-3).numpy())
