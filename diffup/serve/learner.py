"""From shots to masks: the classes as they are at the moment, and what they mark in an image."""

from __future__ import annotations

import contextlib
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
from diffup.serve.shots import Shot, ShotFolder, ShotGoneError

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

    @property
    def min_presence(self) -> float:
        """Presence below which a class counts as absent, 0 to 1, if `segment` is given no other."""
        return self._options.resolve(self.model.config).min_presence

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
            classes = self._classes(labels)
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
            shown = join_prototypes([*self._classes([label]), teach(self.model, [support], None, label)])
            options = replace(self._options, min_presence=0.0)
            return self.model.segment(support.image, shown, options=options)

    def _classes(self, labels: Collection[str]) -> list[Prototypes]:
        """The classes that have a shot or are known, each of at most `MAX_SHOTS` shots, which are encoded once."""
        while True:  # again if a shot is changed while it is read
            every = self.folder.shots()
            self._learnt = {shot: self._learnt[shot] for shot in every if shot in self._learnt}
            with contextlib.suppress(ShotGoneError):
                parts = [self._parts(name, [shot for shot in every if shot.label == name]) for name in labels]
                return [join_prototypes(items) for items in parts if items]

    def _parts(self, name: str, shots: Sequence[Shot]) -> list[Prototypes]:
        known = [self._known[name]] if name in self._known else []
        return [*known, *map(self._learn, shots[-MAX_SHOTS:])]

    def _learn(self, shot: Shot) -> Prototypes:
        if shot not in self._learnt:
            support, annotation = self.folder.read(shot)
            self._learnt[shot] = self.model.prototypes(support, annotation, name=shot.label)
        return self._learnt[shot]
