"""From a query image to what the decoder says of it: the steps that one image and a million go through alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.decoder.sampling import Ensemble, sample_batches, sample_ensemble
from diffup.inputs.images import ImageLike, read_image, resize_image, to_bytes
from diffup.priors.condition import EDGE_SIDE, SIZES, Condition
from diffup.priors.support import change_support
from diffup.result import Segmentation
from diffup.zoom import Crop, choose_crops, merge_crop

if TYPE_CHECKING:
    from diffup.model import DiffUp
    from diffup.prototypes import Prototypes

DECODER_BATCH = 32
"""Pairs of query and class whose conditions are made together, at most, unless a single class has more queries.

What the decoder computes together is bounded once more, by samples (`diffup.decoder.sampling.BATCH`)."""

CPU_DECODER_BATCH = 8
"""The same for each thread of a CPU, where more push each other out of the caches."""


@dataclass(frozen=True, eq=False)
class Query:
    """A query image, ready for the encoder.

    Attributes:
        pixels: (H, W, 3) uint8, the image as results show it.
        resized: (3, h, w) in [0, 1], at the encoder's input size.
        small: (3, 128, 128) in [0, 1], where edges are found.
        worded: (3, h, w) in [0, 1], at the text space's input size; None where no class has text.
    """

    pixels: npt.NDArray[np.uint8]
    resized: Tensor
    small: Tensor
    worded: Tensor | None = None

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
        looks: crops of the query that were looked at again, and their maps (`look_again`).
    """

    maps: Tensor
    quality: float
    threshold: float
    backbone: str
    trace: npt.NDArray[np.float32] | None = None
    trace_timesteps: tuple[int, ...] = ()
    looks: tuple[tuple[Crop, Tensor], ...] = ()

    def probability(self, size: tuple[int, int]) -> Tensor:
        """(H, W) float32 in [0, 1] at the query's size."""
        return self._enlarged(size, 1)[0]

    def _enlarged(self, size: tuple[int, int], count: int) -> Tensor:
        """The first maps at the query's size, what was seen at a second look merged in."""
        maps = enlarge(self.maps[:count], size)
        for crop, seen in self.looks:
            merge_crop(maps, crop, seen[:count])
        return maps

    def segmentation(self, image: npt.NDArray[np.uint8]) -> Segmentation:
        """The result at the query's own size.

        Args:
            image: (H, W, 3), the query.
        """
        mean, variance, error, prior = self._enlarged((image.shape[0], image.shape[1]), len(self.maps)).numpy()
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


def read_query(
    source: ImageLike,
    input_size: tuple[int, int],
    argument: str = "query",
    text_size: tuple[int, int] | None = None,
) -> Query:
    """Read a query image and make it ready.

    Args:
        source: as `read_image` takes it.
        input_size: the encoder's (height, width) in pixels.
        argument: what to call it in error messages.
        text_size: the text space's (height, width) in pixels; None where no class has text.

    Raises:
        ImageError: see `read_image`.
    """
    image = read_image(source, argument)
    return Query(
        to_bytes(image),
        resize_image(image, input_size),
        resize_image(image, (EDGE_SIDE, EDGE_SIDE)),
        None if text_size is None else resize_image(image, text_size),
    )


