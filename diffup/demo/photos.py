"""The photos of a visitor: their files, what was found in them, and what a person corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.correct import Correction
from diffup.decoder.options import SamplingOptions
from diffup.demo.examples import Example
from diffup.demo.views import THUMBNAIL, overlay
from diffup.inputs.images import read_image, to_pil
from diffup.label_map import LabelMap
from diffup.labelling.table import doubt_of
from diffup.result import Segmentation
from diffup.utils.serving import MAX_PIXELS

_NO_IMAGE = np.zeros((1, 1, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Run:
    """What results depend on.

    Attributes:
        examples: the examples of all classes.
        encoders: names of the encoders.
        options: sampling options.
    """

    examples: tuple[Example, ...]
    encoders: tuple[str, ...]
    options: SamplingOptions


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo, and what is known of it.

    It keeps the photo's file and the small maps of its results instead of pixels, which are computed when it is opened,
    so that a visitor may have many.

    Attributes:
        key: number that no other photo of the visitor has.
        name: file name.
        content: bytes of the file.
        size: height and width in pixels.
        thumbnail: picture with the classes over the photo, if something was found.
        run: what the results depend on; None before the first.
        names: names of the classes that were looked for.
        found: results of the classes for each encoder, without the photo's pixels and without corrections.
        classes: summaries of the classes as they are corrected (`LabelMap.summary`), by the first encoder.
        corrections: corrections in turn, each with the name of its class.
        undone: corrections that were undone, the latest last.
    """

    key: int
    name: str
    content: bytes
    size: tuple[int, int]
    thumbnail: Image.Image
    run: Run | None = None
    names: tuple[str, ...] = ()
    found: tuple[tuple[Segmentation, ...], ...] = ()
    classes: tuple[dict[str, Any], ...] = ()
    corrections: tuple[tuple[str, Correction], ...] = ()
    undone: tuple[tuple[str, Correction], ...] = ()

    @property
    def doubt(self) -> float:
        """Probability that something is wrong, that of the most doubtful class that nobody corrected, in [0, 1].

        It is 1 before the first result.
        """
        seen = {name for name, _ in self.corrections}
        return max((doubt_of(item) for item in self.classes if item["name"] not in seen), default=0.0 if seen else 1.0)

    def image(self) -> npt.NDArray[np.uint8]:
        """Decode the photo: (H, W, 3) uint8, upright."""
        return decode(self.content, self.name)

    def maps(self, image: npt.NDArray[np.uint8]) -> tuple[LabelMap, ...]:
        """Compute the label maps of each encoder, with all corrections.

        Args:
            image: (H, W, 3) uint8, the photo.
        """
        return tuple(self._label_map(results, image) for results in self.found)

    def _label_map(self, results: Sequence[Segmentation], image: npt.NDArray[np.uint8]) -> LabelMap:
        corrected = []
        for name, item in zip(self.names, results, strict=True):
            own = [correction for other, correction in self.corrections if other == name]
            item = replace(item, image=image)
            corrected.append(item.correct(*own) if own else item)
        return LabelMap.of(self.names, corrected)

    def with_found(self, maps: Sequence[LabelMap], run: Run) -> Photo:
        """The photo with new results, from which corrections of classes that are no more are dropped.

        Args:
            maps: uncorrected label maps, one for each encoder.
            run: what they depend on.
        """
        found = tuple(tuple(replace(item, image=_NO_IMAGE) for item in result.results) for result in maps)
        names = maps[0].names
        kept = tuple(item for item in self.corrections if item[0] in names)
        photo = replace(self, run=run, names=names, found=found, corrections=kept, undone=())
        return photo.shown(photo.maps(maps[0].image)[0] if kept else maps[0])

    def shown(self, result: LabelMap) -> Photo:
        """The photo with summaries and thumbnail of the present state of its label map.

        Args:
            result: label map by the first encoder, corrected.
        """
        return replace(self, thumbnail=overlay(result, THUMBNAIL), classes=tuple(result.summary()["classes"]))


def decode(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Decode an image: (H, W, 3) uint8, upright.

    Args:
        content: bytes of the file.
        name: name in error messages.

    Raises:
        ImageError: it cannot be read as an image, or is too large.
    """
    return np.asarray(to_pil(read_image(content, name, MAX_PIXELS)))


def read_photo(key: int, name: str, content: bytes) -> Photo:
    """Read a photo.

    Args:
        key: number that no other photo of the visitor has.
        name: file name.
        content: bytes of the file.

    Raises:
        ImageError: it cannot be read as an image, or is too large.
    """
    image = decode(content, name)
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return Photo(key, name, content, (image.shape[0], image.shape[1]), thumbnail)
