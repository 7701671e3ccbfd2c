"""Variants: low-level features of one encoder (DiffUp+LFE, Table 9), and training under several metrics (Table 7)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, random_condition, random_decoder, shape_image, tiny_config, tiny_model
from runs import CONFIG, DECODER_CONFIG, STILL, encoder, trainer_of

from diffup import DiffUp
from diffup.backbones.encode import encode
from diffup.data.folder import LabelledFolder
from diffup.decoder.build import build_decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.weights import load_decoder
from diffup.errors import BackboneError, ConfigError
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.priors.condition import Condition
from diffup.priors.config import LOW_LEVEL_GRID
from diffup.priors.level import pool_to_grid
from diffup.training.config import TrainConfig
from diffup.training.prepare import Banks

QUERY, _ = shape_image((1, 2), (60, 80), seed=1)
SUPPORT, LABELS = shape_image((1,), (80, 64), seed=2)
ENCODER = FakeBackbone()
TIED = {"low_level_channels": 4, "low_level_width": 8, "low_level_encoder": ENCODER.fingerprint}


@pytest.fixture(scope="module")
def tied() -> DiffUp:
    return tiny_model(ENCODER, **TIED)


# --- DiffUp+LFE ------------------------------------------------------------------------------------------------------


def test_low_level_features_matter_and_cost_few_parameters() -> None:
    config = tiny_config(**TIED)
    decoder = random_decoder(config).eval()
    condition = dataclasses.replace(random_condition(config.priors), low_level=torch.randn(2, 8, 6, 6))
    x, time = torch.randn(2, 1, 64, 64), torch.rand(2)
    with torch.no_grad():
        before = decoder(x, time, condition).output
        other = dataclasses.replace(condition, low_level=-condition.low_level)
        assert not torch.equal(before, decoder(x, time, other).output)
        scaled = dataclasses.replace(condition, low_level=1000 * condition.low_level)
        assert torch.allclose(before, decoder(x, time, scaled).output, atol=1e-2)
    full = DecoderConfig(**(TIED | {"low_level_channels": 16}))
    assert sum(value.numel() for value in build_decoder(full).parameters()) == pytest.approx(4.2e6, rel=0.05)


def test_a_decoder_without_its_encoder_or_its_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="low_level_channels=4 needs low_level_width and low_level_encoder"):
        build_decoder(tiny_config(low_level_channels=4))
    config = tiny_config(**TIED)
    with pytest.raises(ConfigError, match="reads low-level features"):
        build_decoder(config)(torch.zeros(2, 1, 64, 64), torch.zeros(2), random_condition(config.priors))


def test_the_upgrade_is_refused_before_the_encoder_is_loaded(tied: DiffUp) -> None:
    for other in ("timm:no_such_encoder", FakeBackbone((12,) * 4), ENCODER):
        with pytest.raises(BackboneError, match=r"upgrade to '.*': this decoder reads the low-level features of .*LFE"):
            tied.upgrade(other)


def test_another_encoder_is_refused_by_its_fingerprint(tied: DiffUp, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"low-level features.*works behind that encoder alone.*channels=0"):
        DiffUp(tied.decoder, FakeBackbone(seed=1), "cpu")
    tied.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=re.escape(ENCODER.fingerprint)):
        DiffUp.from_pretrained(tmp_path, backbone=FakeBackbone(seed=1), device="cpu")
    again = DiffUp.from_pretrained(tmp_path, backbone=FakeBackbone(), device="cpu")
    expected, result = (model.segment(QUERY, SUPPORT, LABELS == 1) for model in (tied, again))
    assert np.array_equal(expected.probability, result.probability)


def test_the_evaluator_hands_the_same_features_on(tied: DiffUp, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = LabelledFolder.open(shapes), []
    plain = Condition.cat

    def cat(conditions: list[Condition]) -> Condition:
        seen.append(plain(conditions))
        return seen[-1]

    monkeypatch.setattr(Condition, "cat", cat)
    episodes = draw_episodes(folder, "test", [1, 2], 1, 2, seed=0)
    Evaluator(tied, folder).run(episodes)
    for index, episode in enumerate(episodes):
        low = pool_to_grid(encode(tied.backbone, [folder.image(episode.query)])[0], LOW_LEVEL_GRID)
        assert torch.allclose(seen[0].low_level[index], low[0], atol=1e-5)


def test_training_writes_the_encoder_into_the_decoder(run: Callable[..., Path], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER_CONFIG, low_level_channels=4))
    run(tmp_path, config, stop_after=1)
    decoder = load_decoder(run(tmp_path, config, stop_after=2))  # gone on with under the same config
    assert decoder.config.low_level_encoder == encoder().fingerprint and decoder.config.low_level_width == 8
    DiffUp(decoder, encoder(), "cpu")
    with pytest.raises(BackboneError, match="low-level"):
        DiffUp(decoder, encoder(12), "cpu")


def test_low_level_features_train_in_bfloat16(run: Callable[..., Path], tmp_path: Path) -> None:
    decoder = dataclasses.replace(DECODER_CONFIG, low_level_channels=4)
    run(tmp_path, dataclasses.replace(CONFIG, decoder=decoder, bf16=True), stop_after=1)


def test_low_level_features_move_with_their_episode(banks: Banks) -> None:
    decoder = dataclasses.replace(DECODER_CONFIG, low_level_channels=4)
    still = dataclasses.replace(
        CONFIG, decoder=decoder, perturb=dataclasses.replace(STILL, zoom=0, turn=0, shift=0)
    ).tied_to("x", 8)
    moving = dataclasses.replace(still, perturb=dataclasses.replace(STILL, zoom=0, turn=1e-6, shift=0))
    conditions = []
    for config in (still, moving):
        trainer = trainer_of(banks, config)
        episodes = trainer.sampler.draw(0, 0, 8, banks.features[0], torch.device("cpu"))
        conditions.append(trainer._condition(episodes, (), torch.Generator().manual_seed(1))[0])
    assert torch.equal(conditions[0].low_level, pool_to_grid(episodes.query[0], 6))
    mirrored = 0
    for a, b, image, moved in zip(
        conditions[0].low_level, conditions[1].low_level, conditions[0].image, conditions[1].image, strict=True
    ):
        flipped = not torch.allclose(image, moved, atol=1e-3)
        mirrored += flipped
        assert torch.allclose(a.flip(-1) if flipped else a, b, atol=1e-3)
    assert 0 < mirrored < 8


def test_low_level_features_are_of_one_encoder() -> None:
    decoder = dataclasses.replace(DECODER_CONFIG, low_level_channels=4)
    with pytest.raises(ConfigError, match="low-level features tie a decoder to one encoder"):
        TrainConfig(decoder=decoder, backbones=("a", "b"))


def test_parts_and_joins_of_conditions_keep_the_low_level_features() -> None:
    config = DECODER_CONFIG.priors
    condition = dataclasses.replace(random_condition(config, 3), low_level=torch.randn(3, 8, 6, 6))
    joined = Condition.cat([condition.first(1), condition.repeat(2)])
    assert joined.low_level.shape == (7, 8, 6, 6)
    assert torch.equal(joined.low_level[1:4], condition.low_level) and torch.equal(joined.prior[4:], condition.prior)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(joined.levels, condition.levels, strict=True))
    assert Condition.cat([random_condition(config)]).low_level is None


# --- several metrics -------------------------------------------------------------------------------------------------

METRICS = (("cosine", "identity"), ("l2", "exponential"), ("l1", "reciprocal"), ("l2_unit", "square"))


def test_each_batch_draws_its_metric_and_inference_keeps_the_decoders(
    banks: Banks, run: Callable[..., Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, metrics=METRICS)
    trainer = trainer_of(banks, config)
    drawn = [trainer._priors(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {(priors.metric, priors.conversion) for priors in drawn} == set(METRICS)
    assert drawn == [trainer._priors(torch.Generator().manual_seed(seed)) for seed in range(40)]
    cosine = DECODER_CONFIG.priors
    assert all(dataclasses.replace(p, metric="cosine", conversion="identity") == cosine for p in drawn)
    assert load_decoder(run(tmp_path, config)).config == CONFIG.decoder


def test_the_metric_that_is_drawn_makes_the_priors(banks: Banks) -> None:
    def condition(metrics: tuple[tuple[str, str], ...]) -> Condition:
        config = dataclasses.replace(
            CONFIG, metrics=metrics, perturb=dataclasses.replace(STILL, zoom=0, turn=0, shift=0)
        )
        trainer = trainer_of(banks, config)
        episodes = trainer.sampler.draw(0, 0, 4, banks.features[0], torch.device("cpu"))
        return trainer._condition(episodes, (), torch.Generator().manual_seed(1))[0]

    usual = condition(())
    for same in ((METRICS[0],), (METRICS[3],)):  # cosine = 1 - d^2 / 2 on unit vectors
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(usual.levels, condition(same).levels, strict=True))
    assert not torch.allclose(usual.prior, condition((METRICS[1],)).prior, atol=1e-3)


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ([["cosine"]], "is not a pair of metric and conversion"),
        ([["l3", "exponential"]], "metric='l3' is unknown"),
        ([["cosine", "square"]], "metric='cosine' with conversion='square'"),
        (["cosine"], r"metrics\[0\] must be a list"),
    ],
)
def test_metrics_that_do_not_belong_together_are_refused(metrics: list[object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig.from_json(json.dumps({"metrics": metrics}))


# --- runs from before -----------------------------------------------------------------------------------------------
