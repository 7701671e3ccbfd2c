"""Several processes: their parts of a batch are those of one process, and so are losses and weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from fakes import make_folder
from runs import CONFIG, encoder, sampler_of, state

from diffup.errors import ConfigError, MissingPackageError
from diffup.priors import PriorConfig
from diffup.training.augment import move
from diffup.training.config import PerturbConfig
from diffup.training.episodes import Episodes
from diffup.training.log import LOG
from diffup.training.perturb import perturb
from diffup.training.prepare import Banks
from diffup.training.processes import ALL, Processes, Share
from diffup.training.trainer import CHECKPOINT, DECODER, train

PARTS = [Share(index, 2) for index in range(2)]


def interleaved(parts: list[torch.Tensor]) -> torch.Tensor:
    """Rows of two processes in the order of the whole batch."""
    return torch.stack(parts, dim=1).flatten(0, 1)


def test_processes_draw_the_rows_of_one_process(banks: Banks) -> None:
    sampler, device = sampler_of(banks), torch.device("cpu")
    for step in range(4):
        whole, *parts = (sampler.draw(0, step, 4, banks.features[0], device, share) for share in (ALL, *PARTS))
        for name in ("images", "edges", "mask", "valid"):
            assert torch.equal(getattr(whole, name), interleaved([getattr(part, name) for part in parts]))
        assert torch.equal(whole.support.foreground, interleaved([part.support.foreground for part in parts]))
        for level in range(4):
            assert torch.equal(whole.query[level], interleaved([part.query[level] for part in parts]))
            found = interleaved([part.support.levels[level] for part in parts])
            assert torch.equal(whole.support.levels[level], found)


def test_random_changes_are_those_of_one_process() -> None:
    fused = [torch.rand(6, 4, side, side) for side in (9, 6, 6, 2)]
    maps = torch.rand(6, 3, 64, 64)
    everything = Episodes([], None, maps, maps[:, :2], maps[:, :1], maps[:, 1:2])  # type: ignore[arg-type]
    config, priors = PerturbConfig(), PriorConfig(kinds=("match",), extra_priors=0)

    def changed(share: Share) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        own = [level[share.index :: share.count] for level in fused]
        rows = {name: getattr(everything, name)[share.index :: share.count] for name in ("images", "edges", "mask")}
        episodes = Episodes([], None, valid=everything.valid[share.index :: share.count], **rows)  # type: ignore[arg-type]
        own, episodes = move(own, episodes, config, generator, share)
        return [*perturb(own, config, priors, generator, share), episodes.images, episodes.mask]

    for whole, *parts in zip(*(changed(share) for share in (ALL, *PARTS)), strict=True):
        assert torch.equal(whole, interleaved(parts))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="batch_size=16 does not divide among 3 processes"):
        Processes.start("cpu", 16)


def test_accelerate_is_asked_for_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes.start("cpu", 3).accelerator is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match=r"diffup\[train\]"):
        Processes.start("cpu", 4)


ONE_OF_TWO = """
import dataclasses, sys
sys.path.insert(0, sys.argv[1])
import torch
import runs
import test_processes
from diffup.training import trainer
torch.set_num_threads(1)
test_processes.train_all(*sys.argv[2:5], stop_after=int(sys.argv[5]))
"""

SYSTEMS = ("diffusion", "gan", "one_step")

ADAM_EPS = 1e-3
"""Instead of 1e-8, with which Adam moves a weight by a whole step however small its gradient is: where that is rounding
alone, two processes would part by whole steps."""

APART = 1e-6
"""How far weights and moments may be apart; a step is 1e-4."""


def train_all(data: str, out: str, cache: str, stop_after: int | None = None) -> None:
    """A run of each system, its loss logged at every step."""
    settings = {"cache": cache, "checkpoint_every": 1, "tensorboard": False, "progress": False}
    smooth = {name: partial(getattr(torch.optim, name), eps=ADAM_EPS) for name in ("Adam", "AdamW")}
    with mock.patch.multiple(torch.optim, **smooth):
        for name in SYSTEMS:
            config = replace(
                CONFIG, decoder=replace(CONFIG.decoder, system=name), batch_size=4, learning_rate=1e-4, steps=5
            )
            train(data, Path(out) / name, config, [encoder()], stop_after=stop_after, **settings)


def start_two(*arguments: str) -> None:
    """Run the script as two processes and wait for them."""
    here = Path(__file__).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    usual = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    usual |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ONE_OF_TWO, str(here), *arguments]
    started = [
        subprocess.Popen(
            command,
            env=usual | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Every weight, average and moment of two runs agrees; what is not a number agrees with nothing."""
    assert a.keys() == b.keys()
    distances = {key: float((a[key] - b[key]).abs().max()) for key in a}
    assert {key: distance for key, distance in distances.items() if not distance < APART} == {}


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Losses of every step and final weights, with a stop and a resume in between, of every system."""
    pytest.importorskip("accelerate")
    data = str(make_folder(tmp_path / "data"))
    for stop_after in (2, 5):
        start_two(data, str(tmp_path / "two"), str(tmp_path / "cache of two"), str(stop_after))
    train_all(data, str(tmp_path / "one"), str(tmp_path / "cache of one"))
    for name in SYSTEMS:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        lines = [[json.loads(line) for line in (run / LOG).read_text().splitlines()] for run in (one, two)]
        assert [len(found) for found in lines] == [5, 5]  # only one of the processes writes
        for ours, theirs in zip(*lines, strict=True):
            for figure in set(ours) - {"samples_per_second"}:
                assert ours[figure] == pytest.approx(theirs[figure], rel=2e-4), (name, figure, ours["step"])
        assert_close(state(one), state(two))
        assert {path.name for path in two.iterdir()} == {CHECKPOINT, DECODER, LOG, "config.json"}
