"""Train a decoder on a labelled folder, evaluate it on held-out classes, and use it.

    python examples/train_on_a_folder.py --output run
    python examples/train_on_a_folder.py --output run --data my_folder --steps 2000

Without --data, a folder of drawn shapes is created first, as an example of the format; a short run on it shows the
steps, not good results. The same on the command line: diffup train, diffup evaluate, diffup segment.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup import DiffUp, load_backbone
from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.evaluation import table
from diffup.evaluation.record import EpisodeRecord
from diffup.evaluation.sweep import Candidate, Plan, sweep
from diffup.training.config import TrainConfig, ViewsConfig
from diffup.training.trainer import train

ENCODER = "bundled:efficientnet_lite0"
SIDE = 96
CLASSES = {1: "square", 2: "disc", 3: "ring", 4: "cross"}


def draw(class_id: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw a noisy image of one shape in a random colour, and its index mask."""
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = rng.uniform(0.2, 0.35) * SIDE
    dx, dy = x - rng.uniform(radius, SIDE - radius), y - rng.uniform(radius, SIDE - radius)
    distance = np.hypot(dx, dy)
    arm = radius / 3
    inside = {
        1: np.maximum(abs(dx), abs(dy)) < radius,
        2: distance < radius,
        3: (distance < radius) & (distance > radius / 2),
        4: (np.maximum(abs(dx), abs(dy)) < radius) & (np.minimum(abs(dx), abs(dy)) < arm),
    }[class_id]
    photo = rng.integers(60, 110, (SIDE, SIDE, 3)) + rng.integers(0, 60, 3)
    photo[inside] = rng.integers(0, 255, 3) + rng.integers(-20, 20, (int(inside.sum()), 3))
    return photo.clip(0, 255).astype(np.uint8), np.where(inside, class_id, 0).astype(np.uint8)


def make_shapes(root: Path, per_class: int = 6) -> Path:
    """Create a labelled folder of drawn shapes; fold 0 holds out the last two classes."""
    rng = np.random.default_rng(0)
    names: dict[str, list[str]] = {"train": [], "test": []}
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, listed in names.items():
        for class_id, label in CLASSES.items():
            for index in range(per_class):
                photo, mask = draw(class_id, rng)
                listed.append(f"{split}_{label}_{index}")
                Image.fromarray(photo).save(root / "images" / f"{listed[-1]}.png")
                Image.fromarray(mask).save(root / "masks" / f"{listed[-1]}.png")
    splits = {
        "ignore": 255,
        "min_area_fraction": 0.01,
        "classes": {str(c): name for c, name in CLASSES.items()},
        "folds": {"0": [3, 4], "1": [1, 2]},
        "images": names,
    }
    (root / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    return root


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("run"), help="folder of the run")
    parser.add_argument("--data", type=Path, help="labelled folder; default: drawn shapes")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=40, help="number of evaluation episodes")
    parser.add_argument("--input-size", type=int, default=128, help="side of the encoder's input images in pixels")
    args = parser.parse_args(argv)

    data = LabelledFolder.open(args.data or make_shapes(args.output / "shapes"))
    config = TrainConfig(
        backbones=(ENCODER,),
        folds=(0,),  # the classes of this fold are held out for evaluation
        steps=args.steps,
        batch_size=4,
        warmup=min(10, args.steps),
        views=ViewsConfig(crops=1, pasted=20),
        decoder=DecoderConfig(channels=(16, 32, 64, 64), backbone=ENCODER),  # smaller than the released one
    )
    encoder = load_backbone(ENCODER, input_size=args.input_size)
    folder = train(data, args.output, config, [encoder])  # the same call resumes an interrupted run

    trained = DiffUp.from_pretrained(folder, backbone=encoder)
    released = DiffUp.from_pretrained(backbone=encoder)
    candidates = [Candidate("trained", trained), Candidate("released", released)]
    plan = Plan(folds=(0,), episodes=args.episodes)
    rows = sweep(candidates, data, plan, EpisodeRecord(args.output / "episodes.jsonl"))
    print(table.to_text(table.tabulate(rows, data.classes)))

    class_id = data.fold(0)[0]
    support, query = data.pairs("test", [class_id])[class_id][:2]
    annotation = data.mask(support) == class_id
    result = trained.segment(data.image(query), support=data.image(support), annotation=annotation)
    result.overview().save(args.output / "example.png")
    print(f"decoder: {folder}\npicture: {args.output / 'example.png'}")


if __name__ == "__main__":
    main()
