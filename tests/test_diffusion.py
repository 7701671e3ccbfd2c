"""The diffusion process: its schedule, its shift, and its agreement with diffusers' DDIM."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fakes import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion
from diffup.errors import ConfigError


def process(**fields: object) -> Diffusion:
    """The paper's process, with any fields changed."""
    paper = {"shift": "quadratic", "signal_scale": 1.0, "prediction": "epsilon", "loss": "mse"}
    return Diffusion(DecoderConfig(**(paper | fields)))


def binary_masks(batch: int, seed: int = 0) -> Tensor:
    return noise(batch, 1, 16, 16, seed=seed).sign()


# --- pinned numbers --------------------------------------------------------------------------------------------------


def test_the_noise_schedule_is_linear_and_scaled_by_1000_over_t() -> None:
    diffusion = process()
    betas = torch.linspace(4e-4, 0.08, 250, dtype=torch.float64)
    assert torch.allclose(diffusion.alphas_bar, (1 - betas).cumprod(0), rtol=1e-12)
    assert float(diffusion.alphas_bar[-1].sqrt()) == pytest.approx(0.0057, abs=1e-4)
    unscaled = (1 - torch.linspace(1e-4, 0.02, 250, dtype=torch.float64)).prod().sqrt()
    assert float(unscaled) == pytest.approx(0.28, abs=0.01)  # what goes wrong without the scaling


def test_the_quadratic_shift_is_a_quarter_at_most_and_gone_at_both_ends() -> None:
    shifts = process().shifts
    assert float(shifts.max()) == pytest.approx(0.25, abs=1e-4) and int(shifts.argmax()) == 91
    assert float(shifts[0]) < 1e-3 and float(shifts[-1]) == pytest.approx(0.0057, abs=1e-4)
    assert float(process(shift="prior").shifts[-1]) == pytest.approx(1, abs=0.01)
    assert not process(shift="none").shifts.any()


def test_the_schedule_trails() -> None:
    assert process().schedule(50) == list(range(249, 3, -5))
    assert process().schedule(1) == [249]
    assert process().schedule(250) == list(range(249, -1, -1))


@given(st.integers(21, 400), st.data())
@settings(max_examples=60, deadline=None)
def test_any_schedule_starts_at_the_end_and_falls(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    schedule = process(timesteps=timesteps, steps=1).schedule(steps)
    assert len(schedule) == steps and schedule[0] == timesteps - 1 and schedule[-1] >= 0
    gaps = [a - b for a, b in itertools.pairwise(schedule)]
    assert all(gap >= 1 for gap in gaps) and (not gaps or max(gaps) - min(gaps) <= 1)


@pytest.mark.parametrize("steps", [0, -1, 251])
def test_too_few_or_too_many_steps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"steps={steps}: choose 1 to 250"):
        process().schedule(steps)


# --- the forward process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.2])
@pytest.mark.parametrize("t", [0, 60, 249])
def test_add_noise_has_the_marginal_of_the_process(t: int, scale: float) -> None:
    diffusion = process(signal_scale=scale)
    mask = binary_masks(1).expand(4000, 1, 16, 16)
    y = diffusion.add_noise(mask, noise(4000, 1, 16, 16, seed=1), torch.full((4000,), t))
    abar = float(diffusion.alphas_bar[t])
    assert torch.allclose(y.mean(dim=0), math.sqrt(abar) * scale * mask[0], atol=0.1 * math.sqrt(1 - abar))
    assert float(y.var(dim=0).mean()) == pytest.approx(1 - abar, rel=0.01)


def test_many_small_steps_of_the_shifted_chain_are_one_large_one() -> None:
    """Eq. 13 step by step, q(x_t | x_t-1), has the marginal that `add_noise` and `observe` jump to."""
    diffusion = process()
    abar, shift = diffusion.alphas_bar, diffusion.shifts
    alphas = abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    before = torch.cat([torch.zeros(1, dtype=torch.float64), shift[:-1]])
    x0, prior = -1.0, 0.6
    mean, variance = torch.tensor(x0, dtype=torch.float64), 0.0
    for t in range(120):
        mean = alphas[t].sqrt() * mean + (shift[t] - alphas[t].sqrt() * before[t]) * prior
        variance = alphas[t] * variance + 1 - alphas[t]
    assert float(mean) == pytest.approx(float(abar[119].sqrt() * x0 + shift[119] * prior), abs=1e-12)
    assert float(variance) == pytest.approx(float(1 - abar[119]), abs=1e-12)


@pytest.mark.parametrize("t", [1, 50, 120, 249])
def test_the_shifted_posterior_is_the_ordinary_one_in_y(t: int) -> None:
    """q(x_t-1 | x_t, x0) by Bayes' rule, against the DDPM posterior of y = x - k P plus the shift at t - 1."""
    diffusion = process()
    abar, before = float(diffusion.alphas_bar[t]), float(diffusion.alphas_bar[t - 1])
    k, k_before = float(diffusion.shifts[t]), float(diffusion.shifts[t - 1])
    alpha, beta = abar / before, 1 - abar / before
    x0, prior, x = 1.0, -0.4, 0.3
    drift = (k - math.sqrt(alpha) * k_before) * prior
    precision = 1 / (1 - before) + alpha / beta
    mean = (math.sqrt(before) * x0 + k_before * prior) / (1 - before) + math.sqrt(alpha) * (x - drift) / beta
    y = x - k * prior
    ordinary = (math.sqrt(before) * beta * x0 + math.sqrt(alpha) * (1 - before) * y) / (1 - abar)
    assert mean / precision == pytest.approx(ordinary + k_before * prior, abs=1e-12)
    assert 1 / precision == pytest.approx(beta * (1 - before) / (1 - abar), abs=1e-12)


