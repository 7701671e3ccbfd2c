"""Checks of masks and label maps that the writers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.inputs.images import describe

SCORE_DIGITS = 4
"""Decimals of a score in a file: the last ones of float32 depend on how many photos were computed together."""


class MarksNothing(FormatError):
    """An object has no area: ignored if its image has other objects, an error if it has none."""


def as_mask(mask: Any, argument: str) -> npt.NDArray[np.bool_]:
    """Check that a value is a mask, and return it as an (H, W) bool array.

    Args:
        mask: array-like, (H, W) bool.
        argument: name of the argument in error messages.

    Raises:
        FormatError: the value has another shape or type, or no pixel.
    """
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size or array.dtype != np.bool_:
        raise FormatError(f"{argument}: expected a bool array (H, W), got {describe(mask)}")
    return array


def as_labels(labels: Any, argument: str) -> npt.NDArray[np.integer[Any]]:
    """Check that a value is a label map, and return it as an (H, W) integer array.

    Args:
        labels: array-like, (H, W) integers from 0 (background) on.
        argument: name of the argument in error messages.

    Raises:
        FormatError: the value has another shape or type, no pixel, or a negative label.
    """
    array = np.asarray(labels)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
        raise FormatError(f"{argument}: expected integers (H, W), 0 being the background, got {describe(labels)}")
    if array.min() < 0:
        raise FormatError(f"{argument}: expected labels from 0 (background) on, got {array.min()}")
    return array


def as_masks(given: Any, names: Sequence[Any], argument: str, name: str) -> list[npt.NDArray[np.bool_]]:
    """Split a label map, or check a list of masks, into one mask for each name; masks may be empty.

    Args:
        given: label map, (H, W) integers, whose label i + 1 is the mask of `names[i]`; or masks of `names` in order,
            (N, H, W) bool or a sequence of (H, W) bool.
        names: class names or ids, one for each mask.
        argument: name of the argument `given` in error messages.
        name: name of the argument `names` in error messages.

    Returns:
        (H, W) bool masks of one size, one for each name.

    Raises:
        FormatError: `given` has another form, or another number of masks than of names.
    """
    array = given if isinstance(given, np.ndarray) else None
    if array is not None and array.ndim == 2 and array.dtype.kind in "iu":
        labels = as_labels(array, argument)
        if int(labels.max()) > len(names):
            raise FormatError(
                f"{name}: got {len(names)}, but {argument} holds the label {labels.max()}; label i + 1 is {name}[i]"
            )
        return [labels == index + 1 for index in range(len(names))]
    if not isinstance(given, Sequence) and (array is None or array.ndim != 3):
        raise FormatError(
            f"{argument}: expected a label map (H, W) of integers or a list of masks (H, W) of type bool, "
            f"got {describe(given)}"
        )
    masks = [as_mask(mask, f"{argument}[{index}]") for index, mask in enumerate(given)]
    if len(masks) != len(names):
        raise FormatError(f"{name}: got {len(names)} for {len(masks)} masks; give one for each")
    if len({mask.shape for mask in masks}) > 1:
        raise FormatError(f"{argument}: the masks of one image have one size, got {sorted({m.shape for m in masks})}")
    return masks
