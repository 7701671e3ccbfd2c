"""From features to the `Condition`: the one thing the decoder sees, the same for every encoder, annotation and K.

Nothing right of the `Condition` knows the encoder; nothing left of it knows the decoder. The decoder's sizes
(64, 32, 16, 8) are the condition's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.priors.affinity import affinity, enhance
from diffup.priors.config import PriorConfig
from diffup.priors.edges import canny, sobel
from diffup.priors.fusion import fuse, nearest_views
from diffup.priors.normalisation import normalise
from diffup.priors.saliency import saliency
from diffup.priors.similarity import best_match, masked_average_pooling, pairwise_similarity, resize_weights

SIZES = (64, 32, 16, 8)
"""Sides of the four condition levels, fine to coarse, and of the decoder's."""

EDGE_SIDE = 128
"""Side at which edges of the query image are found, before they are pooled to the levels."""

LARGEST = 1e6
"""Features beyond this are scaled down: squares of 1e19 would overflow, and no similarity depends on the scale."""

MATCH_GRID = 16
"""Support features are pooled to at most this many positions a side before positions are matched one by one."""


@dataclass(frozen=True)
class Condition:
    """What conditions the decoder: backbone-agnostic, in [-1, 1], but for the low-level features of DiffUp+LFE.

    Args:
        levels: four tensors (B, C, s, s), s in `SIZES`, C = `PriorConfig.condition_channels`.
        prior: (B, 1, 64, 64), the fused mean prior that shifts the diffusion (eq. 13).
        image: (B, 3, 64, 64), the query image, for the quality branch (DQM).
        low_level: (B, C_0, h_0, w_0), the query's first feature level as the encoder gives it; None but for a decoder
            that reads it (`DecoderConfig.low_level_channels`).
    """

    levels: tuple[Tensor, ...]
    prior: Tensor
    image: Tensor
    low_level: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        low_level = None if self.low_level is None else change(self.low_level)
        return Condition(tuple(map(change, self.levels)), change(self.prior), change(self.image), low_level)

    def repeat(self, times: int) -> Condition:
        """The same condition `times` times over along the batch: (times * B, ...), member by member."""
        return self._each(lambda tensor: tensor.repeat(times, 1, 1, 1))

    def first(self, count: int) -> Condition:
        """The first `count` of the batch."""
        return self._each(lambda tensor: tensor[:count])

    def to(self, device: torch.device) -> Condition:
        """The condition on another device."""
        return self._each(lambda tensor: tensor.to(device))

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """Conditions of one decoder as one batch."""
        features = [condition.low_level for condition in conditions if condition.low_level is not None]
        return cls(
            tuple(torch.cat(levels) for levels in zip(*(condition.levels for condition in conditions), strict=True)),
            torch.cat([condition.prior for condition in conditions]),
            torch.cat([condition.image for condition in conditions]),
            torch.cat(features) if features else None,
        )


@dataclass(frozen=True)
class SupportFeatures:
    """The support side of an episode: per level the features of K views and where the class is in them.

    Args:
        levels: four tensors (B, K, C_l, h_l, w_l).
        foreground: (B, K, H, W) in [0, 1], weights of the class.
        background: (B, K, H, W) in [0, 1], weights of what is known not to be the class; all zero where unknown.
        valid: (B, K) bool, False for the padding of episodes with fewer views.
    """

    levels: tuple[Tensor, ...]
    foreground: Tensor
    background: Tensor
    valid: Tensor


def pool_to_grid(features: Tensor, grid: int) -> Tensor:
    """Pool features (N, C, h, w) to at most `grid` positions a side; smaller ones stay as they are."""
    size = (min(features.shape[-2], grid), min(features.shape[-1], grid))
    return features if size == tuple(features.shape[-2:]) else F.adaptive_avg_pool2d(features, size)


