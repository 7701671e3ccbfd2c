"""Whether a decoder's presence, quality and score can be trusted, and their calibration.

Each episode is judged twice with the same supports: on its query, which shows the class, and on a photo that does not.

    python -m diffup.evaluation.trust DECODER DATA [DATA ...] --split train --fold 0 --fold 1 --annotation mask \
        --annotation box --backbone bundled:efficientnet_lite0 --backbone bundled:efficientnet_lite2 --write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.options import SamplingOptions
from diffup.decoder.quality import (
    ESTIMATES,
    calibrated_presence,
    calibrated_quality,
    calibrated_score,
    expected_iou,
    marked_share,
    quality_estimates,
)
from diffup.decoder.sampling import draw_noise, sample_ensemble
from diffup.decoder.weights import save_decoder
from diffup.errors import ConfigError, DataError, DiffUpError
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator, check_annotation, episode_generators
from diffup.evaluation.presence import Floats, auc, false_alarms
from diffup.model import DiffUp

KEPT = 0.97
"""Share of the queries with the class that a fitted `min_presence` keeps: a mask that is missing costs more than one
that has to be deleted."""

RIDGE = 1e-3
"""Weight of the squared factors of a calibration, which keeps those of separable evidence finite."""

SOURCES = (slice(0, 3), slice(3, 5))
"""Values of `Condition.evidence` that supports give, and those that text gives; the last of each is 1."""

_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a decoder says of N queries that show the class and of N that do not, and what is true.

    Attributes:
        shown: (N, 5), `Condition.evidence` of queries that show the class.
        absent: (N, 5), the same of photos that do not show it.
        expected: (N,) in [0, 1], expected IoU of the masks in the first ones.
        predicted: (N,) in [0, 1], their IoU as the quality branch predicts it.
        area: (N,) in [0, 1], share of the positions that they mark.
        iou: (N,) in [0, 1], their true IoU.
        photos: N names of the first ones.
    """

    shown: Floats
    absent: Floats
    expected: Floats
    predicted: Floats
    area: Floats
    iou: Floats
    photos: tuple[str, ...]


def gather(
    model: DiffUp,
    data: LabelledFolder,
    classes: Sequence[int],
    *,
    split: str,
    episodes: int,
    annotation: str = "mask",
    shots: int = 1,
    seed: int = 0,
) -> Evidence:
    """Judge episodes, each on a query that shows the class and on a photo that does not.

    Args:
        model: the model.
        data: the data set.
        classes: ids of the classes to draw from.
        split: name of the image split.
        episodes: number of episodes N.
        annotation: kind of the supports' annotations, as of `diffup evaluate`.
        shots: number of supports.
        seed: random seed of the episodes and of the noise.

    Raises:
        DataError: no class has two images, or every image shows a class.
        ConfigError: a number is below 1, or the data set cannot give this kind of annotation.
    """
    for name, number in (("episodes", episodes), ("shots", shots)):
        if number < 1:
            raise ConfigError(f"{name}={number}: it must be 1 or more")
    check_annotation(data, annotation)
    drawn = draw_episodes(data, split, classes, shots, episodes, seed)
    labels = {name: frozenset(np.unique(data.mask(name)).tolist()) for name in data.split(split)}
    rng = np.random.default_rng([seed, 1])
    others = [_absent(episode, labels, data, rng) for episode in drawn]
    evaluator = Evaluator(model, data)
    sampling = SamplingOptions(min_presence=0.0).resolve(model.config)
    shown, absent = list[Floats](), list[Floats]()
    expected, predicted, area, iou = (list[float]() for _ in range(4))
    for index, (episode, other) in enumerate(zip(drawn, others, strict=True)):
        weak, noise = episode_generators(seed, index)
        support = evaluator.support(episode, annotation, weak)
        condition = evaluator.condition(episode, annotation, support)
        samples = sample_ensemble(
            model.decoder, condition, draw_noise(condition, sampling.ensemble, noise), sampling.steps
        )
        score = evaluator.compare(index, episode, condition, samples, 0, sampling)
        without = evaluator.evidence(episode, annotation, support, other)
        for values, one in ((shown, condition.evidence), (absent, without)):
            values.append(one[0].cpu().double().numpy())
        expected.append(float(expected_iou(samples.mean.float(), sampling.threshold())))
        predicted.append(float(samples.iou[0]))
        area.append(float(marked_share(samples.mean.float(), sampling.threshold())))
        iou.append(score.mask[0] / max(score.mask[1], 1))
    return Evidence(
        shown=np.array(shown),
        absent=np.array(absent),
        expected=np.array(expected),
        predicted=np.array(predicted),
        area=np.array(area),
        iou=np.array(iou),
        photos=tuple(episode.query for episode in drawn),
    )


