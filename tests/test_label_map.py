"""Several classes in one image: the rule for overlaps, what is computed how often, pictures and figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import shape_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from diffup import DiffUp, LabelMap, Prototypes
from diffup.decoder.base import Decoder
from diffup.errors import FormatError, ImageError, PrototypesError
from diffup.inference import CPU_DECODER_BATCH, DECODER_BATCH, decoder_batches
from diffup.label_map import merge
from diffup.result import Segmentation

QUERY, _ = shape_image((1, 2, 3), (60, 150), seed=4)
NAMES = ("square", "disc", "triangle")


@pytest.fixture(scope="module")
def result(model: DiffUp, classes: list[Prototypes]) -> LabelMap:
    return model.segment(QUERY, classes)


def count_calls(model: DiffUp, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that the decoder is called with from now on."""
    sizes: list[int] = []
    plain = type(model.decoder).forward

    def forward(self: Decoder, x: Tensor, *others: object) -> object:
        sizes.append(len(x))
        return plain(self, x, *others)

    monkeypatch.setattr(type(model.decoder), "forward", forward)
    return sizes


def test_one_pass_of_the_encoder_and_one_batch_of_the_decoder(
    model: DiffUp, classes: list[Prototypes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, before = count_calls(model, monkeypatch), model.backbone.calls
    model.segment(QUERY, classes, steps=2, ensemble=2)
    assert model.backbone.calls == before + 1
    assert sizes == [6, 6]  # three classes with two samples each, in two steps


def test_many_classes_are_decoded_in_bounded_batches(
    model: DiffUp, classes: list[Prototypes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, before = count_calls(model, monkeypatch), model.backbone.calls
    size, many = CPU_DECODER_BATCH, [dataclasses.replace(classes[0], name=str(index)) for index in range(19)]
    result = model.segment(QUERY, many, steps=1, ensemble=1)
    assert model.backbone.calls == before + 1 and sizes == [size, size, 19 - 2 * size]
    assert len(result.probabilities) == 19
    found = np.stack([item.probability for item in result.results])
    assert np.ptp(found, axis=0).max() < 1e-5  # one class by 19 names: its place in a batch changes rounding alone


@settings(max_examples=50, deadline=None)
@given(queries=st.integers(1, 100), count=st.integers(1, 255), device=st.sampled_from(["cpu", "cuda"]))
def test_decoder_batches_hold_every_class_once(queries: int, count: int, device: str) -> None:
    batches = decoder_batches(queries, count, torch.device(device))
    most = CPU_DECODER_BATCH if device == "cpu" else DECODER_BATCH  # the tests have one thread
    assert [index for batch in batches for index in batch] == list(range(count))
    assert all(len(batch) * queries <= max(most, queries) for batch in batches)


def test_each_class_is_what_it_is_alone(model: DiffUp, classes: list[Prototypes], result: LabelMap) -> None:
    for item in classes:
        alone, among = model.segment(QUERY, item), result[item.name]
        # Batches of another size round differently, and the random decoder enlarges that.
        assert np.abs(alone.probability - among.probability).max() < 5e-4
        for name in ("quality", "presence", "score"):
            assert getattr(alone, name) == pytest.approx(getattr(among, name), abs=1e-4)
        assert among.threshold == alone.threshold and np.array_equal(among.image, QUERY)


def test_shapes_and_sums(result: LabelMap) -> None:
    assert result.names == NAMES and result.labels.dtype == np.uint8
    assert result.labels.shape == result.background.shape == QUERY.shape[:2]
    assert result.probabilities.shape == (3, *QUERY.shape[:2]) and result.probabilities.dtype == np.float32
    assert result.probabilities.min() >= 0 and result.background.min() >= 0
    assert np.abs(result.probabilities.sum(axis=0) + result.background - 1).max() < 1e-5


def test_a_list_of_one_is_a_label_map_too(model: DiffUp, classes: list[Prototypes]) -> None:
    single = model.segment(QUERY, classes[:1])
    assert isinstance(single, LabelMap)
    assert np.array_equal(single.labels > 0, model.segment(QUERY, classes[0]).mask)


def test_a_trace_is_kept_for_every_class(model: DiffUp, classes: list[Prototypes]) -> None:
    traced = model.segment(QUERY, classes, steps=2, trace=True)
    assert all(traced[name].trace.shape == (3, 64, 64) for name in NAMES)


def test_progress_counts_every_step(
    model: DiffUp, classes: list[Prototypes], capsys: pytest.CaptureFixture[str]
) -> None:
    model.segment(QUERY, classes, steps=2, progress=True)
    assert "2/2" in capsys.readouterr().err


# --- the rule --------------------------------------------------------------------------------------------------------


BLANK = np.zeros((64, 64, 3), np.uint8)


def decoded(
    probability: Tensor, threshold: float, image: np.ndarray = BLANK, presence: float = 1.0, score: float = 1.0
) -> Segmentation:
    maps = torch.zeros(4, 64, 64)
    maps[0] = probability
    return Segmentation(image, maps.numpy(), 0.5, threshold, "fake", presence, 0.25, score, refine=False)


probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(values=probabilities, thresholds=st.lists(st.floats(0.05, 0.95), min_size=5, max_size=5))
def test_the_rule_at_one_pixel(values: list[float], thresholds: list[float]) -> None:
    items = [decoded(torch.tensor(p), t) for p, t in zip(values, thresholds, strict=False)]
    result = LabelMap.of([str(i) for i in range(len(items))], items)
    assert (result.labels == result.labels[0, 0]).all()
    label = int(result.labels[0, 0])
    passing = [i for i, item in enumerate(items) if float(item.maps[0, 0, 0]) > np.float32(item.threshold)]
    assert (label == 0) == (not passing)
    chances = result.probabilities[:, 0, 0]
    assert chances.sum() + result.background[0, 0] == pytest.approx(1, abs=1e-5)
    if label:
        assert label - 1 in passing
        assert chances[label - 1] >= chances[passing].max() * (1 - 1e-5)
        assert chances[label - 1] >= result.background[0, 0] * (1 - 1e-5)
    else:
        assert result.background[0, 0] >= chances.max() * (1 - 1e-5)


def test_more_classes_than_labels_are_refused() -> None:
    items = [decoded(torch.tensor(0.1 if index < 254 else 0.9), 0.5) for index in range(255)]
    assert (LabelMap.of([str(index) for index in range(255)], items).labels == 255).all()
    with pytest.raises(PrototypesError, match="names: 256 classes do not fit into a label map; give up to 255"):
        LabelMap.of([str(index) for index in range(256)], [*items, items[-1]])


def test_the_rule_by_hand() -> None:
    """Odds over the odds at the threshold: 0.6 of 0.5 is 1.5, 0.5 of 0.25 is 3, 0.2 of 0.25 is 0.75."""
    image = np.zeros((2, 3, 3), np.uint8)
    items = [decoded(torch.tensor(p), t, image) for p, t in ((0.6, 0.5), (0.5, 0.25), (0.2, 0.25))]
    labels, total = merge(items, [True] * 3)
    assert labels.shape == (2, 3) and (labels == 2).all()
    assert torch.allclose(total, torch.full((2, 3), 1 + 1.5 + 3 + 0.75), rtol=1e-5)


def test_equal_thresholds_give_the_most_probable_class() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 64, 64, generator=generator)
    labels, _ = merge([decoded(values, 0.25) for values in maps], [True] * 4)
    expected = torch.where(maps.amax(dim=0) > 0.25, maps.argmax(dim=0) + 1, 0)
    assert torch.equal(labels.long(), expected)


def test_a_class_that_is_hardly_there_takes_little_from_one_that_is() -> None:
    """Odds over the odds at the threshold, times the presence: 4 * 0.9 against 9 * 0.3."""
    half = torch.full((64, 64), 0.8)
    half[:, 32:] = 0.1
    items = [decoded(torch.tensor(0.9), 0.5, presence=0.3), decoded(half, 0.5, presence=0.9)]
    result = LabelMap.of("ab", items)
    assert (result.labels[:, :32] == 2).all() and (result.labels[:, 32:] == 1).all()
    assert result.probabilities[:, 0, 0] == pytest.approx([2.7 / 7.3, 3.6 / 7.3], rel=1e-4)
    assert result.masks[0].all(), "its own mask stays"
    assert (LabelMap.of("a", items[:1]).labels == 1).all(), "alone it loses nothing"


def test_an_absent_class_takes_no_pixel() -> None:
    maps = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps[1] = 0.99
    items = [decoded(values, 0.25) for values in maps]
    alone = LabelMap.of("ac", [items[0], items[2]])
    assert {0, 1, 2} == set(np.unique(alone.labels))
    assert (LabelMap.of("abc", items).labels == 2).mean() > 0.9, "if it were there"
    items[1] = decoded(maps[1], 0.25, presence=0.2)
    result = LabelMap.of("abc", items)
    assert np.array_equal(result.labels, np.array([0, 1, 3])[alone.labels])
    assert np.array_equal(result.background, alone.background)
    assert np.array_equal(result.probabilities[[0, 2]], alone.probabilities) and not result.probabilities[1].any()
    assert np.abs(result.probabilities.sum(axis=0) + result.background - 1).max() < 1e-5
    assert result.summary()["classes"][1]["area_fraction"] == 0


def stripes(*ends: int) -> list[torch.Tensor]:
    """Probabilities of classes that reach from the left to the given columns of 64, each more likely than the last."""
    maps = []
    for index, end in enumerate(ends):
        values = torch.full((64, 64), 0.1)
        values[:, :end] = 0.6 + 0.1 * index
        maps.append(values)
    return maps


@pytest.mark.parametrize(("end", "overruled"), [(51, ()), (52, ("a",))])
def test_a_class_that_keeps_less_than_a_fifth_of_its_mask_is_overruled(end: int, overruled: tuple[str, ...]) -> None:
    first, second = (decoded(values, 0.5) for values in stripes(64, end))
    result = LabelMap.of("ab", [first, second])
    assert result.overruled == overruled
    assert (result.labels[:, :end] == 2).all() and (result.labels[:, end:] == (0 if overruled else 1)).all()
    assert result.probabilities[0].any() == (not overruled)
    assert np.abs(result.probabilities.sum(axis=0) + result.background - 1).max() < 1e-5
    assert [item["overruled"] for item in result.summary()["classes"]] == [bool(overruled), False]
    assert result["a"].mask.all() and result.masks[0].all(), "its own mask stays"
    assert [item.label for item in result.marked(overlap=True)] == [1, 2]


def test_shares_are_counted_anew_once_a_class_is_overruled() -> None:
    """The first class keeps a tenth at first, and four tenths without the second, which keeps a twentieth."""
    columns = torch.arange(64).expand(64, 64)
    parts = [columns < 10, columns >= 1, columns >= 4]
    maps = [torch.where(part, p, 0.1) for part, p in zip(parts, (0.6, 0.7, 0.8), strict=True)]
    result = LabelMap.of("abc", [decoded(values, 0.5) for values in maps])
    assert result.overruled == ("b",)
    assert (result.labels[:, :4] == 1).all() and (result.labels[:, 4:] == 3).all()
    same = LabelMap.of("abc", [decoded(torch.tensor(0.7), 0.5)] * 3)
    assert same.overruled == ("b", "c") and (same.labels == 1).all(), "of equal classes the first stays"


def test_neither_absent_nor_empty_classes_are_overruled_nor_overrule() -> None:
    wide, narrow = (decoded(values, 0.5) for values in stripes(60, 64))
    absent = dataclasses.replace(narrow, presence=0.0)
    assert LabelMap.of("ab", [wide, absent]).overruled == ()
    assert LabelMap.of("ab", [wide, decoded(torch.tensor(0.1), 0.5)]).overruled == ()


def test_classes_that_are_said_to_be_there_are_not_overruled() -> None:
    items = [dataclasses.replace(decoded(values, 0.5), min_presence=0.0) for values in stripes(64, 62)]
    result = LabelMap.of("ab", items)
    assert result.overruled == () and (result.labels[:, 62:] == 1).all()
    assert LabelMap.of("a", [dataclasses.replace(items[0], presence=0.0)]).overruled == ()


def test_maps_of_different_sizes_and_refined_ones_are_compared() -> None:
    first, second = (decoded(values, 0.5) for values in stripes(64, 63))
    small = dataclasses.replace(second, maps=np.ascontiguousarray(second.maps[:, ::2, ::2]))
    for items in ([first, small], [small, first]):
        assert LabelMap.of("ab", items).overruled == ("ab"[items.index(first)],)
    refined = [dataclasses.replace(item, refine=True) for item in (first, second)]
    result = LabelMap.of("ab", refined)
    assert result.overruled == ("a",) and set(np.unique(result.labels)) <= {0, 2}


def test_only_absent_classes_leave_the_background() -> None:
    result = LabelMap.of("ab", [decoded(torch.tensor(0.9), 0.5, presence=0.2)] * 2)
    assert not result.labels.any() and not result.probabilities.any() and (result.background == 1).all()


def test_own_masks_overlap_and_are_those_of_the_classes_alone(result: LabelMap) -> None:
    maps = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = LabelMap.of("abc", [decoded(maps[i], 0.3, presence=presence) for i, presence in enumerate((1.0, 0.5, 0.0))])
    assert made.masks.dtype == bool and np.array_equal(made.masks[:2], maps[:2].numpy() > np.float32(0.3))
    assert made.masks[:2].all(axis=0).any() and not made.masks[2].any()
    assert np.array_equal(made.masks.any(axis=0), made.labels > 0)
    for name, mask in zip(NAMES, result.masks, strict=True):  # refined
        assert np.array_equal(mask, result[name].mask)


def test_marked_masks() -> None:
    maps = torch.zeros(3, 64, 64)
    maps[0, 4:10, 4:10], maps[0, 40:60, 30:50], maps[1, 50:, 40:], maps[2] = 0.75, 0.75, 0.875, 1.0
    presence, scores = (1.0, 0.5, 0.0), (0.5, 0.25, 1.0)
    made = LabelMap.of("abc", [decoded(maps[i], 0.5, presence=presence[i], score=scores[i]) for i in range(3)])
    whole = list(made.marked())
    assert [(item.label, item.score) for item in whole] == [(1, 0.5), (2, 0.25)]  # the third is absent
    for item in whole:
        assert np.array_equal(item.mask, made.labels == item.label)
    own = list(made.marked(overlap=True))
    assert [int(item.mask.sum()) for item in own] == [6 * 6 + 20 * 20, 14 * 24]
    assert [int(item.mask.sum()) for item in whole] == [6 * 6 + 20 * 20 - 10 * 10, 14 * 24]
    parts = list(made.marked(instances=True))
    assert [(item.label, int(item.mask.sum()), item.score) for item in parts] == [
        (1, 36, 0.375),
        (1, 300, 0.375),
        (2, 336, 0.21875),
    ]


@pytest.mark.filterwarnings("ignore")  # supervision's own, on OpenCV
def test_detections_of_a_label_map() -> None:
    supervision = pytest.importorskip("supervision")
    found = handmade().to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[0, 0, 28, 64], [36, 0, 64, 64]]
    assert found.class_id.tolist() == [0, 1] and found["class_name"].tolist() == ["dog", "a cat with a long name"]
    assert found.confidence.tolist() == [1.0, 1.0]
    assert np.array_equal(found.mask, [handmade().labels == 1, handmade().labels == 2])
    halves = torch.full((2, 64, 64), 0.9)
    halves[0, :, 30:34] = halves[1] = 0.1
    parts = LabelMap.of(("dog", "cat"), [decoded(values, 0.5) for values in halves]).to_supervision(instances=True)
    assert sorted(parts.xyxy.tolist()) == [[0, 0, 30, 64], [34, 0, 64, 64]] and parts.class_id.tolist() == [0, 0]
    both = LabelMap.of(("dog", "cat"), [decoded(torch.tensor(p), 0.5) for p in (0.9, 0.8)])
    assert both.to_supervision().class_id.tolist() == [0]
    assert both.to_supervision(overlap=True).class_id.tolist() == [0, 1]
    absent = LabelMap.of(("dog",), [decoded(torch.tensor(0.9), 0.5, presence=0.0)])
    assert len(absent.to_supervision()) == 0


def test_certainty_is_finite() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    labels, total = merge([decoded(torch.tensor(p), 0.5, image) for p in (1.0, 0.0)], [True] * 2)
    assert (labels == 1).all() and bool(total.isfinite().all())


# --- pictures, files, figures ----------------------------------------------------------------------------------------


def handmade() -> LabelMap:
    """Left half one class, right half another, a strip of background between."""
    maps = torch.full((2, 64, 64), 0.1)
    maps[0, :, :28], maps[1, :, 36:] = 0.9, 0.8
    image = np.full((64, 64, 3), 100, np.uint8)
    return LabelMap.of(("dog", "a cat with a long name"), [decoded(values, 0.5, image) for values in maps])


def test_overlay_and_legend() -> None:
    result = handmade()
    plain = np.asarray(result.overlay(alpha=1.0, legend=False))
    assert plain.shape == (64, 64, 3)
    for label in (1, 2):
        kept = (plain[result.labels == label] == result.palette[label]).all(axis=1).mean()
        assert kept > 0.9, "all but the light edge"
    assert (plain[:, 31:33] == 100).all()
    named = np.asarray(result.overlay(alpha=1.0))
    assert named.shape == (64 + 2 * 18, 64, 3) and (named[:64] == plain).all()  # too narrow for both in a row
    for row, label in ((0, 1), (1, 2)):
        assert (named[64 + 18 * row + 9, 9] == result.palette[label]).all()
    for alpha in (-0.1, 1.1):
        with pytest.raises(ImageError, match="alpha"):
            result.overlay(alpha=alpha)


def test_what_is_said_of_an_absent_class() -> None:
    items = [decoded(torch.tensor(0.9), 0.5, presence=presence, score=0.75) for presence in (0.875, 0.125)]
    result = LabelMap.of(("dog", "cat"), items)
    assert result.presence == {"dog": 0.875, "cat": 0.125} and result.score == {"dog": 0.75, "cat": 0.75}
    assert [item["present"] for item in result.summary()["classes"]] == [True, False]
    assert not result["cat"].present and not result["cat"].mask.any() and result["dog"].mask.all()


def test_an_empty_label_map_has_no_legend() -> None:
    image = np.full((20, 30, 3), 9, np.uint8)
    empty = LabelMap.of(("dog",), [decoded(torch.tensor(0.1), 0.5, image)])
    assert (np.asarray(empty.overlay()) == image).all()


def test_the_file_holds_the_labels(tmp_path: Path) -> None:
    result = handmade()
    path = result.save(tmp_path / "labels.png")
    picture = Image.open(path)
    assert picture.mode == "P" and (np.asarray(picture) == result.labels).all()
    assert (np.asarray(picture.convert("RGB"))[result.labels == 2] == result.palette[2]).all()
    with pytest.raises(FormatError, match=r"\.png"):
        result.save(tmp_path / "labels.jpg")


def test_figures(result: LabelMap) -> None:
    summary = json.loads(json.dumps(result.summary()))
    assert (summary["width"], summary["height"]) == (150, 60)
    assert [item["name"] for item in summary["classes"]] == list(NAMES)
    assert [item["label"] for item in summary["classes"]] == [1, 2, 3]
    for item in summary["classes"]:
        assert item["area_fraction"] == pytest.approx((result.labels == item["label"]).mean())
        for name in ("quality", "presence", "score"):
            assert item[name] == getattr(result, name)[item["name"]] == getattr(result[item["name"]], name)
        assert item["present"] is True
    assert "square" in repr(result) and "%" in repr(result)


def test_unknown_classes_are_refused(result: LabelMap) -> None:
    with pytest.raises(PrototypesError, match="the classes are 'square', 'disc', 'triangle'"):
        result["dog"]
