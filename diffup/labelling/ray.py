"""Bulk labelling as a Ray Data pipeline (extra `ray`): the same code on a laptop and on a cluster.

Ray moves the rows, starts the workers and does again what a lost worker had begun. A worker loads the encoder once and
gets decoder and prototypes from Ray's object store; what it does with its images is `DiffUp.segment_many`.
"""

from __future__ import annotations

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
from diffup.errors import ConfigError, DataError
from diffup.label_map import LabelMap
from diffup.labelling.folder import RECORD, REVISION, LabelReport, compare_settings, digest
from diffup.model import RELEASED, DiffUp
from diffup.prototypes import Prototypes, distinct_classes
from diffup.stream import Failure
from diffup.utils.files import replacing, sole_writer, sweep, write_text
from diffup.utils.optional import need

if TYPE_CHECKING:
    import pyarrow
    from ray import ObjectRef
    from ray.data import Dataset

LABELS, ERRORS, SETTINGS = "labels", "errors", "settings.json"

_PURPOSE = "labelling with Ray"


@dataclass(frozen=True)
class RayPlan(SamplingOptions):
    """What workers load, how they sample masks (the fields of `SamplingOptions`), and how many there are.

    Attributes:
        decoder: see `DiffUp.from_pretrained`; read where the plan is used and sent to the workers.
        revision: of a hub repository.
        backbone: name of the encoder, which each worker loads for itself, or an object, which is pickled; by default
            the one that the decoder names.
        device: of a worker; by default the GPU that Ray gives it, or else the CPU.
        images: column that holds the images: paths that every machine can read, bytes of image files
            (`ray.data.read_binary_files`), or arrays (`ray.data.read_images`).
        batch_size: images that are encoded and decoded together.
        readers: threads of a worker that read images.
        task_size: images that are handed to a worker at a time, and what is done again when it dies. A multiple of
            `batch_size` keeps batches full.
        concurrency: workers, or the least and the most of them; by default from one up to what the cluster holds. On
            a fixed number leave a core for Ray's own tasks.
        num_cpus: cores of a worker; PyTorch uses as many threads, rounded down.
        num_gpus: GPUs of a worker, parts of one included.

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
        """The least and the most workers."""
        if self.concurrency is None:
            return 1, None
        return self.concurrency if isinstance(self.concurrency, tuple) else (self.concurrency, self.concurrency)


class Labeller:
    """The callable that Ray Data makes an actor of, one for each worker.

    Args:
        shared: a decoder and a list of prototypes, in Ray's object store.
        plan: what to do.

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
        """The rows with their results, see `label_dataset`."""
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

    Each label map is that of `DiffUp.segment_many`, up to the rounding of batched arithmetic. Rows may come in another
    order. When a worker dies, Ray gives its rows to another: none is lost and none comes twice.

    Args:
        dataset: with a column of images (`RayPlan.images`).
        prototypes: of one or several classes.
        plan: what to load and what to do.

    Returns:
        The dataset's columns (without the images, unless they are paths) and, for every row, `labels`: indexed PNG
        file, see `LabelMap.labels`; `height`, `width`; `quality`: the lowest expected IoU among the classes that were
        found, null where there is none; `classes`: name, label, area_fraction, quality and threshold of each;
        `error`: why the image could not be read, with nulls in the other columns, or null.

    Raises:
        MissingPackageError: Ray is not installed.
        PrototypesError: prototypes do not fit each other.
        WeightsError: there is no such decoder, or it is damaged.
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

    The rows of `label_dataset` are written as they come, a file for each task, whole or not at all: those with labels
    to `output/labels`, those that could not be read to `output/errors`. The same call after a kill of workers, machines
    or all of it goes on with the images that are not in `output/labels`. One run at a time may write to an output
    folder; a second one is refused.

    Datasets may come to one output in parts, so rows stay whose images are not in this dataset, and an image is known
    by its key alone: one that was changed under the same key is not noticed.

    Args:
        dataset: see `label_dataset`.
        output: folder on a disk that all machines see; made if needed.
        prototypes: see `label_dataset`.
        plan: see `label_dataset`.
        key: column of strings that tells the rows apart.

    Returns:
        What was done; `files` are the two folders.

    Raises:
        DataError: the output holds the results of other settings, or files that are damaged.
        StorageError: another process writes to the output, or it cannot be written to.
        ConfigError: see `label_dataset`, or there is no column `key`.
        MissingPackageError: Ray is not installed.
        PrototypesError: see `label_dataset`.
        WeightsError: see `label_dataset`.
    """
    ray = need("ray", _PURPOSE, "ray")
    plan, output = RayPlan() if plan is None else plan, Path(output).resolve()
    settings = _settings(_load_decoder(plan), distinct_classes(prototypes), plan, key)
    with sole_writer(output / SETTINGS, "label_into"):
        _open_output(output, settings)
        known = _on_record(output / LABELS, key)
        for path in (output / ERRORS).glob("*.parquet"):  # tried again now
            path.unlink()
        left = dataset.map_batches(
            _unlabelled, batch_format="pyarrow", fn_kwargs={"known": ray.put(known), "key": key}, num_cpus=0
        )
        written = label_dataset(left, prototypes, plan).map_batches(
            _write_part, batch_size=None, batch_format="pyarrow", fn_kwargs={"output": output, "key": key}, num_cpus=0
        )
        labelled, failed = 0, {}
        for rows in written.iter_batches(batch_size=None, batch_format="pyarrow"):
            for name, error in zip(rows[key].to_pylist(), rows["error"].to_pylist(), strict=True):
                if error is None:
                    labelled += 1
                else:
                    failed[name] = error
    return LabelReport(labelled, len(known), failed, (output / LABELS, output / ERRORS))


def _load_decoder(plan: RayPlan) -> Decoder:
    """The plan's decoder; its sampling options are checked."""
    decoder = load_decoder(RELEASED if plan.decoder is None else fetch_decoder(plan.decoder, plan.revision))
    plan.resolve(decoder.config)
    return decoder


