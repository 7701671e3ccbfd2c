"""The U-Net of the diffusion decoder (UQDD): 3 encoder blocks, a middle block, 3 decoder blocks; 4.2 M parameters.

It never sees an encoder's features, only the `Condition`, so the same weights serve every encoder (Table 10).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffup.decoder.base import Decoder, Denoised
from diffup.decoder.config import DecoderConfig
from diffup.decoder.modulation import Modulation, ScalarEmbedding
from diffup.errors import ConfigError
from diffup.priors.affinity import HEADS, KEY_SIDE
from diffup.priors.condition import SIZES, Condition

EMBEDDING = 128
"""Width of the time and IoU embeddings."""


HEAD_CHANNELS = 16
"""Channels that are exchanged by each self-affinity."""

PRIOR_GAIN = 2.0
"""Gain of the mean prior in the output at the start of training."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group normalisation and a skip.

    Args:
        inputs: input channels.
        outputs: output channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(8, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """(B, inputs, s, s) -> (B, outputs, s, s)."""
        result: Tensor = self.skip(h) + self.body(h)
        return result


class Stage(nn.Module):
    """A block of the U-Net: residual block, SCM by condition and time step, SCM by predicted quality (DQM).

    Args:
        inputs: input channels.
        outputs: output channels.
        config: the decoder's config.
        more: condition channels in addition to those of the priors.
    """

    def __init__(self, inputs: int, outputs: int, config: DecoderConfig, more: int = 0) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs)
        condition = config.priors.condition_channels + more + 1
        self.scm = Modulation(outputs, condition, config.condition_hidden, EMBEDDING)
        self.dqm = (
            Modulation(outputs, 1, config.quality_hidden // 2, EMBEDDING, config.quality_normalisation)
            if config.error_modulation or config.iou_modulation
            else None
        )

    def forward(self, h: Tensor, condition: Tensor, time: Tensor, error: Tensor, iou: Tensor) -> Tensor:
        """Apply the block.

        Args:
            h: (B, inputs, s, s), features.
            condition: (B, C + 1, s, s), level of the condition concatenated with the noisy mask.
            time: (B, width), embedding of the time step.
            error: (B, 1, s, s), predicted error map.
            iou: (B, width), embedding of the predicted IoU.

        Returns:
            (B, outputs, s, s).
        """
        h = self.scm(self.block(h), condition, time)
        return h if self.dqm is None else self.dqm(h, error, iou)


class LowLevelProjection(nn.Module):
    """DiffUp+LFE (paper Table 9): one encoder's low-level features as additional channels of the finest condition.

    Args:
        config: the decoder's config.

    Raises:
        ConfigError: the config does not name the encoder.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if not config.low_level_width or not config.low_level_encoder:
            raise ConfigError(
                f"low_level_channels={config.low_level_channels} needs low_level_width and low_level_encoder: `diffup "
                "train` writes them from the encoder that it trains with"
            )
        self.project = nn.Conv2d(config.low_level_width, config.low_level_channels, 1)

    def forward(self, features: Tensor | None) -> Tensor:
        """Project low-level features: (B, width, h, w) -> (B, channels, 64, 64).

        Raises:
            ConfigError: the condition has no low-level features.
        """
        if features is None:
            raise ConfigError("condition: this decoder reads low-level features (low_level_channels), but it has none")
        # Normalised, since encoders differ in scale by orders of magnitude.
        projected = self.project(F.instance_norm(features))
        return F.interpolate(projected.float(), SIZES[:1] * 2, mode="bilinear", align_corners=False, antialias=True)


class AffinityMixer(nn.Module):
    """Adds to every position what the positions show that the encoder finds similar: `h + W_o (W_v norm(h)) A^T`.

    It is attention whose weights A are the encoder's own (`diffup.priors.affinity.self_affinities`), so the decoder
    learns what to exchange, but not which positions belong together: that comes from the encoder, whichever it is.

    Args:
        channels: channels of the features h.
        heads: number of affinities.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.values = nn.Conv2d(channels, heads * HEAD_CHANNELS, 1)
        self.out = nn.Conv2d(heads * HEAD_CHANNELS, channels, 1)
        nn.init.normal_(self.out.weight, std=1e-2)

    def forward(self, h: Tensor, affinity: Tensor) -> Tensor:
        """Mix features.

        Args:
            h: (B, C, s, s), features.
            affinity: (A, heads, s * s, k * k), affinities with k x k cells; row i of the batch has the affinities
                i % A.

        Returns:
            (B, C, s, s).
        """
        queries, heads = affinity.shape[:2]
        values = F.adaptive_avg_pool2d(self.values(self.norm(h)), KEY_SIDE)
        values = rearrange(values, "(n a) (m c) h w -> a m (n c) (h w)", a=queries, m=heads)
        mixed = values @ affinity.to(values.dtype).mT
        mixed = rearrange(mixed, "a m (n c) (h w) -> (n a) (m c) h w", c=HEAD_CHANNELS, h=h.shape[2])
        result: Tensor = h + self.out(mixed)
        return result


class DiffusionUNet(Decoder):
    """The denoiser: from noisy mask, step and condition to the prediction and its quality.

    The system `one_step` is the same network; it sees the mean prior in place of a noisy mask, always at the last step.

    Args:
        config: the decoder's config.

    Raises:
        ConfigError: the config has low-level features but does not name their encoder.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        more = config.low_level_channels
        c0, c1, c2, c3 = config.channels
        self.time = ScalarEmbedding(EMBEDDING)
        self.iou = ScalarEmbedding(EMBEDDING)
        self.stem = nn.Conv2d(1, c0, 3, padding=1)
        self.encoder = nn.ModuleList([Stage(c0, c0, config, more), Stage(c0, c1, config), Stage(c1, c2, config)])
        self.middle = Stage(c2, c3, config)
        self.decoder = nn.ModuleList(
            [Stage(c3 + c2, c2, config), Stage(c2 + c1, c1, config), Stage(c1 + c0, c0, config, more)]
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(c0, 1, 3, padding=1))
        skip = config.prior_skip and config.prediction == "x0"
        self.prior_gain = nn.Parameter(torch.tensor(PRIOR_GAIN)) if skip else None
        self.add_quality_branch()
        self.mixers = nn.ModuleDict(
            {name: AffinityMixer(width, heads) for name, (width, heads) in _mixers(config).items()}
        )
        self.low_level = LowLevelProjection(config) if more else None

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        """Predict the mask, or the noise or v, from a noisy mask.

        Args:
            x: (B, 1, 64, 64), noisy mask x_t at unit variance, or the mean prior for the system `one_step`.
            time: (B,), step t / T in [0, 1).
            condition: condition of B queries.
        """
        error, iou = self.judge(x, condition.image, condition.prior)
        # The quality branch learns from its own losses alone: its predictions modulate the blocks without gradient.
        error_map = error.detach() if self.config.error_modulation else torch.zeros_like(error)
        score = iou.detach() if self.config.iou_modulation else torch.zeros_like(iou)
        iou_embedding, embedding = self.iou(score), self.time(time)

        sides = [level.shape[-1] for level in condition.levels]
        levels = [torch.cat([level, _to(x, side)], dim=1) for level, side in zip(condition.levels, sides, strict=True)]
        if self.low_level is not None:
            levels[0] = torch.cat([levels[0], self.low_level(condition.low_level)], dim=1)
        errors = [_to(error_map, side) for side in sides]

        h = self.stem(x)
        skips = []
        for index, stage in enumerate(self.encoder):
            h = stage(h, levels[index], embedding, errors[index], iou_embedding)
            h = self._mix(f"encoder{index}", h, condition)
            skips.append(h)
            h = F.avg_pool2d(h, 2)
        h = self.middle(h, levels[3], embedding, errors[3], iou_embedding)
        for index, stage in zip((2, 1, 0), self.decoder, strict=True):
            h = torch.cat([F.interpolate(h, scale_factor=2, mode="nearest"), skips[index]], dim=1)
            h = stage(h, levels[index], embedding, errors[index], iou_embedding)
            h = self._mix(f"decoder{index}", h, condition)
        output = self.head(h)
        if self.prior_gain is not None:
            output = output + self.prior_gain * condition.prior
        return Denoised(output, error, iou)

    def _mix(self, name: str, h: Tensor, condition: Condition) -> Tensor:
        """Average features over similar positions, at the resolutions for which the condition has affinities."""
        if name not in self.mixers:
            return h
        found = {tensor.shape[2]: tensor for tensor in condition.affinity}
        if h.shape[-1] ** 2 not in found:
            raise ConfigError("condition: this decoder averages by self-affinities (priors.self_affinity), it has none")
        mixed: Tensor = self.mixers[name](h, found[h.shape[-1] ** 2])
        return mixed


def _mixers(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Channels and heads of the mixer after each stage whose resolution has self-affinities."""
    if not config.priors.self_affinity:
        return {}
    return {
        f"{part}{index}": (config.channels[index], len(HEADS[side]))
        for part in ("encoder", "decoder")
        for index, side in enumerate(SIZES)
        if side in HEADS
    }


def _to(maps: Tensor, side: int) -> Tensor:
    """Average-pool maps to (side, side); their side is a multiple of it."""
    return maps if maps.shape[-1] == side else F.avg_pool2d(maps, maps.shape[-1] // side)
