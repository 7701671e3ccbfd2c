"""The training-free baseline that a decoder has to beat: the mean prior itself, thresholded."""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.decoder.base import Decoder, Denoised
from diffup.decoder.quality import expected_iou
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
        return Denoised(condition.prior, *self.judge(condition.prior, condition.image, condition.prior))

    def judge(self, mask: Tensor, image: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Expected quality of a mask if its probabilities are right: no error, and `expected_iou` at the threshold.

        Args:
            mask: (B, 1, 64, 64) in [-1, 1].
            image: (B, 3, 64, 64) in [-1, 1], not used.
            prior: (B, 1, 64, 64) in [-1, 1], not used.

        Returns:
            Error map (B, 1, 64, 64), all zero, and IoU (B,) in [0, 1].
        """
        return torch.zeros_like(mask), expected_iou(mask * 0.5 + 0.5, self.config.threshold)
