"""Building a decoder from its config."""

from __future__ import annotations

from diffup.decoder.base import Decoder
from diffup.decoder.baselines.gan import StyleGenerator
from diffup.decoder.baselines.prior import PriorDecoder
from diffup.decoder.config import DecoderConfig, System
from diffup.decoder.unet import DiffusionUNet

_SYSTEMS: dict[System, type[Decoder]] = {
    "diffusion": DiffusionUNet,
    "one_step": DiffusionUNet,
    "gan": StyleGenerator,
    "prior": PriorDecoder,
}


def build_decoder(config: DecoderConfig) -> Decoder:
    """Build an untrained decoder of the config's system, its weights drawn from PyTorch's global generator.

    Args:
        config: the decoder's config.

    Raises:
        ConfigError: the config has low-level features but does not name their encoder.
    """
    return _SYSTEMS[config.system](config)
