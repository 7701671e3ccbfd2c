"""Fusion of any number of views into the same channels (UAPF, eq. 12)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffup.priors.fusion import fuse, nearest_views


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def all_valid(views: Tensor) -> Tensor:
    return torch.ones(views.shape[:2], dtype=torch.bool)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_mean_and_variance_are_numpys(batch: int, shots: int, positions: int, seed: int) -> None:
    views = uniform(batch, shots, positions, seed=seed)
    mean, variance = fuse(views, all_valid(views))
    assert np.allclose(mean, views.numpy().mean(axis=1), atol=1e-6)
    assert np.allclose(variance, 4 * views.numpy().var(axis=1), atol=1e-6)
    assert mean.min() >= 0 and mean.max() <= 1 and variance.min() >= 0 and variance.max() <= 1 + 1e-6


def test_the_greatest_variance_is_one() -> None:
    _, variance = fuse(torch.tensor([[[0.0], [1.0]]]), torch.ones(1, 2, dtype=torch.bool))
    assert float(variance) == 1


@given(st.permutations(range(5)), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_views_does_not_matter(order: list[int], seed: int) -> None:
    views, valid = uniform(2, 5, 6, seed=seed), torch.tensor([[True] * 5, [True, False, True, True, False]])
    mean, variance = fuse(views, valid)
    mean_again, variance_again = fuse(views[:, order], valid[:, order])
    assert torch.allclose(mean, mean_again, atol=1e-6) and torch.allclose(variance, variance_again, atol=1e-6)
    nearest = nearest_views(views, valid, mean, 2)
    assert torch.equal(nearest, nearest_views(views[:, order], valid[:, order], mean, 2))


@pytest.mark.parametrize("shots", [1, 2, 3, 5, 7])
def test_equal_views_have_no_variance(shots: int) -> None:
    views = uniform(2, 1, 6).expand(2, shots, 6)
    mean, variance = fuse(views, all_valid(views))
    assert torch.allclose(mean, views[:, 0], atol=1e-6) and variance.max() < 1e-12


@pytest.mark.parametrize("padding", [0.0, 7.0])
def test_padding_changes_nothing_whatever_it_holds(padding: float) -> None:
    views = uniform(2, 3, 6)
    padded = torch.cat([views, torch.full((2, 2, 6), padding)], dim=1)
    valid = torch.tensor([[True, True, True, False, False]]).expand(2, 5)
    mean, variance = fuse(views, all_valid(views))
    for result, expected in zip(fuse(padded, valid), (mean, variance), strict=True):
        assert torch.allclose(result, expected, atol=1e-6)
    expected = nearest_views(views, all_valid(views), mean, 3)
    assert torch.equal(nearest_views(padded, valid, mean, 3), expected)


def test_a_view_of_double_weight_is_two_views() -> None:
    views = uniform(2, 3, 6)
    weighted = fuse(views, torch.tensor([[2.0, 1.0, 0.5]]).expand(2, 3))
    repeated = fuse(views[:, [0, 0, 0, 0, 1, 1, 2]], torch.ones(2, 7, dtype=torch.bool))
    for result, expected in zip(weighted, repeated, strict=True):
        assert torch.allclose(result, expected, atol=1e-6)


def test_nearest_views_against_brute_force() -> None:
    views = uniform(3, 5, 8)
    mean, _ = fuse(views, all_valid(views))
    chosen = nearest_views(views, all_valid(views), mean, 2)
    for b in range(3):
        order = sorted(range(5), key=lambda k: float(((views[b, k] - mean[b]) ** 2).sum()))
        assert torch.equal(chosen[b], views[b, order[:2]])


@pytest.mark.parametrize("count", [1, 2])
def test_two_views_are_equally_near_and_yet_their_order_does_not_matter(count: int) -> None:
    views = uniform(50, 2, 30)
    mean, _ = fuse(views, all_valid(views))
    chosen = nearest_views(views, all_valid(views), mean, count)
    swapped = views.flip(1)
    mean_again, _ = fuse(swapped, all_valid(views))
    assert torch.equal(chosen, nearest_views(swapped, all_valid(views), mean_again, count))


def test_nearest_views_repeat_where_there_are_too_few() -> None:
    views = uniform(1, 3, 4)
    valid = torch.tensor([[True, False, True]])
    mean, _ = fuse(views, valid)
    a, b = nearest_views(views, valid, mean, 2)[0]
    assert {tuple(a.tolist()), tuple(b.tolist())} == {tuple(views[0, k].tolist()) for k in (0, 2)}
    assert torch.equal(nearest_views(views, valid, mean, 5)[0], torch.stack([a, b, a, b, a]))
    single = nearest_views(views[:, :1], valid[:, :1], views[:, 0], 2)
    assert torch.equal(single, views[:, [0, 0]])
