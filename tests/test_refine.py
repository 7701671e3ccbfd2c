"""Refinement of coarse probabilities to the outlines of an image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data

from diffup import refine as module
from diffup.label_map import LabelMap
from diffup.refine import (
    CLIP,
    COLOUR,
    DILATION,
    ITERATIONS,
    RADIUS,
    REGULARISATION,
    SHARPNESS,
    WEIGHT,
    WINDOW,
    Guide,
    evaluate_bands,
    guided_filter,
    mean_field,
    reduced_size,
    refine,
    similarity_kernel,
)
from diffup.result import Segmentation, enlarge


def photo(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[100 : 100 + height, 150 : 150 + width])


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# --- the reference: explicit windows, float64 ------------------------------------------------------------------------


def reference_mean_field(logits: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Mean-field inference position by position; logits (h, w), colours (h, w, 3)."""
    height, width = logits.shape
    reach = WINDOW // 2 * DILATION
    kernel = {}
    for y, x in np.ndindex(height, width):
        for dy in range(-reach, reach + 1, DILATION):
            for dx in range(-reach, reach + 1, DILATION):
                if (dy, dx) != (0, 0) and 0 <= y + dy < height and 0 <= x + dx < width:
                    distance = ((colours[y, x] - colours[y + dy, x + dx]) ** 2).sum()
                    kernel[(y, x), (y + dy, x + dx)] = math.exp(-distance / (2 * COLOUR**2))
    total = np.zeros((height, width))
    for (one, _), value in kernel.items():
        total[one] += value
    solved = logits
    for _ in range(ITERATIONS):
        label, update = np.tanh(solved / 2), logits.copy()
        for (one, other), value in kernel.items():
            update[one] += WEIGHT * value / (total[one] + 1e-6) * label[other]
        solved = update
    return solved


