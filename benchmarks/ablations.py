"""Ablations in equal processor time: the paper's own choices, its Tables 6 to 9, and parts of the decoder.

Each row is a file of `configs/` on top of the library's default settings; the files of `--config` override it. The
number of steps that fit into the time is measured for each row before training. All rows are trained first, then all
are scored on the held-out classes; what is finished is not done again. Scores are mIoU at the best threshold without
refinement, and differences from the first row are paired, with an interval from a bootstrap over photos.

    python benchmarks/ablations.py DATA [DATA ...] --fold 0 --fold 1 --minutes 8 --episodes 200 -o runs/ablations
    python benchmarks/ablations.py DATA --fold 0 --fold 1 --minutes 15 --rows full "one step, no diffusion" -o runs/long
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from diffup.backbones import Backbone, load_backbone
from diffup.data.base import TrainingData
from diffup.data.folder import LabelledFolder
from diffup.data.joined import join_data
from diffup.evaluation.bootstrap import difference
from diffup.evaluation.record import EpisodeRecord
from diffup.evaluation.sweep import Candidate, Plan, Row, sweep
from diffup.model import DiffUp
from diffup.training.config import TrainConfig
from diffup.training.trainer import DECODER, train
from diffup.utils.files import write_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TIMED = (1, 2, 10)
"""Steps of three discarded runs: the first fills the cache, and the difference of the others is without the start."""

BASE = {"learning_rate": 8e-4, "warmup": 30, "ema": 0.99}
"""Settings of every row, for short runs."""

FULL, ONE_STEP, PAPER = "full", "one step, no diffusion", "the paper's choices"
ROWS = {
    FULL: None,
    ONE_STEP: "one_step.json",
    "no self-affinity in the U-Net": "no_self_affinity.json",
    "normalisation by the quality": "quality_normalisation.json",
    PAPER: "paper.json",
    "6: no affinity": "table6/no_affinity.json",
    "6: no edges": "table6/no_edges.json",
    "6: no IoU modulation": "table6/no_iou.json",
    "6: no error map": "table6/no_error.json",
    "6: neither": "table6/no_quality.json",
    "7: L1, exp(-d)": "table7/l1_exponential.json",
    "7: L2, exp(-d)": "table7/l2_exponential.json",
    "7: L2 of unit vectors, exp(-d)": "table7/l2_unit_exponential.json",
    "7: L2 of unit vectors, 1/(1+d)": "table7/l2_unit_reciprocal.json",
    "7: several metrics": "table7/multi_metric.json",
    "8: StyleGAN2 generator": "table8/stylegan2.json",
    "9: low-level features": "table9/low_level_features.json",
}
"""Config file of each row. "L2 of unit vectors, 1 - d^2/2" of Table 7 equals the cosine, as a test shows."""

SEVERAL = (FULL, ONE_STEP, "no self-affinity in the U-Net", "6: neither")
"""Rows that are trained with several seeds."""

OWN = (None, None)
SAMPLING = {PAPER: (10, 2)}
"""Steps and samples of rows that are not scored with their decoder's own: 50 and 5 would take hours."""

CACHE_BYTES = 6 * 2**30
"""Size of the cache of features that all rows of a data set share."""


@dataclass(frozen=True)
class Trained:
    """A row that has been trained.

    Args:
        name: name of the row.
        seed: seed of its training.
        folder: folder of the row.
        steps: number of its steps.
    """

    name: str
    seed: int
    folder: Path
    steps: int


def main() -> None:
    args = _arguments()
    folders = [LabelledFolder.open(path) for path in args.data]
    backbone = load_backbone(args.backbone, input_size=args.input_size)
    runs = [(name, seed) for name in args.rows for seed in (args.seeds if name in SEVERAL else args.seeds[:1])]
    trained = [train_row(name, seed, join_data(folders), backbone, args) for name, seed in tqdm(runs)]
    scored = {}
    for data in folders:
        for shots in args.shots:
            scored[f"{data.name}, {args.annotation}, {shots}"] = score(trained, data, shots, backbone, args)
    show(trained, scored)


def train_row(name: str, seed: int, data: TrainingData, backbone: Backbone, args: argparse.Namespace) -> Trained:
    """Train a row, unless it is done."""
    run = f"{name}, seed {seed}"
    folder = args.output / "".join(c if c.isalnum() else "_" for c in run)
    done = folder / "done.json"
    if not done.exists():
        base = {**BASE, "folds": args.folds, "backbones": [args.backbone], "seed": seed}
        write_text(folder / "base.json", json.dumps(base))
        file = [] if ROWS[name] is None else [CONFIGS / ROWS[name]]
        config = TrainConfig.from_files([*file, folder / "base.json", *args.config])
        options = {"backgrounds": args.backgrounds, "cache": args.cache or args.output / "cache"}
        steps = args.steps or fitting_steps(data, folder / "timing", config, backbone, 60 * args.minutes, options)
        quiet = {"in_memory": True, "tensorboard": False, "progress": False}
        train(data, folder, replace(config, steps=steps), [backbone], **options, **quiet)
        write_text(done, json.dumps({"steps": steps}))
    return Trained(name, seed, folder, json.loads(done.read_text())["steps"])


