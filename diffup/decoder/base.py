"""What every decoder is to the rest of the library, whatever generates its masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import ErrorBranch, IoURegressor
from diffup.priors.condition import Condition


@dataclass(frozen=True)
class Denoised:
    """What the network says of a noisy mask.

    Args:
        output: (B, 1, 64, 64), the prediction that `DecoderConfig.prediction` names; logits of the mask for `x0` with
            the loss `bce_dice`; the mask itself, in [-1, 1], of the system `prior`.
        error: (B, 1, 64, 64), predicted error map `x0 - x_t`; of its own answer where the network sees no mask at all
            (`gan`, `prior`).
        iou: (B,) in [0, 1], predicted IoU of the binarised x_t, or of the binarised answer.
    """

    output: Tensor
    error: Tensor
    iou: Tensor


class Decoder(nn.Module, ABC):
    """Base of the decoders: from a noisy mask (or noise, or nothing), a step and the condition to a mask.

    None of them sees an encoder's features, but for DiffUp+LFE, which says so in its config.

    Args:
        config: the decoder's config.
    """

    error_branch: ErrorBranch
    iou_regressor: IoURegressor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        """Predict the mask.

        Args:
            x: (B, 1, 64, 64), what `Diffusion.observe` shows: the noisy mask x_t at unit scale, the prior or noise.
            time: (B,), t / T in [0, 1).
            condition: batch of B.
        """

    def judge(self, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Where a mask is wrong, and how good it is (DQM, eqs. 18-20).

        Args:
            mask: (B, 1, 64, 64), noisy or final.
            image: (B, 3, 64, 64) in [-1, 1].

        Returns:
            Error map (B, 1, 64, 64) and IoU (B,) in [0, 1].
        """
        error = self.error_branch(mask, image)
        # Each branch learns from its own loss alone.
        return error, self.iou_regressor(mask, image, error.detach())
