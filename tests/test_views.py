"""Views of a single support: flip and scale about the centre."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View, warp


def blob(x: float, y: float, size: tuple[int, int] = (60, 90)) -> Tensor:
    """A soft disc whose centre is (x, y) pixels right of and below the image's centre."""
    rows = torch.arange(size[0])[:, None] - (size[0] - 1) / 2 - y
    columns = torch.arange(size[1])[None] - (size[1] - 1) / 2 - x
    return torch.exp(-(rows**2 + columns**2) / 18)[None, None]


def centre(maps: Tensor) -> tuple[float, float]:
    """Where the mass of a map is, in pixels right of and below the image's centre."""
    height, width = maps.shape[-2:]
    mass = maps[0, 0] / maps.sum()
    x = (mass.sum(dim=0) * (torch.arange(width) - (width - 1) / 2)).sum()
    y = (mass.sum(dim=1) * (torch.arange(height) - (height - 1) / 2)).sum()
    return float(x), float(y)


def test_the_identity_is_exact() -> None:
    maps = torch.rand(2, 3, 10, 14)
    assert torch.equal(warp(maps, IDENTITY), maps)


def test_the_flip_is_exact_and_the_general_path_agrees_with_it() -> None:
    maps = torch.rand(2, 3, 10, 14)
    assert torch.equal(warp(maps, View(flip=True)), maps.flip(-1))
    nearly = warp(maps, View(flip=True, scale=1 + 1e-9))
    assert torch.allclose(nearly, maps.flip(-1), atol=1e-4)


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (64, 64)])
@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_a_scale_above_one_zooms_in(size: tuple[int, int], scale: float) -> None:
    x, y = centre(warp(blob(12, -8, size), View(scale=scale)))
    assert (x, y) == pytest.approx((12 * scale, -8 * scale), abs=0.1)


@pytest.mark.parametrize(
    ("view", "inverse"),
    [
        (View(scale=1.25), View(scale=0.8)),
        (View(flip=True), View(flip=True)),
        (View(flip=True, scale=0.8), View(flip=True, scale=1.25)),
    ],
)
def test_the_inverse_view_brings_the_image_back(view: View, inverse: View) -> None:
    maps = blob(10, -6) + 0.5 * blob(-14, 8)
    back = warp(warp(maps, view), inverse)
    assert (warp(maps, view) - maps).abs().max() > 0.3
    assert (back - maps).abs().max() < 0.1


def test_what_comes_in_from_outside_is_a_mirror_image() -> None:
    maps = torch.ones(1, 1, 20, 30)
    for view in ONE_SHOT_VIEWS:
        assert torch.allclose(warp(maps, view), maps, atol=1e-5)
    shrunk = warp(blob(0, 25, (60, 60)), View(scale=0.5))  # near the lower border: its mirror image shows beyond
    assert shrunk[0, 0, 42:46, 28:32].max() > 0.5 and shrunk[0, 0, 47:51, 28:32].max() > 0.5


def test_weights_stay_weights() -> None:
    weights = (torch.rand(1, 2, 40, 40) > 0.5).float()
    for view in ONE_SHOT_VIEWS:
        warped = warp(weights, view)
        assert warped.shape == weights.shape and warped.min() >= 0 and warped.max() <= 1 + 1e-6


def test_the_one_shot_views_differ_and_begin_with_the_image_itself() -> None:
    assert ONE_SHOT_VIEWS[0] == IDENTITY and len(set(ONE_SHOT_VIEWS)) == len(ONE_SHOT_VIEWS) == 3
