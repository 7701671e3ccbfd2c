"""Segment three scenes with three kinds of annotation and two encoders, write pictures and print scores.

The photos come with scikit-image and the weights from pip packages: nothing is downloaded.

- coins: one coin is annotated, the query shows the others. "Coin" is not a class of COCO.
- person: an astronaut in colour is annotated, the query is a cameraman in grey.
- motorcycle: one image of a stereo pair, mirrored, is annotated, the query is the other.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import data, draw, filters, segmentation

from diffup import Box, DiffUp, Mask, Scribble, Segmentation
from diffup.inputs.annotations import Annotation
from diffup.inputs.support_picture import draw_annotation
from diffup.utils.panels import Panel, stack, strip

ENCODERS = ("bundled:efficientnet_lite2", "bundled:efficientnet_lite1")  # the decoder was not trained with the second

HEIGHT = 240
"""Height of the pictures in pixels."""

CAMERAMAN = (
    "0,238 22,222 42,200 62,157 82,140 105,126 130,123 152,107 160,104 164,92 172,78 196,65 216,66 240,75 258,90 "
    "268,108 269,122 262,130 254,140 252,162 244,172 240,187 242,197 241,220 246,232 262,218 272,205 290,190 306,188 "
    "319,169 330,182 330,200 316,222 302,232 304,272 286,294 262,309 244,312 210,293 186,316 155,368 141,382 147,446 "
    "151,511 0,511"
)
"""Outline of the man in the photo, x,y in pixels, drawn by hand."""


@dataclass
class Scene:
    """A few-shot task: a support image annotated in several ways, a query, and the true mask where one is known."""

    support: npt.NDArray[np.uint8]
    annotations: dict[str, Annotation]
    query: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.bool_] | None = None


def coins() -> Scene:
    photo = data.coins()
    markers = np.where(photo < 30, 1, np.where(photo > 150, 2, 0))
    found = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(photo), markers) == 2)
    truth = ndimage.binary_opening(found, iterations=3)
    one_coin = np.s_[20:85, 14:76]
    annotations: dict[str, Annotation] = {
        "mask": Mask(truth[one_coin]),
        "box": Box(8, 15, 53, 54),
        "scribble": Scribble([(17, 38), (27, 24), (44, 33)]),
    }
    return Scene(photo[one_coin], annotations, photo[88:], truth[88:])


def person() -> Scene:
    outline = np.array([pair.split(",") for pair in CAMERAMAN.split()], dtype=float)
    annotations: dict[str, Annotation] = {
        "box": Box(18, 12, 366, 512),
        "scribble": Scribble([[(225, 60), (225, 180)], [(60, 480), (110, 300), (320, 310)], [(200, 330), (200, 500)]]),
    }
    query = data.camera()
    return Scene(data.astronaut(), annotations, query, draw.polygon2mask(query.shape, outline[:, ::-1]))


def motorcycle() -> Scene:
    left, right, _ = data.stereo_motorcycle()
    return Scene(left[:, ::-1], {"box": Box(57, 50, 650, 453)}, right)


def score(result: Segmentation, truth: npt.NDArray[np.bool_] | None) -> str:
    """Format the IoU with the true mask as text; there is none if neither marks anything."""
    if truth is None or not (result.mask | truth).any():
        return "-"
    return f"{(result.mask & truth).sum() / (result.mask | truth).sum():.2f}"


def show(name: str, scene: Scene, models: list[DiffUp], folder: Path) -> None:
    """Segment a scene with every annotation and encoder, print a line for each, and write one sheet of pictures."""
    rows = []
    for kind, annotation in scene.annotations.items():
        panels = [Panel(f"support: {kind}", draw_annotation(scene.support, annotation, HEIGHT))]
        for model in models:
            start = time.perf_counter()
            result = model.segment(scene.query, support=scene.support, annotation=annotation)
            seconds = time.perf_counter() - start
            iou, encoder = score(result, scene.truth), model.backbone.name
            print(f"{name:11} {kind:9} {encoder:27} {iou:>5} {result.quality:8.2f} {seconds:6.1f} s", flush=True)
            label = encoder if scene.truth is None else f"{encoder}, IoU {iou}"
            panels.append(Panel(label, np.asarray(result.overlay())))
        rows.append(strip(panels, HEIGHT))
    stack(rows).save(folder / f"{name}.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("diffup_quickstart"), help="folder for the pictures")
    parser.add_argument("--decoder", help="folder of the decoder; default: the package's")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = DiffUp.from_pretrained(args.decoder, backbone=ENCODERS[0])
    models = [model, model.upgrade(ENCODERS[1])]  # the same decoder, nothing trained
    print(f"{'scene':11} {'support':9} {'encoder':27} {'IoU':>5} {'expected':>8} {'time':>8}")
    scenes = {"coins": coins, "person": person, "motorcycle": motorcycle}
    for name, make in scenes.items():
        show(name, make(), models, args.output)
    print(f"pictures: {', '.join(str(args.output / f'{name}.png') for name in scenes)}")
    print("IoU: with the true mask, where it is known; expected: the decoder's own guess of its IoU")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
