"""Files that are named by URL: object stores and other file systems, through fsspec.

Only what a user names is fetched. What turns a text into a file therefore refuses URLs unless it calls `read_url`, and
nothing that reads files or requests of others does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffup.errors import MissingPackageError, StorageError

MAX_BYTES = 2**29
"""Most bytes of a file that is read from a URL: those of 2^26 pixels with four channels of 16 bits, uncompressed."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(::[A-Za-z0-9+.-]+)*://")  # a single letter is a drive of Windows
_PATH_OF_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^\s/:@]*):(?!\d*/)[^\s@]*@(?:[^\s/@]*@)*")  # digits: a port
_LOCAL = ("file", "local")
_WEB = ("http", "https")
_VERSION = (
    *("size", "ETag", "etag", "md5Hash", "content_md5", "generation", "blob_id", "sha"),
    *("LastModified", "last_modified", "updated", "modificationTime", "modify", "mtime", "created"),
)
"""What file systems call that by which a file's versions differ."""


def is_url(place: object) -> bool:
    """Whether a value is a text that begins like a URL, such as "s3://"."""
    return isinstance(place, str) and _URL.match(place) is not None


def is_web(url: str) -> bool:
    """Whether a URL is a web address (http, https), which is not fetched."""
    return url.partition(":")[0] in _WEB


def was_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path was a URL before `pathlib` made one slash of two, such as "s3:/bucket"."""
    return _PATH_OF_URL.match(os.fspath(path)) is not None


def as_url(path: str | os.PathLike[str]) -> str:
    """The URL that a path was, with the slashes that `pathlib` dropped: "s3://bucket" for "s3:/bucket"."""
    protocol, _, rest = os.fspath(path).partition(":")
    slashes = "//" if protocol in _LOCAL else "/"
    return f"{protocol}:{slashes}/{rest.lstrip('/')}"


def without_password(text: str) -> str:
    """Replace the passwords of all URLs in a text, such as "ftp://user:password@host", by asterisks.

    Args:
        text: a URL, or a message that may hold some.
    """
    return _PASSWORD.sub(r"\1:***@", text)


def located(place: str | os.PathLike[str]) -> Path | RemoteFolder:
    """Return the local path that a path or a URL `file://` names, or the remote folder that another URL names.

    Args:
        place: path or URL of a folder.

    Raises:
        StorageError: the URL is a web address, a chain of file systems or of an unknown protocol, or a `Path`; or the
            file system cannot be reached.
        MissingPackageError: the package of the file system is not installed.
    """
    if not isinstance(place, str) or not is_url(place):
        if was_url(place) and not Path(place).exists():
            raise StorageError(
                f"{without_password(os.fspath(place))} was a URL before it became a Path, which makes one slash of "
                "two; give the URL as text"
            )
        return Path(place)
    system, root = _opened(place)
    if system is None:
        return Path(root)
    url = place.rstrip("/")
    return RemoteFolder(f"{url}/" if url.endswith(":") else url, system, root.rstrip("/"))


def local_path(url: str) -> Path | None:
    """Return the path that a URL `file://` names; None for any other URL.

    Args:
        url: the URL.
    """
    if url.partition(":")[0] not in _LOCAL or "::" in url:
        return None
    return Path(_opened(url)[1])


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield a local copy of a file that the user has named by its URL; the file itself for `file://`.

    Args:
        url: URL of the file.

    Raises:
        StorageError: the file cannot be read (`read_url`).
        MissingPackageError: the package of the file system is not installed.
    """
    local = local_path(url)
    if local is not None:
        yield local
        return
    content = read_url(url)
    with tempfile.TemporaryDirectory(prefix="diffup-") as folder:
        copy = Path(folder, "copy")
        copy.write_bytes(content)
        yield copy


