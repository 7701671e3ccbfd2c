"""From shots to masks: the classes as they are at the moment, and what they mark in an image."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace

from diffup.decoder.options import SamplingOptions
from diffup.inputs.annotations import Support
from diffup.inputs.images import ImageLike
from diffup.label_map import LabelMap
from diffup.model import DiffUp
from diffup.prototypes import Prototypes, distinct_classes, join_prototypes, teach
from diffup.result import Segmentation
from diffup.serve.shots import Shot, ShotFolder

MAX_SHOTS = 10
"""Maximum number of shots of a class that are used, those that were changed last: more cost time with every image."""


class Learner:
    """Classes that grow with the shots in a folder. Threads may share the object: they take turns with the model.

    Args:
        model: the model.
        folder: the shots.
        known: classes that are known before there is a shot, with other names each; shots are added to them.
        options: sampling options.

    Raises:
        PrototypesError: `known` holds a name twice, or was made with another encoder.
    """

    def __init__(
        self,
        model: DiffUp,
        folder: ShotFolder,
        known: Sequence[Prototypes] = (),
        options: SamplingOptions | None = None,
    ) -> None:
        for item in distinct_classes(list(known)) if known else ():
            item.check(model)
        self.model = model
        self.folder = folder
        self._known = {item.name: item for item in known}
        self._options = SamplingOptions() if options is None else options
        self._learnt: dict[Shot, Prototypes] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the classes that can be marked at the moment."""
        return list(dict.fromkeys([*self._known, *(shot.label for shot in self.folder.shots())]))

    def segment(self, image: ImageLike, labels: Collection[str], min_presence: float | None = None) -> LabelMap | None:
        """Mark the classes that are known by now.

        Args:
            image: the image to mark.
            labels: labels to mark; those that have no shot are left out.
            min_presence: presence below which a class counts as absent, 0 to 1; None for the learner's own option.

        Returns:
            Label map of the classes that are known; None if none is.

        Raises:
            ImageError: the image cannot be read.
            ConfigError: `min_presence` is out of range.
            FormatError, AnnotationError: a shot is damaged.
        """
        with self._lock:
            shots = self._recent(labels)
            classes = [
                self._class(name, shots.get(name, ())) for name in labels if name in shots or name in self._known
            ]
            asked = self._options if min_presence is None else replace(self._options, min_presence=min_presence)
            return self.model.segment(image, classes, options=asked) if classes else None

    def segment_shown(self, support: Support, label: str) -> Segmentation:
        """Mark a class in an image in which a person has just shown it.

        The image itself is one more support, with what the person has shown in it; so the class counts as present.

        Args:
            support: the image, and what was shown in it.
            label: label of the class, which need not be known.

        Raises:
            AnnotationError, FormatError: a shot is damaged.
        """
        with self._lock:
            shots = self._recent([label])
            known = [self._class(label, shots.get(label, ()))] if label in shots or label in self._known else []
            shown = join_prototypes([*known, teach(self.model, [support], None, label)])
            options = replace(self._options, min_presence=0.0)
            return self.model.segment(support.image, shown, options=options)

    def _recent(self, labels: Collection[str]) -> dict[str, list[Shot]]:
        """The shots of each label that has any, at most `MAX_SHOTS`; what was computed for others is forgotten."""
        every = self.folder.shots()
        recent = {name: [shot for shot in every if shot.label == name][-MAX_SHOTS:] for name in labels}
        current = set(every)
        self._learnt = {shot: learnt for shot, learnt in self._learnt.items() if shot in current}
        return {name: shots for name, shots in recent.items() if shots}

    def _class(self, name: str, shots: Sequence[Shot]) -> Prototypes:
        """The prototypes of a class, in which each shot is encoded once."""
        known = [self._known[name]] if name in self._known else []
        return join_prototypes([*known, *map(self._learn, shots)])

    def _learn(self, shot: Shot) -> Prototypes:
        if shot not in self._learnt:
            support, annotation = self.folder.read(shot)
            self._learnt[shot] = self.model.prototypes(support, annotation, name=shot.label)
        return self._learnt[shot]
