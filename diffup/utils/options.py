"""Options that every part of the library takes: a device and a seed."""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

import torch

from diffup.errors import ConfigError


class _Movable(Protocol):
    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> Any: ...


Movable = TypeVar("Movable", bound=_Movable)

MAX_SEED = 2**32 - 1
"""Largest seed of training and of episode streams; numpy's legacy generator takes no larger one."""


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