def fitting_steps(
    data: TrainingData, folder: Path, config: TrainConfig, backbone: Backbone, seconds: float, options: dict[str, Any]
) -> int:
    """Measure how many training steps fit into the given seconds of processor time, on discarded runs.

    A run that was interrupted goes on with the number that was measured for it.
    """
    measured = folder / "steps"
    if not measured.exists():
        clock = []
        for steps in TIMED:
            start = time.process_time()
            run = folder / str(steps)
            train(data, run, replace(config, steps=steps), [backbone], tensorboard=False, progress=False, **options)
            clock.append(time.process_time() - start)
        fitting = seconds * (TIMED[2] - TIMED[1]) / max(clock[2] - clock[1], 1e-3)
        write_text(measured, str(max(1, round(fitting))))
    return int(measured.read_text())


def score(
    trained: Sequence[Trained], data: LabelledFolder, shots: int, backbone: Backbone, args: argparse.Namespace
) -> dict[Trained, list[Row]]:
    """Score all rows on the held-out classes of a data set: the scores of each row on each fold."""
    record, found = EpisodeRecord(args.output / "episodes.jsonl"), dict[Trained, list[Row]]()
    for sampling in {SAMPLING.get(run.name, OWN) for run in trained}:
        runs = [run for run in trained if SAMPLING.get(run.name, OWN) == sampling]
        plan = Plan(
            folds=tuple(args.folds),
            shots=(shots,),
            annotations=(args.annotation,),
            seeds=(0,),
            steps=(args.sampling_steps or sampling[0],),
            ensembles=(sampling[1],),
            episodes=args.episodes,
            split=args.split,
            refine=False,
        )
        candidates = [
            Candidate(run.folder.name, DiffUp.from_pretrained(run.folder / DECODER, backbone=backbone)) for run in runs
        ]
        rows = sweep(candidates, data, plan, record, cache_bytes=CACHE_BYTES, progress=True)
        folds = len(args.folds)
        found |= {run: rows[index * folds : (index + 1) * folds] for index, run in enumerate(runs)}
    return found


def show(trained: Sequence[Trained], scored: dict[str, dict[Trained, list[Row]]]) -> None:
    """Print the table as Markdown: mIoU of each row at the best threshold, and its difference from the first row."""
    print("| row | steps | " + " | ".join(f"{what} | difference" for what in scored) + " |")
    print("|" + "---|" * (2 + 2 * len(scored)))
    first = {run.seed: run for run in trained if run.name == trained[0].name}
    for name in dict.fromkeys(run.name for run in trained):
        seeds = [run for run in trained if run.name == name]
        cells = []
        for rows in scored.values():
            own = [row for run in seeds for row in rows[run]]
            base = [row for run in seeds for row in rows[first[run.seed]]]
            each = [fmean(row.scores.figures()["best_miou"] for row in rows[run]) for run in seeds]
            gap = difference(own, base, "best_miou")
            cells += [
                " ".join(f"{miou:.1f}" for miou in each),
                f"{gap.value:+.1f} [{gap.interval[0]:.1f}, {gap.interval[1]:.1f}]",
            ]
        print(f"| {name} | {', '.join(str(run.steps) for run in seeds)} | " + " | ".join(cells) + " |")
    for what, rows in scored.items():
        prior = fmean(row.scores.best_prior for row in rows[trained[0]])
        print(f"Fused prior of the first row at its best threshold, {what}: {prior:.1f}")


def common_arguments(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options of every script that trains rows for equal time and scores them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, nargs="+", help="labelled folder")
    parser.add_argument("--fold", type=int, action="append", dest="folds", required=True, help="held-out fold")
    parser.add_argument("--backbone", default="bundled:efficientnet_lite2")
    parser.add_argument("--input-size", type=int, default=512)
    parser.add_argument("--config", type=Path, nargs="+", default=[], help="config files of every row")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of each row's training")
    parser.add_argument("--split", default="train", help="split that is scored; default: train")
    parser.add_argument("--annotation", default="mask", help="kind of annotation that is scored; default: mask")
    parser.add_argument("--shots", type=int, nargs="+", default=[1], help="numbers of supports that are scored")
    parser.add_argument("--episodes", type=int, default=200, help="episodes of each fold; default: 200")
    parser.add_argument("--backgrounds", type=Path, help="folder of photos to paste objects onto")
    parser.add_argument("--cache", type=Path, help="folder of cached features; default: OUT/cache")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser


def _arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; all rows use the first")
    parser.add_argument("--steps", type=int, help="number of steps of every row, instead of equal time")
    parser.add_argument("--sampling-steps", type=int, help="sampling steps; default: those of each decoder")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
