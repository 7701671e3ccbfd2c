"""The StyleGAN2-style baseline of the paper's Table 8: a generator with the decoders' interface, and its discriminator.

The generator follows StyleGAN2 (Karras et al., CVPR 2020): a mapping network, modulated and demodulated convolutions,
noise at each of them, masks of every resolution summed. As in the paper, an encoder maps the priors to a latent vector
that is concatenated with Gaussian noise. In the generator's favour, the encoder's 8 x 8 map replaces StyleGAN2's
learned constant, the generator sees the query image (as the U-Net's quality branch does), and with `prior_skip` the
output starts from the mean prior: a vector alone hardly encodes positions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffup.decoder.base import Decoder, Denoised
from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import convolution
from diffup.decoder.unet import PRIOR_GAIN
from diffup.priors.condition import Condition

LATENT = 256
"""Width of the latent vector and of the style."""

NOISE_SIDE = 8
"""Side, in positions, of the noise beside the latent vector: 64 numbers."""

_SLOPE = 0.2


class ModulatedConv(nn.Module):
    """StyleGAN2's convolution: weights scaled by the style, then (if demodulated) normalised to unit norm.

    The scale is applied to the input and the norm to the output, which is equivalent and needs no weights per sample.

    Args:
        inputs: input channels.
        outputs: output channels.
        size: side of the kernel in positions.
        demodulate: whether to normalise every output channel's weights to unit norm.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size) / (inputs * size**2) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = nn.Linear(LATENT, inputs)
        nn.init.ones_(self.style.bias)

    def forward(self, h: Tensor, latent: Tensor) -> Tensor:
        """(B, inputs, s, s), (B, LATENT) -> (B, outputs, s, s)."""
        scale = self.style(latent)
        h = F.conv2d(h * scale[:, :, None, None], self.weight, padding=self.weight.shape[-1] // 2)
        if self.demodulate:
            squares = scale.square() @ self.weight.square().sum(dim=(2, 3)).T
            h = h * (squares + 1e-8).rsqrt()[:, :, None, None]
        return h + self.bias[:, None, None]


class StyledConv(nn.Module):
    """A modulated convolution, noise of a strength that is learned from zero, and the activation.

    Args:
        inputs: input channels.
        outputs: output channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = ModulatedConv(inputs, outputs)
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
        """(B, inputs, s, s), (B, LATENT), noise of the finest side (B, 1, 64, 64) -> (B, outputs, s, s)."""
        h = self.convolution(h, latent)
        return F.leaky_relu(h + self.strength * _pooled(noise, h.shape[-1]), _SLOPE)


class PriorEncoder(nn.Module):
    """Encodes the condition's levels and the query image as an 8 x 8 map and a latent vector.

    Args:
        config: the decoder's config.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        condition = config.priors.condition_channels
        before = (3, *config.channels[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(condition + inputs, outputs), convolution(outputs, outputs))
            for inputs, outputs in zip(before, config.channels, strict=True)
        )
        self.latent = nn.Linear(sum(config.channels), LATENT)

    def forward(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Encode the condition of B queries as a map (B, `channels[3]`, 8, 8) and latent vectors (B, LATENT)."""
        h = condition.image
        means = []
        for index, (block, level) in enumerate(zip(self.blocks, condition.levels, strict=True)):
            h = block(torch.cat([h if index == 0 else F.avg_pool2d(h, 2), level], dim=1))
            means.append(h.mean(dim=(2, 3)))
        return h, self.latent(torch.cat(means, dim=1))


class StyleGenerator(Decoder):
    """The generator: noise and condition in, logits of the mask out, in one pass.

    Args:
        config: the decoder's config.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        coarse_to_fine = config.channels[::-1]
        self.encoder = PriorEncoder(config)
        self.mapping = nn.Sequential(
            nn.Linear(LATENT + NOISE_SIDE**2, LATENT), nn.LeakyReLU(_SLOPE), nn.Linear(LATENT, LATENT)
        )
        self.start = StyledConv(coarse_to_fine[0], coarse_to_fine[0])
        self.widen = nn.ModuleList(StyledConv(a, b) for a, b in pairwise(coarse_to_fine))
        self.refine = nn.ModuleList(StyledConv(b, b) for b in coarse_to_fine[1:])
        self.to_mask = nn.ModuleList(ModulatedConv(c, 1, size=1, demodulate=False) for c in coarse_to_fine)
        self.prior_gain = nn.Parameter(torch.tensor(PRIOR_GAIN)) if config.prior_skip else None
        self.add_quality_branch()

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        """Generate masks.

        Args:
            x: (B, 1, 64, 64), standard normal noise.
            time: (B,), not used.
            condition: condition of B queries.
        """
        h, latent = self.encoder(condition)
        style = self.mapping(torch.cat([latent, _pooled(x, NOISE_SIDE).flatten(1)], dim=1))
        h = self.start(h, style, x)
        output = self.to_mask[0](h, style)
        for widen, refine, to_mask in zip(self.widen, self.refine, self.to_mask[1:], strict=True):
            h = refine(widen(_double(h), style, x), style, x)
            output = _double(output) + to_mask(h, style)
        if self.prior_gain is not None:
            output = output + self.prior_gain * condition.prior
        answer = torch.tanh(output.detach().float() / 2)
        return Denoised(output, *self.judge(answer, condition.image, condition.prior))


class Discriminator(nn.Module):
    """Distinguishes true masks from generated ones, given the mean prior and the query image; used only in training.

    Like the decoder, it sees no features of the encoder.

    Args:
        config: the decoder's config.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((5, *config.channels)):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(config.channels[-1], 1)

    def forward(self, mask: Tensor, condition: Condition) -> Tensor:
        """Score masks (B, 1, 64, 64) in [-1, 1], given the condition of B queries: (B,), higher for true masks."""
        h = self.body(torch.cat([mask, condition.prior, condition.image], dim=1))
        score: Tensor = self.head(h.mean(dim=(2, 3)))
        return score[:, 0]


def generator_loss(scores: Tensor) -> Tensor:
    """Non-saturating loss of the generator: (B,) scores of generated masks -> scalar."""
    return F.softplus(-scores).mean()


def discriminator_loss(true: Tensor, generated: Tensor) -> Tensor:
    """Logistic loss of the discriminator: (B,) scores each -> scalar."""
    return F.softplus(-true).mean() + F.softplus(generated).mean()


def gradient_penalty(discriminator: Discriminator, mask: Tensor, condition: Condition) -> Tensor:
    """R1 penalty: half the squared gradient of the scores of true masks (Mescheder et al., ICML 2018).

    Args:
        discriminator: the discriminator.
        mask: (B, 1, 64, 64) in [-1, 1], true masks.
        condition: condition of B queries.

    Returns:
        A scalar, the mean over the batch.
    """
    mask = mask.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(mask, condition).sum(), mask, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def _pooled(noise: Tensor, side: int) -> Tensor:
    """Pool standard normal noise, which stays so: (B, 1, n, n) -> (B, 1, side, side)."""
    factor = noise.shape[-1] // side
    return F.avg_pool2d(noise, factor) * factor
