"""Label the images of a folder and write what labelling tools and trainers read; a kill costs what was under way."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from diffup.bulk import Failure
from diffup.errors import ConfigError, DataError
from diffup.evaluation.sweep import decoder_hash
from diffup.files import replacing, sweep, write_text
from diffup.formats.coco import coco_annotations, coco_document
from diffup.formats.optional import need
from diffup.formats.yolo import yolo_lines
from diffup.journal import Journal
from diffup.label_map import LabelMap
from diffup.model import DiffUp
from diffup.prototypes import Prototypes, check_classes

Format = Literal["png", "coco", "yolo", "overlay", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the images that are looked for, in lower or upper case."""

RECORD = "record.jsonl"
REVISION = 1
"""Of what is written for an image; raise it when the same settings come to give other files."""


@dataclass(frozen=True)
class LabelPlan:
    """What to write, and how the decoder is sampled.

    Args:
        formats: `png` label maps, `coco` one instances file, `yolo` text files, `overlay` pictures, `csv` the table
            of predicted quality.
        encoding: of COCO's masks: `rle` (exact and short) or `polygon` (which labelling tools can edit).
        instances: in COCO, make an object of every connected part instead of one of each class in an image.
        steps: see `DiffUp.segment`.
        ensemble: see `DiffUp.segment`.
        threshold: see `DiffUp.segment`.
        seed: see `DiffUp.segment`.

    Raises:
        ConfigError: no format, or an unknown one, or an unknown encoding.
    """

    formats: tuple[Format, ...] = ("png", "csv")
    encoding: Literal["rle", "polygon"] = "rle"
    instances: bool = False
    steps: int | None = None
    ensemble: int | None = None
    threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        chosen = tuple(name for name in FORMATS if name in self.formats)
        if not self.formats or len(chosen) < len(set(self.formats)):
            raise ConfigError(f"formats={self.formats!r}: choose one or more of {', '.join(FORMATS)}")
        object.__setattr__(self, "formats", chosen)
        if self.encoding not in ("rle", "polygon"):
            raise ConfigError(f"encoding={self.encoding!r}: choose rle or polygon")


@dataclass(frozen=True)
class LabelReport:
    """What a run of `label_folder` did.

    Attributes:
        labelled: images labelled now.
        known: images that were on record.
        failed: images that could not be read, with the reasons.
        files: folders and files of the results.
    """

    labelled: int
    known: int
    failed: dict[str, str]
    files: tuple[Path, ...]


def label_folder(
    model: DiffUp,
    folder: str | os.PathLike[str],
    prototypes: Prototypes | Sequence[Prototypes],
    output: str | os.PathLike[str],
    plan: LabelPlan | None = None,
    *,
    batch_size: int = 8,
    workers: int = 4,
    progress: bool = False,
) -> LabelReport:
    """Label every image in a folder and its subfolders.

    Each image's files are written whole, then the image is put on record (`record.jsonl`). The same call after a kill
    goes on with the images that are not on record, tries again those that could not be read, and ends with the files
    that an undisturbed run would have written, bit for bit if the batch size is the same. An image that changes after
    it was labelled is not noticed. One process at a time may write to an output folder.

    Args:
        model: encoder and decoder.
        folder: of the images; files and folders whose names begin with a dot are left out.
        prototypes: of one or several classes.
        output: folder for the results, outside of `folder`; made if needed.
        plan: what to write.
        batch_size: images that are encoded and decoded together.
        workers: threads that read images.
        progress: show a progress bar.

    Raises:
        DataError: there is no such folder or no image in it, two images would be written to one file, the record is
            damaged, or the output holds the results of other settings.
        ConfigError: an option is out of range, or the output lies within the folder.
        MissingPackageError: a format needs a package that is not installed.
        PrototypesError: prototypes do not fit the model or each other.
    """
    folder, output, plan = Path(folder), Path(output), LabelPlan() if plan is None else plan
    images = find_images(folder)
    if output.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"output: {output} lies within {folder}, so its pictures would be labelled; choose another")
    classes = check_classes(prototypes, model)
    _need_packages(plan)
    names = [item.name for item in classes]
    journal = Journal(output / RECORD)
    known = _open_record(journal, _settings(model, classes, plan))
    left = {image for image in images if "error" in known.get(image, {"error": ""})}
    batches = [images[start : start + batch_size] for start in range(0, len(images), max(1, batch_size))]
    # A batch is decoded as a whole if any of it is left, so that rounding is that of an undisturbed run.
    listed = [image for batch in batches if not left.isdisjoint(batch) for image in batch]
    results = model.segment_many(
        [folder / image for image in listed],
        classes,
        batch_size=batch_size,
        workers=workers,
        steps=plan.steps,
        ensemble=plan.ensemble,
        threshold=plan.threshold,
        seed=plan.seed,
    )
    sweep(output)
    failed = {}
    done = len(images) - len(left)
    with tqdm(total=len(images), initial=done, desc="images", disable=not progress) as bar:
        for image, result in zip(listed, results, strict=True):
            if image not in left:
                continue
            if isinstance(result, LabelMap):
                journal.append([_write_image(image, result, output, plan)])
            else:
                failed[image] = _reason(result)
                if known.get(image) != (entry := {"image": image, "error": failed[image]}):
                    journal.append([entry])
            bar.update(1)
    return LabelReport(len(left) - len(failed), done, failed, _write_summaries(journal, output, names, plan))


