"""Sweeps: every combination of the given values is a row, scored on the episodes of its protocol."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tqdm import tqdm

from diffup.data.base import Benchmark, Dataset, Target
from diffup.data.folder import LabelledFolder
from diffup.data.open import fold_numbers
from diffup.decoder.options import SamplingOptions
from diffup.decoder.weights import decoder_hash
from diffup.errors import ConfigError
from diffup.evaluation.annotations import split_annotation
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import BATCH_SIZE, Evaluator, check_annotation
from diffup.evaluation.features import CACHE_BYTES, FeatureCache
from diffup.evaluation.protocols import PROTOCOLS, ProtocolName, draw_stream
from diffup.evaluation.record import EpisodeRecord, Setting
from diffup.evaluation.scores import EpisodeScore, Scores, summarise
from diffup.model import DiffUp
from diffup.text.templates import Templates, resolve_templates
from diffup.utils.options import MAX_SEED

FOLDER_EPISODES = 500
"""Default number of episodes for a labelled folder, for which the literature has no protocol."""


@dataclass(frozen=True)
class Plan:
    """The settings of a sweep; every combination of values is a row.

    Args:
        protocol: name of the protocol. `folder` draws class, query and supports uniformly from a split of a labelled
            folder and scores at the image's own size; `hsnet` and `bam` are those of the literature, for the other data
            sets. By default `folder` for a labelled folder and `hsnet` for the others.
        folds: numbers of the folds; by default all folds of the data set.
        shots: values of K, the number of supports.
        annotations: kinds of annotation.
        seeds: random seeds; by default those of the protocol, 0 for a labelled folder.
        steps: numbers of DDIM steps; None for the decoder's own.
        ensembles: numbers of samples averaged; None for the decoder's own.
        threshold: probability in (0, 1) above which a pixel is in the mask; None for the decoder's own.
        episodes: number of episodes of each row; by default that of the protocol, 500 for a labelled folder.
        split: name of the split of a labelled folder.
        others: whether to score the classes outside the fold instead, for a labelled folder.
        batch_size: number of episodes sampled together.
        bf16: whether to sample in bfloat16.
        refine: whether masks are refined to the outlines of the query; None for the library's default.
        templates: sentences with `{}` where the class name goes, for annotations with text.
    """

    protocol: str | None = None
    folds: tuple[int, ...] | None = None
    shots: tuple[int, ...] = (1,)
    annotations: tuple[str, ...] = ("mask",)
    seeds: tuple[int, ...] | None = None
    steps: tuple[int | None, ...] = (None,)
    ensembles: tuple[int | None, ...] = (None,)
    threshold: float | None = None
    episodes: int | None = None
    split: str = "test"
    others: bool = False
    batch_size: int = BATCH_SIZE
    bf16: bool = False
    refine: bool | None = None
    templates: Templates | None = None

    def resolve(self, data: Dataset) -> ResolvedPlan:
        """Fill in protocol, folds and seeds that are not given, and check all values.

        Args:
            data: the data set.

        Raises:
            ConfigError: a value is unknown or out of range, or does not suit the data set.
            DataError: a fold does not exist.
        """
        folder = isinstance(data, LabelledFolder)
        protocol = self.protocol or ("folder" if folder else "hsnet")
        if protocol not in ("folder", *PROTOCOLS):
            raise ConfigError(f"protocol={protocol!r}: expected one of folder, {', '.join(PROTOCOLS)}")
        if folder != (protocol == "folder"):
            fitting = "'folder' alone" if folder else " or ".join(map(repr, PROTOCOLS))
            raise ConfigError(f"protocol={protocol!r}: {data.name} is scored by {fitting}")
        if not folder and (self.split != "test" or self.others):
            raise ConfigError(f"split={self.split!r}, others={self.others}: protocol {protocol!r} fixes what is scored")
        seeds = self.seeds or ((0,) if folder else PROTOCOLS[protocol].seeds)
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise ConfigError(f"seeds={seed}: it must be 0 to {MAX_SEED}")
        folds = fold_numbers(data) if self.folds is None else self.folds
        for name, values in (("shots", self.shots), ("episodes", (self.episodes,)), ("batch_size", (self.batch_size,))):
            for value in values:
                if value is not None and value < 1:
                    raise ConfigError(f"{name}={value}: it must be 1 or more")
        resolve_templates(self.templates)
        for annotation in self.annotations:
            check_annotation(data, annotation)
        for fold in folds:
            data.fold(fold)
        return ResolvedPlan(**(vars(self) | {"protocol": protocol, "folds": folds, "seeds": seeds}))


@dataclass(frozen=True)
class ResolvedPlan(Plan):
    """A `Plan` for one data set, complete and checked; only values of the decoder are still open."""

    protocol: str = "folder"
    folds: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stream:
    """Episodes, and how they are scored.

    Args:
        episodes: the episodes.
        classes: ids of the classes over which the mean is taken.
        scored: function that resizes a target to the size at which it is scored; None to keep its size.
    """

    episodes: list[Episode]
    classes: tuple[int, ...]
    scored: Callable[[Target], Target] | None


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Args:
        name: the user's name of its decoder.
        model: the model.
    """

    name: str
    model: DiffUp


@dataclass(frozen=True)
class Row:
    """The scores of one setting.

    Args:
        setting: the setting.
        scores: the scores over all episodes.
        episodes: the scores of each episode.
    """

    setting: Setting
    scores: Scores
    episodes: tuple[EpisodeScore, ...]


