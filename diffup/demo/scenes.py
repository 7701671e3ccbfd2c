"""Example tasks from photos that come with scikit-image; nothing is downloaded."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.demo.examples import Example
from diffup.inputs.annotations import Annotation, Box, Scribble
from diffup.utils.optional import need


@dataclass(frozen=True)
class Scene:
    """A few-example task: examples of one or more classes, and photos to mark.

    Attributes:
        examples: the examples.
        photos: (H, W, 3) uint8, the photos by file name.
    """

    examples: tuple[Example, ...]
    photos: dict[str, npt.NDArray[np.uint8]]

    def files(self) -> list[tuple[str, bytes]]:
        """Encode the photos as PNG: names and contents of the files."""
        files = []
        for name, image in self.photos.items():
            file = io.BytesIO()
            Image.fromarray(image).save(file, format="PNG")
            files.append((name, file.getvalue()))
        return files


def coins() -> Scene:
    """Return a task with one annotated coin; two photos show others, and one shows none."""
    photo = _rgb(_data().coins())
    coin = np.asarray(Image.fromarray(photo[20:85, 14:76]).resize((372, 390), Image.Resampling.BICUBIC))
    examples = (_shot("coin", coin, Scribble([(102, 228), (162, 144), (264, 198)], width=18)),)
    return Scene(examples, {"coins.png": photo[88:], "six.png": photo[150:, 188:], "cat.png": _data().chelsea()})


def person() -> Scene:
    """Return a task with an annotated astronaut in colour; the photo shows a cameraman in grey."""
    strokes = [[(225, 60), (225, 180)], [(60, 480), (110, 300), (320, 310)], [(200, 330), (200, 500)]]
    return Scene((_shot("person", _data().astronaut(), Scribble(strokes)),), {"cameraman.png": _rgb(_data().camera())})


def motorcycle() -> Scene:
    """Return a task with two classes, annotated in one image of a stereo pair, mirrored; the photo is the other."""
    left, right, _ = _data().stereo_motorcycle()
    mirrored = np.ascontiguousarray(left[:, ::-1])
    bench = Scribble([[(472, 118), (690, 130)], [(500, 160), (690, 170)], [(690, 130), (690, 290)]])
    examples = (_shot("motorcycle", mirrored, Box(57, 50, 650, 453)), _shot("bench", mirrored, bench))
    return Scene(examples, {"motorcycle.png": np.asarray(right)})


SCENES: dict[str, Callable[[], Scene]] = {"Coins": coins, "Person": person, "Two classes": motorcycle}


def _data() -> Any:
    return need("skimage.data", "the example images", extra="demo")


def _rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _shot(name: str, image: npt.NDArray[np.uint8], annotation: Annotation) -> Example:
    return Example(name, "box" if isinstance(annotation, Box) else "scribble", image, annotation)
