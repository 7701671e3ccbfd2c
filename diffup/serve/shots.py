"""The annotations that people have saved, in a folder: each label of an annotation is a shot of its class."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffup.errors import DataError, DiffUpError, FormatError
from diffup.formats.read_label_studio import SHAPE_TYPES, read_label_studio, region_labels, shape_type
from diffup.formats.shapes import KINDS
from diffup.formats.supports import SupportSet, upright_size
from diffup.inputs.annotations import Annotation
from diffup.inputs.images import describe, is_image_name
from diffup.inputs.recorded import read_json
from diffup.utils.files import replacing, sweep

MAX_LABEL = 200
"""Maximum number of characters of a label."""

_MOST_MASKS = 2**30  # pixels of all regions of an annotation, which are in memory as masks together
_PHOTO = re.compile(r"photos/[0-9a-f]{32}(\.[a-z0-9]+)?")
_ID = re.compile(r"[0-9]{1,18}")


class ShotGoneError(Exception):
    """A shot is not there any more."""


class Photo(NamedTuple):
    """The file of an image.

    Attributes:
        content: bytes of the file.
        name: file name, whose suffix the copy gets.
    """

    content: bytes
    name: str


class Shot(NamedTuple):
    """One shot of a class.

    Attributes:
        annotation: id of the annotation.
        label: label of the class.
        digest: digest of the annotation, which changes with it.
    """

    annotation: int
    label: str
    digest: str


class _Record(NamedTuple):
    updated: str
    labels: tuple[str, ...]
    digest: str
    task: int | None
    photo: str


class ShotFolder:
    """Annotations in a folder, each a task as Label Studio exports it (`annotations/17.json`) beside its photo.

    Every file is written whole or not at all, and what the folder holds is read again at the start. Threads may share
    the object; other processes may not write to the folder.

    Args:
        folder: the folder, created if needed.

    Raises:
        DataError: a file in it is damaged.
        StorageError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        for name in ("annotations", "photos"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            sweep(folder / name)
        self._records = dict(self._stored())

    @property
    def version(self) -> str:
        """Number of shots, and a digest that changes with them."""
        with self._lock:
            records = sorted(self._records.items())
        count = sum(len(record.labels) for _, record in records)
        state = hashlib.sha256(repr([(key, record.digest) for key, record in records]).encode()).hexdigest()
        return f"{count} shot{'' if count == 1 else 's'} {state[:4]}"

    def shots(self) -> list[Shot]:
        """All shots, the one that was changed last at the end."""
        with self._lock:
            records = sorted(self._records.items(), key=lambda item: (item[1].updated, item[0]))
        return [Shot(key, label, record.digest) for key, record in records for label in record.labels]

    def read(self, shot: Shot) -> tuple[bytes, Annotation]:
        """Read the support image, as the bytes of its file, and the annotation of a shot.

        Args:
            shot: one of `shots`.

        Raises:
            ShotGoneError: its annotation has been changed or deleted meanwhile.
            FormatError: a file is damaged.
        """
        with self._lock:
            record = self._records.get(shot.annotation)
            if record is None or record.digest != shot.digest:
                raise ShotGoneError(f"annotation {shot.annotation} has been changed")
            annotation = self._read(self._path(shot.annotation), shot.label).annotation[0]
            return (self.folder / record.photo).read_bytes(), annotation

    def add(self, annotation: Mapping[str, Any], photo: Photo, task: int | None = None) -> tuple[str, ...]:
        """Store an annotation in the place of its earlier version; one without regions is deleted.

        Args:
            annotation: the annotation as Label Studio sends it, with its `id` and `result`.
            photo: the image that it annotates.
            task: id of its task, with which it is deleted.

        Returns:
            Its labels.

        Raises:
            FormatError: it has another form or does not fit its image. An earlier version stays.
            StorageError: a file cannot be written. An earlier version stays.
        """
        key, kept = (
            id_of(annotation, "annotation"),
            {name: annotation.get(name) for name in ("id", "result", "updated_at")},
        )
        labels = labels_of(annotation)
        if not labels:
            self.remove(key)
            return ()
        place = f"photos/{hashlib.sha256(photo.content).hexdigest()[:32]}{_suffix(photo.name)}"
        content = json.dumps({"id": task, "data": {"image": place}, "annotations": [kept]})
        with self._lock:
            with replacing(self.folder / place) as temporary:
                temporary.write_bytes(photo.content)
            try:
                with replacing(self._path(key)) as temporary:
                    temporary.write_text(content, encoding="utf-8")
                    self._check(temporary, labels, len(annotation["result"]))
                before = self._records.get(key)
                self._records[key] = _record(json.loads(content), content)
            except DiffUpError:
                self._forget_photo(place)
                raise
            if before is not None:
                self._forget_photo(before.photo)
        return labels

    def remove(self, key: int) -> None:
        """Delete an annotation, if it is there.

        Args:
            key: id of the annotation.
        """
        with self._lock:
            record = self._records.pop(key, None)
            if record is not None:
                self._path(key).unlink(missing_ok=True)
                self._forget_photo(record.photo)

    def of_task(self, task: int) -> list[int]:
        """Ids of the annotations of a task.

        Args:
            task: id of the task.
        """
        with self._lock:
            return [key for key, record in self._records.items() if record.task == task]

    def _stored(self) -> Iterator[tuple[int, _Record]]:
        """The annotations in the folder, by id."""
        for path in sorted((self.folder / "annotations").glob("*.json")):
            try:
                content = read_json(path, DataError)
                yield id_of(content["annotations"][0], "annotation"), _record(content, path.read_text(encoding="utf-8"))
            except (FormatError, LookupError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: damaged ({error}); delete it, and save its annotation again") from error

    def _check(self, path: Path, labels: tuple[str, ...], regions: int) -> None:
        """Check that every label of an annotation's file gives a shot."""
        height, width = upright_size(self.folder / read_json(path)["data"]["image"], "image")
        if height * width * regions > _MOST_MASKS:
            raise FormatError(f"annotation: {regions} regions are too many for an image of {width} x {height} pixels")
        for label in labels:
            try:
                self._read(path, label)
            except FormatError as error:  # which names the file, whose name here is a temporary one
                raise FormatError(str(error).replace(f"{path}: [0].annotations[0]", "annotation")) from error

    def _read(self, path: Path, label: str) -> SupportSet:
        """Read the regions with a label, of the most precise kind: clicks beside a mask helped to draw it."""
        results = read_json(path)["annotations"][0]["result"]
        own = [region for region in results if label in region_labels(region, "annotation")]
        kinds = {SHAPE_TYPES[shape_type(region["value"], region["type"], "annotation")] for region in own}
        best = next(kind for kind in KINDS if kind in kinds)
        shapes = [shape for shape, kind in SHAPE_TYPES.items() if kind == best]
        return read_label_studio(path, label, images=self.folder, shape_types=shapes)

    def _path(self, key: int) -> Path:
        return self.folder / "annotations" / f"{key}.json"

    def _forget_photo(self, photo: str) -> None:
        """Delete a photo unless an annotation uses it."""
        if all(record.photo != photo for record in self._records.values()):
            (self.folder / photo).unlink(missing_ok=True)


def id_of(record: Any, where: str) -> int:
    """The id of an annotation or a task.

    Args:
        record: the annotation or task as Label Studio sends it.
        where: its name in error messages.

    Raises:
        FormatError: it has no id, or one that is not a whole number above 0.
    """
    given = record.get("id") if isinstance(record, Mapping) else None
    if isinstance(given, bool) or not isinstance(given, int | str) or not _ID.fullmatch(str(given)):
        raise FormatError(f"{where}.id: expected a whole number above 0, got {describe(given)}")
    return int(given)


def labels_of(annotation: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of an annotation's regions, each once; none of an annotation that was cancelled.

    Args:
        annotation: the annotation as Label Studio sends it.

    Raises:
        FormatError: `result` is no list of regions, or a label cannot be the name of a class.
    """
    results = annotation.get("result")
    if not isinstance(results, list):
        raise FormatError(f"annotation.result: expected list, got {describe(results)}")
    if annotation.get("was_cancelled"):
        return ()
    found: dict[str, None] = {}
    for index, region in enumerate(results):
        where = f"annotation.result[{index}]"
        for label in region_labels(region, where):
            if not isinstance(label, str) or not label.strip() or not label.isprintable() or len(label) > MAX_LABEL:
                raise FormatError(f"{where}: the label {describe(label)} is no name of printable characters")
            found[label] = None
    return tuple(found)


def _record(content: Mapping[str, Any], text: str) -> _Record:
    annotation = content["annotations"][0]
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    updated, photo = str(annotation.get("updated_at") or ""), content["data"]["image"]
    if not _PHOTO.fullmatch(photo):
        raise FormatError(f"data.image: expected a file in photos, got {describe(photo)}")
    return _Record(updated, labels_of(annotation), digest, content.get("id"), photo)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower() if is_image_name(name) else ""
