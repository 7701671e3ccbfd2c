"""Writing files so that nothing is ever half-written: a temporary file beside the target, then one rename."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from diffup.errors import DiffUpError, FormatError, StorageError
from diffup.utils.storage import as_url, was_url, without_password

_PREFIX = ".diffup-"  # start of a temporary file's name, which tells it from other programs' files
_STEM = 40  # characters of the target's name that a temporary file's name repeats; a file name must not grow too long


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; it replaces the target when the block ends without an error.

    Args:
        path: the file to write; its folder is made if needed.

    Raises:
        StorageError: the disk is full or the folder cannot be written to. An older file stays as it was.
    """
    path = Path(path)
    with storage_errors(path), _temporary(path) as temporary:
        yield temporary
        _complete(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def replacing_together(paths: Sequence[Path], older: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Yield temporary paths of files that belong together; all replace their targets when the block ends without error.

    The presence of the last file says that the others are complete: its older version is removed first and the new one
    is moved last, so that it never lies beside files of another run, even if the process is killed.

    Args:
        paths: the files to write; their folders are made if needed.
        older: files of an earlier run that this run does not write again; they are removed.

    Raises:
        StorageError: the disk is full or a folder cannot be written to. If that is known before the first file is
            moved, all older files stay.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(paths[-1]))
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
    """Be the only process that writes to a folder while the block runs; a second process is refused at once.

    The system releases the lock if the process dies.

    Args:
        path: the folder's main file, which need not exist; the lock file is named after it.
        task: what the block does, for the error message of a process that is refused.

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
    """Hold a lock on a file while the block runs; the lock is a hidden file beside it, removed at the end.

    Args:
        path: the file, which need not exist; its folder is made if needed.
        timeout: seconds to wait for another process; -1 waits for as long as it takes.

    Raises:
        Timeout: another process holds the lock.
        StorageError: the folder cannot be written to.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place)
    with storage_errors(path):
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
    """Take a lock; False if its last holder has removed the lock file meanwhile, so that it would exclude nobody."""
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
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a system's error within the block into a `StorageError` that names the file being written.

    A path that was a URL is refused before anything is written: a folder "s3:" would be made.

    Args:
        path: path of the file.

    Raises:
        StorageError: the path was a URL, or a system's error occurred.
    """
    if was_url(path):
        shown = without_password(as_url(path))
        raise StorageError(f"{shown} is a URL, and only `diffup label` writes to URLs; give a local path")
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
    """Yield the path of a new file beside the target, removed when the block ends unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_PREFIX}{path.stem[:_STEM]}-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _complete(temporary: Path) -> None:
    """Flush a written file to disk and give it the permissions of any new file; mkstemp makes files private."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)


def checked_ending(path: str | os.PathLike[str], ending: str) -> Path:
    """Check that a path to write to ends in its format's suffix, in lower or upper case, and return it.

    Args:
        path: the file to write.
        ending: suffix of the format in lower case, such as ".png".

    Raises:
        FormatError: the path has another suffix, or none.
    """
    if Path(path).suffix.lower() != ending:
        raise FormatError(f"path: expected a file name ending in {ending}, got {os.fspath(path)!r}; add the ending")
    return Path(path)


@contextlib.contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """Yield a path of the same file that is valid UTF-8, by a link if needed.

    safetensors opens no other path, while Linux allows any bytes in a name.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            link = Path(folder, f"file{path.suffix if path.suffix.isascii() else ''}")
            link.symlink_to(path.resolve())
            yield link
    else:
        yield path


def numbered_name(number: int, name: str) -> str:
    """Return a file name without ending for a class, in which only letters, digits, `_` and `-` are left of its name.

    Args:
        number: number of the class, which keeps names apart.
        name: name of the class, of any script.
    """
    return f"{number}_" + re.sub(r"[^\w-]+", "_", name)[:40]  # 40 letters of any script fit in a file name


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, in UTF-8, without changing line ends.

    Args:
        path: the file to write; its folder is made if needed.
        text: content of the file.

    Raises:
        FormatError: the text holds half a character (a lone surrogate), which UTF-8 cannot hold.
        StorageError: the disk is full or the folder cannot be written to. An older file stays as it was.
    """
    content = utf8(path, text)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def utf8(place: str | os.PathLike[str], text: str) -> bytes:
    """Encode the text of a file.

    Args:
        place: path or URL of the file, for the error message.
        text: content of the file.

    Raises:
        FormatError: the text holds half a character (a lone surrogate), which UTF-8 cannot hold.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise FormatError(
            f"{os.fspath(place)}: {around!r} holds half a character (a lone surrogate), which no text file can hold; "
            "write the name anew"
        ) from error


def sweep(folder: str | os.PathLike[str], deep: bool = True) -> None:
    """Remove the temporary files that `replacing` left in a folder when its process was killed.

    No other process may be writing there.

    Args:
        folder: the folder to clean.
        deep: whether its subfolders are cleaned too.
    """
    pattern = f"{_PREFIX}*"
    for path in Path(folder).rglob(pattern) if deep else Path(folder).glob(pattern):
        if path.is_file():
            path.unlink(missing_ok=True)
