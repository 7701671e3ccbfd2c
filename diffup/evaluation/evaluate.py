"""Evaluation of a model on the episodes of a data set, through the same functions as `DiffUp.segment`.

The weak annotations and noise of an episode depend only on the seed and its index, and batches have fixed borders. So
the scores of an episode do not depend on which episodes were scored before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from diffup.backbones.encode import encode
from diffup.data.base import Dataset, Target
from diffup.data.weak import AnnotationKind, weaken
from diffup.decoder.options import Sampling, SamplingKeywords, SamplingOptions, refuse_generator, sampling_options
from diffup.decoder.sampling import Ensemble, draw_noise, sample_ensemble
from diffup.errors import ConfigError, DataError
from diffup.evaluation.annotations import split_annotation
from diffup.evaluation.boundary import boundary_overlap
from diffup.evaluation.episodes import Episode
from diffup.evaluation.features import FeatureCache
from diffup.evaluation.meter import Meter
from diffup.inference import condition, text_prior_maps, trust
from diffup.inputs.annotations import Support, rasterise
from diffup.inputs.images import resize_image, to_bytes
from diffup.model import DiffUp
from diffup.priors.condition import EDGE_SIDE, Condition
from diffup.priors.features import SupportFeatures
from diffup.priors.level import pool_to_grid
from diffup.priors.support import plan_views, support_features, view_levels
from diffup.priors.views import IDENTITY, View
from diffup.refine import Guide, refine
from diffup.result import enlarge
from diffup.text.prompts import embed_text_prompts
from diffup.text.space import dense_features
from diffup.text.templates import Templates

if TYPE_CHECKING:
    from typing_extensions import Unpack

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds at which every episode is scored, in addition to the model's own."""

