"""The quality branch (DQM, paper section III-D, eqs. 18-20): where the noisy mask is wrong, and how wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution with group normalisation and SiLU.

    Args:
        inputs: input channels.
        outputs: output channels, a multiple of 8.
        stride: stride in positions.
    """
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU())


class ErrorBranch(nn.Module):
    """Predicts the error map `E = x0 - x_t` from the noisy mask and the query image (pixel level).

    Args:
        hidden: channels at full resolution; twice that at half and quarter resolution.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.at_full = convolution(4, hidden)
        self.at_half = convolution(hidden, 2 * hidden, stride=2)
        self.at_quarter = nn.Sequential(
            convolution(2 * hidden, 2 * hidden, stride=2), convolution(2 * hidden, 2 * hidden)
        )
        self.merge_half = convolution(4 * hidden, hidden)
        self.out = nn.Conv2d(2 * hidden, 1, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(B, 1, 64, 64) noisy mask, (B, 3, 64, 64) image in [-1, 1] -> (B, 1, 64, 64) error map."""
        fine = self.at_full(torch.cat([x, image], dim=1))
        half = self.at_half(fine)
        half = self.merge_half(torch.cat([half, _double(self.at_quarter(half))], dim=1))
        error: Tensor = self.out(torch.cat([fine, _double(half)], dim=1))
        return error


class IoURegressor(nn.Module):
    """Predicts the IoU of the binarised noisy mask with the true one from mask, image and error map (mask level).

    Args:
        hidden: channels of the first stage; twice that afterwards.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            convolution(5, hidden, stride=2),
            convolution(hidden, 2 * hidden, stride=2),
            convolution(2 * hidden, 2 * hidden, stride=2),
        )
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, x: Tensor, image: Tensor, error: Tensor) -> Tensor:
        """(B, 1, 64, 64) noisy mask, (B, 3, 64, 64) image, (B, 1, 64, 64) error map -> IoU (B,) in [0, 1]."""
        pooled = self.stages(torch.cat([x, image, error], dim=1)).mean(dim=(2, 3))
        return torch.sigmoid(self.head(pooled)[:, 0])


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
