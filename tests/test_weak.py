"""Weak annotations: within their mask, reproducible, fast."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffup.data.weak import (
    AnnotationKind,
    _smooth_curve,
    component_boxes,
    dilate_mask,
    erode_mask,
    instance_boxes,
    medial_scribble,
    random_points,
    random_scribble,
    shift_mask,
    tight_box,
    weaken,
)
from diffup.errors import AnnotationError, ConfigError, MissingPackageError
from diffup.inputs.annotations import Box, Mask, Points, Scribble, rasterise

KINDS = get_args(AnnotationKind)
FAST: tuple[AnnotationKind, ...] = ("mask", "box", "scribble", "points", "none")
"""The kinds that training draws."""


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
    assume(kind != "shifted" or mask.size > 1)
    mask = mask.astype(np.uint8)  # "instance_box" reads it as a single instance
    before = mask.copy()
    first, second = (
        rasterise(weaken(mask, kind, np.random.default_rng(seed)), mask.shape).foreground for _ in range(2)
    )
    assert torch.equal(first, second) and first.any()
    np.testing.assert_array_equal(mask, before)


def test_kinds() -> None:
    generator = np.random.default_rng(0)
    made = {kind: weaken(_ellipse().astype(np.uint8), kind, generator) for kind in KINDS}
    assert {kind: type(annotation) for kind, annotation in made.items()} == {
        "mask": Mask,
        "box": Box,
        "scribble": Scribble,
        "points": Points,
        "none": type(None),
        "component_box": Box,
        "instance_box": Box,
        "medial_scribble": Scribble,
        "dilated": Mask,
        "eroded": Mask,
        "shifted": Mask,
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
@pytest.mark.parametrize("mask", [np.zeros((4, 5), int), np.ones((4, 5, 1), int), np.ones((0, 5), int)])
def test_masks_without_an_object_are_refused(kind: AnnotationKind, mask: np.ndarray) -> None:
    with pytest.raises(AnnotationError, match=r"mask: expected an array \(H, W\) with at least one pixel"):
        weaken(mask, kind, np.random.default_rng(0))


def test_faulty_options_are_refused() -> None:
    mask, generator = _ellipse(), np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"kind: expected one of mask, box, .*, shifted, got 'polygon'"):
        weaken(mask, "polygon", generator)  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match="count: expected at least 1"):
        random_points(mask, generator, 0)
    for options in ({"strokes": 0}, {"width": 0.0}, {"width": float("nan")}):
        with pytest.raises(AnnotationError, match="strokes and width must be positive"):
            random_scribble(mask, generator, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FAST)
def test_weakening_is_fast_enough_for_every_episode(kind: AnnotationKind) -> None:
    mask, generator = _ellipse(), np.random.default_rng(0)
    durations = []
    for _ in range(60):
        start = time.process_time()  # which other programs on the machine do not add to
        weaken(mask, kind, generator)
        durations.append(time.process_time() - start)
    assert float(np.median(durations)) < 2e-3, "about 0.25 ms on an idle machine; the rest is for busy ones"


# --- the kinds of evaluation: boxes of parts, the medial axis, inaccurate masks --------------------------------------


def _foreground(annotation: Box | Scribble | Mask, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    return rasterise(annotation, (height, width)).foreground.numpy().astype(bool)


def test_boxes_of_components_and_instances() -> None:
    instances = np.zeros((20, 30), np.int32)
    instances[2:6, 3:9] = 7
    instances[6:10, 9:12] = 7  # touches the first at a corner
    instances[4:6, 9:11] = 2  # touches both: one component, two instances
    instances[15:, 25:] = 300
    components = {(3, 2, 12, 10), (25, 15, 30, 20)}
    assert set(component_boxes(instances > 0).boxes) == set(component_boxes(instances).boxes) == components
    assert instance_boxes(instances).boxes == ((9, 4, 11, 6), (3, 2, 12, 10), (25, 15, 30, 20))
    assert weaken(instances, "instance_box", np.random.default_rng(0)).boxes == instance_boxes(instances).boxes
    assert tight_box(instances).boxes == ((3, 2, 30, 20),)


@given(_masks)
@settings(max_examples=60, deadline=None)
def test_boxes_of_components_hold_the_mask_within_its_tight_box(mask: np.ndarray) -> None:
    foreground = _foreground(component_boxes(mask), mask.shape)
    assert not (mask & ~foreground).any() and not (foreground & ~_foreground(tight_box(mask), mask.shape)).any()


@pytest.mark.parametrize("kind", [bool, np.float32])
def test_a_mask_without_instances_is_refused(kind: type) -> None:
    with pytest.raises(AnnotationError, match=r"instances: expected integers .* component_box takes connected"):
        weaken(_ellipse().astype(kind), "instance_box", np.random.default_rng(0))


def test_a_medial_scribble_runs_along_the_middle_of_a_bar() -> None:
    mask = np.zeros((60, 120), dtype=bool)
    mask[20:41, 10:111] = True
    foreground = _foreground(medial_scribble(mask, np.random.default_rng(0), width=1), mask.shape)
    rows, columns = np.nonzero(foreground[:, 25:96])
    assert (rows == 30).all() and len(set(columns)) == 71, "row 30 is the middle of 20..40"
    assert len(np.flatnonzero(foreground.any(axis=0))) > 90, "it reaches into the ends"
    thick = _foreground(medial_scribble(mask, np.random.default_rng(0), width=5), mask.shape)
    assert 4 * foreground.sum() < thick.sum() < 6 * foreground.sum() and not (thick & ~mask).any()


def test_side_branches_are_left_out_of_a_medial_scribble() -> None:
    mask = np.zeros((80, 200), dtype=bool)
    mask[35:46, 5:195] = True
    mask[10:36, 98:103] = True  # a short arm in the middle
    foreground = _foreground(medial_scribble(mask, np.random.default_rng(0), width=1), mask.shape)
    assert foreground[:, 10:190].any(axis=0).all() and not foreground[:28].any()


def test_a_medial_scribble_is_of_one_component_larger_ones_more_often() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:35, 2:26], mask[10:20, 30:38] = True, True  # 720 and 80 pixels
    generator = np.random.default_rng(0)
    large = 0
    for _ in range(30):
        foreground = _foreground(medial_scribble(mask, generator), mask.shape)
        sides = foreground[:, :28].any(), foreground[:, 28:].any()
        assert sum(sides) == 1
        large += sides[0]
    assert 22 <= large < 30, "nine tenths on average"


@given(_masks, _seeds)
@settings(max_examples=30, deadline=None)
def test_medial_scribbles_lie_within_any_mask(mask: np.ndarray, seed: int) -> None:
    foreground = _foreground(medial_scribble(mask, np.random.default_rng(seed)), mask.shape)
    assert foreground.any() and not (foreground & ~mask).any()


def test_amounts_of_inaccuracy_are_pixels() -> None:
    mask = np.zeros((50, 60), dtype=bool)
    mask[20:30, 20:40] = True
    grown, shrunk = dilate_mask(mask, 3), erode_mask(mask, 3)
    assert tight_box(grown).boxes == ((17, 17, 43, 33),) and not grown[17, 17], "corners are round"
    assert tight_box(shrunk).boxes == ((23, 23, 37, 27),) and shrunk.sum() == 14 * 4
    np.testing.assert_array_equal(erode_mask(mask, 99), erode_mask(mask, 4.5), "the innermost rows stay")
    assert tight_box(shift_mask(mask, -5, 12)).boxes == ((15, 32, 35, 42),)
    assert tight_box(shift_mask(mask, 30, -25)).boxes == ((50, 0, 60, 5),), "what leaves is lost"
    border = np.zeros((20, 20), dtype=bool)
    border[:, :10] = True
    assert tight_box(erode_mask(border, 2)).boxes == ((0, 0, 8, 20),), "the border of the image is no outline"
    assert erode_mask(np.ones((4, 4), dtype=bool), 2).all() and dilate_mask(np.ones((4, 4), dtype=bool), 2).all()


@given(_masks, st.floats(0.1, 40), _seeds)
@settings(max_examples=60, deadline=None)
def test_inaccurate_masks_never_vanish(mask: np.ndarray, radius: float, seed: int) -> None:
    grown, shrunk = dilate_mask(mask, radius), erode_mask(mask, radius)
    assert not (mask & ~grown).any() and not (shrunk & ~mask).any() and shrunk.any()
    assume(mask.size > 1)
    moved = _foreground(weaken(mask, "shifted", np.random.default_rng(seed)), mask.shape)
    assert 0 < moved.sum() <= mask.sum()


def test_amounts_of_weaken_are_in_object_sizes() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[30:70, 30:70] = True  # its size is 40
    generator = np.random.default_rng(0)
    assert tight_box(_foreground(weaken(mask, "dilated", generator), mask.shape)).boxes == ((26, 26, 74, 74),)
    assert tight_box(_foreground(weaken(mask, "eroded", generator, 0.25), mask.shape)).boxes == ((40, 40, 60, 60),)
    offsets = set()
    for _ in range(20):
        ((x0, y0, x1, y1),) = tight_box(_foreground(weaken(mask, "shifted", generator, 0.5), mask.shape)).boxes
        assert x1 - x0 == y1 - y0 == 40 and np.hypot(x0 - 30, y0 - 30) == pytest.approx(20, abs=0.8)
        offsets.add((x0, y0))
    assert len(offsets) > 15, "in any direction"


def test_faulty_amounts_are_refused() -> None:
    mask, generator = _ellipse(), np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"amount: it is for dilated, eroded and shifted masks, got amount=0.2 for"):
        weaken(mask, "box", generator, 0.2)
    for kind in ("dilated", "eroded", "shifted"):
        with pytest.raises(AnnotationError, match=r"amount: expected a positive number, got -0.1"):
            weaken(mask, kind, generator, -0.1)  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match=r"amount: 9.0 moves all of the object out of the image, whatever"):
        weaken(mask, "shifted", generator, 9.0)
    with pytest.raises(AnnotationError, match=r"\(500, 0\) moves all of the object out of the image"):
        shift_mask(mask, 500, 0)
    for value in (0, float("nan"), float("inf")):
        with pytest.raises(AnnotationError, match="radius: expected a positive number"):
            erode_mask(mask, value)
        with pytest.raises(AnnotationError, match="radius: expected a positive number"):
            dilate_mask(mask, value)
        with pytest.raises(AnnotationError, match="width: expected a positive number"):
            medial_scribble(mask, generator, value)


@pytest.mark.parametrize(
    ("package", "kind"),
    [("scipy.ndimage", "component_box"), ("scipy.ndimage", "eroded"), ("skimage.morphology", "medial_scribble")],
)
def test_without_the_packages_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, kind: AnnotationKind
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r'pip install .*"scipy>='):
        weaken(_ellipse(), kind, np.random.default_rng(0))


def test_the_draws_of_training_s_kinds_are_pinned() -> None:
    generator, digest = np.random.default_rng(0), hashlib.sha256()
    for kind in (*FAST, *FAST, *FAST):
        drawn = weaken(_ellipse(48), kind, generator)
        digest.update(np.packbits(rasterise(drawn, (48, 48)).foreground.numpy() > 0).tobytes())
    assert digest.hexdigest()[:16] == "4e10b20321efd2c7", "another stream of weak annotations is another training"