def _fields() -> pyarrow.Schema:
    """The columns of results."""
    import pyarrow as pa

    number = pa.float64()
    figures = {"name": pa.string(), "label": pa.int32(), "area_fraction": number, "quality": number}
    classes = pa.list_(pa.struct({**figures, "threshold": number}))
    columns = {"labels": pa.binary(), "height": pa.int32(), "width": pa.int32(), "quality": number, "classes": classes}
    return pa.schema({**columns, "error": pa.string()})


def _row(result: object) -> dict[str, Any]:
    """The columns of one result; those that are not there are null."""
    if isinstance(result, Failure):
        return {"error": result.reason}
    if not isinstance(result, LabelMap):
        raise TypeError(f"a list of prototypes gives label maps, not {type(result).__name__}")
    summary = result.summary()
    found = [item["quality"] for item in summary["classes"] if item["area_fraction"] > 0]
    row = {name: summary[name] for name in ("height", "width", "classes")}
    return {**row, "labels": result.to_png(), "quality": min(found, default=None)}


def _settings(decoder: Decoder, classes: Sequence[Prototypes], plan: RayPlan, key: str) -> dict[str, Any]:
    """All that the written rows depend on, besides the images; ready for JSON."""
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
    }


def _open_output(output: Path, settings: dict[str, Any]) -> None:
    """Begin an output folder, or make sure that what is there has the same settings.

    Raises:
        DataError: it has others, or they cannot be read, or it is a folder of `diffup label`.
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
    """The keys of the rows that are labelled."""
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
    """The rows that are not on record.

    Raises:
        ConfigError: there is no such column of strings, or a null in it.
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
    """Write the rows of a block; what the report needs of them.

    The same rows have the same file name: a task that is done again after its file was written replaces it.
    """
    from pyarrow import compute, parquet

    good = compute.is_null(rows["error"])
    name = hashlib.sha256("\n".join(rows[key].to_pylist()).encode()).hexdigest()[:16]
    for folder, part in ((LABELS, rows.filter(good)), (ERRORS, rows.filter(compute.invert(good)))):
        if len(part):
            with replacing(output / folder / f"part-{name}.parquet") as unfinished:
                parquet.write_table(part, unfinished)
    return rows.select([key, "error"])
