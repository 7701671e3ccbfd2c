"""What stands out in an image by itself: a prior without any support, and a support without any mask.

Photos keep what they show away from their borders more often than not (the boundary prior of salient object
detection; Wei et al., ECCV 2012), so what is unlike the border is likely an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.priors.similarity import masked_average_pooling, unit


def saliency(features: Tensor) -> Tensor:
    """How unlike an image's border each of its positions is.

    Args:
        features: (N, C, h, w).

    Returns:
        (N, h * w): minus the cosine to the mean of the outermost positions, in [-1, 1].
    """
    count, _, height, width = features.shape
    border = features.new_zeros(height, width)
    border[[0, -1]] = 1
    border[:, [0, -1]] = 1
    flat = features.flatten(2)
    prototype = unit(masked_average_pooling(flat, border.flatten().expand(count, -1)), dim=1)
    return -torch.bmm(prototype[:, None], unit(flat, dim=1))[:, 0]
