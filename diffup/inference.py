"""Inference in four steps: read the query image, encode it, build the decoder's condition, decode the mask.

Functions take the parts they need (encoder, decoder, text space) instead of a `DiffUp`, so that evaluation, labelling
and servers call the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffup.backbones import Backbone, members_of
from diffup.backbones.encode import encode
from diffup.correct import kept_levels
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.options import Sampling
from diffup.decoder.quality import (
    calibrated_presence,
    calibrated_quality,
    calibrated_score,
    marked_share,
    quality_estimates,
)
from diffup.decoder.sampling import Ensemble, sample_batches, sample_ensemble
from diffup.inputs.images import ImageLike, fetch, read_image, resize_image, to_bytes
from diffup.priors import build_condition
from diffup.priors.condition import EDGE_SIDE, Condition, assemble, class_maps
from diffup.priors.features import SupportFeatures
from diffup.priors.level import pool_to_grid
from diffup.priors.prepared import prepare_query
from diffup.priors.text import text_affinities, text_maps, text_similarity
from diffup.prototypes import Prototypes
from diffup.result import Segmentation
from diffup.text.space import TextSpace, dense_features

DECODER_BATCH = 32
"""Maximum number of (query, class) pairs decoded in one batch; one class with more queries is still one batch.

The number of samples in a pass of the decoder has a limit of its own (`diffup.decoder.sampling.BATCH`).
"""

CPU_DECODER_BATCH = 8
"""The same limit per CPU thread: larger batches do not fit in the processor's cache and are slower."""

NEGATIVE_SHARE = 0.5
"""Share of the log-odds by which its negatives exceed their threshold that a class loses (`docs/experiments.md`)."""

_EPS = 1e-6  # distance from 0 and 1 to which probabilities are clamped, so that their log-odds are finite


