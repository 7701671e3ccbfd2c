"""Evaluation of a model on the episodes of a data set, through the same functions as `DiffUp.segment`.

The weak annotations and noise of an episode depend only on the seed and its index, and batches have fixed borders. So
the scores of an episode do not depend on which episodes were scored before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from diffup.backbones import members_of
from diffup.backbones.encode import encode
from diffup.data.base import Dataset, Target
from diffup.data.weak import AnnotationKind, weaken
from diffup.decoder.options import Sampling, SamplingKeywords, SamplingOptions, refuse_generator, sampling_options
from diffup.decoder.quality import calibrated_presence
from diffup.decoder.sampling import Ensemble, draw_noise, sample_ensemble
from diffup.errors import ConfigError, DataError
from diffup.evaluation.annotations import split_annotation
from diffup.evaluation.boundary import boundary_overlap
from diffup.evaluation.episodes import Episode
from diffup.evaluation.features import FeatureCache
from diffup.evaluation.presence import absent_photos
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore, Scores, overlaps, summarise
from diffup.inference import text_prior_maps, trust
from diffup.inputs.annotations import Support, rasterise
from diffup.inputs.images import resize_image, to_bytes
from diffup.model import DiffUp
from diffup.priors.condition import EDGE_SIDE, Condition, assemble, class_maps
from diffup.priors.features import SupportFeatures
from diffup.priors.level import pool_to_grid
from diffup.priors.prepared import PreparedSupport, matched_query, prepare_query, prepare_support
from diffup.priors.presence import presence_evidence
from diffup.priors.support import plan_views, support_features, view_levels
from diffup.priors.views import IDENTITY, View
from diffup.refine import Guide, refine
from diffup.result import enlarge
from diffup.text.prompts import embed_text_prompts
from diffup.text.space import dense_features
from diffup.text.templates import Templates

if TYPE_CHECKING:
    from typing_extensions import Unpack

BATCH_SIZE = 16
"""Default number of episodes sampled together."""


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
        absent = absent_photos(episodes, self._shows)
        return (
            [
                score
                for score in self._batch(episodes, indices, annotation, resolved, chosen.seed, bf16, absent)
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
        absent: Sequence[str | None],
    ) -> list[EpisodeScore]:
        model, conditions, noises = self.model, [], []
        presences = list[float | None]()
        for index in indices:
            weak, noise = episode_generators(seed, index)
            support, name = self.support(episodes[index], annotation, weak), absent[index]
            conditions.append(self.condition(episodes[index], annotation, support))
            presences.append(None if name is None else self._presence(episodes[index], annotation, support, name))
            noises.append(draw_noise(conditions[-1], sampling.ensemble, noise))
        together = Condition.cat(conditions)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            samples = sample_ensemble(model.decoder, together, torch.cat(noises), sampling.steps)
        return [
            replace(self.compare(index, episodes[index], together, samples, at, sampling), absent=presences[at])
            for at, index in enumerate(indices)
        ]

    def compare(
        self, index: int, episode: Episode, condition: Condition, samples: Ensemble, row: int, sampling: Sampling
    ) -> EpisodeScore:
        """Compare the mask of an episode with its target; the score knows no photo without the class.

        Args:
            index: index of the episode in its stream.
            episode: the episode.
            condition: conditions of a batch.
            samples: the decoder's samples of the batch.
            row: row of the episode in the batch.
            sampling: the sampling options.
        """
        maps = torch.stack([samples.probability[row].float(), condition.prior[row, 0] * 0.5 + 0.5])
        target, threshold = self.data.target(episode.query, episode.class_id), sampling.threshold()
        target = target if self.scored is None else self.scored(target)
        found = maps[:1]
        if sampling.refine:
            found = refine(found, Guide.of(to_bytes(self.data.image(episode.query))), threshold)
        size = (target.mask.shape[0], target.mask.shape[1])
        judged = trust(samples, condition.evidence, threshold, self.model.config)
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
            quality=float(judged.quality[row]),
            presence=float(judged.presence[row]),
        )

    def support(self, episode: Episode, annotation: str, generator: np.random.Generator) -> PreparedSupport | None:
        """Prepare the supports of one episode.

        Args:
            episode: the episode.
            annotation: kind of the supports' annotations, as in `score`.
            generator: generator of weak annotations.

        Returns:
            What the priors need of the supports; None if the class is only named.
        """
        kind, _ = split_annotation(annotation)
        if kind is None:
            return None
        features = self._supports(episode, kind, generator)
        return prepare_support(features, self.model.config.priors, members_of(self.model.backbone))

    def condition(self, episode: Episode, annotation: str, support: PreparedSupport | None) -> Condition:
        """Build the condition of one episode.

        Args:
            episode: the episode.
            annotation: kind of the supports' annotations, as in `score`.
            support: result of `support`.
        """
        model, config = self.model, self.model.config
        levels = self._levels(episode.query)
        text = self._text_maps(episode.class_id, episode.query, levels) if split_annotation(annotation)[1] else None
        small = resize_image(self.data.image(episode.query), (EDGE_SIDE, EDGE_SIDE))[None].to(model.device)
        members = members_of(model.backbone)
        query = prepare_query(levels, small, config.priors, bool(config.low_level_channels), members)
        return assemble(class_maps(query, support, config.priors, text), config.priors)

    def evidence(self, episode: Episode, annotation: str, support: PreparedSupport | None, name: str) -> Tensor:
        """Collect what tells whether an image shows the class of an episode, as `Condition.evidence`.

        Args:
            episode: the episode.
            annotation: kind of the supports' annotations, as in `score`.
            support: result of `support`.
            name: name of the image.

        Returns:
            (1, 5).
        """
        levels = self._levels(name)
        text = self._text_maps(episode.class_id, name, levels) if split_annotation(annotation)[1] else None
        matched = matched_query(levels[-1], self.model.config.priors, members_of(self.model.backbone))
        return presence_evidence(matched, None if support is None else support.matched, text)

    def _presence(self, episode: Episode, annotation: str, support: PreparedSupport | None, name: str) -> float:
        evidence = self.evidence(episode, annotation, support, name)
        return float(calibrated_presence(evidence, self.model.config.presence_calibration))

    def _shows(self, name: str, class_id: int) -> bool:
        return bool(self.data.target(name, class_id).mask.any())

    def _levels(self, name: str) -> list[Tensor]:
        """Features of an image as a batch of one."""
        return self._encoded(name, [IDENTITY], self.data.image)

    def _supports(self, episode: Episode, kind: AnnotationKind, generator: np.random.Generator) -> SupportFeatures:
        supports, read = [], functools.cache(self.data.image)
        for name in episode.supports:
            weak = weaken_support(self.data, name, episode.class_id, kind, generator)
            image = read(name)
            supports.append(Support(image, weak, rasterise(weak, (image.shape[1], image.shape[2]))))
        plan = plan_views(len(supports))
        views = [view for index, view in plan if index == 0]  # each support has the same ones
        encoded = [self._encoded(name, views, read) for name in episode.supports]
        levels = [torch.cat(level) for level in zip(*encoded, strict=True)]
        return support_features(levels, supports, plan)

    def _text_maps(self, class_id: int, name: str, levels: list[Tensor]) -> Tensor:
        """Prior maps of a class name in an image, whose features are given, (1, V, h, w) in [0, 1]."""
        model = self.model
        if class_id not in self._embeddings:
            self._embeddings[class_id] = embed_text_prompts(
                model.text_space, self.data.classes[class_id], self.templates
            ).embeddings
        dense = self.text_features(name)
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
