"""Writing files so that nothing is ever half-written: a temporary file beside the target, then one rename."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from diffup.errors import DiffUpError, FormatError, StorageError

_PREFIX = ".diffup-"  # of temporary files, so that nobody else's are taken for them
_STEM = 40  # characters of a target's name in that of its temporary file, which must not grow too long


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the target's folder that takes the target's place when the block ends without an error.

    Args:
        path: the file to write; its folder is made if needed.

    Raises:
        StorageError: the disk is full or the folder cannot be written to. An older file stays as it was.
    """
    path = Path(path)
    with telling(path), _temporary(path) as temporary:
        yield temporary
        _complete(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def replacing_together(paths: Sequence[Path], older: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Temporary paths of files that belong together; all take their places when the block ends without an error.

    The last file vouches for the others: its predecessor goes first and it comes last, so that it is never found beside
    files of another run, whenever the process is killed.

    Args:
        paths: the files to write; their folders are made if needed.
        older: files of an earlier run that has no successor in this one; they go.

    Raises:
        StorageError: the disk is full or a folder cannot be written to. If that is known before the first file is
            moved, all older files stay.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(telling(paths[-1]))
        made = [stack.enter_context(_temporary(path)) for path in paths]
        yield made
        for temporary in made:
            _complete(temporary)
        for path in (paths[-1], *older):
            path.unlink(missing_ok=True)
        for temporary, path in zip(made, paths, strict=True):
            temporary.replace(path)


@contextlib.contextmanager
def sole_writer(path: Path, task: str) -> Iterator[None]:
    """Be the only process that writes to a folder for as long as the block takes; another one is refused at once.

    The lock is let go by the system if the process dies.

    Args:
        path: the folder's main file, whether it is there or not; the lock is named after it.
        task: what the block does, for the message to whoever is refused.

    Raises:
        StorageError: another process holds the lock, or the folder cannot be written to.
    """
    owner = path.with_name(f".{path.name}.owner")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, timeout=0))
        except Timeout as error:
            raise StorageError(
                f"{path.parent} is being written to by {_read_owner(owner)}; wait until it has ended, or choose "
                "another folder"
            ) from error
        stack.callback(owner.unlink, missing_ok=True)
        write_text(owner, f"{task} (process {os.getpid()} on {platform.node()})")
        yield


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a file, a hidden file beside it, which goes when the block ends.

    Args:
        path: the file, whether it is there or not; its folder is made if needed.
        timeout: seconds to wait for others; -1 for as long as it takes.

    Raises:
        Timeout: another process holds it.
        StorageError: the folder cannot be written to.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place)
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _acquire(lock, place, timeout):
            pass
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a system that does not remove open files
            place.unlink()
        lock.release()


def _acquire(lock: FileLock, place: Path, timeout: float) -> bool:
    """Take a lock; False if the last holder removed its file meanwhile, so that it keeps nobody out."""
    handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock.acquire(timeout=timeout)
        # The file that was there before and is there still is the one that was locked in between.
        if place.exists() and os.path.samestat(os.fstat(handle), place.stat()):
            return True
        lock.release()
        return False
    except FileNotFoundError:
        lock.release()
        return False
    finally:
        os.close(handle)


def _read_owner(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8") or "another process"
    except OSError:  # it has not written its name yet, or has just ended
        return "another process"


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Say of which file it was that a system's error kept it from being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, DiffUpError | Timeout):
            raise
        raise StorageError(
            f"{path} cannot be written ({error}); what was there before stays as it was. Make room on the disk, or "
            "choose a folder that may be written to"
        ) from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside a target, which is gone when the block ends unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_PREFIX}{path.stem[:_STEM]}-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _complete(temporary: Path) -> None:
    """Put a written file on the disk, with the rights of any new file; mkstemp makes files private."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)


def checked_ending(path: str | os.PathLike[str], ending: str) -> Path:
    """A path to write to, whose name has the ending of its format, in lower or upper case.

    Raises:
        FormatError: another ending, or none.
    """
    if Path(path).suffix.lower() != ending:
        raise FormatError(f"path: expected a file name ending in {ending}, got {os.fspath(path)!r}; add the ending")
    return Path(path)


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
    """Write a text file atomically, UTF-8, its line ends as they are.

    Raises:
        FormatError: the text holds half a character (a lone surrogate), which UTF-8 cannot hold.
        StorageError: see `replacing`.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise FormatError(
            f"{os.fspath(path)}: {around!r} holds half a character (a lone surrogate), which no text file can hold; "
            "write the name anew"
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sweep(folder: str | os.PathLike[str], deep: bool = True) -> None:
    """Remove what a kill left behind of `replacing` in a folder.

    Nothing else may be writing there.

    Args:
        folder: the folder.
        deep: in its subfolders too.
    """
    pattern = f"{_PREFIX}*"
    for path in Path(folder).rglob(pattern) if deep else Path(folder).glob(pattern):
        if path.is_file():
            path.unlink(missing_ok=True)
