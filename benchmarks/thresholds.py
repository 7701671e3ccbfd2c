"""Fixed thresholds against each mask's own, at several temperatures (`diffup.decoder.threshold`).

One-shot episodes of labelled folders, and regions of photos without labels: a region of similar colour of a photo
(Felzenszwalb and Huttenlocher, 2004) is the support's mask, and a mirrored and recoloured crop of it the query. Masks
are refined about their threshold, as users get them. Printed are mean IoUs in percent, and differences from the first
threshold with their standard errors.

    python benchmarks/thresholds.py DATA [DATA ...] --photos PHOTOS --episodes 80 --fold 0 --fold 1 --decoder DECODER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffup.data.base import Target
from diffup.data.folder import LabelledFolder
from diffup.decoder.build import build_decoder
from diffup.decoder.sampling import draw_noise, sample_ensemble
from diffup.decoder.threshold import shifted, threshold_logit
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.evaluate import Evaluator, episode_generators
from diffup.evaluation.scores import overlaps
from diffup.inputs.annotations import Mask
from diffup.inputs.images import read_image, shrink_image, to_bytes
from diffup.model import DiffUp
from diffup.refine import Guide, refine
from diffup.result import enlarge
from diffup.training.prepare import list_photos

FIXED, TEMPERATURES = (0.1, 0.15, 0.2, 0.3), (1.6, 1.8, 2.0, 2.2)

AREAS, SIDE = (0.03, 0.4), 384
"""Least and greatest share of a photo that a region covers, and the longest side to which photos are shrunk."""

Case = tuple[Tensor, npt.NDArray[np.uint8], Target]
"""A mean of samples (1, 64, 64), the query, and what is true."""


def main() -> None:
    args = _arguments()
    model = DiffUp.from_pretrained(args.decoder, backbone=args.backbone, device="cpu")
    # `segment` gives probabilities before any shift.
    plain = build_decoder(replace(model.config, temperature=0.0))
    plain.load_state_dict(model.decoder.state_dict())
    model = DiffUp(plain.eval(), model.backbone, "cpu")
    names = [f"{threshold:g}" for threshold in FIXED] + [f"own, T = {value:g}" for value in TEMPERATURES]
    print("| episodes | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|")
    for path in args.data:
        data = LabelledFolder.open(path)
        for annotation in args.annotations:
            show(f"{data.name}, {annotation}", episodes(model, data, annotation, args))
    if args.photos:
        show("regions", regions(model, args.photos, args.episodes, args.seed))


def episodes(model: DiffUp, data: LabelledFolder, annotation: str, args: argparse.Namespace) -> Iterator[Case]:
    """Sample one-shot episodes of the given folds, or of all classes."""
    evaluator = Evaluator(model, data)
    classes = [c for fold in args.folds for c in data.fold(fold)] or list(data.classes)
    for index, episode in enumerate(draw_episodes(data, args.split, classes, 1, args.episodes, args.seed)):
        weak, noise = episode_generators(args.seed, index)
        condition = evaluator.condition(episode, annotation, evaluator.support(episode, annotation, weak))
        samples = sample_ensemble(model.decoder, condition, draw_noise(condition, model.config.ensemble, noise), 1)
        yield samples.mean, to_bytes(data.image(episode.query)), data.target(episode.query, episode.class_id)


def regions(model: DiffUp, photos: Path, count: int, seed: int) -> Iterator[Case]:
    """Sample regions of the first photos of a folder."""
    from skimage.segmentation import felzenszwalb

    for index, path in enumerate(list_photos(photos)[:count]):
        rng = np.random.default_rng([seed, index])
        pixels = to_bytes(shrink_image(read_image(path, argument=str(path)), SIDE))
        labels = felzenszwalb(pixels, scale=1200, sigma=1.6, min_size=240)
        shares = np.bincount(labels.ravel()) / labels.size
        fitting = np.flatnonzero((shares > AREAS[0]) & (shares < AREAS[1]))
        if not len(fitting):
            continue
        region = labels == rng.choice(fitting)
        height, width = (round(side * rng.uniform(0.6, 1)) for side in region.shape)
        top, left = int(rng.integers(region.shape[0] - height + 1)), int(rng.integers(region.shape[1] - width + 1))
        window = slice(top, top + height), slice(left, left + width)
        query, shown = pixels[window][:, ::-1], region[window][:, ::-1]
        if shown.mean() < AREAS[0]:
            continue
        recoloured = np.clip(query * rng.uniform(0.75, 1.25, 3), 0, 255).astype(np.uint8)
        result = model.segment(recoloured, pixels, Mask(region), min_presence=0.0, refine=False, seed=index)
        mean = torch.from_numpy(result.maps[:1].copy())
        yield mean, recoloured, Target(np.ascontiguousarray(shown), np.zeros(shown.shape, bool))


def show(name: str, cases: Iterator[Case]) -> None:
    """Print a row: the IoU at every fixed threshold, and at each mask's own at every temperature."""
    rows = []
    for mean, query, target in cases:
        guide = Guide.of(query)
        ways = [(mean, threshold) for threshold in FIXED]
        ways += [(shifted(mean, -threshold_logit(mean, temperature)), 0.5) for temperature in TEMPERATURES]
        rows.append([iou(refine(maps, guide, threshold), target, threshold) for maps, threshold in ways])
    found = 100 * np.array(rows)
    gaps = found - found[:, :1]
    errors = gaps.std(axis=0) / len(gaps) ** 0.5
    cells = [f"{found[:, 0].mean():.1f}"]
    cells += [f"{gap:+.1f} +- {error:.1f}" for gap, error in zip(gaps.mean(axis=0)[1:], errors[1:], strict=True)]
    print(f"| {name} ({len(rows)}) | " + " | ".join(cells) + " |", flush=True)


def iou(maps: Tensor, target: Target, threshold: float) -> float:
    """IoU of a mask with the truth."""
    [(both, either)] = overlaps(enlarge(maps, target.mask.shape)[0].numpy(), target, (threshold,))
    return both / max(either, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", nargs="+", help="labelled folder")
    parser.add_argument("--photos", type=Path, help="folder of photos, for regions")
    parser.add_argument("--fold", type=int, action="append", dest="folds", default=[], help="default: all classes")
    parser.add_argument("--decoder", help="folder of a decoder; default: the package's")
    parser.add_argument("--backbone", help="encoder; default: the decoder's")
    parser.add_argument("--annotations", nargs="+", default=["mask", "box"], help="default: mask box")
    parser.add_argument("--split", default="train", help="split that is scored; default: train")
    parser.add_argument("--episodes", type=int, default=80, help="episodes of each row; default: 80")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
