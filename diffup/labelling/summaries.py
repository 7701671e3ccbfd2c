"""Files that cover all images of a labelling run: COCO, YOLO, Label Studio, and the table of qualities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from diffup.formats.coco import coco_document
from diffup.formats.label_studio import label_studio_task
from diffup.labelling.files import OWN, PLACES, yaml_string
from diffup.labelling.outputs import Output, Place
from diffup.labelling.photos import Photos
from diffup.labelling.plan import LabelPlan
from diffup.labelling.table import quality_table
from diffup.utils.journal import Journal
from diffup.utils.remote_journal import RemoteJournal

SUMMARIES = {
    "coco": "annotations.json",
    "yolo": "yolo/data.yaml",
    "label-studio": "label_studio.json",
    "csv": "quality.csv",
}
"""Files that cover all images, by format."""


def write_summaries(
    journal: Journal | RemoteJournal,
    photos: Photos,
    output: Output,
    images: Sequence[str],
    failed: dict[str, str],
    names: Sequence[str],
    plan: LabelPlan,
) -> tuple[Place, ...]:
    """Write the files that cover all images, sorted by name.

    Args:
        journal: record of the run.
        photos: the images.
        output: where the files are written.
        images: names of all images.
        failed: reasons why images could not be labelled, by name.
        names: names of the classes.
        plan: the plan of the run.

    Returns:
        Places of each format's results.

    Raises:
        StorageError: a file cannot be written.
    """
    there = set(images).difference(failed)
    entries = {entry["image"]: entry for _, entry in journal.read() if entry.get("image") in there}
    entries |= {image: {"image": image, "error": reason} for image, reason in failed.items()}
    ordered = [entries[image] for image in sorted(entries)]
    texts: dict[str, Callable[[], str]] = {
        "coco": lambda: _coco(ordered, names),
        "yolo": lambda: _yolo_data(names),
        "label-studio": lambda: _label_studio(ordered, photos),
        "csv": lambda: quality_table(ordered, names),
    }
    for written in plan.formats:
        if written in texts:
            output.replace(SUMMARIES[written], texts[written]())
    places = {**{name: place for name, (place, _) in PLACES.items()}, **SUMMARIES}
    shown = [places[written] for written in plan.formats] + [OWN] * plan.overlap
    return tuple(output.at(place) for place in shown)


def _coco(entries: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """COCO instances file of the images that could be read, with image ids from 1."""
    readable = [entry for entry in entries if "error" not in entry]
    images, annotations = [], []
    for number, entry in enumerate(readable, start=1):
        images.append({"id": number, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]})
        annotations += [{**annotation, "image_id": number} for annotation in entry["coco"]]
    return json.dumps(coco_document(images, annotations, names)) + "\n"


def _label_studio(entries: Sequence[dict[str, Any]], photos: Photos) -> str:
    """Label Studio's tasks of the images that could be read."""
    tasks = [
        label_studio_task(photos.task_url(entry["image"]), entry["label_studio"])
        for entry in entries
        if "error" not in entry
    ]
    return json.dumps(tasks) + "\n"


def _yolo_data(names: Sequence[str]) -> str:
    """YOLO's description of the data set, in YAML: the folder of images, for both of its required splits, and names.

    A relative folder is looked up from the file; the labels of `images/a.jpg` are those of `labels/a.txt`.
    """
    return "train: images\nval: images\nnames:\n" + "".join(
        f"  {index}: {yaml_string(name)}\n" for index, name in enumerate(names)
    )
