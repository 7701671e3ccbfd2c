"""Prototypes, similarities and best matches (BAFT, eqs. 9-10, Table 7), against plain definitions."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from fakes import noise, rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffup.errors import ConfigError
from diffup.priors.normalisation import gamma, normalise
from diffup.priors.similarity import (
    CONVERSIONS,
    METRICS,
    best_match,
    check_metric,
    masked_average_pooling,
    pairwise_similarity,
    resize_weights,
)

ALLOWED = {("cosine", "identity"), ("l2_unit", "square")} | {
    (metric, conversion) for metric in ("l2_unit", "l2", "l1") for conversion in ("exponential", "reciprocal")
}


def test_weights_are_the_annotated_share_of_each_cell() -> None:
    weights = torch.zeros(1, 8, 8)
    weights[0, :4, :4] = 1  # the whole first cell
    weights[0, 4:6, 4:] = 1  # half of the last
    assert torch.equal(resize_weights(weights, (2, 2)), torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]))


def test_an_annotation_that_would_vanish_keeps_its_strongest_pixel() -> None:
    weights = torch.zeros(2, 128, 128)
    weights[0, 70, 100] = 1  # one pixel of 4096 in its cell: vanishes under averaging
    weights[1, :64] = 1  # an ordinary one in the same batch must not be touched
    resized = resize_weights(weights, (2, 2))
    assert torch.equal(resized[0], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(resized[1], torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_an_empty_annotation_stays_empty() -> None:
    assert not resize_weights(torch.zeros(1, 128, 128), (4, 4)).any()


def test_a_vanishing_annotation_has_the_prototype_of_its_position() -> None:
    features = noise(1, 6, 4, 4)
    weights = torch.zeros(1, 128, 128)
    weights[0, 100, 40] = 1
    prototype = masked_average_pooling(features.flatten(2), resize_weights(weights, (4, 4)).flatten(1))
    assert torch.allclose(prototype[0], features[0, :, 3, 1])


def test_masked_average_pooling_is_the_weighted_mean() -> None:
    features, weights = noise(3, 5, 7), noise(3, 7, seed=1).sigmoid()
    expected = torch.stack(
        [sum(weights[n, p] * features[n, :, p] for p in range(7)) / weights[n].sum() for n in range(3)]
    )
    assert torch.allclose(masked_average_pooling(features, weights), expected, atol=1e-6)


def test_masked_average_pooling_of_nothing_is_zero() -> None:
    assert torch.equal(masked_average_pooling(noise(1, 5, 7), torch.zeros(1, 7)), torch.zeros(1, 5))


def test_the_prior_is_one_where_the_feature_is_the_prototype() -> None:
    features = noise(1, 6, 9)
    similarity = pairwise_similarity(3 * features[:, None, :, 4], features)
    assert similarity[0, 0, 4] == pytest.approx(1, abs=1e-6)
    assert similarity[0, 0].argmax() == 4


@pytest.mark.parametrize(("metric", "conversion"), sorted(ALLOWED))
def test_similarities_are_their_definitions(metric: str, conversion: str) -> None:
    vectors, features = noise(2, 3, 5), noise(2, 5, 4, seed=1)
    result = pairwise_similarity(vectors, features, metric, conversion)
    away = features - features.mean(dim=2, keepdim=True)  # distances between other than unit vectors count in these
    spread = away.abs().sum(dim=1).mean(dim=1) if metric == "l1" else away.norm(dim=1).mean(dim=1)
    for n, v, p in product(range(2), range(3), range(4)):
        a, b = vectors[n, v], features[n, :, p]
        if metric in ("cosine", "l2_unit"):
            a, b = a / a.norm(), b / b.norm()
        if metric == "cosine":
            expected = a @ b
        else:
            d = (a - b).abs().sum() if metric == "l1" else (a - b).norm()
            d = d if metric == "l2_unit" else d / spread[n]
            expected = {"square": 1 - d**2 / 2, "exponential": torch.exp(-d), "reciprocal": 1 / (1 + d)}[conversion]
        assert result[n, v, p] == pytest.approx(float(expected), abs=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_table_7_the_cosine_is_one_minus_half_the_squared_distance_of_unit_vectors(
    channels: int, positions: int, seed: int
) -> None:
    vectors, features = noise(1, 2, channels, seed=seed), noise(1, channels, positions, seed=seed + 1)
    cosine = pairwise_similarity(vectors, features)
    assert torch.allclose(cosine, pairwise_similarity(vectors, features, "l2_unit", "square"), atol=1e-5)
    assert cosine.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(("metric", "conversion"), [pair for pair in sorted(ALLOWED) if pair[0] != "l1"])
def test_a_rotation_of_feature_space_changes_nothing(metric: str, conversion: str) -> None:
    vectors, features, turn = noise(2, 3, 16), noise(2, 16, 10, seed=1), rotation(16)
    before = pairwise_similarity(vectors, features, metric, conversion)
    after = pairwise_similarity(vectors @ turn.T, turn @ features, metric, conversion)
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(("metric", "conversion"), sorted(ALLOWED))
@pytest.mark.parametrize("scale", [1e-3, 1e4, 1e12])
def test_long_features_have_the_same_similarities(metric: str, conversion: str, scale: float) -> None:
    """exp(-d) of a raw distance is zero everywhere in 2048 channels."""
    vectors, features = noise(2, 3, 2048), noise(2, 2048, 10, seed=1)
    before = pairwise_similarity(vectors, features, metric, conversion)
    after = pairwise_similarity(vectors * scale, features * scale, metric, conversion)
    assert torch.allclose(before, after, atol=1e-4)
    assert (before.amax(dim=2) - before.amin(dim=2)).min() > 1e-3


@pytest.mark.parametrize(("metric", "conversion"), list(product(METRICS, CONVERSIONS)))
def test_metric_and_conversion_must_belong_together(metric: str, conversion: str) -> None:
    if (metric, conversion) in ALLOWED:
        check_metric(metric, conversion)
    else:
        with pytest.raises(ConfigError, match=f"conversion='{conversion}'"):
            pairwise_similarity(noise(1, 1, 3), noise(1, 3, 2), metric, conversion)


def test_unknown_metrics_and_conversions_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="metric='l3' is unknown; choose one of cosine, l2_unit, l2, l1"):
        check_metric("l3", "exponential")
    with pytest.raises(ConfigError, match="conversion='log' is unknown; choose one of identity"):
        check_metric("l2", "log")


def brute_force_match(similarity: Tensor, foreground: Tensor, background: Tensor, known: bool) -> Tensor:
    support, positions = similarity.shape
    inside = [s for s in range(support) if foreground[s] >= 0.5 * foreground.max()]
    outside = [s for s in range(support) if background[s] > 0.5 and s not in inside]
    result = []
    for p in range(positions):
        best = max(float(similarity[s, p]) for s in inside)
        if known and outside:
            result.append(best - max(float(similarity[s, p]) for s in outside))
        else:
            result.append(best - sum(float(similarity[s, p]) for s in range(support)) / support)
    return torch.tensor(result)


@given(st.integers(2, 12), st.integers(1, 6), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_best_match_against_brute_force(support: int, positions: int, known: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(1, support, positions, generator=generator) * 2 - 1
    foreground = torch.rand(1, support, generator=generator)
    background = torch.rand(1, support, generator=generator)
    result = best_match(similarity, foreground, background, torch.tensor([known]))
    assert torch.allclose(result[0], brute_force_match(similarity[0], foreground[0], background[0], known), atol=1e-5)


def test_best_match_where_everything_is_foreground_takes_the_mean_for_background() -> None:
    similarity = noise(1, 5, 4)
    everything = torch.ones(1, 5)
    expected = similarity.amax(dim=1) - similarity.mean(dim=1)
    for known in (True, False):
        result = best_match(similarity, everything, torch.zeros(1, 5), torch.tensor([known]))
        assert torch.allclose(result, expected)


@pytest.mark.parametrize("weight", [1e-5, 1e-3, 1.0])
def test_best_match_finds_a_foreground_however_faint(weight: float) -> None:
    similarity = noise(1, 3, 4)
    foreground = torch.tensor([[0.0, weight, 0.0]])
    result = best_match(similarity, foreground, torch.zeros(1, 3), torch.tensor([False]))
    assert torch.allclose(result, similarity[:, 1] - similarity.mean(dim=1))


def test_best_match_of_no_foreground_is_finite() -> None:
    for known in (True, False):
        result = best_match(noise(1, 3, 4), torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([known]))
        assert result.isfinite().all()


@given(st.integers(2, 50), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_minmax_and_rank_span_zero_to_one_and_keep_the_order(positions: int, seed: int) -> None:
    maps = noise(2, positions, seed=seed) * 100
    for method in ("minmax", "rank"):
        result = normalise(maps, method)
        assert torch.equal(result.amin(dim=1), torch.zeros(2)) and torch.equal(result.amax(dim=1), torch.ones(2))
        assert torch.equal(maps.argsort(dim=1), result.argsort(dim=1, stable=True))


def test_rank_shares_the_mean_rank_between_equal_values() -> None:
    assert torch.equal(normalise(torch.full((2, 5), 3.0), "rank"), torch.full((2, 5), 0.5))
    assert torch.equal(normalise(torch.tensor([2.0, 1.0, 2.0]), "rank"), torch.tensor([0.75, 0.0, 0.75]))


def test_rank_gives_every_map_the_same_histogram() -> None:
    ranks = normalise(noise(3, 40).exp(), "rank")
    assert all(torch.equal(ranks[0].sort().values, row.sort().values) for row in ranks)


def test_affine_and_constant_maps() -> None:
    assert torch.allclose(normalise(torch.tensor([-1.0, 0.0, 1.0, 3.0]), "affine"), torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert torch.equal(normalise(torch.full((2, 6), 0.7), "minmax"), torch.zeros(2, 6))
    assert torch.equal(normalise(torch.full((1,), 0.7), "rank"), torch.zeros(1))


def test_gamma_bends_between_fixed_ends() -> None:
    maps = torch.tensor([0.0, 0.25, 1.0])
    bent = gamma(maps, torch.tensor(0.5))
    assert bent[2] == 1 and bent[1] == pytest.approx(0.5) and bent[0] == pytest.approx(0, abs=math.sqrt(1e-6) * 1.01)
    assert torch.allclose(gamma(maps, torch.tensor(1.0)), maps, atol=1e-5)
