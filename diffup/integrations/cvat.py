"""CVAT's contract of a detection function, by which `cvat-cli task auto-annotate` marks the photos of a task.

https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from diffup.backbones.named import backbone_options
from diffup.decoder.options import SamplingKeywords, SamplingOptions, sampling_options
from diffup.errors import ConfigError
from diffup.formats.contours import EDITABLE, polygons
from diffup.inputs.masks import bounding_box
from diffup.integrations.classes import PrototypesLike, read_classes
from diffup.label_map import Marked
from diffup.model import DiffUp
from diffup.utils.optional import need

if TYPE_CHECKING:
    from typing_extensions import Unpack

LONGEST_NAME = 64
"""Maximum number of characters of a label in CVAT."""


def create(
    prototypes: PrototypesLike | Sequence[PrototypesLike],
    *,
    decoder: str | None = None,
    backbone: str | None = None,
    input_size: int | None = None,
    text_backbone: str | None = None,
    device: str | None = None,
    instances: bool = False,
    tolerance: float = EDITABLE,
    **sampling: Unpack[SamplingKeywords],
) -> DetectionFunction:
    """Load a model and make the function that CVAT calls. `cvat-cli` passes `-p NAME=TYPE:VALUE` as arguments.

    Args:
        prototypes: prototypes or the path of their file, or a list of them, one for each class. A text may name several
            files, with commas between.
        decoder: folder or hub repository of the decoder; by default the one that comes with the package.
        backbone: name of the encoder; by default the decoder's own.
        input_size: side of the encoder's input images in pixels; by default the encoder's own.
        text_backbone: name of the encoder of text prompts; by default the encoder's own text tower.
        device: torch device of the model; by default CUDA if it is available.
        instances: whether to make a shape of every object, touching ones divided, instead of one of each class.
        tolerance: greatest distance of polygons from the exact outline, in pixels.
        **sampling: fields of `SamplingOptions`, such as `min_presence` and `threshold`.

    Raises:
        PrototypesError: a file is missing or holds no prototypes, or they do not fit the model or each other.
        BackboneError, WeightsError, ConfigError: the model cannot be loaded, or an option is out of range.
        MissingPackageError: cvat-sdk is not installed (extra `cvat`).
    """
    need("cvat_sdk.auto_annotation", "the function for CVAT", extra="cvat")  # before the model is loaded
    model = DiffUp.from_pretrained(
        decoder, backbone=backbone, device=device, text_backbone=text_backbone, **backbone_options(None, input_size)
    )
    options = sampling_options(None, sampling)
    return DetectionFunction(model, prototypes, options, instances=instances, tolerance=tolerance)


class DetectionFunction:
    """A detection function of CVAT: it marks every class that a photo shows.

    Args:
        model: the model.
        prototypes: prototypes or the path of their file, or a list of them, one for each class.
        options: sampling options.
        instances: whether to make a shape of every object, touching ones divided, instead of one of each class.
        tolerance: greatest distance of polygons from the exact outline, in pixels.

    Attributes:
        spec: CVAT's `DetectionFunctionSpec`: a label of type "mask" for each class, named like it.

    Raises:
        PrototypesError: a file is missing or holds no prototypes, or they do not fit the model or each other.
        ConfigError: an option is out of range, or a class has a name that is too long for CVAT.
        MissingPackageError: cvat-sdk is not installed (extra `cvat`).
    """

    def __init__(
        self,
        model: DiffUp,
        prototypes: PrototypesLike | Sequence[PrototypesLike],
        options: SamplingOptions | None = None,
        *,
        instances: bool = False,
        tolerance: float = EDITABLE,
    ) -> None:
        self._cvat = need("cvat_sdk.auto_annotation", "the function for CVAT", extra="cvat")
        if not tolerance >= 0:
            raise ConfigError(f"tolerance={tolerance}: it must be a number of pixels from 0 on")
        self._model = model
        self._options = SamplingOptions() if options is None else options
        self._options.resolve(model.config)  # checked before the first photo
        self._classes = read_classes(prototypes, model)
        self._instances = instances
        self._tolerance = tolerance
        long = next((item.name for item in self._classes if len(item.name) > LONGEST_NAME), None)
        if long is not None:
            raise ConfigError(
                f"prototypes: the class {long!r} has {len(long)} characters, CVAT takes {LONGEST_NAME}. "
                "Give it the name of the label: dataclasses.replace(prototypes, name=...)"
            )
        labels = [
            self._cvat.label_spec(item.name, label, type="mask") for label, item in enumerate(self._classes, start=1)
        ]
        self.spec: Any = self._cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Mark a photo.

        Args:
            context: CVAT's `DetectionFunctionContext`. `conf_threshold` is the presence below which a class counts as
                absent, `conv_mask_to_poly` whether polygons are wanted instead of masks.
            image: the photo.

        Returns:
            Shapes for CVAT; none for a class that is absent.

        Raises:
            ImageError: the photo cannot be read.
            MissingPackageError: scikit-image, which polygons and `instances` need, is not installed.
        """
        least = context.conf_threshold
        options = self._options if least is None else replace(self._options, min_presence=least)
        found = self._model.segment(image, self._classes, options=options)
        marked = found.marked(instances=self._instances)
        return [shape for item in marked for shape in self._shapes(item, context.conv_mask_to_poly)]

    def _shapes(self, item: Marked, as_polygons: bool) -> Iterator[Any]:
        """A mask, or a polygon for every connected part."""
        if as_polygons:
            for polygon in polygons(item.mask, self._tolerance):
                yield self._cvat.polygon(item.label, polygon.ravel().tolist())
        else:
            encode = need("cvat_sdk.masks", "the function for CVAT", extra="cvat").encode_mask
            yield self._cvat.mask(item.label, encode(item.mask, bounding_box(item.mask)))
