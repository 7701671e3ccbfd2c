"""Bilinear resizing of maps, the one way in which features, priors and masks change size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly, with antialiasing when shrinking.

    Args:
        maps: (B, C, H, W) floats.
        size: new (height, width).

    Returns:
        (B, C, height, width); the tensor itself if it has that size already.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)
