"""Encoding images of any size with a frozen encoder, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffup.backbones.base import Backbone, check_pyramid
from diffup.inputs.images import resize_image

BATCH_SIZE = 8
"""Default number of images that are encoded together."""


def encode(backbone: Backbone, images: Sequence[Tensor], batch_size: int = BATCH_SIZE) -> list[Tensor]:
    """Encode images at the encoder's input size.

    Args:
        backbone: encoder.
        images: N images, (3, H, W) in [0, 1] each, of any sizes.
        batch_size: greatest number of images that are encoded together; on a CPU at most the number of threads, since
            larger batches do not fit the caches.

    Returns:
        Four levels (N, C_l, h_l, w_l), on the encoder's device.

    Raises:
        BackboneError: the encoder breaks the protocol.
    """
    if backbone.device.type == "cpu":
        batch_size = min(batch_size, torch.get_num_threads())
    resized = torch.stack([resize_image(image, backbone.input_size) for image in images])
    # Channels-last convolutions are about a third faster on a CPU.
    resized = resized.to(backbone.device, memory_format=torch.channels_last)
    batches = [resized[start : start + batch_size] for start in range(0, len(resized), batch_size)]
    parts = [check_pyramid(backbone.pyramid(batch), backbone.name, len(batch)) for batch in batches]
    return [torch.cat(levels) for levels in zip(*parts, strict=True)]
