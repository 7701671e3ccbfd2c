"""The decoder: its size, its switches, its config, its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import TINY, noise, random_affinity, random_condition, random_decoder, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffup.decoder import sampling
from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.losses import decoder_loss
from diffup.decoder.modulation import AdaIN, Modulation, sinusoidal_embedding
from diffup.decoder.sampling import CPU_BATCH, draw_noise, sample, sample_batches, sample_ensemble
from diffup.decoder.unet import HEAD_CHANNELS, AffinityMixer, DiffusionUNet
from diffup.decoder.weights import CONFIG, WEIGHTS, fetch_decoder, load_decoder, save_decoder
from diffup.errors import ConfigError, WeightsError
from diffup.priors.condition import SIZES, Condition
from diffup.priors.config import PRIOR_KINDS, PriorConfig

# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(),
        DecoderConfig.paper(),
        *(DecoderConfig(priors=PriorConfig(kinds=PRIOR_KINDS[:count])) for count in (1, 2, 3)),
        DecoderConfig(priors=PriorConfig(layout="own")),
        DecoderConfig(priors=PriorConfig(kinds=("match",), layout="own", extra_priors=0, edges=False)),
        DecoderConfig(priors=PriorConfig(extra_priors=5)),
        DecoderConfig(error_modulation=False),
        DecoderConfig(iou_modulation=False),
    ],
)
def test_the_decoder_has_4_2_million_parameters(config: DecoderConfig) -> None:
    count = sum(parameter.numel() for parameter in DiffusionUNet(config).parameters())
    assert count == pytest.approx(4.2e6, rel=0.05)


# --- the network -----------------------------------------------------------------------------------------------------

SWITCHES = {
    "all on": {},
    "no error map": {"error_modulation": False},
    "no iou": {"iou_modulation": False},
    "neither": {"error_modulation": False, "iou_modulation": False},
    "no edges": {"priors": PriorConfig(grid=8, edges=False)},
    "no affinity": {"priors": PriorConfig(grid=8, affinity=False)},
    "own layout": {"priors": PriorConfig(grid=8, layout="own")},
    "no saliency": {"priors": PriorConfig(grid=8, saliency=False)},
    "no absolute": {"priors": PriorConfig(grid=8, absolute=False)},
    "no self-affinity": {"priors": PriorConfig(grid=8, self_affinity=False)},
    "no prior skip": {"prior_skip": False},
    "epsilon": {"prediction": "epsilon", "loss": "mse"},
    "v": {"prediction": "v", "loss": "mse"},
}


def test_the_prior_skip_adds_the_mean_prior_to_an_x0_prediction_alone() -> None:
    with_skip, without = random_decoder(tiny_config()), random_decoder(tiny_config(prior_skip=False))
    weights = {key: value for key, value in with_skip.state_dict().items() if key != "prior_gain"}
    without.load_state_dict(weights)
    condition = random_condition(with_skip.config.priors, 2)
    inputs = (noise(2, 1, 64, 64), torch.tensor([0.2, 0.7]), condition)
    added = with_skip(*inputs).output - without(*inputs).output
    assert torch.allclose(added, with_skip.prior_gain * condition.prior, atol=1e-5)
    assert random_decoder(tiny_config(prediction="epsilon", loss="mse")).prior_gain is None


@pytest.mark.parametrize("batch", [1, 3])
def test_output_shapes(batch: int) -> None:
    config = tiny_config()
    answer = random_decoder(config)(noise(batch, 1, 64, 64), torch.rand(batch), random_condition(config.priors, batch))
    assert answer.output.shape == answer.error.shape == (batch, 1, 64, 64)
    assert answer.iou.shape == (batch,) and answer.iou.min() >= 0 and answer.iou.max() <= 1


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_leaves_a_decoder_that_trains_to_its_last_parameter(name: str) -> None:
    config = tiny_config(**SWITCHES[name])
    decoder, diffusion, condition = random_decoder(config), Diffusion(config), random_condition(config.priors, 4)
    mask, eps, t = noise(4, 1, 64, 64, seed=1).sign(), noise(4, 1, 64, 64, seed=2), torch.tensor([0, 9, 30, 49])
    mask[3] = -1  # a query without the class
    x = diffusion.observe(diffusion.add_noise(mask, eps, t), condition.prior, t)
    denoised = decoder(x, t / diffusion.timesteps, condition)
    judged, target = [(x, denoised.error, denoised.iou)], diffusion.target(mask, eps, t)
    losses = decoder_loss(denoised.output, judged, mask, target, torch.ones_like(mask), config)
    losses.total.backward()
    untouched = [key for key, value in decoder.named_parameters() if value.grad is None or not value.grad.any()]
    # Without the error map the convolutions over it see zeros; without any modulation nothing embeds the IoU.
    allowed = {"no error map": "dqm.hidden.weight", "neither": "iou.mlp"}.get(name)
    assert [key for key in untouched if allowed is None or allowed not in key] == []


def answer_to(config: DecoderConfig, change: Callable[[DiffusionUNet], None], seed: int = 0) -> Tensor:
    decoder = random_decoder(config).eval()
    change(decoder)
    with torch.no_grad():
        return decoder(noise(2, 1, 64, 64), torch.tensor([0.2, 0.7]), random_condition(config.priors, 2, seed)).output


def other_quality(branch: str) -> Callable[[DiffusionUNet], None]:
    def change(decoder: DiffusionUNet) -> None:
        final = decoder.error_branch.out if branch == "error" else decoder.iou_regressor.head
        with torch.no_grad():
            final.bias.add_(1.0)

    return change


@pytest.mark.parametrize(
    ("branch", "error", "iou", "matters"),
    [
        ("error", True, True, True),
        ("error", True, False, True),
        ("error", False, False, False),
        ("iou", True, True, True),
        ("iou", False, True, True),
        ("iou", True, False, False),
        ("iou", False, False, False),
    ],
)
def test_table_6_switches_decide_whether_the_quality_branch_has_a_say(
    branch: str, error: bool, iou: bool, matters: bool
) -> None:
    config = tiny_config(error_modulation=error, iou_modulation=iou)
    before, after = answer_to(config, lambda decoder: None), answer_to(config, other_quality(branch))
    assert torch.equal(before, after) is not matters


def test_the_noise_loss_does_not_pull_the_quality_branch() -> None:
    config = tiny_config(error_weight=0.0, iou_weight=0.0)
    decoder, condition = random_decoder(config), random_condition(config.priors)
    answer = decoder(noise(2, 1, 64, 64), torch.rand(2), condition)
    answer.output.square().mean().backward()
    for branch in (decoder.error_branch, decoder.iou_regressor):
        assert all(parameter.grad is None for parameter in branch.parameters())


def test_every_level_of_the_condition_the_affinities_the_step_the_prior_and_the_image_matter() -> None:
    config = tiny_config()
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors)
    x, time = noise(2, 1, 64, 64), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        before = decoder(x, time, condition).output
        assert not torch.equal(before, decoder(x, time.flip(0), condition).output)
        for level in range(len(SIZES)):
            levels = tuple(-part if index == level else part for index, part in enumerate(condition.levels))
            assert not torch.equal(before, decoder(x, time, dataclasses.replace(condition, levels=levels)).output)
        for side in range(len(condition.affinity)):
            pairs = zip(condition.affinity, random_affinity(2, seed=5), strict=True)
            affinity = tuple(other if index == side else own for index, (own, other) in enumerate(pairs))
            assert not torch.equal(before, decoder(x, time, dataclasses.replace(condition, affinity=affinity)).output)
        for change in ({"image": -condition.image}, {"prior": -condition.prior}):
            assert not torch.equal(before, decoder(x, time, dataclasses.replace(condition, **change)).output)


def test_the_mixer_is_its_definition() -> None:
    """`h + W_o (W_v norm(h)) A^T`, written out for every row, head and position; rows 0 and 2 are of one query."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = AffinityMixer(8, heads=3)
    h, affinity = noise(4, 8, 16, 16), torch.softmax(3 * noise(2, 3, 256, 256, seed=1), dim=3)
    with torch.no_grad():
        values = mixer.values(mixer.norm(h)).flatten(2)
        mixed = torch.zeros(4, 3 * HEAD_CHANNELS, 256)
        for row in range(4):
            for head in range(3):
                channels = slice(head * HEAD_CHANNELS, (head + 1) * HEAD_CHANNELS)
                for position in range(256):
                    weights = affinity[row % 2, head, position]
                    mixed[row, channels, position] = (values[row, channels] * weights).sum(dim=1)
        expected = h + mixer.out(mixed.view(4, -1, 16, 16))
        assert torch.allclose(mixer(h, affinity), expected, atol=1e-5)
        assert not torch.allclose(mixer(h, affinity.flip(0)), expected, atol=1e-3)


