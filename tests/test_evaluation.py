"""The meter, the episodes, and the evaluator, which must score what `DiffUp.segment` gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, make_folder, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffup import Box, DiffUp
from diffup.data.base import Target
from diffup.data.folder import LabelledFolder
from diffup.data.weak import tight_box
from diffup.errors import ConfigError, DataError
from diffup.evaluation.boundary import boundary_overlap
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator, episode_generators
from diffup.evaluation.features import FeatureCache
from diffup.evaluation.meter import Meter
from diffup.evaluation.protocols import PROTOCOLS
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore, overlaps

# --- the meter -------------------------------------------------------------------------------------------------------


def count(
    meter: Meter, class_id: int, predicted: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None
) -> None:
    """Add an episode by its masks."""
    counted = np.ones_like(target) if ignore is None else ~ignore
    both, either = predicted & target & counted, (predicted | target) & counted
    meter.add(class_id, int(both.sum()), int(either.sum()), int(counted.sum()))


def test_the_worked_example_of_hsnets_meter() -> None:
    """Numbers of HSNet's own meter on a fixed stream of random masks."""
    rng = np.random.RandomState(0)
    meter = Meter(range(5))
    for c in (0, 0, 2, 4):
        target, predicted = rng.rand(6, 6) > 0.5, rng.rand(6, 6) > 0.5
        ignore = (rng.rand(6, 6) > 0.85) & ~target
        count(meter, c, predicted, target, ignore)
    assert meter.intersection.tolist() == [[9, 0, 8, 0, 7], [16, 0, 9, 0, 9]]
    assert meter.union.tolist() == [[56, 0, 26, 0, 25], [63, 0, 27, 0, 27]]
    assert meter.miou() == pytest.approx(18.4127, abs=5e-5)
    assert meter.fb_iou() == pytest.approx(25.7449, abs=5e-5)


def test_an_iou_is_taken_of_sums_and_not_averaged_over_episodes() -> None:
    meter = Meter([3, 7])
    small, large = np.zeros((2, 10, 10), dtype=bool)
    small[0, :1] = True
    large[:8] = True
    count(meter, 3, small, small)  # IoU 1 of one pixel row
    count(meter, 3, ~large, large)  # IoU 0 of eight
    assert meter.class_iou() == {3: pytest.approx(100 * 1 / 101 * small.sum()), 7: 0.0}
    assert meter.miou() == pytest.approx(meter.class_iou()[3] / 2)  # a class that never occurs counts as 0


