"""Edges of the query image, against scikit-image's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diffup.inputs.images import read_image, resize_image
from diffup.priors.condition import EDGE_SIDE
from diffup.priors.edges import _hysteresis, canny, edge_maps, sobel, to_grey

skimage_data = pytest.importorskip("skimage.data")
ndimage = pytest.importorskip("scipy.ndimage")

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def photo(name: str) -> Tensor:
    return resize_image(read_image(getattr(skimage_data, name)()), (EDGE_SIDE, EDGE_SIDE))[None]


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """F1 of two edge maps, an edge pixel counting as found where the other map has one within a pixel of it."""
    precision = ndimage.maximum_filter(theirs, 3)[ours].mean()
    recall = ndimage.maximum_filter(ours, 3)[theirs].mean()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("name", PHOTOS)
def test_canny_agrees_with_scikit_image(name: str) -> None:
    from skimage.feature import canny as reference

    image = photo(name)
    grey = to_grey(image)[0, 0].double().numpy()
    smooth = ndimage.gaussian_filter(grey, 1.0, mode="nearest", truncate=3.0)
    # scikit-image's thresholds are on the plain sum of Sobel's weights, ours a share of the greatest magnitude.
    peak = np.hypot(*(ndimage.sobel(smooth, axis=axis, mode="nearest") for axis in (0, 1))).max()
    theirs = reference(grey, sigma=1.0, low_threshold=0.1 * peak, high_threshold=0.2 * peak, mode="nearest")
    ours = canny(image)[0, 0].numpy().astype(bool)
    inner = np.s_[2:-2, 2:-2]  # scikit-image finds nothing at the border
    assert theirs[inner].sum() > 300
    assert agreement(ours[inner], theirs[inner]) > 0.99


def test_canny_finds_the_outline_of_a_square_one_pixel_wide() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 10:31, 12:29] = 0.5  # a border pixel half covered, so that the steepest place is its centre
    image[..., 11:30, 13:28] = 1
    edges = canny(image)[0, 0].bool()
    outline = image[0, 0] == 0.5
    corners = ([10, 10, 30, 30], [12, 28, 12, 28])  # smoothing rounds them off
    outline[corners] = edges[corners]
    assert torch.equal(edges, outline)


def test_hysteresis_grows_as_max_pooling_does() -> None:
    generator = torch.Generator().manual_seed(0)
    weak = torch.rand(3, 1, 50, 70, generator=generator) < 0.35  # some of it joined over long ways
    strong = weak & (torch.rand(weak.shape, generator=generator) < 0.01)
    expected = strong
    for _ in range(200):
        expected = weak & (torch.nn.functional.max_pool2d(expected.float(), 3, stride=1, padding=1) > 0)
    found = _hysteresis(weak, strong)
    assert torch.equal(found, expected) and strong.sum() < found.sum() < weak.sum()


def test_hysteresis_keeps_weak_edges_only_where_they_touch_a_strong_one() -> None:
    image = torch.zeros(1, 3, 40, 80)
    image[..., 20:, :40] = torch.linspace(1.0, 0.16, 40)  # an edge that weakens along its way
    image[..., 20:, 60:] = 0.15  # one that is weak from the start
    edges = canny(image, low=0.1, high=0.3)[0, 0]
    assert edges[18:22, 5:38].amax(dim=0).all()
    assert not edges[:, 66:].any()


@pytest.mark.parametrize("name", PHOTOS)
def test_sobel_agrees_with_scipy(name: str) -> None:
    image = photo(name)
    grey = to_grey(image)[0, 0].double().numpy()
    magnitude = np.hypot(*(ndimage.sobel(grey, axis=axis, mode="nearest") for axis in (0, 1)))
    assert np.allclose(sobel(image)[0, 0], magnitude / magnitude.max(), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_has_no_edges(value: float) -> None:
    assert not edge_maps(torch.full((2, 3, 32, 48), value)).any()


def test_each_image_is_scaled_by_its_own_strongest_edge() -> None:
    image = photo("coffee")
    faint = image * 0.1 + 0.4
    together = edge_maps(torch.cat([image, faint]))
    assert torch.allclose(sobel(faint), sobel(image), atol=1e-4)
    assert torch.equal(together[:1], edge_maps(image)) and torch.equal(together[1:], edge_maps(faint))
    assert (together[0, 0] != together[1, 0]).float().mean() < 0.01


def test_edges_are_in_range_and_mirror_with_their_image() -> None:
    image = photo("rocket")
    maps = edge_maps(image)
    assert maps.shape == (1, 2, EDGE_SIDE, EDGE_SIDE)
    assert maps.min() >= 0 and maps.max() <= 1 and set(maps[:, 0].unique().tolist()) == {0.0, 1.0}
    mirrored = edge_maps(image.flip(-1)).flip(-1)
    assert torch.allclose(mirrored[:, 1], maps[:, 1], atol=1e-5)
    assert (mirrored[:, 0] != maps[:, 0]).float().mean() < 0.01


def test_grey_is_luminance() -> None:
    image = torch.tensor([0.5, 0.25, 1.0])[None, :, None, None]
    assert float(to_grey(image)) == pytest.approx(0.299 * 0.5 + 0.587 * 0.25 + 0.114)
