"""Bulk labelling as a Ray Data pipeline (extra `ray`), the same on a laptop and on a cluster.

Ray distributes the rows, starts the workers and repeats the tasks of a lost worker. Each worker loads the encoder once,
gets decoder and prototypes from Ray's object store, and calls `DiffUp.segment_many` on its images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.backbones import Backbone
from diffup.decoder.base import Decoder
from diffup.decoder.options import SamplingOptions, refuse_generator
from diffup.decoder.weights import decoder_hash, fetch_decoder, load_decoder
from diffup.errors import ConfigError, DataError, StorageError
from diffup.label_map import LabelMap
from diffup.labelling.folder import RECORD, LabelReport
from diffup.labelling.plan import REVISION, compare_settings, digest
from diffup.model import RELEASED, DiffUp
from diffup.prototypes import Prototypes, distinct_classes
from diffup.stream import Failure
from diffup.utils.files import replacing, sole_writer, sweep, write_text
from diffup.utils.optional import need
from diffup.utils.storage import is_url

if TYPE_CHECKING:
    import pyarrow
    from ray import ObjectRef
    from ray.data import Dataset

LABELS, ERRORS, SETTINGS = "labels", "errors", "settings.json"
UNWRITTEN = "unwritten"  # column with the reason why rows could not be written

HELPERS = 4
"""Most processes that pick the rows to label, and that write them: Ray would start one for every block of the dataset,
since they hold no core, and each imports PyTorch."""

_PURPOSE = "labelling with Ray"


@dataclass(frozen=True)
class RayPlan(SamplingOptions):
    """Model, workers and sampling options (the fields of `SamplingOptions`) of a Ray pipeline.

    Attributes:
        decoder: folder or hub repository (`"user/repo"`) of the decoder, by default the one that comes with the
            package. It is loaded by the driver and sent to the workers.
        revision: branch, tag or commit of the hub repository.
        backbone: name of the encoder, which each worker loads for itself, or an object, which is pickled; by default
            the encoder named in the decoder's config.
        device: torch device of a worker; by default the GPU that Ray assigns to it, or else the CPU.
        images: name of the column with the images: paths that every machine can read, URLs that fsspec opens there
            (`s3://bucket/a.jpg`), bytes of image files (`ray.data.read_binary_files`), or arrays
            (`ray.data.read_images`).
        batch_size: number of images encoded and decoded together.
        readers: number of threads of each worker that read images.
        task_size: number of images in a task, which is repeated if its worker dies. A multiple of `batch_size` keeps
            batches full.
        concurrency: number of workers, or (minimum, maximum); by default from one to as many as the cluster can hold.
            With a fixed number leave a core for Ray's own tasks.
        num_cpus: number of cores of each worker; PyTorch uses as many threads, rounded down.
        num_gpus: number of GPUs of each worker, which may be a fraction.

    Raises:
        ConfigError: a number is out of range, or a generator is given instead of a seed.
    """

    decoder: str | os.PathLike[str] | None = None
    revision: str | None = None
    backbone: str | Backbone | Sequence[str | Backbone] | None = None
    device: str | None = None
    images: str = "path"
    batch_size: int = 8
    readers: int = 2
    task_size: int = 128
    concurrency: int | tuple[int, int] | None = None
    num_cpus: float = 1
    num_gpus: float = 0

    def __post_init__(self) -> None:
        refuse_generator(self)
        for name in ("batch_size", "readers", "task_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 1 or more")
        for name in ("num_cpus", "num_gpus"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 0 or more")
        least, most = self.pool
        if least < 1 or (most is not None and most < least):
            raise ConfigError(
                f"concurrency={self.concurrency!r}: give a number of workers from 1 on, or the least and the most"
            )

    @property
    def pool(self) -> tuple[int, int | None]:
        """Minimum and maximum number of workers; None for no maximum."""
        if self.concurrency is None:
            return 1, None
        return self.concurrency if isinstance(self.concurrency, tuple) else (self.concurrency, self.concurrency)


class Labeller:
    """The callable of each worker, which Ray Data runs as an actor.

    Args:
        shared: reference to the decoder and the list of prototypes in Ray's object store.
        plan: model, workers and sampling options.

    Raises:
        PrototypesError: the prototypes were made with another encoder.
        BackboneError: the encoder cannot be found.
    """

    def __init__(self, shared: ObjectRef[tuple[Decoder, list[Prototypes]]], plan: RayPlan) -> None:
        import ray

        decoder, self.classes = ray.get(shared)
        self.plan = plan
        self.model = DiffUp(decoder, plan.backbone, plan.device)
        for item in self.classes:
            item.check(self.model)

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """Label the images of some rows.

        Args:
            rows: rows with a column of images.

        Returns:
            The rows with the columns of results that `label_dataset` describes.

        Raises:
            ConfigError: there is no such column of images, or a column has the name of a column of results.
        """
        import pyarrow
        from ray.data.block import BlockAccessor

        column, taken = self.plan.images, sorted(set(rows.column_names).intersection(_fields().names))
        if column not in rows.column_names:
            raise ConfigError(f"images={column!r}: there is no such column; there are {', '.join(rows.column_names)}")
        if taken:
            raise ConfigError(f"dataset: rename its column {taken[0]!r}, results have a column of that name")
        images = list(BlockAccessor.for_block(rows).to_numpy(column))  # of Ray's tensor columns too
        plan = self.plan
        results = self.model.segment_many(
            images,
            self.classes,
            batch_size=plan.batch_size,
            workers=plan.readers,
            options=plan,
        )
        found = pyarrow.Table.from_pylist([_row(result) for result in results], schema=_fields())
        kept = rows if _is_text(rows, column) else rows.drop_columns([column])
        for field in found.schema:
            kept = kept.append_column(field, found[field.name])
        return kept


def label_dataset(
    dataset: Dataset, prototypes: Prototypes | Sequence[Prototypes], plan: RayPlan | None = None
) -> Dataset:
    """Label the images of a Ray dataset, lazily.

    Label maps equal those of `DiffUp.segment_many`, up to the rounding of batched arithmetic. The order of rows may
    change. If a worker dies, Ray gives its rows to another one; no row is lost or duplicated.

    Args:
        dataset: Ray dataset with a column of images, named in `RayPlan.images`.
        prototypes: prototypes of one class, or a list with those of several.
        plan: model, workers and sampling options; by default `RayPlan()`.

    Returns:
        The dataset with its columns (except the images, unless they are paths) and the columns of results: `labels`,
        the label map as bytes of an indexed PNG file; `height` and `width` in pixels; `quality`, the lowest predicted
        IoU among the classes found, null if there is none; `classes`, with the name, label, area_fraction, presence,
        present, overruled, quality, score and threshold of each class (`LabelMap.summary`); `error`, the reason why
        the image could not be read, else null. After an error the other columns of results are null.

    Raises:
        MissingPackageError: Ray is not installed.
        PrototypesError: prototypes do not fit each other.
        WeightsError: the decoder does not exist or is damaged.
        ConfigError: an option is out of range.
    """
    ray = need("ray", _PURPOSE, "ray")
    data = need("ray.data", _PURPOSE, "ray")
    plan = RayPlan() if plan is None else plan
    classes, decoder = distinct_classes(prototypes), _load_decoder(plan)
    least, most = plan.pool
    labelled: Dataset = dataset.repartition(target_num_rows_per_block=plan.task_size).map_batches(
        Labeller,
        batch_size=plan.task_size,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        fn_constructor_kwargs={"shared": ray.put((decoder, classes)), "plan": plan},
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus,
        udf_modifying_row_count=False,
    )
    return labelled


def label_into(
    dataset: Dataset,
    output: str | os.PathLike[str],
    prototypes: Prototypes | Sequence[Prototypes],
    plan: RayPlan | None = None,
    *,
    key: str = "path",
) -> LabelReport:
    """Label the images of a Ray dataset and write the rows to Parquet files, resumably.

    Each task writes its rows to a file, completely or not at all: labelled rows to `output/labels`, rows that could not
    be read to `output/errors`. After workers, machines or the whole run were killed, the same call continues with the
    images that are not in `output/labels`. Only one run at a time may write to an output folder.

    A dataset may be labelled in parts, so rows of images outside this dataset stay in the output. An image is
    identified by its key only: a changed image with the same key is not labelled again.

    Args:
        dataset: Ray dataset with a column of images, named in `RayPlan.images`.
        output: folder on a disk that all machines can access; created if needed.
        prototypes: prototypes of one class, or a list with those of several.
        plan: model, workers and sampling options; by default `RayPlan()`.
        key: name of a column of strings that identify the rows.

    Returns:
        The outcome of the run; `files` are the two folders.

    Raises:
        DataError: the output holds results of other settings, or a damaged file.
        StorageError: another process writes to the output, or the output cannot be written to.
        ConfigError: an option is out of range, or there is no column `key` of strings.
        MissingPackageError: Ray is not installed.
        PrototypesError: prototypes do not fit each other.
        WeightsError: the decoder does not exist or is damaged.
    """
    ray = need("ray", _PURPOSE, "ray")
    if is_url(output):
        raise ConfigError(
            f"output: {output!r} is a URL; give a folder that all machines can access, or write the rows of "
            "label_dataset with Ray's own write_parquet"
        )
    plan, output = RayPlan() if plan is None else plan, Path(output).resolve()
    settings = _settings(_load_decoder(plan), distinct_classes(prototypes), plan, key)
    with sole_writer(output / SETTINGS, "label_into"):
        _open_output(output, settings)
        known = _on_record(output / LABELS, key)
        for path in (output / ERRORS).glob("*.parquet"):  # tried again now
            path.unlink()
        left = dataset.map_batches(
            _unlabelled,
            batch_format="pyarrow",
            fn_kwargs={"known": ray.put(known), "key": key},
            num_cpus=0,
            concurrency=HELPERS,
        )
        written = label_dataset(left, prototypes, plan).map_batches(
            _write_part,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"output": output, "key": key},
            num_cpus=0,
            concurrency=HELPERS,
        )
        labelled, failed = 0, {}
        # Closed before the lock is released, so that no task of this run writes while the next one begins.
        with contextlib.closing(iter(written.iter_batches(batch_size=None, batch_format="pyarrow"))) as parts:
            for rows in parts:
                columns = (rows[name].to_pylist() for name in (key, "error", UNWRITTEN))
                for name, error, unwritten in zip(*columns, strict=True):
                    if unwritten is not None:
                        raise StorageError(f"{unwritten}. The same call goes on with what is left then")
                    if error is None:
                        labelled += 1
                    else:
                        failed[name] = error
    return LabelReport(labelled, len(known), failed, (output / LABELS, output / ERRORS))


def _load_decoder(plan: RayPlan) -> Decoder:
    """Load the plan's decoder and check the sampling options against it."""
    decoder = load_decoder(RELEASED if plan.decoder is None else fetch_decoder(plan.decoder, plan.revision))
    plan.resolve(decoder.config)
    return decoder


