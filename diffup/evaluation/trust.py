"""Whether a decoder's presence, quality and score can be trusted, and their calibration.

Each episode is judged twice with the same supports: on its query, which shows the class, and on a photo that does not.

    python -m diffup.evaluation.trust DECODER DATA [DATA ...] --split train --fold 0 --fold 1 --shots 1 --shots 5 \
        --annotation mask --annotation box --backbone bundled:efficientnet_lite2 --write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffup.data.folder import LabelledFolder
from diffup.decoder.options import SamplingOptions
from diffup.decoder.quality import marked_share, quality_estimates
from diffup.decoder.sampling import draw_noise, sample_ensemble
from diffup.decoder.weights import save_decoder
from diffup.errors import ConfigError, DataError, DiffUpError
from diffup.evaluation.calibration import FITTED, PARTS, USUAL, Evidence, calibrate, join, report
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator, check_annotation, episode_generators
from diffup.evaluation.presence import Floats
from diffup.evaluation.scores import overlaps
from diffup.inputs.images import to_bytes
from diffup.model import DiffUp
from diffup.refine import Guide, refine
from diffup.result import enlarge


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
    thresholds = tuple(sorted({sampling.threshold(), *FITTED}))
    shown, absent, estimates, iou = (list[Floats]() for _ in range(4))
    marked = list[npt.NDArray[np.bool_]]()
    for index, (episode, other) in enumerate(zip(drawn, others, strict=True)):
        weak, noise = episode_generators(seed, index)
        support = evaluator.support(episode, annotation, weak)
        condition = evaluator.condition(episode, annotation, support)
        samples = sample_ensemble(
            model.decoder, condition, draw_noise(condition, sampling.ensemble, noise), sampling.steps
        )
        without = evaluator.evidence(episode, annotation, support, other)
        for values, one in ((shown, condition.evidence), (absent, without)):
            values.append(one[0].cpu().double().numpy())
        each = torch.cat([samples.before_shift(threshold) for threshold in thresholds]).cpu()
        repeated = samples.mean.float().cpu().expand(len(each), -1, -1)
        predicted = samples.iou.float().cpu().expand(len(each))
        estimates.append(quality_estimates(repeated, predicted, each).double().numpy())
        marked.append((marked_share(repeated, each) > 0).numpy())
        iou.append(_true_ious(samples.probability.float().cpu(), data, episode, thresholds, sampling.refine))
    return Evidence(
        shown=np.array(shown),
        absent=np.array(absent),
        thresholds=thresholds,
        estimates=np.array(estimates),
        marked=np.array(marked),
        iou=np.array(iou),
        photos=tuple(episode.query for episode in drawn),
    )


def _true_ious(
    mean: Tensor, data: LabelledFolder, episode: Episode, thresholds: Sequence[float], refined: bool
) -> Floats:
    """IoU of an episode's mask (1, 64, 64) at each threshold, refined at it or not."""
    target = data.target(episode.query, episode.class_id)
    size = (target.mask.shape[0], target.mask.shape[1])
    guide = Guide.of(to_bytes(data.image(episode.query))) if refined else None
    found = []
    for threshold in thresholds:
        maps = mean if guide is None else refine(mean, guide, threshold)
        [(both, either)] = overlaps(enlarge(maps, size)[0].numpy(), target, (threshold,))
        found.append(both / max(either, 1))
    return np.array(found)


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
    parser.add_argument("--shots", type=int, action="append", help="number of supports, given once or more; default: 1")
    parser.add_argument(
        "--annotation", action="append", help="kind of the annotations, as of `evaluate`; default: mask"
    )
    parser.add_argument("--backbone", action="append", help="encoder; default: the decoder's")
    parser.add_argument("--text-backbone", help="text space, for annotations with text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="fit the calibrations and write them to the decoder")
    parser.add_argument("--fit", nargs="+", choices=PARTS, help=f"what --write fits; default: {' '.join(USUAL)}")
    args = parser.parse_args(arguments)
    if args.fit and not args.write:
        parser.error("--fit says what --write fits; give --write too")
    try:
        found = {}
        for backbone in args.backbone or [None]:
            model = DiffUp.from_pretrained(args.decoder, backbone=backbone, text_backbone=args.text_backbone)
            for annotation in args.annotation or ["mask"]:
                for shots in args.shots or [1]:
                    parts = [_gather_folder(model, folder, annotation, shots, args) for folder in args.data]
                    found[f"{model.backbone.name} {shots}-shot {annotation}"] = join(parts)
        evidence, config = join(list(found.values())), model.config
        if args.write:
            config = calibrate(evidence, config, fit=args.fit or USUAL)
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


def _gather_folder(model: DiffUp, folder: str, annotation: str, shots: int, args: argparse.Namespace) -> Evidence:
    data = LabelledFolder.open(folder)
    classes = [c for fold in args.fold for c in data.fold(fold)] or list(data.classes)
    options = {name: getattr(args, name) for name in ("split", "episodes", "seed")}
    return gather(model, data, classes, annotation=annotation, shots=shots, **options)


if __name__ == "__main__":
    sys.exit(main())