def reference_guided_filter(values: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (h, w, 3) and offsets (h, w) of the guided filter, window by window; values (h, w), colours (h, w, 3)."""
    height, width = values.shape

    def window(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(y - RADIUS, 0), y + RADIUS + 1), slice(max(x - RADIUS, 0), x + RADIUS + 1)

    slope, offset = np.zeros((height, width, 3)), np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        inside, value = colours[window(y, x)].reshape(-1, 3), values[window(y, x)].ravel()
        covariance = np.cov(inside.T, bias=True) + REGULARISATION * np.eye(3)
        slope[y, x] = np.linalg.solve(covariance, ((value - value.mean())[:, None] * inside).mean(axis=0))
        offset[y, x] = value.mean() - slope[y, x] @ inside.mean(axis=0)
    means = [(slope[window(y, x)].mean(axis=(0, 1)), offset[window(y, x)].mean()) for y, x in np.ndindex(height, width)]
    return np.array([a for a, _ in means]).reshape(slope.shape), np.array([b for _, b in means]).reshape(offset.shape)


@pytest.mark.parametrize(("height", "width"), [(18, 23), (30, 9), (1, 20), (5, 1), (1, 1)])
def test_mean_field_is_that_of_explicit_windows(height: int, width: int) -> None:
    """In float64, where similarities below exp(-40) make a difference of 48 * exp(-40) / 1e-6 of a label at most."""
    colours = torch.from_numpy(photo(height, width) / 255).permute(2, 0, 1)
    logits = (noise(1, height, width).double() - 0.5) * 8
    found = mean_field(logits, similarity_kernel(colours))[0].numpy()
    expected = reference_mean_field(logits[0].numpy(), colours.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(found, expected, atol=WEIGHT * 48 * math.exp(-40) / 1e-6 * ITERATIONS)


@pytest.mark.parametrize(("height", "width"), [(18, 23), (30, 9), (1, 20), (5, 1), (1, 1)])
def test_the_guided_filter_is_that_of_explicit_windows(height: int, width: int) -> None:
    """Slopes are stored in float32, so they differ by its rounding.

    The covariance is a difference of numbers of at most 1, exact to some 2**-50, and is divided by at least the
    regularisation: what that adds stays below 2**-50 / 1e-4 * 8, far below the rounding of the result.
    """
    pixels = photo(height, width)
    values = (noise(1, height, width) - 0.5) * 8
    slope, offset = guided_filter(values, Guide.of(pixels))
    expected = reference_guided_filter(values[0].double().numpy(), pixels / 255)
    scale = max(np.abs(part).max() for part in expected)
    np.testing.assert_allclose(slope[0].permute(1, 2, 0).numpy(), expected[0], rtol=2**-24, atol=scale * 2**-30)
    np.testing.assert_allclose(offset[0].numpy(), expected[1], rtol=2**-24, atol=scale * 2**-30)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_refinement_is_the_two_steps_in_turn(threshold: float) -> None:
    """On an image of the reduced size nothing is resized: mean field, guided filter, sigmoid, all by the reference."""
    pixels, coarse = photo(20, 24), noise(2, 20, 24)
    found = refine(coarse, Guide.of(pixels), threshold)
    assert found.shape == (2, 20, 24) and found.dtype == torch.float32
    divide = math.log(threshold / (1 - threshold))
    for index in range(2):
        clipped = coarse[index].double().clamp(CLIP, 1 - CLIP).numpy()
        solved = reference_mean_field(np.log(clipped / (1 - clipped)) - divide, pixels / 255)
        slope, offset = reference_guided_filter(SHARPNESS * solved + divide, pixels / 255)
        expected = 1 / (1 + np.exp(-(slope * pixels / 255).sum(axis=2) - offset))
        # float32: sums of 49 products of at most 1 and logits of at most 16, whose errors each update multiplies by up
        # to WEIGHT / 2 (the slope of tanh(x / 2) is at most 1/2, and the weights add up to 1).
        growth = sum((WEIGHT / 2) ** k for k in range(ITERATIONS + 1))
        bound = 49 * 16 * 2**-24 * growth
        assert np.abs(found[index].numpy() - expected).max() < bound


def test_bands_make_no_seam_and_are_bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = photo(150, 97)
    slope, offset = noise(2, 3, 19, 12) - 0.5, noise(2, 19, 12) - 0.5
    whole = evaluate_bands(slope, offset, pixels)
    monkeypatch.setattr(module, "_BAND", 97 * 7)
    # Vectors end elsewhere, and what is left may be rounded otherwise: 6 roundings of at most 2.5, a slope of 1/4.
    assert (evaluate_bands(slope, offset, pixels) - whole).abs().max() < 6 * 2.5 / 4 * 2**-24
    large = enlarge(torch.cat([slope, offset[:, None]], dim=1).flatten(0, 1).double(), (150, 97)).unflatten(0, (2, 4))
    colours = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    expected = torch.sigmoid((large[:, :3] * colours).sum(dim=1) + large[:, 3])
    # Positions of up to 97 are float32 in PyTorch's enlargement, which moves a weight by 97 * 2**-24.
    assert (whole - expected).abs().max() < 97 * 2**-23


# --- what it is for --------------------------------------------------------------------------------------------------


def disc(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of a disc of another colour, with some noise, and its mask."""
    y, x = np.mgrid[:height, :width]
    mask = (y - 0.45 * height) ** 2 + (x - 0.5 * width) ** 2 < (0.3 * height) ** 2
    image = np.where(mask[..., None], (170, 90, 60), (80, 120, 150)) + np.random.default_rng(0).normal(
        0, 6, (height, width, 3)
    )
    return image.clip(0, 255).astype(np.uint8), mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_coarse_mask_snaps_to_the_outline() -> None:
    image, mask = disc(240, 320)
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(mask).float()[None, None], 41, 20, 20)[0]  # 12 x 16
    refined = refine(coarse, Guide.of(image), 0.3)[0].numpy() > 0.3
    smooth = enlarge(coarse, mask.shape)[0].numpy() > 0.3
    assert iou(smooth, mask) < 0.85
    assert iou(refined, mask) > 0.97


