"""Random changes of the fused priors in training, so that one encoder's histograms are not learned by heart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.priors.normalisation import gamma
from diffup.training.config import PerturbConfig
from diffup.training.processes import ALL, Share

_NOISE_SIDE = 6


def perturb(
    fused: Sequence[Tensor], config: PerturbConfig, generator: torch.Generator, share: Share = ALL
) -> list[Tensor]:
    """Bend every map by a random exponent, add smooth noise, and let some levels show another level's priors.

    Args:
        fused: four tensors (B, M, h_l, w_l) in [0, 1] of `priors.condition.fused_priors`.
        config: how much.
        generator: source of randomness, on the CPU.
        share: which rows of the batch these are.

    Returns:
        Four such tensors.
    """
    levels = _swap_levels(list(fused), config.swap_levels, generator, share)
    result = []
    for level in levels:
        batch, channels, height, width = level.shape
        exponents = torch.exp(share.randn(batch, channels, 1, 1, generator=generator) * config.gamma)
        amplitude = share.rand(batch, 1, 1, 1, generator=generator) * config.noise
        noise = share.randn(batch, channels, _NOISE_SIDE, _NOISE_SIDE, generator=generator) * amplitude
        smooth = F.interpolate(noise.to(level), (height, width), mode="bilinear", align_corners=False)
        result.append((gamma(level, exponents.to(level)) + smooth).clamp(0, 1))
    return result


def _swap_levels(levels: list[Tensor], probability: float, generator: torch.Generator, share: Share) -> list[Tensor]:
    """With some probability an episode's level is replaced by a random other one, resized."""
    swapped = []
    for level in levels:
        replaced = share.rand(len(level), generator=generator) < probability
        other = levels[int(torch.randint(len(levels), (), generator=generator))]
        if bool(replaced.any()):
            resized = F.interpolate(other, level.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
            level = torch.where(replaced.to(level.device)[:, None, None, None], resized, level)
        swapped.append(level)
    return swapped
