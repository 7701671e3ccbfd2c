"""Label Studio's contract of a machine learning backend: set-up, predictions, and what it says of saved annotations.

Label Studio shows of a backend's answer nothing but regions, scores and the version of the model; the text of an error
is dropped. So what a person must know stands in the version: how many shots there are, or why an image was not marked.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from diffup.errors import DiffUpError, FormatError
from diffup.formats.fields import field
from diffup.formats.label_studio import label_studio_prediction
from diffup.formats.labelling_config import BrushTag, read_brush_tag
from diffup.inputs.images import describe, read_image
from diffup.serve.learner import Learner
from diffup.serve.photos import Photos
from diffup.serve.shots import id_of
from diffup.serve.shown import Shown, read_shown, shown_support
from diffup.utils.serving import MAX_PIXELS

log = logging.getLogger("diffup.serve")

_SAVED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
_DELETED = {"ANNOTATION_DELETED": "annotation", "ANNOTATIONS_DELETED": "annotations"}
_LONGEST = 300  # characters of an error that stands in the place of a version


class LabelStudioBackend:
    """Answers Label Studio's requests. Threads may share the object.

    Args:
        learner: the classes that grow with what people save.
        photos: finds the images of tasks.
    """

    def __init__(self, learner: Learner, photos: Photos) -> None:
        self._learner = learner
        self._photos = photos
        self._failed: dict[int, str] = {}

    @property
    def version(self) -> str:
        """Version of the model: the number of shots, a digest of them, and how many annotations could not be read."""
        failed = f", {len(self._failed)} annotations not read" if self._failed else ""
        return f"{self._learner.folder.version}{failed}"

    def setup(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /setup`, by which Label Studio connects and asks for the version.

        Args:
            request: the request; `schema` is the labelling interface.

        Raises:
            FormatError: the request has no labelling interface.
        """
        config = field(request, "schema", str, "request")
        try:
            read_brush_tag(config, "schema")
        except FormatError as error:
            return {"model_version": _message(error)}
        return {"model_version": self.version}

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /predict`: for each task, in their order, a prediction, or a list of none.

        Args:
            request: the request; `params.context` holds regions if a person is showing something at the moment.

        Raises:
            FormatError: the request has no tasks or no labelling interface.
        """
        tasks, config = field(request, "tasks", list, "request"), field(request, "label_config", str, "request")
        params = request.get("params")
        context = params.get("context") if isinstance(params, Mapping) else None
        version = self.version
        return {"results": [self._prediction(task, config, context, version) for task in tasks]}

    def webhook(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /webhook`: learn from a saved annotation, forget a deleted one.

        Args:
            request: the request; `action` says what has happened.

        Returns:
            `model_version`, and `learnt`, the labels of each annotation by its id.

        Raises:
            FormatError: the request has another form, or an annotation cannot be read.
            ImageError: its image cannot be read.
            StorageError: it cannot be stored.
        """
        action = field(request, "action", str, "request")
        learnt: dict[int, tuple[str, ...]] = {}
        if action in _SAVED:
            tag = read_brush_tag(field(field(request, "project", dict, "request"), "label_config", str, "project"))
            tasks = {id_of(task, "task"): task for task in _records(request, "task")}
            for annotation in _records(request, "annotation"):
                task = tasks.get(id_of({"id": annotation.get("task")}, "annotation.task"))
                learnt[id_of(annotation, "annotation")] = self._learn(annotation, task, tag)
        elif action in _DELETED:
            for annotation in _records(request, _DELETED[action]):
                self._forget(id_of(annotation, "annotation"))
        elif action == "TASKS_DELETED":
            for task in _records(request, "tasks"):
                for key in self._learner.folder.of_task(id_of(task, "task")):
                    self._forget(key)
        return {"model_version": self.version, "learnt": learnt}

    def _prediction(self, task: Any, config: str, context: Any, version: str) -> dict[str, Any] | list[Any]:
        """The prediction of one task; an empty one whose version says why if it has failed."""
        try:
            tag = read_brush_tag(config)
            content = self._photos.find(_recorded(task, tag)).content
            shown = read_shown(context, tag.labels)
            return (
                self._marked(content, tag, version)
                if shown is None
                else self._marked_as_shown(content, tag, shown, version)
            )
        except DiffUpError as error:
            log.warning("task %s: %s", task.get("id") if isinstance(task, Mapping) else task, error)
            return {"result": [], "score": 0.0, "model_version": _message(error)}

    def _marked(self, content: bytes, tag: BrushTag, version: str) -> dict[str, Any] | list[Any]:
        """Every class that is known by now; no prediction if none is.

        Label Studio asks again, when a task is opened, only if it has no prediction, be it an empty one.
        """
        found = self._learner.segment(content, tag.labels)
        if found is None:
            return []
        scores = [item.score for item in found.results]
        return label_studio_prediction(
            found.labels, found.names, scores=scores, model_version=version, from_name=tag.name, to_name=tag.image
        )

    def _marked_as_shown(self, content: bytes, tag: BrushTag, shown: Shown, version: str) -> dict[str, Any]:
        """The one class that a person is showing."""
        support = shown_support(read_image(content, "image", MAX_PIXELS), shown)
        found = self._learner.segment_shown(support, shown.label)
        prediction = label_studio_prediction(
            [found.mask],
            [shown.label],
            scores=[found.score],
            model_version=version,
            from_name=tag.name,
            to_name=tag.image,
        )
        for region in prediction["result"]:  # one of its own for every suggestion, which may stand beside others
            region["id"] = hashlib.sha256(json.dumps(shown.regions, sort_keys=True).encode()).hexdigest()[:10]
        return prediction

    def _learn(self, annotation: Mapping[str, Any], task: Mapping[str, Any] | None, tag: BrushTag) -> tuple[str, ...]:
        """Keep an annotation's shots; a failure is kept in mind until the annotation is saved again or deleted."""
        key = id_of(annotation, "annotation")
        try:
            photo = self._photos.find(_recorded(task, tag))
            labels = self._learner.folder.add(annotation, photo, id_of(task, "task"))
        except DiffUpError as error:
            log.warning("annotation %s: %s", key, error)
            self._failed[key] = str(error)
            raise
        self._failed.pop(key, None)
        return labels

    def _forget(self, key: int) -> None:
        self._learner.folder.remove(key)
        self._failed.pop(key, None)


def _records(request: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A field of a request that holds a record or a list of them."""
    given = field(request, name, (dict, list), "request")
    records = given if isinstance(given, list) else [given]
    if not all(isinstance(record, Mapping) for record in records):
        raise FormatError(f"request.{name}: expected objects, got {describe(records)}")
    return records


def _recorded(task: Any, tag: BrushTag) -> str:
    """What a task says of its image."""
    recorded: str = field(field(task, "data", dict, "task"), tag.key, str, "task.data")
    return recorded


def _message(error: DiffUpError) -> str:
    """An error as a version of the model."""
    text = " ".join(f"not marked: {error}".split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
