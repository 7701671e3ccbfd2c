"""Self-conditioned modulation (SCM, paper eqs. 15-17): how condition, noisy mask and step enter the U-Net."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(values: Tensor, width: int, scale: float) -> Tensor:
    """Sinusoidal embedding of scalars in [0, 1] (time steps or IoUs).

    Args:
        values: (B,) in [0, 1].
        width: width of the embedding, an even number.
        scale: factor of the values before embedding; 1000 gives the usual range of time steps.

    Returns:
        (B, width).
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=values.device) / half)
    angles = values.float()[:, None] * scale * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ScalarEmbedding(nn.Module):
    """Embeds a scalar in [0, 1] as a vector: sinusoidal embedding, then a small MLP.

    Args:
        width: width of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        """(B,) in [0, 1] -> (B, width)."""
        embedded: Tensor = self.mlp(sinusoidal_embedding(values, self.width, scale=1000.0))
        return embedded


class AdaIN(nn.Module):
    """Instance normalisation whose scale and shift come from an embedding: `s * norm(h) + b`, s starting at 1.

    Args:
        channels: channels of the features h.
        embedding: width of the embedding.
        normalise: whether h is normalised; otherwise `s * h + b`, which leaves the level of every channel as it is.
    """

    def __init__(self, channels: int, embedding: int, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        self.affine = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        self.affine.bias = nn.Parameter(_ones_then_zeros(channels))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, s, s), (B, width) -> (B, C, s, s)."""
        scale, shift = self.affine(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        # Not group_norm with groups of one channel, though faster: it loses digits where the mean is large.
        return torch.addcmul(shift, F.instance_norm(h) if self.normalise else h, scale)


class Modulation(nn.Module):
    """SCM: `gamma * AdaIN(h, e) + beta`, where two convolutions give gamma (starting at 1) and beta (eqs. 15-17).

    The first SCM of a block is conditioned on the priors with the noisy mask, and the time step; the second on the
    quality branch's error map and IoU (DQM, eqs. 18-20).

    Args:
        channels: channels of the features h.
        condition: channels of the condition map.
        hidden: channels between the two convolutions.
        embedding: width of the embedding e.
        normalise: whether h is normalised (`AdaIN`).
    """

    def __init__(self, channels: int, condition: int, hidden: int, embedding: int, normalise: bool = True) -> None:
        super().__init__()
        self.adain = AdaIN(channels, embedding, normalise)
        self.hidden = nn.Conv2d(condition, hidden, 3, padding=1)
        self.gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)
        nn.init.normal_(self.gamma_beta.weight, std=1e-3)
        self.gamma_beta.bias = nn.Parameter(_ones_then_zeros(channels))

    def forward(self, h: Tensor, condition: Tensor, embedding: Tensor) -> Tensor:
        """Modulate features.

        Args:
            h: (B, C, s, s), features.
            condition: (B, condition channels, s, s), condition map.
            embedding: (B, width), embedding of the time step or the IoU.

        Returns:
            (B, C, s, s).
        """
        gamma, beta = self.gamma_beta(F.silu(self.hidden(condition))).chunk(2, dim=1)
        return torch.addcmul(beta, self.adain(h, embedding), gamma)


def _ones_then_zeros(channels: int) -> Tensor:
    """Initial bias of a layer whose output halves are scale and shift, so that it starts as the identity."""
    return torch.cat([torch.ones(channels), torch.zeros(channels)])
