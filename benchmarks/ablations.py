"""Ablations of the paper's Tables 6 to 9, and the decoder without diffusion, all trained for equal processor time.

Each row is a file of `configs/`, on top of the library's default settings and the files of `--config`. The number of
steps that fit into the time is measured for each row before training. Finished rows are not trained again.

    python benchmarks/ablations.py DATA --fold 0 --fold 1 --minutes 5 --episodes 300 -o runs/ablations
    python benchmarks/ablations.py DATA --fold 0 --fold 1 --minutes 15 --rows full "one step, no diffusion" -o runs/long
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffup.backbones import load_backbone
from diffup.data.folder import LabelledFolder
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.evaluation.features import FeatureCache
from diffup.model import DiffUp
from diffup.training.config import TrainConfig
from diffup.training.trainer import train
from diffup.utils.files import write_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TIMED = (2, 10)
"""Steps of two discarded runs; their difference gives the time of a step without that of the start."""

BASE = {"learning_rate": 8e-4, "warmup": 30, "ema": 0.99}
"""Settings of every row, for short runs."""

FULL, ONE_STEP = "full", "one step, no diffusion"
ROWS = {
    FULL: None,
    ONE_STEP: "one_step.json",
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

SEVERAL = (FULL, ONE_STEP)
"""Rows that are trained with several seeds."""

SCORED = {"mask, 1": "", "box, 1": "8", "scribble, 1": "8", "mask, 5": "9"}
"""Evaluation settings (annotation, shots), each with the number of the only table whose rows use it; empty for all."""


def main() -> None:
    args = _arguments()
    data = LabelledFolder.open(args.data)
    backbone = load_backbone(args.backbone, input_size=args.input_size)
    base = {**BASE, "folds": args.folds, "backbones": [args.backbone]}
    streams = {
        shots: draw_episodes(data, "test", data.fold(args.folds[0]), shots, args.episodes, 0) for shots in (1, 5)
    }
    features, table = FeatureCache(), {}
    runs = [(name, seed) for name in args.rows for seed in (args.seeds if name in SEVERAL else args.seeds[:1])]
    for name, seed in tqdm(runs):
        file, run = ROWS[name], f"{name}, seed {seed}"
        folder = args.output / "".join(c if c.isalnum() else "_" for c in run)
        if not (folder / "row.json").exists():
            options = {"backgrounds": args.backgrounds, "cache": args.cache or args.output / "cache"}
            write_text(folder / "base.json", json.dumps({**base, "seed": seed}))
            files = [folder / "base.json", *args.config, *([] if file is None else [CONFIGS / file])]
            config = TrainConfig.from_files(files)
            steps = args.steps or fitting_steps(data, folder / "timing", config, backbone, 60 * args.minutes, options)
            quiet = {"in_memory": True, "tensorboard": False, "progress": False}
            decoder = train(data, folder, replace(config, steps=steps), [backbone], **options, **quiet)
            evaluator = Evaluator(DiffUp.from_pretrained(decoder, backbone=backbone), data, cache=features)
            row: dict[str, Any] = {"steps": steps}
            for scored, only in SCORED.items():
                if name == FULL or name.startswith(only):
                    annotation, shots = scored.split(", ")
                    scores = evaluator.run(streams[int(shots)], annotation, steps=1, bf16=True)
                    best = scores.miou_by_threshold[scores.best_threshold]
                    row[scored] = {"miou": scores.miou, "best": best, "prior": scores.best_prior}
            write_text(folder / "row.json", json.dumps(row, indent=2) + "\n")
        table[run] = json.loads((folder / "row.json").read_text())
    write_text(args.output / "table.json", json.dumps({"rows": table, "options": vars(args)}, indent=2, default=str))
    show(table)


def fitting_steps(
    data: LabelledFolder, folder: Path, config: TrainConfig, backbone: Any, seconds: float, options: dict[str, Any]
) -> int:
    """Measure how many training steps fit into the given seconds of processor time, on two discarded runs."""
    clock = []
    for steps in TIMED:
        start = time.process_time()
        run = folder / str(steps)
        train(data, run, replace(config, steps=steps), [backbone], tensorboard=False, progress=False, **options)
        clock.append(time.process_time() - start)
    return max(1, round(seconds * (TIMED[1] - TIMED[0]) / max(clock[1] - clock[0], 1e-3)))


def show(table: dict[str, dict[str, Any]]) -> None:
    """Print the table as Markdown: mIoU at the best threshold."""
    print("| row | steps | " + " | ".join(SCORED) + " | prior |\n|" + "---|" * (len(SCORED) + 3))
    for name, row in table.items():
        cells = [f"{row[scored]['best']:.1f}" if scored in row else "" for scored in SCORED]
        print(f"| {name} | {row['steps']} | " + " | ".join(cells) + f" | {row['mask, 1']['prior']:.1f} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, help="labelled folder")
    parser.add_argument("--fold", type=int, action="append", dest="folds", required=True, help="held-out fold")
    parser.add_argument("--backbone", default="bundled:efficientnet_lite0")
    parser.add_argument("--input-size", type=int, default=512)
    parser.add_argument("--config", type=Path, nargs="+", default=[], help="config files of every row")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="default: all")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of each row's training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; all rows use the first")
    parser.add_argument("--steps", type=int, help="number of steps of every row, instead of equal time")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--backgrounds", type=Path, help="folder of photos to paste objects onto")
    parser.add_argument("--cache", type=Path, help="folder of cached features; default: OUT/cache")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
