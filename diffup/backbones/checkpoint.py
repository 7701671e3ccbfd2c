"""Reading encoder weights from local files, without unpickling code."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffup.errors import WeightsError
from diffup.utils.files import named_in_utf8

_HEADS = ("classifier", "head", "head_dist", "fc", "last_linear", "pooler")
_ADDED = ("hidden_states_norms",)  # untrained norms that backbone classes of transformers apply to their outputs
_WRAPPERS = ("state_dict", "model", "module")
_IDLE = (  # tensors that follow from the architecture, or have no effect in a frozen encoder
    "num_batches_tracked",
    "position_ids",
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "mask_token",
)
_POSITIONS = ("pos_embed", "positional_embedding", "position_embeddings", "position_embedding.weight")
BIASES = "relative_position_bias_table"
"""Ending of the names of tables of relative positions."""

Size = tuple[int, int]

Converter = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def read_weights(path: str | Path, name: str) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or from a torch file with `weights_only=True`.

    A dict wrapped as `{"state_dict": ...}`, `{"model": ...}` or with the prefix `module.` is unwrapped.

    Args:
        path: local file.
        name: name of the backbone in error messages.

    Returns:
        Tensors by name.

    Raises:
        WeightsError: the file is missing, unreadable or holds something else.
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
    module: nn.Module,
    weights: dict[str, Tensor],
    source: str,
    name: str,
    convert: Converter | None = None,
    heads: bool = False,
) -> None:
    """Load weights into an encoder, and check that they are complete.

    Heads and tensors without effect (BatchNorm's `num_batches_tracked`, mask tokens, tables that follow from the
    architecture) may be missing or superfluous; nothing else may.

    Args:
        module: encoder; its precision does not change.
        weights: state dict.
        source: origin of the weights in error messages.
        name: name of the backbone in error messages.
        convert: function that converts the weights if they do not fit unchanged, e.g. renames them.
        heads: whether the classifier is required too.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape; the message lists them, the likeliest cause
            first.
    """
    best, problems = weights, _compare(module, weights, heads)
    if problems and convert is not None:
        try:
            converted = dict(convert(dict(weights)))
        except Exception:  # a converter meets arbitrary keys; the plain comparison says more than its traceback
            converted = weights
        # If conversion reduces the differences, the message shows the remaining ones, not the file's original names.
        best, problems = min(
            (best, problems), (converted, _compare(module, converted, heads)), key=lambda pair: pair[1].count
        )
    if problems:
        raise WeightsError(f"backbone '{name}': the weights of {source} do not fit: {problems}")
    own = module.state_dict()
    module.load_state_dict({k: v for k, v in best.items() if k in own and v.shape == own[k].shape}, strict=False)


def find_positions(weights: Mapping[str, Tensor], width: int) -> Tensor | None:
    """Find the table of an image encoder's absolute position embeddings, whatever its name in a file.

    Args:
        weights: state dict of the encoder or of a larger model.
        width: channels C of the encoder's tokens.

    Returns:
        (..., N, C), or (1, h, w, C); None if there is none.
    """
    found = [key for key, value in weights.items() if key.endswith(_POSITIONS) and 2 <= value.ndim <= 4]
    found = [key for key in found if weights[key].shape[-1] == width]
    key = min(found, key=lambda key: not ("visual" in key or "vision" in key), default=None)  # else the text tower's
    return None if key is None else weights[key]


def grid_of_positions(tokens: int, own_tokens: int, own: Size, others: Sequence[Size] = ()) -> Size | None:
    """Infer the grid of a checkpoint's position embeddings, given the same number of class and register tokens.

    Warns (`UserWarning`) if the grid is one of `others`.

    Args:
        tokens: number of positions in the checkpoint, class and register tokens included.
        own_tokens: number of positions in the architecture, class and register tokens included.
        own: (height, width) of the architecture's grid in patches.
        others: further (height, width) to try if the grid is not square.

    Returns:
        (height, width) in patches: the architecture's own grid, a square, or one of the others; None if none has that
        number of positions.
    """
    count = tokens - (own_tokens - own[0] * own[1])
    side = math.isqrt(max(count, 0))
    for grid in (own, (side, side)):
        if grid[0] * grid[1] == count > 0:
            return grid
    found = next((grid for grid in others if grid[0] * grid[1] == count), None)
    if found is not None:
        warnings.warn(
            f"the checkpoint has positions of {count} patches, which form no square; they are taken to be those of "
            f"input_size, {found[0]} x {found[1]}",
            stacklevel=5,
        )
    return found


def window_of_biases(length: int, own_length: int, own: Size) -> Size | None:
    """Infer the window of a checkpoint's table of relative positions.

    Args:
        length: number of entries of the checkpoint's table.
        own_length: number of entries of the architecture's table.
        own: (height, width) of the architecture's window in patches.

    Returns:
        (height, width) in patches: the architecture's own window or a square; None if neither has that table length.
    """
    count = length - (own_length - (2 * own[0] - 1) * (2 * own[1] - 1))
    side = (math.isqrt(max(count, 0)) + 1) // 2
    return next((w for w in (own, (side, side)) if (2 * w[0] - 1) * (2 * w[1] - 1) == count), None)


def part_of_larger(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Select the weights of a module from those of a larger model, e.g. a CLIP's visual tower, under its own names.

    The module's prefix in the larger model is the one under which most of its entries are found.

    Args:
        weights: state dict of the larger model.
        module: the module.
    """
    own = module.state_dict()
    first = next(iter(own))
    prefixes = {key.removesuffix(first) for key in weights if key.endswith(first)}
    found = [{key: weights[prefix + key] for key in own if prefix + key in weights} for prefix in sorted(prefixes)]
    return max(found, key=len, default=dict(weights))


