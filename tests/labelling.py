"""A labelling tool without the tool: photos, annotations as Label Studio sends them, and the server that answers."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from fakes import shape_image, tiny_model
from PIL import Image
from starlette.testclient import TestClient

from diffup import DiffUp, Prototypes
from diffup.decoder.options import SamplingOptions
from diffup.formats.brush import decode_brush, encode_brush
from diffup.serve.app import Guard
from diffup.serve.host import LabelStudioHost
from diffup.serve.learner import Learner
from diffup.serve.photos import Photos
from diffup.serve.shots import ShotFolder
from diffup.serve.tools import tools_app

CONFIG = """<View><Image name="photo" value="$image"/><BrushLabels name="tag" toName="photo">
<Label value="square"/><Label value="disc"/></BrushLabels></View>"""
ADDRESS = "http://127.0.0.1:9090"
SIZE = (80, 96)


@functools.cache
def small_model() -> DiffUp:
    """One random decoder for all tests."""
    return tiny_model()


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo with a square (1) and a disc (2), and its labels."""
    return shape_image((1, 2), SIZE, seed)


def save_scenes(folder: Path, count: int) -> None:
    """Write 0.png, 1.png, ..."""
    for seed in range(count):
        Image.fromarray(scene(seed)[0]).save(folder / f"{seed}.png")


def server(
    shots: Path,
    files: list[Path],
    *,
    model: DiffUp | None = None,
    known: list[Prototypes] | None = None,
    guard: Guard | None = None,
    host: LabelStudioHost | None = None,
) -> TestClient:
    """A client of a server that marks whatever it is asked for, unless a model is given."""
    options = SamplingOptions(min_presence=0.0) if model is None else None
    learner = Learner(small_model() if model is None else model, ShotFolder(shots), known or [], options)
    guard = Guard(max_upload=1) if guard is None else guard
    photos = Photos(files, host, guard.max_upload)
    return TestClient(tools_app(learner, photos, guard), base_url=ADDRESS, raise_server_exceptions=True)


def task(seed: int) -> dict[str, Any]:
    return {"id": seed + 100, "data": {"image": f"/data/local-files/?d={seed}.png"}, "project": 1}


def region(mask: np.ndarray, label: str) -> dict[str, Any]:
    return {
        "id": "r1",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "photo",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]},
    }


def saved(seed: int, label: str = "square", action: str = "ANNOTATION_CREATED", **changes: Any) -> dict[str, Any]:
    """What Label Studio says of an annotation of the photo's square or disc, whose id is the photo's number + 1."""
    mask = scene(seed)[1] == ("square", "disc").index(label) + 1
    annotation = {"id": seed + 1, "task": seed + 100, "result": [region(mask, label)], "was_cancelled": False}
    annotation |= {"updated_at": f"2026-11-30T10:00:{seed:02d}Z", "completed_by": 1}
    project = {"id": 1, "label_config": CONFIG}
    return {"action": action, "annotation": annotation | changes, "task": task(seed), "project": project}


def question(*seeds: int, context: Any = None) -> dict[str, Any]:
    """What Label Studio asks to have tasks marked."""
    params = {"login": None, "password": None, "context": context}
    return {"tasks": [task(seed) for seed in seeds], "project": "1.1", "label_config": CONFIG, "params": params}


def masks(prediction: dict[str, Any]) -> dict[str, np.ndarray]:
    """The masks of a prediction by label."""
    found = {}
    for item in prediction["result"]:
        assert (item["type"], item["from_name"], item["to_name"]) == ("brushlabels", "tag", "photo")
        size = (item["original_height"], item["original_width"])
        found[item["value"]["brushlabels"][0]] = decode_brush(item["value"]["rle"], size)
    return found


def encoded(image: np.ndarray, prefix: str = "") -> str:
    """A photo in base64."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return prefix + base64.b64encode(stream.getvalue()).decode()


def ask(client: TestClient, path: str, request: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def predictions(client: TestClient, *seeds: int, context: Any = None) -> list[dict[str, Any]]:
    return ask(client, "/predict", question(*seeds, context=context))["results"]


def version(client: TestClient) -> str:
    return ask(client, "/setup", {"project": "1.1", "schema": CONFIG})["model_version"]
