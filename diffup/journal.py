"""An append-only file of JSON objects, one a line, that outlives a kill: what it holds is done, the rest is not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffup.errors import DataError
from diffup.files import telling


class Journal:
    """A file that is only ever added to. A last line that was cut off by a kill is dropped.

    Args:
        path: the file; made with the first entry.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._end: int | None = None

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
            if self._end is None:
                self._end = self._whole_lines()
            with self.path.open("ab") as file:
                file.truncate(self._end)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        self._end += len(text)

    def damaged(self, number: int, error: Exception) -> DataError:
        """The error to raise for a line that is not what it should be."""
        return DataError(f"{self.path}, line {number} is damaged ({error!r}); delete the line to have it done again")

    def _whole_lines(self) -> int:
        """Bytes up to the end of the last line that is whole."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            return sum(len(line) for line in file if line.endswith(b"\n"))