@pytest.mark.parametrize("shift", ["none", "prior", "quadratic"])
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_observe_adds_the_shift_and_brings_x_to_unit_variance(shift: str, scale: float) -> None:
    diffusion = process(shift=shift, signal_scale=scale)
    mask, eps, prior = binary_masks(2), noise(2, 1, 16, 16, seed=1), noise(2, 1, 16, 16, seed=2).tanh()
    t = torch.tensor([3, 200])
    x = diffusion.observe(diffusion.add_noise(mask, eps, t), prior, t)
    for b in range(2):
        abar, k = float(diffusion.alphas_bar[t[b]]), float(diffusion.shifts[t[b]])
        plain = math.sqrt(abar) * scale * mask[b] + k * scale * prior[b] + math.sqrt(1 - abar) * eps[b]
        assert torch.allclose(x[b], plain / math.sqrt(abar * scale**2 + 1 - abar), atol=1e-5)


def test_the_clean_mask_is_seen_as_it_is() -> None:
    for scale in (1.0, 0.2):
        diffusion = process(signal_scale=scale, beta_start=1e-9, shift="none")
        mask, t = binary_masks(1), torch.tensor([0])
        x = diffusion.observe(diffusion.add_noise(mask, torch.zeros_like(mask), t), mask, t)
        assert torch.allclose(x, mask, atol=1e-4)


# --- predictions -----------------------------------------------------------------------------------------------------


@given(st.sampled_from(["epsilon", "x0", "v"]), st.sampled_from([1.0, 0.3]), st.integers(0, 249), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_estimate_inverts_the_target(prediction: str, scale: float, t: int, seed: int) -> None:
    diffusion = process(prediction=prediction, signal_scale=scale)
    mask, eps, steps = noise(2, 1, 8, 8, seed=seed).clamp(-1, 1), noise(2, 1, 8, 8, seed=seed + 1), torch.full((2,), t)
    y = diffusion.add_noise(mask, eps, steps)
    estimate = diffusion.estimate(diffusion.target(mask, eps, steps), y, steps)
    rounding = 1e-6 / (scale * float(diffusion.alphas_bar[t].sqrt())) if prediction == "epsilon" else 1e-6
    assert torch.allclose(estimate, mask, atol=5 * rounding + 1e-5)


def test_with_bce_the_output_is_logits() -> None:
    diffusion = process(prediction="x0", loss="bce_dice")
    logits, t = torch.tensor([-20.0, -1.0, 0.0, 2.0, 20.0]).view(1, 1, 1, 5), torch.tensor([7])
    assert torch.allclose(diffusion.estimate(logits, logits, t), 2 * logits.sigmoid() - 1, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_estimates_stay_in_range(prediction: str) -> None:
    diffusion = process(prediction=prediction)
    output, y, t = 50 * noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1), torch.tensor([10, 249])
    assert diffusion.estimate(output, y, t).abs().max() <= 1


# --- the reverse process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("previous", [200, 17, 0])
def test_a_step_with_the_true_mask_stays_on_the_trajectory(previous: int) -> None:
    diffusion = process(signal_scale=0.2)
    mask, eps = binary_masks(2), noise(2, 1, 16, 16, seed=1)
    y = diffusion.add_noise(mask, eps, torch.tensor([249, 249]))
    expected = diffusion.add_noise(mask, eps, torch.tensor([previous, previous]))
    assert torch.allclose(diffusion.step(mask, y, 249, previous), expected, atol=1e-5)


def test_the_last_step_gives_the_estimate() -> None:
    diffusion = process(signal_scale=0.2)
    mask = binary_masks(1)
    assert torch.allclose(diffusion.step(mask, noise(1, 1, 16, 16), 4, -1), 0.2 * mask, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_whole_loop_is_diffusers_ddim(prediction: str) -> None:
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    scheduler = ddim.DDIMScheduler(
        num_train_timesteps=250,
        beta_start=4e-4,
        beta_end=0.08,
        beta_schedule="linear",
        prediction_type={"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[prediction],
        timestep_spacing="trailing",
        clip_sample=True,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(50)
    diffusion = process(shift="none", prediction=prediction)
    assert scheduler.timesteps.tolist() == diffusion.schedule(50)

    pattern = noise(2, 1, 16, 16, seed=5)

    def network(x: Tensor, t: int) -> Tensor:
        """Something smooth that depends on its input and the step."""
        return torch.tanh(0.8 * x + 0.3 * pattern) + 0.2 * math.sin(t)

    ours = theirs = noise(2, 1, 16, 16)
    timesteps = diffusion.schedule(50)
    for t, previous in zip(timesteps, [*timesteps[1:], -1], strict=True):
        now = torch.full((2,), t)
        assert torch.allclose(
            diffusion.observe(ours, pattern, now), ours, atol=1e-6
        )  # without shift, the network sees y itself
        mask = diffusion.estimate(network(ours, t), ours, now)
        ours = diffusion.step(mask, ours, t, previous)
        # Ours goes on from the clipped estimate, which diffusers does on request.
        theirs = scheduler.step(network(theirs, t), t, theirs, use_clipped_model_output=True).prev_sample
        assert torch.allclose(ours, theirs, atol=2e-4), f"they part at t = {t}"
    assert ours.std() > 0.1 and ours.abs().max() <= 1
