"""`segment_many`: the results of `segment`, in order, whatever the batch; bounded memory; failures on record."""

from __future__ import annotations

import itertools
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, shape_image, teach, tiny_model
from pages import ROOT, make
from PIL import Image
from scene import assert_close

from diffup import DiffUp, Failure, LabelMap, Prototypes, Segmentation
from diffup.errors import ConfigError, ImageError, PrototypesError
from diffup.inference import Query, read_query
from diffup.stream import stream

QUERIES = [shape_image((1, 2), (60 + 7 * i, 100 - 5 * i), seed=i)[0] for i in range(7)]


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(steps=2)


@pytest.fixture(scope="module")
def classes(model: DiffUp) -> list[Prototypes]:
    return teach(model, ("square", "disc"))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_results_are_those_of_segment_whatever_the_batch(
    model: DiffUp, classes: list[Prototypes], batch_size: int
) -> None:
    results = list(model.segment_many(QUERIES, classes[0], batch_size=batch_size, workers=2, seed=3))
    assert len(results) == len(QUERIES)
    for query, result in zip(QUERIES, results, strict=True):
        assert isinstance(result, Segmentation)
        assert_close(result, model.segment(query, classes[0], seed=3))


def test_several_classes(model: DiffUp, classes: list[Prototypes]) -> None:
    results = model.segment_many(QUERIES, classes, batch_size=4, steps=1, ensemble=3, threshold=0.4)
    for query, result in zip(QUERIES, results, strict=True):
        alone = model.segment(query, classes, steps=1, ensemble=3, threshold=0.4)
        assert isinstance(result, LabelMap) and result.names == ("square", "disc")
        for name in result.names:
            assert_close(result[name], alone[name])
        assert (result.labels != alone.labels).mean() < 0.01


def test_encoder_and_decoder_run_in_batches(
    model: DiffUp, classes: list[Prototypes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = type(model.decoder).forward

    def forward(self: object, x: torch.Tensor, *others: object) -> object:
        sizes.append(len(x))
        return plain(self, x, *others)

    monkeypatch.setattr(type(model.decoder), "forward", forward)
    before = model.backbone.calls
    list(model.segment_many(QUERIES, classes, batch_size=4, steps=1, ensemble=2))
    # On a CPU the encoder sees as many images at once as there are threads.
    threads = torch.get_num_threads()
    assert model.backbone.calls == before + sum(-(-images // threads) for images in (4, len(QUERIES) - 4))
    assert sizes == [4 * 2 * 2, 3 * 2 * 2]  # images, classes, samples


def test_what_cannot_be_read_is_recorded_in_its_place(model: DiffUp, classes: list[Prototypes], tmp_path: Path) -> None:
    Image.fromarray(QUERIES[0]).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    good, broken = tmp_path / "good.png", str(tmp_path / "broken.png")
    queries = [broken, good, tmp_path / "missing.png", np.zeros((0, 3, 3), np.uint8), good]
    results = list(model.segment_many(queries, classes[0], batch_size=2))
    assert [isinstance(result, Failure) for result in results] == [True, False, True, True, False]
    assert isinstance(results[0], Failure) and results[0].source == broken
    assert results[2].source == str(tmp_path / "missing.png")
    assert isinstance(results[0].error, ImageError) and "queries[0]" in str(results[0].error)
    assert "there is no file" in str(results[2].error) and "queries[2]" in str(results[2].error)
    assert_close(results[1], model.segment(good, classes[0]))
    assert_close(results[4], model.segment(good, classes[0]))


def test_failures_alone(model: DiffUp, classes: list[Prototypes]) -> None:
    before = model.backbone.calls
    assert all(isinstance(result, Failure) for result in model.segment_many(["a.png", "b.png"], classes))
    assert model.backbone.calls == before
    assert list(model.segment_many([], classes)) == []


def test_or_raised_after_the_results_before_it(model: DiffUp, classes: list[Prototypes]) -> None:
    results = model.segment_many([QUERIES[0], "none.png", QUERIES[1]], classes[0], on_error="raise")
    assert isinstance(next(results), Segmentation)
    with pytest.raises(ImageError, match=r"queries\[1\]: there is no file"):
        next(results)


def test_memory_is_bounded(model: DiffUp, classes: list[Prototypes]) -> None:
    drawn = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal drawn
        while True:
            drawn += 1
            yield QUERIES[0]

    results = model.segment_many(endless(), classes[0], batch_size=2, workers=3, steps=1, ensemble=1)
    for given in range(1, 8):
        next(results)
        assert drawn <= given + 2 * 2 + 3
    before = threading.active_count()
    results.close()
    assert threading.active_count() <= before
    assert not any(thread.name.startswith("diffup-read") for thread in threading.enumerate())


def test_images_are_read_while_others_are_decoded() -> None:
    """Each of the first three is not read before all three have begun, and order is kept."""
    together = threading.Barrier(3)
    begun = itertools.count()

    def read(source: object, argument: str) -> Query:
        if next(begun) < 3:
            together.wait(timeout=300)
        return read_query(source, argument, FakeBackbone(input_size=(8, 8)))

    queries = [QUERIES[i % 3] for i in range(8)]
    results = stream(
        queries,
        read,
        lambda batch: [query.size for query in batch],
        lambda size: size,
        batch_size=2,
        workers=3,
        record=True,
    )
    assert list(results) == [query.shape[:2] for query in queries]


def test_progress(model: DiffUp, classes: list[Prototypes], capsys: pytest.CaptureFixture[str]) -> None:
    list(model.segment_many(QUERIES[:3], classes[0], steps=1, ensemble=1))
    assert capsys.readouterr().err == ""
    list(model.segment_many(QUERIES[:3], classes[0], steps=1, ensemble=1, progress=True))
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": 0}, "workers=0"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"steps": 0}, "steps=0"),
        ({"ensemble": 0}, "ensemble=0"),
        ({"threshold": 1.0}, "threshold=1.0"),
    ],
)
def test_options_out_of_range_are_refused_at_once(
    model: DiffUp, classes: list[Prototypes], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model.segment_many(QUERIES, classes, **options)


@pytest.mark.parametrize("queries", ["photos", QUERIES[0], torch.zeros(3, 5, 5), Image.new("RGB", (4, 4)), Path(), 3])
def test_a_single_image_is_refused(model: DiffUp, classes: list[Prototypes], queries: object) -> None:
    with pytest.raises(ConfigError, match="queries: expected a list"):
        model.segment_many(queries, classes)


def test_images_in_the_place_of_prototypes_are_refused(model: DiffUp) -> None:
    with pytest.raises(PrototypesError, match="got ndarray"):
        model.segment_many(QUERIES, QUERIES[0])


def test_the_benchmark_times_every_step(
    photos: Path,
    tiny_release: None,
    fake_encoders: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its steps are functions by name, which must not have moved."""
    make("photos", photos)
    arguments = ["photos", "--rounds", "1", "--batch-sizes", "2", "--classes", "2"]
    monkeypatch.setattr(sys, "argv", ["bulk.py", *arguments])
    script = runpy.run_path(str(ROOT / "benchmarks" / "bulk.py"))
    seen: list[dict[str, float]] = []
    label = script["label"]
    script["main"].__globals__["label"] = lambda *args: seen.append(label(*args)) or seen[-1]
    script["main"]()
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[:2] == ["2", "2"] and len(row) == 6 + len(script["STEPS"]) + 1
    assert all(seen[0].get(name, 0) > 0 for name in script["STEPS"])