def _fields() -> pyarrow.Schema:
    """Schema of the columns of results."""
    import pyarrow as pa

    number = pa.float64()
    figures = {"name": pa.string(), "label": pa.int32(), "area_fraction": number, "presence": number}
    figures |= {"present": pa.bool_(), "overruled": pa.bool_(), "quality": number, "score": number}
    classes = pa.list_(pa.struct({**figures, "threshold": number}))
    columns = {"labels": pa.binary(), "height": pa.int32(), "width": pa.int32(), "quality": number, "classes": classes}
    return pa.schema({**columns, "error": pa.string()})


def _row(result: object) -> dict[str, Any]:
    """Values of the columns of one result; missing columns are null."""
    if isinstance(result, Failure):
        return {"error": result.reason}
    if not isinstance(result, LabelMap):
        raise TypeError(f"a list of prototypes gives label maps, not {type(result).__name__}")
    summary = result.summary()
    found = [item["quality"] for item in summary["classes"] if item["area_fraction"] > 0]
    row = {name: summary[name] for name in ("height", "width", "classes")}
    return {**row, "labels": result.to_png(), "quality": min(found, default=None)}


def _settings(decoder: Decoder, classes: Sequence[Prototypes], plan: RayPlan, key: str) -> dict[str, Any]:
    """Everything that the written rows depend on besides the images, ready for JSON."""
    sampling = plan.resolve(decoder.config)
    return {
        "revision": REVISION,
        "key": key,
        "classes": [item.name for item in classes],
        "prototypes": [digest(item) for item in classes],
        "backbone": [item.fingerprint for item in classes],
        "decoder": decoder_hash(decoder)[:16],
        "thresholds": [sampling.threshold(item.threshold) for item in classes],
        "steps": sampling.steps,
        "ensemble": sampling.ensemble,
        "seed": plan.seed,
        "refine": sampling.refine,
        "min_presence": sampling.min_presence,
    }


