"""Family `hog`: oriented gradients and colours, counted in cells at four scales. No weights, no training."""

from __future__ import annotations

import hashlib
import json
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.errors import BackboneError

CELLS = (4, 8, 16, 32)  # pixels: the strides of the four levels
ORIENTATIONS = 9
COLOURS = 4  # soft bins for each of brightness, red against green, and blue against yellow
REVISION = 1  # raise it when the same settings come to give other features


class HogBackbone:
    """A backbone is any object with these members; it need not be an `nn.Module`.

    Args:
        input_size: side in pixels, a multiple of 32.
    """

    def __init__(self, input_size: int) -> None:
        if input_size < CELLS[-1] or input_size % CELLS[-1]:
            raise BackboneError(f"hog: input_size={input_size} must be a multiple of {CELLS[-1]}")
        self.name = "hog"
        self.input_size = (input_size, input_size)
        self.device = torch.device("cpu")
        settings = [REVISION, input_size, CELLS, ORIENTATIONS, COLOURS]
        self.fingerprint = f"hog-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"

    def to(self, device: torch.device | str) -> HogBackbone:
        """There is nothing to move but the place where images are expected."""
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors have it
        return self

    @torch.no_grad()
    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Four levels (B, 21, H / cell, W / cell) of images (B, 3, H, W) in [0, 1]."""
        height, width = images.shape[2:]
        if height % CELLS[-1] or width % CELLS[-1]:
            raise BackboneError(f"hog: images of {height} x {width} px; sides must be multiples of {CELLS[-1]}")
        images = images.float()
        return [features(images, cell) for cell in CELLS]


def build(variant: str | None, *, input_size: int = 384) -> HogBackbone:
    """Histograms of oriented gradients and colours at four scales, without weights.

    Args:
        variant: what stands after the colon of a name; there are no variants.
        input_size: side in pixels, a multiple of 32.
    """
    if variant is not None:
        raise BackboneError(f"hog has no variants, got 'hog:{variant}'; write 'hog'")
    return HogBackbone(input_size)


build.variants = ()  # type: ignore[attr-defined]  # names for `diffup backbones`, where there are any


def features(images: Tensor, cell: int) -> Tensor:
    """Both histograms of every cell, each of unit length, so that neither outweighs the other."""
    smooth = F.avg_pool2d(images, max(cell // 8, 1))  # coarse levels look at coarse edges
    cell = cell // max(cell // 8, 1)
    parts = (gradients(smooth, cell), colours(smooth, cell))
    return torch.cat([F.normalize(part, dim=1, eps=1e-3) for part in parts], dim=1)


def gradients(images: Tensor, cell: int) -> Tensor:
    """Histogram (B, 9, h, w) of edge directions, weighted by their strength and smoothed over neighbouring cells."""
    grey = images.mean(dim=1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    strength = (dx.square() + dy.square()).sqrt()
    angle = torch.atan2(dy, dx) % math.pi
    centres = torch.arange(ORIENTATIONS, device=images.device).view(1, -1, 1, 1) * (math.pi / ORIENTATIONS)
    away = (angle - centres).abs()
    away = torch.minimum(away, math.pi - away) * (ORIENTATIONS / math.pi)
    votes = strength * (1 - away).clamp(min=0)
    counts = F.avg_pool2d(votes, cell)
    return F.avg_pool2d(counts, 3, stride=1, padding=1, count_include_pad=False)


def colours(images: Tensor, cell: int) -> Tensor:
    """Soft histogram (B, 12, h, w) of opponent colours."""
    red, green, blue = images.unbind(dim=1)
    channels = torch.stack([(red + green + blue) / 3, (red - green + 1) / 2, (blue - (red + green) / 2 + 1) / 2], dim=1)
    centres = torch.linspace(0, 1, COLOURS, device=images.device).view(1, 1, -1, 1, 1)
    votes = (1 - (channels[:, :, None] - centres).abs() * (COLOURS - 1)).clamp(min=0)
    return F.avg_pool2d(votes.flatten(1, 2), cell)
