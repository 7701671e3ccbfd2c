"""Arguments of the readers that are of another type, such as None: the error names the argument."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffup.errors import FormatError
from diffup.formats import (
    read_coco,
    read_cvat,
    read_fiftyone,
    read_huggingface,
    read_label_studio,
    read_labelme,
    read_mask_folder,
    read_supports,
    read_torchvision,
    recognise_format,
)

PATH = "a.json"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_coco(None, ".", "dog"), "path: expected a path, got None"),
        (lambda: read_coco(PATH, None, "dog"), "images: expected a path, got None"),
        (lambda: read_cvat(3, "dog"), "path: expected a path, got 3"),
        (lambda: read_cvat(PATH, "dog", images=3), "images: expected a path, got 3"),
        (lambda: read_label_studio(None, "dog"), "path: expected a path, got None"),
        (lambda: read_label_studio(PATH, "dog", images=["."]), "images: expected a path, got \\["),
        (lambda: read_labelme(None, "dog"), "paths: expected a path or a list of paths, got None"),
        (lambda: read_labelme([PATH, None], "dog"), r"paths\[1\]: expected a path, got None"),
        (lambda: read_labelme(PATH, "dog", images=3), "images: expected a path, got 3"),
        (lambda: read_labelme(PATH, "dog", shape_types="polygon"), "shape_types: expected a list of polygon"),
        (lambda: read_labelme(PATH, "dog", shape_types=3), "shape_types: expected a list of polygon"),
        (lambda: read_mask_folder(None, "."), "images: expected a path, got None"),
        (lambda: read_mask_folder(".", None), "masks: expected a path, got None"),
        (lambda: read_mask_folder(".", ".", label="dog"), "label='dog': the classes of index masks are numbers"),
        (lambda: read_supports(None, "dog"), "paths: expected a path or a list of paths, got None"),
        (lambda: read_supports([None], "dog"), r"paths\[0\]: expected a path, got None"),
        (lambda: recognise_format(None), "path: expected a path, got None"),
        (lambda: read_fiftyone(None, "dog"), "samples: expected samples of FiftyOne, .*, got None"),
        (lambda: read_fiftyone([], "dog", images=None), "images: expected a path, got None"),
        (lambda: read_fiftyone([], "dog", mask_targets=["dog"]), "mask_targets: expected names by pixel value"),
        (lambda: read_huggingface(None), "rows: expected a data set of Hugging Face, .*, got None"),
        (lambda: read_huggingface(3), "rows: expected a data set of Hugging Face, .*, got 3"),
        (lambda: read_huggingface([], images=None), "images: expected a path, got None"),
        (lambda: read_torchvision(None, 1), "dataset: expected a data set of torchvision, .*, got None"),
        (lambda: read_torchvision(iter(()), 1), "dataset: expected a data set of torchvision"),
        (lambda: read_torchvision([], 1, shots="3"), "shots: expected at least 1 or None for all, got '3'"),
        (lambda: read_huggingface([], shots=1.5), "shots: expected at least 1 or None for all, got 1.5"),
    ],
)
def test_arguments_of_another_type_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(PATH).write_text(json.dumps({}))
    with pytest.raises(FormatError, match=message):
        call()
