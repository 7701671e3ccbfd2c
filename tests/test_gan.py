"""The StyleGAN2-style baseline (Table 8): its convolution, its losses, and runs with a discriminator."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fakes import noise, random_condition, random_decoder, tiny_config
from runs import CONFIG, DECODER_CONFIG, assert_identical, state, trainer_of
from torch import Tensor, nn

from diffup.decoder.baselines.gan import (
    LATENT,
    Discriminator,
    ModulatedConv,
    StyledConv,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from diffup.decoder.weights import load_decoder
from diffup.errors import TrainingError
from diffup.priors.condition import Condition
from diffup.training.adversary import PENALTY_EVERY, Adversary
from diffup.training.log import LOG
from diffup.training.prepare import Banks
from diffup.training.processes import Processes

ALONE = Processes(torch.device("cpu"))
GAN = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER_CONFIG, system="gan"))


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_the_modulated_convolution_is_stylegan2s(size: int, demodulate: bool) -> None:
    """Equations 1 and 3 of StyleGAN2, with weights made for every sample."""
    layer = ModulatedConv(5, 7, size, demodulate)
    h, latent = noise(3, 5, 8, 8), noise(3, LATENT, seed=1)
    with torch.no_grad():
        layer.bias.copy_(noise(7, seed=2))
        answer, styles = layer(h, latent), layer.style(latent)
        for index in range(3):
            weight = layer.weight * styles[index][None, :, None, None]
            if demodulate:
                weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
            expected = F.conv2d(h[index : index + 1], weight, layer.bias, padding=size // 2)
            assert torch.allclose(answer[index : index + 1], expected, atol=1e-5)


def test_noise_every_level_the_prior_and_the_image_matter_and_the_time_does_not() -> None:
    config = tiny_config(system="gan")
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors)
    x, time = noise(2, 1, 64, 64), torch.zeros(2)

    def answer(x: Tensor = x, condition: Condition = condition, time: Tensor = time) -> Tensor:
        with torch.no_grad():
            return decoder(x, time, condition).output

    before = answer()
    assert before.shape == (2, 1, 64, 64) and torch.equal(before, answer(time=time + 0.5))
    assert not torch.equal(before, answer(x=-x))
    for level in range(4):
        levels = tuple(-part if index == level else part for index, part in enumerate(condition.levels))
        assert not torch.equal(before, answer(condition=dataclasses.replace(condition, levels=levels)))
    assert not torch.equal(before, answer(condition=dataclasses.replace(condition, image=-condition.image)))
    gain = decoder.prior_gain.detach()
    moved = answer(condition=dataclasses.replace(condition, prior=condition.prior + 0.5))
    assert torch.allclose(moved - before, (0.5 * gain).expand_as(moved), atol=1e-5)
    assert random_decoder(tiny_config(system="gan", prior_skip=False)).prior_gain is None


def test_noise_at_every_layer() -> None:
    """Standard normal at every side, and of the strength that each layer has learned; none to begin with."""
    layer, x, latent = StyledConv(5, 7), noise(64, 1, 64, 64), noise(1, LATENT, seed=1)
    for side in (8, 16, 32, 64):
        h = noise(1, 5, side, side, seed=2)
        with torch.no_grad():
            layer.strength.zero_()
            without = layer(h, latent, x[:1])
            assert torch.equal(without, F.leaky_relu(layer.convolution(h, latent), 0.2))
            layer.strength.fill_(3)
            several = layer(h, latent, x)
        added = (torch.where(several > 0, several, several / 0.2) - layer.convolution(h, latent)).detach()
        assert torch.allclose(added[:, :1], added[:, 1:2], atol=1e-4)  # the same for all channels
        assert added.mean().abs() < 0.3 and added.std() == pytest.approx(3, rel=0.05)


def test_the_losses_are_the_non_saturating_ones() -> None:
    true, generated = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -1.0])
    assert generator_loss(generated).item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2 + (math.log(2) + math.log(1 + math.exp(-1))) / 2
    assert discriminator_loss(true, generated).item() == pytest.approx(expected)


def test_the_penalty_is_half_the_squared_gradient() -> None:
    class Linear(nn.Module):
        def forward(self, mask: Tensor, condition: Condition) -> Tensor:
            return 3.0 * mask[:, 0, 0, 0] + 4.0 * mask[:, 0, 1, 1]

    condition = random_condition(DECODER_CONFIG.priors)
    assert gradient_penalty(Linear(), noise(2, 1, 64, 64), condition).item() == pytest.approx(12.5)


def test_the_discriminator_learns_to_tell_and_the_generator_does_not_move_it() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adversary = Adversary(dataclasses.replace(GAN, r1_weight=0.0), ALONE)
    condition = random_condition(DECODER_CONFIG.priors, batch=4)
    mask, answer = noise(4, 1, 64, 64).sign(), torch.zeros(4, 1, 64, 64, requires_grad=True)
    start = {name: value.clone() for name, value in adversary.model.state_dict().items()}
    fooled = adversary.loss(answer, condition)
    fooled.backward()
    assert answer.grad.any() and all(value.grad is None for value in adversary.model.parameters())
    for step in range(1, 15):
        adversary.advance(mask, answer, condition, step, rate=1e-2)
    assert adversary.loss(answer, condition) > fooled + 0.5
    assert not torch.equal(start["head.weight"], adversary.model.state_dict()["head.weight"])


def test_the_penalty_comes_every_so_often() -> None:
    condition, mask, answer = random_condition(DECODER_CONFIG.priors), noise(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)

    def after(step: int, weight: float) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adversary = Adversary(dataclasses.replace(GAN, r1_weight=weight), ALONE)
        adversary.advance(mask, answer, condition, step, rate=1e-2)
        return torch.cat([value.grad.flatten() for value in adversary.model.parameters()])

    assert torch.equal(after(1, 0.0), after(1, 5.0))
    assert not torch.equal(after(PENALTY_EVERY, 0.0), after(PENALTY_EVERY, 5.0))


def test_the_discriminator_sees_mask_prior_and_image() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = Discriminator(DECODER_CONFIG)
    condition, mask = random_condition(DECODER_CONFIG.priors), noise(2, 1, 64, 64)
    score = discriminator(mask, condition)
    assert score.shape == (2,) and not torch.equal(score, discriminator(-mask, condition))
    for change in ({"prior": -condition.prior}, {"image": -condition.image}):
        assert not torch.equal(score, discriminator(mask, dataclasses.replace(condition, **change)))


# --- runs ------------------------------------------------------------------------------------------------------------


def test_the_adversarial_loss_has_its_weight(banks: Banks) -> None:
    config = dataclasses.replace(GAN, adversarial_weight=0.25)
    losses, alone = (trainer_of(banks, c).advance() for c in (config, dataclasses.replace(GAN, adversarial_weight=0.0)))
    assert losses.adversarial > 0 and torch.equal(losses.diffusion, alone.diffusion)
    assert torch.allclose(losses.total, alone.total + 0.25 * losses.adversarial)


def test_stopped_and_gone_on_with_generator_and_discriminator_are_the_same_bit_for_bit(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    run(tmp_path / "straight", GAN)
    for steps in (1, 4, None):
        folder = run(tmp_path / "pieces", GAN, stop_after=steps)
    straight = state(tmp_path / "straight")
    assert_identical(straight, state(tmp_path / "pieces"))
    groups = {key.split("/")[0] for key in straight}
    assert groups == {"model", "averaged", "optimiser", "discriminator", "discriminator_optimiser"}
    # The discriminator stays behind: the decoder is the generator alone.
    assert not [name for name in load_decoder(folder).state_dict() if "discriminator" in name]
    assert set(json.loads((tmp_path / "straight" / LOG).read_text().splitlines()[0])) == {
        "step",
        "total",
        "diffusion",
        "error",
        "iou",
        "adversarial",
        "learning_rate",
        "gradient_norm",
        "samples_per_second",
    }


def test_seeds_differ(run: Callable[..., Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / str(seed), dataclasses.replace(GAN, seed=seed), stop_after=1)
    a, b = state(tmp_path / "0"), state(tmp_path / "1")
    assert not torch.equal(a["discriminator/head.weight"], b["discriminator/head.weight"])


def test_a_discriminator_whose_loss_is_no_number_stops_the_run(banks: Banks) -> None:
    trainer = trainer_of(banks, GAN)
    with torch.no_grad():
        trainer.adversary.model.head.bias.fill_(torch.nan)
    with pytest.raises(TrainingError, match="discriminator's loss is nan at step 0"):
        trainer.advance()


def test_bfloat16_trains(banks: Banks) -> None:
    trainer = trainer_of(banks, dataclasses.replace(GAN, bf16=True))
    assert trainer.advance().total.isfinite() and trainer.advance().adversarial.dtype == torch.float32
