"""Sampling masks by DDIM, in batches of queries and samples that bound the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from diffup.decoder.base import Decoder
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.threshold import shifted, threshold_logit
from diffup.errors import WeightsError
from diffup.priors.condition import Condition


@dataclass(frozen=True)
class Samples:
    """Sampled masks of B queries.

    Args:
        probability: (B, n, s, s) in [0, 1], n samples of each query; n = 1 for a deterministic decoder.
        error: (B, s, s), predicted error map of the final masks, averaged over the samples.
        iou: (B,) in [0, 1], predicted IoU of the final masks, averaged over the samples.
        trace: (B, steps + 1, s, s), x_t of the first sample at unit variance at each visited step, then the final
            estimate in [-1, 1]; None unless asked for.
        timesteps: visited steps, descending.
    """

    probability: Tensor
    error: Tensor
    iou: Tensor
    trace: Tensor | None
    timesteps: tuple[int, ...]


BATCH = 64
"""Greatest number of samples that are computed together."""

CPU_BATCH = 16
"""The same per thread of a CPU; more would not fit the caches."""


@dataclass(frozen=True)
class Ensemble:
    """Mean and variance over all samples of B queries.

    Args:
        mean: (B, s, s) in [0, 1], mean probability.
        variance: (B, s, s), variance of the probability over the samples.
        error: (B, s, s), predicted error map of the final masks, averaged over the samples.
        iou: (B,) in [0, 1], predicted IoU of the final masks, averaged over the samples.
        trace: (B, steps + 1, s, s), x_t of the first sample at unit variance at each visited step, then the final
            estimate in [-1, 1]; None unless asked for.
        timesteps: visited steps, descending.
        shift: (B,), what is added to the logits of the mean so that each mask's own threshold lies at 1/2; None without
            a `DecoderConfig.temperature`.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor
    iou: Tensor
    trace: Tensor | None
    timesteps: tuple[int, ...]
    shift: Tensor | None = None

    @functools.cached_property
    def probability(self) -> Tensor:
        """(B, s, s) in [0, 1], the probability that users see: the shifted mean."""
        return self.mean if self.shift is None else shifted(self.mean, self.shift)

    @property
    def shown_error(self) -> Tensor:
        """(B, s, s) in [-2, 2], predicted error of the mask `2 probability - 1`: that of the mean, shifted."""
        error = self.error.clamp(-2, 2)
        if self.shift is None:
            return error
        corrected = shifted((self.mean + error / 2).clamp(0, 1), self.shift)
        return 2 * (corrected - self.probability)

    def before_shift(self, thresholds: Tensor | float) -> Tensor:
        """The thresholds of the mean, (B,), that divide it as given thresholds divide `probability`.

        Args:
            thresholds: a threshold in (0, 1) for all masks, or (B,) one of each.
        """
        each = torch.as_tensor(thresholds, dtype=torch.float32, device=self.mean.device).expand(self.mean.shape[0])
        return each if self.shift is None else shifted(each, -self.shift)


def draw_noise(condition: Condition, ensemble: int, generator: torch.Generator) -> Tensor:
    """Draw the starting noise of every query and sample, on the generator's device, so that a seed gives one result.

    Args:
        condition: condition of B queries.
        ensemble: number of samples of each query.
        generator: source of the noise.

    Returns:
        (B, ensemble, s, s), standard normal, on the condition's device.
    """
    batch, _, side, _ = condition.prior.shape
    noise = torch.randn(batch, ensemble, side, side, generator=generator, device=generator.device)
    return noise.to(condition.prior.device)


@torch.no_grad()
def sample(
    decoder: Decoder,
    condition: Condition,
    noise: Tensor,
    steps: int,
    trace: bool = False,
    on_step: Callable[[], object] | None = None,
) -> Samples:
    """Sample masks by DDIM from given noise.

    Args:
        decoder: trained decoder.
        condition: condition of B queries.
        noise: (B, n, s, s), starting noise of n samples of each query.
        steps: number of DDIM steps, 1 to T.
        trace: whether to keep x_t of the first sample at every step.
        on_step: function without arguments to call after every step.

    Raises:
        ConfigError: `steps` is out of range.
        WeightsError: the decoder's output is not finite.
    """
    timesteps = Diffusion(decoder.config).schedule(steps)
    if decoder.config.deterministic:
        noise = noise[:, :1]
    batch, ensemble = noise.shape[:2]
    repeated = condition.repeat(ensemble)
    seen: list[Tensor] = []

    def visit(x: Tensor) -> None:
        seen.append(x[:batch, 0])
        if on_step is not None:
            on_step()

    mask = denoise(decoder, repeated, rearrange(noise, "b n h w -> (n b) 1 h w"), timesteps, visit)
    error, iou = decoder.judge(mask, repeated.image, repeated.prior)
    # A graph that is exported cannot branch on values.
    if not torch.compiler.is_exporting() and not all(bool(part.isfinite().all()) for part in (mask, error, iou)):
        raise WeightsError(
            "the decoder's answer holds NaN or infinity: its weights are too large, or of another precision than the "
            "device computes well in; take other weights, or float32"
        )
    seen.append(mask[:batch, 0])
    return Samples(
        probability=_per_query(mask[:, 0] * 0.5 + 0.5, ensemble),
        error=_per_query(error[:, 0].float(), ensemble).mean(dim=1),
        iou=_per_query(iou.float(), ensemble).mean(dim=1),
        trace=torch.stack(seen, dim=1) if trace else None,
        timesteps=tuple(timesteps),
    )


