"""The protocol of image encoders, and the frozen module that all built-in families share."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor, nn

from diffup.backbones.quicker import quicker
from diffup.errors import BackboneError

if TYPE_CHECKING:
    from typing_extensions import Self

LEVELS = 4
"""Number of feature levels of every backbone (paper, section 3.1)."""

MAX_SIDE = 8192
"""Greatest side in pixels of an encoder's input images."""

_TARGET_STRIDES = (4, 8, 16, 32)
_REVISION = 1  # part of fingerprints; increase it when the same weights and options give other features
_TRIAL_SIDE = 160  # greatest side in pixels of the image on which the quicker encoder is compared
_TRIAL_TOLERANCE = 1e-2  # relative to the largest value: rounding, in TF32 too, is less, a wrong fold is far more


@runtime_checkable
class FrozenEncoder(Protocol):
    """The members that image encoders and text spaces share.

    Attributes:
        name: name for messages and reports, e.g. `"bundled:efficientnet_lite0"`.
        input_size: (height, width) in pixels that the caller resizes images to.
        fingerprint: text that is stable and changes whenever features would change; caches and reports are keyed by it.
        device: device of the weights, on which images are expected.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def input_size(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device and return the encoder on it."""
        ...


@runtime_checkable
class Backbone(FrozenEncoder, Protocol):
    """A frozen image encoder. Any object with these members can be used in place of a backbone name.

    In addition to `pyramid` it has the members of `FrozenEncoder`: `name`, `input_size`, `fingerprint`, `device`, `to`.
    """

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Encode images at four levels.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], not normalised.

        Returns:
            Four float32 tensors (B, C_l, h_l, w_l), fine to coarse, without gradient.
        """
        ...


@dataclass(frozen=True)
class EncoderOptions:
    """Options that all built-in families share. A family's `build` takes them as keyword arguments.

    Attributes:
        levels: four indices of stages or blocks, fine to coarse; negative ones count from the end. By default
            `select_levels` chooses.
        input_size: side in pixels, or (height, width), that images are resized to. By default the family chooses.
        checkpoint_path: local safetensors or torch file to take the weights from; nothing is downloaded then.
        pretrained: whether to load trained weights; False for random ones.
    """

    levels: Sequence[int] | None = None
    input_size: int | Sequence[int] | None = None
    checkpoint_path: str | Path | None = None
    pretrained: bool = True

    @property
    def download(self) -> bool:
        """Whether the weights come from where the family has them."""
        return self.pretrained and self.checkpoint_path is None


class EncoderKeywords(TypedDict, total=False):
    """The fields of `EncoderOptions`, for the keyword arguments of `build`."""

    levels: Sequence[int] | None
    input_size: int | Sequence[int] | None
    checkpoint_path: str | Path | None
    pretrained: bool


class FrozenBackbone(nn.Module):
    """Base of the built-in backbones; a subclass supplies the feature function `features`.

    The encoder is always in evaluation mode, BatchNorm included (`train()` changes nothing), its parameters require no
    gradient, and `pyramid` records none. It may be cast to float16 or bfloat16; images and levels remain float32. The
    weights must not change after construction, since their hash and `network` are computed once per precision.

    Args:
        name: full name, `family:variant`.
        encoder: network, which is frozen in place.
        input_size: (height, width) in pixels that the caller resizes images to.
        levels: four indices of the encoder's stages or blocks, fine to coarse, from 0.
        mean: mean of the RGB channels that the encoder was trained with, for images in [0, 1].
        std: standard deviation of the RGB channels that the encoder was trained with, for images in [0, 1].
        multiple: (height, width) in pixels that the sides of every image must be multiples of, e.g. a ViT's patch size.
        layout: layout of the maps that `features` returns.

    Raises:
        BackboneError: `input_size` is not a multiple of `multiple`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        encoder: nn.Module,
        *,
        input_size: tuple[int, int],
        levels: tuple[int, ...],
        mean: Sequence[float],
        std: Sequence[float],
        multiple: tuple[int, int] = (1, 1),
        layout: Literal["NCHW", "NHWC"] = "NCHW",
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder.eval().requires_grad_(False)
        self.input_size = input_size
        self.levels = levels
        self.multiple = multiple
        self.layout = layout
        device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
        self.register_buffer("mean", torch.tensor(mean, device=device).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=device).view(1, 3, 1, 1), persistent=False)
        self._hashes: dict[torch.dtype, str] = {}
        self._network: tuple[nn.Module] | None = None  # in a tuple, so that it is no child and not part of the state
        self.eval()
        check_size(input_size, multiple, f"backbone '{name}': input_size")

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Run `network` on normalised images (B, 3, H, W) and return the maps of the four `levels`, in `layout`."""
        raise NotImplementedError(f"{type(self).__name__} must define features()")

    @property
    def network(self) -> nn.Module:
        """The encoder as `features` runs it: `encoder`, or in float32 and float64 a quicker copy with equal features.

        The copy is made with the first pass, by `quicker`. BatchNorm is folded only if the features of an image of
        noise remain those of `encoder`. Graphs are traced from the original, and their BatchNorm is folded later.
        """
        if torch.compiler.is_exporting() or self.dtype not in (torch.float32, torch.float64):
            return self.encoder
        if self._network is None:
            self._network = (self._checked_network(),)
        return self._network[0]

    def _checked_network(self) -> nn.Module:
        """The quicker encoder; without folded BatchNorm where that does not give the features of the original."""
        try:
            network, folded = quicker(self.encoder)
        except Exception:  # encoders may refuse to be copied in any way they like
            return self.encoder
        return network if not folded or self._is_same(network) else quicker(self.encoder, fold=False)[0]

    def _is_same(self, network: nn.Module) -> bool:
        """Whether a network has the encoder's features of an image of noise."""
        size = nearest_size((min(_TRIAL_SIDE, self.input_size[0]), min(_TRIAL_SIDE, self.input_size[1])), self.multiple)
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        try:
            pairs = zip(self._features_of(self.encoder, image), self._features_of(network, image), strict=True)
            return all(float((a - b).abs().max()) <= _TRIAL_TOLERANCE * float(a.abs().max()) for a, b in pairs)
        except Exception:  # encoders may refuse the size in any way they like
            return False

    @torch.no_grad()
    def _features_of(self, network: nn.Module, image: Tensor) -> Sequence[Tensor]:
        trial = copy.copy(self)  # other threads must not meet a network that has not been compared
        trial._network = (network,)
        return trial.features(image)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Forget the quicker copy when weights are moved or cast."""
        self._network = None
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the encoder computes."""
        return next((p.dtype for p in self.encoder.parameters() if p.is_floating_point()), torch.float32)

    @property
    def fingerprint(self) -> str:
        """`name-hash`; the hash covers name, weights, their precision, levels, input size and normalisation."""
        if self.dtype not in self._hashes:
            self._hashes[self.dtype] = hash_weights(self.encoder)
        facts = {
            "revision": _REVISION,
            "name": self.name,
            "weights": self._hashes[self.dtype],
            "levels": self.levels,
            "input_size": self.input_size,
            "mean": [round(v, 3) for v in self.mean.flatten().tolist()],
            "std": [round(v, 3) for v in self.std.flatten().tolist()],
        }
        return f"{self.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever `mode` is, so that a parent's `train()` cannot unfreeze the encoder."""
        return super().train(False)

    @torch.no_grad()
    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Encode images at four levels.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1], not normalised, on `device`; H and W are usually `input_size`.

        Returns:
            Four float32 tensors (B, C_l, h_l, w_l), fine to coarse.

        Raises:
            BackboneError: the images have another layout, range or device, or a size that the encoder cannot take; or
                the encoder's output breaks the protocol.
        """
        self._check_images(images)
        try:
            maps = self.unchecked_pyramid(images)
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, (torch.cuda.OutOfMemoryError, BackboneError)):
                raise
            height, width = images.shape[-2:]
            raise BackboneError(
                f"backbone '{self.name}', built for {self.input_size[0]} x {self.input_size[1]} px, failed on images "
                f"of {height} x {width} px ({error}); if this size is the reason, resize them or build the backbone "
                f"with input_size=({height}, {width})"
            ) from error
        return check_pyramid(maps, self.name, len(images))

    def unchecked_pyramid(self, images: Tensor) -> list[Tensor]:
        """Encode images as `pyramid` does, without checks, which depend on values and so cannot be exported.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1], not normalised, on `device`.
        """
        normalised = (images.float() - self.mean.float()) / self.std.float()
        maps = self.features(normalised.to(self.dtype))
        if self.layout == "NHWC":
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [m.float().contiguous() for m in maps]

    def _check_images(self, images: Tensor) -> None:
        """Refuse images that would give meaningless features."""
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise BackboneError(f"backbone '{self.name}': images must be a tensor (B, 3, H, W), got {shape}")
        if not images.is_floating_point():
            raise BackboneError(
                f"backbone '{self.name}': images must be float in [0, 1], got {images.dtype}; divide by 255"
            )
        if images.device != self.device:
            raise BackboneError(
                f"backbone '{self.name}' is on {self.device} but the images are on {images.device}; move one of them"
            )
        low, high = images.aminmax()
        if not (low > -0.5 and high < 1.5):  # interpolation may overshoot [0, 1] a little; a mistake goes far beyond
            raise BackboneError(
                f"backbone '{self.name}': images must be RGB in [0, 1] before normalisation, got values from "
                f"{float(low):.3g} to {float(high):.3g}"
            )
        check_size((images.shape[2], images.shape[3]), self.multiple, f"backbone '{self.name}': image size")


def check_pyramid(levels: Any, name: str, batch: int) -> list[Tensor]:
    """Check that a backbone's output follows the protocol.

    Args:
        levels: output of `pyramid`.
        name: name of the backbone in error messages.
        batch: number of images that were encoded, B.

    Returns:
        The same levels as a list of four tensors (B, C_l, h_l, w_l).

    Raises:
        BackboneError: a level breaks a rule; the message names both.
    """

    def fail(problem: str) -> BackboneError:
        return BackboneError(f"backbone '{name}' breaks the protocol: pyramid() {problem}")

    if not isinstance(levels, (list, tuple)):
        raise fail(f"must return a list of {LEVELS} tensors, got {type(levels).__name__}")
    if len(levels) != LEVELS:
        raise fail(f"must return exactly {LEVELS} levels, got {len(levels)}")
    for index, level in enumerate(levels):
        if not isinstance(level, Tensor):
            raise fail(f"level {index} must be a tensor, got {type(level).__name__}")
        if level.ndim != 4:
            raise fail(f"level {index} must have 4 dimensions (B, C, h, w), got shape {tuple(level.shape)}")
        if level.dtype != torch.float32:
            raise fail(f"level {index} must be float32, got {level.dtype}")
        if len(level) != batch:
            raise fail(f"level {index} must have batch size {batch}, got {len(level)} (shape {tuple(level.shape)})")
        if 0 in level.shape:
            raise fail(f"level {index} is empty, shape {tuple(level.shape)}; is the image too small?")
        if index and (level.shape[2] > levels[index - 1].shape[2] or level.shape[3] > levels[index - 1].shape[3]):
            sizes = " ".join(f"{item.shape[2]}x{item.shape[3]}" for item in levels[: index + 1])
            raise fail(f"levels must go from fine to coarse, got {sizes}; levels must be NCHW")
        if level.requires_grad:
            raise fail(
                f"level {index} carries a gradient, which keeps every activation in memory; use @torch.no_grad()"
            )
        if not torch.isfinite(level).all():
            raise fail(
                f"level {index} has NaN or infinite values (float16 overflows at 65504: use bfloat16 or float32)"
            )
    return list(levels)


def spread_levels(stages: int) -> tuple[int, ...]:
    """Indices of the stages at 1/4, 1/2, 3/4 and all of the depth, e.g. (2, 5, 8, 11) of 12.

    With fewer than four stages some are repeated, the deepest first: (0, 1, 2, 2) of 3, (0, 0, 1, 1) of 2.

    Args:
        stages: number of stages or blocks.
    """
    return tuple(-(-(level + 1) * stages // LEVELS) - 1 for level in range(LEVELS))


def select_levels(strides: Sequence[int]) -> tuple[int, ...]:
    """Choose four of an encoder's stages by default.

    They are the last stages of strides 4, 8, 16 and 32 if all exist, else the last four stages. Encoders of one stride
    (ViTs) and those with fewer than four stages follow `spread_levels`.

    Args:
        strides: stride of every stage in pixels, fine to coarse.

    Returns:
        Four indices, non-decreasing.
    """
    if len(strides) < LEVELS or len(set(strides)) == 1:
        return spread_levels(len(strides))
    last = {stride: index for index, stride in enumerate(strides)}
    if all(stride in last for stride in _TARGET_STRIDES):
        return tuple(last[stride] for stride in _TARGET_STRIDES)
    return tuple(range(len(strides) - LEVELS, len(strides)))


def resolve_levels(levels: Sequence[int] | None, strides: Sequence[int], name: str) -> tuple[int, ...]:
    """Check the user's choice of levels and make its indices non-negative; None is the default of `select_levels`.

    Args:
        levels: four indices of stages (hierarchical encoders) or blocks (ViTs), fine to coarse; negative ones count
            from the end, and repetitions are allowed. None for the default.
        strides: stride of every stage in pixels.
        name: name of the backbone in error messages.

    Returns:
        Four indices, non-decreasing.

    Raises:
        BackboneError: there are not four indices, or one is out of range or out of order.
    """
    if not strides:
        raise BackboneError(f"backbone '{name}' has no feature stages to choose levels from")
    if levels is None:
        return select_levels(strides)
    count = len(strides)
    if not isinstance(levels, Sequence) or len(levels) != LEVELS or not all(map(_is_whole, levels)):
        raise BackboneError(f"backbone '{name}': levels must be {LEVELS} integers, got {levels!r}")
    if any(not -count <= i < count for i in levels):
        raise BackboneError(
            f"backbone '{name}': levels={tuple(levels)} out of range, it has {count} stages (0 to {count - 1})"
        )
    absolute = tuple(i % count for i in levels)
    if list(absolute) != sorted(absolute):
        raise BackboneError(f"backbone '{name}': levels={tuple(levels)} must go from fine to coarse (increasing)")
    return absolute


def resolve_input_size(input_size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Turn an `input_size` option into (height, width).

    Args:
        input_size: side in pixels, or (height, width) in pixels, at most `MAX_SIDE`.
        name: name of the backbone in error messages.

    Raises:
        BackboneError: `input_size` is neither a positive integer nor two of them, or too large.
    """
    size: tuple[Any, ...] = tuple(input_size) if isinstance(input_size, Sequence) else (input_size, input_size)
    if len(size) != 2 or not all(_is_whole(side) and 1 <= side <= MAX_SIDE for side in size):
        raise BackboneError(
            f"backbone '{name}': input_size must be a positive integer or (height, width), at most {MAX_SIDE} px, "
            f"got {input_size!r}"
        )
    return int(size[0]), int(size[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def normalise_map(norm: nn.Module, level: Tensor) -> Tensor:
    """Apply a ViT's token norm to a map, over the channels of every position.

    Args:
        norm: normalisation layer for tokens (..., C).
        level: (B, C, h, w).

    Returns:
        (B, C, h, w).
    """
    normalised: Tensor = norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return normalised


def nearest_size(size: tuple[int, int], multiple: tuple[int, int]) -> tuple[int, int]:
    """The nearest size whose sides are multiples of given numbers; of two at equal distance, the larger.

    Args:
        size: (height, width) in pixels.
        multiple: (height, width) in pixels that the sides must be multiples of.
    """
    height, width = (max(1, (2 * s + m) // (2 * m)) * m for s, m in zip(size, multiple, strict=True))
    return height, width


def check_size(size: tuple[int, int], multiple: tuple[int, int], what: str) -> None:
    """Check that the sides of a size are multiples of given numbers.

    Args:
        size: (height, width) in pixels.
        multiple: (height, width) in pixels that the sides must be multiples of.
        what: name of the size in error messages.

    Raises:
        BackboneError: a side is not a multiple; the message names the nearest size that is allowed.
    """
    if size[0] % multiple[0] or size[1] % multiple[1]:
        near = nearest_size(size, multiple)
        raise BackboneError(
            f"{what} {size[0]} x {size[1]} px must be a multiple of {multiple[0]} x {multiple[1]}; "
            f"the nearest is {near[0]} x {near[1]}"
        )


def hash_weights(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's weights: names, types, shapes and values, independent of the device.

    BatchNorm's batch counters are left out: they have no effect on a frozen encoder, and weight files differ in them.

    Args:
        module: the module.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
