"""Checkpoints: one safetensors file with all that a run needs to go on exactly, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffup.errors import TrainingError
from diffup.utils.files import named_in_utf8, replacing


def save_checkpoint(
    path: Path,
    tensors: dict[str, dict[str, Tensor]],
    step: int,
    config: str,
) -> None:
    """Write a checkpoint; the last one stays until the new one is complete.

    Args:
        path: the file.
        tensors: named groups of tensors (model, averaged weights, optimiser moments).
        step: steps done.
        config: JSON text of the run's identity.
    """
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    with replacing(path) as temporary:
        save_file(flat, temporary, metadata={"step": str(step), "config": config})


def load_checkpoint(path: Path, config: str) -> tuple[dict[str, dict[str, Tensor]], int, int | None]:
    """Read a checkpoint of the same run.

    Args:
        path: the file.
        config: JSON text of the run's identity (its config, encoders and data), which must be the checkpoint's.

    Returns:
        The groups of tensors, the steps done, and how many the run was to have where it now has more.

    Raises:
        TrainingError: the file is not a checkpoint, or of a run with another config, other data or more steps.
    """
    try:
        with named_in_utf8(path) as readable, safe_open(readable, framework="pt") as file:
            facts = file.metadata() or {}
            if not {"step", "config"} <= set(facts):
                raise TrainingError(f"{path} is not a training checkpoint; delete it or choose another folder")
            theirs, ours = json.loads(facts["config"]), json.loads(config)
            if not isinstance(theirs, dict):
                raise TrainingError(f"{path} is not a training checkpoint; delete it or choose another folder")
            planned, wanted = theirs.get("steps"), ours.get("steps")
            raised = planned if isinstance(planned, int) and isinstance(wanted, int) and planned < wanted else None
            if {**theirs, "steps": wanted} == ours and planned != wanted and raised is None:
                raise TrainingError(
                    f"{path} belongs to a run of {planned} steps; steps={wanted} would shorten it, and its learning "
                    "rate has followed the longer schedule. Stop it early instead: --stop-after, stop_after="
                )
            if (theirs if raised is None else {**theirs, "steps": wanted}) != ours:
                raise TrainingError(
                    f"{path} belongs to a run with other settings or data ({_difference(theirs, ours)}); "
                    "choose another folder, or the same settings and data to go on"
                )
            groups: dict[str, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                group, name = key.split("/", 1)
                groups.setdefault(group, {})[name] = file.get_tensor(key)
            return groups, int(facts["step"]), raised
    except (SafetensorError, ValueError, RecursionError, AttributeError) as error:  # of the file, its JSON, its names
        raise TrainingError(f"{path} cannot be read ({error}); delete it to start anew") from error


def steps_done(path: Path) -> int:
    """Steps of a checkpoint; 0 where there is none that can be read, which `load_checkpoint` will say."""
    try:
        with safe_open(path, framework="pt") as file:
            return int((file.metadata() or {}).get("step", 0))
    except (SafetensorError, OSError, ValueError):
        return 0


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of Adam by parameter number."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    a, b = _flatten(theirs), _flatten(ours)
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return ", ".join(f"{name}: {a.get(name)} there, {b.get(name)} here" for name in names[:3])


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
