"""Options that a user gives, checked: device, seed, and how the decoder is sampled."""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

import torch

from diffup.decoder.config import MAX_ENSEMBLE, DecoderConfig
from diffup.decoder.diffusion import check_steps
from diffup.errors import ConfigError


class _Movable(Protocol):
    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> Any: ...


Movable = TypeVar("Movable", bound=_Movable)

MAX_SEED = 2**32 - 1
"""Of training and of streams of episodes; numpy's legacy generator takes no larger one."""


def sampling_options(
    config: DecoderConfig, steps: int | None, ensemble: int | None, threshold: float | None
) -> tuple[int, int, float]:
    """Steps, ensemble and threshold, the config's where None.

    Raises:
        ConfigError: one is out of range.
    """
    steps = config.steps if steps is None else steps
    ensemble = config.ensemble if ensemble is None else ensemble
    threshold = config.threshold if threshold is None else threshold
    for name, value in (("steps", steps), ("ensemble", ensemble)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name}={value!r}: it must be a whole number")
    if isinstance(threshold, bool) or not isinstance(threshold, float | int):
        raise ConfigError(f"threshold={threshold!r}: it must be a number")
    check_steps(config, steps)
    if not 1 <= ensemble <= MAX_ENSEMBLE:
        raise ConfigError(f"ensemble={ensemble}: it must be 1 to {MAX_ENSEMBLE}")
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold={threshold}: it must lie between 0 and 1")
    return steps, ensemble, threshold


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU.

    Raises:
        ConfigError: the seed is no whole number of 64 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed={seed!r}: it must be a whole number of 64 bits")
    return torch.Generator().manual_seed(seed)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to use: the one named, or CUDA where there is one.

    Raises:
        ConfigError: it is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError) as error:
        remedy = "; did you mean 'cuda'?" if str(device).startswith("gpu") else "; leave it out to take what there is"
        raise ConfigError(f"device={str(device)!r} cannot be used{remedy} ({error})") from error
    return chosen


def placed(part: Movable, device: torch.device) -> Movable:
    """An encoder or text space on a device: itself if it is there, else a copy, so that others keep theirs."""
    if part.device.type == device.type and device.index in (None, part.device.index):
        return part
    moved: Movable = copy.deepcopy(part).to(device)
    return moved
