"""Options that many functions of the library take: a device and a seed."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, Protocol, TypeVar

import torch

from diffup.errors import ConfigError


class _Movable(Protocol):
    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> Any: ...


Movable = TypeVar("Movable", bound=_Movable)

MAX_SEED = 2**32 - 1
"""Largest seed for training and for streams of episodes; numpy's legacy generator takes no larger one."""


def whole_number(name: str, value: object) -> int:
    """Check that an option is a whole number; numpy's are too.

    Args:
        name: name of the option in error messages.
        value: value of the option.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name}={value!r}: it must be a whole number")
    return int(value)


def seeded(seed: int) -> torch.Generator:
    """Make a generator on the CPU from a seed.

    Args:
        seed: whole number of 64 bits, in [-2**63, 2**63).

    Raises:
        ConfigError: the seed is not such a number.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed={seed!r}: it must be a whole number of 64 bits")
    return torch.Generator().manual_seed(int(seed))


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Choose the device to compute on.

    Args:
        device: device or its name, such as "cuda:0"; None is CUDA if available, else the CPU.

    Raises:
        ConfigError: the device is not available.
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
    """Return an encoder or text space on a device: the object itself if it is there already, else a copy.

    The original is never moved, since another model may be using it.

    Args:
        part: encoder or text space.
        device: device that the result is on.
    """
    if part.device.type == device.type and device.index in (None, part.device.index):
        return part
    moved: Movable = copy.deepcopy(part).to(device)
    return moved