@given(st.integers(0, 1000), st.permutations(range(4)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_episodes_does_not_matter_and_ignored_pixels_do_not_count(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    episodes = [(int(rng.integers(3)), *(rng.random((3, 5, 5)) > 0.5)) for _ in range(4)]
    meter, shuffled, masked = Meter(range(3)), Meter(range(3)), Meter(range(3))
    for c, predicted, target, ignore in episodes:
        count(meter, c, predicted, target, ignore)
        count(masked, c, predicted[~ignore][None], target[~ignore][None])
    for index in order:
        count(shuffled, *episodes[index])
    assert meter.miou() == shuffled.miou() == masked.miou() and meter.fb_iou() == shuffled.fb_iou() == masked.fb_iou()


def test_a_perfect_prediction_has_all_of_the_iou() -> None:
    mask = np.arange(12).reshape(3, 4) > 5
    meter = Meter([1])
    count(meter, 1, mask, mask)
    assert meter.miou() == 100 and meter.fb_iou() == 100


# --- episodes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(shapes: Path) -> LabelledFolder:
    return LabelledFolder.open(shapes)


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_the_query_is_never_among_its_supports(folder: LabelledFolder, shots: int) -> None:
    pairs = folder.pairs("train", folder.classes)
    episodes = draw_episodes(folder, "train", [1, 2, 3], shots, 80, seed=0)
    assert len(episodes) == 80 and {episode.class_id for episode in episodes} == {1, 2, 3}
    for episode in episodes:
        assert len(episode.supports) == shots and episode.query not in episode.supports
        assert {episode.query, *episode.supports} <= set(pairs[episode.class_id])
        if len(pairs[episode.class_id]) > shots:
            assert len(set(episode.supports)) == shots


def test_a_seed_means_one_stream(folder: LabelledFolder) -> None:
    stream = draw_episodes(folder, "train", [1, 2], 1, 30, seed=5)
    assert stream == draw_episodes(folder, "train", [1, 2], 1, 30, seed=5)
    assert stream[:10] == draw_episodes(folder, "train", [1, 2], 1, 10, seed=5)  # a longer one begins as a shorter
    assert stream != draw_episodes(folder, "train", [1, 2], 1, 30, seed=6)
    assert {episode.class_id for episode in stream} == {1, 2}


def test_no_class_with_two_images_is_an_error(folder: LabelledFolder) -> None:
    with pytest.raises(DataError, match=r"no class of \[9\] has two images in split 'test'"):
        draw_episodes(folder, "test", [9], 1, 5, seed=0)
    with pytest.raises(DataError, match="split='val'"):
        draw_episodes(folder, "val", [1], 1, 5, seed=0)


# --- the evaluator ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> DiffUp:
    # Sides of 25 and 12 cannot be pooled to the priors' grid in two steps without other values coming out.
    return tiny_model(FakeBackbone((8, 12, 16, 24), (4, 8, 8, 16), (100, 100)), temperature=1.5)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, float]]:
    """Probability and prior maps at the decoder's size, and predicted IoUs, as the evaluator scores them."""
    seen: list[tuple[np.ndarray, float]] = []
    plain = Evaluator.compare

    def compare(self, index, episode, condition, samples, row, sampling) -> EpisodeScore:
        score = plain(self, index, episode, condition, samples, row, sampling)
        maps = torch.stack([samples.probability[row], condition.prior[row, 0] * 0.5 + 0.5])
        seen.append((maps.numpy(), score.quality))
        return score

    monkeypatch.setattr(Evaluator, "compare", compare)
    return seen


@pytest.mark.parametrize(("shots", "refine"), [(1, True), (3, False)])
@pytest.mark.parametrize("kind", ["mask", "box", "none"])
def test_what_is_scored_is_what_segment_gives(
    model: DiffUp, folder: LabelledFolder, recorded: list[tuple[np.ndarray, float]], kind: str, shots: int, refine: bool
) -> None:
    episodes = draw_episodes(folder, "train", [1, 2], shots, 3, seed=1)
    scores = Evaluator(model, folder).run(episodes, kind, steps=2, ensemble=2, seed=7, batch_size=2, refine=refine)
    meter, outlines = (Meter(sorted({e.class_id for e in episodes})) for _ in range(2))
    for index, (episode, (maps, quality)) in enumerate(zip(episodes, recorded, strict=True)):
        masks = [folder.mask(name) == episode.class_id for name in episode.supports]
        annotations = {"mask": masks, "box": [tight_box(mask) for mask in masks], "none": [None] * shots}[kind]
        assert kind != "box" or isinstance(annotations[0], Box)
        result = model.segment(
            folder.image_path(episode.query),
            [folder.image_path(name) for name in episode.supports],
            annotations,
            steps=2,
            ensemble=2,
            generator=episode_generators(7, index)[1],
            refine=refine,
        )
        assert np.abs(result.maps[0] - maps[0]).max() < 1e-5
        assert np.abs(result.maps[3] - maps[1]).max() < 1e-5
        assert result.quality == pytest.approx(quality, abs=1e-5)
        labels = folder.mask(episode.query)
        target = Target(labels == episode.class_id, labels == folder.ignore)
        count(meter, episode.class_id, result.mask, target.mask, target.ignore)
        scored = replace(result, maps=np.stack([maps[0], *result.maps[1:]]))
        outlines.add(episode.class_id, *boundary_overlap(scored.mask, target), 0)
    assert scores.miou == pytest.approx(meter.miou(), abs=0.1) and scores.fb_iou == pytest.approx(
        meter.fb_iou(), abs=0.1
    )
    assert scores.boundary_iou == outlines.miou() > 0


def test_a_protocol_says_that_the_class_is_there(folder: LabelledFolder) -> None:
    """A minimum presence empties no mask: whatever it is, the scores are the same."""
    episodes = draw_episodes(folder, "test", [1, 2], 1, 3, seed=2)
    shown, hidden = (
        Evaluator(tiny_model(min_presence=least), folder).run(episodes, threshold=0.05) for least in (0.0, 1.0)
    )
    assert shown == hidden and shown.miou > 0


def test_scores_are_reproducible_and_complete(model: DiffUp, folder: LabelledFolder) -> None:
    episodes = draw_episodes(folder, "test", [1, 2], 1, 5, seed=2)
    evaluator = Evaluator(model, folder)
    scores = evaluator.run(episodes, "scribble", seed=3)
    assert (
        scores
        == evaluator.run(episodes, "scribble", seed=3)
        == Evaluator(model, folder).run(episodes, "scribble", seed=3)
    )
    assert set(scores.miou_by_threshold) == set(scores.prior_miou_by_threshold) == set(THRESHOLDS)
    assert scores.miou_by_threshold[model.config.threshold] == scores.miou
    assert scores.best_prior == max(scores.prior_miou_by_threshold.values()) > 30  # plain colours are easily found
    assert scores.miou_by_threshold[scores.best_threshold] == max(scores.miou_by_threshold.values())
    assert 0 <= scores.miou <= 100 and 0 <= scores.fb_iou <= 100 and -1 <= scores.quality_correlation <= 1


def test_features_are_computed_once(model: DiffUp, folder: LabelledFolder) -> None:
    episodes = draw_episodes(folder, "test", [1], 1, 3, seed=0)
    cache = FeatureCache()
    Evaluator(model, folder, cache=cache).run(episodes, "mask")
    calls = model.backbone.calls
    Evaluator(model, folder, cache=cache).run(episodes, "none")
    assert model.backbone.calls == calls
    other = DiffUp(model.decoder, FakeBackbone((8, 12, 16, 24), (4, 8, 8, 16), (64, 64), seed=1), "cpu")
    Evaluator(other, folder, cache=cache).run(episodes, "mask")
    assert other.backbone.calls > 0, "another encoder has features of its own"


@pytest.mark.parametrize("cache_bytes", [0, 50_000])
def test_little_memory_changes_nothing_but_the_time(model: DiffUp, folder: LabelledFolder, cache_bytes: int) -> None:
    episodes = draw_episodes(folder, "test", [1, 2], 1, 4, seed=0)
    cache = FeatureCache(cache_bytes)
    assert Evaluator(model, folder, cache=cache).run(episodes) == Evaluator(model, folder).run(episodes)
    assert cache.used <= cache_bytes


def test_the_least_recently_used_features_go_first() -> None:
    computed = []

    def ask(key: int) -> None:
        level = cache.get(key, lambda: computed.append(key) or [torch.full((10,), float(key))])
        assert level[0][0] == key

    cache = FeatureCache(80)  # room for two
    for key in (1, 2, 1, 3, 1, 2):
        ask(key)
    assert computed == [1, 2, 3, 2] and cache.used == 80
    with pytest.raises(ConfigError, match="cache_bytes=-1"):
        FeatureCache(-1)


@pytest.mark.parametrize("kind", ["mask", "scribble"])
def test_an_episode_does_not_depend_on_what_was_scored_before(model: DiffUp, folder: LabelledFolder, kind: str) -> None:
    episodes = draw_episodes(folder, "test", [1, 2], 1, 5, seed=2)
    whole = [score for batch in Evaluator(model, folder).score(episodes, kind, batch_size=2) for score in batch]
    assert [score.index for score in whole] == [0, 1, 2, 3, 4]
    rest = Evaluator(model, folder).score(episodes, kind, batch_size=2, done={0, 1, 2})
    assert [score for batch in rest for score in batch] == whole[3:]
    others = Evaluator(model, folder).score(episodes, kind, batch_size=2, seed=1)
    assert [score.mask for batch in others for score in batch] != [score.mask for score in whole]
    assert list(Evaluator(model, folder).score(episodes, kind, done=range(5))) == []


def test_randomness_follows_from_seed_and_index() -> None:
    def draws(seed: int, index: int) -> tuple[float, float]:
        weak, noise = episode_generators(seed, index)
        return float(weak.random()), float(torch.rand((), generator=noise))

    assert draws(1, 2) == draws(1, 2)
    found = [draws(seed, index) for seed in range(3) for index in range(3)]
    assert len({a for a, _ in found}) == len({b for _, b in found}) == 9


def test_overlaps_are_those_of_the_meter() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((20, 30)).astype(np.float32)
    probability[0, :19] = THRESHOLDS  # a pixel at the threshold is not marked
    ignore = rng.random((20, 30)) > 0.8
    target = Target((rng.random((20, 30)) > 0.5) & ~ignore, ignore)
    found = overlaps(probability, target, THRESHOLDS)
    for threshold, (intersection, union) in zip(THRESHOLDS, found, strict=True):
        marked = (probability > threshold) & ~ignore
        assert (intersection, union) == ((marked & target.mask).sum(), (marked | target.mask).sum())


def test_a_protocol_scores_at_its_own_size(model: DiffUp, folder: LabelledFolder) -> None:
    episodes = draw_episodes(folder, "test", [1], 1, 2, seed=0)
    [own] = Evaluator(model, folder).score(episodes)
    [resized] = Evaluator(model, folder, scored=PROTOCOLS["hsnet"].scored).score(episodes)
    for episode, a, b in zip(episodes, own, resized, strict=True):
        target = folder.target(episode.query, 1)
        assert a.pixels == (~target.ignore).sum() and b.pixels == (~PROTOCOLS["hsnet"].scored(target).ignore).sum()
        assert abs(a.iou - b.iou) < 0.05 and abs(a.prior_iou() - b.prior_iou()) < 0.05


def test_no_episodes_are_an_error(model: DiffUp, folder: LabelledFolder) -> None:
    with pytest.raises(DataError, match="episodes: the list is empty"):
        Evaluator(model, folder).run([])
    with pytest.raises(ConfigError, match="batch_size=0"):
        Evaluator(model, folder).score([Episode(1, "test0", ("test1",))], batch_size=0)
    with pytest.raises(ConfigError, match="annotation='drawing'"):
        Evaluator(model, folder).score([Episode(1, "test0", ("test1",))], "drawing")


@pytest.mark.parametrize(("option", "value"), [("steps", 0), ("steps", 51), ("ensemble", 0)])
def test_options_out_of_range_are_refused(model: DiffUp, folder: LabelledFolder, option: str, value: int) -> None:
    episodes = [Episode(1, "test0", ("test1",))]
    with pytest.raises(ConfigError, match=f"{option}={value}"):
        Evaluator(model, folder).run(episodes, **{option: value})


# --- the folder ------------------------------------------------------------------------------------------------------


def test_pairs_are_where_a_class_covers_enough(folder: LabelledFolder, tmp_path: Path) -> None:
    pairs = folder.pairs("test", [3, 1])
    assert list(pairs) == [1, 3] and pairs[1] == ("test0", "test1", "test3") and pairs[3] == ("test2", "test3")
    own = make_folder(tmp_path / "data")
    text = (own / "splits.json").read_text()
    (own / "splits.json").write_text(text.replace("0.01", "0.0"))
    assert LabelledFolder.open(own).pairs("test", [1, 3]) == pairs  # where there is none of it, it covers nothing


def test_image_and_mask_have_one_size(folder: LabelledFolder) -> None:
    for name in (*folder.split("train"), *folder.split("test")):
        assert tuple(folder.image(name).shape[1:]) == folder.mask(name).shape


@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_of_another_size_than_its_photo_is_refused(tmp_path: Path, turned: bool) -> None:
    data = make_folder(tmp_path / "data")
    photo, mask = data / "images" / "train0.png", data / "masks" / "train0.png"
    if turned:  # the mask fits the stored pixels, but viewers turn the photo by its EXIF orientation
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(photo).save(photo, exif=exif)
    else:
        Image.open(mask).resize((31, 17)).save(mask)
    with pytest.raises(DataError, match=r"train0\.png has \d+ x \d+ pixels .*EXIF"):
        LabelledFolder.open(data).mask("train0")
    if turned:
        Image.open(mask).rotate(-90, expand=True).save(mask)
        folder = LabelledFolder.open(data)
        assert folder.mask("train0").shape == tuple(folder.image("train0").shape[1:])


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"classes"', '"kinds"', "classes"),
        ('{"1"', '{"one"', "one"),
        ('"0": [3]', '"0": [3, 8]', r"\[8\]"),
        ('"0": [3]', '"0": 3', "splits.json"),
        ("}", "", "splits.json"),
    ],
)
def test_damaged_splits_are_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    data = make_folder(tmp_path / "data")
    text = (data / "splits.json").read_text()
    assert old in text
    (data / "splits.json").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=named):
        LabelledFolder.open(data)


def test_missing_files_are_named(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    (data / "images" / "test0.png").unlink()
    (data / "masks" / "test1.png").unlink()
    folder = LabelledFolder.open(data)
    with pytest.raises(DataError, match="test0"):
        folder.image("test0")
    with pytest.raises(DataError, match="test1"):
        folder.mask("test1")
    with pytest.raises(DataError, match="split='val'"):
        folder.split("val")
    with pytest.raises(DataError, match="fold=9"):
        folder.fold(9)
