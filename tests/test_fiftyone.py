"""FiftyOne's model: with FiftyOne where it is installed, otherwise with a stand-in for the names that it uses."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fiftyone_standin
import numpy as np
import pytest
from fakes import shape_image, teach
from PIL import Image
from shots import pixels

from diffup import DiffUp, LabelMap, Prototypes
from diffup.errors import ConfigError, PrototypesError
from diffup.formats import read_fiftyone
from diffup.instances import SMALLEST

IMAGES = [shape_image((1, 2), size, seed)[0] for seed, size in enumerate([(80, 96), (60, 150), (72, 72)])]
NAMES = ("square", "disc")


@pytest.fixture(scope="module", autouse=True)
def integration() -> Iterator[ModuleType]:
    with fiftyone_standin.provided() as module:
        yield module


def of_fiftyone(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"fiftyone.core.{module}"), name)


def marker(*args: Any, **options: Any) -> Any:
    """A `DiffUpModel`."""
    return importlib.import_module("diffup.integrations.fiftyone").DiffUpModel(*args, **options)


@pytest.fixture(scope="module")
def expected(model: DiffUp, classes: list[Prototypes]) -> list[LabelMap]:
    return list(model.segment_many(IMAGES, classes, batch_size=3, min_presence=0.0))


def test_what_fiftyone_asks_of_a_model(model: DiffUp, classes: list[Prototypes]) -> None:
    made = marker(classes, model)
    assert isinstance(made, of_fiftyone("models", "Model")) and made.media_type == "image"
    assert not made.ragged_batches and not made.preprocess and made.transforms is None
    assert not hasattr(made.config, "confidence_thresh")  # FiftyOne compares it with the confidence itself
    made.preprocess = False
    with made as entered:
        assert entered is made


def whole(detection: Any, size: tuple[int, int]) -> np.ndarray:
    """The mask of a detection at the photo's size."""
    x, y, width, height = detection.bounding_box
    left, top = round(x * size[1]), round(y * size[0])
    right, bottom = round((x + width) * size[1]), round((y + height) * size[0])
    assert detection.mask.shape == (bottom - top, right - left) and detection.mask.dtype == bool
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = detection.mask
    return mask


@pytest.mark.parametrize("instances", [False, True])
def test_detections(model: DiffUp, classes: list[Prototypes], expected: list[LabelMap], instances: bool) -> None:
    found = marker(classes, model, instances=instances, min_presence=0.0).predict_all(IMAGES)
    count = 0
    for item, truth in zip(found, expected, strict=True):
        assert isinstance(item, of_fiftyone("labels", "Detections"))
        marked = list(truth.marked(instances=instances))
        assert [detection.label for detection in item.detections] == [truth.names[one.label - 1] for one in marked]
        for detection, one in zip(item.detections, marked, strict=True):
            np.testing.assert_array_equal(whole(detection, one.mask.shape), one.mask)
            assert detection.confidence == one.score
            assert detection["presence"] == truth.presence[detection.label]
            assert detection["quality"] == truth.quality[detection.label]
            count += 1
    assert count >= 4
    if instances:
        areas = [one.mask.mean() for truth in expected for one in truth.marked(instances=True)]
        assert min(areas) >= SMALLEST, "specks are no objects"


def test_one_photo_and_none(model: DiffUp, classes: list[Prototypes]) -> None:
    made = marker(classes[0], model, min_presence=0.0)
    (detection,) = made.predict(IMAGES[0]).detections
    alone = model.segment(IMAGES[0], classes[:1], min_presence=0.0)
    np.testing.assert_array_equal(whole(detection, IMAGES[0].shape[:2]), alone.labels == 1)
    assert made.predict_all([]) == []


def test_an_absent_class_is_not_marked(model: DiffUp, classes: list[Prototypes]) -> None:
    assert marker(classes, model, min_presence=1.0).predict(IMAGES[0]).detections == []
    empty = marker(classes, model, min_presence=1.0, output="segmentation").predict(IMAGES[0])
    assert empty.mask.shape == (80, 96) and not empty.mask.any()


def test_segmentations(model: DiffUp, classes: list[Prototypes], expected: list[LabelMap]) -> None:
    made = marker(classes, model, output="segmentation", min_presence=0.0)
    assert made.mask_targets == {1: "square", 2: "disc"}
    for item, truth in zip(made.predict_all(IMAGES), expected, strict=True):
        assert isinstance(item, of_fiftyone("labels", "Segmentation")) and item.mask.dtype == np.uint8
        np.testing.assert_array_equal(item.mask, truth.labels)


def test_what_is_marked_comes_back_as_supports(
    model: DiffUp, classes: list[Prototypes], expected: list[LabelMap], tmp_path: Path
) -> None:
    found = marker(classes, model, min_presence=0.0).predict(IMAGES[0])
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    detections = [
        {"label": item.label, "bounding_box": item.bounding_box, "mask": item.mask} for item in found.detections
    ]
    sample = {"filepath": str(tmp_path / "a.png"), "diffup": {"detections": detections}}
    for label, name in enumerate(("square", "disc"), start=1):
        shots = read_fiftyone(sample, name, "diffup")
        np.testing.assert_array_equal(pixels(shots.annotation[0]), expected[0].labels == label)


def test_files_and_the_model_of_the_package(tmp_path: Path, tiny_release: None, fake_encoders: None) -> None:
    made = teach(DiffUp.from_pretrained(), NAMES)
    paths = [item.save(tmp_path / f"{item.name}.safetensors") for item in made]
    assert marker(paths).mask_targets == {1: "square", 2: "disc"}
    assert marker(str(paths[1])).mask_targets == {1: "disc"}


def test_wrong_arguments(model: DiffUp, classes: list[Prototypes]) -> None:
    for given, options, error, match in [
        (classes, {"output": "masks"}, ConfigError, "output='masks': choose 'detections' or 'segmentation'"),
        (classes, {"output": "segmentation", "instances": True}, ConfigError, "a segmentation has no objects"),
        (classes, {"min_presence": 2}, ConfigError, "min_presence=2: it must be 0 to 1"),
        (classes, {"treshold": 0.5}, TypeError, "threshold"),
        ([], {}, PrototypesError, "an empty list"),
        ([classes[0]] * 2, {}, PrototypesError, "square"),
        ([3], {}, PrototypesError, "int"),
        ("gone.safetensors", {}, PrototypesError, "there is no file 'gone.safetensors'"),
    ]:
        with pytest.raises(error, match=match):
            marker(given, model, **options)


WITHOUT = """
import sys
sys.modules["fiftyone.core.models"] = sys.modules["fiftyone.core.labels"] = None
from diffup.integrations.fiftyone import DiffUpModel
DiffUpModel("dog.safetensors")
"""


def test_fiftyone_is_optional() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert 'MissingPackageError: a model for FiftyOne needs fiftyone: pip install "fiftyone>=' in done.stderr
