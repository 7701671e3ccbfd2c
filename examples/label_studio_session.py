r"""A session in Label Studio with `diffup serve` behind it: annotate one photo, correct some, watch the others improve.

Start Label Studio, here in an environment of its own, and let it reach a backend on this machine:

    python -m venv studio && studio/bin/pip install label-studio
    ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false studio/bin/label-studio start --no-browser \
        --internal-host 127.0.0.1 --port 8080 --username me@example.com --password a-long-password

and then, where diffup is installed (`pip install ".[examples,serve]"` in a checkout),

    python examples/label_studio_session.py http://127.0.0.1:8080 me@example.com a-long-password

It makes ten photos with coins, tiles and grass on them, whose true masks are known, starts `diffup serve`, makes a
project, and does through Label Studio's interface for programs what a person does in the browser. The project stays.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, Request, build_opener

import numpy as np
from PIL import Image
from skimage import data, measure, morphology

from diffup.formats import label_studio_prediction
from diffup.formats.brush import decode_brush

SIZE = (384, 512)
LABELS = ("coin", "tile", "grass")
HELD_OUT = range(5, 10)
CONFIG = """<View><Image name="image" value="$image" zoom="true"/>
<BrushLabels name="brush" toName="image"><Label value="coin" background="#1a9850"/>
<Label value="tile" background="#d73027"/><Label value="grass" background="#4575b4"/></BrushLabels>
<KeyPointLabels name="click" toName="image" smart="true" smartOnly="true">
<Label value="coin"/><Label value="tile"/><Label value="grass"/></KeyPointLabels></View>"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of Label Studio")
    parser.add_argument("username")
    parser.add_argument("password")
    parser.add_argument("--corrections", type=int, default=4, help="photos to correct after the first, 4 or fewer")
    args = parser.parse_args(argv)
    scenes = [scene(seed) for seed in range(10)]
    studio = Studio(args.url)
    studio.log_in(args.username, args.password)
    with access_token(studio) as key, backend(args.url, key) as address:
        project = studio.call("POST", "/api/projects", {"title": "Coins", "label_config": CONFIG})["id"]
        model = {"project": project, "url": address, "title": "diffup", "is_interactive": True}
        connection = studio.call("POST", "/api/ml", model)["id"]
        tasks = [studio.upload(project, f"{index}.png", image) for index, (image, _) in enumerate(scenes)]
        print(f"{args.url}/projects/{project}/data\n")
        clicked(studio, connection, tasks[HELD_OUT[0]], scenes[HELD_OUT[0]][1])
        annotated: list[int] = []
        while True:
            retrieve_predictions(studio, project)
            scores = {}
            for index in (index for index in range(10) if index not in annotated):
                found, version = predicted(studio, tasks[index])
                scores[index] = iou(found, scenes[index][1])
            mean = np.mean([scores[index] for index in HELD_OUT])
            shown = " ".join(f"{scores[index]:.2f}" for index in HELD_OUT)
            print(f"{version:<24} IoU of photos 5 to 9: {shown}  mean {mean:.3f}", flush=True)
            if len(annotated) > args.corrections:
                break
            worst = min((index for index in scores if index not in HELD_OUT), key=lambda index: scores[index])
            before = model_version(studio, project)
            studio.call("POST", f"/api/tasks/{tasks[worst]}/annotations", annotation(scenes[worst][1]))
            annotated.append(worst)
            while model_version(studio, project) == before:  # Label Studio does not wait for more than a second
                time.sleep(0.5)
        clicked(studio, connection, tasks[HELD_OUT[0]], scenes[HELD_OUT[0]][1])


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two coins, two tiles and two discs of grass, turned, enlarged and tinted, on a photo.

    Returns:
        (H, W, 3) uint8, and the true labels, (H, W) with 1, 2, ... for `LABELS`.
    """
    rng = np.random.default_rng(seed)
    grounds = [data.coffee(), data.chelsea(), data.rocket(), data.brick(), data.gravel(), data.astronaut()]
    ground = Image.fromarray(grounds[seed % len(grounds)]).convert("RGB").resize(SIZE[::-1])
    canvas, labels = np.asarray(ground).copy(), np.zeros(SIZE, np.uint8)
    corners = [(top, left) for top in (10, 200) for left in (10, 180, 350)]
    rng.shuffle(corners)
    for index, (top, left) in enumerate(corners):
        patch = (coins()[rng.integers(len(coins()))], data.brick()[:56, :56], data.grass()[:56, :56])[index % 3]
        side = int(rng.integers(90, 150))
        turned = Image.fromarray(patch).rotate(int(rng.integers(360))).resize((side, side))
        tint = rng.uniform(0.7, 1.0, 3)
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        disc = y**2 + x**2 < (0.44 * side) ** 2
        where = (slice(top, top + side), slice(left, left + side))
        canvas[where][disc] = (np.asarray(turned)[..., None] * tint)[disc].astype(np.uint8)
        labels[where][disc] = index % 3 + 1
    return canvas, labels


@functools.cache
def coins() -> list[np.ndarray]:
    """Square pieces of scikit-image's photo of coins, with a coin in each."""
    photo = data.coins()
    parts = measure.regionprops(measure.label(morphology.closing(photo > 110, morphology.disk(3))))
    boxes = [part.bbox for part in parts if 1200 < part.area < 3500 and part.bbox[0] > 0]
    centres = [((top + bottom) // 2, (left + right) // 2, (bottom - top) // 2) for top, left, bottom, right in boxes]
    return [photo[y - half : y + half, x - half : x + half] for y, x, half in centres]


@contextmanager
def access_token(studio: Studio) -> Iterator[str]:
    """Make a personal access token, of which an account has one at a time, and withdraw it at the end."""
    token = studio.call("POST", "/api/token")["token"]
    try:
        yield token
    finally:
        studio.call("POST", "/api/token/blacklist", {"refresh": token})


@contextmanager
def backend(studio: str, key: str) -> Iterator[str]:
    """Run `diffup serve`; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "key.txt").write_text(key)
        options = ["--port", "0", "--label-studio", studio, "--api-key-file", f"{folder}/key.txt"]
        options += ["--min-presence", "0"]  # every photo shows every class
        command = [sys.executable, "-m", "diffup", "serve", f"{folder}/shots", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                line = next((line for line in process.stdout if "http://" in line), "")
                if not line:
                    raise SystemExit("diffup serve has not started")
                yield line.partition("connect the labelling tool to ")[2].partition(";")[0]
            finally:
                process.terminate()


def clicked(studio: Studio, connection: int, task: int, truth: np.ndarray) -> None:
    """Print the IoU of the mask that one click on a tile with the smart tool gives."""
    request = {"task": task, "context": {"result": [click(truth)]}}
    found = studio.call("POST", f"/api/ml/{connection}/interactive-annotating", request)["data"]
    overlap = iou(masks_of(found), truth, names=(2,))
    print(f"{found['model_version']:<24} IoU of the tiles of photo 5 by one click on one of them: {overlap:.2f}")


def click(truth: np.ndarray) -> dict[str, Any]:
    """What the browser sends of a click on a tile."""
    tile = truth == 2
    y, x = np.argwhere(tile)[tile.sum() // 4]
    value = {"x": 100 * x / SIZE[1], "y": 100 * y / SIZE[0], "width": 0.5, "keypointlabels": ["tile"]}
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"type": "keypointlabels", "is_positive": True, "value": value, **size}


def model_version(studio: Studio, project: int) -> str:
    """The version that the settings of the project show."""
    return str(studio.call("GET", f"/api/ml?project={project}")[0]["model_version"])


def retrieve_predictions(studio: Studio, project: int) -> None:
    """What the browser sends when a person selects all tasks and chooses Actions, Retrieve Predictions."""
    action = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
    studio.call("POST", action, {"selectedItems": {"all": True, "excluded": []}})


def predicted(studio: Studio, task: int) -> tuple[np.ndarray, str]:
    """The labels of a task's newest prediction, and the version of the model."""
    predictions = studio.call("GET", f"/api/tasks/{task}")["predictions"]
    newest = max(predictions, key=lambda prediction: prediction["id"], default={"result": [], "model_version": "none"})
    return masks_of(newest), newest["model_version"]


def masks_of(prediction: dict[str, Any]) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    for region in prediction["result"]:
        value = region["value"]
        labels[decode_brush(value["rle"], SIZE)] = LABELS.index(value["brushlabels"][0]) + 1
    return labels


def annotation(labels: np.ndarray) -> dict[str, Any]:
    """What the browser sends when a person presses Submit."""
    return {"result": label_studio_prediction(labels, LABELS, from_name="brush")["result"], "lead_time": 10.0}


def iou(labels: np.ndarray, truth: np.ndarray, names: Sequence[int] = (1, 2, 3)) -> float:
    """Mean IoU over the classes."""
    pairs = [(labels == name, truth == name) for name in names]
    return float(np.mean([(found & true).sum() / (found | true).sum() for found, true in pairs]))


class Studio:
    """Label Studio, as the browser of somebody who has logged in asks it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cookies = CookieJar()
        self.opener = build_opener(HTTPCookieProcessor(self.cookies))

    def log_in(self, username: str, password: str) -> None:
        """Log in as the page does."""
        self._ask("GET", "/user/login/")
        form = {"email": username, "password": password, "csrfmiddlewaretoken": self._csrf()}
        self._ask("POST", "/user/login/", urlencode(form).encode(), "application/x-www-form-urlencoded")

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the interface for programs; returns the content of the answer."""
        answer = self._ask(method, path, json.dumps(body or {}).encode() if method != "GET" else None)
        return json.loads(answer) if answer else None

    def upload(self, project: int, name: str, image: np.ndarray) -> int:
        """Upload a photo; returns the id of its task."""
        stream, line = io.BytesIO(), uuid.uuid4().hex
        Image.fromarray(image).save(stream, format="PNG")
        head = f'--{line}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n'
        body = f"{head}Content-Type: image/png\r\n\r\n".encode() + stream.getvalue() + f"\r\n--{line}--\r\n".encode()
        form = f"multipart/form-data; boundary={line}"
        answer = json.loads(self._ask("POST", f"/api/projects/{project}/import?return_task_ids=true", body, form))
        return int(answer["task_ids"][0])

    def _ask(self, method: str, path: str, body: bytes | None = None, form: str = "application/json") -> bytes:
        headers = {"X-CSRFToken": self._csrf(), "Referer": self.url, "Content-Type": form}
        with self.opener.open(Request(self.url + path, body, headers, method=method), timeout=120) as answer:
            content: bytes = answer.read()
        return content

    def _csrf(self) -> str:
        return next((cookie.value or "" for cookie in self.cookies if cookie.name == "csrftoken"), "")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
