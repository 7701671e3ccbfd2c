"""Evidence that a query shows the class at all: similarities that are not stretched to the query's own range.

Priors tell where in a query the class is most likely. Whether it is there is another question, which the best matches
of the supports' foreground answer: where the class is missing, parts of it find nothing like them.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from diffup.priors.similarity import unit

EVIDENCE = 5
"""Number of values of each query: two similarities to the supports and 1, then one to the text prompts and 1.

The logit of the presence is a linear function of them. Values of a source that a class does not have are 0; text counts
only without supports.
"""

_EPS = 1e-6


def support_evidence(query: Tensor, views: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """Mean similarity of the supports' foreground positions to their best matches in the query.

    Args:
        query: (B, C, h, w), features of the queries.
        views: (B, K, C, h', w'), features of the support views at the same level.
        foreground: (B, K, h' * w') in [0, 1], weights of the class.
        valid: (B, K) bool, False for padding.

    Returns:
        (B, 2) in [-1, 1], means over the valid views: of cosines of features from which each image's mean is
        subtracted, and of cosines of the features themselves.
    """
    weights = foreground / foreground.sum(dim=2, keepdim=True).clamp_min(_EPS) * valid[..., None]
    weights = weights / valid.sum(dim=1).clamp_min(1)[:, None, None]
    found = []
    for centred in (True, False):
        ours, theirs = query.flatten(2), views.flatten(3)
        if centred:
            ours, theirs = ours - ours.mean(dim=2, keepdim=True), theirs - theirs.mean(dim=3, keepdim=True)
        positions = rearrange(unit(theirs, dim=2), "b k c p -> b (k p) c")
        best = torch.bmm(positions, unit(ours, dim=1)).amax(dim=2)
        found.append((best * weights.flatten(1)).sum(dim=1))
    return torch.stack(found, dim=1)


def text_evidence(maps: Tensor) -> Tensor:
    """Greatest similarity of the query's positions to the text prompts.

    Args:
        maps: (B, V, h, w), maps of V text prompts (`diffup.priors.text.text_maps`).

    Returns:
        (B,) in [-2, 2], that of the mean over the prompts.
    """
    return maps.float().mean(dim=1).flatten(1).amax(dim=1)
