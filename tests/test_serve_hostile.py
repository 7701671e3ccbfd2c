"""What a server for labelling tools refuses, always with a clear error and never with a traceback."""

from __future__ import annotations

import base64
import json
import logging
import socket
import struct
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import teach
from labelling import ADDRESS, CONFIG, encoded, question, region, save_scenes, saved, scene, server, small_model
from PIL import Image
from starlette.testclient import TestClient

from diffup import cli
from diffup.errors import ConfigError, ImageError
from diffup.serve.app import Guard
from diffup.serve.photos import Photos
from diffup.serve.run import check_token, serve

pytestmark = pytest.mark.usefixtures("one_thread")

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, and beside it a secret and links to it."""
    place = tmp_path_factory.mktemp("place")
    (place / "photos" / "upload" / "1").mkdir(parents=True)
    save_scenes(place / "photos", 2)
    save_scenes(place / "photos" / "upload" / "1", 1)
    save_scenes(place, 1)
    (place / "photos" / "link.png").symlink_to(place / "0.png")
    (place / "photos" / "out").symlink_to(place)
    (place / "photos" / "text.png").write_text("no image")
    (place / "photos" / "bomb.png").write_bytes(bomb())
    (place / "photos" / "large.png").write_bytes((place / "0.png").read_bytes() + bytes(2**20))
    return place


@pytest.fixture(scope="module")
def client(place: Path) -> TestClient:
    return server(place / "shots", [place / "photos"], known=teach(small_model(), ["square"]))


def bomb() -> bytes:
    """A PNG file of 9000 x 9000 pixels in 100 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# Images


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ("/data/local-files/?d=../0.png", "there is no such file"),
        ("/data/local-files/?d=%2e%2e%2f0.png", "there is no such file"),
        ("/data/local-files/?d=link.png", "there is no such file"),
        ("/data/local-files/?d=out/0.png", "there is no such file"),
        ("/data/local-files/?d=/etc/passwd", "there is no such file"),
        ("/data/local-files/?d=", "there is no such file"),
        ("/data/local-files/?d=0.png%00", "there is no such file"),
        ("/data/local-files/?d=" + "a/" * 3000, "there is no such file"),
        ("/data/local-files/?d=text.png", "its format is unknown"),
        ("/data/local-files/?d=bomb.png", "more than the limit"),
        ("/data/local-files/?d=large.png", "more than 1 MiB"),
        ("/data/upload/1/../../0.png", "there is no such file"),
        ("/etc/passwd", "there is no such file"),
        ("../0.png", "there is no such file"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("http://169.254.169.254/latest/meta-data", "URLs are not fetched"),
        ("s3://bucket/0.png", "URLs are not fetched"),
        ("data:image/png;base64,####", "not base64"),
        ("data:image/png;base64," + base64.b64encode(bomb()).decode(), "more than the limit"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "its format is unknown"),
    ],
)
def test_images_that_are_not_read(client: TestClient, recorded: str, message: str) -> None:
    """The tool gets an empty prediction whose version says why; a webhook gets an error."""
    request = question(0)
    request["tasks"][0]["data"]["image"] = recorded
    answer = client.post("/predict", json=request)
    (found,) = answer.json()["results"]
    assert answer.status_code == 200 and found["result"] == [] and message in found["model_version"]
    news = saved(0)
    news["task"]["data"]["image"] = recorded
    refused = client.post("/webhook", json=news)
    assert refused.status_code == 400 and message in refused.json()["error"]


@pytest.mark.parametrize(
    "recorded",
    [
        "/data/local-files/?d=0.png",
        "/data/local-files/?d=out/photos/0.png",
        "/data/upload/1/0.png",  # below Label Studio's own folder of files
        "0.png",
        "out/../0.png",
    ],
)
def test_images_that_are_read(place: Path, recorded: str) -> None:
    """A link or .. that leads back below the folder is harmless."""
    photos = Photos([place / "photos"])
    if recorded == "out/../0.png":  # .. of the folder that the link leads to
        with pytest.raises(ImageError, match="no such file"):
            photos.find(recorded)
    else:
        assert photos.find(recorded).content == (place / "photos" / "0.png").read_bytes()


# Requests


def changed(**changes: Any) -> dict[str, Any]:
    return saved(0) | changes


