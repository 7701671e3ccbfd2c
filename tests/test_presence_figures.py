"""Presence in evaluations: photos without the class, area under the ROC curve, false alarms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fakes import FakeBackbone, tiny_model

from diffup.data.folder import LabelledFolder
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.evaluation.presence import absent_photos, auc, false_alarms


def test_the_area_under_the_curve_by_hand() -> None:
    """Of nine pairs five are in order (1 > 0, 2 > 1 and 2 > 0 twice) and three are ties (1 = 1, 2 = 2 twice)."""
    assert auc(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 0.0])) == pytest.approx((5 + 3 / 2) / 9)
    assert auc(np.array([3.0, 4.0]), np.array([1.0])) == 1.0 and auc(np.zeros(3), np.zeros(4)) == 0.5


def test_false_alarms_by_hand() -> None:
    """Nine of ten queries reach 0.2; of five photos without the class, two do."""
    shown, absent = np.arange(0.1, 1.05, 0.1), np.array([0.05, 0.15, 0.2, 0.9, 0.0])
    assert false_alarms(shown, absent) == pytest.approx(0.4)
    assert false_alarms(shown, absent, recall=1.0) == pytest.approx(0.6), "the least is 0.1"
    assert false_alarms(shown, absent, recall=0.5) == pytest.approx(0.2), "five of ten reach 0.6"


def test_weights_count_repetitions() -> None:
    rng = np.random.default_rng(0)
    shown, absent = rng.random(12), 0.7 * rng.random(9)
    weights = rng.integers(0, 4, (5, 12)).astype(float), rng.integers(0, 4, (5, 9)).astype(float)
    for figure in (auc, false_alarms):
        found = figure(shown, absent, weights=weights)
        for row, (ours, theirs) in enumerate(zip(*weights, strict=True)):
            repeated = np.repeat(shown, ours.astype(int)), np.repeat(absent, theirs.astype(int))
            assert found[row] == pytest.approx(figure(*repeated)[0], abs=1e-12)


def test_without_photos_on_one_side_there_is_no_figure() -> None:
    some, none = np.array([0.2, 0.4]), np.array([])
    for figure in (auc, false_alarms):
        assert math.isnan(figure(some, none)[0]) and math.isnan(figure(none, some)[0])
        assert math.isnan(figure(some, some, weights=(np.zeros((1, 2)), np.ones((1, 2))))[0])


def test_absent_photos_are_the_nearest_queries_before() -> None:
    shown = {("a", 1), ("b", 1), ("b", 2), ("c", 3)}
    classes = {"a": 1, "b": 2, "c": 3}
    stream = [Episode(classes[name], name, ("s",)) for name in "aabcba"]
    #            a: 1   a: 1  b: 2  c: 3  b: 2  a: 1
    assert absent_photos(stream, lambda name, c: (name, c) in shown) == [None, None, "a", "b", "c", "c"]


@pytest.mark.parametrize("annotation", ["mask", "none"])
def test_presence_of_an_episode_is_that_of_segment(annotation: str, shapes: object) -> None:
    folder = LabelledFolder.open(shapes)  # type: ignore[arg-type]
    model = tiny_model(FakeBackbone(input_size=(64, 64)), steps=1, ensemble=1)
    episodes = draw_episodes(folder, "test", list(folder.classes), 1, 6, seed=0)
    absent = absent_photos(episodes, lambda name, c: bool(folder.target(name, c).mask.any()))
    scores = [score for batch in Evaluator(model, folder).score(episodes, annotation) for score in batch]
    assert any(absent) and [score.absent is None for score in scores] == [name is None for name in absent]
    for episode, name, score in zip(episodes, absent, scores, strict=True):
        support = folder.image(episode.supports[0])
        mask = folder.target(episode.supports[0], episode.class_id).mask if annotation == "mask" else None
        prototypes = model.prototypes(support, mask)
        shown = model.segment(folder.image(episode.query), prototypes)
        assert shown.presence == pytest.approx(score.presence, abs=1e-5)
        if name is not None:
            assert not (folder.mask(name) == episode.class_id).any()
            without = model.segment(folder.image(name), prototypes)
            assert without.presence == pytest.approx(score.absent, abs=1e-5)
