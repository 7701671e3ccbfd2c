"""A Hugging Face hub on the loopback: the few calls that uploading and fetching a small repository take."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

Files = dict[str, bytes]


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    refuses: bool = False
    repositories: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name of a repository -> branch -> commit."""
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files (LFS), by their SHA-256."""
    asked: list[str] = field(default_factory=list)

    def files(self, repo: str, branch: str = "main") -> Files:
        return self.commits[self.repositories[repo][branch]]

    def commit(self, repo: str, branch: str, lines: list[dict]) -> str:
        files = dict(self.commits[self.repositories[repo][branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line["key"]
                files[value["path"]] = self.blobs[value["oid"]]
        return self.point(repo, branch, files)

    def point(self, repo: str, branch: str, files: Files) -> str:
        number = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[number] = files
        self.repositories[repo][branch] = number
        return number


class Handler(BaseHTTPRequestHandler):
    """Answers from `hub`, which a subclass holds."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def missing(self, what: str = "RepoNotFound") -> None:
        self.answer({"error": "not found"}, 404, X_Error_Code=what)

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if repo not in self.hub.repositories:
            return self.missing()
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.hub.repositories[repo].get(revision, revision)
        if commit not in self.hub.commits:
            return self.missing("RevisionNotFound")
        files = self.hub.commits[commit]
        if api and rest[:1] != ["tree"]:
            listed = [{"rfilename": name} for name in files]
            return self.answer({"id": repo, "modelId": repo, "sha": commit, "siblings": listed, "tags": []})
        if api:
            return self.answer([entry(name, content) for name, content in files.items()])
        name = "/".join(rest[2:])
        if rest[0] != "resolve" or name not in files:
            return self.missing("EntryNotFound")
        digest = hashlib.sha256(files[name]).hexdigest()
        return self.answer(files[name], X_Repo_Commit=commit, ETag=f'"{digest}"')

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        content = self.body()
        if self.hub.refuses:
            return self.answer({"error": "you may not write here"}, 403)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            actions = [self.lfs(item) for item in json.loads(content)["objects"]]
            return self.answer({"transfer": "basic", "objects": actions})
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(content))
        repo, verb, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if repo not in self.hub.repositories:
            return self.missing()
        if verb == "branch":
            main = self.hub.files(repo)
            known = branch in self.hub.repositories[repo]
            if not known:
                self.hub.point(repo, branch, main)
            return self.answer({}, 409 if known else 200)
        if verb == "preupload":
            files = [{"path": f["path"], "uploadMode": mode(f["path"])} for f in json.loads(content)["files"]]
            return self.answer({"files": [f | {"shouldIgnore": False} for f in files]})
        assert verb == "commit", verb
        number = self.hub.commit(repo, branch, [json.loads(line) for line in content.splitlines()])
        url = f"{self.hub.address}/{repo}/commit/{number}"
        return self.answer({"success": True, "commitOid": number, "commitUrl": url})

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def lfs(self, item: dict) -> dict:
        upload = {"href": f"{self.hub.address}/upload/{item['oid']}"}
        return {"oid": item["oid"], "size": item["size"], "actions": {"upload": upload}}

    def create(self, request: dict) -> None:
        repo = f"{request.get('organization') or 'me'}/{request['name']}"
        known = repo in self.hub.repositories
        if not known:
            self.hub.repositories[repo] = {}
            self.hub.private[repo] = bool(request.get("private")) or request.get("visibility") == "private"
            self.hub.point(repo, "main", {".gitattributes": b""})
        self.answer({"url": f"{self.hub.address}/{repo}"}, 409 if known else 200)


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def entry(name: str, content: bytes) -> dict:
    found = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if mode(name) == "lfs":
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a free port of 127.0.0.1, in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the hub in the place of the real one for the client of this process, with a cache of its own."""
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("ENDPOINT", hub.address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_CACHE", str(cache)),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),  # the storage service behind the real hub
    ):
        for module in (constants, file_download):  # older clients lack some, and have copies of others
            monkeypatch.setattr(module, name, value, raising=False)