@dataclass(frozen=True, eq=False)
class Query:
    """A query image, resized for the encoder.

    Attributes:
        pixels: (H, W, 3) uint8, the image at its own size, as results show it.
        resized: (3, h, w) in [0, 1], the image at the encoder's input size.
        small: (3, 128, 128) in [0, 1], the image at the size at which edges are detected.
        for_text: (3, h, w) in [0, 1], the image at the text space's input size; None if no class has a text prompt.
    """

    pixels: npt.NDArray[np.uint8]
    resized: Tensor
    small: Tensor
    for_text: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read_query(source: ImageLike, argument: str, backbone: Backbone, text_space: TextSpace | None = None) -> Query:
    """Read a query image and resize it for the encoder.

    Args:
        source: the image: a path, a URL that fsspec opens, the bytes of a file, a PIL image, numpy array (H, W, 3)
            uint8 or torch tensor (3, H, W).
        argument: name of the image in error messages, such as "query".
        backbone: the image encoder.
        text_space: the encoder that embeds text prompts; None if no class has one.

    Raises:
        ImageError: the image is missing, damaged, too large, or of an unknown layout.
    """
    image = read_image(fetch(source, argument), argument)
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
    affinities: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute prior maps of a class from its text prompts, one map for each prompt.

    Args:
        levels: four tensors (B, C_l, h_l, w_l), the queries' features.
        dense: (B, C, h, w), the queries' dense features in the text space.
        embeddings: (V, C), embeddings of the text prompts.
        backbone: the encoder that computed `levels`.
        text_space: the encoder that computed `dense` and `embeddings`.
        config: config of the decoder.
        affinities: precomputed result of `query_text_affinities`, shared by all classes; None computes it.

    Returns:
        (B, V, h, w) in [-2, 2].
    """
    similar = text_similarity(dense, embeddings.to(dense.device), text_space.vocabulary_mean())
    last, widths = _text_level(levels, backbone, config)
    return text_maps(similar, last, widths, affinities)


def query_text_affinities(levels: Sequence[Tensor], backbone: Backbone, config: DecoderConfig) -> list[Tensor]:
    """Affinities of the queries that enhance the text prompts' maps of any class.

    Args:
        levels: four tensors (B, C_l, h_l, w_l), the queries' features.
        backbone: the encoder that computed `levels`.
        config: config of the decoder.
    """
    return text_affinities(*_text_level(levels, backbone, config))


def _text_level(levels: Sequence[Tensor], backbone: Backbone, config: DecoderConfig) -> tuple[Tensor, tuple[int, ...]]:
    """The features that text maps are enhanced by, and the channels of each member of a joint backbone."""
    members = members_of(backbone)
    return pool_to_grid(levels[-1], config.priors.grid), members[-1] if members else ()


def condition(
    levels: Sequence[Tensor],
    support: SupportFeatures | None,
    small: Tensor,
    backbone: Backbone,
    config: DecoderConfig,
    text: Tensor | None = None,
) -> Condition:
    """Build the decoder's condition for encoded queries.

    Args:
        levels: four tensors (B, C_l, h_l, w_l), the queries' features.
        support: features of the supports, a batch of B; None for zero-shot.
        small: (B, 3, 128, 128) in [0, 1], the query images.
        backbone: the encoder that computed the features of queries and supports.
        config: config of the decoder.
        text: (B, V, h, w), prior maps of the text prompts from `text_prior_maps`; None without text.
    """
    low_level = bool(config.low_level_channels)
    return build_condition(levels, support, small, config.priors, low_level, text, members_of(backbone))


def query_condition(
    query: Query, support: SupportFeatures | None, backbone: Backbone, config: DecoderConfig
) -> Condition:
    """Encode one query and build the decoder's condition for it.

    Args:
        query: the query image, read by `read_query`.
        support: features of the supports, a batch of one; None for zero-shot.
        backbone: the encoder that computed the support features, and encodes the query.
        config: config of the decoder.

    Returns:
        The condition, a batch of one.
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
    keep_levels: bool = False,
    on_step: Callable[[], object] | None = None,
) -> list[list[Segmentation]]:
    """Segment every class in every query.

    Negatives of a class are segmented like a class, and what is more likely them than it is taken from it (`opposed`).

    Each query is encoded once, and what does not depend on the class is computed once. The decoder then samples the
    masks of (query, class) pairs in batches (`decoder_batches`). The starting noise is the same for every pair, so a
    result does not depend on the other pairs in its batch.

    Args:
        queries: the images to segment, read by `read_query`; B is their number.
        classes: prototypes of C classes, made with this encoder and text space.
        sampling: sampling options: steps, ensemble, thresholds, starting noise and refinement.
        backbone: the image encoder.
        decoder: the decoder, on the encoder's device.
        text_space: the encoder that embeds text prompts; needed if a class has one.
        trace: whether to record the noisy masks of the first sample.
        keep_levels: whether results keep the features of their query, so that they can be corrected.
        on_step: called after every sampling step of every batch; `decoder_rounds` gives the number of batches.

    Returns:
        B lists of C results, in the order of `queries` and `classes`.
    """
    device, config, noise = backbone.device, decoder.config, sampling.noise
    levels = encode(backbone, [query.resized for query in queries], batch_size=max(len(queries), 1))
    small = torch.stack([query.small for query in queries]).to(device)
    for_text = [query.for_text for query in queries if query.for_text is not None]
    dense = dense_features(text_space, for_text) if text_space is not None and for_text else None
    affinities = None if dense is None else query_text_affinities(levels, backbone, config)
    members = members_of(backbone)
    prepared = prepare_query(levels, small, config.priors, bool(config.low_level_channels), members)

    def condition_of(prototypes: Prototypes) -> Condition:
        support, text = prototypes.prepared(config.priors, members, device), None
        if support is not None:
            support = support.each(lambda t: t.expand(len(queries), *t.shape[1:]))
        if prototypes.text_prompt is not None and text_space is not None and dense is not None:
            embeddings = prototypes.text_prompt.embeddings
            text = text_prior_maps(levels, dense, embeddings, backbone, text_space, config, affinities)
        return assemble(class_maps(prepared, support, config.priors, text), config.priors)

    kept = [kept_levels(levels, row) if keep_levels else () for row in range(len(queries))]
    found: list[list[Segmentation]] = [[] for _ in queries]
    everything = [*classes, *(item.negative for item in classes if item.negative is not None)]
    for group in decoder_batches(len(queries), len(everything), device):
        together = Condition.cat([condition_of(everything[index]) for index in group])
        starts = noise.to(device).expand(len(together.prior), *noise.shape)
        samples = sample_ensemble(decoder, together, starts, sampling.steps, trace, on_step)
        maps = result_maps(samples, together)
        pairs = [(everything[index], query) for index in group for query in range(len(queries))]
        thresholds = [sampling.threshold(prototypes.threshold) for prototypes, _ in pairs]
        judged = trust(samples, together.evidence, torch.tensor(thresholds, device=device), config)
        for row, ((_, query), threshold) in enumerate(zip(pairs, thresholds, strict=True)):
            found[query].append(
                Segmentation(
                    image=queries[query].pixels,
                    maps=maps[row].numpy().copy(),  # a view would hold the whole batch
                    quality=float(judged.quality[row]),
                    threshold=threshold,
                    backbone=backbone.name,
                    presence=float(judged.presence[row]),
                    score=float(judged.score[row]),
                    min_presence=sampling.min_presence,
                    refine=sampling.refine,
                    trace=None if samples.trace is None else samples.trace[row].cpu().numpy(),
                    trace_timesteps=() if samples.trace is None else (*samples.timesteps, -1),
                    levels=kept[query],
                )
            )
    return [opposed(results, classes) for results in found]