def test_an_image_without_outlines_only_sharpens() -> None:
    """Where all colours are equal there is nothing to follow: the mask stays where it was, and nothing is NaN."""
    coarse = torch.linspace(0, 1, 64).expand(1, 64, 64)
    flat = np.full((128, 128, 3), 90, dtype=np.uint8)
    refined = refine(coarse, Guide.of(flat), 0.5)[0].numpy()
    assert np.isfinite(refined).all()
    middle = np.abs((refined[64] > 0.5).argmax() - 64)
    assert middle <= 1, "half of the columns are above one half, as before"
    assert (np.diff(refined[64]) > -1e-6).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (300, 1), (2, 2), (5000, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_any_size_and_constant_images(size: tuple[int, int], value: int) -> None:
    for coarse in (torch.zeros(1, 64, 64), torch.ones(1, 64, 64), noise(1, 64, 64), noise(1, 1, 1)):
        refined = refine(coarse, Guide.of(np.full((*size, 3), value, dtype=np.uint8)), 0.3)
        assert refined.shape == (1, *size)
        assert refined.min() >= 0 and refined.max() <= 1 and refined.isfinite().all()


def test_empty_and_full_maps_stay_so() -> None:
    guide = Guide.of(photo(90, 120))
    # A position without any neighbour of its colour keeps its clipped logit, times SHARPNESS about the threshold's:
    # probabilities of 0.020 and 0.954. The guided filter may go a little beyond them.
    assert refine(torch.zeros(1, 64, 64), guide, 0.3).max() < 0.025
    assert refine(torch.ones(1, 64, 64), guide, 0.3).min() > 0.95


def test_classes_do_not_touch_each_other_and_runs_are_equal() -> None:
    guide, coarse = Guide.of(photo(90, 120)), noise(3, 64, 64)
    together = refine(coarse, guide, 0.3)
    assert torch.equal(together, refine(coarse, Guide.of(photo(90, 120)), 0.3))
    for index in range(3):
        assert torch.equal(refine(coarse[index : index + 1], guide, 0.3)[0], together[index])


def test_the_reduced_size_keeps_small_images_and_the_shape_of_large_ones() -> None:
    assert reduced_size(90, 120) == (90, 120)
    assert reduced_size(4000, 6000) == (85, 128)
    assert reduced_size(6000, 10) == (128, 1)


# --- results ---------------------------------------------------------------------------------------------------------


def result_of(image: np.ndarray, mask: np.ndarray, refine: bool) -> Segmentation:
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(mask).float()[None, None], 41, 20, 20)[0, 0].numpy()
    maps = np.stack([coarse, np.zeros_like(coarse), np.zeros_like(coarse), coarse])
    return Segmentation(image, maps, 0.5, 0.3, "fake", refine=refine)


def test_a_result_is_refined_when_it_is_read_or_not_at_all() -> None:
    image, mask = disc(240, 320)
    refined, plain = result_of(image, mask, True), result_of(image, mask, False)
    assert not {"probability", "mask"} & set(vars(refined))
    assert iou(refined.mask, mask) > 0.97 > 0.85 > iou(plain.mask, mask)
    np.testing.assert_array_equal(plain.probability, plain.prior)
    np.testing.assert_array_equal(refined.prior, plain.prior)
    assert refined.probability is refined.probability, "computed once"
    assert iou(replace(refined, threshold=0.5).mask, mask) > 0.97, "whatever the threshold"


def test_a_label_map_refines_its_classes_with_one_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = disc(240, 320)
    results = [result_of(image, mask, True), result_of(image, ~mask, True)]
    made = []
    plain = Guide.of.__func__

    def counted(cls: type[Guide], pixels: np.ndarray) -> Guide:
        made.append(pixels.shape)
        return plain(cls, pixels)

    monkeypatch.setattr(Guide, "of", classmethod(counted))
    merged = LabelMap.of(["disc", "rest"], results)
    assert made == [(240, 320, 3)]
    assert iou(merged.labels == 1, mask) > 0.97
    np.testing.assert_array_equal(merged["disc"].mask, results[0].mask)
    np.testing.assert_allclose(merged.probabilities.sum(axis=0) + merged.background, 1, atol=1e-6)
    unrefined = [replace(item, refine=False) for item in results]
    made.clear()
    LabelMap.of(["disc", "rest"], unrefined)
    assert not made
