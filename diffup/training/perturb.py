"""Random changes of the fused priors in training, against overfitting to the training encoder.

Encoders differ in which level is the most informative, in how informative their early levels and their saliency are,
and in the histograms of their maps. A decoder that relies on any of these fails with another encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.priors.config import PriorConfig
from diffup.priors.normalisation import gamma, normalise
from diffup.training.config import PerturbConfig
from diffup.training.processes import ALL, Share

_NOISE_SIDE = 6
_ABSOLUTE = 0.2
"""Strength of the changes of absolute priors, relative to those of the other maps."""
_EARLY = 2
"""Number of early levels, whose features carry little semantic information."""


def perturb(
    fused: Sequence[Tensor],
    config: PerturbConfig,
    priors: PriorConfig,
    generator: torch.Generator,
    share: Share = ALL,
) -> list[Tensor]:
    """Swap levels, misplace early priors and saliency, change each map's histogram, and add smooth noise.

    Args:
        fused: four tensors (B, M, h_l, w_l) in [0, 1], the fused priors of the four levels.
        config: probabilities and strengths of the changes.
        priors: config of the priors, which says what the M maps are.
        generator: random number generator, on the CPU.
        share: rows of the batch that this process holds.

    Returns:
        The changed priors, four tensors of the same shapes.
    """
    levels = _swap_last(fused, config.swap_levels, generator, share)
    if config.misplace:
        levels = _misplace(levels, config.misplace, priors.saliency, generator, share)
    strength = _strengths(priors)
    result = []
    for level in levels:
        batch, channels, height, width = level.shape
        if config.flatten:
            level = _flatten(level, config.flatten, priors, generator, share)
        exponents = torch.exp(share.randn(batch, channels, 1, 1, generator=generator) * config.gamma * strength)
        amplitude = share.rand(batch, 1, 1, 1, generator=generator) * config.noise * strength
        noise = share.randn(batch, channels, _NOISE_SIDE, _NOISE_SIDE, generator=generator) * amplitude
        smooth = F.interpolate(noise.to(level), (height, width), mode="bilinear", align_corners=False)
        result.append((gamma(level, exponents.to(level)) + smooth).clamp(0, 1))
    return result


def _strengths(priors: PriorConfig) -> Tensor:
    """Strength of the changes of each map, (M, 1, 1): absolute priors keep most of what they are, their scale."""
    strengths = torch.ones(priors.prior_channels, 1, 1)
    strengths[priors.absolute_maps] = _ABSOLUTE
    return strengths


def _swap_last(fused: Sequence[Tensor], probability: float, generator: torch.Generator, share: Share) -> list[Tensor]:
    *early, third, fourth = fused
    swapped = _draw(third, probability, generator, share)[:, None, None, None]
    return [
        *early,
        torch.where(swapped, _resized(fourth, third), third),
        torch.where(swapped, _resized(third, fourth), fourth),
    ]


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False, antialias=True)


def _misplace(
    levels: Sequence[Tensor], probability: float, saliency: bool, generator: torch.Generator, share: Share
) -> list[Tensor]:
    """Misplace early levels, each independently, and saliency (the last map of every level) of random episodes."""
    result = []
    for index, level in enumerate(levels):
        if index < _EARLY:
            wrong = _elsewhere(level, _offsets(level, generator, share))
            level = torch.where(_draw(level, probability, generator, share)[:, None, None, None], wrong, level)
        result.append(level)
    if saliency:
        chosen = _draw(levels[0], probability, generator, share)[:, None, None, None]
        offsets = _offsets(levels[0], generator, share)
        for index, level in enumerate(result):
            salient = torch.where(chosen, _elsewhere(level[:, -1:], offsets), level[:, -1:])
            result[index] = torch.cat([level[:, :-1], salient], dim=1)
    return result


def _draw(like: Tensor, probability: float, generator: torch.Generator, share: Share) -> Tensor:
    """Draw which episodes are changed: (B,) bool."""
    return (share.rand(len(like), generator=generator) < probability).to(like.device)


def _offsets(like: Tensor, generator: torch.Generator, share: Share) -> Tensor:
    """Draw offsets as shares of the maps' sides: (B, 2) in [1/4, 3/4]."""
    return (0.25 + 0.5 * share.rand(len(like), 2, generator=generator)).to(like)


def _elsewhere(maps: Tensor, offsets: Tensor) -> Tensor:
    """Mirror maps (B, M, h, w) and roll them by offsets (B, 2): same appearance, wrong place."""
    height, width = maps.shape[-2:]
    rows, columns = (
        (torch.arange(side, device=maps.device) + (offsets[:, axis, None] * side).round().long()) % side
        for axis, side in enumerate((height, width))
    )
    batch = torch.arange(len(maps), device=maps.device)[:, None, None, None]
    channel = torch.arange(maps.shape[1], device=maps.device)[:, None, None]
    return maps.flip(-1)[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _flatten(level: Tensor, most: float, priors: PriorConfig, generator: torch.Generator, share: Share) -> Tensor:
    """Equalise the histograms of the maps that are normalised to [0, 1]; the order of a map's values is unchanged."""
    batch, channels = level.shape[:2]
    kinds = len(priors.kinds)
    stretched = torch.ones(channels, dtype=torch.bool)
    stretched[kinds : 2 * kinds] = False  # variances
    stretched[2 * kinds + priors.extra_priors : priors.absolute_maps.stop] = False  # contrast and absolute priors
    ranked = share.rand(batch, 1, 1, 1, generator=generator).to(level)
    contrast = 1 - most * share.rand(batch, channels, 1, 1, generator=generator)[:, stretched].to(level)
    middle = 0.3 + 0.4 * share.rand(batch, channels, 1, 1, generator=generator)[:, stretched].to(level)
    maps = level[:, stretched.to(level.device)]
    ranks = normalise(maps.flatten(2), "rank").view_as(maps)
    result = level.clone()
    result[:, stretched.to(level.device)] = middle + contrast * (maps + ranked * (ranks - maps) - middle)
    return result
