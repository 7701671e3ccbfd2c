"""Affinity of the query with itself (BAFT, eq. 11)."""

from __future__ import annotations

import pytest
import torch
from fakes import noise, rotate
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup.priors.affinity import affinity, enhance


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 5.0])
def test_affinity_is_its_definition(power: float) -> None:
    features = noise(2, 6, 5)
    result = affinity(features, power)
    for n in range(2):
        for i in range(5):
            row = torch.stack(
                [torch.cosine_similarity(features[n, :, i], features[n, :, j], dim=0).clamp_min(0) for j in range(5)]
            )
            assert torch.allclose(result[n, i], row**power / (row**power).sum(), atol=1e-5)


@given(st.integers(1, 8), st.integers(1, 20), st.floats(0.2, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_rows_are_weights(channels: int, positions: int, power: float, seed: int) -> None:
    result = affinity(noise(1, channels, positions, seed=seed), power)
    assert result.min() >= 0
    assert torch.allclose(result.sum(dim=2), torch.ones(1, positions), atol=1e-5)


def test_rows_are_zero_where_the_features_are() -> None:
    features = noise(1, 4, 3)
    features[0, :, 1] = 0
    result = affinity(features)
    assert not result[0, 1].any() and not result[0, :, 1].any()
    assert torch.allclose(result[0, [0, 2]].sum(dim=1), torch.ones(2))
    assert not affinity(torch.zeros(1, 4, 3)).any()


def test_the_features_are_left_as_they_are() -> None:
    features = noise(1, 4, 3)
    before = features.clone()
    affinity(features, 2)
    assert torch.equal(features, before)


def test_a_higher_power_listens_to_closer_look_alikes() -> None:
    features = noise(1, 3, 30)
    own = [affinity(features, power).diagonal(dim1=1, dim2=2).mean() for power in (1.0, 2.0, 4.0)]
    assert own[0] < own[1] < own[2]


def test_enhancing_spreads_a_prior_over_look_alikes_and_no_further() -> None:
    same, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    features = torch.stack([same, other, same, other], dim=1)[None]
    prior = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])  # found at one of two equal positions
    assert torch.allclose(enhance(prior, affinity(features)), torch.tensor([[[0.5, 0.0, 0.5, 0.0]]]))


def test_enhancing_is_the_matrix_product_and_keeps_a_constant_prior() -> None:
    weights, priors = affinity(noise(2, 5, 7)), noise(2, 3, 7, seed=1)
    expected = torch.stack([torch.stack([weights[n] @ priors[n, m] for m in range(3)]) for n in range(2)])
    assert torch.allclose(enhance(priors, weights), expected, atol=1e-6)
    assert torch.allclose(enhance(torch.full((2, 1, 7), 0.3), weights), torch.full((2, 1, 7), 0.3), atol=1e-6)


def test_a_rotation_of_feature_space_changes_nothing() -> None:
    features = noise(2, 16, 3, 4)
    turned = rotate(features).flatten(2)
    assert torch.allclose(affinity(features.flatten(2), 2), affinity(turned, 2), atol=1e-6)
