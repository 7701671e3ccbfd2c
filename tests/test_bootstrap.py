"""Confidence intervals over query photos: by hand, grouped by photo, paired; and that they cover what they should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from diffup.errors import ConfigError
from diffup.evaluation import bootstrap
from diffup.evaluation.bootstrap import difference, intervals, paired, photos, resample, weighted_figures
from diffup.evaluation.record import Setting
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore, summarise
from diffup.evaluation.sweep import Row

Counts = tuple[str, int, int, int]
"""Query, class, intersection and union of an episode."""


def row_of(found: Sequence[Counts], classes: Sequence[int] | None = None, prior: int = 1, dataset: str = "d") -> Row:
    """A row of episodes whose prior has `prior` pixels of intersection in a union of 10 at every threshold."""
    facts = {"protocol": "folder", "split": "test", "classes": "fold", "annotation": "mask", "backbone": "b"}
    facts |= {"fingerprint": "f", "decoder": "x", "decoder_hash": "h", "device": "cpu", "dataset": dataset}
    numbers = dict.fromkeys(("fold", "shots", "seed", "steps", "ensemble", "batch_size"), 1)
    setting = Setting(**facts, **numbers, input_size=(8, 8), threshold=0.5, refine=False, bf16=False)
    episodes = tuple(
        EpisodeScore(
            index,
            class_id,
            query,
            2000,
            (both, either),
            (both, either),
            ((both, either),) * len(THRESHOLDS),
            ((prior, 10),) * len(THRESHOLDS),
            0.1 + 0.8 * both / either,
            0.5 + 0.4 * both / either,
            None if query == "p0" else 0.5 + 0.3 * (either % 7) / 7,
        )
        for index, (query, class_id, both, either) in enumerate(found)
    )
    return Row(setting, summarise(episodes, {c for _, c, _, _ in found} if classes is None else classes), episodes)


def random_counts(seed: int, count: int, classes: int = 1, spread: float = 0.2) -> list[Counts]:
    rng = np.random.default_rng(seed)
    unions = rng.integers(500, 1500, size=count)
    ious = rng.uniform(0.5 - spread, 0.5 + spread, size=count)
    return [(f"p{i:03}", i % classes, int(unions[i] * ious[i]), int(unions[i])) for i in range(count)]


# --- resamples -------------------------------------------------------------------------------------------------------


def test_a_resample_draws_as_many_photos_as_there_are() -> None:
    weights = resample(7, 3)
    assert weights.shape == (bootstrap.RESAMPLES, 7) and (weights.sum(axis=1) == 7).all()
    assert np.array_equal(weights, resample(7, 3)) and not np.array_equal(weights, resample(7, 4))
    assert abs(weights.mean(axis=0) - 1).max() < 0.15 and abs(weights.var(axis=0) - 6 / 7).max() < 0.2


def test_figures_of_every_episode_once_are_those_of_the_table() -> None:
    row = row_of(random_counts(0, 30, classes=4), classes=[0, 1, 2, 3, 9])
    draws = weighted_figures(row, np.ones((2, 30)))
    assert list(draws) == list(row.scores.figures())
    for name, value in row.scores.figures().items():
        assert draws[name] == pytest.approx([value, value], abs=1e-9), name


def test_figures_of_a_resample_are_those_of_its_episodes() -> None:
    found = random_counts(1, 6, classes=2)
    weights = np.array([[2.0, 1, 0, 1, 0, 2]])
    drawn = row_of([episode for episode, times in zip(found, weights[0], strict=True) for _ in range(int(times))])
    draws = weighted_figures(row_of(found), weights)
    for name, value in drawn.scores.figures().items():
        assert draws[name] == pytest.approx([value], abs=1e-9), name


def test_a_class_that_a_resample_misses_is_left_out_of_its_mean() -> None:
    row = row_of([("a", 1, 1, 4), ("b", 2, 3, 4)], classes=[1, 2, 3, 4])
    assert row.scores.miou == 25, "(25 + 75 + 0 + 0) / 4"
    draws = weighted_figures(row, np.array([[1.0, 1], [2, 0], [0, 2], [0, 0]]))
    assert draws["miou"][:3].tolist() == [25, 12.5, 37.5], "half of the classes have episodes"
    assert all(np.isnan(values[3]) for values in draws.values())


# --- intervals -------------------------------------------------------------------------------------------------------


def test_photos_that_are_all_alike_give_no_width() -> None:
    row = row_of([(f"p{i}", 1, 30, 40) for i in range(9)])
    assert len(photos([row])) == 9
    found = intervals([row])
    assert {name: ends for name, ends in found.items() if name not in ("fb_iou", "presence_auc")} == {
        "miou": (75.0, 75.0),
        "boundary_iou": (75.0, 75.0),
        "best_miou": (75.0, 75.0),
        "prior_best_miou": (10.0, 10.0),
        "gain_over_prior": (65.0, 65.0),
        "quality_correlation": (0.0, 0.0),
        "false_alarms": (0.0, 0.0),
    }
    assert found["presence_auc"] == (100.0, 100.0), "0.8 against 0.5 + 0.3 * 5 / 7"
    assert found["fb_iou"] == pytest.approx((100 * (30 / 40 + 1960 / 1970) / 2,) * 2)


def test_two_photos_by_hand() -> None:
    """A resample has the first photo twice, the second twice or both: IoU 20, 80 or 50, in 1/4, 1/4 and 1/2 of them."""
    row = row_of([("a", 1, 20, 100), ("b", 1, 80, 100)])
    assert intervals([row])["miou"] == (20.0, 80.0)
    shares = [(weighted_figures(row, resample(2, 0))["miou"] == iou).mean() for iou in (20, 50, 80)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_the_interval_is_that_of_the_ratio_of_sums() -> None:
    """The width agrees with the delta method's for a ratio of means, 2 * 1.96 standard errors."""
    found = random_counts(2, 400)
    both, either = np.array([(i, u) for _, _, i, u in found], dtype=float).T
    ratio = both.sum() / either.sum()
    error = 100 * (both - ratio * either).std() / either.mean() / np.sqrt(len(found))
    low, high = intervals([row_of(found)])["miou"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (low + high) / 2 == pytest.approx(100 * ratio, abs=0.2 * error)


def test_more_episodes_of_the_same_photos_do_not_narrow_the_interval() -> None:
    found = random_counts(3, 20, classes=2)
    once, often = intervals([row_of(found)]), intervals([row_of(found * 5)])
    for name, ends in once.items():
        assert often[name] == pytest.approx(ends, abs=1e-9), name
    renamed = [(f"{copy}{query}", *rest) for copy in range(5) for query, *rest in found]
    low, high = intervals([row_of(renamed)])["miou"]
    assert high - low < 0.6 * (once["miou"][1] - once["miou"][0]), "five times the photos would, by about sqrt(5)"


def test_the_classes_of_a_photo_are_drawn_together() -> None:
    """Two classes that are good on the same photos vary together; on other photos, they partly cancel."""
    ious = [20, 80] * 20
    together = row_of([(f"p{i}", c, iou, 100) for i, iou in enumerate(ious) for c in (1, 2)])
    apart = row_of([(f"p{i}{c}", c, iou, 100) for i, iou in enumerate(ious) for c in (1, 2)])
    assert together.scores.miou == apart.scores.miou == 50
    wide, narrow = (high - low for low, high in (intervals([row])["miou"] for row in (together, apart)))
    assert wide / narrow == pytest.approx(2**0.5, rel=0.15)


def test_the_mean_of_rows_draws_their_photos_once() -> None:
    row = row_of(random_counts(4, 25))
    for name, ends in intervals([row, row, row]).items():
        assert ends == pytest.approx(intervals([row])[name], abs=1e-9), "further seeds on the same photos"
    other = row_of([(f"q{query}", *rest) for query, *rest in random_counts(4, 25)])
    one, mean = (high - low for low, high in (intervals(rows)["miou"] for rows in ([row], [row, other])))
    assert mean / one == pytest.approx(0.5**0.5, rel=0.2)


def test_rows_without_a_photo_in_a_resample_are_left_out_of_the_mean() -> None:
    rows = [row_of([("a", 1, 20, 100)]), row_of([("b", 2, 80, 100)])]
    assert intervals(rows)["miou"] == (20.0, 80.0)


def test_intervals_follow_from_the_seed_and_not_from_the_order() -> None:
    found = random_counts(5, 30, classes=3)
    row = row_of(found)
    assert intervals([row]) == intervals([row]) != intervals([row], seed=1)
    for name, ends in intervals([row_of(found[::-1])]).items():
        assert intervals([row])[name] == pytest.approx(ends, abs=1e-9), name


def test_nineteen_intervals_of_twenty_hold_the_truth() -> None:
    """Coverage over 200 samples of 60 photos; binomial standard deviation 1.5 %, and percentiles run a little short."""
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        unions, ious = rng.integers(500, 1500, size=60), rng.uniform(0.2, 0.8, size=60)
        row = row_of(
            [(f"p{i}", 1, round(u * iou), int(u)) for i, (u, iou) in enumerate(zip(unions, ious, strict=True))]
        )
        low, high = intervals([row])["miou"]
        held += low <= 50 <= high
    assert 0.89 <= held / 200 <= 0.99


# --- differences -----------------------------------------------------------------------------------------------------


def test_a_row_does_not_differ_from_itself() -> None:
    row = row_of(random_counts(7, 20, classes=3))
    for figure in row.scores.figures():
        assert difference([row], [row], figure) == bootstrap.Difference(0.0, (0.0, 0.0))


def test_a_gain_on_every_photo_is_sure_where_the_rows_are_not() -> None:
    found = [(query, c, both, 1000) for query, c, both, _ in random_counts(8, 30, spread=0.4)]
    better = [(query, c, both + 50, either) for query, c, both, either in found]
    gain = difference([row_of(better)], [row_of(found)])
    assert gain.value == pytest.approx(5) and gain.interval == pytest.approx((5, 5))
    low, high = intervals([row_of(found)])["miou"]
    assert high - low > 5, "unpaired, the intervals overlap"
    back = difference([row_of(found)], [row_of(better)])
    assert back.value == pytest.approx(-5) and back.interval == pytest.approx((-5, -5))


def test_the_gain_over_the_prior_is_paired_too() -> None:
    """Decoder 25 and 65, prior always 10: the gain's interval is that of the decoder, moved by 10."""
    found = intervals([row_of([("a", 1, 25, 100), ("b", 1, 65, 100)])])
    assert found["miou"] == (25.0, 65.0) and found["gain_over_prior"] == (15.0, 55.0)


def test_rows_of_other_episodes_and_wrong_arguments_are_refused() -> None:
    found = random_counts(9, 4, classes=2)
    row, shorter = row_of(found), row_of(found[:3])
    query = row_of([*found[:3], ("other", *found[3][1:])])
    class_id = row_of([*found[:3], (found[3][0], 5, *found[3][2:])])
    for other in (shorter, query, class_id, row_of(found, dataset="e")):
        assert not paired([row], [other])
        with pytest.raises(ConfigError, match="score other episodes"):
            difference([row], [other])
    with pytest.raises(ConfigError, match="score other episodes"):
        difference([row, row], [row])
    with pytest.raises(ConfigError, match="figure='iou': expected one of miou, fb_iou"):
        difference([row], [row], "iou")
    for empty in (lambda: intervals([]), lambda: difference([], [])):
        with pytest.raises(ConfigError, match="rows: the list is empty"):
            empty()
    for seed in (-1, 0.5):
        with pytest.raises(ConfigError, match=f"seed={seed}"):
            intervals([row], seed=seed)