def find_images(folder: Path) -> list[str]:
    """Paths of the images of a folder, relative to it, with forward slashes, in order.

    Raises:
        DataError: see `label_folder`.
    """
    if not folder.is_dir():
        raise DataError(f"folder: there is no folder {str(folder)!r}")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise DataError(f"folder: {folder} holds no image; looked for {', '.join(SUFFIXES)} in it and its subfolders")
    stems: dict[str, str] = {}
    for image in found:
        other = stems.setdefault(Path(image).with_suffix("").as_posix().casefold(), image)
        if other != image:
            raise DataError(f"folder: the labels of {other} and {image} would have the same file names; rename one")
    return found


def _need_packages(plan: LabelPlan) -> None:
    """Refuse what a package is missing for before anything is computed.

    Raises:
        MissingPackageError: one is.
    """
    if "coco" in plan.formats:
        need("pycocotools.mask", "the format coco")
    if "yolo" in plan.formats or ("coco" in plan.formats and (plan.instances or plan.encoding == "polygon")):
        need("skimage.measure", "outlines and connected parts")


def _settings(model: DiffUp, classes: Sequence[Prototypes], plan: LabelPlan) -> dict[str, Any]:
    """All that the written files depend on, besides the images; ready for JSON."""
    steps, ensemble, _ = model.sampling_options(plan.steps, plan.ensemble, plan.threshold)
    thresholds = [plan.threshold or item.threshold or model.config.threshold for item in classes]
    return {
        "revision": REVISION,
        "classes": [item.name for item in classes],
        "prototypes": [digest(item) for item in classes],
        "backbone": model.backbone.fingerprint,
        "decoder": decoder_hash(model.decoder)[:16],
        "thresholds": thresholds,
        "formats": list(plan.formats),
        "encoding": plan.encoding,
        "instances": plan.instances,
        "steps": steps,
        "ensemble": ensemble,
        "seed": plan.seed,
    }


