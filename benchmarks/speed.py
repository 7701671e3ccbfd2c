"""How long the main job takes, in passes of the encoder: ratios of medians taken in turn in one run.

The unit is one forward pass of the encoder on one image at its input size. The reference is the paper's setting
(50 DDIM steps, 5 samples) without anything kept between calls.

    python benchmarks/speed.py
    python benchmarks/speed.py --backbone bundled:efficientnet_lite2 --threads 2 -o speed.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from skimage import data

from diffup import DiffUp, Mask
from diffup.images import read_image
from diffup.inference import read_query

REFERENCE = {"steps": 50, "ensemble": 5}


def main() -> None:
    """Time everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", metavar="NAME", help="encoder; default: the decoder's")
    parser.add_argument("--rounds", type=int, default=7, help="calls of each kind, taken in turn; default: 7")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    parser.add_argument("-o", "--output", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = DiffUp.from_pretrained(backbone=args.backbone)
    seconds = measure(jobs(model), args.rounds)
    unit = seconds["encoder pass"]
    facts = {
        "backbone": model.backbone.name,
        "input_size": list(model.backbone.input_size),
        "threads": torch.get_num_threads(),
        "encoder_pass_ms": round(unit * 1000, 1),
        "passes": {name: round(value / unit, 2) for name, value in seconds.items()},
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    for name, passes in facts["passes"].items():
        print(f"{name:45s} {passes:8.2f} passes {passes * unit * 1000:9.0f} ms")
    print(f"peak memory {facts['peak_memory_mb']} MB; {facts['threads']} threads; {facts['backbone']}")
    if args.output:
        args.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def jobs(model: DiffUp) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the photo and its mask come with scikit-image."""
    photo = data.astronaut()
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[20:200, 160:290] = True
    query = np.ascontiguousarray(photo[:, ::-1])
    pixels = read_image(query)
    known = model.prototypes(photo, Mask(mask))
    five = [photo, query, photo[::-1].copy(), query[::-1].copy(), photo.transpose(1, 0, 2).copy()]
    masks = [Mask(m) for m in (mask, mask[:, ::-1], mask[::-1], mask[::-1, ::-1], mask.T)]
    levels = model.encode([pixels])
    small = read_query(query, model.backbone.input_size).small[None]
    condition = model.conditions(levels, known.features, small)
    return {
        "encoder pass": lambda: model.encode([pixels]),
        "priors": lambda: model.conditions(levels, known.features, small),
        "decoder, one sample": lambda: model.decoder(torch.zeros(1, 1, 64, 64), torch.ones(1), condition),
        "one shot": lambda: model.segment(query, photo, Mask(mask)),
        "one shot, prototypes kept": lambda: model.segment(query, known),
        "five shots": lambda: model.segment(query, five, masks),
        "reference: one shot, 50 steps, 5 samples": lambda: model.segment(query, photo, Mask(mask), **REFERENCE),
    }


def measure(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, so that a change of the machine's load meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            if turn > 2 and name.startswith("reference"):
                continue
            start = time.perf_counter()
            job()
            if turn:  # the first call warms up
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
