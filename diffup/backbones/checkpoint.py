"""Reading encoder weights from local files, never by unpickling code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffup.errors import WeightsError
from diffup.files import named_in_utf8

_HEADS = ("classifier", "head", "head_dist", "fc", "last_linear", "pooler")
_ADDED = ("hidden_states_norms",)  # norms without training that backbone classes of transformers put on their outputs
_WRAPPERS = ("state_dict", "model", "module")

Converter = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def read_weights(path: str | Path, name: str) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or from a torch file with `weights_only=True`.

    A dict wrapped as `{"state_dict": ...}`, `{"model": ...}` or with the prefix `module.` is unwrapped.

    Args:
        path: Local file.
        name: The backbone it is for, for the message.

    Raises:
        WeightsError: If the file is missing, unreadable or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"backbone '{name}': checkpoint_path {str(path)!r} is not a file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            with named_in_utf8(file) as readable:
                content: Any = load_file(readable)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip errors share no base
        raise WeightsError(
            f"backbone '{name}': {file} cannot be read as "
            f"{'safetensors' if file.suffix == '.safetensors' else 'a torch file of plain weights'}: {error}"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"backbone '{name}': {file} does not hold a state dict (a mapping of names to tensors)")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def load_weights(
    module: nn.Module, weights: dict[str, Tensor], source: str, name: str, convert: Converter | None = None
) -> None:
    """Put weights into an encoder, all of them.

    Classifier and head keys and BatchNorm's `num_batches_tracked` may be absent or superfluous; nothing else may.

    Args:
        module: The encoder; its precision is kept.
        weights: State dict.
        source: Where the weights come from, for the message.
        name: The backbone, for the message.
        convert: Applied to the weights when they do not fit as they are, e.g. to resize position embeddings.

    Raises:
        WeightsError: Listing the keys that are missing, unexpected or of another shape.
    """
    problems = _mismatches(module, weights)
    if problems and convert is not None:
        try:
            converted = dict(convert(dict(weights)))
        except Exception:  # a converter meets arbitrary keys; the plain comparison says more than its traceback
            converted = weights
        if not _mismatches(module, converted):
            weights, problems = converted, []
    if problems:
        raise WeightsError(f"backbone '{name}': the weights of {source} do not fit: {'; '.join(problems)}")
    own = module.state_dict()
    module.load_state_dict({k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}, strict=False)


def part_of_larger(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module out of those of a larger model, e.g. a CLIP's visual tower, under the module's own names.

    The prefix that the module has in the larger model is the one under which most of its entries are found.
    """
    own = module.state_dict()
    first = next(iter(own))
    prefixes = {key.removesuffix(first) for key in weights if key.endswith(first)}
    found = [{key: weights[prefix + key] for key in own if prefix + key in weights} for prefix in sorted(prefixes)]
    return max(found, key=len, default=dict(weights))


def _mismatches(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    own = module.state_dict()
    shared = [key for key in own if key in weights]
    return [
        f"{len(keys)} {what} ({', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''})"
        for what, keys in (
            ("missing", [k for k in own if k not in weights and not _optional(k)]),
            ("unexpected", [k for k in weights if k not in own and not _optional(k)]),
            ("of another shape", [k for k in shared if weights[k].shape != own[k].shape and not _optional(k)]),
        )
        if keys
    ]


def _optional(key: str) -> bool:
    return key.split(".")[0] in (*_HEADS, *_ADDED) or key.endswith("num_batches_tracked")
