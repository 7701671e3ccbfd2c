"""Scoring a model on a labelled folder, through the same functions as `DiffUp.segment`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from diffup.annotation import Support, rasterise
from diffup.data.folder import LabelledFolder
from diffup.data.weak import AnnotationKind, weaken
from diffup.decoder.sampling import draw_noise, sample
from diffup.evaluation.episodes import Episode
from diffup.evaluation.meter import Meter
from diffup.images import resize_image
from diffup.model import DiffUp, enlarge
from diffup.priors.condition import EDGE_SIDE, Condition, build_condition, pool_to_grid
from diffup.priors.views import IDENTITY, View, warp
from diffup.support import plan_views, support_features, view_regions

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class Scores:
    """Scores of one setting.

    Args:
        miou: at the model's threshold, percent.
        fb_iou: at the model's threshold, percent.
        miou_by_threshold: mIoU at each of `THRESHOLDS`.
        prior_miou_by_threshold: mIoU of the training-free mean prior at each of `THRESHOLDS`.
        quality_correlation: Pearson correlation of the predicted IoU with the true one over episodes.
    """

    miou: float
    fb_iou: float
    miou_by_threshold: dict[float, float]
    prior_miou_by_threshold: dict[float, float]
    quality_correlation: float

    @property
    def best_prior(self) -> float:
        """MIoU of the prior at its best threshold: an upper bound that no user could choose."""
        return max(self.prior_miou_by_threshold.values())

    @property
    def best_threshold(self) -> float:
        """The threshold with the highest mIoU."""
        return max(self.miou_by_threshold, key=lambda t: self.miou_by_threshold[t])


class Evaluator:
    """Scores one model; features of images are computed once and shared between settings.

    Args:
        model: the model.
        folder: the data.
    """

    def __init__(self, model: DiffUp, folder: LabelledFolder) -> None:
        self.model = model
        self.folder = folder
        self._features: dict[tuple[str, View], list[Tensor]] = {}
        self._images: dict[str, Tensor] = {}

    def run(
        self,
        episodes: Sequence[Episode],
        annotation: AnnotationKind = "mask",
        *,
        steps: int | None = None,
        ensemble: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        bf16: bool = False,
        progress: bool = False,
    ) -> Scores:
        """Score episodes.

        Args:
            episodes: of `draw_episodes`.
            annotation: kind that the supports' masks are weakened to.
            steps: DDIM steps; the config's by default.
            ensemble: samples averaged; the config's by default.
            seed: seed of weak annotations and noise.
            batch_size: episodes sampled together.
            bf16: sample in bfloat16.
            progress: show a progress bar.
        """
        model = self.model
        steps, ensemble, threshold = model.sampling_options(steps, ensemble, None)
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        classes = sorted({episode.class_id for episode in episodes})
        tally = _Tally(classes, threshold)
        with tqdm(total=len(episodes), desc=f"{model.backbone.name} {annotation}", disable=not progress) as bar:
            for start in range(0, len(episodes), batch_size):
                chunk = episodes[start : start + batch_size]
                condition = _stack([self._condition(episode, annotation, rng) for episode in chunk])
                noise = draw_noise(condition, ensemble, generator)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                    samples = sample(model.decoder, model.diffusion, condition, noise, steps)
                probability = samples.probability.mean(dim=1).float()
                prior = condition.prior[:, 0] * 0.5 + 0.5
                for index, episode in enumerate(chunk):
                    labels = self.folder.mask(episode.query)
                    maps = enlarge(torch.stack([probability[index], prior[index]]), labels.shape).numpy()
                    tally.add(episode.class_id, maps, labels, self.folder.ignore, float(samples.iou[index]))
                bar.update(len(chunk))
        return tally.scores()

    def _condition(self, episode: Episode, annotation: AnnotationKind, rng: np.random.Generator) -> Condition:
        model = self.model
        supports = []
        for name in episode.supports:
            mask = self.folder.mask(name) == episode.class_id
            weak = weaken(mask, annotation, rng)
            supports.append(Support(self._image(name), weak, rasterise(weak, mask.shape)))
        plan = plan_views(len(supports))
        views = [self._encoded(episode.supports[index], view) for index, view in plan]
        levels = [torch.stack(level) for level in zip(*views, strict=True)]
        features = support_features(levels, view_regions(supports, plan).to(model.device))
        query = [level[None] for level in self._encoded(episode.query, IDENTITY)]
        small = resize_image(self._image(episode.query), (EDGE_SIDE, EDGE_SIDE))[None].to(model.device)
        return build_condition(query, features, small, model.config.priors)

    def _image(self, name: str) -> Tensor:
        if name not in self._images:
            self._images[name] = self.folder.image(name)
        return self._images[name]

    def _encoded(self, name: str, view: View) -> list[Tensor]:
        """Features of a view of an image, pooled to the grid that the priors compare them on."""
        if (name, view) not in self._features:
            image = warp(resize_image(self._image(name), self.model.backbone.input_size)[None], view)[0]
            grid = self.model.config.priors.grid
            self._features[name, view] = [pool_to_grid(level, grid)[0] for level in self.model.encode([image])]
        return self._features[name, view]


class _Tally:
    """Meters at every threshold, of the decoder and of the prior."""

    def __init__(self, classes: Sequence[int], threshold: float) -> None:
        self.threshold = threshold
        self.meter = Meter(classes)
        self.decoder = {t: Meter(classes) for t in THRESHOLDS}
        self.prior = {t: Meter(classes) for t in THRESHOLDS}
        self.qualities: list[tuple[float, float]] = []

    def add(
        self, class_id: int, maps: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], ignore: int, quality: float
    ) -> None:
        target, skip = labels == class_id, labels == ignore
        predicted = maps[0] > self.threshold
        self.meter.update(class_id, predicted, target, skip)
        union = ((predicted | target) & ~skip).sum()
        self.qualities.append((quality, float((predicted & target & ~skip).sum() / max(union, 1))))
        for meters, probability in ((self.decoder, maps[0]), (self.prior, maps[1])):
            for threshold, meter in meters.items():
                meter.update(class_id, probability > threshold, target, skip)

    def scores(self) -> Scores:
        predicted, true = np.array(self.qualities).T
        varied = len(true) > 1 and predicted.std() > 0 and true.std() > 0
        return Scores(
            miou=self.meter.miou(),
            fb_iou=self.meter.fb_iou(),
            miou_by_threshold={t: meter.miou() for t, meter in self.decoder.items()},
            prior_miou_by_threshold={t: meter.miou() for t, meter in self.prior.items()},
            quality_correlation=float(np.corrcoef(predicted, true)[0, 1]) if varied else 0.0,
        )


def _stack(conditions: Sequence[Condition]) -> Condition:
    return Condition(
        tuple(torch.cat(levels) for levels in zip(*(c.levels for c in conditions), strict=True)),
        torch.cat([c.prior for c in conditions]),
        torch.cat([c.image for c in conditions]),
    )
