"""Priors of the views at one feature level: where the query resembles the annotated class (BAFT, eqs. 9-11)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.priors.affinity import affinity, enhance
from diffup.priors.config import PriorConfig
from diffup.priors.normalisation import normalise
from diffup.priors.saliency import saliency
from diffup.priors.similarity import best_match, masked_average_pooling, pairwise_similarity, resize_weights

LARGEST = 1e6
"""Greatest feature value that is not scaled down: squares of 1e19 would overflow, and similarity ignores scale."""

MATCH_GRID = 16
"""Greatest side, in positions, to which support features are pooled before positions are matched one by one."""

_EPS = 1e-3


def pool_to_grid(features: Tensor, grid: int) -> Tensor:
    """Average-pool features to a greatest side; smaller ones are unchanged.

    Args:
        features: (N, C, h, w).
        grid: greatest side in positions.

    Returns:
        (N, C, min(h, grid), min(w, grid)).
    """
    size = (min(features.shape[-2], grid), min(features.shape[-1], grid))
    if size == tuple(features.shape[-2:]):
        return features
    peak = _peak(features)
    if not bool(peak > LARGEST):
        return F.adaptive_avg_pool2d(features, size)
    return F.adaptive_avg_pool2d(features / peak, size) * peak  # sums of large ones would overflow


def scale_down_large_features(query: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the features of a level down by one common factor if a value exceeds `LARGEST`; else they are unchanged.

    Args:
        query: (B, C, h, w), query features.
        views: (B, K, C, h', w'), support features.

    Returns:
        Query and support features.
    """
    peak = torch.maximum(_peak(query), _peak(views))
    if not bool(peak > LARGEST):
        return query, views
    return query / peak, views / peak


def _peak(features: Tensor) -> Tensor:
    """The greatest absolute value, without the copy that `abs` makes."""
    low, high = features.aminmax()
    return torch.maximum(-low, high)


def view_priors(
    query: Tensor,
    spread: Tensor | None,
    views: Tensor,
    foreground: Tensor,
    background: Tensor,
    annotated: Tensor,
    level_annotation: tuple[Tensor, Tensor],
    config: PriorConfig,
) -> tuple[Tensor, Tensor]:
    """Priors of every view at one level (BAFT, eqs. 9-11), stretched to [0, 1] and as they are.

    Args:
        query: (B, C, h, w), query features of the level.
        spread: (B, h * w, h * w), affinity of the query's positions; None does not enhance the priors.
        views: (B, K, C, h', w'), support features of the level.
        foreground: (B, K, H, W) in [0, 1], weights of the class.
        background: (B, K, H, W) in [0, 1], weights of the background; all zero if unknown.
        annotated: (B, K) bool, False if the annotation does not say where the class is.
        level_annotation: foreground and background at this level, (B, K, h' * w') in [0, 1], from
            `annotation_at_level`.
        config: config of the priors.

    Returns:
        Two tensors (B, K, M, h * w), M = number of `config.kinds`: the priors in [0, 1], and the similarities, enhanced
        by the affinity, that they are stretched from.
    """
    batch, shots = views.shape[:2]
    flat = query.flatten(2)
    centred_query = centre(query, config).flatten(2)
    weights, complement = level_annotation
    known = complement.amax(dim=2) > 0
    support = views.flatten(3)
    maps = []
    for kind in config.kinds:
        if kind == "prototype":
            vectors = masked_average_pooling(centre(views.flatten(0, 1), config).flatten(2).view_as(support), weights)
            maps.append(pairwise_similarity(vectors, centred_query, config.metric, config.conversion))
        elif kind == "contrast":
            vectors = torch.cat(contrast_prototypes(support, weights, complement), dim=1)
            similar = pairwise_similarity(vectors, flat, config.metric, config.conversion)
            maps.append(similar[:, :shots] - similar[:, shots:])
        else:
            coarse, (inside, outside) = views, (weights, complement)
            if max(views.shape[3:]) > MATCH_GRID:
                coarse = pool_to_grid(views.flatten(0, 1), MATCH_GRID)
                coarse = coarse.view(batch, shots, *coarse.shape[1:])
                inside, outside = annotation_at_level(coarse, foreground, background, annotated, config)
            positions = centre(coarse.flatten(0, 1), config).flatten(2).view(batch, shots, views.shape[2], -1)
            similar = pairwise_similarity(positions.mT.flatten(1, 2), centred_query, config.metric, config.conversion)
            maps.append(best_match(similar.view(batch, shots, -1, similar.shape[2]), inside, outside, known))
    priors = torch.stack(maps, dim=2)
    if spread is not None:
        priors = enhance(priors.flatten(1, 2), spread).view(priors.shape)
    return normalise(priors, config.normalisation), priors