def test_the_mixer_averages_finer_features_over_the_cells() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = AffinityMixer(8, heads=1)
    h, affinity = noise(1, 8, 32, 32), torch.softmax(3 * noise(1, 1, 1024, 256, seed=1), dim=3)
    with torch.no_grad():
        cells = mixer.values(mixer.norm(h)).view(1, HEAD_CHANNELS, 16, 2, 16, 2).mean(dim=(3, 5)).flatten(2)
        expected = h + mixer.out((cells[0] @ affinity[0, 0].T).view(1, HEAD_CHANNELS, 32, 32))
        assert torch.allclose(mixer(h, affinity), expected, atol=1e-5)


def test_a_condition_without_the_affinities_that_a_decoder_reads_is_refused() -> None:
    decoder = random_decoder(tiny_config()).eval()
    bare = dataclasses.replace(random_condition(decoder.config.priors), affinity=())
    with pytest.raises(ConfigError, match="self-affinities"):
        decoder(noise(2, 1, 64, 64), torch.rand(2), bare)


def test_modulation_starts_near_the_identity_on_normalised_features() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block, adain = Modulation(8, 3, 8, 16), AdaIN(8, 16)
    h, embedding = 5 * noise(2, 8, 16, 16) + 3, noise(2, 16, seed=1)
    normalised = (h - h.mean(dim=(2, 3), keepdim=True)) / h.var(dim=(2, 3), keepdim=True, correction=0).add(1e-5).sqrt()
    assert torch.allclose(adain(h, embedding), normalised, atol=1e-5)
    assert torch.allclose(block(h, noise(2, 3, 16, 16, seed=2), embedding), normalised, atol=0.1)


