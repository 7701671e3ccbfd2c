"""Pictures of the upgrade report: sampling with several annotation kinds (Fig. 7), error maps under noise (Fig. 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffup.data.base import Dataset
from diffup.data.weak import AnnotationKind
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.quality import mask_iou
from diffup.evaluation.episodes import Episode
from diffup.evaluation.evaluate import episode_generators, weaken_support
from diffup.inference import query_condition, read_query
from diffup.inputs.annotations import pair_supports
from diffup.model import DiffUp
from diffup.priors.support import encode_supports
from diffup.result import Segmentation
from diffup.utils.panels import GREY, SIGNED, Panel, strip

KINDS: tuple[AnnotationKind, ...] = ("mask", "box", "scribble", "points", "none")
"""Annotation kinds that the pictures show; several supports with masks are the sixth scenario."""

TRACE_STEPS = 8
NOISE_RATIOS = {"low": 0.5, "medium": 2.0, "high": 8.0}
"""Ratios of the noise's standard deviation to the mask's amplitude."""

_SHOTS = 5


def scenarios(episodes: Sequence[Episode], index: int) -> list[tuple[str, Episode, AnnotationKind]]:
    """List the scenarios of one query: each of `KINDS` with one support, then masks of up to five supports.

    Args:
        episodes: the episodes of a stream.
        index: index of the episode whose query is shown; further supports come from other episodes of its class.

    Returns:
        Label, episode and annotation kind of each scenario.
    """
    chosen = episodes[index]
    first = Episode(chosen.class_id, chosen.query, chosen.supports[:1])
    found: list[tuple[str, Episode, AnnotationKind]] = [(kind, first, kind) for kind in KINDS]
    same = (e for e in (chosen, *episodes) if e.class_id == chosen.class_id)
    names = [name for name in dict.fromkeys(s for e in same for s in e.supports) if name != chosen.query][:_SHOTS]
    if len(names) > 1:
        found.append((f"{len(names)} masks", Episode(chosen.class_id, chosen.query, tuple(names)), "mask"))
    return found


def segment_episode(
    model: DiffUp, data: Dataset, episode: Episode, annotation: AnnotationKind, seed: int, index: int, **options: Any
) -> Segmentation:
    """Run `DiffUp.segment` on an episode, with the same annotations and noise as in the evaluation.

    Args:
        model: the model.
        data: the data set.
        episode: the episode.
        annotation: kind of the supports' annotations, made from their masks.
        seed: random seed of the evaluation.
        index: index of the episode in its stream.
        **options: further keyword arguments of `DiffUp.segment`.
    """
    weak, noise = episode_generators(seed, index)
    annotations = [weaken_support(data, name, episode.class_id, annotation, weak) for name in episode.supports]
    supports = [data.image(name) for name in episode.supports]
    return model.segment(data.image(episode.query), supports, annotations, generator=noise, **options)


def sampling_strip(result: Segmentation, height: int = 96) -> Image.Image:
    """Draw the states x_t along the sampling, then the mask on the query.

    Args:
        result: a result with a trace.
        height: height of each picture in pixels.
    """
    trace = result.trace_picture(TRACE_STEPS + 1, height)
    overlay = strip([Panel("mask", np.asarray(result.overlay()))], height)
    joined = Image.new("RGB", (trace.width + 4 + overlay.width, trace.height), "white")
    joined.paste(trace, (0, 0))
    joined.paste(overlay, (trace.width + 4, 0))
    return joined


def trace_steps(model: DiffUp) -> int:
    """Return the number of sampling steps to show: eight, or as many as the decoder allows.

    Args:
        model: the model that is sampled.
    """
    return min(TRACE_STEPS, model.config.max_steps)


@torch.no_grad()
def error_strips(
    model: DiffUp, data: Dataset, episode: Episode, seed: int, index: int, height: int = 128
) -> list[tuple[str, Image.Image]]:
    """Draw the predicted error maps of the true mask under low, medium and high noise (Fig. 9).

    Args:
        model: a model whose decoder has the system `diffusion`.
        data: the data set.
        episode: the episode.
        seed: random seed of the evaluation.
        index: index of the episode in its stream.
        height: height of each picture in pixels.

    Returns:
        Label and picture for each noise level; a picture shows the query, the noisy mask, and the predicted and true
        error maps.
    """
    weak, generator = episode_generators(seed, index)
    masks = [weaken_support(data, name, episode.class_id, "mask", weak) for name in episode.supports]
    query = read_query(data.image(episode.query), "query", model.backbone)
    supports = pair_supports([data.image(name) for name in episode.supports], masks)
    condition = query_condition(query, encode_supports(model.backbone, supports), model.backbone, model.config)
    diffusion = Diffusion(model.config)
    target = torch.from_numpy(data.target(episode.query, episode.class_id).mask).float()[None, None]
    side = condition.prior.shape[-1]
    x0 = F.interpolate(target, (side, side), mode="bilinear", antialias=True).gt(0.5).to(model.device) * 2.0 - 1
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    strips = []
    for label, ratio in NOISE_RATIOS.items():
        t = torch.tensor([noise_step(diffusion, ratio)], device=model.device)
        x = diffusion.observe(diffusion.add_noise(x0, noise, t), condition.prior, t)
        predicted, quality = model.decoder.judge(x, condition.image, condition.prior)
        panels = [
            Panel("query", query.pixels),
            Panel(f"x_t, t = {int(t)}", GREY.paint(_map(x) / 2 + 0.5)),
            Panel("predicted error", SIGNED.paint(_map(predicted) / 2)),
            Panel("true error", SIGNED.paint(_map(x0 - x) / 2)),
        ]
        true = float(mask_iou(x, x0)[0])
        caption = f"{label} noise: IoU of x_t {true:.2f}, predicted {float(quality[0]):.2f}"
        strips.append((caption, strip(panels, height)))
    return strips


def noise_step(diffusion: Diffusion, ratio: float) -> int:
    """Find the time step whose ratio of noise to mask is nearest to a given one.

    Args:
        diffusion: the diffusion process.
        ratio: ratio of the noise's standard deviation to the mask's amplitude.
    """
    abar = diffusion.alphas_bar
    logs = 0.5 * ((1 - abar) / abar).log() - math.log(diffusion.config.signal_scale * ratio)
    return int(logs.abs().argmin())


def _map(tensor: Tensor) -> Any:
    return tensor[0, 0].float().cpu().numpy()