@torch.no_grad()
def denoise(
    decoder: Decoder,
    condition: Condition,
    y: Tensor,
    timesteps: Sequence[int],
    visit: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Follow DDIM through given steps to the clean mask.

    Args:
        decoder: trained decoder.
        condition: condition of each row.
        y: (B, 1, s, s), y_t at the first of the steps.
        timesteps: steps to visit, descending, each in [0, T).
        visit: function to call after every step with the x_t that the network saw, (B, 1, s, s).

    Returns:
        (B, 1, s, s) in [-1, 1], the estimate at the last step.
    """
    diffusion = Diffusion(decoder.config)
    mask = torch.zeros_like(y)
    for now, following in pairwise([*timesteps, -1]):
        times = torch.full(y.shape[:1], now, device=y.device)
        x = diffusion.observe(y, condition.prior, times)
        mask = diffusion.estimate(decoder(x, times / diffusion.timesteps, condition).output.float(), y, times)
        y = diffusion.step(mask, y, now, following)
        if visit is not None:
            visit(x)
    return mask


def sample_batches(queries: int, ensemble: int, device: torch.device) -> list[tuple[slice, slice]]:
    """Divide the samples of a batch of queries into batches of at most `BATCH`.

    Args:
        queries: number of queries.
        ensemble: number of samples of each query.
        device: device that computes them.

    Returns:
        Pairs of slices: queries, and samples of each of them.
    """
    if torch.compiler.is_exporting():  # the number of queries varies
        return [(slice(None), slice(start, start + CPU_BATCH)) for start in range(0, ensemble, CPU_BATCH)]
    most = min(BATCH, CPU_BATCH * torch.get_num_threads()) if device.type == "cpu" else BATCH
    rows = [slice(start, min(start + most, queries)) for start in range(0, queries, most)]
    each = max(1, most // max(1, min(queries, most)))
    return [(row, slice(start, min(start + each, ensemble))) for row in rows for start in range(0, ensemble, each)]


def sample_ensemble(
    decoder: Decoder,
    condition: Condition,
    noise: Tensor,
    steps: int,
    trace: bool = False,
    on_step: Callable[[], object] | None = None,
) -> Ensemble:
    """Sample masks by DDIM and average them, in batches whose memory does not grow with samples or queries.

    Args:
        decoder: trained decoder.
        condition: condition of B queries.
        noise: (B, n, s, s), starting noise of n samples of each query; a deterministic decoder uses only the first.
        steps: number of DDIM steps, 1 to T.
        trace: whether to keep x_t of the first sample at every step.
        on_step: function without arguments to call after every step of every batch (`sample_batches`).

    Raises:
        ConfigError: `steps` is out of range.
        WeightsError: the decoder's output is not finite.
    """
    if decoder.config.deterministic:
        noise = noise[:, :1]
    whole: list[Ensemble] = []
    for rows, members in sample_batches(noise.shape[0], noise.shape[1], noise.device):
        first = members.start == 0
        some = condition.rows(rows)
        samples = sample(decoder, some, noise[rows, members], steps, trace and first, on_step)
        if first:
            whole.append(_ensemble(samples))
        else:
            whole[-1] = _joined(whole[-1], members.start, _ensemble(samples), members.stop - members.start)
    traces = [part.trace for part in whole if part.trace is not None]
    mean, temperature = torch.cat([part.mean for part in whole]), decoder.config.temperature
    return Ensemble(
        mean=mean,
        variance=torch.cat([part.variance for part in whole]),
        error=torch.cat([part.error for part in whole]),
        iou=torch.cat([part.iou for part in whole]),
        trace=torch.cat(traces) if traces else None,
        timesteps=whole[0].timesteps,
        shift=-threshold_logit(mean, temperature) if temperature else None,
    )


def _ensemble(samples: Samples) -> Ensemble:
    """Mean and variance over the samples of one batch."""
    return Ensemble(
        mean=samples.probability.mean(dim=1),
        variance=samples.probability.var(dim=1, correction=0),
        error=samples.error,
        iou=samples.iou,
        trace=samples.trace,
        timesteps=samples.timesteps,
    )


def _joined(a: Ensemble, count: int, b: Ensemble, more: int) -> Ensemble:
    """Merge ensembles of `count` and of `more` samples (parallel variance; Chan, Golub and LeVeque, 1983)."""
    share = more / (count + more)
    apart = b.mean - a.mean
    return Ensemble(
        mean=a.mean + share * apart,
        variance=a.variance + share * (b.variance - a.variance) + share * (1 - share) * apart.square(),
        error=a.error + share * (b.error - a.error),
        iou=a.iou + share * (b.iou - a.iou),
        trace=a.trace,
        timesteps=a.timesteps,
    )


def _per_query(values: Tensor, ensemble: int) -> Tensor:
    """Undo `Condition.repeat`: (n * B, ...) -> (B, n, ...)."""
    return rearrange(values, "(n b) ... -> b n ...", n=ensemble)
