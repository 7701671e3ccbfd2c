"""Numbers at their limits: no NaN ever reaches a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from fakes import Changed, FakeBackbone, FakeFrozen, random_decoder, random_episode, tiny_config, tiny_model
from torch import Tensor

from diffup import Box, DiffUp, Mask, Points, Scribble, Segmentation
from diffup.errors import BackboneError, ConfigError, WeightsError
from diffup.priors.condition import build_condition, fused_priors
from diffup.priors.config import PriorConfig
from diffup.priors.normalisation import NORMALISATIONS

SIZE = (40, 56)
METRICS = [
    ("cosine", "identity"),
    ("l2_unit", "square"),
    ("l2", "exponential"),
    ("l1", "exponential"),
    ("l2", "reciprocal"),
]


def model(change: Callable[[Tensor], Tensor] = lambda level: level) -> DiffUp:
    encoder = Changed(FakeBackbone(input_size=(64, 64)), lambda _, level: change(level))
    return tiny_model(encoder)


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def assert_sound(result: Segmentation, size: tuple[int, int] = SIZE) -> None:
    for name in ("probability", "variance", "error_map", "prior"):
        values = getattr(result, name)
        assert values.shape == size and np.isfinite(values).all(), name
    assert result.probability.min() >= 0 and result.probability.max() <= 1
    assert (result.mask == (result.probability > result.threshold)).all()
    assert 0 <= result.quality <= 1


@pytest.mark.parametrize("grey", [0, 127, 255])
@pytest.mark.parametrize("which", ["query", "support", "both"])
def test_constant_images(grey: int, which: str) -> None:
    flat = np.full((*SIZE, 3), grey, np.uint8)
    query, support = (flat if which in (name, "both") else photo() for name in ("query", "support"))
    assert_sound(model().segment(query, support, Box(3, 3, 20, 20)))


@pytest.mark.parametrize("position", [(0, 0), (39, 55), (20, 30)])
@pytest.mark.parametrize("weight", [1.0, 1e-30])
def test_one_pixel_masks(position: tuple[int, int], weight: float) -> None:
    mask = np.zeros(SIZE, np.float32)
    mask[position] = weight
    for annotation in (Mask(mask), Points([position[::-1]], radius=0.1), Scribble([position[::-1]], width=1e-9)):
        assert_sound(model().segment(photo(), photo(1), annotation))
        assert_sound(model().segment(photo(), [photo(1)] * 3, [annotation] * 3))


def test_a_mask_of_everything() -> None:
    for annotation in (Mask(np.ones(SIZE, bool)), Box(0, 0, SIZE[1], SIZE[0]), None):
        assert_sound(model().segment(photo(), photo(1), annotation))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_images_of_any_proportions(size: tuple[int, int]) -> None:
    query = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert_sound(model().segment(query, query, Box(0, 0, 1, 1)), size)


CHANGES = {
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
    "huge": lambda level: level * 1e30,
    "at the end": lambda level: level / level.abs().amax() * 3e38,
    "large": lambda level: level * 1e4,
    "tiny": lambda level: level * 1e-30,
    "subnormal": lambda level: level * 1e-42,
    "one position": lambda level: torch.nn.functional.adaptive_avg_pool2d(level, 1),
    "far from zero": lambda level: level + 1e6,
    "one huge channel": lambda level: torch.cat([level[:, :1] * 1e20, level[:, 1:]], dim=1),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize(("metric", "conversion"), METRICS)
def test_features_of_any_size(change: str, metric: str, conversion: str) -> None:
    query, support, images = random_episode()
    query = [CHANGES[change](level) for level in query]
    support = replace(
        support,
        levels=tuple(CHANGES[change](level.flatten(0, 1)).unflatten(0, level.shape[:2]) for level in support.levels),
    )
    for normalisation in NORMALISATIONS:
        config = PriorConfig(metric=metric, conversion=conversion, normalisation=normalisation, grid=8)
        condition = build_condition(query, support, images, config)
        for level in (*condition.levels, condition.prior, *condition.affinity):
            assert level.isfinite().all() and level.abs().max() <= 1 + 1e-5
        for affinity in condition.affinity:
            assert affinity.min() >= 0 and affinity.sum(dim=3).max() <= 1 + 1e-4


@pytest.mark.parametrize("change", list(CHANGES))
def test_an_encoder_with_any_features_gives_a_mask(change: str) -> None:
    assert_sound(model(CHANGES[change]).segment(photo(), photo(1), Box(3, 3, 20, 20)))


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e30])
def test_priors_do_not_depend_on_the_scale_of_features(scale: float) -> None:
    query, support, _ = random_episode()
    larger = replace(support, levels=tuple(level * scale for level in support.levels))
    before = fused_priors(query, support, PriorConfig(grid=8))
    after = fused_priors([level * scale for level in query], larger, PriorConfig(grid=8))
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("value", "level"), list(product([torch.nan, torch.inf, -torch.inf], range(4))))
def test_an_encoder_that_gives_no_numbers_is_named(value: float, level: int) -> None:
    def spoil(index: int, features: Tensor) -> Tensor:
        features = features.clone()
        if index == level:
            features.flatten()[-1] = value
            features[..., -1, -1] = value
        return features

    broken = tiny_model(Changed(FakeBackbone(input_size=(64, 64)), spoil))
    with pytest.raises(BackboneError, match=f"'changed fake.*level {level} has NaN or infinite values"):
        broken.segment(photo(), photo(1), None)


def test_float16_overflow_is_an_error_of_the_encoder() -> None:
    encoder = FakeFrozen()
    with torch.no_grad():
        encoder.encoder[0][0].weight.mul_(1e6)
    encoder.encoder.half()
    with pytest.raises(BackboneError, match="float16 overflows"):
        tiny_model(encoder).segment(photo(), photo(1), None)


@pytest.mark.parametrize("scale", [1e20, 1e38])
def test_a_decoder_that_overflows_is_named(scale: float) -> None:
    decoder = random_decoder(tiny_config())
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(scale)
    with pytest.raises(WeightsError, match="NaN or infinity"):
        DiffUp(decoder, FakeBackbone(input_size=(64, 64)), "cpu").segment(photo(), photo(1), None)


@pytest.mark.parametrize(
    "options",
    [{"steps": 2.0}, {"steps": "2"}, {"steps": True}, {"ensemble": 10**9}, {"ensemble": None, "threshold": "0.5"}]
    + [{"threshold": value} for value in (float("nan"), 0, 1, -1)]
    + [{"seed": value} for value in (2**64, -(2**64), 1.5, "1", None)],
)
def test_sampling_options_that_are_no_numbers(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=list(options)[-1]):
        model().segment(photo(), photo(1), None, **options)
