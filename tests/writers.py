"""Several processes that evaluate, label or train into one place, and are killed at random; shared with the soak."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

import kernels
import torch
from fakes import FakeBackbone, shape_image, tiny_model
from PIL import Image
from runs import CONFIG, assert_identical, encoder, state

from diffup.data.folder import LabelledFolder
from diffup.errors import StorageError
from diffup.evaluation.record import EpisodeRecord
from diffup.evaluation.sweep import Candidate, Plan, Row, sweep
from diffup.labelling.folder import RECORD, label_folder
from diffup.labelling.plan import FORMATS, LabelPlan
from diffup.training.trainer import train
from diffup.utils.journal import Journal

REFUSED = 3
"""Status of a process that was told that another one is at it."""


@dataclass
class Task:
    """Something that several processes do at once.

    Args:
        run: does it; given a folder for all and the number of the process.
        check: raises AssertionError unless the folder holds what an undisturbed process leaves.
    """

    run: Callable[[Path, int], object]
    check: Callable[[Path], object]


@dataclass
class Outcome:
    """What happened in a storm."""

    kills: int = 0
    rounds: int = 0
    statuses: dict[int, int] = field(default_factory=dict)


def storm(task: Task, folder: Path, processes: int, kills: int, seed: int = 0, patience: float = 600) -> Outcome:
    """Run processes at once, kill any at random and start it again; check what is left; over and over.

    Args:
        task: what they do.
        folder: a new folder.
        processes: how many at once.
        kills: when to stop.
        seed: of the kills.
        patience: seconds until it counts as stuck.
    """
    draw, outcome, end = random.Random(seed), Outcome(), time.monotonic() + patience
    start = time.monotonic()
    _join(_begin(task, folder / "first", 0), end)
    whole = time.monotonic() - start
    task.check(folder / "first")
    while outcome.kills < kills:
        out = folder / f"round{outcome.rounds}"
        running = [_begin(task, out, number) for number in range(processes)]
        while any(process.is_alive() for process in running):
            assert time.monotonic() < end, "stuck"
            time.sleep(draw.uniform(0, whole / 2))
            number = draw.randrange(processes)
            if running[number].is_alive() and outcome.kills < kills:
                running[number].kill()
                status = _join(running[number], end)
                outcome.kills += status == -signal.SIGKILL
                running[number] = _begin(task, out, number)
        for status in [_join(process, end) for process in running] + [_join(_begin(task, out, 0), end)]:
            assert status in (0, REFUSED), status
            outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        task.check(out)
        outcome.rounds += 1
    return outcome


def storm_apart(make: Callable[[Path], Task], place: Path, folder: Path, processes: int, kills: int) -> Outcome:
    """Run `storm` in a new process, whose forks inherit no threads of autograd from what ran before.

    Args:
        make: makes the task; a function of this module.
        place: what it takes.
        folder: a new folder.
        processes: how many at once.
        kills: when to stop.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_storm_of, make, place, folder, processes, kills).result()


def _storm_of(make: Callable[[Path], Task], place: Path, folder: Path, processes: int, kills: int) -> Outcome:
    kernels.choose()
    torch.set_num_threads(1)  # as in `_run`: more give other last bits
    return storm(make(place), folder, processes, kills)


def _begin(task: Task, out: Path, number: int) -> ForkProcess:
    """Start a process; a fork spares it the imports, so that kills hit the work and its files."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(task, out, number))
    process.start()
    return process


def _join(process: ForkProcess, end: float) -> int | None:
    process.join(max(1.0, end - time.monotonic()))
    return process.exitcode


def _run(task: Task, out: Path, number: int) -> None:
    torch.set_num_threads(1)
    try:
        task.run(out, number)
    except StorageError as error:
        if "is being written to by" not in str(error) or str(out) not in str(error):
            traceback.print_exc()
            os._exit(1)
        sys.exit(REFUSED)


def evaluating(data: Path, episodes: int = 12) -> Task:
    """All processes score the same episodes into one record."""

    def score(out: Path, number: int) -> list[Row]:
        model = tiny_model(FakeBackbone(input_size=(64, 64)), steps=1, ensemble=1)
        plan = Plan(folds=(0,), episodes=episodes, batch_size=2)
        record = EpisodeRecord(out / "episodes.jsonl")
        return sweep([Candidate("tiny", model)], LabelledFolder.open(data), plan, record)

    expected: list[Row] = []

    def check(out: Path) -> None:
        lines = (out / "episodes.jsonl").read_bytes()
        Journal(out / "episodes.jsonl").append([])  # drops what the last kill cut off
        whole = (out / "episodes.jsonl").read_bytes()
        assert b"\0" not in lines and lines.startswith(whole)
        assert len([json.loads(line) for line in whole.splitlines()]) > episodes
        rows = score(out, 0)
        assert (out / "episodes.jsonl").read_bytes() == whole, "all was on record"
        expected[:] = expected or score(out.with_name("alone"), 0)
        assert [row.episodes for row in rows] == [row.episodes for row in expected]

    return Task(score, check)


def labelling(photos: Path, count: int = 8) -> Task:
    """All processes label one folder into one output; all but one at a time are refused."""
    photos.mkdir()
    for seed in range(count):
        Image.fromarray(shape_image((1, 2), (50, 60), seed=seed)[0]).save(photos / f"{seed}.png")

    def label(out: Path, number: int) -> None:
        model = tiny_model(FakeBackbone(input_size=(64, 64)), steps=1, ensemble=1)
        image, labels = shape_image((1,))
        plan = LabelPlan(formats=FORMATS)
        label_folder(model, photos, model.prototypes(image, labels == 1, name="a"), out, plan, batch_size=4)

    def check(out: Path) -> None:
        label(out, 0)
        alone = out.with_name("alone")
        if not alone.exists():
            label(alone, 0)
        assert files(out) == files(alone)
        assert len(list(Journal(out / RECORD).read())) == count + 1

    return Task(label, check)


def training(data: Path, steps: int = 6) -> Task:
    """Every process trains a run of its own from one shared cache."""
    config = dataclasses.replace(CONFIG, steps=steps)

    def run(out: Path, number: int) -> None:
        options = {"cache": out / "cache", "checkpoint_every": 2, "tensorboard": False, "progress": False}
        train(data, out / f"run{number}", config, [encoder()], **options)

    def check(out: Path) -> None:
        first = state(out.with_name("first") / "run0")
        for folder in out.glob("run*"):
            assert_identical(first, state(folder))
            assert [entry["step"] for _, entry in Journal(folder / "log.jsonl").read()][-1] == steps

    return Task(run, check)


def training_into_one(data: Path, steps: int = 6) -> Task:
    """All processes train one run; all but one at a time are refused."""
    many = training(data, steps)
    return Task(lambda out, number: many.run(out, 0), many.check)


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files, but those of locks and the names of those who held them."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith((".lock", ".owner")))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
