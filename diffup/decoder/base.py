"""The interface of all decoders, whatever generates their masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import ErrorBranch, IoURegressor
from diffup.priors.condition import Condition


@dataclass(frozen=True)
class Denoised:
    """A decoder's predictions for a noisy mask.

    Args:
        output: (B, 1, 64, 64), the prediction that `DecoderConfig.prediction` names; logits of the mask for `x0` with
            the loss `bce_dice`; the mask itself, in [-1, 1], for the system `prior`.
        error: (B, 1, 64, 64), predicted error map `x0 - x_t`; the error of the predicted mask for systems that see no
            noisy mask (`gan`, `prior`).
        iou: (B,) in [0, 1], predicted IoU of the binarised x_t, or of the binarised predicted mask.
    """

    output: Tensor
    error: Tensor
    iou: Tensor


class Decoder(nn.Module, ABC):
    """Base of the decoders: from a noisy mask (or noise, or nothing), a step and the condition to a mask.

    No decoder sees an encoder's features, except DiffUp+LFE (`DecoderConfig.low_level_channels`).

    Args:
        config: the decoder's config.
    """

    error_branch: ErrorBranch
    iou_regressor: IoURegressor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    def add_quality_branch(self) -> None:
        """Add the modules of `judge`."""
        hidden = self.config.quality_hidden
        self.error_branch = ErrorBranch(hidden)
        self.iou_regressor = IoURegressor(hidden)

    @abstractmethod
    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        """Predict the mask.

        Args:
            x: (B, 1, 64, 64), result of `Diffusion.observe`: the noisy mask x_t at unit variance, the prior or noise.
            time: (B,), step t / T in [0, 1).
            condition: condition of B queries.
        """

    def judge(self, mask: Tensor, image: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Predict where a mask is wrong, and its IoU if the class is there (DQM, eqs. 18-20).

        Args:
            mask: (B, 1, 64, 64), noisy or final mask.
            image: (B, 3, 64, 64) in [-1, 1], query images.
            prior: (B, 1, 64, 64) in [-1, 1], mean priors.

        Returns:
            Predicted error map (B, 1, 64, 64) and IoU (B,) in [0, 1].
        """
        error = self.error_branch(mask, image, prior)
        # Each branch learns from its own loss alone.
        return error, self.iou_regressor(mask, image, error.detach(), prior)
