"""From annotated support images to support features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from diffup.backbones import Backbone
from diffup.backbones.encode import encode
from diffup.inputs.annotations import Support
from diffup.priors.condition import EDGE_SIDE
from diffup.priors.features import SupportFeatures
from diffup.priors.level import pool_to_grid
from diffup.priors.similarity import resize_weights
from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View, warp


def plan_views(shots: int) -> list[tuple[int, View]]:
    """Plan the support views of an episode: several views of a single support (UAPF), else one view of each support.

    Args:
        shots: number of supports K, at least 1.

    Returns:
        Pairs of the index of a support and a view of it.
    """
    return [(0, view) for view in ONE_SHOT_VIEWS] if shots == 1 else plain_views(shots)


def plain_views(shots: int) -> list[tuple[int, View]]:
    """Plan one unchanged view of each support.

    Args:
        shots: number of supports K.

    Returns:
        Pairs of the index of a support and the identity view.
    """
    return [(index, IDENTITY) for index in range(shots)]


def view_regions(supports: Sequence[Support], plan: Sequence[tuple[int, View]]) -> Tensor:
    """Foreground and background of each view.

    Args:
        supports: annotated images, of any sizes.
        plan: pairs of the index of a support and a view of it.

    Returns:
        (V, 2, 128, 128) in [0, 1], foreground and background weights of V views.
    """
    regions = [resize_weights(torch.stack([s.regions.foreground, s.regions.background]), _SIZE) for s in supports]
    return torch.cat([warp(regions[index][None], view) for index, view in plan])


def encode_supports(
    backbone: Backbone, supports: Sequence[Support], plan: Sequence[tuple[int, View]] | None = None
) -> SupportFeatures:
    """Encode the supports of one episode, once each; a single support becomes three views of its features (UAPF).

    Args:
        backbone: encoder.
        supports: annotated images, of any sizes.
        plan: pairs of the index of a support and a view of it; None is `plan_views`.

    Returns:
        Support features of one episode (B = 1), on the encoder's device.

    Raises:
        BackboneError: the encoder breaks the protocol.
    """
    plan = plan_views(len(supports)) if plan is None else plan
    levels = encode(backbone, [support.image for support in supports])
    return support_features(view_levels(levels, plan), supports, plan)


def view_levels(levels: Sequence[Tensor], plan: Sequence[tuple[int, View]]) -> list[Tensor]:
    """Features of views: those of their supports, mirrored or enlarged, so that each support is encoded once.

    Args:
        levels: four tensors (K, C_l, h_l, w_l), features of the supports.
        plan: pairs of the index of a support and a view of it.

    Returns:
        Four tensors (V, C_l, h_l, w_l).
    """
    return [torch.cat([warp(level[index : index + 1], view) for index, view in plan]) for level in levels]


def support_features(
    levels: Sequence[Tensor], supports: Sequence[Support], plan: Sequence[tuple[int, View]]
) -> SupportFeatures:
    """Combine features and annotations of the views of one episode.

    Args:
        levels: four tensors (V, C_l, h_l, w_l), features of the views.
        supports: annotated images, of any sizes.
        plan: pairs of the index of a support and a view of it, one for each view.

    Returns:
        Support features of one episode (B = 1).
    """
    device = levels[0].device
    regions = view_regions(supports, plan).to(device)[None]
    foreground = regions[:, :, 0]
    return SupportFeatures(
        levels=tuple(level[None] for level in levels),
        foreground=foreground,
        background=regions[:, :, 1],
        # A view may move a small object out of sight.
        valid=foreground.amax(dim=(2, 3)) > 0,
        annotated=torch.tensor([[supports[index].regions.annotated for index, _ in plan]], device=device),
        shots=len(supports),
    )


def pool_support(features: SupportFeatures, grids: Sequence[int]) -> SupportFeatures:
    """Pool support features to the resolution at which priors are computed.

    Args:
        features: support features of B episodes.
        grids: greatest side, in positions, at each level (`PriorConfig.grids`).
    """
    levels = []
    for level, grid in zip(features.levels, grids, strict=True):
        pooled = pool_to_grid(rearrange(level.float(), "b k c h w -> (b k) c h w"), grid)
        levels.append(rearrange(pooled, "(b k) c h w -> b k c h w", b=len(level)))
    return replace(features, levels=tuple(levels))


def join_views(parts: Sequence[SupportFeatures]) -> SupportFeatures:
    """Concatenate the views of the supports of one encoder and one batch size, in their order, with their shots."""
    return SupportFeatures(
        tuple(torch.cat(levels, dim=1) for levels in zip(*(part.levels for part in parts), strict=True)),
        torch.cat([part.foreground for part in parts], dim=1),
        torch.cat([part.background for part in parts], dim=1),
        torch.cat([part.valid for part in parts], dim=1),
        torch.cat([part.annotated for part in parts], dim=1),
        sum(part.shots for part in parts),
    )


def change_support(features: SupportFeatures, change: Callable[[Tensor], Tensor]) -> SupportFeatures:
    """Apply a function to every tensor of support features.

    Args:
        features: support features of B episodes.
        change: function of one tensor; all tensors have the leading dimensions (B, K).
    """
    return replace(
        features,
        levels=tuple(map(change, features.levels)),
        foreground=change(features.foreground),
        background=change(features.background),
        valid=change(features.valid),
        annotated=change(features.annotated),
    )


_SIZE = (EDGE_SIDE, EDGE_SIDE)
