"""From a query image to what the decoder says of it: the steps that one image and a million go through alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import check_steps
from diffup.decoder.sampling import Samples, sample
from diffup.errors import ConfigError
from diffup.images import ImageLike, read_image, resize_image
from diffup.priors.condition import EDGE_SIDE, SIZES, Condition
from diffup.result import Segmentation
from diffup.support import change_support

if TYPE_CHECKING:
    from diffup.model import DiffUp
    from diffup.prototypes import Prototypes

DECODER_BATCH = 32
"""Pairs of query and class that are decoded together, at most, unless a single class has more queries."""


@dataclass(frozen=True, eq=False)
class Query:
    """A query image, ready for the encoder.

    Attributes:
        pixels: (H, W, 3) uint8, the image as results show it.
        resized: (3, h, w) in [0, 1], at the encoder's input size.
        small: (3, 128, 128) in [0, 1], where edges are found.
    """

    pixels: npt.NDArray[np.uint8]
    resized: Tensor
    small: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the decoder says of one class in one query, at the decoder's own size.

    Attributes:
        maps: (4, 64, 64) float32 on the CPU: mean probability, its variance over the samples, error map, prior.
        quality: expected IoU, in [0, 1].
        threshold: on the probability.
        backbone: name of the encoder.
        trace: (S, 64, 64) float32, x_t of the first sample; None if not recorded.
        trace_timesteps: the step of each.
    """

    maps: Tensor
    quality: float
    threshold: float
    backbone: str
    trace: npt.NDArray[np.float32] | None = None
    trace_timesteps: tuple[int, ...] = ()

    def probability(self, size: tuple[int, int]) -> Tensor:
        """(H, W) float32 in [0, 1] of any size."""
        return enlarge(self.maps[:1], size)[0]

    def segmentation(self, image: npt.NDArray[np.uint8]) -> Segmentation:
        """The result at the query's own size.

        Args:
            image: (H, W, 3), the query.
        """
        mean, variance, error, prior = enlarge(self.maps, (image.shape[0], image.shape[1])).numpy()
        return Segmentation(
            image=image,
            mask=mean > self.threshold,
            probability=mean,
            variance=variance,
            quality=self.quality,
            error_map=error,
            prior=prior,
            threshold=self.threshold,
            backbone=self.backbone,
            trace=self.trace,
            trace_timesteps=self.trace_timesteps,
        )


def read_query(source: ImageLike, input_size: tuple[int, int], argument: str = "query") -> Query:
    """Read a query image and make it ready.

    Args:
        source: as `read_image` takes it.
        input_size: the encoder's (height, width) in pixels.
        argument: what to call it in error messages.

    Raises:
        ImageError: see `read_image`.
    """
    image = read_image(source, argument)
    return Query(
        (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(),
        resize_image(image, input_size),
        resize_image(image, (EDGE_SIDE, EDGE_SIDE)),
    )


def decode(
    model: DiffUp,
    queries: Sequence[Query],
    classes: Sequence[Prototypes],
    threshold: float | None,
    noise: Tensor,
    steps: int,
    trace: bool = False,
    on_step: Callable[[], object] | None = None,
) -> list[list[Decoded]]:
    """Look for every class in every query.

    The encoder sees each query once; the decoder sees pairs of query and class, up to `DECODER_BATCH` at a time.

    Args:
        model: encoder and decoder.
        queries: B of them.
        classes: C prototypes that fit the model.
        threshold: on the probability of every class, in (0, 1); None for that of its prototypes, or else the config's.
        noise: (n, 64, 64) of `starting_noise`, the same for every pair, so that none depends on what it is decoded
            with.
        steps: DDIM steps.
        trace: keep the noisy masks.
        on_step: called after every step of every batch (`decoder_batches` tells how many there are).

    Returns:
        B lists of C.
    """
    levels = model.encode([query.resized for query in queries], batch_size=max(len(queries), 1))
    small = torch.stack([query.small for query in queries]).to(model.device)
    found: list[list[Decoded]] = [[] for _ in queries]
    for group in decoder_batches(len(queries), len(classes)):
        condition = Condition.cat([_condition(model, levels, small, classes[index]) for index in group])
        together = noise.to(model.device).expand(len(condition.prior), *noise.shape)
        samples = sample(model.decoder, model.diffusion, condition, together, steps, trace, on_step)
        maps = _maps(samples, condition)
        for at, index in enumerate(group):
            chosen = next(t for t in (threshold, classes[index].threshold, model.config.threshold) if t is not None)
            for row, items in enumerate(found, start=at * len(queries)):
                items.append(_decoded(samples, maps, row, chosen, model.backbone.name))
    return found


def starting_noise(ensemble: int, generator: torch.Generator) -> Tensor:
    """Starting noise of one query, drawn on the generator's device so that a seed means one result.

    Returns:
        (ensemble, 64, 64), standard normal.
    """
    return torch.randn(ensemble, SIZES[0], SIZES[0], generator=generator, device=generator.device)


def sampling_options(
    config: DecoderConfig, steps: int | None, ensemble: int | None, threshold: float | None
) -> tuple[int, int, float]:
    """Steps, ensemble and threshold, the config's where None.

    Raises:
        ConfigError: one is out of range.
    """
    steps = config.steps if steps is None else steps
    ensemble = config.ensemble if ensemble is None else ensemble
    threshold = config.threshold if threshold is None else threshold
    check_steps(config, steps)
    if ensemble < 1:
        raise ConfigError(f"ensemble={ensemble}: it must be 1 or more")
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold={threshold}: it must lie between 0 and 1")
    return steps, ensemble, threshold


def decoder_batches(queries: int, classes: int) -> list[range]:
    """Which classes are decoded together for so many queries."""
    step = max(1, DECODER_BATCH // max(queries, 1))
    return [range(start, min(start + step, classes)) for start in range(0, classes, step)]


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring decoder maps to an image's size: (N, 64, 64) -> (N, H, W) on the CPU, bilinear."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0].cpu()


def _condition(model: DiffUp, levels: Sequence[Tensor], small: Tensor, prototypes: Prototypes) -> Condition:
    """The condition of every query for one class."""
    features = change_support(
        prototypes.features, lambda tensor: tensor.to(model.device).expand(len(small), *tensor.shape[1:])
    )
    return model.conditions(levels, features, small)


def _maps(samples: Samples, condition: Condition) -> Tensor:
    """(N, 4, 64, 64) on the CPU, see `Decoded.maps`."""
    probability = samples.probability
    maps = [
        probability.mean(dim=1),
        probability.var(dim=1, correction=0),
        samples.error.clamp(-2, 2),
        condition.prior[:, 0] * 0.5 + 0.5,
    ]
    return torch.stack(maps, dim=1).float().cpu()


def _decoded(samples: Samples, maps: Tensor, row: int, threshold: float, backbone: str) -> Decoded:
    traced = samples.trace is not None
    return Decoded(
        maps=maps[row].clone(),  # a view would hold the whole batch
        quality=float(samples.iou[row]),
        threshold=threshold,
        backbone=backbone,
        trace=samples.trace[row].cpu().numpy() if samples.trace is not None else None,
        trace_timesteps=(*samples.timesteps, -1) if traced else (),
    )
