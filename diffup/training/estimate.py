"""Estimate of a run's disk space and time, printed before it starts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffup.backbones import Backbone
from diffup.decoder.build import build_decoder
from diffup.inputs.images import resize_image
from diffup.priors.affinity import HEADS, KEY_SIDE
from diffup.priors.condition import EDGE_SIDE, SIZES, Condition
from diffup.priors.level import pool_to_grid
from diffup.priors.presence import EVIDENCE
from diffup.text.space import TextSpace
from diffup.training.bank import Bank
from diffup.training.config import TrainConfig
from diffup.training.prepare import Sources, plan_banks

_IMAGE_BYTES = 6 * EDGE_SIDE**2 + 4
_AROUND = 2.1
"""Time of a training step relative to a pass of the decoder and back: a step also draws episodes, computes priors and
starts from the decoder's own estimates. Measured over 800 steps of the default config on a CPU."""


@dataclass(frozen=True)
class Estimate:
    """Views missing from the cache, their disk space and time, and the time of the remaining steps.

    Args:
        views: number of rendered views by group; each encoder encodes all of them.
        encoders: number of encoders.
        missing: number of views that are not in the cache, summed over the images and the encoders.
        gigabytes: disk space that the missing views need, in GB.
        free: free disk space, in GB.
        view_minutes: time to render and encode the missing views, in minutes.
        steps: number of remaining training steps.
        step_minutes: time of the remaining steps, in minutes; None if it cannot be estimated.
    """

    views: dict[str, int]
    encoders: int
    missing: int
    gigabytes: float
    free: float
    view_minutes: float
    steps: int
    step_minutes: float | None

    def __str__(self) -> str:
        parts = " + ".join(f"{count} {group}" for group, count in self.views.items())
        encoders = f" for each of {self.encoders} encoders" if self.encoders > 1 else ""
        text = f"views: {parts} = {sum(self.views.values())}{encoders}"
        text += f"; about {self.gigabytes:.2g} GB and {_minutes(self.view_minutes)}" if self.missing else "; all cached"
        if self.gigabytes > self.free:
            text += f" (the disk has {self.free:.2g} GB free: lower views.images, or name another --cache)"
        if self.step_minutes is not None:
            text += f"\nsteps: {self.steps}; about {_minutes(self.step_minutes)}"
        return text


def estimate(
    sources: Sources,
    config: TrainConfig,
    backbones: Sequence[Backbone],
    cache: Path,
    device: torch.device,
    steps: int,
    text_space: TextSpace | None = None,
) -> Estimate:
    """Estimate the cost of a run by timing one view of each kind, one pass of each encoder and one decoder step.

    Args:
        sources: the training photos.
        config: settings of the run.
        backbones: the training encoders.
        cache: folder of the cached views.
        device: device on which the decoder trains.
        steps: number of remaining training steps.
        text_space: the text space in which classes are named; None for none.
    """
    planned = plan_banks(sources, config, backbones, cache, text_space)
    missing = {bank: bank.entries - Bank(bank.folder, bank.entries).filled for bank in planned}
    costs = [_cost(backbone, config) for backbone in backbones] if any(missing.values()) else []
    if costs and text_space is not None:
        costs.append(_text_cost(text_space, len(sources.classes)))  # its number is `TEXT`, -1
    seconds = size = 0.0
    renders: dict[str, float] = {}
    for bank, count in missing.items():
        if count:
            render, _, geometry, _ = bank.plan
            renders.setdefault(bank.group, _seconds(lambda render=render: render(0)))  # type: ignore[misc]
            each, bytes_ = (0.0, _IMAGE_BYTES) if bank.encoder is None else costs[bank.encoder]
            seconds += count * (renders[bank.group] / len(geometry) + each)
            size += count * bytes_
    parent = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    return Estimate(
        views={bank.group: bank.entries for bank in planned if bank.encoder is None},
        encoders=len(backbones),
        missing=sum(missing.values()),
        gigabytes=size / 1e9,
        free=shutil.disk_usage(parent).free / 1e9,
        view_minutes=seconds / 60,
        steps=steps,
        step_minutes=None if config.decoder.low_level_channels or not steps else steps * _step(config, device) / 60,
    )


def _cost(backbone: Backbone, config: TrainConfig) -> tuple[float, float]:
    """Time in seconds and size in bytes of the features of one view."""
    image = resize_image(torch.rand(3, EDGE_SIDE, EDGE_SIDE), backbone.input_size)[None]
    batch = image.clamp(0, 1).to(backbone.device, memory_format=torch.channels_last)
    found: list[torch.Tensor] = []

    def encode() -> None:
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=config.bf16):
            levels = backbone.pyramid(batch)
        grids = config.decoder.feature_grids
        found[:] = [pool_to_grid(level.float(), grid).cpu() for level, grid in zip(levels, grids, strict=True)]

    return _seconds(encode), sum(2.0 * level.numel() for level in found)


def _text_cost(space: TextSpace, classes: int) -> tuple[float, float]:
    """Time in seconds and size in bytes of the text similarities of one view."""
    image = torch.rand(1, 3, *space.input_size, device=space.device)
    height, width = space.dense(image).shape[2:]
    return _seconds(lambda: space.dense(image)), 2.0 * classes * height * width


def _step(config: TrainConfig, device: torch.device) -> float:
    """Estimate the seconds of a training step from one forward and backward pass of the decoder."""
    batch, channels = config.batch_size, config.decoder.priors.condition_channels
    with torch.random.fork_rng(devices=[]):
        decoder = build_decoder(config.decoder).to(device).to(memory_format=torch.channels_last)
    levels = tuple(torch.zeros(batch, channels, side, side, device=device) for side in SIZES)
    prior = torch.zeros(batch, 1, SIZES[0], SIZES[0], device=device)
    heads = HEADS if config.decoder.priors.self_affinity else {}
    affinity = tuple(torch.zeros(batch, len(h), side**2, KEY_SIDE**2, device=device) for side, h in heads.items())
    evidence = torch.zeros(batch, EVIDENCE, device=device)
    condition = Condition(levels, prior, prior.expand(-1, 3, -1, -1), evidence, affinity)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            denoised = decoder(prior, torch.zeros(batch, device=device), condition)
        loss: Any = sum(part.float().sum() for part in (denoised.output, denoised.error, denoised.iou))
        loss.backward()
        float(loss.detach())  # waits for a GPU

    return _AROUND * _seconds(step)


def _seconds(action: Callable[[], object]) -> float:
    """Seconds of the second call; the first is the warm-up."""
    action()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _minutes(minutes: float) -> str:
    return f"{max(minutes * 60, 1):.0f} s" if minutes < 1.5 else f"{minutes:.0f} min"
