"""From features to the `Condition`, the decoder's only input, of the same form for every encoder, annotation and K.

Nothing after the `Condition` knows the encoder; nothing before it knows the decoder. The decoder's resolutions
(64, 32, 16, 8) are the condition's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from diffup.priors.config import PriorConfig
from diffup.priors.features import Members, SupportFeatures
from diffup.priors.fusion import fuse, nearest_views
from diffup.priors.prepared import (
    PreparedQuery,
    PreparedSupport,
    QueryLevel,
    SupportLevel,
    calibrated_contrast,
    level_priors,
    prepare_query,
    prepare_support,
    query_levels,
)
from diffup.priors.presence import presence_evidence
from diffup.priors.text import text_views
from diffup.utils.resize import resize_maps

SIZES = (64, 32, 16, 8)
"""Sides of the four condition levels, fine to coarse, and of the decoder's levels."""

EDGE_SIDE = 128
"""Side in pixels of the query image in which edges are detected, before they are resized to the levels."""

TEXT_WEIGHT = 3.0
"""Total weight of a class's text prompts in the fusion; each of the three views of a single support has weight 1."""


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
        low_level: (B, C_0, h_0, w_0), first feature level of the queries, pooled to 64 positions a side; None unless
            the decoder reads it (`DecoderConfig.low_level_channels`).
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
        if rows == slice(None):
            return self
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
    prepared = None if support is None else prepare_support(support, config, members)
    return _fused(query_levels(query, config, members), prepared, config, text)


def _fused(
    query: tuple[tuple[QueryLevel, ...], ...], support: PreparedSupport | None, config: PriorConfig, text: Tensor | None
) -> list[Tensor]:
    """Fused priors of every level, of prepared features: as `fused_priors`."""
    levels = []
    for index, parts in enumerate(query):
        sides = [None] * len(parts) if support is None else support.levels[index]
        valid = None if support is None else support.valid
        pairs = zip(parts, sides, strict=True)
        priors, once = zip(*(_member_priors(part, side, valid, text, config) for part, side in pairs), strict=True)
        channels = _fuse_views(torch.cat(priors, dim=1), _weights(valid, text).repeat(1, len(parts)), config)
        maps = torch.cat([*channels, torch.stack(once).mean(dim=0)], dim=1)
        levels.append(rearrange(maps, "b n (h w) -> b n h w", h=parts[0].size[0]))
    return levels


def _member_priors(
    query: QueryLevel, support: SupportLevel | None, valid: Tensor | None, text: Tensor | None, config: PriorConfig
) -> tuple[Tensor, Tensor]:
    """Priors of one backbone at one level: maps of every view (B, V, M, P), and maps without views (B, N, P)."""
    once = [query.features.new_zeros(query.features.shape[0], 0, query.features.shape[2])]
    priors = []
    if support is not None and valid is not None:
        stretched, similar = level_priors(query, support, config)
        priors.append(stretched)
        if config.calibration:
            once.append(calibrated_contrast(query, support, similar, valid, config))
        if config.absolute:
            once.append(absolute_priors(similar, valid))
    if text is not None:
        stretched, similar = text_views(text, query.size, query.spread, len(config.kinds), config.normalisation)
        priors.append(stretched)
        if config.calibration and support is None:
            # Text has no support scores to calibrate by: its maps are assumed to span background to foreground.
            once.append(stretched[:, :, 0].mean(dim=1, keepdim=True) / 3 + 1 / 3)
        if config.absolute and support is None:
            once.append(absolute_priors(similar, similar.new_ones(similar.shape[:2])))
    if query.salient is not None:
        once.append(query.salient[:, None])
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


def _weights(valid: Tensor | None, text: Tensor | None) -> Tensor:
    """Weights of the views (B, V): 1 for each valid support view, `TEXT_WEIGHT` for all text views together."""
    found = [] if valid is None else [valid.float()]
    if text is not None:
        found.append(torch.full(text.shape[:2], TEXT_WEIGHT / text.shape[1], device=text.device))
    return torch.cat(found, dim=1)


def _fuse_views(priors: Tensor, weights: Tensor, config: PriorConfig) -> list[Tensor]:
    """Mean and variance of every kind, and the extra priors: (B, V, M, P), (B, V) -> three or two of (B, N, P)."""
    channels = [fused.view(fused.shape[0], *priors.shape[2:]) for fused in fuse(priors.flatten(2), weights)]
    if config.extra_priors:
        channels.append(nearest_views(priors[:, :, 0], weights > 0, channels[0][:, 0], config.extra_priors))
    return channels


def prior_maps(
    query: Sequence[Tensor],
    support: SupportFeatures | None,
    images: Tensor,
    config: PriorConfig,
    low_level: bool = False,
    text: Tensor | None = None,
    members: Members = (),
    edges: Tensor | None = None,
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
    """
    prepared = prepare_query(query, images, config, low_level, members, edges)
    return class_maps(prepared, None if support is None else prepare_support(support, config, members), config, text)


def class_maps(
    query: PreparedQuery, support: PreparedSupport | None, config: PriorConfig, text: Tensor | None = None
) -> PriorMaps:
    """Compute the maps of one class in prepared queries.

    Args:
        query: the queries, from `prepare_query`.
        support: the class, from `prepare_support`, a batch of the same size; None for zero-shot.
        config: config of the priors.
        text: (B, V, h, w), one map of each text prompt (`text_maps`); None without text.
    """
    return PriorMaps(
        fused=tuple(_fused(query.levels, support, config, text)),
        images=query.images,
        edges=query.edges,
        share=query.images.new_ones(len(query.images)) if support is None else support.share,
        evidence=presence_evidence(query.matched, None if support is None else support.matched, text),
        affinity=query.affinity,
        low_level=query.low_level,
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
    """
    return assemble(prior_maps(query, support, images, config, low_level, text, members), config)
