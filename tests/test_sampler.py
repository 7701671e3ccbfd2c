"""Which episodes are drawn: data sets and sizes evenly, queries without the class, classes given by name."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffup.priors.views import ONE_SHOT_VIEWS
from diffup.training.config import EpisodesConfig
from diffup.training.sampler import CROP, NEAR_AREA, WHOLE, Episodes, EpisodeSampler, near_classes

PLAIN = {"max_shots": 1, "mask": 1.0, "box": 0.0, "scribble": 0.0, "points": 0.0, "none": 0.0, "mixed": 0.0}
PLAIN |= {"same_image": 0.0, "pasted": 0.0, "cropped": 0.0, "absent": 0.0}
VIEWS = len(ONE_SHOT_VIEWS)
CROPS_FROM = 1000
"""What the features of crops tell is their number from here on."""

Objects = Sequence[tuple[int, int]]
"""Class and side in pixels of the squares in an image of 128 x 128."""


def labels_of(objects: Objects) -> np.ndarray:
    labels = np.zeros((128, 128), np.uint8)
    left = 0
    for c, side in objects:
        labels[4 : 4 + side, left : left + side] = c
        left += side
    return labels


def bank_of(shown: Sequence[Objects], views: int) -> SimpleNamespace:
    """A bank of images, every view of an image with the same mask."""
    masks = np.stack([labels_of(objects) for objects in shown for _ in range(views)])
    arrays = {"mask": masks, "source": np.repeat(np.arange(len(shown), dtype=np.int32), views)}
    arrays["image"] = np.zeros((len(masks), 3, 128, 128), np.uint8)
    arrays["edges"] = np.zeros((len(masks), 2, 128, 128), np.uint8)
    return SimpleNamespace(arrays=arrays, length=len(masks))


def told_by_number(images: dict[str, SimpleNamespace]) -> dict[str, SimpleNamespace]:
    """Banks of features that hold nothing but the number of the entry."""
    told = {}
    for group, bank in images.items():
        numbers = np.arange(bank.length, dtype=np.float32)[:, None, None, None] + CROPS_FROM * (group == CROP)
        told[group] = SimpleNamespace(arrays={f"level{level}": numbers for level in range(4)})
    return told


def drawn(
    images: dict[str, SimpleNamespace], classes: Sequence[int], count: int, changes: dict[str, float], **options: object
) -> tuple[list[tuple[int, int]], Episodes]:
    """Numbers of the query and of the first support of so many episodes, and the episodes as one batch."""
    config = EpisodesConfig(**(PLAIN | changes))
    sampler = EpisodeSampler(images, classes, config, min_area_fraction=0.01, ignore=255, **options)
    episodes = sampler.draw(0, 0, count, told_by_number(images), torch.device("cpu"))
    query = episodes.query[0][:, 0, 0, 0].int().tolist()
    supports = episodes.support.levels[0][:, 0, 0, 0, 0].int().tolist()
    return list(zip(query, supports, strict=True)), episodes


def bound(count: int, share: float) -> float:
    """Five standard deviations of the number of draws with this share."""
    return 5 * (count * share * (1 - share)) ** 0.5


# --- evenness --------------------------------------------------------------------------------------------------------

COUNT = 400


def test_small_medium_and_large_objects_are_drawn_equally_often() -> None:
    sides = [18] * 20 + [40] * 4 + [70] * 2  # shares 0.02, 0.10 and 0.30 of the image
    images = {WHOLE: bank_of([[(1, side)] for side in sides], VIEWS)}
    pairs, _ = drawn(images, [1], COUNT, {})
    found = [sides[query // VIEWS] for query, _ in pairs]
    for side in (18, 40, 70):
        assert abs(found.count(side) - COUNT / 3) < bound(COUNT, 1 / 3), side


def test_data_sets_are_drawn_equally_often_as_queries_and_as_supports() -> None:
    images = {WHOLE: bank_of([[(1, 30)]] * 24, VIEWS)}
    parts = [0] * 20 + [1] * 4
    pairs, _ = drawn(images, [1], COUNT, {}, parts=parts, labelled=[{1}, {1}])
    for column in range(2):
        few = sum(parts[pair[column] // VIEWS] for pair in pairs)
        assert abs(few - COUNT / 2) < bound(COUNT, 1 / 2)
    assert all(query // VIEWS != support // VIEWS for query, support in pairs)


def test_sizes_are_drawn_evenly_within_each_data_set() -> None:
    sides, parts = [18] * 12 + [40] * 2 + [18] * 2 + [70] * 6, [0] * 14 + [1] * 8
    images = {WHOLE: bank_of([[(1, side)] for side in sides], VIEWS)}
    pairs, _ = drawn(images, [1], COUNT, {}, parts=parts, labelled=[{1}, {1}])
    found = [(parts[query // VIEWS], sides[query // VIEWS]) for query, _ in pairs]
    for kind in ((0, 18), (0, 40), (1, 18), (1, 70)):
        assert abs(found.count(kind) - COUNT / 4) < bound(COUNT, 1 / 4), kind


def test_classes_are_drawn_equally_often() -> None:
    images = {WHOLE: bank_of([[(1, 30)]] * 20 + [[(2, 30)]] * 2, VIEWS)}
    pairs, _ = drawn(images, [1, 2], COUNT, {})
    rare = sum(query // VIEWS >= 20 for query, _ in pairs)
    assert abs(rare - COUNT / 2) < bound(COUNT, 1 / 2)


# --- queries without the class ---------------------------------------------------------------------------------------

SHOWN: list[Objects] = [[(1, 40)]] * 3 + [[(2, 40)]] * 5 + [[(2, 40), (3, 30)]] * 2 + [[(3, 40)]] * 3 + [[]]
PARTS = [0] * 6 + [1] * 7 + [0]
LABELLED = [{1, 2}, {2, 3}]
"""The first data set does not label class 3, the second not class 1."""


def classes_in(number: int) -> set[int]:
    image = number - CROPS_FROM if number >= CROPS_FROM else number // VIEWS
    return {c for c, _ in SHOWN[image]}


def part_of(number: int) -> int:
    return PARTS[number - CROPS_FROM if number >= CROPS_FROM else number // VIEWS]


@pytest.mark.parametrize("near", [0.0, 1.0])
def test_absent_queries_never_show_the_class_and_are_of_data_sets_that_label_it(near: float) -> None:
    images = {WHOLE: bank_of(SHOWN, VIEWS), CROP: bank_of(SHOWN, 1)}
    nearest = {1: [2], 2: [1, 3], 3: [2]}
    pairs, episodes = drawn(
        images,
        [1, 2, 3],
        200,
        {"absent": 1.0, "near": near, "cropped": 0.5},
        parts=PARTS,
        labelled=LABELLED,
        near=nearest,
    )
    assert (episodes.mask == -1).all() and (episodes.valid == 1).all()
    groups = set()
    for row, (query, support) in enumerate(pairs):
        marked = episodes.support.foreground[row, 0] > 0.5
        labels = torch.from_numpy(labels_of(SHOWN[support // VIEWS]))
        [c] = labels[marked].unique().tolist()  # the class that the support shows
        assert c not in classes_in(query) and c in LABELLED[part_of(query)]
        if near:
            assert classes_in(query) & set(nearest[c])
        groups.add(query >= CROPS_FROM)
    assert groups == {False, True}  # whole images and crops


def test_queries_are_absent_in_their_share() -> None:
    images = {WHOLE: bank_of(SHOWN, VIEWS)}
    _, episodes = drawn(images, [1, 2, 3], COUNT, {"absent": 0.25}, parts=PARTS, labelled=LABELLED)
    absent = int((episodes.mask == -1).flatten(1).all(dim=1).sum())
    assert abs(absent - COUNT / 4) < bound(COUNT, 1 / 4)


def test_where_every_image_shows_the_class_the_query_does_too() -> None:
    _, episodes = drawn({WHOLE: bank_of([[(1, 30)]] * 3, VIEWS)}, [1], 20, {"absent": 1.0})
    assert (episodes.mask > 0).flatten(1).any(dim=1).all()


def test_a_speck_of_a_similar_class_is_not_enough() -> None:
    """Queries with at least `NEAR_AREA` of it are preferred; where there are none, any without the class will do."""
    side = int((NEAR_AREA * 128**2) ** 0.5)
    speck: list[Objects] = [[(1, 40)]] * 2 + [[(2, side - 2)], [(2, 40)], [(2, 40)]]
    pairs, _ = drawn({WHOLE: bank_of(speck, VIEWS)}, [1, 2], 100, {"absent": 1.0, "near": 1.0}, near={1: [2]})
    assert {query // VIEWS for query, support in pairs if support // VIEWS < 2} == {3, 4}
    pairs, _ = drawn({WHOLE: bank_of(speck[:3], VIEWS)}, [1, 2], 40, {"absent": 1.0, "near": 1.0}, near={1: [2]})
    assert {query // VIEWS for query, _ in pairs} == {2}


# --- similar classes -------------------------------------------------------------------------------------------------

DIRECTIONS = {1: (1.0, 0.0, 0.0), 2: (1.0, 0.3, 0.0), 3: (0.0, 0.1, 1.0), 9: (0.0, 1.0, 0.0)}


def built() -> tuple[SimpleNamespace, np.ndarray]:
    """Images of one class each, whose features are the class's direction times 1 to 3; only first views say so."""
    shown: list[Objects] = [[(c, 60)] for c in (1, 2, 3, 9, 1, 2)]
    bank = bank_of(shown, VIEWS)
    level = np.random.default_rng(0).normal(size=(bank.length, 3, 16, 16))
    for index in range(0, bank.length, VIEWS):
        [(c, _)] = shown[index // VIEWS]
        inside = bank.arrays["mask"][index][::8, ::8] == c
        level[index] = np.array(DIRECTIONS[c])[:, None, None] * inside * (1 + index // VIEWS % 3)
    return bank, level.astype(np.float16)


def test_near_classes_are_those_of_similar_prototypes_the_nearest_first() -> None:
    bank, level = built()
    assert near_classes(bank, level, [1, 2, 3]) == {1: (2, 3), 2: (1, 3), 3: (2, 1)}
    assert near_classes(bank, level, [1, 2, 3], count=1) == {1: (2,), 2: (1,), 3: (2,)}
    assert near_classes(bank, level, [1, 3, 7]) == {1: (3,), 3: (1,)}  # no image shows class 7
    assert near_classes(bank, level, [1]) == {1: ()}
    assert near_classes(bank, level, [7]) == {}


# --- classes given by name -------------------------------------------------------------------------------------------


def similarities(images: dict[str, SimpleNamespace], classes: int) -> dict[str, SimpleNamespace]:
    """Banks of text similarities, every value another one."""
    found = {}
    for group, bank in images.items():
        numbers = np.arange(bank.length * classes * 6, dtype=np.float32).reshape(bank.length, classes, 2, 3)
        found[group] = SimpleNamespace(arrays={"similar": (numbers / 1024).astype(np.float16)})
    return found


@pytest.mark.parametrize(("text", "both"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_named_classes_come_with_their_similarities(text: float, both: float) -> None:
    images = {WHOLE: bank_of([[(2, 30)]] * 3 + [[(5, 30)]] * 3, VIEWS)}
    config = EpisodesConfig(**PLAIN, text=text, text_and_supports=both)
    sampler = EpisodeSampler(images, [2, 5], config, min_area_fraction=0.01, ignore=255)
    banks = similarities(images, 2)
    arguments = (0, 0, 40, told_by_number(images), torch.device("cpu"))
    episodes = sampler.draw(*arguments, text=banks)
    assert (episodes.support is None) is bool(text) and (episodes.text is None) is not bool(text or both)
    for row, query in enumerate(episodes.query[0][:, 0, 0, 0].int().tolist()):
        column = int(query // VIEWS >= 3)  # the query shows the class
        if episodes.text is not None:
            expected = torch.from_numpy(banks[WHOLE].arrays["similar"][query, column]).float()
            assert episodes.text.shape == (40, 1, 2, 3) and torch.equal(episodes.text[row, 0], expected)
    for none in (None, {}):  # without a text space there are supports
        plain = sampler.draw(*arguments, text=none)
        assert plain.text is None and plain.support is not None
        assert torch.equal(plain.mask, episodes.mask)


def test_named_batches_come_in_their_shares() -> None:
    images = {WHOLE: bank_of([[(1, 30)]] * 3, VIEWS)}
    config = EpisodesConfig(**PLAIN, text=0.3, text_and_supports=0.2)
    sampler = EpisodeSampler(images, [1], config, min_area_fraction=0.01, ignore=255)
    counts = {"text": 0, "both": 0, "supports": 0}
    for step in range(COUNT):
        episodes = sampler.draw(0, step, 1, told_by_number(images), torch.device("cpu"), text=similarities(images, 1))
        kind = "supports" if episodes.text is None else "text" if episodes.support is None else "both"
        counts[kind] += 1
    for kind, share in (("text", 0.3), ("both", 0.2), ("supports", 0.5)):
        assert abs(counts[kind] - share * COUNT) < bound(COUNT, share), kind
