"""An append-only file of JSON objects, one a line, that outlives a kill: what it holds is done, the rest is not."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diffup.errors import DataError
from diffup.utils.files import locked, sole_writer, telling

_BLOCK = 2**16


class Journal:
    """A file that is only ever added to, by one process or several.

    Entries that are added together stay together, whoever else adds some at the same time. A last line that was cut off
    by a kill is dropped.

    Args:
        path: the file; made with the first entry.
        shared: whether other processes may add to it; else the caller sees to it that none does.
    """

    def __init__(self, path: str | os.PathLike[str], shared: bool = True) -> None:
        self.path = Path(path)
        self._shared = shared

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line numbers and entries, in order; none if there is no file.

        Raises:
            DataError: a line is damaged.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise ValueError("no JSON object")
                except (ValueError, RecursionError) as error:
                    raise self.damaged(number, error) from error
                yield number, entry

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add entries; they are on the disk when this returns.

        Raises:
            StorageError: they cannot be written.
        """
        text = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        with telling(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Where the file ends is looked up under the lock each time: another process may have added to it, or may
            # have been killed while it did.
            with locked(self.path) if self._shared else contextlib.nullcontext(), self.path.open("a+b") as file:
                end, size = _whole_lines(file), file.seek(0, os.SEEK_END)
                if end < size:
                    file.truncate(end)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def alone(self, task: str) -> Iterator[None]:
        """Keep every other process from adding entries while a block runs; see `sole_writer`.

        Args:
            task: what the block does.

        Raises:
            StorageError: another process is at it.
        """
        with sole_writer(self.path, task):
            before, self._shared = self._shared, False
            try:
                yield
            finally:
                self._shared = before

    def damaged(self, number: int, error: Exception) -> DataError:
        """The error to raise for a line that is not what it should be."""
        return DataError(f"{self.path}, line {number} is damaged ({error!r}); delete the line to have it done again")


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the end of the last line that is whole."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