def _open_output(output: Path, settings: dict[str, Any]) -> None:
    """Create the output folder, or check that an existing one has the same settings.

    Raises:
        DataError: the settings differ or cannot be read, or the folder was written by `diffup label`.
    """
    record = output / SETTINGS
    if (output / RECORD).exists():
        raise DataError(f"output: {output} holds what `diffup label` wrote; choose another folder")
    if not record.exists():
        write_text(record, json.dumps(settings, indent=2) + "\n")
    try:
        theirs = dict(json.loads(record.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{record} is damaged ({error}); choose another output folder") from error
    compare_settings(record, theirs, settings)
    sweep(output)


def _on_record(folder: Path, key: str) -> pyarrow.Array:
    """Keys of the rows that are already labelled."""
    import pyarrow as pa
    from pyarrow import parquet

    keys = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            keys.append(parquet.read_table(path, columns=[key])[key].combine_chunks().cast(pa.string()))
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it to have its images done again") from error
    return pa.concat_arrays([pa.array([], pa.string()), *keys]).unique()


def _unlabelled(rows: pyarrow.Table, known: ObjectRef[pyarrow.Array], key: str) -> pyarrow.Table:
    """Rows that are not labelled yet.

    Raises:
        ConfigError: there is no column `key` of strings, or it holds a null.
    """
    import pyarrow as pa
    import ray
    from pyarrow import compute

    if key not in rows.column_names:
        raise ConfigError(f"key={key!r}: there is no such column; there are {', '.join(rows.column_names)}")
    if not _is_text(rows, key) or rows[key].null_count:
        raise ConfigError(f"key={key!r}: expected a string in every row; it tells the rows apart")
    return rows.filter(compute.invert(compute.is_in(rows[key].cast(pa.string()), value_set=ray.get(known))))


def _is_text(rows: pyarrow.Table, column: str) -> bool:
    from pyarrow import types

    kind = rows.schema.field(column).type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _write_part(rows: pyarrow.Table, output: Path, key: str) -> pyarrow.Table:
    """Write the rows of a block and return the columns that the report needs, and the reason if they were not written.

    The same rows have the same file name, so a repeated task replaces its file. The reason is returned because Ray
    hands an exception of a task on as text alone.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    good = compute.is_null(rows["error"])
    name = hashlib.sha256("\n".join(rows[key].to_pylist()).encode()).hexdigest()[:16]
    unwritten = None
    try:
        for folder, part in ((LABELS, rows.filter(good)), (ERRORS, rows.filter(compute.invert(good)))):
            if len(part):
                with replacing(output / folder / f"part-{name}.parquet") as unfinished:
                    parquet.write_table(part, unfinished)
    except StorageError as error:
        unwritten = str(error)
    return rows.select([key, "error"]).append_column(UNWRITTEN, pa.array([unwritten] * len(rows), pa.string()))
