"""From features to the `Condition`, the decoder's only input, of the same form for every encoder, annotation and K.

Nothing after the `Condition` knows the encoder; nothing before it knows the decoder. The decoder's resolutions
(64, 32, 16, 8) are the condition's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from einops import rearrange, repeat
from torch import Tensor

from diffup.priors.affinity import self_affinities
from diffup.priors.config import PriorConfig
from diffup.priors.edges import canny, sobel
from diffup.priors.fusion import fuse, nearest_views
from diffup.priors.level import (
    MATCH_GRID,
    affinity_of,
    annotation_at_level,
    calibrated_contrast,
    pool_to_grid,
    salient_map,
    scale_down_large_features,
    view_priors,
)
from diffup.priors.presence import EVIDENCE, support_evidence, text_evidence
from diffup.priors.text import text_views
from diffup.utils.resize import resize_maps

SIZES = (64, 32, 16, 8)
"""Sides of the four condition levels, fine to coarse, and of the decoder's levels."""

EDGE_SIDE = 128
"""Side in pixels of the query image in which edges are detected, before they are resized to the levels."""

TEXT_WEIGHT = 3.0
"""Total weight of a class's text prompts in the fusion; each of the three views of a single support has weight 1."""

Members: TypeAlias = tuple[tuple[int, ...], ...]
"""For each of the four levels, channels of each member of a joint backbone; empty for a single backbone."""


