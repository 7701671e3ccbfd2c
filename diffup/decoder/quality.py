"""The quality branch (DQM, paper section III-D, eqs. 18-20), and the calibration of its answers.

Unlike the paper's, the branch sees the mean prior beside the mask and the image: a mask may be well-formed and yet mark
another object.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ESTIMATES = 4
"""Number of values of `quality_estimates`."""

SMALLEST = 1 / 4096
"""Smallest share of the positions whose logarithm is taken: one of 64 x 64."""


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution with group normalisation and SiLU.

    Args:
        inputs: input channels.
        outputs: output channels, a multiple of 8.
        stride: stride in positions.
    """
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU())


class ErrorBranch(nn.Module):
    """Predicts the error map `E = x0 - x_t` from the noisy mask, query image and mean prior (pixel level).

    Args:
        hidden: channels at full resolution; twice that at half and quarter resolution.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.at_full = convolution(5, hidden)
        self.at_half = convolution(hidden, 2 * hidden, stride=2)
        self.at_quarter = nn.Sequential(
            convolution(2 * hidden, 2 * hidden, stride=2), convolution(2 * hidden, 2 * hidden)
        )
        self.merge_half = convolution(4 * hidden, hidden)
        self.out = nn.Conv2d(2 * hidden, 1, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor, prior: Tensor) -> Tensor:
        """(B, 1, 64, 64) mask, (B, 3, 64, 64) image, (B, 1, 64, 64) prior in [-1, 1] -> (B, 1, 64, 64) error map."""
        fine = self.at_full(torch.cat([x, image, prior], dim=1))
        half = self.at_half(fine)
        half = self.merge_half(torch.cat([half, _double(self.at_quarter(half))], dim=1))
        error: Tensor = self.out(torch.cat([fine, _double(half)], dim=1))
        return error


class IoURegressor(nn.Module):
    """Predicts the IoU of the binarised noisy mask with the true one (mask level), given that the class is there.

    Args:
        hidden: channels of the first stage; twice that afterwards.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            convolution(6, hidden, stride=2),
            convolution(hidden, 2 * hidden, stride=2),
            convolution(2 * hidden, 2 * hidden, stride=2),
        )
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, x: Tensor, image: Tensor, error: Tensor, prior: Tensor) -> Tensor:
        """Predict the IoU from mask, image, error map and prior.

        Args:
            x: (B, 1, 64, 64), noisy or final mask.
            image: (B, 3, 64, 64) in [-1, 1], query images.
            error: (B, 1, 64, 64), predicted error map.
            prior: (B, 1, 64, 64) in [-1, 1], mean prior.

        Returns:
            (B,) in [0, 1].
        """
        pooled = self.stages(torch.cat([x, image, error, prior], dim=1)).mean(dim=(2, 3))
        return torch.sigmoid(self.head(pooled)[:, 0])


def expected_iou(probability: Tensor, threshold: Tensor | float) -> Tensor:
    """Expected IoU of a mask b, the positions above a threshold, if the probabilities p are right.

    It is sum(p b) / sum(p + b - p b).

    Args:
        probability: (B, ...) in [0, 1].
        threshold: threshold of all maps, or (B,) one of each.

    Returns:
        (B,) in [0, 1]; 0 where nothing is marked.
    """
    return promised_iou(probability.flatten(1), _marked(probability, threshold))


def promised_iou(probability: Tensor, marked: Tensor) -> Tensor:
    """Expected IoU of masks: (B, N) in [0, 1] and (B, N), 1 where a position is marked and else 0 -> (B,) in [0, 1]."""
    overlap = (probability * marked).sum(dim=1)
    return overlap / ((probability + marked).sum(dim=1) - overlap).clamp_min(1e-6)


def marked_share(probability: Tensor, threshold: Tensor | float) -> Tensor:
    """Share of the positions that are above a threshold.

    Args:
        probability: (B, ...) in [0, 1].
        threshold: threshold of all maps, or (B,) one of each.

    Returns:
        (B,) in [0, 1].
    """
    return _marked(probability, threshold).mean(dim=1)


def _marked(probability: Tensor, threshold: Tensor | float) -> Tensor:
    flat = probability.flatten(1)
    return (flat > torch.as_tensor(threshold, device=flat.device).reshape(-1, 1)).to(flat)


def calibrated_presence(evidence: Tensor, calibration: Sequence[float]) -> Tensor:
    """Probability that queries show the class.

    Args:
        evidence: (B, 5), `Condition.evidence`.
        calibration: factors of the evidence (`DecoderConfig.presence_calibration`).

    Returns:
        (B,) in [0, 1].
    """
    # Row by row: the rounding of a product of matrices would depend on the number of queries.
    return torch.sigmoid((evidence.float() * torch.tensor(calibration, device=evidence.device)).sum(dim=1))


def quality_estimates(probability: Tensor, predicted: Tensor, threshold: Tensor | float) -> Tensor:
    """Collect what the decoder says of the IoU of its masks.

    Small masks are wrong more often than their probabilities say.

    Args:
        probability: (B, s, s) in [0, 1].
        predicted: (B,) in [0, 1], the quality branch's IoU.
        threshold: threshold in (0, 1) of all masks, or (B,) one of each.

    Returns:
        (B, 4), logits of the expected IoU and of the predicted one, the logarithm of the area, which is at least
        `SMALLEST`, and the logit of the threshold.
    """
    expected, area = expected_iou(probability, threshold), marked_share(probability, threshold)
    each = torch.as_tensor(threshold, dtype=area.dtype, device=area.device).expand_as(area)
    return torch.stack([_logit(expected), _logit(predicted), area.clamp_min(SMALLEST).log(), _logit(each)], dim=1)


def calibrated_quality(estimates: Tensor, evidence: Tensor, calibration: Sequence[float]) -> Tensor:
    """Quality of masks: a logistic regression on the decoder's estimates and on the evidence of the presence.

    Args:
        estimates: (B, 4), result of `quality_estimates`.
        evidence: (B, 5), `Condition.evidence`, whose constants are the offsets with supports and with text.
        calibration: factors of all nine (`DecoderConfig.quality_calibration`).

    Returns:
        (B,) in [0, 1].
    """
    inputs = torch.cat([estimates, evidence.float()], dim=1)
    # Row by row, as in `calibrated_presence`.
    return torch.sigmoid((inputs * torch.tensor(calibration, device=inputs.device)).sum(dim=1))


def calibrated_score(quality: Tensor, presence: Tensor, calibration: Sequence[float]) -> Tensor:
    """Probability that masks are right: that the query shows the class, and the mask's IoU is above 1/2.

    Args:
        quality: (B,) in [0, 1], result of `calibrated_quality`.
        presence: (B,) in [0, 1], probability that the query shows the class.
        calibration: factor and offset of the quality's logit (`DecoderConfig.score_calibration`).

    Returns:
        (B,) in [0, 1].
    """
    factor, offset = calibration
    return presence * torch.sigmoid(factor * _logit(quality) + offset)


def _logit(share: Tensor) -> Tensor:
    return torch.logit(share, eps=1e-3)


def mask_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of two maps binarised at 0, the target of `IoURegressor`.

    Args:
        predicted: (B, 1, s, s), predicted or noisy mask.
        target: (B, 1, s, s), true mask.

    Returns:
        (B,) in [0, 1]; 1 where both are empty.
    """
    a, b = predicted.flatten(1) > 0, target.flatten(1) > 0
    intersection, union = (a & b).sum(dim=1), (a | b).sum(dim=1)
    return torch.where(union > 0, intersection / union.clamp_min(1), torch.ones_like(union, dtype=torch.float32))


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