def test_a_modulation_that_does_not_normalise_keeps_the_level_of_every_channel() -> None:
    """In the U-Net it is the second one of each block; the first, by the priors, always normalises."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Modulation(8, 3, 8, 16, normalise=False)
    h, embedding = 5 * noise(2, 8, 16, 16) + 3, noise(2, 16, seed=1)
    assert torch.allclose(block(h, noise(2, 3, 16, 16, seed=2), embedding), h, atol=0.1)
    assert torch.allclose(block.adain(h + 7, embedding) - block.adain(h, embedding), torch.tensor(7.0), atol=1e-5)
    for normalise in (True, False):
        decoder = random_decoder(tiny_config(quality_normalisation=normalise))
        found = {
            name.split(".")[-2]: part.normalise for name, part in decoder.named_modules() if isinstance(part, AdaIN)
        }
        assert found == {"scm": True, "dqm": normalise}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adain_is_exact_where_the_mean_is_large(layout: torch.memory_format) -> None:
    """In float64 to 1e-4, relative to maps of unit variance; sums of squares (`group_norm`) are off by 0.04 here."""
    adain, embedding = AdaIN(24, 16), noise(3, 16)
    torch.nn.init.normal_(adain.affine.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    h = (noise(3, 24, 32, 32) + 30 * noise(1, 24, 1, 1)).to(memory_format=layout)
    scale, shift = adain.affine(torch.nn.functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
    exact = torch.nn.functional.instance_norm(h.double()) * scale + shift
    assert torch.allclose(adain(h, embedding).double(), exact, atol=1e-4)


def test_the_embedding_is_the_transformers_one_of_1000_steps() -> None:
    values = torch.tensor([0.0, 0.25, 0.9])
    embedded = sinusoidal_embedding(values, 8, scale=1000.0)
    for row, value in zip(embedded, values.tolist(), strict=True):
        angles = [1000 * value / 10000 ** (i / 4) for i in range(4)]
        assert torch.allclose(row, torch.tensor([*map(_sin, angles), *map(_cos, angles)]), atol=1e-3)


def _sin(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).sin())


def _cos(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).cos())


# --- sampling --------------------------------------------------------------------------------------------------------


def sampled(ensemble: int = 2, batch: int = 2, seed: int = 0, **options: object):
    config = tiny_config()
    condition = random_condition(config.priors, batch)
    start = draw_noise(condition, ensemble, torch.Generator().manual_seed(seed))
    return config, condition, start, sample(random_decoder(config).eval(), condition, start, 3, **options)


def test_samples_have_their_shapes_and_ranges() -> None:
    _, _, _, samples = sampled(ensemble=3, trace=True)
    assert samples.probability.shape == (2, 3, 64, 64)
    assert samples.probability.min() >= 0 and samples.probability.max() <= 1
    assert samples.error.shape == (2, 64, 64) and samples.iou.shape == (2,)
    assert samples.timesteps == (49, 32, 16)
    assert samples.trace is not None and samples.trace.shape == (2, 4, 64, 64)
    assert torch.allclose(samples.trace[:, -1] * 0.5 + 0.5, samples.probability[:, 0])
    assert sampled()[3].trace is None


def only(condition: Condition, row: int) -> Condition:
    """The condition of a single row of a batch."""
    at = slice(row, row + 1)
    affinity = tuple(tensor[row % len(tensor)][None] for tensor in condition.affinity)
    maps = tuple(level[at] for level in condition.levels), condition.prior[at], condition.image[at]
    return Condition(*maps, condition.evidence[at], affinity)


@pytest.mark.parametrize("most", [4, 5, 64])
def test_classes_queries_and_samples_are_decoded_as_if_alone(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three queries that two classes share, in batches of four and five rows, which split the classes."""
    monkeypatch.setattr(sampling, "BATCH", most)
    monkeypatch.setattr(sampling, "CPU_BATCH", most)
    config, affinity = tiny_config(steps=1), random_affinity(3)
    decoder = random_decoder(config).eval()
    parts = [dataclasses.replace(random_condition(config.priors, 3, seed), affinity=affinity) for seed in (0, 1)]
    together = Condition.cat(parts)
    start = draw_noise(together, 2, torch.Generator().manual_seed(0))
    found = sample_ensemble(decoder, together, start, 1)
    for row in range(6):
        alone = sample(decoder, only(parts[row // 3], row % 3), start[row : row + 1], 1)
        assert torch.allclose(found.mean[row], alone.probability[0].mean(dim=0), atol=1e-4)
        for name in ("error", "iou"):
            assert torch.allclose(getattr(found, name)[row], getattr(alone, name)[0], atol=1e-4), name


def test_each_query_and_each_member_of_the_ensemble_is_sampled_by_itself() -> None:
    config, condition, start, together = sampled(ensemble=3)
    decoder = random_decoder(config).eval()
    for query in range(2):
        one = only(condition, query)
        for member in range(3):
            alone = sample(decoder, one, start[query : query + 1, member : member + 1], 3)
            assert torch.allclose(alone.probability[0, 0], together.probability[query, member], atol=1e-4)
        alone = sample(decoder, one, start[query : query + 1], 3)
        assert torch.allclose(alone.error[0], together.error[query], atol=1e-4)
        assert torch.allclose(alone.iou[0], together.iou[query], atol=1e-4)


def test_sampling_walks_the_schedule_of_the_process() -> None:
    config, condition, start, samples = sampled(ensemble=1)
    decoder, diffusion = random_decoder(config).eval(), Diffusion(config)
    y = start.clone()
    for t, previous in ((49, 32), (32, 16), (16, -1)):
        now = torch.tensor([t, t])
        with torch.no_grad():
            output = decoder(diffusion.observe(y, condition.prior, now), now / 50, condition).output
        mask = diffusion.estimate(output, y, now)
        y = diffusion.step(mask, y, t, previous)
    assert torch.allclose(samples.probability[:, 0], mask[:, 0] * 0.5 + 0.5, atol=1e-6)


def test_progress_is_told_after_every_step() -> None:
    calls: list[int] = []
    sampled(on_step=lambda: calls.append(1))
    assert len(calls) == 3


# --- the config ------------------------------------------------------------------------------------------------------

priors = st.builds(
    PriorConfig,
    kinds=st.lists(st.sampled_from(PRIOR_KINDS), min_size=1, unique=True).map(tuple),
    centre=st.booleans(),
    affinity_power=st.floats(0.1, 8),
    extra_priors=st.integers(0, 4),
    layout=st.sampled_from(["own", "all"]),
    absolute=st.booleans(),
    self_affinity=st.booleans(),
    edges=st.booleans(),
)
configs = st.builds(
    DecoderConfig,
    priors=priors,
    channels=st.tuples(*[st.sampled_from([8, 32, 176])] * 4),
    condition_hidden=st.integers(1, 64),
    error_modulation=st.booleans(),
    timesteps=st.integers(50, 1000),
    shift=st.sampled_from(["none", "prior", "quadratic"]),
    signal_scale=st.floats(0.01, 1),
    prediction=st.sampled_from(["x0"]),
    loss=st.sampled_from(["mse", "bce_dice"]),
    iou_weight=st.floats(0, 10),
    presence_calibration=st.tuples(*[st.floats(-9, 9)] * 5),
    quality_calibration=st.tuples(*[st.floats(-9, 9)] * 9),
    steps=st.integers(1, 50),
    threshold=st.floats(0.01, 0.99),
    backbone=st.text(max_size=20),
)


@given(configs)
@settings(max_examples=50, deadline=None)
def test_the_config_survives_json(config: DecoderConfig) -> None:
    assert DecoderConfig.from_json(config.to_json()) == config


def test_a_config_from_json_needs_only_what_differs_from_the_defaults() -> None:
    assert DecoderConfig.from_json("{}") == DecoderConfig()
    config = DecoderConfig.from_json('{"priors": {"kinds": ["match"]}, "signal_scale": 1}')
    assert config.priors.kinds == ("match",) and config.signal_scale == 1.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object, not list"),
        ('{"chanels": [8, 8, 8, 8]}', "unknown field chanels"),
        ('{"priors": {"kind": "match"}}', r"unknown field priors\.kind"),
        ('{"a": 1, "b": 2}', "unknown fields a, b"),
        ('{"priors": 3}', "priors must be a JSON object"),
        ('{"timesteps": 250.0}', "timesteps must be of type int"),
        ('{"timesteps": true}', "timesteps must be of type int"),
        ('{"timesteps": "250"}', "timesteps must be of type int"),
        ('{"error_modulation": 1}', "error_modulation must be of type bool"),
        ('{"threshold": null}', "threshold must be of type float"),
        ('{"backbone": 3}', "backbone must be of type str"),
        ('{"channels": 32}', "channels must be a list"),
        ('{"channels": [8, 8, 8, "8"]}', r"channels\[3\] must be of type int"),
        ('{"priors": {"kinds": "match"}}', r"priors\.kinds must be a list"),
        ('{"shift": "cubic"}', "shift='cubic'"),
        ('{"error_weight": NaN}', "error_weight"),
        ('{"iou_weight": Infinity}', "iou_weight"),
        ('{"presence_calibration": 1}', "presence_calibration must be a list"),
        ('{"presence_calibration": [1]}', r"presence_calibration=\(1\.0,\): give 5"),
        ('{"quality_calibration": [1, 0]}', r"quality_calibration=\(1\.0, 0\.0\): give 9"),
        ('{"quality_calibration": [1, 0, NaN]}', "quality_calibration"),
        ('{"quality_calibration": [1, "0", 0]}', r"quality_calibration\[1\] must be of type float"),
    ],
)
def test_broken_configs_are_refused_by_the_name_of_the_field(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DecoderConfig.from_json(text)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"channels": (8, 8, 8)}, "channels="),
        ({"channels": (8, 8, 8, 12)}, "channels="),
        ({"channels": (0, 8, 8, 8)}, "channels="),
        ({"condition_hidden": 0}, "condition_hidden=0"),
        ({"quality_hidden": 0}, "quality_hidden=0"),
        ({"quality_hidden": 12}, "quality_hidden=12"),
        ({"timesteps": 0}, "timesteps=0"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 251}, "steps=251"),
        ({"ensemble": 0}, "ensemble=0"),
        ({"error_weight": -0.1}, "error_weight=-0.1"),
        ({"iou_weight": -1.0}, "iou_weight=-1.0"),
        ({"signal_scale": 0.0}, "signal_scale=0.0"),
        ({"signal_scale": 1.1}, "signal_scale=1.1"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"beta_start": 0.0}, "beta_start=0.0"),
        ({"beta_start": 0.05}, "beta_start=0.05"),
        ({"timesteps": 20, "steps": 5}, "timesteps=20"),
        ({"loss": "bce_dice", "prediction": "epsilon"}, "prediction='epsilon'|prediction='x0'"),
        ({"prediction": "noise"}, "prediction='noise'"),
        ({"loss": "l1"}, "loss='l1'"),
    ],
)
def test_values_out_of_range_and_contradictions_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DecoderConfig(**fields)


