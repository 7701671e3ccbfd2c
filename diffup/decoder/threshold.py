"""The threshold of each mask: the one at which the mask's own probabilities promise the greatest IoU.

How sure a decoder is depends on what it sees: large objects that are new to it have low probabilities throughout, small
ones high probabilities around them, so no fixed threshold suits both. Where probabilities p are right, the mask b of
the positions above a threshold has an expected IoU of sum(p b) / sum(p + b - p b). A network's are too sure of
themselves, so their logits are divided by a temperature before (Guo et al., ICML 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.decoder.quality import expected_iou

CANDIDATES = (-3.0, 2.0, 26)
"""Least and greatest logit of a threshold, and how many are compared. Below 5 % nothing is ever marked."""

SELECTIVITY = 100.0
"""The chosen logit is a mean with the weights exp(SELECTIVITY * expected IoU), so that rounding moves it little where
several are nearly as good."""

_EPS = 1e-6


def threshold_logit(probability: Tensor, temperature: float) -> Tensor:
    """Choose the threshold of each mask.

    Args:
        probability: (B, s, s) in [0, 1].
        temperature: temperature of the logits, above 0; a higher one chooses lower thresholds for faint masks.

    Returns:
        (B,), logits of the thresholds.
    """
    least, greatest, count = CANDIDATES
    logits = torch.linspace(least, greatest, count, device=probability.device)
    tempered = torch.sigmoid(_logit(probability) / temperature)[:, None].expand(-1, count, -1, -1)
    thresholds = torch.sigmoid(logits / temperature).expand(probability.shape[0], -1)
    expected = expected_iou(tempered.flatten(0, 1), thresholds.flatten()).reshape(thresholds.shape)
    return (torch.softmax(SELECTIVITY * expected, dim=1) * logits).sum(dim=1)


def shifted(probability: Tensor, shift: Tensor) -> Tensor:
    """Add to the logits of probabilities.

    Args:
        probability: (B, ...) in [0, 1].
        shift: (B,), what is added to each.

    Returns:
        (B, ...) in [0, 1].
    """
    return torch.sigmoid(_logit(probability) + shift.reshape(-1, *[1] * (probability.dim() - 1)))


def _logit(probability: Tensor) -> Tensor:
    return torch.logit(probability.float(), eps=_EPS)
