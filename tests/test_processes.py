"""Several processes: their parts of a batch are those of one process, and so are gradients, losses and weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import make_folder, random_decoder
from runs import CONFIG, assert_identical, banks_of, encoder, sampler_of, state, trainer_of
from safetensors.torch import load_file, save_file

from diffup.errors import ConfigError, MissingPackageError
from diffup.priors import PriorConfig
from diffup.training.augment import move
from diffup.training.config import PerturbConfig, TrainConfig
from diffup.training.log import LOG
from diffup.training.perturb import perturb
from diffup.training.prepare import Banks
from diffup.training.processes import ALL, Processes, Share
from diffup.training.sampler import Episodes
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
    numbers = torch.Generator().manual_seed(0)
    config, priors = PerturbConfig(), PriorConfig(kinds=("match",), extra_priors=0)
    fused = [torch.rand(6, priors.prior_channels, side, side, generator=numbers) for side in (9, 6, 6, 2)]
    images = torch.rand(6, 3, 64, 64, generator=numbers)
    everything = {"images": images, "edges": images[:, :2], "mask": images[:, :1], "valid": images[:, 1:2]}
    everything["text"] = images[:, 2:]

    def changed(share: Share) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        own = tuple(level[share.index :: share.count] for level in fused)
        rows = {name: tensor[share.index :: share.count] for name, tensor in everything.items()}
        episodes = move(Episodes([rows["images"][:, :2]], None, **rows), config, generator, share)
        moved = [episodes.query[0], *(getattr(episodes, name) for name in everything)]
        return [*perturb(own, config, priors, generator, share), *moved]

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
    with pytest.raises(MissingPackageError, match=r'pip install "accelerate.*" "tensorboard'):
        Processes.start("cpu", 4)


# --- trainings in two processes --------------------------------------------------------------------------------------

SYSTEMS = ("diffusion", "gan", "one_step")
USUAL = TrainConfig()
TRAINED = replace(  # a small decoder and few steps; how it is optimised is left as it is
    CONFIG,
    batch_size=4,
    steps=5,
    learning_rate=USUAL.learning_rate,
    warmup=USUAL.warmup,
    weight_decay=USUAL.weight_decay,
    gradient_norm=USUAL.gradient_norm,
)
SETTINGS: dict[str, Any] = {"checkpoint_every": 1, "tensorboard": False, "progress": False}
ADAM_EPS = 1e-8
"""PyTorch's, which the trainer leaves as it is."""

SUMMANDS = TRAINED.batch_size * 64 * 64
"""A loss is a mean over the pixels of a batch, and the gradient of a kernel's weight a sum over them."""


def config_of(system: str) -> TrainConfig:
    return replace(TRAINED, decoder=replace(TRAINED.decoder, system=system))


def sum_error(dtype: torch.dtype) -> float:
    """How far sums of the same numbers in two orders may be apart, relative to the numbers' absolute sum.

    A sum of n numbers is off by (n - 1) u at most, where u, half of epsilon, is what one addition rounds: the bound of
    textbooks, for any order of additions, whatever processor and kernel choose it.
    """
    return 2 * (SUMMANDS - 1) * torch.finfo(dtype).eps / 2


def shared_banks(data: str, cache: str) -> Banks:
    with Processes.start("cpu", TRAINED.batch_size).main_first():
        return banks_of(Path(data), Path(cache), TRAINED)


def steps_of(system: str, banks: Banks, out: Path, steps: int) -> None:
    """Train from random weights, in this process and those beside it; each leaves what its last step gave."""
    processes, config = Processes.start("cpu", TRAINED.batch_size), config_of(system)
    trainer = trainer_of(banks, config, processes, initial=random_decoder(config.decoder))  # no layer starts at zero
    losses = [trainer.advance() for _ in range(steps)][-1]
    modules = {"model": trainer.model} | ({} if trainer.adversary is None else {"adversary": trainer.adversary.model})
    found = {"norm": trainer.gradient_norm}
    for part, module in modules.items():
        found |= {f"weight {part} {name}": parameter.detach() for name, parameter in module.named_parameters()}
        found |= {f"gradient {part} {name}": parameter.grad for name, parameter in module.named_parameters()}
    values = {field.name: getattr(losses, field.name) for field in fields(losses)}
    found |= {f"loss {name}": value.detach() for name, value in values.items() if value is not None}
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in found.items()}, out / f"{system} {processes.share.index}")


def in_double(data: str, cache: str, out: str) -> None:
    """The first step of each system, all of its arithmetic in float64."""
    banks = shared_banks(data, cache)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # elsewhere it undoes bfloat16 alone
    for system in SYSTEMS:
        steps_of(system, banks, Path(out), steps=1)


def in_single(data: str, cache: str, out: str) -> None:
    """Runs of each system in float32: one that stops, one at once, and steps that every process leaves."""
    for system in SYSTEMS:
        stopped, at_once = (Path(out) / f"{system} {name}" for name in ("stopped", "at once"))
        train(data, stopped, config_of(system), [encoder()], stop_after=2, cache=cache, **SETTINGS)
        train(data, at_once, config_of(system), [encoder()], cache=cache, **SETTINGS)
        steps_of(system, shared_banks(data, cache), Path(out) / "processes", steps=3)


