"""Geometric augmentation of encoded queries: features are moved like the image, which needs no further encoding."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.training.config import PerturbConfig
from diffup.training.processes import ALL, Share
from diffup.training.sampler import Episodes

_LEAST_LEFT = 0.3
"""Minimum share of the object's area that must stay visible; otherwise the episode is not moved."""


def move(episodes: Episodes, config: PerturbConfig, generator: torch.Generator, share: Share = ALL) -> Episodes:
    """Mirror, scale, rotate and shift the features of every query together with its image, edges and mask.

    Args:
        episodes: the batch of episodes.
        config: ranges of the transformations.
        generator: random number generator, on the CPU.
        share: rows of the batch that this process holds.

    Returns:
        The transformed episodes; their supports are unchanged.
    """
    batch, device = len(episodes.mask), episodes.mask.device
    flips = torch.where(share.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    free = share.rand(batch, 4, generator=generator) * 2 - 1
    moved = _matrices(flips, free, config).to(device)
    still = _matrices(flips, torch.zeros_like(free), config).to(device)
    object_seen = episodes.mask * 0.5 + 0.5
    kept = _warp(object_seen, moved).sum(dim=(1, 2, 3)) >= _LEAST_LEFT * object_seen.sum(dim=(1, 2, 3))
    matrices = torch.where(kept[:, None, None], moved, still)
    return replace(
        episodes,
        query=[_warp(level, matrices) for level in episodes.query],
        text=None if episodes.text is None else _warp(episodes.text, matrices),
        images=_warp(episodes.images, matrices),
        edges=_warp(episodes.edges, matrices),
        # Interpolated zeros are zeros, whereas -1 comes out rounded: a query without the class must stay one.
        mask=_warp(object_seen, matrices) * 2 - 1,
        valid=_warp(episodes.valid, matrices),
    )


def _matrices(flips: Tensor, free: Tensor, config: PerturbConfig) -> Tensor:
    """Build affine matrices (B, 2, 3) from output to input coordinates.

    Args:
        flips: (B,), -1 for a mirrored query, else 1.
        free: (B, 4) in [-1, 1], random numbers for scale, rotation and shift.
        config: ranges of the transformations.
    """
    scale = torch.exp(-config.zoom * free[:, 0])
    angle = math.radians(config.turn) * free[:, 1]
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    # The largest shift at which the window shows little beyond the border.
    reach = (1 - scale).clamp_min(0) + config.shift
    rows = (flips * cosine, -sine, free[:, 2] * reach, flips * sine, cosine, free[:, 3] * reach)
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _warp(maps: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(matrices, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