@dataclass(frozen=True)
class Condition:
    """Input of the decoder for B queries: backbone-agnostic, in [-1, 1], except the low-level features of DiffUp+LFE.

    Args:
        levels: four tensors (B, C, s, s), s in `SIZES`, C = `PriorConfig.condition_channels`.
        prior: (B, 1, 64, 64), fused mean prior that shifts the diffusion (eq. 13).
        image: (B, 3, 64, 64), query images, for the quality branch (DQM).
        evidence: (B, 5), similarities that tell whether the queries show the class (`diffup.priors.presence.EVIDENCE`).
        affinity: for each side s in `priors.affinity.HEADS` a tensor (A, heads, s * s, 16 * 16), self-affinities of the
            queries; B is a multiple of A, and row i of the batch has the affinities i % A: classes and samples of the
            same queries share them. Empty unless `PriorConfig.self_affinity`.
        low_level: (B, C_0, h_0, w_0), first feature level of the queries as the encoder gives it; None unless the
            decoder reads it (`DecoderConfig.low_level_channels`).
    """

    levels: tuple[Tensor, ...]
    prior: Tensor
    image: Tensor
    evidence: Tensor
    affinity: tuple[Tensor, ...] = ()
    low_level: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor], affinity: tuple[Tensor, ...]) -> Condition:
        low_level = None if self.low_level is None else change(self.low_level)
        maps = tuple(map(change, self.levels)), change(self.prior), change(self.image)
        return Condition(*maps, change(self.evidence), affinity, low_level)

    def repeat(self, times: int) -> Condition:
        """Repeat the whole batch `times` times along the batch dimension: (times * B, ...)."""
        return self._each(lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)), self.affinity)

    def first(self, count: int) -> Condition:
        """The condition of the first `count` queries of the batch."""
        return self.rows(slice(count))

    def rows(self, rows: slice) -> Condition:
        """The condition of a slice of the queries."""
        chosen = range(len(self.prior))[rows]
        return self._each(lambda tensor: tensor[rows], tuple(_of_rows(tensor, chosen) for tensor in self.affinity))

    def to(self, device: torch.device) -> Condition:
        """The condition on a device."""
        return self._each(lambda tensor: tensor.to(device), tuple(tensor.to(device) for tensor in self.affinity))

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """Concatenate conditions for the same decoder along the batch dimension.

        Conditions of the same queries for several classes hold the same tensors of affinities and go on sharing them.
        """
        affinity = conditions[0].affinity
        if any(a is not b for condition in conditions for a, b in zip(condition.affinity, affinity, strict=True)):
            whole = [[a.repeat(len(part.prior) // len(a), 1, 1, 1) for a in part.affinity] for part in conditions]
            affinity = tuple(torch.cat(tensors) for tensors in zip(*whole, strict=True))
        features = [condition.low_level for condition in conditions if condition.low_level is not None]
        return cls(
            tuple(torch.cat(levels) for levels in zip(*(condition.levels for condition in conditions), strict=True)),
            torch.cat([condition.prior for condition in conditions]),
            torch.cat([condition.image for condition in conditions]),
            torch.cat([condition.evidence for condition in conditions]),
            affinity,
            torch.cat(features) if features else None,
        )


def _of_rows(affinity: Tensor, rows: range) -> Tensor:
    """Affinities of rows of a batch, as few as they need: (A, ...) -> (A', ...), the rows' number a multiple of A'."""
    if rows.start % len(affinity) == 0 and len(rows) % len(affinity) == 0:
        return affinity
    first = rows.start % len(affinity)
    if first + len(rows) <= len(affinity):
        return affinity[first : first + len(rows)]
    return affinity[torch.tensor(rows, device=affinity.device) % len(affinity)]


@dataclass(frozen=True)
class SupportFeatures:
    """Features and annotations of the support views of B episodes, K views each.

    Args:
        levels: four tensors (B, K, C_l, h_l, w_l), features of the views.
        foreground: (B, K, H, W) in [0, 1], weights of the class.
        background: (B, K, H, W) in [0, 1], weights of what is known not to be the class; all zero if unknown.
        valid: (B, K) bool, False for the padding of episodes with fewer views.
        annotated: (B, K) bool, False if the annotation does not say where the class is, so that saliency marks it. All
            views of a support share it, even a magnified view that a mask fills.
    """

    levels: tuple[Tensor, ...]
    foreground: Tensor
    background: Tensor
    valid: Tensor
    annotated: Tensor


@dataclass(frozen=True)
class PriorMaps:
    """The maps that `assemble` turns into a condition. Training augments them at random before.

    Attributes:
        fused: four tensors (B, `PriorConfig.prior_channels`, h, w) in [0, 1], fused priors of the levels.
        images: (B, 3, H, W) in [0, 1], query images.
        edges: (B, 2, H, W) in [0, 1], Canny and Sobel edges; unused if `PriorConfig.edges` is off.
        share: (B,) in [0, 1], result of `possible_share`; unused if `PriorConfig.calibration` is off.
        evidence: (B, 5), as `Condition.evidence`.
        affinity: self-affinities of the queries, as `Condition.affinity`; empty unless `PriorConfig.self_affinity`.
        low_level: (B, C_0, h_0, w_0), first feature level of the queries; None except for DiffUp+LFE.
    """

    fused: tuple[Tensor, ...]
    images: Tensor
    edges: Tensor
    share: Tensor
    evidence: Tensor
    affinity: tuple[Tensor, ...] = ()
    low_level: Tensor | None = None


def possible_share(support: SupportFeatures) -> Tensor:
    """Fraction of the supports' area that may be the class, that is, is not known to be background.

    Args:
        support: support features and annotations of B episodes.

    Returns:
        (B,) in [0, 1] on a logarithmic scale: 1 for the whole image (or if no background is known), lower by 1/3 for
        every tenfold smaller fraction, 0 from a thousandth on.
    """
    valid = support.valid.to(support.background)
    share = (1 - support.background).mean(dim=(2, 3))
    logs = 1 + share.clamp(1e-3, 1).log10() / 3
    return (logs * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)


def fused_priors(
    query: Sequence[Tensor],
    support: SupportFeatures | None,
    config: PriorConfig,
    text: Tensor | None = None,
    members: Members = (),
) -> list[Tensor]:
    """Fused priors of every level (UAPF, eq. 12).

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        support: support features of the same encoder; None for zero-shot.
        config: config of the priors.
        text: (B, V, h, w), one map of each text prompt (`text_maps`), each an additional view; None without
            text. One of `support` and `text` is needed.
        members: for each level, channels of each member of a joint backbone; every member makes its own views of
            supports and text (UAPF over views times backbones). Empty for a single backbone.

    Returns:
        Four tensors (B, `config.prior_channels`, h, w) in [0, 1], at each level's own resolution: the mean of each
        kind, the variance of each kind, the extra priors, the calibrated contrast, the absolute priors, the saliency.
    """
    levels = []
    for index, grid in enumerate(config.grids):
        features = query[index].float()
        widths = members[index] if members else (features.shape[1],)
        sides: list[SupportFeatures] | list[None] = [None] * len(widths)
        if support is not None:
            sides = [
                replace(support, levels=(part,))
                for part in torch.split(support.levels[index].float(), list(widths), dim=2)
            ]
        parts = zip(torch.split(features, list(widths), dim=1), sides, strict=True)
        priors, once = zip(*(_member_priors(part, side, text, grid, config) for part, side in parts), strict=True)
        channels = _fuse_views(torch.cat(priors, dim=1), _weights(support, text).repeat(1, len(widths)), config)
        maps = torch.cat([*channels, torch.stack(once).mean(dim=0)], dim=1)
        levels.append(rearrange(maps, "b n (h w) -> b n h w", h=min(features.shape[2], grid)))
    return levels


def _member_priors(
    features: Tensor, support: SupportFeatures | None, text: Tensor | None, grid: int, config: PriorConfig
) -> tuple[Tensor, Tensor]:
    """Priors of one backbone at one level: maps of every view (B, V, M, P), and maps without views (B, N, P).

    `support` holds only this backbone's features of this level.
    """
    features, views = scale_down_large_features(features, features if support is None else support.levels[0])
    features = pool_to_grid(features, grid)
    spread = affinity_of(features, config) if config.affinity else None
    once = [features.new_zeros(len(features), 0, features.shape[2] * features.shape[3])]
    priors = []
    if support is not None:
        pooled = pool_to_grid(rearrange(views, "b k c h w -> (b k) c h w"), grid)
        views = rearrange(pooled, "(b k) c h w -> b k c h w", b=len(views))
        regions = (support.foreground, support.background, support.annotated)
        level_annotation = annotation_at_level(views, *regions, config)
        stretched, similar = view_priors(features, spread, views, *regions, level_annotation, config)
        priors.append(stretched)
        if config.calibration:
            once.append(calibrated_contrast(features, spread, views, level_annotation, support.valid, config))
        if config.absolute:
            once.append(absolute_priors(similar, support.valid))
    if text is not None:
        stretched, similar = text_views(text, features, spread, len(config.kinds), config.normalisation)
        priors.append(stretched)
        if config.calibration and support is None:
            # Text has no support scores to calibrate by: its maps are assumed to span background to foreground.
            once.append(stretched[:, :, 0].mean(dim=1, keepdim=True) / 3 + 1 / 3)
        if config.absolute and support is None:
            once.append(absolute_priors(similar, similar.new_ones(similar.shape[:2])))
    if config.saliency:
        once.append(salient_map(features, config, spread)[:, None])
    return torch.cat(priors, dim=1), torch.cat(once, dim=1)


def absolute_priors(similar: Tensor, valid: Tensor) -> Tensor:
    """Mean of similarities over the valid views, on a scale that is the same for all queries.

    Args:
        similar: (B, V, M, P), similarities of V views, M kinds and P positions.
        valid: (B, V), 0 or False for padding.

    Returns:
        (B, M, P) in [0, 1]; 1/2 is a similarity of 0.
    """
    weights = valid.to(similar)[:, :, None, None]
    mean = (similar * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    return (mean * 0.5 + 0.5).clamp(0, 1)


def _weights(support: SupportFeatures | None, text: Tensor | None) -> Tensor:
    """Weights of the views (B, V): 1 for each valid support view, `TEXT_WEIGHT` for all text views together."""
    found = [] if support is None else [support.valid.float()]
    if text is not None:
        found.append(torch.full(text.shape[:2], TEXT_WEIGHT / text.shape[1], device=text.device))
    return torch.cat(found, dim=1)


def _fuse_views(priors: Tensor, weights: Tensor, config: PriorConfig) -> list[Tensor]:
    """Mean and variance of every kind, and the extra priors: (B, V, M, P), (B, V) -> three or two of (B, N, P)."""
    channels = [fused.view(len(fused), *priors.shape[2:]) for fused in fuse(priors.flatten(2), weights)]
    if config.extra_priors:
        channels.append(nearest_views(priors[:, :, 0], weights > 0, channels[0][:, 0], config.extra_priors))
    return channels


def presence_evidence(
    query: Tensor, support: SupportFeatures | None, config: PriorConfig, text: Tensor | None, widths: Sequence[int] = ()
) -> Tensor:
    """Collect what tells whether queries show the class.

    Args:
        query: (B, C, h, w), features of the queries at the last level.
        support: support features of the same encoder; None for zero-shot.
        config: config of the priors.
        text: (B, V, h', w'), one map of each text prompt (`text_maps`); None without text.
        widths: channels of each member of a joint backbone, whose evidence is averaged; empty for a single backbone.

    Returns:
        (B, 5), as `Condition.evidence`.
    """
    found = query.new_zeros(len(query), EVIDENCE, dtype=torch.float32)
    if support is None:
        if text is not None:
            found[:, 3], found[:, 4] = text_evidence(text), 1
        return found
    sizes = list(widths) or [query.shape[1]]
    ours, theirs = query.float(), support.levels[-1].float()
    parts = zip(torch.split(ours, sizes, dim=1), torch.split(theirs, sizes, dim=2), strict=True)
    each = []
    for features, views in parts:
        features, views = scale_down_large_features(features, views)
        pooled = pool_to_grid(rearrange(views, "b k c h w -> (b k) c h w"), MATCH_GRID)
        views = rearrange(pooled, "(b k) c h w -> b k c h w", b=len(views))
        foreground, _ = annotation_at_level(views, support.foreground, support.background, support.annotated, config)
        each.append(support_evidence(pool_to_grid(features, config.grid), views, foreground, support.valid))
    found[:, :2], found[:, 2] = torch.stack(each).mean(dim=0), 1
    return found


def edge_maps(images: Tensor) -> Tensor:
    """Canny and Sobel edges of query images: (B, 3, H, W) in [0, 1] -> (B, 2, H, W) in [0, 1]."""
    return torch.cat([canny(images), sobel(images)], dim=1)


def query_affinity(query: Sequence[Tensor], config: PriorConfig, members: Members = ()) -> tuple[Tensor, ...]:
    """Compute the self-affinities of queries from their features, pooled as for the priors.

    Features that were pooled before, as in training and evaluation, give the same.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        config: config of the priors.
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.

    Returns:
        `Condition.affinity`; empty if the config has none.
    """
    if not config.self_affinity:
        return ()
    pooled = [pool_to_grid(level, grid) for level, grid in zip(query, config.grids, strict=True)]
    return self_affinities(pooled, members)


def prior_maps(
    query: Sequence[Tensor],
    support: SupportFeatures | None,
    images: Tensor,
    config: PriorConfig,
    low_level: bool = False,
    text: Tensor | None = None,
    members: Members = (),
    edges: Tensor | None = None,
    affinity: tuple[Tensor, ...] | None = None,
) -> PriorMaps:
    """Compute all maps that a condition is assembled from.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        support: support features of the same encoder; None for zero-shot.
        images: (B, 3, H, W) in [0, 1], query images, H = W = `EDGE_SIDE`.
        config: config of the priors.
        low_level: whether to include the queries' first feature level, for DiffUp+LFE (Table 9).
        text: (B, V, h, w), one map of each text prompt (`text_maps`); None without text.
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.
        edges: (B, 2, H, W) in [0, 1], precomputed result of `edge_maps`; None computes it.
        affinity: precomputed result of `query_affinity`; None computes it.
    """
    if affinity is None:
        affinity = query_affinity(query, config, members)
    if edges is None:
        edges = edge_maps(images) if config.edges else images.new_zeros(())
    return PriorMaps(
        fused=tuple(fused_priors(query, support, config, text, members)),
        images=images,
        edges=edges,
        share=images.new_ones(len(images)) if support is None else possible_share(support),
        evidence=presence_evidence(query[-1], support, config, text, members[-1] if members else ()),
        affinity=affinity,
        low_level=pool_to_grid(query[0].float(), config.grid) if low_level else None,
    )


def assemble(maps: PriorMaps, config: PriorConfig) -> Condition:
    """Assemble prior maps to a condition.

    Args:
        maps: prior maps of B queries.
        config: config of the priors with which the maps were made.
    """
    levels = []
    for index, side in enumerate(SIZES):
        sources = maps.fused if config.layout == "all" else maps.fused[index : index + 1]
        channels = [resize_maps(source, (side, side)) for source in sources]
        if config.edges:
            channels.append(resize_maps(maps.edges, (side, side)))
        if config.calibration:
            channels.append(repeat(maps.share, "b -> b 1 h w", h=side, w=side))
        levels.append(torch.cat(channels, dim=1) * 2 - 1)
    prior = mean_prior(maps.fused, SIZES[0], len(config.kinds))
    image = resize_maps(maps.images, (SIZES[0], SIZES[0]))
    return Condition(tuple(levels), prior * 2 - 1, image * 2 - 1, maps.evidence, maps.affinity, maps.low_level)


def mean_prior(fused: Sequence[Tensor], side: int, kinds: int) -> Tensor:
    """The fused prior averaged over kinds and the last two levels, which are the most semantic ones.

    Args:
        fused: four tensors (B, C, h, w) in [0, 1], fused priors of the levels.
        side: side of the result in positions.
        kinds: number of prior kinds, whose means are the first channels of each level.

    Returns:
        (B, 1, side, side) in [0, 1].
    """
    return torch.stack(
        [resize_maps(level[:, :kinds].mean(dim=1, keepdim=True), (side, side)) for level in fused[-2:]]
    ).mean(dim=0)


def build_condition(
    query: Sequence[Tensor],
    support: SupportFeatures | None,
    images: Tensor,
    config: PriorConfig,
    low_level: bool = False,
    text: Tensor | None = None,
    members: Members = (),
    affinity: tuple[Tensor, ...] | None = None,
) -> Condition:
    """Build the condition from features: `prior_maps`, then `assemble`.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        support: support features of the same encoder; None for zero-shot.
        images: (B, 3, H, W) in [0, 1], query images, H = W = `EDGE_SIDE`.
        config: config of the priors.
        low_level: whether to include the queries' first feature level, for DiffUp+LFE (Table 9).
        text: (B, V, h, w), one map of each text prompt (`text_maps`); None without text.
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.
        affinity: precomputed result of `query_affinity`; None computes it.
    """
    maps = prior_maps(query, support, images, config, low_level, text, members, affinity=affinity)
    return assemble(maps, config)
