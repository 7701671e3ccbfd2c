"""Writing files so that nothing is ever half-written: a temporary file beside the target, then one rename."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from diffup.errors import DiffUpError, StorageError

_PREFIX = ".diffup-"  # of temporary files, so that nobody else's are taken for them


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the target's folder that takes the target's place when the block ends without an error.

    Args:
        path: the file to write; its folder is made if needed.

    Raises:
        StorageError: the disk is full or the folder cannot be written to. An older file stays as it was.
    """
    path = Path(path)
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_PREFIX}{path.stem}-", suffix=path.suffix)
        os.close(handle)
        with _moving(Path(name), path) as temporary:
            yield temporary


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Say of which file it was that a system's error kept it from being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, DiffUpError):
            raise
        raise StorageError(
            f"{path} cannot be written ({error}); what was there before stays as it was. Make room on the disk, or "
            "choose a folder that may be written to"
        ) from error


@contextlib.contextmanager
def _moving(temporary: Path, path: Path) -> Iterator[Path]:
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files private; a result is as public as any other file.
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """A path of the same file whose name is UTF-8: safetensors opens no other, and on Linux any bytes are a name."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            link = Path(folder, f"file{path.suffix if path.suffix.isascii() else ''}")
            link.symlink_to(path.resolve())
            yield link
    else:
        yield path


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, UTF-8; what is no Unicode, as in a file name of other bytes, is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove what a kill left behind of `replacing` in a folder and its subfolders.

    Nothing else may be writing there.
    """
    for path in Path(folder).rglob(f"{_PREFIX}*"):
        if path.is_file():
            path.unlink(missing_ok=True)