BATCH_SIZE = 16
"""Default number of episodes sampled together."""

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
    """

    miou: float
    fb_iou: float
    boundary_iou: float
    class_iou: dict[int, float]
    miou_by_threshold: dict[float, float]
    prior_miou_by_threshold: dict[float, float]
    quality_correlation: float

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
        }


class Evaluator:
    """Scores one model on one data set.

    Args:
        model: the model to score.
        data: the data set.
        scored: function that resizes a target to the size at which a protocol scores it
            (`EvaluationProtocol.scored`); by default targets keep their size.
        cache: cache of image features, which several evaluators may share; by default a new one.
        templates: sentences with `{}` where the class name goes, used if the annotation has text; by default
            `"a photo of a {}."`.
    """

    def __init__(
        self,
        model: DiffUp,
        data: Dataset,
        *,
        scored: Callable[[Target], Target] | None = None,
        cache: FeatureCache | None = None,
        templates: Templates | None = None,
    ) -> None:
        self.templates = templates
        self._embeddings: dict[int, Tensor] = {}
        self.model = model
        self.data = data
        self.scored = scored
        self.cache = FeatureCache() if cache is None else cache
        self._encoder = (model.backbone.fingerprint, model.backbone.input_size, model.config.feature_grids)

    def run(
        self,
        episodes: Sequence[Episode],
        annotation: str = "mask",
        *,
        classes: Collection[int] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Scores:
        """Score episodes and summarise their scores.

        Args:
            episodes: the episodes of a stream.
            annotation: kind of the supports' annotations, made from their masks; `text` for the class name alone, or
                both, such as `mask+text`.
            classes: ids of the classes over which the mean is taken, where a class without an episode counts as 0; by
                default the classes of the episodes.
            progress: whether to show a progress bar.
            **options: further keyword arguments of `score`, such as `batch_size` or sampling options.

        Raises:
            ConfigError: an option is out of range or unknown, or the data set cannot give this kind of annotation.
            DataError: there is no episode.
        """
        found: list[EpisodeScore] = []
        name = f"{self.model.backbone.name} {annotation}"
        with tqdm(total=len(episodes), desc=name, disable=not progress) as bar:
            for batch in self.score(episodes, annotation, **options):
                found += batch
                bar.update(len(batch))
        return summarise(found, {score.class_id for score in found} if classes is None else classes)

    def score(
        self,
        episodes: Sequence[Episode],
        annotation: str = "mask",
        *,
        options: SamplingOptions | None = None,
        batch_size: int = BATCH_SIZE,
        bf16: bool = False,
        done: Collection[int] = (),
        **sampling: Unpack[SamplingKeywords],
    ) -> Iterator[list[EpisodeScore]]:
        """Score episodes batch by batch.

        Args:
            episodes: the episodes of a stream.
            annotation: kind of the supports' annotations, made from their masks; `text` for the class name alone, or
                both, such as `mask+text`.
            options: sampling options; weak annotations use their seed too.
            batch_size: number of episodes sampled together.
            bf16: whether to sample under bfloat16 autocast.
            done: indices of episodes to leave out. A batch is skipped only if all its episodes are left out; otherwise
                it is sampled as a whole, so that rounding is the same.
            **sampling: fields of `SamplingOptions`, which override those of `options`.

        Returns:
            An iterator over the scores of each batch.

        Raises:
            ConfigError: an option is out of range or unknown, or the data set cannot give this kind of annotation.
            DataError: there is no episode.
        """
        if not episodes:
            raise DataError("episodes: the list is empty, so there is nothing to score")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: it must be 1 or more")
        check_annotation(self.data, annotation)
        chosen = sampling_options(options, sampling)
        refuse_generator(chosen)
        resolved = chosen.resolve(self.model.config)
        batches = [
            range(start, min(start + batch_size, len(episodes))) for start in range(0, len(episodes), batch_size)
        ]
        left = set(range(len(episodes))) - set(done)
        return (
            [
                score
                for score in self._batch(episodes, indices, annotation, resolved, chosen.seed, bf16)
                if score.index in left
            ]
            for indices in batches
            if not left.isdisjoint(indices)
        )

    def _batch(
        self,
        episodes: Sequence[Episode],
        indices: range,
        annotation: str,
        sampling: Sampling,
        seed: int,
        bf16: bool,
    ) -> list[EpisodeScore]:
        model, conditions, noises = self.model, [], []
        for index in indices:
            weak, noise = episode_generators(seed, index)
            conditions.append(self.condition(episodes[index], annotation, weak))
            noises.append(draw_noise(conditions[-1], sampling.ensemble, noise))
        together = Condition.cat(conditions)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            samples = sample_ensemble(model.decoder, together, torch.cat(noises), sampling.steps)
        return [
            self.compare(index, episodes[index], together, samples, at, sampling) for at, index in enumerate(indices)
        ]

    def compare(
        self, index: int, episode: Episode, condition: Condition, samples: Ensemble, row: int, sampling: Sampling
    ) -> EpisodeScore:
        """Compare the mask of an episode with its target.

        Args:
            index: index of the episode in its stream.
            episode: the episode.
            condition: conditions of a batch.
            samples: the decoder's samples of the batch.
            row: row of the episode in the batch.
            sampling: the sampling options.
        """
        maps = torch.stack([samples.mean[row].float(), condition.prior[row, 0] * 0.5 + 0.5])
        target, threshold = self.data.target(episode.query, episode.class_id), sampling.threshold()
        target = target if self.scored is None else self.scored(target)
        found = maps[:1]
        if sampling.refine:
            found = refine(found, Guide.of(to_bytes(self.data.image(episode.query))), threshold)
        size = (target.mask.shape[0], target.mask.shape[1])
        probability, prior = (enlarge(item, size)[0].numpy() for item in (found, maps[1:]))
        return EpisodeScore(
            index=index,
            class_id=episode.class_id,
            query=episode.query,
            pixels=int((~target.ignore).sum()),
            mask=overlaps(probability, target, (threshold,))[0],
            boundary=boundary_overlap(probability > np.float32(threshold), target),
            decoder=overlaps(probability, target, THRESHOLDS),
            prior=overlaps(prior, target, THRESHOLDS),
            quality=float(trust(samples, threshold, self.model.config).quality[row]),
        )

    def condition(self, episode: Episode, annotation: str, generator: np.random.Generator) -> Condition:
        """Build the condition of one episode.

        Args:
            episode: the episode.
            annotation: kind of the supports' annotations, as in `score`.
            generator: generator of weak annotations.
        """
        model, read = self.model, functools.cache(self.data.image)
        kind, named = split_annotation(annotation)
        features = None if kind is None else self._supports(episode, kind, generator, read)
        levels = self._encoded(episode.query, [IDENTITY], read)
        text = self._text_maps(episode, levels) if named else None
        small = resize_image(read(episode.query), (EDGE_SIDE, EDGE_SIDE))[None].to(model.device)
        return condition(levels, features, small, model.backbone, model.config, text)

    def _supports(
        self, episode: Episode, kind: AnnotationKind, generator: np.random.Generator, read: Callable[[str], Tensor]
    ) -> SupportFeatures:
        supports = []
        for name in episode.supports:
            weak = weaken_support(self.data, name, episode.class_id, kind, generator)
            image = read(name)
            supports.append(Support(image, weak, rasterise(weak, (image.shape[1], image.shape[2]))))
        plan = plan_views(len(supports))
        views = [view for index, view in plan if index == 0]  # each support has the same ones
        encoded = [self._encoded(name, views, read) for name in episode.supports]
        levels = [torch.cat(level) for level in zip(*encoded, strict=True)]
        return support_features(levels, supports, plan)

    def _text_maps(self, episode: Episode, levels: list[Tensor]) -> Tensor:
        """Prior maps of the class name in the query, (1, V, h, w) in [0, 1]."""
        model, class_id = self.model, episode.class_id
        if class_id not in self._embeddings:
            self._embeddings[class_id] = embed_text_prompts(
                model.text_space, self.data.classes[class_id], self.templates
            ).embeddings
        dense = self.text_features(episode.query)
        return text_prior_maps(
            levels, dense, self._embeddings[class_id], model.backbone, model.text_space, model.config
        )

    def text_features(self, name: str) -> Tensor:
        """Return the dense features of an image in the text space, (1, C, h, w).

        Args:
            name: name of an image of the data set.
        """
        key = ("text", self.model.text_space.fingerprint, self.data.name, name)
        return self.cache.get(key, lambda: [dense_features(self.model.text_space, [self.data.image(name)])])[0]

    def _encoded(self, name: str, views: Sequence[View], read: Callable[[str], Tensor]) -> list[Tensor]:
        """Features of V views of an image, (V, C_l, h_l, w_l), pooled to the grids of the priors.

        Images are encoded one at a time, because rounding must not depend on the rest of a batch.
        """

        def compute() -> list[Tensor]:
            levels = view_levels(encode(self.model.backbone, [read(name)]), [(0, view) for view in views])
            return [
                pool_to_grid(level, grid) for level, grid in zip(levels, self.model.config.feature_grids, strict=True)
            ]

        return self.cache.get((*self._encoder, self.data.name, name, *views), compute)


def episode_generators(seed: int, index: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the random generators of an episode: for its weak annotations, and for its sampling noise.

    Args:
        seed: random seed of the evaluation, 0 or more.
        index: index of the episode in its stream.
    """
    weak, noise = np.random.SeedSequence([seed, index]).spawn(2)
    return np.random.default_rng(weak), torch.Generator().manual_seed(int(noise.generate_state(1, np.uint64)[0]))


