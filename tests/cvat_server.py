"""The part of CVAT's server that auto-annotation asks: one task with photos and labels. It keeps what is uploaded."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cvat_sdk.version
import numpy as np
from PIL import Image

TASK = 5
TIME = "2026-11-30T10:00:00Z"


@dataclass
class Task:
    """A task, and what was uploaded to it.

    Args:
        images: its photos, (H, W, 3) uint8 each.
        labels: names of its labels; their ids are 101, 102, ...
        kind: type of its labels.
    """

    images: Sequence[np.ndarray]
    labels: Sequence[str]
    kind: str = "any"
    uploaded: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        if path == "/api/server/about":
            return dict.fromkeys(("name", "description", "logo_url", "subtitle"), "") | {
                "version": cvat_sdk.version.VERSION
            }
        if path == f"/api/tasks/{TASK}":
            summary = {"url": f"http://localhost/api/labels?task_id={TASK}"}
            return {
                "id": TASK,
                "name": "photos",
                "organization": None,
                "size": len(self.images),
                "data_chunk_size": 2,
                "data_original_chunk_type": "imageset",
                "updated_date": TIME,
                "labels": summary,
                "jobs": {"count": 1, "completed": 0, "validation": 0, **summary},
            }
        if path == "/api/labels":
            labels = [
                {"id": 101 + index, "name": name, "type": self.kind, "attributes": [], "sublabels": []}
                for index, name in enumerate(self.labels)
            ]
            return {"count": len(labels), "next": None, "previous": None, "results": labels}
        if path == f"/api/tasks/{TASK}/data/meta":
            frames = [
                {"name": f"{index}.png", "width": image.shape[1], "height": image.shape[0], "related_files": 0}
                for index, image in enumerate(self.images)
            ]
            return {"chunks_updated_date": TIME, "frames": frames, "deleted_frames": [], "chunk_size": 2}
        if path == f"/api/tasks/{TASK}/data/" and query["type"] == ["chunk"] and query["quality"] == ["original"]:
            return self.chunk(int(query["number"][0]))
        return None

    def chunk(self, number: int) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for index, image in enumerate(self.images[2 * number : 2 * number + 2]):
                stored = io.BytesIO()
                Image.fromarray(image).save(stored, format="PNG")
                archive.writestr(f"{index:06d}.png", stored.getvalue())
        return content.getvalue()


@contextmanager
def serve(task: Task) -> Iterator[str]:
    """Its address on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            self.respond(task.answer(url.path, parse_qs(url.query)))

        def do_PATCH(self) -> None:
            assert self.path == f"/api/tasks/{TASK}/annotations/?action=create", self.path
            task.uploaded.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.respond({"version": 1, "tags": [], "shapes": [], "tracks": []})

        def respond(self, content: Any) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(404 if content is None else 200)
            kind = "application/zip" if isinstance(content, bytes) else "application/vnd.cvat+json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
