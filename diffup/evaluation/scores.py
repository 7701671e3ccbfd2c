"""Scores of episodes, and what is computed from them: mean IoU over classes, and how far quality and presence hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from diffup.data.base import Target
from diffup.evaluation.meter import Meter
from diffup.evaluation.presence import Floats, auc, false_alarms

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds at which every episode is scored, in addition to the model's own."""

Overlap: TypeAlias = tuple[int, int]
"""Numbers of pixels in the intersection and in the union of a mask and its target."""


@dataclass(frozen=True)
class EpisodeScore:
    """Pixel counts and predicted quality of one episode, from which scores are computed.

    Args:
        index: index of the episode in its stream.
        class_id: id of the class.
        query: name of the query image.
        pixels: number of pixels that count (not ignored).
        mask: overlap of the mask with the target, at the model's threshold.
        boundary: overlap of the boundary of the mask with that of the target, at the model's threshold.
        decoder: overlap of the mask with the target, at each of `THRESHOLDS`, which are applied to the probability that
            was refined at the model's threshold.
        prior: overlap of the training-free mean prior with the target, at each of `THRESHOLDS`.
        quality: calibrated IoU that the decoder expects, in [0, 1].
        presence: probability that the query shows the class, in [0, 1].
        absent: the same of a photo that does not show it; None if no query before does not (`absent_photos`).
    """

    index: int
    class_id: int
    query: str
    pixels: int
    mask: Overlap
    boundary: Overlap
    decoder: tuple[Overlap, ...]
    prior: tuple[Overlap, ...]
    quality: float
    presence: float
    absent: float | None = None

    @property
    def iou(self) -> float:
        """IoU of the mask at the model's threshold, in [0, 1]."""
        return self.mask[0] / max(self.mask[1], 1)

    def prior_iou(self, threshold: float = 0.5) -> float:
        """Return the IoU of the mean prior, in [0, 1] (Fig. 6).

        Args:
            threshold: one of `THRESHOLDS`.
        """
        intersection, union = self.prior[THRESHOLDS.index(threshold)]
        return intersection / max(union, 1)


@dataclass(frozen=True)
class Scores:
    """Scores of one setting, in percent.

    Args:
        miou: mean IoU over classes, at the model's threshold.
        fb_iou: mean of foreground and background IoU, at the model's threshold.
        boundary_iou: mean boundary IoU over classes, at the model's threshold (`diffup.evaluation.boundary`).
        class_iou: IoU of each class by class id, at the model's threshold.
        miou_by_threshold: mIoU at each of `THRESHOLDS`.
        prior_miou_by_threshold: mIoU of the training-free mean prior at each of `THRESHOLDS`.
        quality_correlation: Pearson correlation between predicted and true IoU over the episodes, in [-1, 1].
        presence_auc: area under the ROC curve of the presence, queries against photos without the class; NaN without
            such photos.
        false_alarms: share of these photos whose presence reaches that of nine in ten queries; NaN without such photos.
    """

    miou: float
    fb_iou: float
    boundary_iou: float
    class_iou: dict[int, float]
    miou_by_threshold: dict[float, float]
    prior_miou_by_threshold: dict[float, float]
    quality_correlation: float
    presence_auc: float
    false_alarms: float

    @property
    def best_threshold(self) -> float:
        """The threshold with the highest mIoU."""
        return max(self.miou_by_threshold, key=lambda t: self.miou_by_threshold[t])

    @property
    def best_prior_threshold(self) -> float:
        """The threshold at which the prior has its highest mIoU."""
        return max(self.prior_miou_by_threshold, key=lambda t: self.prior_miou_by_threshold[t])

    @property
    def best_prior(self) -> float:
        """MIoU of the prior at its best threshold, in percent: an upper bound, chosen with the true masks."""
        return self.prior_miou_by_threshold[self.best_prior_threshold]

    def figures(self) -> dict[str, float]:
        """Return the headline figures by name; `gain_over_prior` is the mIoU less that of the best prior."""
        return {
            "miou": self.miou,
            "fb_iou": self.fb_iou,
            "boundary_iou": self.boundary_iou,
            "best_miou": self.miou_by_threshold[self.best_threshold],
            "prior_best_miou": self.best_prior,
            "gain_over_prior": self.miou - self.best_prior,
            "quality_correlation": self.quality_correlation,
            "presence_auc": self.presence_auc,
            "false_alarms": self.false_alarms,
        }


def overlaps(probability: npt.NDArray[np.float32], target: Target, thresholds: Sequence[float]) -> tuple[Overlap, ...]:
    """Count the pixels of intersection and union of a target and the masks `probability > threshold`.

    Args:
        probability: (H, W) float32 in [0, 1], probability of the class.
        target: the true mask, of the same size.
        thresholds: thresholds in (0, 1), ascending.
    """
    counted = ~target.ignore
    passed = np.searchsorted(np.array(thresholds, dtype=probability.dtype), probability[counted], side="left")
    true = target.mask[counted]
    marked = _beyond(passed, len(thresholds))
    intersection = _beyond(passed[true], len(thresholds))
    union = marked + true.sum() - intersection
    return tuple(zip(intersection.tolist(), union.tolist(), strict=True))


def summarise(episodes: Collection[EpisodeScore], classes: Collection[int]) -> Scores:
    """Compute the scores of a set of episodes.

    Args:
        episodes: scores of one or more episodes, in any order.
        classes: ids of the classes over which the mean is taken.
    """
    ordered = sorted(classes)
    meter, outline = Meter(ordered), Meter(ordered)
    decoder, prior = ({t: Meter(ordered) for t in THRESHOLDS} for _ in range(2))
    for episode in episodes:
        meter.add(episode.class_id, *episode.mask, episode.pixels)
        outline.add(episode.class_id, *episode.boundary, episode.pixels)
        for meters, found in ((decoder, episode.decoder), (prior, episode.prior)):
            for at, overlap in zip(meters.values(), found, strict=True):
                at.add(episode.class_id, *overlap, episode.pixels)
    predicted, true = np.array([(e.quality, e.iou) for e in sorted(episodes, key=lambda e: e.index)]).T
    varied = len(true) > 1 and predicted.std() > 0 and true.std() > 0
    presences = presence_arrays(episodes)
    return Scores(
        miou=meter.miou(),
        fb_iou=meter.fb_iou(),
        boundary_iou=outline.miou(),
        class_iou=meter.class_iou(),
        miou_by_threshold={t: at.miou() for t, at in decoder.items()},
        prior_miou_by_threshold={t: at.miou() for t, at in prior.items()},
        quality_correlation=float(np.corrcoef(predicted, true)[0, 1]) if varied else 0.0,
        presence_auc=100 * float(auc(*presences)[0]),
        false_alarms=100 * float(false_alarms(*presences)[0]),
    )


def presence_arrays(episodes: Collection[EpisodeScore]) -> tuple[Floats, Floats]:
    """Return the presences of the queries, and those of the photos without the class where there is one.

    Args:
        episodes: scores of episodes.
    """
    shown, absent = [e.presence for e in episodes], [e.absent for e in episodes if e.absent is not None]
    return np.array(shown, dtype=float), np.array(absent, dtype=float)


def _beyond(passed: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.int64]:
    """Count the pixels that pass each threshold, from the number of thresholds that each pixel passes."""
    return np.asarray(np.bincount(passed, minlength=count + 1)[::-1].cumsum()[::-1][1:], dtype=np.int64)