NESTED = "[" * 100_000
BIG_RLE = region(np.ones((80, 96), bool), "square")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/predict", b"", "cannot be read as JSON"),
        ("/predict", b"{", "cannot be read as JSON"),
        ("/predict", b"\xff\xfe", "not UTF-8"),
        ("/predict", NESTED.encode(), "cannot be read as JSON"),
        ("/predict", b'{"tasks": 1' + b"0" * 5000 + b"}", "cannot be read as JSON"),
        ("/predict", b"[]", "expected a JSON object"),
        ("/predict", b"{}", "request.tasks: expected list"),
        ("/predict", {"tasks": [], "label_config": 7}, "request.label_config: expected str"),
        ("/predict", {"tasks": "all", "label_config": CONFIG}, "request.tasks: expected list"),
        ("/setup", {"schema": None}, "request.schema: expected str"),
        ("/webhook", {}, "request.action: expected str"),
        ("/webhook", {"action": ["ANNOTATION_CREATED"]}, "request.action: expected str"),
        ("/webhook", {"action": "ANNOTATION_CREATED"}, "request.project: expected dict"),
        ("/webhook", changed(annotation=[3]), "request.annotation: expected objects"),
        ("/webhook", changed(annotation={"id": "../../x", "result": [], "task": 100}), "expected a whole number"),
        ("/webhook", changed(annotation={"id": -1, "result": [], "task": 100}), "expected a whole number"),
        ("/webhook", changed(annotation={"id": True, "result": [], "task": 100}), "expected a whole number"),
        ("/webhook", changed(annotation={"id": 1, "result": {}, "task": 100}), "annotation.result: expected list"),
        ("/webhook", changed(annotation={"id": 1, "result": [], "task": [1]}), "annotation.task.id: expected"),
        ("/webhook", changed(annotation={"id": 1, "result": [], "task": 9}), "task: expected an object"),
        ("/webhook", saved(0, result=[3]), "annotation.result[0]: expected an object"),
        ("/webhook", saved(0, result=[region(np.ones((80, 96), bool), "a\nb")]), "no name of printable characters"),
        ("/webhook", saved(0, result=[region(np.ones((80, 96), bool), "x" * 201)]), "no name of printable characters"),
        ("/webhook", saved(0, result=[BIG_RLE | {"value": BIG_RLE["value"] | {"rle": [1, 2]}}]), "damaged"),
        ("/webhook", saved(0, result=[BIG_RLE | {"value": BIG_RLE["value"] | {"rle": [-1]}}]), "bytes from 0 to 255"),
        ("/webhook", saved(0, result=[BIG_RLE | {"original_width": 10**9}]), "the record says"),
        ("/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": "all"}, "request.annotations: expected"),
        ("/webhook", {"action": "TASKS_DELETED", "tasks": [{"id": None}]}, "task.id: expected a whole number"),
        ("/v1/predict", {"model": "diffup"}, "request.image: expected str"),
        ("/v1/predict", {"model": ["yolo"], "image": "x"}, "there is no model"),
        ("/v1/predict", {"model": "diffup", "image": "no image"}, "not base64"),
        ("/v1/predict", {"model": "diffup", "image": base64.b64encode(bomb()).decode()}, "more than the limit"),
        (
            "/v1/predict",
            {"model": "diffup", "image": encoded(scene(0)[0]), "params": {"conf_threshold": "high"}},
            "expected a number",
        ),
        (
            "/v1/predict",
            {"model": "diffup", "image": encoded(scene(0)[0]), "params": {"conf_threshold": 7}},
            "min_presence=7",
        ),
    ],
)
def test_requests_that_are_refused(client: TestClient, path: str, body: Any, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    found = answer.json()
    if path.startswith("/v1/"):  # whose contract answers 200
        assert answer.status_code == 200 and not found["success"]
        assert message in found["error"]["message"] and found["error"]["code"].isupper()
    else:
        assert answer.status_code == 400 and message in found["error"]


def test_regions_that_would_fill_the_memory(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffup.serve.shots._MOST_MASKS", 3 * 80 * 96)
    assert client.post("/webhook", json=saved(0, result=[BIG_RLE] * 3)).status_code == 200
    answer = client.post("/webhook", json=saved(0, result=[BIG_RLE] * 4))
    assert answer.status_code == 400 and "4 regions are too many" in answer.json()["error"]


def test_tasks_of_wrong_types_are_empty_predictions(client: TestClient) -> None:
    request = question(0) | {"tasks": [3, None, [], {"id": 1}, {"data": {"image": 5}}, {"data": {"image": ""}}]}
    for found in client.post("/predict", json=request).json()["results"]:
        assert found["result"] == [] and found["model_version"].startswith("not marked: ")


def test_bodies_that_are_too_large(client: TestClient) -> None:
    kind = {"content-type": "application/json"}
    assert client.post("/predict", content=b" " * (2**20 + 1), headers=kind).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(2**5):
            yield b" " * 2**16

    answer = client.post("/predict", content=parts(), headers=kind)  # without a length
    assert answer.status_code == 413 and "more than 1 MiB (--max-upload)" in answer.json()["error"]
    assert client.post("/predict", content=b"{}", headers=kind | {"content-length": "many"}).status_code == 413


def test_what_a_web_page_may_send_is_refused(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = client.post("/webhook", content=json.dumps(saved(0)), headers={"content-type": kind})
        assert answer.status_code == 400 and "application/json" in answer.json()["error"]
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9090", ""):
        answer = client.get("/health", headers={"host": host})
        assert answer.status_code == 403 and "is not this machine" in answer.json()["error"]
    for host in ("127.0.0.1:9090", "localhost", "[::1]:9090"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    assert "access-control-allow-origin" not in client.options("/webhook").headers


def test_other_paths_and_methods(client: TestClient) -> None:
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.get("/predict").json() == {"error": "Method Not Allowed"}
    assert client.post("/health").status_code == 405


def test_a_failure_of_the_server_is_told_in_its_terminal_alone(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("diffup.serve.label_studio.read_brush_tag", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR, "diffup.serve"):
        answer = client.post("/setup", json={"schema": CONFIG})
    assert answer.status_code == 500 and answer.json() == {"error": "the server has failed; its terminal tells why"}
    assert "ZeroDivisionError" in caplog.text


# The token


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"diffup:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": "Basic ####"}, 401),
        ({"authorization": basic("")}, 401),
        ({"authorization": basic("wrong")}, 401),
        ({"token": "wrong"}, 401),
        ({"authorization": b"Bearer \xff"}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": basic(TOKEN)}, 200),
        ({"token": TOKEN}, 200),
    ],
)
def test_tokens(tmp_path: Path, headers: dict[str, Any], status: int) -> None:
    client = server(tmp_path / "shots", [], guard=Guard(TOKEN, 1))
    assert client.get("/health", headers=headers).status_code == status
    assert client.post("/setup", json={"schema": CONFIG}, headers=headers).status_code == status
    assert client.get("/v1/models", headers=headers).json()["success"] == (status == 200)


def test_with_a_token_any_name_of_the_host_will_do(tmp_path: Path) -> None:
    client = server(tmp_path / "shots", [], guard=Guard(TOKEN, 1))
    assert client.get("/health", headers={"host": "labels.example", "token": TOKEN}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_no_server_that_others_reach_is_without_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="a token is needed"):
        check_token(host, None)
    with pytest.raises(ConfigError, match="16 or more"):
        check_token(host, "short")
    check_token(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_loopback_interface_needs_no_token(host: str) -> None:
    check_token(host, None)


# The command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `diffup serve` up to the point where it would load a model."""
    monkeypatch.setattr("diffup.commands.serve.load_model", lambda args: small_model())
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty.txt").write_text("\n")
    return lambda *options: cli.main(["serve", str(tmp_path / "shots"), *(o.format(here=tmp_path) for o in options)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "0.0.0.0", "--token-file", "{here}/short.txt"], "16 or more"),
        (["--token-file", "{here}/empty.txt"], "holds no token"),
        (["--token-file", "{here}/none.txt"], "--token-file: there is no file"),
        (["--files", "{here}/none"], "--files: there is no folder"),
        (["--port", "70000"], "port=70000"),
        (["--label-studio", "localhost:8080"], "give its address"),
        (["--api-key-file", "{here}/short.txt"], "--label-studio URL"),
    ],
)
def test_wrong_options(
    command: Callable[..., int], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*options) == 2
    assert message in capsys.readouterr().err


def test_the_command_serves(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(app: Any, host: str, port: int, ready: Callable[[str], object]) -> None:
        ready(f"http://{host}:{port}")
        assert TestClient(app, base_url=ADDRESS).get("/health").status_code == 200
        assert cli.main(["serve", str(tmp_path / "shots")]) == 2  # one server for a folder

    monkeypatch.setattr("diffup.serve.run.serve", answers)
    assert command("--port", "0") == 0
    captured = capsys.readouterr()
    assert "0 shots" in captured.out and "http://127.0.0.1:0" in captured.out
    assert "is being written to by diffup serve" in captured.err


SERVING = """
from diffup.serve.run import serve

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

try:
    serve(app, "127.0.0.1", 0, lambda address: print(address, flush=True))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_it_serves_until_it_is_terminated() -> None:
    """Termination is an interruption, so that the folder of shots is given free."""
    command = [sys.executable, "-c", SERVING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        address = process.stdout.readline().strip()
        assert urllib.request.urlopen(address).read() == b"here"
        process.terminate()
        assert process.communicate(timeout=60)[0] == "interrupted\n" and process.returncode == 0


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen there"):
        serve(None, "127.0.0.1", taken.getsockname()[1], print)


def test_links_out_of_the_folder_exist(place: Path) -> None:
    """What the tests above refuse is there, so that they cannot pass for another reason."""
    assert (place / "photos" / "link.png").resolve() == place / "0.png" and (
        place / "photos" / "out" / "0.png"
    ).is_file()
    with Image.open(place / "photos" / "link.png") as image:
        assert image.size == (96, 80)
