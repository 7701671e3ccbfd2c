"""From annotated support images to the support side of an episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from diffup.backbones import Backbone
from diffup.backbones.encode import encode
from diffup.inputs.annotations import Support
from diffup.inputs.images import resize_image
from diffup.priors.condition import EDGE_SIDE, SupportFeatures
from diffup.priors.level import pool_to_grid
from diffup.priors.similarity import resize_weights
from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View, warp


def plan_views(shots: int) -> list[tuple[int, View]]:
    """Which views an episode uses, as (support, view): a single support comes in several (UAPF), more come as they are.

    Args:
        shots: number of supports, at least 1.
    """
    return [(0, view) for view in ONE_SHOT_VIEWS] if shots == 1 else plain_views(shots)


def plain_views(shots: int) -> list[tuple[int, View]]:
    """Supports as they are, whatever their number, as (support, view)."""
    return [(index, IDENTITY) for index in range(shots)]


def view_regions(supports: Sequence[Support], plan: Sequence[tuple[int, View]]) -> Tensor:
    """Foreground and background of each view.

    Args:
        supports: annotated images, of any sizes.
        plan: of `plan_views`.

    Returns:
        (V, 2, 128, 128) in [0, 1].
    """
    regions = [resize_weights(torch.stack([s.regions.foreground, s.regions.background]), _SIZE) for s in supports]
    return torch.cat([warp(regions[index][None], view) for index, view in plan])


def encode_supports(
    backbone: Backbone, supports: Sequence[Support], plan: Sequence[tuple[int, View]] | None = None
) -> SupportFeatures:
    """The support side of an episode; a single support comes as its three views (UAPF).

    Args:
        backbone: the encoder.
        supports: annotated images of `diffup.inputs.annotations.pair_supports`.
        plan: other views than those of `plan_views`.

    Returns:
        A batch of one, on the encoder's device.

    Raises:
        BackboneError: the encoder breaks the protocol.
    """
    plan = plan_views(len(supports)) if plan is None else plan
    resized = [resize_image(support.image, backbone.input_size) for support in supports]
    levels = encode(backbone, [warp(resized[index][None], view)[0] for index, view in plan])
    return support_features(levels, supports, plan)


def support_features(
    levels: Sequence[Tensor], supports: Sequence[Support], plan: Sequence[tuple[int, View]]
) -> SupportFeatures:
    """Put features and annotations of the views of one episode together.

    Args:
        levels: four tensors (V, C_l, h_l, w_l), features of the views.
        supports: annotated images, of any sizes.
        plan: of `plan_views`.

    Returns:
        A batch of one episode.
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
    )


def pool_support(features: SupportFeatures, grids: Sequence[int]) -> SupportFeatures:
    """Pool a support side to the grids that priors are computed on; more of its features is never looked at.

    Args:
        features: a batch of B.
        grids: most positions a side at each level (`PriorConfig.grids`).
    """
    levels = []
    for level, grid in zip(features.levels, grids, strict=True):
        pooled = pool_to_grid(rearrange(level.float(), "b k c h w -> (b k) c h w"), grid)
        levels.append(rearrange(pooled, "(b k) c h w -> b k c h w", b=len(level)))
    return replace(features, levels=tuple(levels))


def join_views(parts: Sequence[SupportFeatures]) -> SupportFeatures:
    """The views of several support sides of one encoder and batch as one, in their order."""
    return SupportFeatures(
        tuple(torch.cat(levels, dim=1) for levels in zip(*(part.levels for part in parts), strict=True)),
        torch.cat([part.foreground for part in parts], dim=1),
        torch.cat([part.background for part in parts], dim=1),
        torch.cat([part.valid for part in parts], dim=1),
        torch.cat([part.annotated for part in parts], dim=1),
    )


def change_support(features: SupportFeatures, change: Callable[[Tensor], Tensor]) -> SupportFeatures:
    """The support side with every tensor, all of which begin with (B, K), put through a function."""
    return replace(
        features,
        levels=tuple(map(change, features.levels)),
        foreground=change(features.foreground),
        background=change(features.background),
        valid=change(features.valid),
        annotated=change(features.annotated),
    )


_SIZE = (EDGE_SIDE, EDGE_SIDE)