def digest(prototypes: Prototypes) -> str:
    """Hash of what prototypes contribute, 16 hexadecimal digits."""
    tensors: list[Tensor] = []
    if prototypes.features is not None:
        features = prototypes.features
        tensors += (*features.levels, features.foreground, features.background, features.valid)
    if prototypes.words is not None:
        tensors.append(prototypes.words.embeddings)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _open_record(journal: Journal, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The images on record, with their errors if they failed; the record is begun if there is none.

    Raises:
        DataError: it is of other settings, or damaged.
    """
    known: dict[str, dict[str, Any]] = {}
    begun = False
    for number, entry in journal.read():
        if not begun:
            compare_settings(journal.path, entry.get("settings", {}), settings)
            begun = True
        elif "image" in entry:
            known[entry["image"]] = {key: entry[key] for key in ("image", "error") if key in entry}
        else:
            raise journal.damaged(number, KeyError("image"))
    if not begun:
        journal.append([{"settings": settings}])
    return known


def compare_settings(record: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse to go on with the results of a run with other settings.

    Args:
        record: where the settings of that run are.
        theirs: its settings.
        ours: those of this run.

    Raises:
        DataError: they differ; the message says where.
    """
    other = [name for name in ours if theirs.get(name) != ours[name]]
    if other:
        shown = "; ".join(f"{name}: {theirs.get(name)} there, {ours[name]} here" for name in other)
        raise DataError(
            f"{record} is of a run with other settings ({shown}). Give the same ones to go on with it, or choose "
            "another output folder"
        )


def _write_image(image: str, result: LabelMap, output: Path, plan: LabelPlan) -> dict[str, Any]:
    """Write the files of one image; what the record says of it."""
    stem = Path(image).with_suffix("")
    numbers = range(1, len(result.names) + 1)
    if "png" in plan.formats:
        result.save(output / "labels" / f"{stem}.png")
    if "overlay" in plan.formats:
        with replacing(output / "overlays" / f"{stem}.jpg") as unfinished:
            result.overlay().save(unfinished, format="JPEG", quality=90)
    if "yolo" in plan.formats:
        lines = yolo_lines(result.labels, range(len(result.names)))
        write_text(output / "yolo" / "labels" / f"{stem}.txt", "".join(f"{line}\n" for line in lines))
    entry = {"image": image, **result.summary()}
    if "coco" in plan.formats:
        entry["coco"] = coco_annotations(
            result.labels,
            image_id=0,  # numbered when all images are known
            category_ids=numbers,
            encoding=plan.encoding,
            instances=plan.instances,
            scores=list(result.quality.values()),
        )
    return entry


def _write_summaries(journal: Journal, output: Path, names: Sequence[str], plan: LabelPlan) -> tuple[Path, ...]:
    """Write what is about all images on record, in the order of their names; where every format's results are."""
    latest = {entry["image"]: entry for _, entry in journal.read() if "image" in entry}
    entries = [latest[image] for image in sorted(latest)]
    writers: dict[str, Callable[[], tuple[Path, str] | Path]] = {
        "png": lambda: output / "labels",
        "coco": lambda: (output / "annotations.json", _coco(entries, names)),
        "yolo": lambda: (output / "yolo" / "data.yaml", _yolo_data(names)),
        "overlay": lambda: output / "overlays",
        "csv": lambda: (output / "quality.csv", quality_table(entries, names)),
    }
    files = []
    for name in plan.formats:
        made = writers[name]()
        if isinstance(made, tuple):
            write_text(*made)
        files.append(made[0] if isinstance(made, tuple) else made)
    return tuple(files)


def _coco(entries: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """COCO's instances file of the images that could be read, numbered from 1 on."""
    readable = [entry for entry in entries if "error" not in entry]
    images, annotations = [], []
    for number, entry in enumerate(readable, start=1):
        images.append({"id": number, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]})
        annotations += [{**annotation, "image_id": number} for annotation in entry["coco"]]
    return json.dumps(coco_document(images, annotations, names)) + "\n"


def _yolo_data(names: Sequence[str]) -> str:
    """YOLO's list of classes; a JSON string is a YAML string."""
    return "names:\n" + "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(names))


def quality_table(entries: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The images as CSV, those that most need a look first.

    First those that could not be read, then those in which nothing was found, then by the lowest quality among the
    classes that were found. `quality` is that lowest one, empty where nothing was found; each class has its own
    quality and the part of the image that it takes.

    Args:
        entries: of the record.
        names: of the classes.
    """
    rows = []
    for entry in entries:
        classes = entry.get("classes", [])
        found = [item for item in classes if item["area_fraction"] > 0]
        lowest = min((item["quality"] for item in found), default=None)
        order = (0 if "error" in entry else 1 if lowest is None else 2, lowest or 0.0, entry["image"])
        figures = [f"{item[key]:.4f}" for item in classes for key in ("quality", "area_fraction")]
        cells = [entry["image"], "" if lowest is None else f"{lowest:.4f}", ";".join(item["name"] for item in found)]
        rows.append((order, [*cells, entry.get("error", ""), *(figures or [""] * 2 * len(names))]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [f"{what} {name}" for name in names for what in ("quality", "area")]
    writer.writerow(["image", "quality", "found", "error", *heads])
    writer.writerows(cells for _, cells in sorted(rows, key=lambda row: row[0]))
    return text.getvalue()


def _reason(result: object) -> str:
    """Why an image failed, without the name of the argument."""
    if not isinstance(result, Failure):
        raise TypeError(f"a list of prototypes gives label maps, not {type(result).__name__}")
    return result.reason
