"""The session of `examples/label_studio_session.py` without Label Studio: how proposals improve with annotated photos.

The learner of `diffup serve` gets the same photos and shots in the same order. Printed is the mean IoU of the three
classes in the photos that are never annotated, with `min_presence=0`, as in the session, and with the decoder's own
minimum; that in all photos that are not annotated yet, the first of which is that of `examples/fiftyone_session.py`;
and the IoU of the tiles of photo 5 by one click on one of them, before and after.

    python benchmarks/learner.py
"""

from __future__ import annotations

import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from label_studio_session import HELD_OUT, LABELS, annotation, click, iou, scene

from diffup.inputs.images import read_image
from diffup.label_map import LabelMap
from diffup.model import DiffUp
from diffup.serve.learner import Learner
from diffup.serve.shots import Photo, ShotFolder
from diffup.serve.shown import read_shown, shown_support


def main() -> None:
    scenes = [scene(seed) for seed in range(10)]
    photos = [png(image) for image, _ in scenes]
    model, clicked = DiffUp.from_pretrained(), HELD_OUT[0]
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(model, ShotFolder(Path(folder)))
        print(f"one click on a tile: {by_click(learner, photos[clicked], scenes[clicked][1]):.2f}", flush=True)
        worst, waiting = 0, set(range(clicked))
        for shots in range(1, 6):
            waiting.remove(worst)
            record = annotation(scenes[worst][1]) | {"id": shots, "updated_at": f"2026-01-01T00:00:0{shots}Z"}
            learner.folder.add(record, Photo(photos[worst], f"{worst}.png"))
            scores = {}
            for index in (*waiting, *HELD_OUT):
                found = learner.segment(photos[index], LABELS, min_presence=0.0)
                assert found is not None
                smaller = [replace(result, min_presence=model.config.min_presence) for result in found.results]
                maps = found.labels, LabelMap.of(found.names, smaller).labels
                scores[index] = [iou(labels, scenes[index][1]) for labels in maps]
            held_out, others = ([scores[index] for index in part] for part in (HELD_OUT, scores))
            (proposed, own), (rest, _) = np.mean(held_out, axis=0), np.mean(others, axis=0)
            print(f"{shots} annotated: {proposed:.3f}, own minimum {own:.3f}; all other photos {rest:.3f}", flush=True)
            worst = min(waiting, key=lambda index: scores[index][0], default=0)
        print(f"one click on a tile: {by_click(learner, photos[clicked], scenes[clicked][1]):.2f}")


def by_click(learner: Learner, photo: bytes, truth: np.ndarray) -> float:
    """IoU of the tiles by one click on one of them."""
    shown = read_shown({"result": [click(truth)]}, LABELS)
    assert shown is not None
    found = learner.segment_shown(shown_support(read_image(photo, "photo"), shown), shown.label)
    return iou(2 * found.mask, truth, names=(2,))


def png(image: np.ndarray) -> bytes:
    """The PNG file of an image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
