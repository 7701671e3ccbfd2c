"""Saliency of an image's positions: a prior without supports, and the annotation of a support without one.

Objects in photos seldom touch the border (the boundary prior of salient object detection; Wei et al., ECCV 2012), so
what differs from the border is likely an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.priors.similarity import masked_average_pooling, unit


def saliency(features: Tensor) -> Tensor:
    """Dissimilarity of each position of an image to the image's border.

    Args:
        features: (N, C, h, w), features of images.

    Returns:
        (N, h * w) in [-1, 1]: minus the cosine to the mean of the outermost positions.
    """
    count, _, height, width = features.shape
    border = features.new_zeros(height, width)
    border[[0, -1]] = 1
    border[:, [0, -1]] = 1
    flat = features.flatten(2)
    prototype = unit(masked_average_pooling(flat, border.flatten().expand(count, -1)), dim=1)
    return -torch.bmm(prototype[:, None], unit(flat, dim=1))[:, 0]
