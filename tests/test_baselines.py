"""The systems beside the diffusion: one step, GAN and prior, under the interface of the decoders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, random_condition, random_decoder, shape_image, tiny_config, tiny_model
from runs import CONFIG, DECODER_CONFIG, STILL, trainer_of
from torch import Tensor

from diffup import DiffUp
from diffup.data.folder import LabelledFolder
from diffup.decoder.base import Decoder, Denoised
from diffup.decoder.build import build_decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.sampling import draw_noise, sample
from diffup.errors import ConfigError
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.priors.condition import Condition
from diffup.priors.config import PriorConfig
from diffup.training.config import TrainConfig
from diffup.training.prepare import Banks
from diffup.training.sampler import Episodes

SYSTEMS = ("one_step", "gan", "prior")
QUERY, _ = shape_image((1, 2), (60, 80), seed=1)
SUPPORT, LABELS = shape_image((1,), (80, 64), seed=2)


def parameters(config: DecoderConfig) -> int:
    return sum(parameter.numel() for parameter in build_decoder(config).parameters())


def samples_of(decoder: Decoder, condition: Condition, ensemble: int = 3, seed: int = 0) -> Tensor:
    noise = draw_noise(condition, ensemble, torch.Generator().manual_seed(seed))
    return sample(decoder, condition, noise, decoder.config.steps).probability


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_systems_are_of_one_size() -> None:
    assert parameters(DecoderConfig(system="one_step")) == parameters(DecoderConfig())
    assert parameters(DecoderConfig(system="prior")) == 0
    for priors in (PriorConfig(), PriorConfig(layout="own"), DecoderConfig.paper().priors):
        assert parameters(DecoderConfig(system="gan", priors=priors)) == pytest.approx(4.2e6, rel=0.15)


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_pass_answers(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(system=system)
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors)
    plain, seen = type(decoder).forward, []

    def forward(self: Decoder, x: Tensor, time: Tensor, condition: Condition) -> Denoised:
        seen.append((x, time))
        return plain(self, x, time, condition)

    monkeypatch.setattr(type(decoder), "forward", forward)
    noise = draw_noise(condition, 3, torch.Generator().manual_seed(0))
    samples = sample(decoder, condition, noise, 1, trace=True)
    count = 3 if system == "gan" else 1  # the others have no randomness to average over
    assert samples.probability.shape == (2, count, 64, 64)
    assert samples.probability.min() >= 0 and samples.probability.max() <= 1
    assert samples.error.shape == (2, 64, 64) and samples.iou.shape == (2,)
    assert samples.iou.min() >= 0 and samples.iou.max() <= 1
    assert samples.timesteps == (49,) and samples.trace.shape == (2, 2, 64, 64)
    [(x, time)] = seen
    assert torch.equal(time, torch.full((2 * count,), 49 / 50))
    assert torch.equal(x[:2, 0], noise[:, 0]) if system == "gan" else torch.equal(x, condition.prior)


def test_one_step_is_the_diffusions_network_shown_the_prior() -> None:
    unet = random_decoder(tiny_config()).eval()
    one_step = build_decoder(tiny_config(system="one_step")).eval()
    one_step.load_state_dict(unet.state_dict())
    condition = random_condition(unet.config.priors)
    with torch.no_grad():
        output = unet(condition.prior, torch.full((2,), 49 / 50), condition).output
    assert torch.allclose(samples_of(one_step, condition), torch.sigmoid(output), atol=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_seed_means_one_result_and_only_the_gan_has_others(system: str) -> None:
    config = tiny_config(system=system)
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors)
    first = samples_of(decoder, condition, seed=1)
    assert torch.equal(first, samples_of(decoder, condition, seed=1))
    assert torch.equal(first, samples_of(decoder, condition, seed=2)) is (system != "gan")
    assert torch.equal(first[:, :1].expand_as(first), first) is (system != "gan")


def test_the_prior_is_its_own_answer_and_judges_itself() -> None:
    config = tiny_config(system="prior", threshold=0.5)
    decoder, condition = build_decoder(config), random_condition(config.priors)
    assert torch.equal(samples_of(decoder, condition)[:, 0], condition.prior[:, 0] * 0.5 + 0.5)
    mask = torch.full((1, 1, 64, 64), -1.0)  # a quarter at 0.8, the rest at 0
    mask[..., :32, :32] = 0.6
    rest = (condition.image, condition.prior)
    error, iou = decoder.judge(mask, *rest)
    assert not error.any() and iou.item() == pytest.approx(0.8)  # 0.8 n expected in a mask of n pixels
    mask[..., 32:, 32:] = -0.2  # a quarter at 0.4, below the threshold: expected, but not marked
    assert decoder.judge(mask, *rest)[1].item() == pytest.approx(0.8 / 1.4)
    assert decoder.judge(torch.full_like(mask, -1.0), *rest)[1].item() == 0


# --- the config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_more_than_one_step_is_refused(system: str) -> None:
    refused = f"steps=50 with system='{system}': such a decoder answers in a single step"
    with pytest.raises(ConfigError, match=refused):
        DecoderConfig(system=system, steps=50)
    with pytest.raises(ConfigError, match=refused):
        dataclasses.replace(DecoderConfig(steps=50), system=system)
    with pytest.raises(ConfigError, match=refused):
        DecoderConfig.from_json(json.dumps({"system": system, "steps": 50}))
    config = DecoderConfig(system=system)
    assert config.steps == 1 and config.ensemble == (2 if system == "gan" else 1)
    config = tiny_config(system=system)
    assert DecoderConfig.from_json(config.to_json()) == config
    model = DiffUp(build_decoder(config), FakeBackbone(), "cpu")
    with pytest.raises(ConfigError, match=f"steps=2: a decoder of system='{system}' answers in a single step"):
        model.segment(QUERY, SUPPORT, LABELS == 1, steps=2)
    with pytest.raises(ConfigError, match="steps=2"):
        Diffusion(config).schedule(2)


def test_a_config_from_before_the_systems_is_a_diffusions() -> None:
    old = json.loads(tiny_config().to_json())
    for name in ("system", "low_level_channels", "low_level_width", "low_level_encoder"):
        del old[name]
    assert DecoderConfig.from_json(json.dumps(old)) == tiny_config()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"system": "vae"}, "system='vae': choose one of diffusion, one_step, gan, prior"),
        ({"system": "one_step", "prediction": "v", "loss": "mse"}, "system='one_step' needs prediction='x0'"),
        ({"system": "gan", "loss": "mse"}, "system='gan' needs loss='bce_dice'"),
        ({"system": "gan", "low_level_channels": 8}, "low_level_channels=8 with system='gan'"),
        ({"low_level_channels": -1}, "low_level_channels=-1"),
    ],
)
def test_what_does_not_fit_a_system_is_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DecoderConfig(**fields)


def test_weights_of_another_system_are_no_start(banks: Banks) -> None:
    config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER_CONFIG, system="one_step"))
    with pytest.raises(ConfigError, match="initial"):
        trainer_of(banks, config, initial=random_decoder(DECODER_CONFIG))


# --- the model and the evaluator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_segments_is_upgraded_saved_and_loaded(system: str, tmp_path: Path) -> None:
    model = tiny_model(system=system, threshold=0.6)
    result = model.segment(QUERY, SUPPORT, LABELS == 1, ensemble=3, trace=True)
    assert result.mask.shape == QUERY.shape[:2] and np.array_equal(result.mask, result.probability > 0.6)
    assert bool(result.variance.any()) is (system == "gan")
    if system == "prior":
        plain = model.segment(QUERY, SUPPORT, LABELS == 1, refine=False)
        assert np.array_equal(plain.probability, plain.prior)
    model.save_pretrained(tmp_path)
    again = DiffUp.from_pretrained(tmp_path, backbone=FakeBackbone(), device="cpu")
    assert again.config == model.config
    loaded = again.segment(QUERY, SUPPORT, LABELS == 1, ensemble=3)
    assert np.array_equal(loaded.probability, result.probability) and loaded.quality == result.quality
    assert model.upgrade(FakeBackbone((12,) * 4)).segment(QUERY, SUPPORT, LABELS == 1).mask.shape == (60, 80)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_is_scored_by_the_evaluator(system: str, shapes: Path) -> None:
    folder = LabelledFolder.open(shapes)
    model = tiny_model(system=system, threshold=0.6)
    scores = Evaluator(model, folder).run(draw_episodes(folder, "test", [1, 2], 1, 3, seed=0), refine=False)
    assert scores.miou == scores.miou_by_threshold[0.6]
    assert (scores.miou_by_threshold == scores.prior_miou_by_threshold) is (system == "prior")


# --- training --------------------------------------------------------------------------------------------------------


class OneEpisode:
    """A sampler that always draws the same batch."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    def draw(self, seed: int, step: int, *rest: object) -> Episodes:
        return self.inner.draw(0, 0, *rest)