def test_the_papers_config_is_the_papers() -> None:
    config = DecoderConfig.paper()
    facts = (config.timesteps, config.steps, config.prediction, config.loss, config.signal_scale, config.shift)
    assert facts == (250, 50, "epsilon", "mse", 1.0, "quadratic")
    assert config.priors.kinds == ("prototype",) and config.priors.layout == "own" and config.priors.edges
    assert not config.priors.absolute and not config.priors.self_affinity


def test_weights_outlast_a_change_of_what_they_do_not_depend_on() -> None:
    config = tiny_config()
    for change in (
        {"steps": 5, "ensemble": 9, "threshold": 0.2, "backbone": "other"},
        {"error_weight": 0.0, "iou_weight": 0.0, "min_presence": 0.5},
        {"presence_calibration": (2.0, 1.0, 0.5, 0.0, -1.0), "quality_calibration": (0.0, 1.0, *[2.0] * 7)},
    ):
        assert config.same_network(dataclasses.replace(config, **change))
    for name in ("absolute", "self_affinity"):
        priors = dataclasses.replace(config.priors, **{name: False})
        assert not config.same_network(dataclasses.replace(config, priors=priors))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config()
    save_decoder(tmp_path / "decoder", random_decoder(config).state_dict(), config)
    return tmp_path / "decoder"


