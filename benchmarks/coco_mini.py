"""Few-shot scores of a decoder on a labelled folder: encoders x shots x annotation kinds, beside the bare prior.

Every row scores the same seeded episodes at the images' own sizes. The anchor is training-free: background contrast
with affinity, last two levels averaged, at the best of 19 thresholds, which no user could choose.

    python benchmarks/coco_mini.py DATA --decoder runs/fold0/decoder --fold 0 --episodes 400
    python benchmarks/coco_mini.py DATA --fold 0 --anchor
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

from diffup import DiffUp, load_backbone
from diffup.backbones import Backbone
from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.unet import DiffusionUNet
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.files import write_text
from diffup.priors import PriorConfig

Row = dict[str, Any]

ANCHOR = DecoderConfig(priors=PriorConfig(kinds=("contrast",)), channels=(8, 8, 8, 8))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder in the format of diffup.data.folder")
    parser.add_argument("--decoder", type=Path, help="decoder folder; by default the one of the package")
    parser.add_argument("--anchor", action="store_true", help="score the training-free anchor instead")
    parser.add_argument("--backbone", action="append", help="NAME or NAME=CHECKPOINT; several allowed")
    parser.add_argument("--input-size", type=int, help="side in pixels instead of each encoder's own")
    parser.add_argument("--fold", type=int, help="score the classes of this fold; by default all classes")
    parser.add_argument("--trained-classes", action="store_true", help="score the classes outside the fold instead")
    parser.add_argument("--split", default="test")
    parser.add_argument("--shots", type=int, nargs="+", default=[1])
    parser.add_argument("--annotations", nargs="+", default=["mask"])
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--ensemble", type=int)
    parser.add_argument("--fp32", action="store_true", help="sample in float32 rather than bfloat16")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    return parser.parse_args()


def build(name: str, input_size: int | None) -> Backbone:
    name, _, checkpoint = name.partition("=")
    options: dict[str, object] = {"checkpoint_path": checkpoint} if checkpoint else {}
    if input_size is not None:
        options["input_size"] = input_size
    return load_backbone(name, **options)


def score(evaluator: Evaluator, args: argparse.Namespace, classes: list[int], shots: int, kind: str, seed: int) -> Row:
    start = time.perf_counter()
    episodes = draw_episodes(evaluator.folder, args.split, classes, shots, args.episodes, seed)
    scores = evaluator.run(episodes, kind, steps=args.steps, ensemble=args.ensemble, seed=seed, bf16=not args.fp32)
    backbone, best = evaluator.model.backbone, scores.best_threshold
    print(
        f"{backbone.name:32} {shots:5} {kind:10} {seed:4} {scores.miou:6.2f} {scores.fb_iou:6.2f} "
        f"{scores.miou_by_threshold[best]:7.2f} @ {best:.2f} {scores.best_prior:7.2f} "
        f"{scores.quality_correlation:5.2f} {time.perf_counter() - start:5.0f} s",
        flush=True,
    )
    return {
        "backbone": backbone.name,
        "input_size": backbone.input_size,
        "shots": shots,
        "annotation": kind,
        "seed": seed,
        "episodes": len(episodes),
        "miou": scores.miou,
        "fb_iou": scores.fb_iou,
        "miou_by_threshold": scores.miou_by_threshold,
        "prior_best_miou": scores.best_prior,
        "quality_correlation": scores.quality_correlation,
    }


def main() -> None:
    args = parse()
    torch.set_num_threads(2)
    folder = LabelledFolder.open(args.data)
    classes = list(folder.classes) if args.fold is None else list(folder.fold(args.fold))
    if args.trained_classes:
        classes = [c for c in folder.classes if c not in classes]
    if args.anchor:
        args.steps = args.ensemble = 1
    print(f"{'backbone':32} shots annotation seed   mIoU FB-IoU  best threshold  prior  r(IoU)")
    rows = []
    for name in args.backbone or ["bundled:efficientnet_lite0"]:
        backbone = build(name, args.input_size)
        if args.anchor:
            model = DiffUp(DiffusionUNet(ANCHOR), backbone)
        else:
            model = DiffUp.from_pretrained(args.decoder, backbone=backbone)
        evaluator = Evaluator(model, folder)
        for shots, kind, seed in itertools.product(args.shots, args.annotations, args.seeds):
            rows.append(score(evaluator, args, classes, shots, kind, seed))
    if args.json:
        write_text(args.json, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
