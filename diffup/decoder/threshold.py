"""The threshold of each mask: the one at which the mask's own probabilities promise the greatest IoU.

How sure a decoder is depends on what it sees: large objects that are new to it have low probabilities throughout, small
ones high probabilities around them, so no fixed threshold suits both. Where probabilities p are right, the mask b of
the positions above a threshold has an expected IoU of sum(p b) / sum(p + b - p b). A network's are too sure of
themselves, so their logits are divided by a temperature before (Guo et al., ICML 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.decoder.quality import promised_iou

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
    candidates, logits = torch.linspace(*CANDIDATES, device=probability.device), _logit(probability).flatten(1)
    tempered = torch.sigmoid(logits / temperature)
    # One after another, so that memory does not grow with their number.
    promised = [promised_iou(tempered, (logits > candidate).to(tempered)) for candidate in candidates.unbind()]
    return (torch.softmax(SELECTIVITY * torch.stack(promised, dim=1), dim=1) * candidates).sum(dim=1)


def shifted(probability: Tensor, shift: Tensor) -> Tensor:
    """Add to the logits of probabilities; 0 and 1 stay.

    Args:
        probability: (B, ...) in [0, 1].
        shift: (B,), what is added to each.

    Returns:
        (B, ...) in [0, 1].
    """
    moved = torch.sigmoid(_logit(probability) + shift.reshape(-1, *[1] * (probability.dim() - 1)))
    return torch.where((probability > 0) & (probability < 1), moved, probability.float())


def _logit(probability: Tensor) -> Tensor:
    return torch.logit(probability.float(), eps=_EPS)
