"""Sampling masks: DDIM along its own list of steps, an ensemble of samples as one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffup.decoder.base import Decoder
from diffup.decoder.diffusion import Diffusion
from diffup.errors import WeightsError
from diffup.priors.condition import Condition


@dataclass(frozen=True)
class Samples:
    """Sampled masks of B queries.

    Args:
        probability: (B, n, s, s) in [0, 1], n samples of each query; one of a decoder without randomness.
        error: (B, s, s), predicted error map of the final masks, averaged over the samples.
        iou: (B,) in [0, 1], predicted IoU of the final masks, averaged over the samples.
        trace: (B, steps + 1, s, s), the first sample's x_t at unit scale at each visited step, then the final
            estimate; None unless asked for.
        timesteps: the visited steps.
    """

    probability: Tensor
    error: Tensor
    iou: Tensor
    trace: Tensor | None
    timesteps: tuple[int, ...]


def draw_noise(condition: Condition, ensemble: int, generator: torch.Generator) -> Tensor:
    """Starting noise of every query and sample, drawn on the generator's device so that a seed means one result.

    Returns:
        (B, ensemble, s, s), standard normal, on the condition's device.
    """
    batch, _, side, _ = condition.prior.shape
    noise = torch.randn(batch, ensemble, side, side, generator=generator, device=generator.device)
    return noise.to(condition.prior.device)


@torch.no_grad()
def sample(
    denoiser: Decoder,
    diffusion: Diffusion,
    condition: Condition,
    noise: Tensor,
    steps: int,
    trace: bool = False,
    on_step: Callable[[], object] | None = None,
) -> Samples:
    """Sample masks by DDIM from given noise.

    Args:
        denoiser: the trained network.
        diffusion: its process.
        condition: of B queries.
        noise: (B, n, s, s) of `draw_noise`.
        steps: number of steps, 1 to T.
        trace: keep x_t of the first sample.
        on_step: called after every step.

    Raises:
        ConfigError: `steps` is out of range.
        WeightsError: the decoder's answer is not finite.
    """
    timesteps = diffusion.schedule(steps)
    if denoiser.config.deterministic:
        noise = noise[:, :1]
    batch, ensemble = noise.shape[:2]
    repeated = condition.repeat(ensemble)
    y = noise.transpose(0, 1).reshape(batch * ensemble, 1, *noise.shape[2:])
    seen: list[Tensor] = []
    mask = torch.zeros_like(y)
    for index, t in enumerate(timesteps):
        now = torch.full((len(y),), t, device=y.device)
        x = diffusion.observe(y, repeated.prior, now)
        seen.append(x[:batch, 0])
        mask = diffusion.estimate(denoiser(x, now / diffusion.timesteps, repeated).output.float(), y, now)
        y = diffusion.step(mask, y, t, timesteps[index + 1] if index + 1 < steps else -1)
        if on_step is not None:
            on_step()
    error, iou = denoiser.judge(mask, repeated.image)
    if not all(bool(part.isfinite().all()) for part in (mask, error, iou)):
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


def _per_query(values: Tensor, ensemble: int) -> Tensor:
    """Undo `Condition.repeat`: (n * B, ...) -> (B, n, ...)."""
    return values.reshape(ensemble, -1, *values.shape[1:]).transpose(0, 1)