def describe_differences(
    missing: Sequence[str], shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], entries: int
) -> str:
    """Describe how weights differ from an encoder that its own library loaded, in the words of `load_weights`' error.

    Args:
        missing: names of the encoder's tensors that the weights lack.
        shapes: shapes in the weights and in the encoder, by name, of tensors whose shapes differ.
        entries: number of the encoder's tensors.

    Returns:
        Text for an error message; empty if nothing essential differs.
    """
    lacking = sorted(key for key in missing if not _optional(key, heads=False))
    found = {key: pair for key, pair in sorted(shapes.items()) if not _optional(key, heads=False)}
    problems = _Differences(lacking, [], found, entries - len(lacking))
    return str(problems) if problems else ""


@dataclass(frozen=True)
class _Differences:
    """Differences between weights and an encoder.

    Attributes:
        missing: names of tensors that the weights lack.
        unexpected: names of tensors that the encoder lacks.
        shapes: shapes in the weights and in the encoder, by name, of tensors whose shapes differ.
        shared: number of names that both have.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    shared: int

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        shapes = [f"{key}: {list(theirs)}, not {list(own)}" for key, (theirs, own) in self.shapes.items()]
        lists = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", shapes))
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''})"
            for what, keys in (lists if self.missing or self.unexpected else lists[::-1])
            if keys
        ]
        return "; ".join([self._cause, *parts])

    @property
    def _cause(self) -> str:
        if self.shared <= len(self.missing):
            return "they are of another architecture, or under another library's names"
        if len(self.shapes) > 2 and 2 * len(self.shapes) > self.shared:
            return "they are of a smaller or larger size of this architecture"
        if self.shapes and all(key.endswith((*_POSITIONS, BIASES)) for key in self.shapes):
            return "their positions are of a grid that the encoder cannot be built for"
        if self.missing and not self.unexpected and not self.shapes:
            return "the file is incomplete, or of a shallower variant of this architecture"
        if self.unexpected and not self.missing and not self.shapes:
            return "they are of a deeper variant of this architecture, or of a model around it"
        return "they are of another variant of this architecture"


def _compare(module: nn.Module, weights: Mapping[str, Tensor], heads: bool) -> _Differences:
    own = module.state_dict()
    needed = [key for key in own if not _optional(key, heads)]
    shared = [key for key in needed if key in weights]
    return _Differences(
        missing=[key for key in needed if key not in weights],
        unexpected=[key for key in weights if key not in own and not _optional(key, heads)],
        shapes={
            key: (tuple(weights[key].shape), tuple(own[key].shape))
            for key in shared
            if weights[key].shape != own[key].shape
        },
        shared=len(shared),
    )


def _optional(key: str, heads: bool) -> bool:
    first = key.split(".")[0]
    return first in _ADDED or (first in _HEADS and not heads) or key.endswith(_IDLE)