def join(parts: Sequence[Evidence]) -> Evidence:
    """Join evidence of several data sets, annotations or encoders."""
    return Evidence(
        shown=np.concatenate([part.shown for part in parts]),
        absent=np.concatenate([part.absent for part in parts]),
        expected=np.concatenate([part.expected for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
        area=np.concatenate([part.area for part in parts]),
        iou=np.concatenate([part.iou for part in parts]),
        photos=tuple(name for part in parts for name in part.photos),
    )


def calibrate(evidence: Evidence, config: DecoderConfig, recall: float = KEPT) -> DecoderConfig:
    """Fit the calibrations of a decoder, and the minimum presence. Evidence that is not given leaves its factors.

    Args:
        evidence: evidence from queries that the decoder was not trained on, of classes that it was not trained on.
        config: the decoder's config.
        recall: share of the queries with the class whose presence reaches the minimum.
    """
    given = np.concatenate([evidence.shown, evidence.absent])
    truth = np.repeat([1.0, 0.0], len(evidence.shown))
    factors = np.array(config.presence_calibration)
    for source in SOURCES:
        rows = given[:, source.stop - 1] == 1
        if rows.any():
            factors[source] = fit_logistic(given[rows, source][:, :-1], truth[rows])
    judged = replace(
        config,
        presence_calibration=tuple(factors.tolist()),
        quality_calibration=tuple(_quality_factors(evidence).tolist()),
    )
    slope, start = fit_logistic(_logit(qualities(evidence, judged))[:, None], (evidence.iou > 0.5).astype(float))
    lowest = float(np.quantile(presences(evidence.shown, judged), 1 - recall))
    return replace(judged, score_calibration=(slope, start), min_presence=round(lowest, 3))


def _quality_factors(evidence: Evidence) -> Floats:
    """Fit `DecoderConfig.quality_calibration`; a source that is not given has the offset of the other."""
    inputs = np.concatenate([_estimates(evidence), evidence.shown], axis=1)
    constants = [ESTIMATES + source.stop - 1 for source in SOURCES]
    both = all(inputs[:, column].any() for column in constants)
    apart = constants[1:] if both else []  # what the second offset differs by from the first
    columns = [column for column in range(inputs.shape[1]) if column not in constants or column in apart]
    *slopes, offset = fit_logistic(inputs[:, columns], evidence.iou)
    factors = np.zeros(inputs.shape[1])
    factors[columns] = slopes
    factors[constants] += offset
    return factors


def report(evidence: Evidence, config: DecoderConfig) -> dict[str, float]:
    """Compute how well a decoder judges itself.

    Args:
        evidence: evidence from queries that were not used to calibrate it.
        config: the decoder's config.

    Returns:
        `auc`, area under the ROC curve of the presence; `recall`, share of the queries with the class whose presence
        reaches `min_presence`, and `false_alarms`, that of the photos without it; `false_alarms_at_recall`, the latter
        where nine in ten of the queries reach it; `presence_error`, mean absolute difference of the presence to what is
        true; `spearman` and `error`, rank correlation and mean absolute difference of quality and true IoU;
        `score_error`, expected calibration error of the score given presence, in ten bins.
    """
    shown, absent = presences(evidence.shown, config), presences(evidence.absent, config)
    quality = qualities(evidence, config)
    right = calibrated_score(torch.from_numpy(quality), torch.ones(len(quality)), config.score_calibration).numpy()
    return {
        "auc": float(auc(shown, absent)[0]),
        "recall": float((shown >= config.min_presence).mean()),
        "false_alarms": float((absent >= config.min_presence).mean()),
        "false_alarms_at_recall": float(false_alarms(shown, absent)[0]),
        "presence_error": float(np.concatenate([1 - shown, absent]).mean()),
        "spearman": spearman(quality, evidence.iou),
        "error": float(np.abs(quality - evidence.iou).mean()),
        "score_error": calibration_error(right, evidence.iou > 0.5),
    }


def presences(evidence: Floats, config: DecoderConfig) -> Floats:
    """Presence from `Condition.evidence`: (N, 5) -> (N,) in [0, 1]."""
    rows = torch.from_numpy(evidence).float()
    return calibrated_presence(rows, config.presence_calibration).double().numpy()


def qualities(evidence: Evidence, config: DecoderConfig) -> Floats:
    """Calibrated quality of the masks, (N,) in [0, 1]; 0 for an empty mask."""
    estimates, given = torch.from_numpy(_estimates(evidence)).float(), torch.from_numpy(evidence.shown).float()
    quality = calibrated_quality(estimates, given, config.quality_calibration).double().numpy()
    return np.where(evidence.expected > 0, quality, 0.0)


def _estimates(evidence: Evidence) -> Floats:
    parts = (torch.from_numpy(part) for part in (evidence.expected, evidence.predicted, evidence.area))
    return np.asarray(quality_estimates(*parts).numpy())


def fit_logistic(inputs: Floats, target: Floats, ridge: float = RIDGE) -> tuple[float, ...]:
    """Fit a logistic regression to shares, by Newton's method with a small ridge.

    Args:
        inputs: (N, D).
        target: (N,) in [0, 1].
        ridge: weight of the squared factors, against the sum of the N losses.

    Returns:
        D factors, then the offset.
    """
    rows = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    penalty = np.append(np.full(inputs.shape[1], ridge), RIDGE)  # the offset is free
    weights = np.zeros(rows.shape[1])
    for _ in range(_ROUNDS):
        fitted = 1 / (1 + np.exp(-rows @ weights))
        slope = rows.T @ (fitted - target) + penalty * weights
        curvature = (rows * (fitted * (1 - fitted))[:, None]).T @ rows + np.diag(penalty)
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


def _absent(episode: Episode, labels: dict[str, frozenset[int]], data: LabelledFolder, rng: np.random.Generator) -> str:
    """Draw a photo that does not show the class of an episode at all."""
    free = [name for name, found in labels.items() if episode.class_id not in found]
    if not free:
        raise DataError(f"every image shows the class {data.classes[episode.class_id]!r}, so none can lack it")
    return str(rng.choice(free))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m diffup.evaluation.trust` and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder", metavar="DECODER", help="folder of a decoder")
    parser.add_argument("data", metavar="DATA", nargs="+", help="labelled folder")
    parser.add_argument("--split", default="train", help="split of the images; default: train")
    parser.add_argument("--fold", type=int, action="append", default=[], help="fold to draw from; default: all classes")
    parser.add_argument("--episodes", type=int, default=400, help="episodes of each data set; default: 400")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument(
        "--annotation", action="append", help="kind of the annotations, as of `evaluate`; default: mask"
    )
    parser.add_argument("--backbone", action="append", help="encoder; default: the decoder's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="fit the calibrations and write them to the decoder")
    args = parser.parse_args(arguments)
    try:
        found = {}
        for backbone in args.backbone or [None]:
            model = DiffUp.from_pretrained(args.decoder, backbone=backbone)
            for annotation in args.annotation or ["mask"]:
                parts = [_gather_folder(model, folder, annotation, args) for folder in args.data]
                found[f"{model.backbone.name} {annotation}"] = join(parts)
        evidence, config = join(list(found.values())), model.config
        if args.write:
            config = calibrate(evidence, config)
            save_decoder(args.decoder, model.decoder.state_dict(), config, torch.float16)
    except (DiffUpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2  # as `diffup` does
    if len(found) > 1:
        found["all"] = evidence
    figures = {
        name: {what: round(value, 3) for what, value in report(part, config).items()} for name, part in found.items()
    }
    print(json.dumps(figures, indent=2))
    return 0


def _gather_folder(model: DiffUp, folder: str, annotation: str, args: argparse.Namespace) -> Evidence:
    data = LabelledFolder.open(folder)
    classes = [c for fold in args.fold for c in data.fold(fold)] or list(data.classes)
    options = {name: getattr(args, name) for name in ("split", "episodes", "shots", "seed")}
    return gather(model, data, classes, annotation=annotation, **options)


if __name__ == "__main__":
    sys.exit(main())