def test_a_decoder_that_is_saved_and_loaded_says_the_same(folder: Path) -> None:
    config = tiny_config()
    original, loaded = random_decoder(config).eval(), load_decoder(folder)
    assert loaded.config == config
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    x, time, condition = noise(2, 1, 64, 64), torch.rand(2), random_condition(config.priors)
    with torch.no_grad():
        a, b = original(x, time, condition), loaded(x, time, condition)
    assert torch.equal(a.output, b.output) and torch.equal(a.error, b.error) and torch.equal(a.iou, b.iou)


def test_half_precision_files_are_half_as_large_and_load_as_float32(folder: Path, tmp_path: Path) -> None:
    config = tiny_config()
    save_decoder(tmp_path / "half", random_decoder(config).state_dict(), config, torch.float16)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.7 * (folder / WEIGHTS).stat().st_size
    loaded = load_decoder(tmp_path / "half")
    for key, value in random_decoder(config).state_dict().items():
        assert loaded.state_dict()[key].dtype == torch.float32
        assert torch.allclose(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_the_folder_holds_two_files_and_nothing_unfinished(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}
    assert json.loads((folder / CONFIG).read_text())["channels"] == list(TINY["channels"])


def test_saving_over_a_decoder_that_fails_leaves_the_old_one(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(Exception, match="meta"):
        save_decoder(folder, {"head": torch.empty(3, device="meta")}, tiny_config())
    assert (folder / WEIGHTS).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load_decoder(folder)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["stem.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["stranger"] = torch.zeros(3)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["stem.weight"] = torch.zeros(4, 1, 3, 3)


def poison(tensors: dict[str, Tensor]) -> None:
    tensors["stem.weight"][0, 0, 0, 0] = torch.nan


def overflow(tensors: dict[str, Tensor]) -> None:
    tensors["head.1.bias"][0] = torch.inf


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop, "stem.weight"),
        (add, "stranger"),
        (reshape, "stem.weight"),
        (poison, "not finite.*stem.weight"),
        (overflow, "not finite.*head.1.bias"),
    ],
)
def test_weights_that_do_not_belong_are_refused(folder: Path, damage: Callable[..., None], named: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    damage(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=named):
        load_decoder(folder)


@pytest.mark.parametrize("length", [0, 4, 500, -100])
def test_truncated_weights_are_refused(folder: Path, length: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:length])
    with pytest.raises(WeightsError, match="damaged"):
        load_decoder(folder)


