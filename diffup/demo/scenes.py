"""Example tasks from photos that come with scikit-image; nothing is downloaded."""

from __future__ import annotations

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
    """A few-example task: examples of one or more classes, and a query.

    Attributes:
        examples: the examples.
        query: (H, W, 3) uint8, the photo to segment.
    """

    examples: tuple[Example, ...]
    query: npt.NDArray[np.uint8]


def coins() -> Scene:
    """Return a task with one annotated coin; the query shows the others."""
    photo = _rgb(_data().coins())
    coin = np.asarray(Image.fromarray(photo[20:85, 14:76]).resize((372, 390), Image.Resampling.BICUBIC))
    return Scene((_shot("coin", coin, Scribble([(102, 228), (162, 144), (264, 198)], width=18)),), photo[88:])


def person() -> Scene:
    """Return a task with an annotated astronaut in colour; the query is a cameraman in grey."""
    strokes = [[(225, 60), (225, 180)], [(60, 480), (110, 300), (320, 310)], [(200, 330), (200, 500)]]
    return Scene((_shot("person", _data().astronaut(), Scribble(strokes)),), _rgb(_data().camera()))


def motorcycle() -> Scene:
    """Return a task with two classes, annotated in one image of a stereo pair, mirrored; the query is the other."""
    left, right, _ = _data().stereo_motorcycle()
    mirrored = np.ascontiguousarray(left[:, ::-1])
    bench = Scribble([[(472, 118), (690, 130)], [(500, 160), (690, 170)], [(690, 130), (690, 290)]])
    examples = (_shot("motorcycle", mirrored, Box(57, 50, 650, 453)), _shot("bench", mirrored, bench))
    return Scene(examples, np.asarray(right))


SCENES: dict[str, Callable[[], Scene]] = {"Coins": coins, "Person": person, "Two classes": motorcycle}


def _data() -> Any:
    return need("skimage.data", "the example images", extra="demo")


def _rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _shot(name: str, image: npt.NDArray[np.uint8], annotation: Annotation) -> Example:
    return Example(name, "box" if isinstance(annotation, Box) else "scribble", image, annotation)
