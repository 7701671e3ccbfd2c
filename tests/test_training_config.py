"""The training config."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup.errors import ConfigError
from diffup.training.config import EpisodesConfig, PerturbConfig, TrainConfig, ViewsConfig

# --- the config ------------------------------------------------------------------------------------------------------

train_configs = st.builds(
    TrainConfig,
    views=st.builds(ViewsConfig, crops=st.integers(0, 9), crop_scale=st.floats(0.01, 1), jitter=st.floats(0, 0.99)),
    episodes=st.builds(
        EpisodesConfig,
        max_shots=st.integers(1, 9),
        mixed=st.floats(0, 1),
        pasted=st.floats(0, 0.6),
        absent=st.floats(0, 1),
        near=st.floats(0, 1),
        text=st.floats(0, 0.5),
        text_and_supports=st.floats(0, 0.5),
    ),
    text_backbone=st.text(max_size=9),
    perturb=st.builds(PerturbConfig, gamma=st.floats(0, 2), swap_levels=st.floats(0, 1)),
    backbones=st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3).map(tuple),
    folds=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    steps=st.integers(1, 10**6),
    learning_rate=st.floats(1e-6, 1),
    bf16=st.booleans(),
    seed=st.integers(0, 2**31),
)


@given(train_configs)
@settings(max_examples=40, deadline=None)
def test_the_config_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ('{"step": 5}', "unknown field step"),
        ('{"steps": "5"}', "steps must be of type int"),
        ('{"folds": ["0"]}', r"folds\[0\] must be of type int"),
        ('{"decoder": {"chanels": []}}', r"unknown field decoder\.chanels"),
        ('{"decoder": {"priors": {"grid": 1.5}}}', r"decoder\.priors\.grid must be of type int"),
        ('{"backbones": "timm:resnet50"}', "backbones must be a list"),
        ('{"learning_rate": NaN}', "learning_rate"),
    ],
)
def test_broken_configs_are_refused_by_the_name_of_the_field(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig.from_json(text)


@pytest.mark.parametrize(
    ("make", "fields", "named"),
    [
        (TrainConfig, {"backbones": ()}, "backbones is empty"),
        (TrainConfig, {"steps": 0}, "steps=0"),
        (TrainConfig, {"batch_size": 0}, "batch_size=0"),
        (TrainConfig, {"learning_rate": 0.0}, "learning_rate=0.0"),
        (TrainConfig, {"gradient_norm": 0.0}, "gradient_norm=0.0"),
        (TrainConfig, {"warmup": -1}, "warmup=-1"),
        (TrainConfig, {"weight_decay": -0.1}, "weight_decay=-0.1"),
        (TrainConfig, {"noisy_steps": -1.0}, "noisy_steps=-1.0"),
        (TrainConfig, {"ema": 1.0}, "ema=1.0"),
        (TrainConfig, {"self_aligned": 1.5}, "self_aligned=1.5"),
        (TrainConfig, {"seed": -1}, "seed=-1"),
        (ViewsConfig, {"images": 1}, "images=1"),
        (ViewsConfig, {"crops": -1}, "crops=-1"),
        (ViewsConfig, {"pasted": -1}, "pasted=-1"),
        (ViewsConfig, {"crop_scale": 0.0}, "crop_scale=0.0"),
        (ViewsConfig, {"jitter": 1.0}, "jitter=1.0"),
        (EpisodesConfig, {"max_shots": 0}, "max_shots=0"),
        (EpisodesConfig, {"mask": 0.9}, "sum to 1"),
        (EpisodesConfig, {"mask": 0.75, "none": -0.15}, "sum to 1"),
        (EpisodesConfig, {"mixed": 1.1}, "mixed=1.1"),
        (EpisodesConfig, {"pasted": 0.7, "cropped": 0.7}, "more than all queries"),
        (EpisodesConfig, {"absent": 1.5}, "absent=1.5"),
        (EpisodesConfig, {"near": -0.5}, "near=-0.5"),
        (EpisodesConfig, {"text": -0.1}, "text=-0.1"),
        (EpisodesConfig, {"text": 0.7, "text_and_supports": 0.4}, "shares of all batches"),
        (PerturbConfig, {"gamma": -1.0}, "gamma"),
        (PerturbConfig, {"swap_levels": 2.0}, "swap_levels"),
        (PerturbConfig, {"misplace": -0.1}, "misplace"),
        (PerturbConfig, {"flatten": 1.1}, "flatten"),
    ],
)
def test_values_out_of_range_are_refused(make: type, fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**fields)


def test_later_files_override_earlier_ones_field_by_field(tmp_path: Path) -> None:
    texts = {
        "a": '{"steps": 9, "decoder": {"steps": 7, "priors": {"edges": false, "grid": 9}},'
        ' "metrics": [["l1", "reciprocal"]]}',
        "b": '{"decoder": {"priors": {"grid": 5}}, "metrics": []}',
        "broken": "{",
        "list": "[]",
        "unknown": '{"decoder": {"priors": {"gird": 5}}}',
    }
    paths = {name: tmp_path / f"{name}.json" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text)
    config = TrainConfig.from_files([paths["a"], paths["b"]])
    assert (config.steps, config.decoder.steps, config.decoder.priors.edges, config.decoder.priors.grid) == (
        9,
        7,
        False,
        5,
    )
    assert config.metrics == () and TrainConfig.from_files([]) == TrainConfig()
    for name, message in (
        ("broken", "broken.json is not valid JSON"),
        ("list", "JSON object"),
        ("unknown", "priors.gird"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_files([paths["a"], paths[name]])