def resumed(data: str, cache: str, out: str) -> None:
    """The runs that stopped are gone on with."""
    for system in SYSTEMS:
        train(data, Path(out) / f"{system} stopped", config_of(system), [encoder()], cache=cache, **SETTINGS)


ONE_OF_TWO = """
import faulthandler, sys
faulthandler.dump_traceback_later(540, exit=True)  # says where it waits for the other one
sys.path.insert(0, sys.argv[1])
import kernels, test_processes
kernels.choose()
getattr(test_processes, sys.argv[2])(*sys.argv[3:])
"""


def start(count: int, name: str, *arguments: Path) -> None:
    """Call a function of this module in each of so many processes, and wait for them."""
    here = Path(__file__).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    usual = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    usual |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ONE_OF_TWO, str(here), name, *map(str, arguments)]
    started = [
        subprocess.Popen(
            command,
            env=usual | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(said)


def parts_of(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if key.startswith(kind)}


def distances(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], limit: float) -> dict[str, float]:
    """What is further apart than the limit; what is not a number is apart from everything."""
    assert ours.keys() == theirs.keys() and ours
    found = {key: float((ours[key] - theirs[key]).abs().max()) for key in ours}
    return {key: distance for key, distance in found.items() if not distance <= limit}


@pytest.mark.slow
def test_two_processes_sum_the_gradients_of_one(tmp_path: Path) -> None:
    """Losses, gradients and the weights after a step, in float64, with the optimiser's real settings."""
    pytest.importorskip("accelerate")
    data, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    for count in (2, 1):
        start(count, "in_double", data, cache, tmp_path / str(count))
    rate = USUAL.learning_rate / USUAL.warmup
    for system in SYSTEMS:
        one, *two = (
            load_file(tmp_path / folder / f"{system} {rank}") for folder, rank in (("1", 0), ("2", 0), ("2", 1))
        )
        assert_identical(*two)
        assert all(value.dtype == torch.float64 for value in one.values())
        # Adam's first step is rate * g / (|g| + eps), whose slope is rate / eps at most: where gradients are apart by
        # their rounding, weights are by that many times as much. A GAN's generator sees a discriminator that took its
        # step just before, so its own gradients are as far apart as those weights.
        slope = rate / ADAM_EPS
        of_sum = sum_error(torch.float64)
        apart = of_sum * slope if system == "gan" else of_sum
        norm = float(one["norm"])
        assert norm > 0 and abs(float(two[0]["norm"]) - norm) <= apart * norm
        clipped = min(norm, USUAL.gradient_norm)
        assert distances(parts_of(two[0], "loss"), parts_of(one, "loss"), apart * float(one["loss total"])) == {}
        assert distances(parts_of(two[0], "gradient model"), parts_of(one, "gradient model"), apart * clipped) == {}
        weights = parts_of(two[0], "weight model"), parts_of(one, "weight model")
        assert distances(*weights, apart * clipped * slope) == {}
        if system == "gan":
            gradients = parts_of(one, "gradient adversary")
            clipped = float(torch.stack([value.norm() for value in gradients.values()]).norm())
            assert distances(parts_of(two[0], "gradient adversary"), gradients, of_sum * clipped) == {}
            weights = parts_of(two[0], "weight adversary"), parts_of(one, "weight adversary")
            assert distances(*weights, of_sum * clipped * slope) == {}


@pytest.mark.slow
def test_two_processes_train_and_resume(tmp_path: Path) -> None:
    """In float32: one writes, all have the same weights to the bit, a stop changes nothing, and the first losses.

    That is what float32 promises. The IoU counts pixels above a threshold, where rounding decides about a pixel on it,
    and Adam moves a weight whose gradient is rounding alone by as much as any other: neither is compared with one
    process.
    """
    pytest.importorskip("accelerate")
    data, cache, out = make_folder(tmp_path / "data"), tmp_path / "cache", tmp_path / "out"
    for part in ("in_single", "resumed"):
        start(2, part, data, cache, out)
    for system in SYSTEMS:
        stopped, at_once, alone = (out / f"{system} {name}" for name in ("stopped", "at once", "alone"))
        assert_identical(state(stopped), state(at_once))
        assert_identical(*(load_file(out / "processes" / f"{system} {rank}") for rank in range(2)))
        train(data, alone, config_of(system), [encoder()], stop_after=1, cache=cache, **SETTINGS)
        lines = {
            path: [json.loads(line) for line in (path / LOG).read_text().splitlines()] for path in (at_once, alone)
        }
        first, theirs = (found[0] for found in lines.values())
        for name in ("diffusion", "error"):
            assert first[name] == pytest.approx(theirs[name], rel=sum_error(torch.float32)), (system, name)
        for path in (stopped, at_once):
            steps = [json.loads(line)["step"] for line in (path / LOG).read_text().splitlines()]
            assert steps == [1, 2, 3, 4, 5]  # only one of the processes writes
            assert {file.name for file in path.iterdir()} == {CHECKPOINT, DECODER, LOG, "config.json"}
