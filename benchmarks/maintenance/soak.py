"""Soak tests: many mixed queries with constant memory, and training that resumes exactly after every kill.

python benchmarks/maintenance/soak.py queries --count 2000
python benchmarks/maintenance/soak.py stream --count 10000
python benchmarks/maintenance/soak.py kills --minutes 10
python benchmarks/maintenance/soak.py writers --task evaluate --processes 4 --kills 30
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import FakeBackbone, make_folder, shape_image, tiny_model  # noqa: E402
from runs import CONFIG, assert_identical, encoder, state  # noqa: E402
from writers import evaluating, labelling, storm, training, training_into_one  # noqa: E402

from diffup import Box, DiffUp, Points, Scribble, Segmentation  # noqa: E402
from diffup.training.trainer import train  # noqa: E402


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def queries(count: int, bundled_every: int) -> int:
    """Segment mixed queries in one process; return 1 if memory grows, else 0."""
    small = tiny_model(FakeBackbone(input_size=(64, 64)))
    whole = DiffUp.from_pretrained(device="cpu") if bundled_every else small
    curve = []
    for index in range(count):
        draw = random.Random(index)
        size = draw.choice([(30, 200), (80, 96), (240, 320), (300, 20)])
        query, _ = shape_image((1,), size=size, seed=index)
        support, labels = shape_image((1,), seed=index + 1)
        annotation = draw.choice([labels == 1, Box(3, 3, 50, 60), Points([(9, 9)]), Scribble([(3, 3), (40, 50)]), None])
        shots = draw.choice([1, 1, 2, 5])
        model = whole if bundled_every and index % bundled_every == bundled_every - 1 else small
        result = model.segment(query, [support] * shots, [annotation] * shots, seed=index, trace=draw.random() < 0.1)
        assert result.mask.shape == size and np.isfinite(result.probability).all()
        if draw.random() < 0.1:
            result.overview(64)
        if (index + 1) % max(1, count // 20) == 0:
            curve.append(resident())
            print(f"{index + 1} queries: {curve[-1]:.0f} MiB", flush=True)
    return grows(curve)


def stream(count: int) -> int:
    """Run `segment_many` on images of mixed sizes with one class; return 1 if memory grows, else 0."""
    model = tiny_model(FakeBackbone(input_size=(64, 64)), steps=1, ensemble=1)
    support, labels = shape_image((1,))
    known = model.prototypes(support, labels == 1)
    sizes = [(30, 100), (80, 96), (120, 160), (100, 20)]
    kinds = [shape_image((1,), size=size, seed=seed)[0] for seed, size in enumerate(sizes)]
    queries = (kinds[index % len(kinds)].copy() for index in range(count))
    curve, start = [resident()], time.process_time()
    print(f"0 queries: {curve[0]:.1f} MiB", flush=True)
    for index, result in enumerate(model.segment_many(queries, known), start=1):
        assert isinstance(result, Segmentation), result
        if index % max(1, count // 20) == 0:
            curve.append(resident())
            seconds = time.process_time() - start
            print(f"{index} queries: {curve[-1]:.1f} MiB, {index / seconds:.0f} queries a CPU second", flush=True)
    return grows(curve)


def grows(curve: list[float]) -> int:
    """Return 1 if memory grows by more than 5 % and 20 MiB from the second quarter to the last, else 0."""
    quarter = max(1, len(curve) // 4)
    early, late = float(np.median(curve[quarter : 2 * quarter])), float(np.median(curve[-quarter:]))
    print(f"second quarter {early:.1f} MiB, last quarter {late:.1f} MiB")
    return int(late > early * 1.05 and late > early + 20)


def kills(minutes: float, steps: int, seed: int) -> int:
    """Train with kills at random times, compare the weights with an uninterrupted run, and repeat."""
    draw, end = random.Random(seed), time.monotonic() + 60 * minutes
    killed = runs = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_folder(folder / "data")
        start = time.monotonic()
        _begin(data, folder / "straight", folder / "cache0", steps).join()
        whole = time.monotonic() - start
        expected = state(folder / "straight")
        while time.monotonic() < end:
            out, cache = folder / f"run{runs}", folder / f"cache{runs + 1}"
            status = None
            while status != 0:
                process = _begin(data, out, cache, steps)
                process.join(draw.uniform(0, whole) if time.monotonic() < end else None)
                if process.exitcode is None:
                    process.kill()
                    process.join()
                    killed += process.exitcode == -signal.SIGKILL
                status = process.exitcode
                if status not in (0, -signal.SIGKILL):
                    print(f"a resumed run ended with status {status}")
                    return 1
            assert_identical(expected, state(out))
            runs += 1
            print(f"{runs} runs done, {killed} kills, weights identical", flush=True)
    return 0


def writers(name: str, processes: int, kills: int, seed: int) -> int:
    """Run several processes on one output with random kills; raise AssertionError if a record is lost or damaged."""
    makers = {"evaluate": evaluating, "train": training, "train-one": training_into_one}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        task = labelling(Path(folder, "photos")) if name == "label" else makers[name](make_folder(Path(folder, "data")))
        found = storm(task, Path(folder, "out"), processes, kills, seed, patience=24 * 3600)
    done, refused = found.statuses.get(0, 0), found.statuses.get(3, 0)
    print(
        f"{name}: {processes} processes at once, {found.kills} killed in {found.rounds} rounds, {done} done, {refused} "
        f"refused, nothing lost or torn, {time.monotonic() - start:.0f} s"
    )
    return 0


def _begin(data: Path, out: Path, cache: Path, steps: int) -> ForkProcess:
    """Start or resume a run in a forked process, which needs no imports, so that kills hit the training itself."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(data, out, cache, steps))
    process.start()
    return process


def _train(data: Path, out: Path, cache: Path, steps: int) -> None:
    config = dataclasses.replace(CONFIG, steps=steps)
    train(data, out, config, [encoder()], cache=cache, checkpoint_every=3, tensorboard=False, progress=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("queries")
    mode.add_argument("--count", type=int, default=2000)
    mode.add_argument(
        "--bundled-every", type=int, default=100, help="use the released model for every Nth query; 0: never"
    )
    mode = modes.add_parser("stream")
    mode.add_argument("--count", type=int, default=10000)
    mode = modes.add_parser("kills")
    mode.add_argument("--minutes", type=float, default=10)
    mode.add_argument("--steps", type=int, default=60)
    mode.add_argument("--seed", type=int, default=0)
    mode = modes.add_parser("writers")
    mode.add_argument("--task", choices=["evaluate", "label", "train", "train-one"], required=True)
    mode.add_argument("--processes", type=int, default=4)
    mode.add_argument("--kills", type=int, default=30)
    mode.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.mode == "queries":
        return queries(args.count, args.bundled_every)
    if args.mode == "stream":
        return stream(args.count)
    if args.mode == "writers":
        return writers(args.task, args.processes, args.kills, args.seed)
    return kills(args.minutes, args.steps, args.seed)


if __name__ == "__main__":
    sys.exit(main())
