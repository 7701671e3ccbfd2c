"""What the priors need of a query whatever the class, and of a class whatever the query: each is computed once.

A prior compares every position of a query with a class. `PreparedQuery` serves any number of classes, and
`PreparedSupport` any number of queries; `level_priors` compares one with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange
from torch import Tensor

from diffup.priors.affinity import enhance, self_affinities
from diffup.priors.config import LOW_LEVEL_GRID, PriorConfig
from diffup.priors.edges import edge_maps
from diffup.priors.features import Members, SupportFeatures, possible_share
from diffup.priors.level import (
    affinity_of,
    annotation_at_level,
    centre,
    contrast_prototypes,
    pool_to_grid,
    salient_map,
    scale_of,
)
from diffup.priors.normalisation import normalise
from diffup.priors.presence import MatchedQuery, MatchedSupport
from diffup.priors.similarity import best_match, comparable, compare, masked_average_pooling, pairwise_similarity

MATCH_GRID = 16
"""Greatest side, in positions, to which support features are pooled before positions are matched one by one."""

_EPS = 1e-3


@dataclass(frozen=True)
class QueryLevel:
    """Features of B queries at one level, of one encoder.

    Attributes:
        size: (h, w), resolution in positions; P = h * w.
        features: (B, C, P), features in the form that `compare` takes.
        centred: (B, C, P), the same of the features minus their mean, unless `PriorConfig.centre` is off.
        spread: (B, P, P), affinity of the positions; None without `PriorConfig.affinity`.
        salient: (B, P) in [0, 1], saliency of the positions; None without `PriorConfig.saliency`.
        scale: number by which the encoder's features were divided.
    """

    size: tuple[int, int]
    features: Tensor
    centred: Tensor
    spread: Tensor | None
    salient: Tensor | None
    scale: float = 1.0

    @classmethod
    def of(cls, features: Tensor, grid: int, config: PriorConfig) -> QueryLevel:
        """Prepare features.

        Args:
            features: (B, C, h, w), features of the queries.
            grid: greatest side, in positions, to which they are pooled.
            config: config of the priors.
        """
        scale = scale_of(features)
        pooled = pool_to_grid(features if scale == 1 else features / scale, grid)
        spread = affinity_of(pooled, config) if config.affinity else None
        return cls(
            size=(pooled.shape[2], pooled.shape[3]),
            features=comparable(pooled.flatten(2), 1, config.metric),
            centred=comparable(centre(pooled, config).flatten(2), 1, config.metric),
            spread=spread,
            salient=salient_map(pooled, config, spread) if config.saliency else None,
            scale=scale,
        )


@dataclass(frozen=True)
class PreparedQuery:
    """Everything in a condition of B queries that does not depend on the class.

    Attributes:
        levels: for each of the four levels the features of each member of a joint backbone, or of the only encoder.
        images: (B, 3, H, W) in [0, 1], the images.
        edges: (B, 2, H, W) in [0, 1], Canny and Sobel edges; unused if `PriorConfig.edges` is off.
        affinity: self-affinities, as `Condition.affinity`; empty unless `PriorConfig.self_affinity`.
        matched: what the presence compares, of each member or of the only encoder.
        low_level: (B, C_0, h_0, w_0), first feature level; None except for DiffUp+LFE.
    """

    levels: tuple[tuple[QueryLevel, ...], ...]
    images: Tensor
    edges: Tensor
    affinity: tuple[Tensor, ...]
    matched: tuple[MatchedQuery, ...]
    low_level: Tensor | None


def prepare_query(
    query: Sequence[Tensor],
    images: Tensor,
    config: PriorConfig,
    low_level: bool = False,
    members: Members = (),
    edges: Tensor | None = None,
) -> PreparedQuery:
    """Compute everything in a condition that does not depend on the class.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        images: (B, 3, H, W) in [0, 1], query images.
        config: config of the priors.
        low_level: whether to include the queries' first feature level, for DiffUp+LFE (Table 9).
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.
        edges: (B, 2, H, W) in [0, 1], precomputed result of `edge_maps`; None computes it.
    """
    if edges is None:
        edges = edge_maps(images) if config.edges else images.new_zeros(())
    return PreparedQuery(
        levels=query_levels(query, config, members),
        images=images,
        edges=edges,
        affinity=query_affinity(query, config, members),
        matched=matched_query(query[-1], config, members),
        low_level=pool_to_grid(query[0].float(), LOW_LEVEL_GRID) if low_level else None,
    )


def query_levels(
    query: Sequence[Tensor], config: PriorConfig, members: Members = ()
) -> tuple[tuple[QueryLevel, ...], ...]:
    """Prepare the features of queries at every level.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        config: config of the priors.
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.

    Returns:
        `PreparedQuery.levels`.
    """
    levels = []
    for index, (level, grid) in enumerate(zip(query, config.grids, strict=True)):
        parts = torch.split(level.float(), _widths(level, index, members), dim=1)
        levels.append(tuple(QueryLevel.of(part, grid, config) for part in parts))
    return tuple(levels)


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


@dataclass(frozen=True)
class SupportLevel:
    """What the priors need of the K support views of B episodes at one level, of one encoder.

    Vectors are in the form that `compare` takes.

    Attributes:
        prototypes: (B, K, C), prototype of the class in each view, of centred features.
        contrast: (B, 2, K, C), prototypes of the class, then those of the background.
        positions: (B, K, S, C), features of S positions of each view, for the match prior.
        inside: (B, K, S) in [0, 1], weights of the class at the positions.
        outside: (B, K, S) in [0, 1], weights of the background at the positions.
        known: (B, K) bool, whether the background is known.
        low: (B, K, 1), the view's own contrast on its background.
        high: (B, K, 1), the view's own contrast on the class.
        scale: number by which the encoder's features were divided.
    """

    prototypes: Tensor
    contrast: Tensor
    positions: Tensor
    inside: Tensor
    outside: Tensor
    known: Tensor
    low: Tensor
    high: Tensor
    scale: float = 1.0

    @classmethod
    def of(cls, views: Tensor, support: SupportFeatures, grid: int, config: PriorConfig) -> SupportLevel:
        """Prepare the features of one level.

        Args:
            views: (B, K, C, h, w), features of the views.
            support: the annotations of the views; its features are not used.
            grid: greatest side, in positions, to which features are pooled.
            config: config of the priors.
        """
        scale = scale_of(views)
        views = _pooled(views if scale == 1 else views / scale, grid)
        regions = (support.foreground, support.background, support.annotated)
        weights, complement = annotation_at_level(views, *regions, config)
        flat, centred = views.flatten(3), _centred(views, config).flatten(3)
        contrast = torch.stack(contrast_prototypes(flat, weights, complement), dim=1)
        low, high = _own_contrast(flat, contrast, weights, config)
        coarse, inside, outside = views, weights, complement
        if max(views.shape[3:]) > MATCH_GRID:
            coarse = _pooled(views, MATCH_GRID)
            inside, outside = annotation_at_level(coarse, *regions, config)
        positions = rearrange(_centred(coarse, config), "b k c h w -> b k (h w) c")
        return cls(
            prototypes=comparable(masked_average_pooling(centred, weights), 2, config.metric),
            contrast=comparable(contrast, 3, config.metric),
            positions=comparable(positions, 3, config.metric),
            inside=inside,
            outside=outside,
            known=complement.amax(dim=2) > 0,
            low=low,
            high=high,
            scale=scale,
        )


@dataclass(frozen=True)
class PreparedSupport:
    """Everything in the priors of B episodes that does not depend on the query.

    Attributes:
        levels: for each of the four levels the features of each member of a joint backbone, or of the only encoder.
        valid: (B, K) bool, False for padding.
        share: (B,) in [0, 1], result of `possible_share`.
        matched: what the presence compares, of each member or of the only encoder.
    """

    levels: tuple[tuple[SupportLevel, ...], ...]
    valid: Tensor
    share: Tensor
    matched: tuple[MatchedSupport, ...]

    def each(self, change: Callable[[Tensor], Tensor]) -> PreparedSupport:
        """Apply a function to every tensor.

        Args:
            change: function of one tensor; the first dimension of all is B.
        """
        levels = tuple(tuple(_each(member, change) for member in level) for level in self.levels)
        matched = tuple(member.each(change) for member in self.matched)
        return PreparedSupport(levels, change(self.valid), change(self.share), matched)


def prepare_support(support: SupportFeatures, config: PriorConfig, members: Members = ()) -> PreparedSupport:
    """Compute everything in the priors that does not depend on the query.

    Args:
        support: features and annotations of the support views.
        config: config of the priors.
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.
    """
    levels = []
    for index, (views, grid) in enumerate(zip(support.levels, config.grids, strict=True)):
        parts = torch.split(views.float(), _widths(views[:, 0], index, members), dim=2)
        levels.append(tuple(SupportLevel.of(part, support, grid, config) for part in parts))
    matched = _matched_support(support, [level.inside for level in levels[-1]], config, members)
    return PreparedSupport(tuple(levels), support.valid, possible_share(support), matched)


def matched_query(last: Tensor, config: PriorConfig, members: Members) -> tuple[MatchedQuery, ...]:
    """Prepare what the presence compares of queries.

    Args:
        last: (B, C, h, w), features of the queries at the last level.
        config: config of the priors.
        members: for each level, channels of each member of a joint backbone; empty for a single backbone.

    Returns:
        `PreparedQuery.matched`.
    """
    parts = torch.split(last.float(), _widths(last, -1, members), dim=1)
    return tuple(MatchedQuery.of(pool_to_grid(part / scale_of(part), config.grid)) for part in parts)


def _matched_support(
    support: SupportFeatures, foreground: Sequence[Tensor], config: PriorConfig, members: Members
) -> tuple[MatchedSupport, ...]:
    """What the presence compares of supports at the last level, for each member, whose weights (B, K, S) are given."""
    last = support.levels[-1].float()
    parts = torch.split(last, _widths(last[:, 0], -1, members), dim=2)
    return tuple(
        MatchedSupport.of(
            _pooled(part / scale_of(part), min(MATCH_GRID, config.grid)), weights, support.valid, support.shots
        )
        for part, weights in zip(parts, foreground, strict=True)
    )


def level_priors(query: QueryLevel, support: SupportLevel, config: PriorConfig) -> tuple[Tensor, Tensor]:
    """Priors of every view at one level (BAFT, eqs. 9-11), stretched to [0, 1] and as they are.

    Args:
        query: features of the queries.
        support: features of the support views, a batch of the same size.
        config: config of the priors.

    Returns:
        Two tensors (B, K, M, P), M = number of `config.kinds`: the priors in [0, 1], and the similarities, enhanced by
        the affinity, that they are stretched from.
    """
    shots = support.known.shape[1]
    maps = []
    for kind in config.kinds:
        if kind == "prototype":
            maps.append(_compared(support.prototypes, query.centred, query, support, config))
        elif kind == "contrast":
            maps.append(_contrast(query, support, config))
        else:
            similar = _compared(support.positions.flatten(1, 2), query.centred, query, support, config)
            similar = rearrange(similar, "b (k s) p -> b k s p", k=shots)
            maps.append(best_match(similar, support.inside, support.outside, support.known))
    priors = torch.stack(maps, dim=2)
    if query.spread is not None:
        priors = enhance(priors.flatten(1, 2), query.spread).view(priors.shape)
    return normalise(priors, config.normalisation), priors


def calibrated_contrast(
    query: QueryLevel, support: SupportLevel, similar: Tensor, valid: Tensor, config: PriorConfig
) -> Tensor:
    """The contrast prior on the scale of the support's own scores: 1/3 is the support's background, 2/3 its foreground.

    The other priors are stretched to [0, 1] in every query, and so cannot distinguish a query full of the class from
    one that barely shows it.

    Args:
        query: features of the queries.
        support: features of the support views.
        similar: (B, K, M, P), enhanced similarities of all kinds (`level_priors`), of which the contrast is taken.
        valid: (B, K) bool, False for padding.
        config: config of the priors.

    Returns:
        (B, 1, P) in [0, 1], the mean over the views.
    """
    if "contrast" in config.kinds:
        other = similar[:, :, config.kinds.index("contrast")]
    else:
        other = _contrast(query, support, config)
        other = other if query.spread is None else enhance(other, query.spread)
    low, high = support.low, support.high
    calibrated = ((other - low) / (high - low).clamp_min(_EPS)).clamp(-1, 2) / 3 + 1 / 3
    counted = valid[..., None].to(calibrated)
    return (calibrated * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp_min(1)


def _contrast(query: QueryLevel, support: SupportLevel, config: PriorConfig) -> Tensor:
    """Similarity to the class minus similarity to the background: (B, K, P)."""
    similar = _compared(support.contrast.flatten(1, 2), query.features, query, support, config)
    sides: Tensor = rearrange(similar, "b (side k) p -> side b k p", side=2)
    return sides[0] - sides[1]


def _own_contrast(features: Tensor, contrast: Tensor, weights: Tensor, config: PriorConfig) -> tuple[Tensor, Tensor]:
    """Mean contrast of support views on their own background and class.

    Takes features (B, K, C, P), prototypes (B, 2, K, C) and weights (B, K, P); returns two tensors (B, K, 1).
    """
    vectors = rearrange(contrast, "b side k c -> (b k) side c")
    similar = pairwise_similarity(vectors, features.flatten(0, 1), config.metric, config.conversion)
    own = (similar[:, 0] - similar[:, 1]).view_as(weights)
    share = weights.mean(dim=2, keepdim=True).clamp(_EPS, 1 - _EPS)
    high = (own * weights).mean(dim=2, keepdim=True) / share
    low = (own * (1 - weights)).mean(dim=2, keepdim=True) / (1 - share)
    return low, high


def _compared(
    vectors: Tensor, features: Tensor, query: QueryLevel, support: SupportLevel, config: PriorConfig
) -> Tensor:
    """Compare vectors of supports with features of queries, at the same scale."""
    if config.metric in ("l2", "l1") and support.scale != query.scale:
        vectors = vectors * (support.scale / query.scale)
    return compare(vectors, features, config.metric, config.conversion)


def _widths(level: Tensor, index: int, members: Members) -> list[int]:
    """Channels of each member at a level (B, C, h, w)."""
    return list(members[index]) if members else [level.shape[1]]


def _pooled(views: Tensor, grid: int) -> Tensor:
    """Pool the features of views, (B, K, C, h, w)."""
    return rearrange(pool_to_grid(views.flatten(0, 1), grid), "(b k) c h w -> b k c h w", b=len(views))


def _centred(views: Tensor, config: PriorConfig) -> Tensor:
    """Subtract the mean feature of each view, (B, K, C, h, w)."""
    return centre(views.flatten(0, 1), config).view_as(views)


def _each(level: SupportLevel, change: Callable[[Tensor], Tensor]) -> SupportLevel:
    tensors = {field.name: getattr(level, field.name) for field in fields(level) if field.name != "scale"}
    return replace(level, **{name: change(tensor) for name, tensor in tensors.items()})  # type: ignore[arg-type]
