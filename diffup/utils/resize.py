"""Resizing of maps, the one way in which features, priors and masks change size.

A graph that is exported has products with constant matrices instead: not every runtime knows antialiasing, or pooling
to a size that does not divide the map's.
"""

from __future__ import annotations

import torch
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
    if torch.compiler.is_exporting():
        rows, columns = (triangle_weights(*sides) for sides in zip(maps.shape[-2:], size, strict=True))
        return rows @ maps @ columns.mT
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)


def average_pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps over the cells of a grid.

    Args:
        maps: (B, C, H, W) floats.
        size: (height, width) of the grid, not greater than the maps'.

    Returns:
        (B, C, height, width).
    """
    height, width = maps.shape[-2:]
    if torch.compiler.is_exporting() and (height % size[0] or width % size[1]):
        rows, columns = (_cell_weights(*sides) for sides in zip(maps.shape[-2:], size, strict=True))
        return rows @ maps @ columns.mT
    return F.adaptive_avg_pool2d(maps, size)


def triangle_weights(source: int, target: int) -> Tensor:
    """Weights of bilinear resizing with antialiasing along one side, as `F.interpolate` has them.

    Args:
        source: old side; in a graph it may vary.
        target: new side.

    Returns:
        (target, source) float32, rows summing to 1.
    """
    length = torch.arange(source, dtype=torch.float64).add(0.5)  # centres of the old positions
    scale = length[-1:].add(0.5) / target
    centres = (torch.arange(target, dtype=torch.float64).add(0.5) * scale)[:, None]
    weights = (1 - (length - centres).abs() / scale.clamp_min(1)).clamp_min(0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _cell_weights(source: int, target: int) -> Tensor:
    """Weights of `F.adaptive_avg_pool2d` along one side: (target, source), rows summing to 1."""
    position = torch.arange(source)
    start, stop = (torch.arange(target) * source) // target, -((-(torch.arange(target) + 1) * source) // target)
    inside = ((position >= start[:, None]) & (position < stop[:, None])).float()
    return inside / inside.sum(dim=1, keepdim=True)