def read_url(url: str, most: int = MAX_BYTES) -> bytes:
    """Read a file that the user has named by its URL.

    Args:
        url: URL of the file.
        most: most bytes of the file; a larger one is refused before it is read, or as soon as its size is known.

    Raises:
        StorageError: there is no such file, it cannot be read or is larger, or the URL is refused (`located`).
        MissingPackageError: the package of the file system is not installed.
    """
    system, path = _opened(url)
    shown = without_password(url)
    content: bytes | None
    try:
        with system.open(path, "rb") if system is not None else Path(path).open("rb") as file:
            size = getattr(file, "size", None)
            content = file.read(most + 1) if size is None or size <= most else None
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {shown!r}; check the URL") from error
    except Exception as error:  # every file system has errors of its own
        raise StorageError(f"{shown!r} cannot be read ({_reason(error)})") from error
    if content is None or len(content) > most:
        raise StorageError(f"{shown!r} has more than {most} bytes, the most that are read from a URL")
    return bytes(content)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of an object store or of another file system that is not local. Files are named relative to it.

    Attributes:
        url: URL of the folder, without a slash at the end.
        system: fsspec's file system.
        root: path of the folder in the file system.
    """

    url: str
    system: Any
    root: str

    def url_of(self, name: str) -> str:
        """URL of a file, to read it by."""
        return f"{self.url}/{name}"

    def shown(self, name: str = "") -> str:
        """URL of a file, or of the folder itself, without a password: for messages and for files."""
        return without_password(self.url_of(name) if name else self.url)

    def versions(self, below: str = "") -> dict[str, str]:
        """List all files below the folder, with a text for each that changes when the file is written anew.

        Empty objects that stand for folders, whose names end with a slash, are left out.

        Args:
            below: name of the subfolder to list; by default all of the folder.

        Raises:
            StorageError: the folder cannot be listed.
        """
        try:
            self.system.invalidate_cache()
            found = self.system.find(self._path(below) if below else self.root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # as above
            raise StorageError(f"{self.shown()} cannot be listed ({_reason(error)})") from error
        start = f"{self.root}/"
        return {
            path[len(start) :]: _version(facts)
            for path, facts in found.items()
            if path.startswith(start) and not path.endswith("/")
        }

    def read(self, name: str) -> bytes | None:
        """Read a file; None if there is none.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            return bytes(self.system.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # as above
            raise StorageError(f"{self.shown(name)} cannot be read ({_reason(error)})") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file. In an object store it is there as a whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        self._pipe(name, content, "overwrite")

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; return whether it was written.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self._pipe(name, content, "create")
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        return True

    def remove(self, name: str) -> None:
        """Remove a file, if there is one.

        Raises:
            StorageError: it cannot be removed.
        """
        try:
            self.system.rm_file(self._path(name))
        except FileNotFoundError:
            return
        except Exception as error:  # as above
            raise StorageError(f"{self.shown(name)} cannot be removed ({_reason(error)})") from error

    def holds(self, other: RemoteFolder) -> bool:
        """Whether another folder is this one or lies within it."""
        return self.system == other.system and f"{other.root}/".startswith(f"{self.root}/")

    def path_to(self, name: str, other: RemoteFolder, other_name: str) -> str:
        """Path of a file of another folder as seen from the folder of a file of this one; its URL if that is elsewhere.

        Args:
            name: name of the file of this folder.
            other: the other folder.
            other_name: name of the file in it.
        """
        if self.system != other.system:
            return other.shown(other_name)
        return posixpath.relpath(other._path(other_name), posixpath.dirname(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _pipe(self, name: str, content: bytes, mode: str) -> None:
        path = self._path(name)
        try:
            try:
                self.system.pipe_file(path, content, mode=mode)
            except FileNotFoundError:  # unlike object stores, SFTP, FTP and SMB need the folder first
                self.system.makedirs(posixpath.dirname(path), exist_ok=True)
                self.system.pipe_file(path, content, mode=mode)
        except Exception as error:  # as above
            raise StorageError(f"{self.shown(name)} cannot be written ({_reason(error)})") from error


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it; None and a local path for `file://`."""
    import fsspec

    match, shown = _URL.match(url), without_password(url)
    protocol = url.partition(":")[0]
    if match is None or "::" in url:
        raise StorageError(
            f"{shown!r}: chains of file systems (::) are not opened; copy the file, and give its own URL"
        )
    if is_web(url):
        raise StorageError(f"{shown!r}: web addresses are not fetched; download the file, and give its path")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # whose message is fsspec's own, and names the package
        raise MissingPackageError(f"{shown!r} needs a package that is not installed. {error}") from error
    except Exception as error:  # an unknown protocol, no credentials, and whatever else a file system raises
        raise StorageError(f"{shown!r} cannot be opened ({_reason(error)})") from error
    return (None, path) if protocol in _LOCAL else (system, path)


def _version(facts: dict[str, Any]) -> str:
    """Hash of what tells the versions of a file apart."""
    known = {name: facts[name] for name in _VERSION if facts.get(name) is not None}
    shown = known if known.keys() - {"size"} else facts
    return hashlib.blake2b(repr(sorted(shown.items())).encode(), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    return without_password(f"{type(error).__name__}: {error}") if str(error) else type(error).__name__