def tame(query: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Query and support features of a level by one factor within `LARGEST`; ordinary ones stay bit for bit."""
    peak = torch.maximum(query.abs().amax(), views.abs().amax())
    if not bool(peak > LARGEST):
        return query, views
    return query / peak, views / peak


def view_priors(
    query: Tensor, spread: Tensor | None, views: Tensor, foreground: Tensor, background: Tensor, config: PriorConfig
) -> Tensor:
    """Priors of every view at one level (BAFT, eqs. 9-11).

    Args:
        query: (B, C, h, w), query features of the level.
        spread: (B, h * w, h * w), the query's affinity; None leaves the priors as they are.
        views: (B, K, C, h', w'), support features of the level.
        foreground: (B, K, H, W) in [0, 1].
        background: (B, K, H, W) in [0, 1], all zero where unknown.
        config: which priors and how.

    Returns:
        (B, K, M, h * w) in [0, 1], M = number of `config.kinds`.
    """
    batch, shots = views.shape[:2]
    flat = query.flatten(2)
    centred_query = centre(query, config).flatten(2)
    weights, complement = place(views, foreground, background, config)
    known = complement.amax(dim=2) > 0
    support = views.flatten(3)
    maps = []
    for kind in config.kinds:
        if kind == "prototype":
            vectors = masked_average_pooling(centre(views.flatten(0, 1), config).flatten(2).view_as(support), weights)
            maps.append(pairwise_similarity(vectors, centred_query, config.metric, config.conversion))
        elif kind == "contrast":
            rest = torch.where(known[..., None], masked_average_pooling(support, complement), support.mean(dim=3))
            vectors = torch.cat([masked_average_pooling(support, weights), rest], dim=1)
            similar = pairwise_similarity(vectors, flat, config.metric, config.conversion)
            maps.append(similar[:, :shots] - similar[:, shots:])
        else:
            coarse, (inside, outside) = views, (weights, complement)
            if max(views.shape[3:]) > MATCH_GRID:
                coarse = pool_to_grid(views.flatten(0, 1), MATCH_GRID)
                coarse = coarse.view(batch, shots, *coarse.shape[1:])
                inside, outside = place(coarse, foreground, background, config)
            positions = centre(coarse.flatten(0, 1), config).flatten(2).view(batch, shots, views.shape[2], -1)
            similar = pairwise_similarity(positions.mT.flatten(1, 2), centred_query, config.metric, config.conversion)
            maps.append(best_match(similar.view(batch, shots, -1, similar.shape[2]), inside, outside, known))
    priors = torch.stack(maps, dim=2)
    if spread is not None:
        priors = enhance(priors.flatten(1, 2), spread).view(priors.shape)
    return normalise(priors, config.normalisation)


def centre(features: Tensor, config: PriorConfig) -> Tensor:
    """Features (N, C, h, w) less their image's mean, if the config says so."""
    return features - features.mean(dim=(2, 3), keepdim=True) if config.centre else features


def place(views: Tensor, foreground: Tensor, background: Tensor, config: PriorConfig) -> tuple[Tensor, Tensor]:
    """Bring annotations to a feature level; a view without a mask (all foreground) is marked by its own saliency.

    Args:
        views: (B, K, C, h, w).
        foreground: (B, K, H, W) in [0, 1].
        background: (B, K, H, W) in [0, 1].
        config: how priors are made.

    Returns:
        Foreground and background, (B, K, h * w) in [0, 1] each.
    """
    size = (views.shape[3], views.shape[4])
    weights = resize_weights(foreground.flatten(0, 1), size).flatten(1)
    complement = resize_weights(background.flatten(0, 1), size).flatten(1)
    bare = weights.amin(dim=1) > 0.999
    if bool(bare.any()):
        salient = salient_map(views.flatten(0, 1)[bare], config)
        weights[bare], complement[bare] = salient, 1 - salient
    return weights.view(*views.shape[:2], -1), complement.view(*views.shape[:2], -1)


def salient_map(features: Tensor, config: PriorConfig, spread: Tensor | None = None) -> Tensor:
    """Saliency made ready like any prior: (N, C, h, w) -> (N, h * w) in [0, 1].

    Args:
        features: of images.
        config: how priors are made.
        spread: (N, h * w, h * w), the images' affinity where it is at hand.
    """
    maps = saliency(features)[:, None]
    if config.affinity:
        maps = enhance(maps, affinity_of(features, config) if spread is None else spread)
    return normalise(maps, config.normalisation)[:, 0]


def affinity_of(features: Tensor, config: PriorConfig) -> Tensor:
    """Affinity of images with themselves: (N, C, h, w) -> (N, h * w, h * w)."""
    return affinity(centre(features, config).flatten(2), config.affinity_power)


def fused_priors(query: Sequence[Tensor], support: SupportFeatures, config: PriorConfig) -> list[Tensor]:
    """Fused priors of every level (UAPF, eq. 12).

    Args:
        query: four tensors (B, C_l, h_l, w_l).
        support: the support side, its levels from the same encoder.
        config: which priors and how.

    Returns:
        Four tensors (B, `config.prior_channels`, h, w) in [0, 1], at each level's own resolution: the mean of each
        kind, the variance of each kind, the extra priors, then the saliency.
    """
    levels = []
    for features, views, grid in zip(query, support.levels, config.grids, strict=True):
        features, views = tame(features.float(), views.float())
        features = pool_to_grid(features, grid)
        pooled = pool_to_grid(views.flatten(0, 1), grid)
        pooled = pooled.view(*views.shape[:2], *pooled.shape[1:])
        spread = affinity_of(features, config) if config.affinity else None
        priors = view_priors(features, spread, pooled, support.foreground, support.background, config)
        channels = [fused.view(len(fused), *priors.shape[2:]) for fused in fuse(priors.flatten(2), support.valid)]
        if config.extra_priors:
            first = priors[:, :, 0]
            channels.append(nearest_views(first, support.valid, channels[0][:, 0], config.extra_priors))
        if config.saliency:
            channels.append(salient_map(features, config, spread)[:, None])
        levels.append(torch.cat(channels, dim=1).view(len(features), -1, *features.shape[-2:]))
    return levels


def edge_maps(images: Tensor) -> Tensor:
    """Canny and Sobel edges of query images: (B, 3, H, W) in [0, 1] -> (B, 2, H, W) in [0, 1]."""
    return torch.cat([canny(images), sobel(images)], dim=1)


def assemble(fused: Sequence[Tensor], images: Tensor, edges: Tensor, config: PriorConfig) -> Condition:
    """Put fused priors and edges together into the four condition levels.

    Args:
        fused: four tensors of `fused_priors`.
        images: (B, 3, H, W) in [0, 1], query images.
        edges: (B, 2, H, W) in [0, 1] of `edge_maps`; unused if `config.edges` is off.
        config: the same config.
    """
    levels = []
    for index, side in enumerate(SIZES):
        sources = list(fused) if config.layout == "all" else [fused[index]]
        channels = [_resize(source, side) for source in sources]
        if config.edges:
            channels.append(_resize(edges, side))
        levels.append(torch.cat(channels, dim=1) * 2 - 1)
    prior = mean_prior(fused, SIZES[0], len(config.kinds))
    return Condition(tuple(levels), prior * 2 - 1, _resize(images, SIZES[0]) * 2 - 1)


def mean_prior(fused: Sequence[Tensor], side: int, kinds: int) -> Tensor:
    """The fused mean prior over kinds and the last two levels, where encoders keep what things are.

    Args:
        fused: four tensors of `fused_priors`.
        side: side of the result.
        kinds: number of prior kinds, the first channels of each level.

    Returns:
        (B, 1, side, side) in [0, 1].
    """
    return torch.stack([_resize(level[:, :kinds].mean(dim=1, keepdim=True), side) for level in fused[-2:]]).mean(dim=0)


def build_condition(
    query: Sequence[Tensor], support: SupportFeatures, images: Tensor, config: PriorConfig, low_level: bool = False
) -> Condition:
    """The whole way from features to the condition.

    Args:
        query: four tensors (B, C_l, h_l, w_l) of the query's features.
        support: the support side, from the same encoder.
        images: (B, 3, H, W) in [0, 1], the query images, H = W = `EDGE_SIDE`.
        config: which priors and how.
        low_level: hand the query's first feature level on, for DiffUp+LFE (Table 9).
    """
    edges = edge_maps(images) if config.edges else images.new_zeros(())
    condition = assemble(fused_priors(query, support, config), images, edges, config)
    return replace(condition, low_level=pool_to_grid(query[0].float(), config.grid)) if low_level else condition


def _resize(maps: Tensor, side: int) -> Tensor:
    """Bilinear to (side, side), antialiased when it shrinks."""
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False, antialias=True)
