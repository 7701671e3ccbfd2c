"""Cost of bulk labelling on one core, for each step, in CPU milliseconds per image.

CPU time is measured, not wall-clock time, so that other work on the machine has little effect. The best of several
rounds is printed: `encoder alone` is the encoder in batches of the same size, `all` is everything that `diffup label`
or a Ray worker does with an image, from its file to the PNG file of its label map.

    python benchmarks/bulk.py PHOTOS --count 16 --batch-sizes 1 4 8 --classes 1 8
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from diffup import Box, DiffUp, LabelMap, Prototypes
from diffup.backbones.encode import encode
from diffup.inference import read_query
from diffup.labelling.folder import find_images

STEPS = {
    "read": "diffup.model.read_query",
    "encoder": "diffup.inference.encode",
    "query": "diffup.inference.prepare_query",
    "priors": "diffup.inference.class_maps",
    "decoder": "diffup.inference.sample_ensemble",
    "merge": "diffup.model.to_result",
    "PNG": "diffup.label_map.LabelMap.to_png",
}
"""Functions that are timed, by step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of photos")
    parser.add_argument("--count", type=int, default=16, help="number of images, the first of the folder; default: 16")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts; default: 3")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--classes", type=int, nargs="+", default=[1])
    parser.add_argument("--backbone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = [args.folder / name for name in find_images(args.folder)[: args.count]]
    model = DiffUp.from_pretrained(backbone=args.backbone, device="cpu")
    taught = [teach(model, paths, number) for number in range(max(args.classes))]
    print(f"{model}, {len(paths)} images, torch {torch.__version__}; CPU ms for an image\n")
    heads = [
        "classes",
        "batch",
        "encoder alone",
        "all",
        "ratio",
        "images/s",
        *(f"of it {name}" for name in STEPS),
        "else",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for batch_size in args.batch_sizes:
        alone = min(encoder_alone(model, paths, batch_size) for _ in range(args.rounds))
        for count in args.classes:
            rounds = [label(model, paths, taught[:count], batch_size) for _ in range(args.rounds)]
            best = min(rounds, key=lambda costs: costs["all"])
            parts = [best[name] for name in STEPS]
            total = best["all"]
            row = [f"{part:.1f}" for part in (*parts, total - sum(parts))]
            cells = [f"{alone:.1f}", f"{total:.1f}", f"{total / alone:.2f}", f"{1000 / total:.2f}", *row]
            print(f"| {count} | {batch_size} | {' | '.join(cells)} |", flush=True)


def teach(model: DiffUp, paths: list[Path], number: int) -> Prototypes:
    """Compute one-shot prototypes; the content of the image does not affect the cost."""
    image = read_query(paths[number % len(paths)], "query", model.backbone)
    height, width = image.size
    return model.prototypes(image.pixels, Box(width // 4, height // 4, width // 2, height // 2), name=f"class {number}")


def encoder_alone(model: DiffUp, paths: list[Path], batch_size: int) -> float:
    """Measure the CPU milliseconds per image of the encoder alone."""
    queries = [read_query(path, "query", model.backbone) for path in paths]
    start = time.process_time()
    for first in range(0, len(queries), batch_size):
        encode(model.backbone, [query.resized for query in queries[first : first + batch_size]], batch_size)
    return (time.process_time() - start) * 1000 / len(paths)


def label(model: DiffUp, paths: list[Path], classes: list[Prototypes], batch_size: int) -> dict[str, float]:
    """Measure the CPU milliseconds per image, in total and for each step."""
    with clocks() as costs:
        start = time.process_time()
        for result in model.segment_many(paths, classes, batch_size=batch_size, workers=1):
            assert isinstance(result, LabelMap), result
            result.to_png()
        costs["all"] = time.process_time() - start
    return {name: cost * 1000 / len(paths) for name, cost in costs.items()}


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Measure the CPU seconds of each step within the block, in any thread."""
    costs: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                costs[name] += time.thread_time() - start

        return call

    with ExitStack() as stack:
        for name, target in STEPS.items():
            patcher = patch(target)
            original, _ = patcher.get_original()
            patcher.new = timed(name, original)
            stack.enter_context(patcher)
        yield costs


if __name__ == "__main__":
    main()
