"""Joint backbones of several encoders: each member adds views to the fusion of priors (UAPF)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from diffup.backbones.base import Backbone, check_pyramid
from diffup.errors import BackboneError
from diffup.utils.resize import resize_maps


class JointBackbone:
    """Several encoders as one, their levels concatenated along the channels; the priors split them by `members_of`.

    Every member sees the image at its own input size. Features of different members are never compared, so they may
    differ in channels, stride and scale.

    Args:
        members: two or more encoders on one device.

    Raises:
        BackboneError: there are fewer than two members, or they are on several devices.
    """

    def __init__(self, members: Sequence[Backbone]) -> None:
        if len(members) < 2:
            raise BackboneError(f"members: a joint backbone needs two or more encoders, got {len(members)}")
        devices = sorted({str(member.device) for member in members})
        if len(devices) > 1:
            raise BackboneError(f"members: the encoders must be on one device, got {', '.join(devices)}")
        self.members = tuple(members)

    @property
    def name(self) -> str:
        """Names of the members, joined by ` + `."""
        return " + ".join(member.name for member in self.members)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels, the largest among the members'."""
        heights, widths = zip(*(member.input_size for member in self.members), strict=True)
        return max(heights), max(widths)

    @property
    def fingerprint(self) -> str:
        """Hash of the members' fingerprints, in order."""
        facts = "\n".join(member.fingerprint for member in self.members)
        return f"joint-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"

    @property
    def device(self) -> torch.device:
        """The members' device."""
        return self.members[0].device

    @functools.cached_property
    def widths(self) -> tuple[tuple[int, ...], ...]:
        """Channels of every member at each of the four levels; the first access encodes a black image."""
        levels = self._encode(torch.zeros(1, 3, *self.input_size, device=self.device))
        return tuple(tuple(level.shape[1] for level in found) for found in zip(*levels, strict=True))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Encode images with every member.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], of `input_size`.

        Returns:
            Four float32 tensors (B, sum of the members' C_l, h_l, w_l), at the finest member's resolution.

        Raises:
            BackboneError: a member breaks the protocol.
        """
        joined = []
        for found in zip(*self._encode(images), strict=True):
            size = (max(level.shape[2] for level in found), max(level.shape[3] for level in found))
            joined.append(torch.cat([resize_maps(level, size) for level in found], dim=1))
        return joined

    def _encode(self, images: Tensor) -> list[list[Tensor]]:
        found = []
        for member in self.members:
            resized = resize_maps(images, member.input_size).clamp(0, 1)
            found.append(check_pyramid(member.pyramid(resized), member.name, len(images)))
        return found

    def to(self, device: torch.device | str) -> JointBackbone:
        """Move all members to a device, and return a joint backbone of them."""
        return JointBackbone([member.to(device) for member in self.members])


def members_of(backbone: Backbone) -> tuple[tuple[int, ...], ...]:
    """Channels of each member of a joint backbone, for each of the four levels; empty for a single encoder.

    Args:
        backbone: the encoder.
    """
    return backbone.widths if isinstance(backbone, JointBackbone) else ()
