"""Views of a single support: augmentations of features and annotation, so that one shot has a variance too (UAPF).

The paper names augmentation without its settings (docs/how_it_works.md). A mirror image and a magnified view scored
best of those tried, also against five views with a reduced and a rotated one. Features are mirrored and enlarged in
place of the image, which costs no encoding and no accuracy (docs/experiments.md); only training encodes views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """A transformation of an image around its centre.

    Args:
        flip: whether to mirror left and right.
        scale: magnification; above 1 zooms in.
    """

    flip: bool = False
    scale: float = 1.0


IDENTITY = View()
ONE_SHOT_VIEWS = (IDENTITY, View(flip=True), View(scale=1.25))
"""Views of the support in a one-shot episode."""


def warp(maps: Tensor, view: View) -> Tensor:
    """Apply a view to images or weight maps; beyond the border the image is reflected.

    Args:
        maps: (B, C, H, W).
        view: transformation to apply.

    Returns:
        (B, C, H, W).
    """
    if view == IDENTITY:
        return maps
    if view == View(flip=True):
        return maps.flip(-1)
    mirror = -1.0 if view.flip else 1.0
    matrix = torch.tensor([[mirror / view.scale, 0.0, 0.0], [0.0, 1.0 / view.scale, 0.0]]).to(maps)
    grid = F.affine_grid(matrix.expand(len(maps), 2, 3), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
