"""What more diffusion steps are worth: the mean of eight samples, single samples, and what their variance tells.

One-shot episodes of held-out classes. Each way of sampling starts from the same noise, and all are scored at the
image's own size without refinement. Differences from a single step are paired, with 95 % intervals from a bootstrap
over the query photos.

- *one sample*, *best sample*: mean and greatest IoU of the eight samples' masks with the truth.
- *best threshold*: greatest IoU of the mean's masks at eight thresholds, which choosing among samples has to exceed.
- *agreement*: mean IoU of pairs of samples' masks.
- *log loss*: of the mean, for each pixel.
- *variance*, *own doubt*: how well the variance over the samples, and p (1 - p) of the mean p, tell wrong pixels from
  right ones: area under the ROC curve within an image.

    python benchmarks/diffusion.py DATA [DATA ...] --decoder benchmarks/decoders/without_folds_0_1 --fold 0 --fold 1
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from diffup.data.base import Target
from diffup.data.folder import LabelledFolder
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.sampling import denoise, draw_noise, sample
from diffup.decoder.threshold import shifted, threshold_logit
from diffup.evaluation.boundary import boundary_overlap
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator, episode_generators
from diffup.evaluation.presence import auc
from diffup.evaluation.sweep import FOLDER_EPISODES
from diffup.model import DiffUp
from diffup.priors.condition import Condition
from diffup.result import enlarge
from diffup.utils.files import write_text

SAMPLES = 8

THRESHOLDS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Eight thresholds of the mean, one for each sample."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Way:
    """A way of sampling.

    Args:
        steps: number of DDIM steps from pure noise.
        level: noise level, a fraction of T, that the answer is brought back to; 0 for none.
        again: number of DDIM steps from there.
    """

    steps: int
    level: float = 0.0
    again: int = 0

    def __str__(self) -> str:
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        return f"{steps}, {self.again} more from {self.level:g} T" if self.level else steps

    def probability(self, decoder: Decoder, condition: Condition, noise: Tensor) -> Tensor:
        """Sample masks: (1, n, s, s) noise -> (n, s, s) in [0, 1]."""
        first = sample(decoder, condition, noise, self.steps).probability[0]
        if not self.level:
            return first
        diffusion = Diffusion(decoder.config)
        visited = [
            round(self.level * diffusion.timesteps * (1 - index / self.again)) - 1 for index in range(self.again)
        ]
        # The same noise again would lead back to the same answer.
        times, noise = torch.full((len(first),), visited[0]), noise[0, :, None].flip(-1)
        y = diffusion.add_noise(first[:, None] * 2 - 1, noise, times)
        return denoise(decoder, condition.repeat(len(first)), y, visited)[:, 0] * 0.5 + 0.5


WAYS = (Way(1), Way(4), Way(10), Way(1, 0.8, 4))


def main() -> None:
    args = _arguments()
    model = DiffUp.from_pretrained(args.decoder, backbone=args.backbone, device="cpu")
    found: dict[str, dict[str, list[float]]] = {str(way): defaultdict(list) for way in WAYS}
    queries = []
    for path in args.data:
        data = LabelledFolder.open(path)
        evaluator = Evaluator(model, data)
        for fold in args.folds:
            episodes = draw_episodes(data, args.split, data.fold(fold), 1, args.episodes, args.seed)
            for index, episode in enumerate(tqdm(episodes, desc=f"{data.name}, fold {fold}")):
                queries.append(f"{data.name}/{episode.query}")
                target = data.target(episode.query, episode.class_id)
                condition, noise = prepare(evaluator, episode, args.seed, index)
                for way in WAYS:
                    probability = way.probability(model.decoder, condition, noise)
                    for name, value in judge(probability, target, cut(probability, model.config)).items():
                        found[str(way)][name].append(value)
    table = summarise(found, queries)
    print(json.dumps(table, indent=2))
    if args.output:
        write_text(args.output, json.dumps({"table": table, "options": vars(args)}, indent=2, default=str) + "\n")


def prepare(evaluator: Evaluator, episode: Episode, seed: int, index: int) -> tuple[Condition, Tensor]:
    """Build the condition of an episode, and draw the noise of its samples."""
    weak, generator = episode_generators(seed, index)
    condition = evaluator.condition(episode, "mask", evaluator.support(episode, "mask", weak))
    return condition, draw_noise(condition, SAMPLES, generator)


def cut(samples: Tensor, config: DecoderConfig) -> float:
    """Threshold of the mean of samples (n, s, s): the decoder's, or each mask's own."""
    if not config.temperature:
        return config.threshold
    own = threshold_logit(samples.mean(dim=0)[None], config.temperature)
    return float(shifted(torch.tensor([config.threshold]), own))


def judge(samples: Tensor, target: Target, threshold: float) -> dict[str, float]:
    """Score the samples of an episode, (n, s, s) in [0, 1]; NaN where an area under the ROC curve is undefined."""
    variance = samples.var(dim=0, correction=0)
    maps = enlarge(torch.cat([samples, samples.mean(dim=0)[None], variance[None]]), target.mask.shape).numpy()
    each, mean, spread = maps[:-2] > threshold, maps[-2], maps[-1]
    known = ~target.ignore
    marked = mean > threshold
    inside, union = boundary_overlap(marked, target)
    ious = [iou(mask, target.mask, known) for mask in each]
    right = np.clip(np.where(target.mask, mean, 1 - mean)[known], 1e-6, 1)
    wrong = (marked != target.mask) & known
    return {
        "IoU": iou(marked, target.mask, known),
        "boundary IoU": inside / max(union, 1),
        "one sample": float(np.mean(ious)),
        "best sample": max(ious),
        "best threshold": max(iou(mean > value, target.mask, known) for value in THRESHOLDS),
        "agreement": float(np.mean([iou(a, b, known) for a, b in combinations(each, 2)])),
        "log loss": float(-np.log(right).mean()),
        "variance": tells(spread, wrong, known),
        "own doubt": tells(mean * (1 - mean), wrong, known),
    }


def iou(mask: Bools, other: Bools, known: Bools) -> float:
    """IoU of two masks; that of two empty ones is 1."""
    union = int(((mask | other) & known).sum())
    return float((mask & other & known).sum() / union) if union else 1.0


def tells(values: npt.NDArray[np.floating], wrong: Bools, known: Bools, most: int = 500) -> float:
    """Area under the ROC curve of telling wrong pixels by a value, of at most so many pixels of each kind."""
    rng = np.random.default_rng(0)
    some = [rng.permutation(values[part].astype(np.float64))[:most] for part in (wrong, known & ~wrong)]
    return float(auc(*some)[0]) if all(len(part) for part in some) else float("nan")


def summarise(found: dict[str, dict[str, list[float]]], queries: list[str], draws: int = 1000) -> dict[str, object]:
    """Average each figure over the episodes, with its difference from the first way and the interval of that."""
    names, place = np.unique(queries, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)[:, place]
    first = next(iter(found.values()))
    table: dict[str, object] = {"episodes": len(queries), "photos": len(names)}
    for way, figures in found.items():
        row = {}
        for name, values in figures.items():
            gap = np.array(values) - np.array(first[name])
            both = np.isfinite(gap)
            ends = np.quantile(drawn[:, both] @ gap[both] / drawn[:, both].sum(axis=1), [0.025, 0.975])
            row[name] = [round(float(value), 4) for value in (np.nanmean(values), gap[both].mean(), *ends)]
        table[way] = row
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", nargs="+", help="labelled folder")
    parser.add_argument("--fold", type=int, action="append", dest="folds", required=True, help="held-out fold")
    parser.add_argument("--decoder", help="folder of a decoder; default: the package's")
    parser.add_argument("--backbone", help="encoder; default: the decoder's")
    parser.add_argument("--split", default="train", help="split that is scored; default: train")
    parser.add_argument("--episodes", type=int, default=FOLDER_EPISODES, help="episodes of each fold; default: 500")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", help="JSON file of the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
