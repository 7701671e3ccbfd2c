"""Training losses of the decoder (paper eq. 21)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import mask_iou
from diffup.decoder.unet import Denoised


@dataclass(frozen=True)
class Losses:
    """The parts of eq. 21.

    Args:
        total: scalar, `diffusion + error_weight * error + iou_weight * iou`.
        diffusion: scalar.
        error: scalar, MSE of the error map.
        iou: scalar, MSE of the IoU.
    """

    total: Tensor
    diffusion: Tensor
    error: Tensor
    iou: Tensor


def decoder_loss(
    denoised: Denoised, x: Tensor, mask: Tensor, target: Tensor, valid: Tensor, config: DecoderConfig
) -> Losses:
    """Loss of a batch (eq. 21).

    Args:
        denoised: the network's answer.
        x: (B, 1, s, s), what the network saw (x_t at unit scale).
        mask: (B, 1, s, s) in [-1, 1], x0.
        target: (B, 1, s, s), what the network must predict (`Diffusion.target`).
        valid: (B, 1, s, s) in [0, 1]; 0 where the annotation is to be ignored.
        config: the decoder's config.
    """
    output = denoised.output.float()
    if config.loss == "mse":
        diffusion = _masked_mean((output - target).square(), valid)
    else:
        diffusion = bce_dice(output, mask * 0.5 + 0.5, valid)
    error = _masked_mean((denoised.error.float() - (mask - x)).square(), valid)
    iou = F.mse_loss(denoised.iou.float(), mask_iou(x, mask))
    total = diffusion + config.error_weight * error + config.iou_weight * iou
    return Losses(total, diffusion, error, iou)


def bce_dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss per image, averaged.

    Dice weighs a small object as much as a large one, which cross-entropy or MSE alone would give up.

    Args:
        logits: (B, 1, s, s).
        target: (B, 1, s, s) in [0, 1].
        valid: (B, 1, s, s) in [0, 1].
    """
    entropy = _masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), valid)
    probability = torch.sigmoid(logits)
    overlap = (probability * target * valid).sum(dim=(1, 2, 3))
    size = ((probability + target) * valid).sum(dim=(1, 2, 3))
    return entropy + (1 - (2 * overlap + 1) / (size + 1)).mean()


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum().clamp_min(1)