def check_annotation(data: Dataset, annotation: str) -> None:
    """Check that a data set can give a kind of annotation.

    Args:
        data: the data set.
        annotation: kind of annotation, `text`, or both, such as `mask+text`.

    Raises:
        ConfigError: the kind is unknown, or needs instance masks that the data set does not have.
    """
    kind, _ = split_annotation(annotation)
    if kind == "instance_box" and not hasattr(data, "instances"):
        raise ConfigError(
            f"annotation={annotation!r}: {data.name} has no instances; component_box takes connected parts"
        )


def weaken_support(
    data: Dataset, name: str, class_id: int, kind: AnnotationKind, generator: np.random.Generator
) -> Any:
    """Make the weak annotation of a class in an image of a data set (`diffup.data.weak.weaken`).

    Args:
        data: the data set.
        name: name of the image.
        class_id: id of the class.
        kind: kind of annotation, such as `box` or `scribble`.
        generator: random number generator.
    """
    if kind == "instance_box":
        instances: Callable[[str, int], npt.NDArray[Any]] = data.instances  # type: ignore[attr-defined]
        return weaken(instances(name, class_id), kind, generator)
    return weaken(data.target(name, class_id).mask, kind, generator)


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
    return Scores(
        miou=meter.miou(),
        fb_iou=meter.fb_iou(),
        boundary_iou=outline.miou(),
        class_iou=meter.class_iou(),
        miou_by_threshold={t: at.miou() for t, at in decoder.items()},
        prior_miou_by_threshold={t: at.miou() for t, at in prior.items()},
        quality_correlation=float(np.corrcoef(predicted, true)[0, 1]) if varied else 0.0,
    )


def _beyond(passed: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.int64]:
    """Count the pixels that pass each threshold, from the number of thresholds that each pixel passes."""
    return np.asarray(np.bincount(passed, minlength=count + 1)[::-1].cumsum()[::-1][1:], dtype=np.int64)
