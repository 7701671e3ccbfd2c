"""Corrections: what is computed is exact, what is marked is honoured, and nothing is encoded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, tiny_model
from scene import MASK, QUERY, SUPPORT, TRUTH, assert_equal

from diffup import Box, DiffUp, Mask, Points, Scribble, Segmentation
from diffup.correct import (
    MARGIN,
    MARKS,
    NUGGET,
    RIDGE,
    Correction,
    Seeds,
    depth,
    influence,
    krige,
    likeness,
    principal_components,
    regress,
    spread,
)
from diffup.data.base import Target
from diffup.errors import AnnotationError, ConfigError, PrototypesError
from diffup.evaluation.clicks import main, next_click, play
from diffup.label_map import LabelMap

HEIGHT, WIDTH = QUERY.shape[:2]
CLICK = (60, 30)


@pytest.fixture
def model() -> DiffUp:
    return tiny_model(FakeBackbone())


@pytest.fixture
def result(model: DiffUp) -> Segmentation:
    return model.segment(QUERY, SUPPORT, MASK, min_presence=0)


def seeds(index: list[int], label: list[float], reach: list[float]) -> Seeds:
    return Seeds(torch.tensor(index), torch.tensor(label), torch.tensor(reach))


def line(length: int) -> torch.Tensor:
    """Places along a row."""
    return torch.stack([torch.zeros(length), torch.arange(length) / length])


def test_a_residual_is_met_at_its_seed_and_falls_exponentially() -> None:
    places, seed = line(10), seeds([2], [1.0], [0.2])
    found = krige(torch.full((10,), -2.0), seed, influence(seed, places))
    distance = np.abs(np.arange(10) - 2) / 10
    expected = -2 + (MARGIN + 2) / (1 + NUGGET) * np.exp(-distance / 0.2)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_seeds_that_are_right_already_change_nothing() -> None:
    places, logits = line(10), torch.linspace(-5, 5, 10)
    both = seeds([0, 9], [-1.0, 1.0], [0.2, 0.1])
    assert torch.equal(krige(logits, both, influence(both, places)), logits)


def test_every_seed_ends_on_its_own_side_even_beside_its_opposite() -> None:
    places = line(100)
    all_seeds = seeds([40, 41, 41, 60], [1.0, -1.0, -1.0, 1.0], [0.2, 0.03, 0.2, 0.1])
    found = krige(torch.zeros(100), all_seeds, influence(all_seeds, places))
    assert (found[all_seeds.index] * all_seeds.label > 0).all()


def test_regression_is_that_of_the_normal_equations() -> None:
    generator = np.random.default_rng(0)
    inputs, labels, weights = generator.normal(size=(4, 50)), generator.normal(size=50), generator.uniform(1, 2, 50)
    share = weights / weights.sum()
    rows = np.concatenate([inputs.T * np.sqrt(share)[:, None], np.sqrt(RIDGE) * np.eye(4)])
    expected = np.linalg.lstsq(rows, np.append(labels * np.sqrt(share), np.zeros(4)), rcond=None)[0] @ inputs
    found = regress(*(torch.from_numpy(values).float() for values in (inputs, labels, weights)))
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_components_do_not_depend_on_the_rotation_of_feature_space() -> None:
    features = torch.randn(6, 40, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    padded = torch.cat([rotation @ features, torch.zeros(3, 40, dtype=torch.float64)])
    a, b = (principal_components(values, 4) for values in (features, padded))
    assert a.shape == (4, 40)
    assert torch.allclose(a.T @ a, b.T @ b, atol=1e-9), "their signs are free, what is regressed on them is not"


def test_likeness_is_one_at_a_seed_and_zero_at_what_is_opposite() -> None:
    features = torch.zeros(3, 2, 2)
    features[:, 0, 0], features[:, 1, 1] = torch.tensor([1.0, 2, 0]), torch.tensor([-1.0, -2, 0])
    found = likeness(features, torch.tensor([0, 3]), (2, 2))
    assert found[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert found[1].tolist() == pytest.approx([0, 0, 0, 1])


def test_likeness_does_not_depend_on_the_rotation_of_feature_space() -> None:
    features = torch.randn(3, 4, 5)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    index, grid = torch.tensor([0, 37, 79]), (8, 10)
    a, b = (likeness(values, index, grid) for values in (features, torch.einsum("ij,jhw->ihw", rotation, features)))
    assert torch.allclose(a**2, b**2, atol=1e-5)


def test_depth_is_the_distance_to_what_is_outside_and_to_the_border() -> None:
    region = torch.ones(9, 12, dtype=torch.bool)
    assert depth(region, 4 * 12 + 6) == 5
    region[1, 2] = False
    assert depth(region, 4 * 12 + 6) == 5
    assert depth(region, 5 * 12 + 5) == 4
    region[2, 1] = False
    assert depth(region, 5 * 12 + 5) == 4
    region[5, 7] = False
    assert depth(region, 5 * 12 + 5) == 2


def test_few_positions_that_lie_apart_stand_for_many() -> None:
    places = line(400)
    few, many = torch.arange(MARKS), torch.arange(400)
    assert torch.equal(spread(few, places), few)
    chosen = spread(many, places).sort().values
    assert len(chosen) == MARKS
    assert {0, 399} <= set(chosen.tolist())
    assert (chosen.diff() >= 400 / MARKS / 2 - 1).all()


@pytest.mark.parametrize("refine", [True, False])
def test_a_click_takes_its_label_and_what_is_around_it(result: Segmentation, refine: bool) -> None:
    x, y = CLICK
    before = replace(result, refine=refine)
    yes, no = before.correct(Points([CLICK])), before.correct(Points(negative=[CLICK]))
    assert yes.mask[y, x]
    assert yes.probability[y, x] == 1
    assert not no.mask[y, x]
    assert no.probability[y, x] == 0
    around = np.s_[y - 1 : y + 2, x - 1 : x + 2]
    assert (yes.probability[around] > no.probability[around]).all()
    assert yes.presence == 1
    assert no.presence == before.presence


def test_strokes_and_negative_boxes_keep_all_their_pixels(result: Segmentation) -> None:
    stroke = Scribble([(10, 10), (90, 60)], width=4, negative=[(10, 60), (30, 60)])
    drawn = Scribble(stroke.strokes, 4)
    better = result.correct(stroke, Box(negative=(50, 0, 100, 20)))
    painted = np.zeros((HEIGHT, WIDTH), dtype=bool)
    painted[np.arange(10, 61), np.linspace(10, 90, 51).round().astype(int)] = True
    painted[:21, 50:] = False
    assert better.mask[painted].all(), drawn
    assert not better.mask[:20, 50:].any()
    assert not better.mask[60, 10:31].any()


def test_the_middle_of_a_box_is_marked_and_far_from_it_nothing_is(result: Segmentation) -> None:
    empty = replace(result, maps=np.full_like(result.maps, 0.01), refine=False)
    assert not empty.mask.any()
    found = empty.correct(Box(40, 20, 60, 40)).mask
    assert found[30, 50]
    assert found[25:35, 45:55].mean() > 0.9
    assert not found[:, 90:].any()


def test_in_turn_at_once_and_in_segment_are_the_same(model: DiffUp, result: Segmentation) -> None:
    marks: list[Correction] = [
        Points([CLICK], negative=[(20, 50)]),
        Scribble([(70, 40), (80, 45)]),
        Box(40, 20, 60, 40),
    ]
    at_once = result.correct(*marks)
    assert_equal(at_once, result.correct(marks[0]).correct(*marks[1:]))
    assert_equal(at_once, model.segment(QUERY, SUPPORT, MASK, correction=marks, min_presence=0))
    single = model.segment(QUERY, SUPPORT, MASK, correction=marks[0], min_presence=0)
    assert_equal(single, result.correct(marks[0]))


def test_nothing_is_encoded_again(model: DiffUp, result: Segmentation) -> None:
    encoder: Any = model.backbone
    before = encoder.encoded
    assert result.correct(Points([CLICK])).mask.any()
    assert encoder.encoded == before


def test_the_first_result_is_unchanged(result: Segmentation) -> None:
    mask = result.mask.copy()
    result.correct(Points([CLICK])).correct(Points(negative=[(5, 5)]))
    assert np.array_equal(replace(result).mask, mask)


def test_results_do_not_depend_on_the_rotation_of_feature_space(result: Segmentation) -> None:
    rotated = []
    for level in result.levels:
        rotation, _ = torch.linalg.qr(torch.randn(len(level), len(level), generator=torch.Generator().manual_seed(1)))
        rotated.append(torch.einsum("ij,jhw->ihw", rotation, level))
    a, b = (item.correct(Points([CLICK])).probability for item in (result, replace(result, levels=tuple(rotated))))
    assert np.abs(a - b).max() < 0.02
    assert np.abs(a - b).mean() < 1e-3


def test_an_absent_class_is_there_once_it_is_clicked(result: Segmentation) -> None:
    absent = replace(result, presence=0.01, min_presence=0.5)
    assert not absent.mask.any()
    assert absent.correct(Points([CLICK])).mask[CLICK[1], CLICK[0]]
    assert not absent.correct(Points(negative=[CLICK])).mask.any()


def test_one_class_of_a_label_map_is_corrected(model: DiffUp) -> None:
    classes = [model.prototypes(SUPPORT, MASK, name=name) for name in ("a", "b")]
    found = model.segment(QUERY, classes, min_presence=0)
    better = found.correct("b", Points([CLICK]))
    assert better.labels[CLICK[1], CLICK[0]] == 2
    assert better.results[0] is found.results[0]
    with pytest.raises(PrototypesError, match="no class 'c'"):
        found.correct("c", Points([CLICK]))
    with pytest.raises(AnnotationError, match=r"correct\(name"):
        model.segment(QUERY, classes, correction=Points([CLICK]))


def test_only_what_is_marked_as_the_class_keeps_it_from_being_overruled(model: DiffUp) -> None:
    classes = [model.prototypes(SUPPORT, MASK, name=name) for name in ("a", "b")]
    found = model.segment(QUERY, classes, min_presence=1e-6)
    assert found.overruled == ("b",), "two classes of one example"
    strong, weak = found["a"], replace(found["b"], presence=found["b"].presence / 4)
    for other, overruled in ((weak.correct(Points(negative=[(5, 5)])), ("b",)), (weak.correct(Points([CLICK])), ())):
        other = replace(other, presence=weak.presence)  # it takes no more pixels for being marked
        assert LabelMap.of(("a", "b"), [strong, other]).overruled == overruled


def test_results_of_a_stream_say_how_to_correct_them(model: DiffUp) -> None:
    (found,) = model.segment_many([QUERY], model.prototypes(SUPPORT, MASK))
    assert isinstance(found, Segmentation)
    with pytest.raises(ConfigError, match=r"model\.segment"):
        found.correct(Points([CLICK]))


def test_a_correction_marks_something(result: Segmentation) -> None:
    with pytest.raises(AnnotationError, match="correction: nothing is marked"):
        result.correct()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Points([(WIDTH, 3)]), r"correction\[1\]: point 0 .* outside"),
        (Points(negative=[(3, HEIGHT)]), r"correction\[1\]: point 0 .* outside"),
        (Box(negative=(0, 0, WIDTH + 1, 3)), r"correction\[1\]: box 0"),
        (Scribble(negative=[(-1, 3), (5, 5)]), r"correction\[1\]: stroke 0"),
        (Scribble(np.zeros((HEIGHT, WIDTH), dtype=bool)), r"correction\[1\]: .*marks no pixel"),
        (Mask(TRUTH == 1), r"correction\[1\]: expected Points, Scribble or Box"),
        (None, r"correction\[1\]: expected Points"),
    ],
)
def test_a_wrong_correction_is_named(model: DiffUp, result: Segmentation, wrong: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        result.correct(Points([CLICK]), wrong)
    encoder: Any = model.backbone
    before = encoder.encoded
    with pytest.raises(AnnotationError, match=message):
        model.segment(QUERY, SUPPORT, MASK, correction=[Points([CLICK]), wrong])
    assert encoder.encoded == before, "before anything is encoded"


def test_the_next_click_is_in_the_middle_of_the_largest_error() -> None:
    truth, mask = np.zeros((40, 60), dtype=bool), np.zeros((40, 60), dtype=bool)
    truth[10:21, 10:31] = True
    mask[2:5, 40:50] = True
    none = np.zeros_like(truth)
    click = next_click(mask, Target(truth, none))
    assert click is not None
    ((x, y),) = click.points
    assert y == 15
    assert 15 <= x <= 25, "all of them are 6 pixels from the border"
    assert not click.negative
    assert next_click(truth | mask, Target(truth, none)) == Points(negative=[(41, 3)])
    assert next_click(truth | mask, Target(truth, mask)) is None, "ignored pixels are no errors"
    assert next_click(truth, Target(truth, none)) is None


def test_clicks_raise_the_iou_of_an_empty_mask(result: Segmentation) -> None:
    empty = replace(result, maps=np.full_like(result.maps, 0.01))
    truth = Target(TRUTH == 1, np.zeros((HEIGHT, WIDTH), dtype=bool))
    found, seconds = play(empty, truth, 3)
    assert found[0] == 0
    assert found[3] > 0.8
    assert len(found) == 4
    assert 1 <= len(seconds) <= 3, "a mask that is right gets no more"


def test_the_simulation_reports(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(shapes), "--episodes", "0"]) == 2
    assert "--episodes" in capsys.readouterr().err