@pytest.mark.parametrize("system", ["one_step", "gan"])
def test_one_episode_is_learned_by_heart(banks: Banks, system: str) -> None:
    steps = 40
    config = dataclasses.replace(
        CONFIG,
        decoder=dataclasses.replace(DECODER_CONFIG, system=system),
        episodes=dataclasses.replace(CONFIG.episodes, absent=0.0),  # with an empty mask there is nothing to learn
        perturb=STILL,
        steps=steps,
        batch_size=4,
        learning_rate=1e-2,
        warmup=5,
    )
    trainer = trainer_of(banks, config)
    trainer.sampler = OneEpisode(trainer.sampler)
    losses = [trainer.advance() for _ in range(steps)]
    for name, share in (("diffusion", 0.65), ("error", 1.0)):
        values = [float(getattr(loss, name).detach()) for loss in losses]
        assert np.mean(values[-6:]) < share * np.mean(values[:4]), name


@pytest.mark.parametrize("system", ["one_step", "gan"])
def test_training_reaches_every_parameter(banks: Banks, system: str) -> None:
    decoder = dataclasses.replace(DECODER_CONFIG, system=system)
    # Without the class in a query there is no IoU to learn.
    episodes = dataclasses.replace(CONFIG.episodes, absent=0.0)
    trainer = trainer_of(banks, dataclasses.replace(CONFIG, decoder=decoder, episodes=episodes))
    # Modulations start at zero, so that what is behind them is not reached in the first step.
    trainer.model.load_state_dict(random_decoder(decoder).state_dict())
    trainer.advance()
    untouched = [name for name, value in trainer.model.named_parameters() if not value.grad.any()]
    assert untouched == []


def test_there_is_nothing_to_train_in_a_prior() -> None:
    with pytest.raises(ConfigError, match=r"system='prior' has nothing to train: DiffUp\(build_decoder"):
        TrainConfig(decoder=DecoderConfig(system="prior"))
