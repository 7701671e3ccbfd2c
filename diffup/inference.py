"""From a query image to results: read, encode, condition, decode. One image and a million go the same way.

Every function is typed on the parts that it needs (encoder, decoder, text space), so that `DiffUp`, evaluation,
labelling and servers call the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffup.backbones import Backbone, members_of
from diffup.backbones.encode import encode
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.options import Sampling
from diffup.decoder.sampling import Ensemble, sample_batches, sample_ensemble
from diffup.inputs.images import ImageLike, read_image, resize_image, to_bytes
from diffup.priors import build_condition
from diffup.priors.condition import EDGE_SIDE, Condition, SupportFeatures
from diffup.priors.level import pool_to_grid
from diffup.priors.support import change_support
from diffup.priors.text import text_maps, text_similarity
from diffup.prototypes import Prototypes
from diffup.result import Segmentation
from diffup.text.space import TextSpace, dense_features

DECODER_BATCH = 32
"""Greatest number of pairs of query and class whose conditions are made together, unless one class has more queries.

What the decoder computes together is bounded once more, by samples (`diffup.decoder.sampling.BATCH`).
"""

CPU_DECODER_BATCH = 8
"""The same for each thread of a CPU, where more push each other out of the caches."""


@dataclass(frozen=True, eq=False)
class Query:
    """A query image, ready for the encoder.

    Attributes:
        pixels: (H, W, 3) uint8, the image as results show it.
        resized: (3, h, w) in [0, 1], at the encoder's input size.
        small: (3, 128, 128) in [0, 1], where edges are found.
        for_text: (3, h, w) in [0, 1], at the text space's input size; None where no class has text.
    """

    pixels: npt.NDArray[np.uint8]
    resized: Tensor
    small: Tensor
    for_text: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_query(source: ImageLike, argument: str, backbone: Backbone, text_space: TextSpace | None = None) -> Query:
    """Read a query image and make it ready.

    Args:
        source: the image, in a form that `read_image` takes.
        argument: name of the image in error messages.
        backbone: the encoder.
        text_space: the encoder that text prompts are compared in; None where no class has text.

    Raises:
        ImageError: the image cannot be read, see `diffup.inputs.images.read_image`.
    """
    image = read_image(source, argument)
    return Query(
        pixels=to_bytes(image),
        resized=resize_image(image, backbone.input_size),
        small=resize_image(image, (EDGE_SIDE, EDGE_SIDE)),
        for_text=None if text_space is None else resize_image(image, text_space.input_size),
    )


def text_prior_maps(
    levels: Sequence[Tensor],
    dense: Tensor,
    embeddings: Tensor,
    backbone: Backbone,
    text_space: TextSpace,
    config: DecoderConfig,
) -> Tensor:
    """Maps of where a named class is, one for each text prompt.

    Args:
        levels: four tensors (B, C_l, h_l, w_l), the queries' features.
        dense: (B, C, h, w), the queries' dense text-space features.
        embeddings: (V, C), embeddings of the text prompts.
        backbone: the encoder of `levels`.
        text_space: the text space of `dense` and `embeddings`.
        config: config of the decoder.

    Returns:
        (B, V, h, w) in [0, 1].
    """
    similar = text_similarity(dense, embeddings.to(dense.device), text_space.vocabulary_mean())
    members = members_of(backbone)
    return text_maps(similar, pool_to_grid(levels[-1], config.priors.grid), members[-1] if members else ())


def condition(
    levels: Sequence[Tensor],
    support: SupportFeatures | None,
    small: Tensor,
    backbone: Backbone,
    config: DecoderConfig,
    text: Tensor | None = None,
) -> Condition:
    """The decoder's condition for encoded queries.

    Args:
        levels: four tensors (B, C_l, h_l, w_l), the queries' features.
        support: the support side, a batch of B; None for zero-shot.
        small: (B, 3, 128, 128) in [0, 1], the query images.
        backbone: the encoder of both sides.
        config: config of the decoder.
        text: (B, V, h, w) in [0, 1] of `text_prior_maps`; None where no name is given.
    """
    low_level = bool(config.low_level_channels)
    return build_condition(levels, support, small, config.priors, low_level, text, members_of(backbone))


def query_condition(
    query: Query, support: SupportFeatures | None, backbone: Backbone, config: DecoderConfig
) -> Condition:
    """The decoder's condition for one query that is not encoded yet.

    Args:
        query: the query.
        support: the support side, a batch of one; None for zero-shot.
        backbone: the encoder of both sides.
        config: config of the decoder.

    Returns:
        A batch of one.
    """
    levels = encode(backbone, [query.resized])
    return condition(levels, support, query.small[None].to(backbone.device), backbone, config)


def decode(
    queries: Sequence[Query],
    classes: Sequence[Prototypes],
    sampling: Sampling,
    *,
    backbone: Backbone,
    decoder: Decoder,
    text_space: TextSpace | None = None,
    trace: bool = False,
    on_step: Callable[[], object] | None = None,
) -> list[list[Segmentation]]:
    """Look for every class in every query.

    The encoder, and the text space where a class has text, see each query once; the decoder sees pairs of query and
    class, some at a time (`decoder_batches`). The starting noise is the same for every pair, so that no result depends
    on what it is decoded with.

    Args:
        queries: B queries of `read_query`.
        classes: prototypes of C classes, made with this encoder and text space.
        sampling: how the decoder is sampled.
        backbone: the encoder.
        decoder: the decoder, on the encoder's device.
        text_space: the encoder that text prompts are compared in; needed where a class has text.
        trace: keep the noisy masks of the first sample.
        on_step: called after every step of every batch (`decoder_rounds` tells how many there are).

    Returns:
        B lists of C results.
    """
    device, config, noise = backbone.device, decoder.config, sampling.noise
    levels = encode(backbone, [query.resized for query in queries], batch_size=max(len(queries), 1))
    small = torch.stack([query.small for query in queries]).to(device)
    for_text = [query.for_text for query in queries if query.for_text is not None]
    dense = dense_features(text_space, for_text) if text_space is not None and for_text else None

    def condition_of(prototypes: Prototypes) -> Condition:
        support, text = prototypes.features, None
        if support is not None:
            support = change_support(support, lambda t: t.to(device).expand(len(queries), *t.shape[1:]))
        if prototypes.words is not None and text_space is not None and dense is not None:
            text = text_prior_maps(levels, dense, prototypes.words.embeddings, backbone, text_space, config)
        return condition(levels, support, small, backbone, config, text)

    found: list[list[Segmentation]] = [[] for _ in queries]
    for group in decoder_batches(len(queries), len(classes), device):
        together = Condition.cat([condition_of(classes[index]) for index in group])
        starts = noise.to(device).expand(len(together.prior), *noise.shape)
        samples = sample_ensemble(decoder, together, starts, sampling.steps, trace, on_step)
        maps = _maps(samples, together)
        pairs = [(classes[index], query) for index in group for query in range(len(queries))]
        for row, (prototypes, query) in enumerate(pairs):
            threshold = sampling.threshold(prototypes.threshold)
            found[query].append(_segmentation(queries[query], samples, maps, row, threshold, backbone.name))
    return found


def decoder_batches(queries: int, classes: int, device: torch.device) -> list[range]:
    """Which classes are decoded together for a number of queries."""
    most = min(DECODER_BATCH, CPU_DECODER_BATCH * torch.get_num_threads()) if device.type == "cpu" else DECODER_BATCH
    step = max(1, most // max(queries, 1))
    return [range(start, min(start + step, classes)) for start in range(0, classes, step)]


def decoder_rounds(queries: int, classes: int, ensemble: int, device: torch.device) -> int:
    """How many batches of samples the decoder goes through in each step for a number of queries and classes."""
    groups = decoder_batches(queries, classes, device)
    return sum(len(sample_batches(queries * len(group), ensemble, device)) for group in groups)


def _maps(samples: Ensemble, condition: Condition) -> Tensor:
    """(N, 4, 64, 64) on the CPU, the maps of `Segmentation`."""
    maps = [
        samples.mean,
        samples.variance,
        samples.error.clamp(-2, 2),
        condition.prior[:, 0] * 0.5 + 0.5,
    ]
    return torch.stack(maps, dim=1).float().cpu()


def _segmentation(
    query: Query, samples: Ensemble, maps: Tensor, row: int, threshold: float, backbone: str
) -> Segmentation:
    return Segmentation(
        image=query.pixels,
        maps=maps[row].numpy().copy(),  # a view would hold the whole batch
        quality=float(samples.iou[row]),
        threshold=threshold,
        backbone=backbone,
        trace=None if samples.trace is None else samples.trace[row].cpu().numpy(),
        trace_timesteps=() if samples.trace is None else (*samples.timesteps, -1),
    )
