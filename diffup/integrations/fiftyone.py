"""A model for FiftyOne, which `dataset.apply_model` applies to the photos of a data set.

https://docs.voxel51.com/model_zoo/design.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from diffup.decoder.options import SamplingKeywords, sampling_options
from diffup.errors import ConfigError, MissingPackageError
from diffup.inputs.masks import bounding_box
from diffup.integrations.classes import PrototypesLike, read_classes
from diffup.label_map import LabelMap, Marked
from diffup.model import DiffUp
from diffup.utils.optional import need

if TYPE_CHECKING:
    from typing_extensions import Unpack

Output = Literal["detections", "segmentation"]


def _need(module: str) -> Any:
    return need(f"fiftyone.core.{module}", "a model for FiftyOne", extra="fiftyone")


def _base() -> Any:
    """FiftyOne's base class. Without FiftyOne the module can still be imported, by tools that read documentation."""
    try:
        return _need("models").Model
    except MissingPackageError:
        return object


class DiffUpModel(_base()):  # type: ignore[misc] # FiftyOne has no types
    """A model of FiftyOne that marks every class that a photo shows.

    Args:
        prototypes: prototypes or the path of their file, or a list of them, one for each class.
        model: the model; by default the one that comes with the package.
        output: "detections" (a `Detection` with a mask for each class, or each object), or "segmentation" (one index
            mask, whose names are `mask_targets`).
        instances: whether to make a detection of every object, touching ones divided, instead of one of each class.
        **sampling: fields of `SamplingOptions`, such as `min_presence` and `threshold`.

    Raises:
        PrototypesError: a file is missing or holds no prototypes, or they do not fit the model or each other.
        ConfigError: an option is out of range, `output` is something else, or `instances` is set for a segmentation.
        TypeError: a keyword is not a field of `SamplingOptions`.
        MissingPackageError: FiftyOne is not installed (extra `fiftyone`).

    Examples:
        >>> dataset.apply_model(DiffUpModel("dog.safetensors"), label_field="dog", batch_size=8)
    """

    config = None  # FiftyOne then compares `confidence_thresh` with the detections' confidence
    media_type = "image"
    transforms = None
    ragged_batches = False  # photos of any sizes are one batch
    preprocess = False

    def __init__(
        self,
        prototypes: PrototypesLike | Sequence[PrototypesLike],
        model: DiffUp | None = None,
        *,
        output: Output = "detections",
        instances: bool = False,
        **sampling: Unpack[SamplingKeywords],
    ) -> None:
        self._labels = _need("labels")
        if output not in get_args(Output):
            raise ConfigError(f"output={output!r}: choose {' or '.join(map(repr, get_args(Output)))}")
        if instances and output == "segmentation":
            raise ConfigError("instances=True: a segmentation has no objects; give output='detections'")
        self._model = DiffUp.from_pretrained() if model is None else model
        self._options = sampling_options(None, sampling)
        self._options.resolve(self._model.config)  # checked before the first photo, whose error FiftyOne passes over
        self._classes = read_classes(prototypes, self._model)
        self._output = output
        self._instances = instances

    @property
    def mask_targets(self) -> dict[int, str]:
        """Names of the classes by the values of a segmentation, for the data set's `mask_targets`."""
        return {label: item.name for label, item in enumerate(self._classes, start=1)}

    def predict(self, arg: npt.NDArray[np.uint8]) -> Any:
        """Mark a photo.

        Args:
            arg: (H, W, 3) uint8, the photo.

        Returns:
            FiftyOne's `Detections` or `Segmentation`. An absent or overruled class has no detection, and no pixel. The
            confidence is the score of the mask; presence and quality are attributes of each detection.

        Raises:
            ImageError: the photo cannot be read.
        """
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[npt.NDArray[np.uint8]]) -> list[Any]:
        """Mark photos, encoded and decoded together.

        Args:
            args: photos, (H, W, 3) uint8 each, of any sizes.

        Returns:
            The labels of each photo, as `predict` returns them.

        Raises:
            ImageError: a photo cannot be read.
        """
        images = list(args)
        found = self._model.segment_many(
            images, self._classes, batch_size=max(1, len(images)), on_error="raise", options=self._options
        )
        return [self._converted(item) for item in found if isinstance(item, LabelMap)]

    def _converted(self, found: LabelMap) -> Any:
        if self._output == "segmentation":
            return self._labels.Segmentation(mask=found.labels)
        marked = found.marked(instances=self._instances)
        return self._labels.Detections(detections=[self._detection(item, found) for item in marked])

    def _detection(self, item: Marked, found: LabelMap) -> Any:
        """A detection: its box as fractions of the photo, and its mask within the box."""
        box = bounding_box(item.mask)
        assert box is not None  # what is marked is not empty
        (left, top, right, bottom), (height, width) = box, item.mask.shape
        result = found.results[item.label - 1]
        return self._labels.Detection(
            label=found.names[item.label - 1],
            bounding_box=[left / width, top / height, (right - left) / width, (bottom - top) / height],
            mask=item.mask[top:bottom, left:right],
            confidence=float(item.score),
            presence=float(result.presence),
            quality=float(result.quality),
        )
