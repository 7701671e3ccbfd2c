"""Training losses of the decoder (paper eq. 21)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import mask_iou


@dataclass(frozen=True)
class Losses:
    """The terms of eq. 21.

    Args:
        total: scalar, `diffusion` plus the weighted other terms.
        diffusion: scalar, loss of the prediction, or of the predicted mask for systems without diffusion.
        error: scalar, MSE of the predicted error map.
        iou: scalar, MSE of the predicted IoU over the queries that show the class.
        adversarial: scalar, adversarial loss of a GAN's generator; None for other systems.
    """

    total: Tensor
    diffusion: Tensor
    error: Tensor
    iou: Tensor
    adversarial: Tensor | None = None


Judged: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Masks (B, 1, s, s), and their error maps (B, 1, s, s) and IoU (B,) as the quality branch predicts them."""


def decoder_loss(
    output: Tensor,
    judged: Sequence[Judged],
    mask: Tensor,
    target: Tensor,
    valid: Tensor,
    config: DecoderConfig,
) -> Losses:
    """Loss of a batch (eq. 21).

    Args:
        output: (B, 1, s, s), prediction of the network.
        judged: masks that the quality branch saw, each with its predictions; their losses are averaged.
        mask: (B, 1, s, s) in [-1, 1], true mask x0; -1 everywhere in a query without the class.
        target: (B, 1, s, s), target of the prediction (`Diffusion.target`).
        valid: (B, 1, s, s) in [0, 1], weight of each pixel; 0 where the ground truth is ignored.
        config: the decoder's config.
    """
    prediction = _prediction_loss(output, mask, target, valid, config)
    parts = [quality_losses(error, iou, x, mask, valid) for x, error, iou in judged]
    error, iou = (torch.stack(part).mean() for part in zip(*parts, strict=True))
    weighted = config.error_weight * error + config.iou_weight * iou
    return Losses(prediction + weighted, prediction, error, iou)


def present(mask: Tensor) -> Tensor:
    """Which true masks (B, 1, s, s) in [-1, 1] show the class at all, (B,) bool."""
    return (mask > -1).flatten(1).any(dim=1)


def quality_losses(error: Tensor, iou: Tensor, x: Tensor, mask: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the quality branch (eq. 21).

    Args:
        error: (B, 1, s, s), predicted error map of x.
        iou: (B,) in [0, 1], predicted IoU of x.
        x: (B, 1, s, s), mask that the quality branch saw.
        mask: (B, 1, s, s) in [-1, 1], true mask x0.
        valid: (B, 1, s, s) in [0, 1], weight of each pixel.

    Returns:
        Two scalars: MSE of the error map, MSE of the IoU over the queries that show the class.
    """
    shown = present(mask).float()
    squares = (iou.float() - mask_iou(x, mask)).square()
    return _masked_mean((error.float() - (mask - x)).square(), valid), _masked_mean(squares, shown)


def _prediction_loss(output: Tensor, mask: Tensor, target: Tensor, valid: Tensor, config: DecoderConfig) -> Tensor:
    if config.loss == "mse":
        return _masked_mean((output.float() - target).square(), valid)
    return bce_dice(output.float(), mask * 0.5 + 0.5, valid)


def bce_dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice loss per image, averaged over the batch.

    Dice weighs a small object as much as a large one, which cross-entropy or MSE alone would neglect.

    Args:
        logits: (B, 1, s, s), logits of the predicted mask.
        target: (B, 1, s, s) in [0, 1], true mask.
        valid: (B, 1, s, s) in [0, 1], weight of each pixel.

    Returns:
        A scalar.
    """
    entropy = _masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), valid)
    probability = torch.sigmoid(logits)
    overlap = (probability * target * valid).sum(dim=(1, 2, 3))
    size = ((probability + target) * valid).sum(dim=(1, 2, 3))
    return entropy + (1 - (2 * overlap + 1) / (size + 1)).mean()


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum().clamp_min(1)
