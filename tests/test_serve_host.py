"""Fetching images from the Label Studio that the user named, and from nowhere else."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from labelling import encoded, scene

from diffup.errors import ConfigError, ImageError
from diffup.serve.host import LabelStudioHost
from diffup.serve.photos import Photos


class Studio(http.server.BaseHTTPRequestHandler):
    """A Label Studio that serves one photo to those who have exchanged a personal access token, and redirects."""

    photo = b""
    seen: tuple[tuple[str, str], ...] = ()

    def do_GET(self) -> None:
        Studio.seen += ((self.path, self.headers.get("Authorization", "")),)
        if self.path.startswith("/data/upload/1/elsewhere"):
            self.answer(302, b"", {"Location": f"http://127.0.0.1:{self.server.server_address[1]}/data/upload/1/a.png"})
        elif self.headers.get("Authorization") in ("Bearer short-lived", "Token legacy"):
            self.answer(200, b"x" * 2**21 if "large" in self.path else self.photo)
        else:
            self.answer(401, b"")

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.path == "/api/token/refresh" and content == {"refresh": "a.b.c"}
        self.answer(200, b'{"access": "short-lived"}') if known else self.answer(401, b"{}")

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def studio() -> Iterator[str]:
    Studio.photo, Studio.seen = base64.b64decode(encoded(scene(0)[0])), ()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Studio) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("key", ["a.b.c", "legacy"])
def test_uploads_are_fetched_from_the_named_host(studio: str, key: str) -> None:
    photos = Photos([], LabelStudioHost(studio + "/", key), max_upload=1)
    for recorded in ("/data/upload/1/0a-b.png", f"{studio}/data/upload/1/0a-b.png", "/data/local-files/?d=x/b.png"):
        found = photos.find(recorded)
        assert found.content == Studio.photo and found.name.endswith("b.png")
    assert len(Studio.seen) == 3


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ("http://127.0.0.1:1/data/upload/1/a.png", "URLs are not fetched"),
        ("{studio}.evil.example/data/upload/1/a.png", "URLs are not fetched"),
        ("{studio}@evil.example/data/upload/1/a.png", "URLs are not fetched"),
        ("{studio}/api/projects", "there is no such file"),
        ("/data/upload/1/../../api/projects", "there is no such file"),
        ("/data/upload/1/%2e%2e", "there is no such file"),
        ("/data/upload/1/elsewhere.png", "answers 302"),
        ("/data/upload/1/large.png", "more than 1 MiB"),
        ("/data/upload/1/a b\r\nX: y", "cannot be reached"),
    ],
)
def test_nothing_else_is_fetched(studio: str, recorded: str, message: str) -> None:
    photos = Photos([], LabelStudioHost(studio, "a.b.c"), max_upload=1)
    with pytest.raises(ImageError, match=message):
        photos.find(recorded.format(studio=studio))
    assert {path.split("?")[0].rpartition("/")[0] for path, _ in Studio.seen} <= {"/data/upload/1"}


def test_keys_that_label_studio_refuses(studio: str) -> None:
    for key in (None, "wrong", "d.e.f"):
        with pytest.raises(ImageError, match=r"answers 401 .*--api-key-file"):
            Photos([], LabelStudioHost(studio, key)).find("/data/upload/1/a.png")


def test_a_label_studio_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ImageError, match="cannot be reached"):
        Photos([], LabelStudioHost(f"http://127.0.0.1:{port}")).find("/data/upload/1/a.png")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", "http://me@host", "http://host/?a=b"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="give its address"):
        LabelStudioHost(url)
