"""Training losses of the decoder (paper eq. 21)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.decoder.base import Denoised
from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import mask_iou


@dataclass(frozen=True)
class Losses:
    """The parts of eq. 21.

    Args:
        total: scalar, `diffusion + error_weight * error + iou_weight * iou`, plus a GAN's weighted adversarial loss.
        diffusion: scalar, of the prediction; of the answer where there is no diffusion.
        error: scalar, MSE of the error map.
        iou: scalar, MSE of the IoU.
        adversarial: scalar, the generator's; None but for a GAN.
    """

    total: Tensor
    diffusion: Tensor
    error: Tensor
    iou: Tensor
    adversarial: Tensor | None = None


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
    diffusion = _prediction_loss(denoised.output, mask, target, valid, config)
    return _weighted(diffusion, *quality_losses(denoised.error, denoised.iou, x, mask, valid), config)


def answer_loss(
    output: Tensor, judged: list[tuple[Tensor, Tensor, Tensor]], mask: Tensor, valid: Tensor, config: DecoderConfig
) -> Losses:
    """Loss of an answer without diffusion (`one_step`, `gan`): the mask's, and that of every judgement.

    Args:
        output: (B, 1, s, s), the prediction of x0.
        judged: masks (B, 1, s, s), each with the error map and the IoU that the quality branch gave it.
        mask: (B, 1, s, s) in [-1, 1], x0.
        valid: (B, 1, s, s) in [0, 1].
        config: the decoder's config.
    """
    parts = [quality_losses(error, iou, x, mask, valid) for x, error, iou in judged]
    error, iou = (torch.stack(part).mean() for part in zip(*parts, strict=True))
    return _weighted(_prediction_loss(output, mask, mask, valid, config), error, iou, config)


def quality_losses(error: Tensor, iou: Tensor, x: Tensor, mask: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the quality branch's error map (B, 1, s, s) and IoU (B,) of a mask x (B, 1, s, s)."""
    return (
        _masked_mean((error.float() - (mask - x)).square(), valid),
        F.mse_loss(iou.float(), mask_iou(x, mask)),
    )


def _prediction_loss(output: Tensor, mask: Tensor, target: Tensor, valid: Tensor, config: DecoderConfig) -> Tensor:
    if config.loss == "mse":
        return _masked_mean((output.float() - target).square(), valid)
    return bce_dice(output.float(), mask * 0.5 + 0.5, valid)


def _weighted(diffusion: Tensor, error: Tensor, iou: Tensor, config: DecoderConfig) -> Losses:
    return Losses(diffusion + config.error_weight * error + config.iou_weight * iou, diffusion, error, iou)


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
