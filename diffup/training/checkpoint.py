"""Checkpoints: one safetensors file with everything needed to resume a run exactly, replaced atomically."""

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
    """Write a checkpoint. The previous one stays in place until the new one is complete.

    Args:
        path: path of the checkpoint file.
        tensors: tensors by group and name: model, averaged weights, optimiser moments.
        step: number of steps done.
        config: JSON text of the run's identity (config, encoders, data).
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
        path: path of the checkpoint file.
        config: JSON text of the run's identity (config, encoders, data), compared with that of the checkpoint.

    Returns:
        The tensors by group and name, the number of steps done, and the steps planned before if they were raised, else
        None.

    Raises:
        TrainingError: the file is no checkpoint, or the run has another config, other data or fewer steps than the
            checkpoint's.
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
    except (SafetensorError, ValueError, RecursionError, AttributeError) as error:  # a damaged file, JSON or name
        raise TrainingError(f"{path} cannot be read ({error}); delete it to start anew") from error


def steps_done(path: Path) -> int:
    """Read the number of steps done; 0 if there is no readable checkpoint (`load_checkpoint` then raises).

    Args:
        path: path of the checkpoint file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return int((file.metadata() or {}).get("step", 0))
    except (SafetensorError, OSError, ValueError):
        return 0


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an Adam optimiser as named tensors, by parameter number.

    Args:
        optimiser: Adam or AdamW.
    """
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state of an Adam optimiser.

    Args:
        optimiser: Adam or AdamW over the same parameters.
        tensors: the state as `optimiser_tensors` returned it.
    """
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