def contrast_prototypes(support: Tensor, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Prototypes of foreground and background (eq. 9); the whole image if the background is unknown.

    Args:
        support: (B, K, C, P), support features of P positions.
        foreground: (B, K, P) in [0, 1], weights of the class.
        background: (B, K, P) in [0, 1], weights of the background; all zero if unknown.

    Returns:
        Foreground and background prototypes, (B, K, C) each.
    """
    known = background.amax(dim=2, keepdim=True) > 0
    rest = torch.where(known, masked_average_pooling(support, background), support.mean(dim=3))
    return masked_average_pooling(support, foreground), rest


def calibrated_contrast(
    query: Tensor,
    spread: Tensor | None,
    views: Tensor,
    level_annotation: tuple[Tensor, Tensor],
    valid: Tensor,
    config: PriorConfig,
) -> Tensor:
    """The contrast prior on the scale of the support's own scores: 1/3 is the support's background, 2/3 its foreground.

    The other priors are stretched to [0, 1] in every query, and so cannot distinguish a query full of the class from
    one that barely shows it.

    Args:
        query: (B, C, h, w), query features of the level.
        spread: (B, h * w, h * w), affinity of the query's positions; None does not enhance the prior.
        views: (B, K, C, h', w'), support features of the level.
        level_annotation: foreground and background at this level, (B, K, h' * w') in [0, 1], from
            `annotation_at_level`.
        valid: (B, K) bool, False for padding.
        config: config of the priors.

    Returns:
        (B, 1, h * w) in [0, 1], the mean over the views.
    """
    weights, complement = level_annotation
    features = views.flatten(3)
    batch, shots = views.shape[:2]
    vectors = torch.stack(contrast_prototypes(features, weights, complement), dim=2)

    def scores(positions: Tensor) -> Tensor:
        similar = pairwise_similarity(
            vectors.flatten(0, 1), positions.flatten(0, 1), config.metric, config.conversion
        ).view(batch, shots, 2, -1)
        return similar[:, :, 0] - similar[:, :, 1]

    own, other = scores(features), scores(query.flatten(2)[:, None].expand(-1, shots, -1, -1))
    other = other if spread is None else enhance(other, spread)
    share = weights.mean(dim=2, keepdim=True).clamp(_EPS, 1 - _EPS)
    high = (own * weights).mean(dim=2, keepdim=True) / share
    low = (own * (1 - weights)).mean(dim=2, keepdim=True) / (1 - share)
    calibrated = ((other - low) / (high - low).clamp_min(_EPS)).clamp(-1, 2) / 3 + 1 / 3
    counted = valid[..., None].to(calibrated)
    return (calibrated * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp_min(1)


def centre(features: Tensor, config: PriorConfig) -> Tensor:
    """Subtract each image's mean feature if `PriorConfig.centre` is on.

    Args:
        features: (N, C, h, w), features of images.
        config: config of the priors.

    Returns:
        (N, C, h, w).
    """
    return features - features.mean(dim=(2, 3), keepdim=True) if config.centre else features


def annotation_at_level(
    views: Tensor, foreground: Tensor, background: Tensor, annotated: Tensor, config: PriorConfig
) -> tuple[Tensor, Tensor]:
    """Resize annotations to a feature level; a view without an annotation is marked by its own saliency.

    Args:
        views: (B, K, C, h, w), support features of the level.
        foreground: (B, K, H, W) in [0, 1], weights of the class.
        background: (B, K, H, W) in [0, 1], weights of the background; all zero if unknown.
        annotated: (B, K) bool, False if the annotation does not say where the class is.
        config: config of the priors.

    Returns:
        Foreground and background, (B, K, h * w) in [0, 1] each.
    """
    size = (views.shape[3], views.shape[4])
    weights = resize_weights(foreground.flatten(0, 1), size).flatten(1)
    complement = resize_weights(background.flatten(0, 1), size).flatten(1)
    bare = ~annotated.flatten()
    if bool(bare.any()):
        salient = salient_map(views.flatten(0, 1)[bare], config)
        weights[bare], complement[bare] = salient, 1 - salient
    return weights.view(*views.shape[:2], -1), complement.view(*views.shape[:2], -1)


def salient_map(features: Tensor, config: PriorConfig, spread: Tensor | None = None) -> Tensor:
    """Saliency, enhanced with the affinity and normalised like any prior.

    Args:
        features: (N, C, h, w), features of images.
        config: config of the priors.
        spread: (N, h * w, h * w), affinity of the images' positions; None computes it if it is needed.

    Returns:
        (N, h * w) in [0, 1].
    """
    maps = saliency(features)[:, None]
    if config.affinity:
        maps = enhance(maps, affinity_of(features, config) if spread is None else spread)
    return normalise(maps, config.normalisation)[:, 0]


def affinity_of(features: Tensor, config: PriorConfig) -> Tensor:
    """Affinity of the positions of images: (N, C, h, w) -> (N, h * w, h * w), by the config's centring and power."""
    return affinity(centre(features, config).flatten(2), config.affinity_power)
