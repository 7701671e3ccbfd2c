"""The support side of episodes: features of annotated views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Members: TypeAlias = tuple[tuple[int, ...], ...]
"""For each of the four levels, channels of each member of a joint backbone; empty for a single backbone."""


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
        shots: number of supports of each episode, 1 if the views are those of a single support.
    """

    levels: tuple[Tensor, ...]
    foreground: Tensor
    background: Tensor
    valid: Tensor
    annotated: Tensor
    shots: int


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
