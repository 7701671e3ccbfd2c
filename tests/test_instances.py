"""Objects of one class: every pixel in one, touching ones apart, whole ones whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import data
from skimage.measure import label

from diffup.errors import ConfigError
from diffup.instances import find_instances, separate
from diffup.label_map import LabelMap
from diffup.result import Segmentation

SIZE = (120, 200)


def disc(x: float, y: float, radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def plain(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), 128, np.uint8)


def test_touching_discs_are_divided_at_their_waist() -> None:
    mask = disc(60, 60, 35) | disc(128, 60, 35)
    labels = separate(mask, plain())
    assert label(mask, connectivity=1).max() == 1 and labels.max() == 2
    assert (labels > 0)[mask].all() and not labels[~mask].any()
    assert labels[60, 60] != labels[60, 128]
    left = labels == labels[60, 60]
    columns = np.arange(SIZE[1])
    assert left[mask & (columns < 90)].all() and not left[mask & (columns > 95)].any()


@pytest.mark.parametrize("scale", [1, 4])
def test_scale_does_not_matter(scale: int) -> None:
    size = (SIZE[0] * scale, SIZE[1] * scale)
    mask = disc(60 * scale, 60 * scale, 35 * scale, size) | disc(128 * scale, 60 * scale, 35 * scale, size)
    assert separate(mask, plain(size)).max() == 2


def test_whole_objects_stay_whole() -> None:
    bar = np.zeros(SIZE, bool)
    bar[50:70, 20:180] = True
    ring = disc(100, 60, 50) & ~disc(100, 60, 20)
    for mask in (disc(100, 60, 50), bar, ring, np.ones(SIZE, bool)):
        np.testing.assert_array_equal(separate(mask, plain()), mask)


def test_an_edge_of_the_image_divides_what_has_no_waist() -> None:
    mask, image = np.zeros(SIZE, bool), plain()
    mask[30:90, 20:180] = True
    image[:, 98:102] = 0
    labels = separate(mask, image)
    assert labels.max() == 2 and labels[60, 40] != labels[60, 160] and separate(mask, plain()).max() == 1


def test_parts_that_do_not_touch_are_objects() -> None:
    mask = disc(40, 60, 20) | disc(150, 60, 30)
    found = find_instances(mask, plain(), np.where(disc(40, 60, 20), 0.5, 0.75).astype(np.float32), 0.5, 0.0)
    assert [item.score for item in found] == pytest.approx([0.375, 0.25], rel=1e-6)
    np.testing.assert_array_equal(found[0].mask, disc(150, 60, 30))
    assert found[1].box == (21, 41, 60, 80) and found[1].area == disc(40, 60, 20).sum()


def test_specks_are_left_out_unless_asked_for() -> None:
    mask = disc(40, 60, 20)
    mask[5, 190] = True
    counts = [len(find_instances(mask, plain(), mask.astype(np.float32), 1.0, least)) for least in (0.0, 0.002, 0.9)]
    assert counts == [2, 1, 0]
    assert find_instances(np.zeros(SIZE, bool), plain(), np.zeros(SIZE, np.float32), 1.0, 0.0) == []


@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_mask_is_divided_into_connected_objects(mask: np.ndarray) -> None:
    labels = separate(mask, plain(mask.shape))
    np.testing.assert_array_equal(labels > 0, mask)
    assert set(np.unique(labels[mask])) == set(range(1, labels.max() + 1))
    for number in range(1, labels.max() + 1):
        assert label(labels == number, connectivity=1).max() == 1


def result(mask: np.ndarray, image: np.ndarray, **changes: object) -> Segmentation:
    probability = np.where(mask, 0.9, 0.1).astype(np.float32)
    maps = np.stack([probability, np.zeros_like(probability), np.zeros_like(probability), probability])
    facts = {"quality": 0.8, "threshold": 0.5, "backbone": "fake", "score": 0.5, "refine": False} | changes
    return Segmentation(image=image, maps=maps, **facts)  # type: ignore[arg-type]


def test_results_and_their_exports_hold_the_objects() -> None:
    mask = disc(60, 60, 35) | disc(128, 60, 35)
    found = result(mask, plain()).instances()
    assert len(found) == 2 and all(item.score == pytest.approx(0.45) for item in found)
    annotations = result(mask, plain()).to_coco(instances=True)
    assert sorted(item["area"] for item in annotations) == sorted(item.area for item in found)
    assert [item["score"] for item in annotations] == pytest.approx([0.45, 0.45])
    assert len(result(mask, plain()).to_coco()) == 1


@pytest.mark.parametrize("smallest", [-0.1, 2, float("nan")])
def test_a_least_part_that_is_none_is_refused(smallest: float) -> None:
    for mask in (disc(60, 60, 35), np.zeros_like(disc(60, 60, 35))):
        with pytest.raises(ConfigError, match=r"smallest=.*: it must be 0 to 1"):
            result(mask, plain()).instances(smallest)


def test_a_label_map_has_the_objects_of_every_class() -> None:
    first, second = disc(60, 60, 35) | disc(128, 60, 35), disc(20, 20, 10)
    both = LabelMap.of(("coin", "bead"), [result(first, plain()), result(second & ~first, plain())])
    for overlap in (False, True):
        assert [label for label, _ in both.instances(overlap)] == [1, 1, 2]
    absent = LabelMap.of(("coin",), [result(first, plain(), presence=0.1, min_presence=0.5)])
    assert not list(absent.instances()) and not list(absent.instances(overlap=True))


def test_coins_pushed_together() -> None:
    """Four coins of one photo, their masks joined: real texture, and the boundaries are those that were cut."""
    photo, at = data.coins(), [(47, 44), (47, 107), (47, 169), (47, 229)]
    side = 30
    image = np.concatenate([photo[y - side : y + side, x - side : x + side] for y, x in at], axis=1)
    mask = np.concatenate([disc(side, side, side, (2 * side, 2 * side))] * 4, axis=1)
    mask[side - 2 : side + 2] = True  # they touch
    labels = separate(mask, np.repeat(image[..., None], 3, axis=2))
    assert label(mask, connectivity=1).max() == 1 and labels.max() == 4
