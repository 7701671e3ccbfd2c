"""Affinity of the query with itself (BAFT, eq. 11)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fakes import noise, pad_channels, rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffup.priors.affinity import HEADS, KEY_SIDE, affinity, enhance, self_affinities


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


# --- of the condition, for the decoder -------------------------------------------------------------------------------


def pyramid(seed: int = 0) -> list[Tensor]:
    """Features of two queries, finer and coarser than the grids of positions and cells."""
    sides = (64, 32, 16, 8)
    return [noise(2, width, side, side, seed=seed + side) for width, side in zip((6, 8, 12, 16), sides, strict=True)]


def assert_equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...], atol: float = 1e-6) -> None:
    for one, other in zip(a, b, strict=True):
        assert torch.allclose(one, other, atol=atol), float((one - other).abs().max())


def test_self_affinities_are_their_definition() -> None:
    """Powers of centred cosines between positions and cells, each row divided by its sum."""
    query = pyramid()
    for found, (side, heads) in zip(self_affinities(query), HEADS.items(), strict=True):
        assert found.shape == (2, len(heads), side**2, KEY_SIDE**2)
        for head, (level, power) in enumerate(heads):
            features = query[level] - query[level].mean(dim=(2, 3), keepdim=True)
            at = []
            for wanted in (side, KEY_SIDE):
                if features.shape[-1] >= wanted:
                    at.append(torch.nn.functional.avg_pool2d(features, features.shape[-1] // wanted))
                else:
                    at.append(torch.nn.functional.interpolate(features, (wanted, wanted), mode="bilinear"))
            for position in (0, side + 3, side**2 - 1):
                one = at[0].flatten(2)[:, :, position, None]
                row = torch.cosine_similarity(one, at[1].flatten(2), dim=1).clamp_min(0) ** power
                assert torch.allclose(found[:, head, position], row / row.sum(dim=1, keepdim=True), atol=1e-5)


def test_rows_of_self_affinities_are_weights() -> None:
    for found in self_affinities(pyramid()):
        assert found.min() >= 0
        assert torch.allclose(found.sum(dim=3), torch.ones(found.shape[:3]), atol=1e-5)


@pytest.mark.parametrize(
    "change", [rotate, pad_channels, lambda level: level * 1e-3, lambda level: level * 1e30, lambda level: level + 1.0]
)
def test_self_affinities_do_not_see_how_an_encoder_writes_its_features(change: Callable[[Tensor], Tensor]) -> None:
    """Rotated, padded, scaled or shifted by what all positions have."""
    query = pyramid()
    assert_equal(self_affinities(query), self_affinities([change(level) for level in query]), atol=1e-5)


def test_self_affinities_of_a_joint_encoder_are_of_the_mean_cosines_of_its_members() -> None:
    query, other = pyramid(), pyramid(seed=7)
    alone = self_affinities(query)
    one = tuple((level.shape[1],) for level in query)
    assert_equal(alone, self_affinities(query, one), atol=0)
    twice = [torch.cat([level, level], dim=1) for level in query]
    members = tuple((level.shape[1],) * 2 for level in query)
    assert_equal(alone, self_affinities(twice, members))
    # Members of other scales: each has one vote, and their order does not matter.
    mixed, turned = (
        self_affinities([torch.cat(pair, dim=1) for pair in zip(*sides, strict=True)], members)
        for sides in ((query, [level * 50 for level in other]), ([level * 50 for level in other], query))
    )
    assert_equal(mixed, turned, atol=1e-5)
    assert not torch.allclose(mixed[0], alone[0], atol=1e-2)


def test_a_position_listens_to_the_cells_that_show_the_same_thing() -> None:
    labels = torch.zeros(32, 32, dtype=torch.long)
    labels[:, 16:] = 1
    features = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])[labels].permute(2, 0, 1)[None]
    for found, side in zip(self_affinities([features] * 4), HEADS, strict=True):
        weights = found.view(1, -1, side, side, KEY_SIDE, KEY_SIDE)
        left = weights[:, :, :, : side // 2]
        assert torch.allclose(left[..., : KEY_SIDE // 2].sum(dim=(-1, -2)), torch.ones(left.shape[:4]), atol=1e-5)
        assert float(left[..., : KEY_SIDE // 2].max()) == pytest.approx(2 / KEY_SIDE**2, rel=1e-4)


def test_self_affinities_of_features_without_any_difference_are_zero_or_weights() -> None:
    for value in (0.0, 1.0):
        for found in self_affinities([torch.full_like(level, value) for level in pyramid()]):
            assert found.isfinite().all() and found.sum(dim=3).max() <= 1 + 1e-5
