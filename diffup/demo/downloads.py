"""Files of the results, for download."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from diffup.demo.session import Session
from diffup.demo.views import SIDE, overlay
from diffup.errors import ConfigError
from diffup.formats import coco_annotations, coco_document
from diffup.formats.png import write_label_png
from diffup.label_map import LabelMap
from diffup.prototypes import MAX_CLASSES
from diffup.utils.files import numbered_name, replacing, write_text
from diffup.utils.pictures import class_colours


def write_files(session: Session, folder: Path) -> list[Path]:
    """Write the results of all photos, corrected, by the first chosen encoder.

    `diffup.zip` has for each photo `labels/PHOTO.png` (indexed), `overlays/PHOTO.jpg` and for each class its own mask
    `masks/CLASS/PHOTO.png`. Beside it are `coco.json` (run lengths, of all photos) and the prototypes of each class,
    `CLASS.safetensors`. PHOTO and CLASS are a number and what is left of the name.

    Args:
        session: session with results.
        folder: path of an empty folder.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: there are no results, or the photos have more than 255 classes together.
        MissingPackageError: pycocotools is not installed.
    """
    photos = sorted((photo for photo in session.photos if photo.found), key=lambda photo: photo.key)
    if not photos:
        raise ConfigError("There are no results yet: press 'Find' first.")
    names = list(dict.fromkeys(name for photo in photos for name in photo.names))
    if len(names) > MAX_CLASSES:
        raise ConfigError(
            f"The photos have {len(names)} classes together, and a label file holds {MAX_CLASSES}: press 'Find', after "
            "which all photos have the classes of the examples, or remove photos of other classes."
        )
    shown = Counter(photo.name for photo in photos)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    archive = folder / "diffup.zip"
    with (
        replacing(archive) as unfinished,
        zipfile.ZipFile(unfinished, "w") as packed,
        tempfile.TemporaryDirectory(dir=folder) as parts,
    ):
        for number, photo in enumerate(photos, start=1):
            result = photo.maps(photo.image())[0]
            height, width = photo.size
            path = Path(photo.name)
            apart = numbered_name(number, path.stem)  # of photos with one name, COCO could tell none
            name = photo.name if shown[photo.name] == 1 else f"{apart}{path.suffix}"
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            ids = [names.index(name) + 1 for name in result.names]
            scores = [item.score for item in result.results]
            annotations += coco_annotations(result.labels, number, ids, scores=scores)
            _write_photo(result, apart, ids, len(names), Path(parts))
        for path in sorted(Path(parts).rglob("*.*")):
            packed.write(path, path.relative_to(parts))
    document = coco_document(images, annotations, names)
    write_text(folder / "coco.json", json.dumps(document) + "\n")
    return [archive, folder / "coco.json", *_write_prototypes(session, names, folder)]


def _write_photo(result: LabelMap, stem: str, ids: list[int], count: int, folder: Path) -> None:
    """Write labels, overlay and masks of one photo.

    Args:
        result: label map of the photo.
        stem: name of its files.
        ids: number of each of its classes among the classes of all photos, which is the label in the file.
        count: number of these.
        folder: path of the folder.
    """
    labels = np.array([0, *ids], dtype=np.uint8)[result.labels]
    write_label_png(folder / "labels" / f"{stem}.png", labels, [(0, 0, 0), *class_colours(count)])
    (folder / "overlays").mkdir(exist_ok=True)
    overlay(result, SIDE).save(folder / "overlays" / f"{stem}.jpg", quality=90)
    for number, name in zip(ids, result.names, strict=True):
        result[name].save(folder / "masks" / numbered_name(number, name) / f"{stem}.png")


def _write_prototypes(session: Session, names: list[str], folder: Path) -> list[Path]:
    """Write the prototypes of the last run's first encoder; the paths of the files."""
    assert session.run is not None, "there are results"
    taught = {name: session.taught.get((session.run.encoders[0], name)) for name in names}
    return [
        item.prototypes.save(folder / f"{numbered_name(number, name)}.safetensors")
        for number, (name, item) in enumerate(taught.items(), start=1)
        if item is not None
    ]
