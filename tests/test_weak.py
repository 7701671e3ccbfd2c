"""Weak annotations: within their mask, reproducible, fast."""

from __future__ import annotations

import time
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffup.annotation import Box, Mask, Points, Scribble, rasterise
from diffup.data.weak import AnnotationKind, _smooth_curve, random_points, random_scribble, tight_box, weaken
from diffup.errors import AnnotationError, ConfigError

KINDS = get_args(AnnotationKind)


def _ellipse(size: int = 128) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return ((x - 0.45) / 0.3) ** 2 + ((y - 0.55) / 0.22) ** 2 < 1


_masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)).filter(np.any)
_seeds = st.integers(0, 2**32 - 1)


@given(_masks)
@settings(max_examples=80, deadline=None)
def test_a_tight_box_holds_the_mask_and_no_smaller_one_does(mask: np.ndarray) -> None:
    box = tight_box(mask)
    foreground = rasterise(box, mask.shape).foreground.numpy().astype(bool)
    assert (foreground | ~mask).all()
    ((x0, y0, x1, y1),) = (tuple(int(edge) for edge in edges) for edges in box.boxes)
    assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


@given(_masks, _seeds)
@settings(max_examples=80, deadline=None)
def test_scribbles_lie_within_the_mask_and_mark_something(mask: np.ndarray, seed: int) -> None:
    regions = rasterise(random_scribble(mask, np.random.default_rng(seed)), mask.shape)
    foreground = regions.foreground.numpy().astype(bool)
    assert foreground.any() and not (foreground & ~mask).any()
    assert not regions.background.any()


@given(_masks, _seeds, st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_points_are_distinct_pixels_of_the_mask(mask: np.ndarray, seed: int, count: int) -> None:
    points = random_points(mask, np.random.default_rng(seed), count).points
    assert len(set(points)) == len(points) == min(count, mask.sum())
    assert all(mask[int(y), int(x)] for x, y in points)


@given(_masks, _seeds, st.sampled_from(KINDS))
@settings(max_examples=80, deadline=None)
def test_the_same_seed_gives_the_same_annotation_that_rasterises(
    mask: np.ndarray, seed: int, kind: AnnotationKind
) -> None:
    before = mask.copy()
    first, second = (
        rasterise(weaken(mask, kind, np.random.default_rng(seed)), mask.shape).foreground for _ in range(2)
    )
    assert torch.equal(first, second) and first.any()
    np.testing.assert_array_equal(mask, before)


def test_kinds() -> None:
    generator = np.random.default_rng(0)
    made = {kind: weaken(_ellipse(), kind, generator) for kind in KINDS}
    assert {kind: type(annotation) for kind, annotation in made.items()} == {
        "mask": Mask,
        "box": Box,
        "scribble": Scribble,
        "points": Points,
        "none": type(None),
    }
    assert torch.equal(rasterise(made["mask"], (128, 128)).foreground, torch.from_numpy(_ellipse()).float())


def test_scribbles_are_strokes_not_blobs_and_differ() -> None:
    generator, mask = np.random.default_rng(0), _ellipse()
    drawn = [rasterise(random_scribble(mask, generator), mask.shape).foreground for _ in range(50)]
    parts = torch.stack(drawn).sum(dim=(1, 2)) / mask.sum()
    assert 0.01 < parts.median() < 0.3 and parts.max() < 0.7
    assert len({tuple(scribble.nonzero().flatten().tolist()) for scribble in drawn}) == 50
    covered = torch.stack(drawn).any(dim=0)
    assert covered.sum() > 0.9 * mask.sum(), "together they reach all of the object"
    spans = [scribble.any(dim=0).sum() for scribble in drawn]
    assert float(np.median(spans)) > 20, "a stroke runs along the object"


def test_scribble_options() -> None:
    mask = np.ones((64, 64), dtype=bool)
    thin, thick = (
        rasterise(random_scribble(mask, np.random.default_rng(3), strokes=1, width=width), (64, 64)).foreground
        for width in (1, 9)
    )
    assert ((thick - thin) >= 0).all() and thick.sum() > 3 * thin.sum()
    one, ten = (
        rasterise(random_scribble(mask, np.random.default_rng(3), strokes=count, width=1), (64, 64)).foreground
        for count in (1, 10)
    )
    assert ten.sum() > 3 * one.sum()


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=5, unique=True))
@settings(max_examples=80, deadline=None)
def test_strokes_pass_through_their_vertices_without_gaps(vertices: list[tuple[int, int]]) -> None:
    curve = _smooth_curve(np.array(vertices, dtype=np.float64))
    assert (np.abs(np.diff(curve, axis=0)) < 1).all()
    for vertex in vertices:
        assert np.abs(curve - vertex).max(axis=1).min() < 1e-9


@pytest.mark.parametrize("kind", ["mask", "box", "scribble", "points"])
@pytest.mark.parametrize("mask", [np.zeros((4, 5), dtype=bool), np.ones((4, 5, 1), dtype=bool), np.ones((0, 5))])
def test_masks_without_an_object_are_refused(kind: AnnotationKind, mask: np.ndarray) -> None:
    with pytest.raises(AnnotationError, match=r"mask: expected an array \(H, W\) with at least one pixel"):
        weaken(mask, kind, np.random.default_rng(0))


def test_faulty_options_are_refused() -> None:
    mask, generator = _ellipse(), np.random.default_rng(0)
    with pytest.raises(ConfigError, match="kind: expected one of mask, box, scribble, points, none, got 'polygon'"):
        weaken(mask, "polygon", generator)  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match="count: expected at least 1"):
        random_points(mask, generator, 0)
    for options in ({"strokes": 0}, {"width": 0.0}, {"width": float("nan")}):
        with pytest.raises(AnnotationError, match="strokes and width must be positive"):
            random_scribble(mask, generator, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_weakening_is_fast_enough_for_every_episode(kind: AnnotationKind) -> None:
    mask, generator = _ellipse(), np.random.default_rng(0)
    durations = []
    for _ in range(60):
        start = time.perf_counter()
        weaken(mask, kind, generator)
        durations.append(time.perf_counter() - start)
    assert float(np.median(durations)) < 2e-3, "about 0.25 ms on an idle machine; the rest is for busy ones"
