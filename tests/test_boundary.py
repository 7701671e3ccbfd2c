"""Boundary IoU against a literal reading of its definition, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from diffup.data.base import Target
from diffup.evaluation.boundary import boundary, boundary_overlap, boundary_width


def by_the_definition(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask from which some pixel within `width` in both directions is background or outside the image."""
    near = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        for y in range(row - width, row + width + 1):
            for x in range(column - width, column + width + 1):
                inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
                near[row, column] |= not (inside and mask[y, x])
    return near


def eroded_step_by_step(mask: np.ndarray, width: int) -> np.ndarray:
    """The authors' way: pad by one pixel of 0, erode by 3 x 3 as often as the boundary is wide, subtract."""
    eroded = ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=width, border_value=1)
    return mask & ~eroded[1:-1, 1:-1]


def blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(rng.random(size), max(size) / 15) > rng.uniform(0.45, 0.55)


def nothing_ignored(mask: np.ndarray) -> Target:
    return Target(mask, np.zeros_like(mask))


@pytest.mark.parametrize(
    ("size", "width"), [((1, 1), 1), ((30, 40), 1), ((60, 80), 2), ((400, 400), 11), ((480, 640), 16)]
)
def test_the_width_is_two_percent_of_the_diagonal(size: tuple[int, int], width: int) -> None:
    assert boundary_width(*size) == width


@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_boundaries_are_those_of_the_definition(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    for mask in (blobs(rng, (height, width)), rng.random((height, width)) > 0.02):
        expected = by_the_definition(mask, boundary_width(height, width))
        assert np.array_equal(boundary(mask), expected)
        assert np.array_equal(eroded_step_by_step(mask, boundary_width(height, width)), expected)


@pytest.mark.parametrize("size", [(400, 400), (480, 640), (3, 700)])
def test_boundaries_of_large_images_are_those_of_repeated_erosion(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(size[1])
    for mask in (blobs(rng, size), np.ones(size, dtype=bool), np.zeros(size, dtype=bool)):
        assert np.array_equal(boundary(mask), eroded_step_by_step(mask, boundary_width(*size)))


def test_the_overlap_by_hand() -> None:
    """Squares of 10 and 6 pixels a side, 40 x 40 image, so rings of one pixel: 36 and 20, apart or touching."""
    large, small = np.zeros((2, 40, 40), dtype=bool)
    large[10:20, 10:20] = True
    small[12:18, 12:18] = True
    assert boundary_overlap(small, nothing_ignored(large)) == (0, 56), "the IoU of the masks is 0.36"
    small = np.roll(small, (-2, -2), axis=(0, 1))
    assert boundary_overlap(small, nothing_ignored(large)) == (11, 45), "two sides of six pixels are shared"
    assert boundary_overlap(large, nothing_ignored(large)) == (36, 36)
    whole = np.ones((40, 40), dtype=bool)
    assert boundary_overlap(whole, nothing_ignored(whole)) == (4 * 39,) * 2, "the image border is an outline"
    nothing = np.zeros((40, 40), dtype=bool)
    assert boundary_overlap(nothing, nothing_ignored(large)) == (0, 36)
    assert boundary_overlap(nothing, nothing_ignored(nothing)) == (0, 0)


def test_ignored_pixels_do_not_count_whatever_is_predicted_there() -> None:
    rng = np.random.default_rng(0)
    mask, found = blobs(rng, (120, 160)), blobs(rng, (120, 160))
    ignore = ndimage.binary_dilation(mask, iterations=3) & ~mask  # around objects, as in PASCAL VOC
    target = Target(mask, ignore)
    expected = boundary_overlap(found & ~ignore, nothing_ignored(mask))
    assert 0 < expected[0] < expected[1] and (found & ignore).any()
    for there in (np.zeros_like(mask), np.ones_like(mask), rng.random(mask.shape) > 0.5):
        assert boundary_overlap(np.where(ignore, there, found), target) == expected
    assert boundary_overlap(mask | ignore, target) == (int(boundary(mask).sum()),) * 2, "a perfect mask"
