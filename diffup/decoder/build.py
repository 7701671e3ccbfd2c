"""From a config to the decoder that it describes."""

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
    """An untrained decoder of the config's system, its weights drawn from PyTorch's global generator.

    Raises:
        ConfigError: low-level features are wanted of no encoder in particular.
    """
    return _SYSTEMS[config.system](config)
