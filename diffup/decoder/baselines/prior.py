"""The training-free baseline that a decoder has to beat: the mean prior itself, thresholded."""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.decoder.base import Decoder, Denoised
from diffup.priors.condition import Condition


class PriorDecoder(Decoder):
    """A decoder without parameters whose probability is the fused mean prior (UAPF, eq. 12)."""

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        """Return the mean prior as the mask.

        Args:
            x: (B, 1, 64, 64), not used.
            time: (B,), not used.
            condition: condition of B queries.
        """
        return Denoised(condition.prior, *self.judge(condition.prior, condition.image))

    def judge(self, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Expected quality of a mask if its probabilities p are right.

        The expected error is then 0 everywhere, and the IoU is that of p with the mask b binarised at the config's
        threshold: sum(p b) / sum(p + b - p b).

        Args:
            mask: (B, 1, 64, 64) in [-1, 1].
            image: (B, 3, 64, 64) in [-1, 1], not used.

        Returns:
            Error map (B, 1, 64, 64), all zero, and IoU (B,) in [0, 1].
        """
        probability = (mask * 0.5 + 0.5).flatten(1)
        marked = (probability > self.config.threshold).to(probability)
        overlap = (probability * marked).sum(dim=1)
        union = (probability + marked).sum(dim=1) - overlap
        return torch.zeros_like(mask), overlap / union.clamp_min(1e-6)
