"""Finding the image of a task: in the task itself, below folders that the user named, or at the user's Label Studio."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from diffup.errors import ConfigError, ImageError
from diffup.formats.fields import decode_base64
from diffup.inputs.images import upright_size
from diffup.serve.host import LabelStudioHost
from diffup.serve.shots import Photo
from diffup.utils.serving import MAX_PIXELS

_LOCAL = "/data/local-files/"
_UPLOAD = re.compile(r"/data/(upload/[0-9]+/[^/]+)")
_SHOWN = 120  # characters of a recorded path that an error shows


class Photos:
    """Finds images by what a task says, and nothing else.

    Args:
        folders: folders below which files may be read.
        host: the Label Studio that files may be fetched from; None for none.
        max_upload: maximum size of a file, in MiB.

    Raises:
        ConfigError: a folder does not exist.
    """

    def __init__(self, folders: Sequence[Path], host: LabelStudioHost | None = None, max_upload: int = 20) -> None:
        missing = next((folder for folder in folders if not folder.is_dir()), None)
        if missing is not None:
            raise ConfigError(f"files: there is no folder {str(missing)!r}")
        self._folders = [folder.resolve() for folder in folders]
        self._host = host
        self._most = max_upload * 2**20

    def find(self, recorded: str) -> Photo:
        """Read the file of a task's image, whose size in bytes and pixels is checked before it is decoded.

        Args:
            recorded: what the task says: a data URL, the path of an upload (`/data/upload/1/0123abcd-dog.jpg`) or of a
                local file (`/data/local-files/?d=dogs/1.jpg`), which may have the Label Studio's address before it, or
                a path below the folders.

        Raises:
            ImageError: there is no such file, it may not be read, or it is no image or too large.
        """
        if recorded.startswith("data:"):
            photo = Photo(self._checked_size(decode_base64(recorded, "image")), "image")
        else:
            text = recorded if self._host is None else self._host.relative(recorded)
            photo = self._local(_below(text)) or self._fetched(text)
        upright_size(photo.content, f"image {_shown(photo.name)}", MAX_PIXELS)
        return photo

    def _local(self, relative: str) -> Photo | None:
        """The file below the folders; None if there is none."""
        for folder in self._folders if relative else ():
            try:  # links are followed first, so that none leads out
                path = (folder / relative).resolve(strict=True)
            except (OSError, ValueError, RuntimeError):
                continue
            if path.is_relative_to(folder) and path.is_file():
                return Photo(self._read(path), path.name)
        return None

    def _fetched(self, text: str) -> Photo:
        """The file from Label Studio."""
        path = _split(text)[0]
        served = path == _LOCAL or _UPLOAD.fullmatch(path) is not None
        if self._host is None or not served or ".." in unquote(text):
            raise ImageError(f"image: {_shown(text)}: {self._reason(text, served)}")
        content = self._checked_size(self._host.get(text, self._most))
        return Photo(content, (_below(text) or path).rpartition("/")[2])

    def _reason(self, text: str, served: bool) -> str:
        """Why an image cannot be found."""
        if "://" in text:
            return "URLs are not fetched, but for uploads and local files of the host that --label-studio names"
        folders = "below the folders of --files" if self._folders else "and no folder is named with --files"
        remedy = "; or name your Label Studio with --label-studio" if served and self._host is None else ""
        return f"there is no such file {folders}{remedy}"

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                return self._checked_size(file.read(self._most + 1))
        except OSError as error:
            raise ImageError(f"image: {path.name!r} cannot be read ({error.strerror})") from error

    def _checked_size(self, content: bytes) -> bytes:
        if len(content) > self._most:
            raise ImageError(f"image: the file has more than {self._most // 2**20} MiB (--max-upload); shrink it")
        return content


def _split(text: str) -> tuple[str, str]:
    path, _, query = text.partition("?")
    return path, query


def _below(text: str) -> str:
    """The path below a folder that a task means; empty if it means none."""
    path, query = _split(text)
    if path == _LOCAL:
        fields = dict(part.partition("=")[::2] for part in query.split("&"))
        return unquote(fields.get("d", ""))
    upload = _UPLOAD.fullmatch(path)
    if upload is not None:
        return unquote(upload[1])
    return "" if "://" in text else text


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