def query_reader(model: DiffUp, named: bool) -> Callable[[ImageLike, str], Query]:
    """`read_query` for a model: a function of the image and of what to call it.

    Args:
        model: that looks at the query.
        named: whether a class that it looks for has text.
    """
    input_size = model.backbone.input_size
    text_size = model.text_space.input_size if named else None
    return lambda source, argument: read_query(source, input_size, argument, text_size)


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

    The encoder, and the text space where a class has text, see each query once; the decoder sees pairs of query and
    class, some at a time (`decoder_batches`).

    Args:
        model: encoder and decoder.
        queries: B of them, of `query_reader`.
        classes: C prototypes that fit the model.
        threshold: on the probability of every class, in (0, 1); None for that of its prototypes, or else the config's.
        noise: (n, 64, 64) of `starting_noise`, the same for every pair, so that none depends on what it is decoded
            with.
        steps: DDIM steps.
        trace: keep the noisy masks.
        on_step: called after every step of every batch (`decoder_rounds` tells how many there are).

    Returns:
        B lists of C.
    """
    levels = model.encode([query.resized for query in queries], batch_size=max(len(queries), 1))
    small = torch.stack([query.small for query in queries]).to(model.device)
    worded = [query.worded for query in queries if query.worded is not None]
    dense = model.dense_text_features(worded) if worded else None
    found: list[list[Decoded]] = [[] for _ in queries]
    for group in decoder_batches(len(queries), len(classes), model.device):
        condition = Condition.cat([_condition(model, levels, small, dense, classes[index]) for index in group])
        together = noise.to(model.device).expand(len(condition.prior), *noise.shape)
        samples = sample_ensemble(model.decoder, model.diffusion, condition, together, steps, trace, on_step)
        maps = _maps(samples, condition)
        for at, index in enumerate(group):
            chosen = next(t for t in (threshold, classes[index].threshold, model.config.threshold) if t is not None)
            for row, items in enumerate(found, start=at * len(queries)):
                items.append(_decoded(samples, maps, row, chosen, model.backbone.name))
    return found


def look_again(
    model: DiffUp,
    query: Query,
    classes: Sequence[Prototypes],
    found: Sequence[Decoded],
    noise: Tensor,
    steps: int,
) -> list[Decoded]:
    """Look for every class again, in crops around where it was found (`diffup.zoom`).

    Args:
        model: encoder and decoder.
        query: of `query_reader`.
        classes: that are looked for.
        found: of `decode`, for each class.
        noise: of `starting_noise`.
        steps: DDIM steps.

    Returns:
        What was found, with the crops' maps to be merged in; quality and trace remain those of the first pass.
    """
    again = []
    for item, prototypes in zip(found, classes, strict=True):
        looks = []
        for crop in choose_crops(item.maps[0], query.size, item.threshold):
            x0, y0, x1, y1 = crop
            part = query_reader(model, prototypes.words is not None)(query.pixels[y0:y1, x0:x1], "query")
            ((seen,),) = decode(model, [part], [prototypes], item.threshold, noise, steps)
            looks.append((crop, seen.maps))
        again.append(replace(item, looks=tuple(looks)))
    return again


def starting_noise(ensemble: int, generator: torch.Generator) -> Tensor:
    """Starting noise of one query, drawn on the generator's device so that a seed means one result.

    Returns:
        (ensemble, 64, 64), standard normal.
    """
    return torch.randn(ensemble, SIZES[0], SIZES[0], generator=generator, device=generator.device)


def decoder_batches(queries: int, classes: int, device: torch.device) -> list[range]:
    """Which classes are decoded together for so many queries."""
    most = min(DECODER_BATCH, CPU_DECODER_BATCH * torch.get_num_threads()) if device.type == "cpu" else DECODER_BATCH
    step = max(1, most // max(queries, 1))
    return [range(start, min(start + step, classes)) for start in range(0, classes, step)]


def decoder_rounds(queries: int, classes: int, ensemble: int, device: torch.device) -> int:
    """How many batches of samples the decoder goes through for so many queries, in each step."""
    groups = decoder_batches(queries, classes, device)
    return sum(len(sample_batches(queries * len(group), ensemble, device)) for group in groups)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring decoder maps to an image's size: (N, 64, 64) -> (N, H, W) on the CPU, bilinear."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0].cpu()


def _condition(
    model: DiffUp, levels: Sequence[Tensor], small: Tensor, dense: Tensor | None, prototypes: Prototypes
) -> Condition:
    """The condition of every query for one class."""
    supports, text = prototypes.features, None
    if supports is not None:
        count = len(small)
        supports = change_support(supports, lambda tensor: tensor.to(model.device).expand(count, *tensor.shape[1:]))
    if prototypes.words is not None and dense is not None:
        text = model.text_maps(levels, dense, prototypes.words.embeddings)
    return model.conditions(levels, supports, small, text)


def _maps(samples: Ensemble, condition: Condition) -> Tensor:
    """(N, 4, 64, 64) on the CPU, see `Decoded.maps`."""
    maps = [
        samples.mean,
        samples.variance,
        samples.error.clamp(-2, 2),
        condition.prior[:, 0] * 0.5 + 0.5,
    ]
    return torch.stack(maps, dim=1).float().cpu()


def _decoded(samples: Ensemble, maps: Tensor, row: int, threshold: float, backbone: str) -> Decoded:
    traced = samples.trace is not None
    return Decoded(
        maps=maps[row].clone(),  # a view would hold the whole batch
        quality=float(samples.iou[row]),
        threshold=threshold,
        backbone=backbone,
        trace=samples.trace[row].cpu().numpy() if samples.trace is not None else None,
        trace_timesteps=(*samples.timesteps, -1) if traced else (),
    )