def test_weights_under_another_config_are_refused(folder: Path) -> None:
    config = dataclasses.replace(tiny_config(), channels=(8, 8, 16, 24))
    (folder / CONFIG).write_text(config.to_json())
    with pytest.raises(WeightsError, match="does not belong to its config"):
        load_decoder(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b'{"steps": "many"}'])
def test_a_damaged_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(ConfigError):
        load_decoder(folder)


@pytest.mark.parametrize("source", ["no/such/folder", "nowhere", "../a b"])
def test_what_is_neither_folder_nor_repository_is_said_so(source: str) -> None:
    with pytest.raises(WeightsError, match="is no folder"):
        fetch_decoder(source)


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"'user/repo'.*no route to host.*local copy"):
        fetch_decoder("user/repo")


# --- ensembles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "ensemble"), [(1, 1), (1, 50), (3, 7), (40, 2), (2, 33)])
def test_an_ensemble_is_computed_in_bounded_batches_and_is_that_of_all_samples(
    queries: int, ensemble: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(steps=1)
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors, queries)
    noise = draw_noise(condition, ensemble, torch.Generator().manual_seed(0))
    whole = sample(decoder, condition, noise, 1, trace=True)
    sizes: list[int] = []
    plain = type(decoder).forward
    monkeypatch.setattr(type(decoder), "forward", lambda self, x, *rest: sizes.append(len(x)) or plain(self, x, *rest))
    found = sample_ensemble(decoder, condition, noise, 1, trace=True)
    assert max(sizes) <= CPU_BATCH * torch.get_num_threads() and sum(sizes) == queries * ensemble
    assert len(sizes) == len(sample_batches(queries, ensemble, torch.device("cpu")))
    for got, expected in (
        (found.mean, whole.probability.mean(dim=1)),
        (found.variance, whole.probability.var(dim=1, correction=0)),
        (found.error, whole.error),
        (found.iou, whole.iou),
        (found.trace, whole.trace),
    ):
        assert torch.allclose(got, expected, atol=1e-4)


def test_an_ensemble_of_one_batch_is_that_batch_bit_for_bit() -> None:
    config, condition, noise, samples = sampled(ensemble=3)
    found = sample_ensemble(random_decoder(config).eval(), condition, noise, 3)
    assert torch.equal(found.mean, samples.probability.mean(dim=1)) and torch.equal(found.iou, samples.iou)
