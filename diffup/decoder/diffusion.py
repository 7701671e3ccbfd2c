"""The diffusion process: data and arithmetic, no network (paper section III-D, eqs. 5-8 and 13).

The forward process is shifted by the prior (eq. 13), `x_t = sqrt(abar_t) b x0 + k_t b P + sqrt(1 - abar_t) eps`, where
b is the signal scale. With `y_t = x_t - k_t b P` it is an ordinary DDPM in y, so all functions below work in y, and
only `Diffusion.observe` uses P: one code path for every shift.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.errors import ConfigError


class Diffusion:
    """Noise schedule and conversions between the noisy mask, the noise and the clean mask.

    Args:
        config: the decoder's config.

    Attributes:
        timesteps: number of steps T.
        alphas_bar: (T,) float64, cumulative products abar_t of 1 - beta.
        shifts: (T,) float64, shifts k_t.
    """

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.timesteps = config.timesteps
        scale = 1000 / config.timesteps
        # By numpy, so that the tables are constants where sampling is traced to a graph.
        betas = np.linspace(config.beta_start * scale, config.beta_end * scale, config.timesteps)
        products = np.cumprod(1 - betas)
        self._products: list[float] = products.tolist()
        self.alphas_bar = torch.from_numpy(products)
        root = self.alphas_bar.sqrt()
        self.shifts = {"none": torch.zeros_like(root), "prior": 1 - root, "quadratic": root * (1 - root)}[config.shift]

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        """Entries of a table at steps t: (B,) -> (B, 1, 1, 1) float32."""
        # The table goes to the steps, not the steps to the table: a device need not wait for its answers.
        return table.to(torch.float32).to(t.device)[t][:, None, None, None]

    def add_noise(self, mask: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Forward process without its shift: `y_t = sqrt(abar_t) b x0 + sqrt(1 - abar_t) eps`.

        Args:
            mask: (B, 1, s, s) in [-1, 1], clean mask x0.
            noise: (B, 1, s, s), standard normal noise eps.
            t: (B,) int64 in [0, T), steps.

        Returns:
            (B, 1, s, s), y_t.
        """
        abar = self._at(self.alphas_bar, t)
        return abar.sqrt() * self.config.signal_scale * mask + (1 - abar).sqrt() * noise

    def observe(self, y: Tensor, prior: Tensor, t: Tensor) -> Tensor:
        """Input of the network: x_t = y_t + k_t b P (eq. 13), scaled to unit variance.

        The other systems see no noisy mask, but the prior (`one_step`, `prior`) or the noise itself (`gan`). A constant
        would be ill-conditioned: the U-Net's first normalisation would amplify rounding errors.

        Args:
            y: (B, 1, s, s), y_t.
            prior: (B, 1, s, s) in [-1, 1], mean prior P.
            t: (B,) int64 in [0, T), steps.

        Returns:
            (B, 1, s, s).
        """
        if self.config.system != "diffusion":
            return y if self.config.system == "gan" else prior
        b = self.config.signal_scale
        abar = self._at(self.alphas_bar, t)
        return (y + self._at(self.shifts, t) * b * prior) / (abar * b**2 + 1 - abar).sqrt()

    def target(self, mask: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Target of the network's prediction: the noise, x0 or `v = sqrt(abar_t) eps - sqrt(1 - abar_t) b x0`.

        Args:
            mask: (B, 1, s, s) in [-1, 1], clean mask x0.
            noise: (B, 1, s, s), standard normal noise eps.
            t: (B,) int64 in [0, T), steps.

        Returns:
            (B, 1, s, s).
        """
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "x0":
            return mask
        abar = self._at(self.alphas_bar, t)
        return abar.sqrt() * noise - (1 - abar).sqrt() * self.config.signal_scale * mask

    def estimate(self, output: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Estimate of the clean mask x0 from the network's prediction.

        Args:
            output: (B, 1, s, s), output of the network.
            y: (B, 1, s, s), y_t.
            t: (B,) int64 in [0, T), steps.

        Returns:
            (B, 1, s, s) in [-1, 1].
        """
        if self.config.system == "prior":
            return output
        b = self.config.signal_scale
        if self.config.prediction == "x0":
            return torch.tanh(output / 2) if self.config.loss == "bce_dice" else output.clamp(-1, 1)
        abar = self._at(self.alphas_bar, t)
        if self.config.prediction == "epsilon":
            mask = (y - (1 - abar).sqrt() * output) / abar.sqrt()
        else:
            mask = abar.sqrt() * y - (1 - abar).sqrt() * output
        return (mask / b).clamp(-1, 1)

    def step(self, mask: Tensor, y: Tensor, t: int, previous: int) -> Tensor:
        """One deterministic DDIM step (eta 0) from t to any earlier step.

        Args:
            mask: (B, 1, s, s) in [-1, 1], estimate of x0 at step t.
            y: (B, 1, s, s), y_t.
            t: step of y, in [0, T).
            previous: step to go to, below t; -1 is the clean mask.

        Returns:
            (B, 1, s, s), y at the step `previous`.
        """
        b = self.config.signal_scale
        abar = self._products[t]
        abar_previous = self._products[previous] if previous >= 0 else 1.0
        noise = (y - math.sqrt(abar) * b * mask) / math.sqrt(1 - abar)
        return math.sqrt(abar_previous) * b * mask + math.sqrt(1 - abar_previous) * noise

    def schedule(self, steps: int) -> list[int]:
        """Steps that the sampler visits, evenly spaced and starting at T - 1 ("trailing"): 249, 244, ..., 4.

        Args:
            steps: number of steps, 1 to T.

        Raises:
            ConfigError: `steps` is not in 1 .. T, or more than 1 for a system without diffusion.
        """
        check_steps(self.config, steps)
        return [round(self.timesteps * (steps - index) / steps) - 1 for index in range(steps)]


def check_steps(config: DecoderConfig, steps: int) -> None:
    """Check that a decoder can be sampled in a number of steps.

    Args:
        config: the decoder's config.
        steps: number of sampling steps.

    Raises:
        ConfigError: it is below 1 or above `DecoderConfig.max_steps`.
    """
    if 1 <= steps <= config.max_steps:
        return
    if config.system == "diffusion":
        raise ConfigError(f"steps={steps}: choose 1 to {config.timesteps}, the decoder's timesteps")
    raise ConfigError(
        f"steps={steps}: a decoder of system={config.system!r} answers in a single step; give 1 or nothing"
    )
