"""From annotated support images to the support side of an episode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffup.annotation import Support
from diffup.priors.condition import EDGE_SIDE, SupportFeatures
from diffup.priors.similarity import resize_weights
from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View, warp


def plan_views(shots: int) -> list[tuple[int, View]]:
    """Which views an episode uses, as (support, view): a single support comes in several (UAPF), more come as they are.

    Args:
        shots: number of supports, at least 1.
    """
    return [(0, view) for view in ONE_SHOT_VIEWS] if shots == 1 else [(index, IDENTITY) for index in range(shots)]


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


def support_features(
    levels: Sequence[Tensor], regions: Tensor, members: tuple[tuple[int, ...], ...] = ()
) -> SupportFeatures:
    """Put features and regions of the views of one episode together.

    Args:
        levels: four tensors (V, C_l, h_l, w_l).
        regions: (V, 2, 128, 128) of `view_regions`, on the same device.
        members: `diffup.backbones.members_of` the encoder.

    Returns:
        A batch of one episode.
    """
    foreground = regions[None, :, 0]
    return SupportFeatures(
        levels=tuple(level[None] for level in levels),
        foreground=foreground,
        background=regions[None, :, 1],
        # A view may move a small object out of sight.
        valid=foreground.amax(dim=(2, 3)) > 0,
        members=members,
    )


_SIZE = (EDGE_SIDE, EDGE_SIDE)
