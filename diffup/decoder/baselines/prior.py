"""The training-free baseline: the mean prior itself, thresholded. What a decoder has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.decoder.base import Decoder, Denoised
from diffup.priors.condition import Condition


class PriorDecoder(Decoder):
    """A decoder without parameters whose probability is the fused mean prior (UAPF, eq. 12)."""

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        """See `Decoder.forward`; neither x nor the time is looked at."""
        return Denoised(condition.prior, *self.judge(condition.prior, condition.image))

    def judge(self, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """What follows if the probability is taken at its word.

        Nothing is known beyond the mask, so no error is expected anywhere, and the IoU is that of the mask binarised at
        the config's threshold with what the probability expects to find: sum(p b) / sum(p + b - p b).
        """
        probability = (mask * 0.5 + 0.5).flatten(1)
        marked = (probability > self.config.threshold).to(probability)
        overlap = (probability * marked).sum(dim=1)
        union = (probability + marked).sum(dim=1) - overlap
        return torch.zeros_like(mask), overlap / union.clamp_min(1e-6)