def sweep(
    candidates: Sequence[Candidate],
    data: Dataset,
    plan: Plan,
    record: EpisodeRecord,
    *,
    cache_bytes: int = CACHE_BYTES,
    progress: bool = False,
) -> list[Row]:
    """Score every candidate in every setting of a plan. Recorded episodes are not scored again.

    Args:
        candidates: the models to score.
        data: the data set.
        plan: settings of the sweep.
        record: record of scored episodes, to which new ones are added.
        cache_bytes: maximum memory for image features, in bytes.
        progress: whether to show a progress bar.

    Returns:
        Rows in the order of candidate, fold, shots, annotation, seed, steps and ensemble.

    Raises:
        ConfigError: a value is unknown or out of range, or a candidate cannot be scored as planned; raised before
            anything is scored.
        DataError: the data set has no such fold or split, or a class has too few images.
    """
    resolved = plan.resolve(data)
    jobs = []
    streams = {
        (fold, shots, seed): draw(data, resolved, fold, shots, seed)
        for fold, shots, seed in itertools.product(resolved.folds, resolved.shots, resolved.seeds)
    }
    for candidate in candidates:
        for setting in settings_of(candidate, data, resolved):
            jobs.append((candidate, setting, streams[setting.fold, setting.shots, setting.seed]))
    cache = FeatureCache(cache_bytes)
    rows = []
    total = sum(len(stream.episodes) for _, _, stream in jobs)
    with tqdm(total=total, unit="episode", disable=not progress) as bar:
        for candidate, setting, stream in jobs:
            bar.set_description(f"{setting.backbone} fold {setting.fold} {setting.shots}-shot {setting.annotation}")
            evaluator = Evaluator(
                candidate.model, data, scored=stream.scored, cache=cache, templates=resolved.templates
            )
            rows.append(score_row(evaluator, setting, stream, record, bar.update))
    return rows


def score_row(
    evaluator: Evaluator, setting: Setting, stream: Stream, record: EpisodeRecord, on_episodes: Callable[[int], object]
) -> Row:
    """Score one setting; its recorded episodes are not scored again, and new ones are recorded.

    Args:
        evaluator: evaluator of the setting's model.
        setting: the setting.
        stream: the episodes of the setting.
        record: record of scored episodes, to which new ones are added.
        on_episodes: function called with the number of further episodes, for a progress bar; recorded ones come first.
    """
    known = record.known(setting, stream.episodes)
    on_episodes(len(known))
    batches = evaluator.score(
        stream.episodes,
        setting.annotation,
        steps=setting.steps,
        ensemble=setting.ensemble,
        threshold=setting.threshold,
        seed=setting.seed,
        batch_size=setting.batch_size,
        bf16=setting.bf16,
        refine=setting.refine,
        done=known,
    )
    for batch in batches:
        record.append(setting, stream.episodes, batch)
        on_episodes(len(batch))
    scores = record.known(setting, stream.episodes)
    episodes = tuple(scores[index] for index in sorted(scores))
    return Row(setting, summarise(episodes, stream.classes), episodes)


def draw(data: Dataset, plan: ResolvedPlan, fold: int, shots: int, seed: int) -> Stream:
    """Draw the episodes of a fold with the plan's protocol.

    Args:
        data: the data set.
        plan: settings of the sweep.
        fold: number of the fold.
        shots: K, number of supports.
        seed: random seed of the episodes.

    Raises:
        DataError: the data set has no such fold or split, or a class has too few images.
    """
    classes = data.fold(fold)
    if isinstance(data, LabelledFolder):
        if plan.others:
            classes = tuple(c for c in data.classes if c not in classes)
        episodes = draw_episodes(data, plan.split, classes, shots, plan.episodes or FOLDER_EPISODES, seed)
        return Stream(episodes, tuple(sorted({episode.class_id for episode in episodes})), None)
    name = cast(ProtocolName, plan.protocol)
    episodes = draw_stream(cast(Benchmark, data), fold, shots, name, seed, plan.episodes)
    return Stream(episodes, classes, PROTOCOLS[name].scored)


def settings_of(candidate: Candidate, data: Dataset, plan: ResolvedPlan) -> Iterable[Setting]:
    """List the settings of a plan for one model, in the order of the rows of `sweep`.

    Args:
        candidate: the model.
        data: the data set.
        plan: settings of the sweep.

    Raises:
        ConfigError: the steps, ensemble or threshold are out of range for the model.
    """
    model = candidate.model
    base: dict[str, Any] = {
        "dataset": data.name,
        "protocol": plan.protocol,
        "split": plan.split,
        "classes": "others" if plan.others else "fold",
        "backbone": model.backbone.name,
        "fingerprint": model.backbone.fingerprint,
        "input_size": tuple(model.backbone.input_size),
        "decoder": candidate.name,
        "decoder_hash": decoder_hash(model.decoder),
        "batch_size": plan.batch_size,
        "bf16": plan.bf16,
        "device": model.device.type,
    }
    names = ("fold", "shots", "annotation", "seed", "steps", "ensemble")
    values = (plan.folds, plan.shots, plan.annotations, plan.seeds, plan.steps, plan.ensembles)
    found = []
    for combination in itertools.product(*values):
        varied: dict[str, Any] = dict(zip(names, combination, strict=True))
        asked = {"steps": varied["steps"], "ensemble": varied["ensemble"]}
        options = SamplingOptions(**asked, threshold=plan.threshold, refine=plan.refine).resolve(model.config)
        sampling = {
            "steps": options.steps,
            "ensemble": options.ensemble,
            "threshold": options.threshold(),
            "refine": options.refine,
        }
        if model.config.deterministic:
            sampling["ensemble"] = 1
        words = {}
        if split_annotation(varied["annotation"])[1]:
            words = {"text": model.text_space.fingerprint, "templates": " | ".join(resolve_templates(plan.templates))}
        found.append(Setting(**(base | varied | sampling | words)))
    return dict.fromkeys(found)
