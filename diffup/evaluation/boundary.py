"""Boundary IoU (Cheng et al., CVPR 2021): the IoU of what lies near the outlines of two masks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from diffup.data.base import Target

WIDTH = 0.02
"""Width of a boundary as a fraction of the image diagonal, as in the authors' code."""


def boundary_width(height: int, width: int) -> int:
    """Return the width of a boundary in pixels, at least 1.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    return max(1, round(WIDTH * math.hypot(height, width)))


def boundary(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask that are near its outline: those that its erosion removes.

    The erosion is by a square of 2 d + 1 pixels, where d is `boundary_width`: d erosions by 3 x 3. Outside the image is
    background, so that a mask that the image border cuts has a boundary there too.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    reach = boundary_width(*mask.shape)
    inside = np.pad(mask, reach)
    for _ in range(2):
        inside = _all_of(inside, 2 * reach + 1).T
    return mask & ~inside


def boundary_overlap(mask: npt.NDArray[np.bool_], target: Target) -> tuple[int, int]:
    """Count the pixels of intersection and union of the boundaries of a mask and its target.

    Ignored pixels are background in both masks, so that what the mask has there does not count.

    Args:
        mask: (H, W) bool, the predicted mask.
        target: the true mask, of the same size.
    """
    found, true = boundary(mask & ~target.ignore), boundary(target.mask & ~target.ignore)
    return int((found & true).sum()), int((found | true).sum())


def _all_of(rows: npt.NDArray[np.bool_], length: int) -> npt.NDArray[np.bool_]:
    """Whether all of `length` successive rows are set, from each row that so many follow; by doubling."""
    reached = 1
    while 2 * reached <= length:
        rows = rows[:-reached] & rows[reached:]
        reached *= 2
    return rows[: len(rows) - (length - reached)] & rows[length - reached :]