def opposed(results: Sequence[Segmentation], classes: Sequence[Prototypes]) -> list[Segmentation]:
    """Take from each class what is more likely its negatives.

    At every position a class loses `NEGATIVE_SHARE` of the log-odds by which its negatives exceed their threshold, so
    that it remains in the mask where it exceeds its own by more than that. Its presence loses the log-odds by which
    that of the negatives is higher. Where nothing is left of its mask, quality and score are 0.

    Args:
        results: results of C classes and then of the negatives of those that have any, in the same query.
        classes: the C classes.

    Returns:
        The results of the classes.
    """
    others = iter(results[len(classes) :])
    return [
        own if item.negative is None else _opposed(own, next(others))
        for own, item in zip(results, classes, strict=False)
    ]


def _opposed(own: Segmentation, other: Segmentation) -> Segmentation:
    logits, rival = (torch.from_numpy(result.maps[0]).logit(eps=_EPS) for result in (own, other))
    presence, rivals = _logit(own.presence), _logit(other.presence)
    lead = NEGATIVE_SHARE * (rival - _logit(other.threshold)).clamp_min(0)
    maps = own.maps.copy()
    maps[0] = np.where(lead > 0, torch.sigmoid(logits - lead), maps[0])
    left = float(torch.sigmoid(presence - (rivals - presence))) if rivals > presence else own.presence
    marked = bool((maps[0] > own.threshold).any())
    score = own.score * left / max(own.presence, _EPS)
    return replace(own, maps=maps, presence=left, quality=own.quality * marked, score=score * marked)


def _logit(probability: float) -> Tensor:
    return torch.tensor(probability).logit(eps=_EPS)


def decoder_batches(queries: int, classes: int, device: torch.device) -> list[range]:
    """Split the classes into ranges that are decoded together.

    Args:
        queries: number of queries.
        classes: number of classes.
        device: device of the decoder.
    """
    most = min(DECODER_BATCH, CPU_DECODER_BATCH * torch.get_num_threads()) if device.type == "cpu" else DECODER_BATCH
    step = max(1, most // max(queries, 1))
    return [range(start, min(start + step, classes)) for start in range(0, classes, step)]


def decoder_rounds(queries: int, classes: int, ensemble: int, device: torch.device) -> int:
    """Count the batches of samples that the decoder computes in each sampling step.

    Args:
        queries: number of queries.
        classes: number of classes.
        ensemble: number of samples averaged for each pair of query and class.
        device: device of the decoder.
    """
    groups = decoder_batches(queries, classes, device)
    return sum(len(sample_batches(queries * len(group), ensemble, device)) for group in groups)


def result_maps(samples: Ensemble, condition: Condition) -> Tensor:
    """Stack the maps of N results in the order of `Segmentation.maps`: (N, 4, 64, 64) on the CPU.

    Args:
        samples: means over the samples of N masks.
        condition: their condition.
    """
    maps = [
        samples.probability,
        samples.variance,
        samples.shown_error,
        condition.prior[:, 0] * 0.5 + 0.5,
    ]
    return torch.stack(maps, dim=1).float().cpu()


@dataclass(frozen=True)
class Trust:
    """How far the masks of B queries can be trusted.

    Attributes:
        presence: (B,) in [0, 1], probability that the query shows the class.
        quality: (B,) in [0, 1], expected IoU of the mask if it does; 0 for an empty mask.
        score: (B,) in [0, 1], probability that it does and the IoU of the mask is above 1/2.
    """

    presence: Tensor
    quality: Tensor
    score: Tensor


def trust(samples: Ensemble, evidence: Tensor, thresholds: Tensor | float, config: DecoderConfig) -> Trust:
    """Judge the masks of an ensemble by the decoder's calibrated estimates.

    Args:
        samples: means over the samples of B queries.
        evidence: (B, 5), `Condition.evidence`.
        thresholds: probability in (0, 1) above which a pixel is in the mask, one for all or (B,).
        config: config of the decoder.

    Returns:
        What is to be thought of the masks, on the CPU.
    """
    evidence, mean, thresholds = evidence.float(), samples.mean.float(), samples.before_shift(thresholds)
    presence = calibrated_presence(evidence, config.presence_calibration)
    estimates = quality_estimates(mean, samples.iou.float(), thresholds)
    quality = calibrated_quality(estimates, evidence, config.quality_calibration)
    quality = torch.where(marked_share(mean, thresholds) > 0, quality, 0.0)
    score = calibrated_score(quality, presence, config.score_calibration)
    return Trust(presence.cpu(), quality.cpu(), score.cpu())
