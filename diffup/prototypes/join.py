"""Joining prototypes of one class that were computed one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from diffup.errors import PrototypesError
from diffup.priors.features import SupportFeatures
from diffup.priors.support import change_support, join_views
from diffup.prototypes.prototypes import Prototypes


def join_prototypes(items: Sequence[Prototypes]) -> Prototypes:
    """Join prototypes of one class, so that each support is encoded once, whatever it is joined with.

    The result equals that of all supports and text prompts given at once, in this order, up to the rounding of batched
    arithmetic. Of a single support, stored as three views, its unchanged view is taken as soon as there are several.

    Args:
        items: prototypes of the class made with one model; the first gives name and threshold.

    Returns:
        New prototypes; they store images if all of `items` do.

    Raises:
        PrototypesError: there are none, or they were made with different encoders, input sizes, grids or text spaces.
    """
    if not items:
        raise PrototypesError("prototypes: got an empty list; give at least one")
    shown = [item for item in items if item.features is not None]
    if len({(item.fingerprint, item.input_size, item.grid) for item in shown}) > 1:
        raise PrototypesError(f"prototypes {items[0].name!r} were made with different encoders, which do not compare")
    prompts = [item.text_prompt for item in items if item.text_prompt is not None]
    if len({prompt.fingerprint for prompt in prompts}) > 1:
        raise PrototypesError(f"prototypes {items[0].name!r} have text of different text spaces, which do not compare")
    negatives = [item.negative for item in items if item.negative is not None]
    kept = all(item.kept_supports for item in shown)
    return dataclasses.replace(
        shown[0] if shown else items[0],
        name=items[0].name,
        threshold=items[0].threshold,
        features=_joined(shown) if shown else None,
        shots=sum(item.shots for item in shown),
        text_prompt=reduce(lambda left, right: left.join(right), prompts) if prompts else None,
        kept_supports=tuple(support for item in shown for support in item.kept_supports) if kept else (),
        negative=join_prototypes(negatives) if negatives else None,
    )


def _joined(items: Sequence[Prototypes]) -> SupportFeatures:
    """The features of all supports, one view each unless there is a single one."""
    parts = [(item.features, item.shots) for item in items if item.features is not None]
    if len(parts) == 1:
        return parts[0][0]
    device = parts[-1][0].foreground.device  # features from a file are on the CPU
    # The unchanged view comes first.
    return join_views([change_support(part, partial(_first, count=count, device=device)) for part, count in parts])


def _first(tensor: Tensor, count: int, device: torch.device) -> Tensor:
    return tensor[:, :count].to(device)
