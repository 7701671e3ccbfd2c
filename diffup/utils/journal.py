"""An append-only file of JSON objects, one a line, that survives a killed process: its entries are finished work."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diffup.errors import DataError
from diffup.utils.files import locked, sole_writer, storage_errors

_BLOCK = 2**16


class Journal:
    """An append-only file that one process or several write to.

    Entries that are appended together stay together, even if other processes append at the same time. A last line that
    was cut off when a process was killed is dropped.

    Args:
        path: the file; created with the first entry.
        shared: whether other processes may append to it. If not, the caller must keep them from it.
    """

    def __init__(self, path: str | os.PathLike[str], shared: bool = True) -> None:
        self.path = Path(path)
        self._shared = shared

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield line numbers (from 1) and entries, in order; none if there is no file.

        Raises:
            DataError: a line is not a JSON object.
        """
        if self.path.exists():
            with self.path.open("rb") as file:
                yield from parsed(file, self.damaged)

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries; they are on the disk when this returns.

        Args:
            entries: objects that JSON can hold, one line each.

        Raises:
            StorageError: the file cannot be written.
        """
        text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The end of the file is looked up under the lock each time: another process may have appended to it, or
            # may have been killed while it did.
            with locked(self.path) if self._shared else contextlib.nullcontext(), self.path.open("a+b") as file:
                end, size = _whole_lines(file), file.seek(0, os.SEEK_END)
                if end < size:
                    file.truncate(end)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def alone(self, task: str) -> Iterator[None]:
        """Keep every other process from appending while the block runs.

        Args:
            task: what the block does, for the error message of a process that is refused.

        Raises:
            StorageError: another process is writing to the file.
        """
        with sole_writer(self.path, task):
            before, self._shared = self._shared, False
            try:
                yield
            finally:
                self._shared = before

    def damaged(self, number: int, error: Exception) -> DataError:
        """The error to raise for a damaged line.

        Args:
            number: line number, from 1.
            error: the reason, named in the message.
        """
        return damaged_line(self.path, number, error)


def parsed(
    lines: Iterable[bytes], damaged: Callable[[int, Exception], Exception]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers (from 1) and entries; a last line that was cut off is dropped.

    Args:
        lines: lines of the journal, with their ends.
        damaged: function that makes the error to raise for a damaged line, given its number and the reason.
    """
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            raise damaged(number, error) from error
        yield number, entry


def damaged_line(journal: str | os.PathLike[str], number: int, error: Exception) -> DataError:
    """The error to raise for a damaged line of a journal.

    Args:
        journal: path or URL of the journal.
        number: line number, from 1.
        error: the reason, named in the message.
    """
    return DataError(f"{journal}, line {number} is damaged ({error!r}); delete the line to have it done again")


def _whole_lines(file: BinaryIO) -> int:
    """Number of bytes up to the end of the last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
