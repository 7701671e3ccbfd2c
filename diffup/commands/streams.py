"""Printing that cannot end a command: every name can be shown, and a reader that has gone is no error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast


class Printer:
    """A standard stream whose `write` does not raise.

    What its encoding lacks is written as Python escapes it: names of files and classes are the user's, and
    a console of Windows or a pipe may be cp1252 or ASCII. When the reader of a pipe has gone (`| head`), the rest is
    dropped and the command finishes its work.

    Args:
        stream: the stream; everything but `write` and `flush` is its own.

    Attributes:
        failure: what else kept output from being written, such as a full disk; None if nothing did.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        self._dropping = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._attempt(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Callable[[], object]) -> None:
        if self._dropping:
            return
        try:
            call()
        except OSError as error:
            self._dropping = True
            self.failure = None if isinstance(error, BrokenPipeError) else error
            self._discard_buffer()

    def _discard_buffer(self) -> None:
        """Lead the stream to nowhere, since Python writes its buffer once more when it ends, and would complain."""
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())


@contextlib.contextmanager
def printing() -> Iterator[Printer]:
    """Make `sys.stdout` and `sys.stderr` printers while a command runs; a stream that there is not leads to nowhere.

    Yields:
        The printer in the place of `sys.stdout`.
    """
    with contextlib.ExitStack() as stack:

        def printer(stream: TextIO | None) -> Printer:
            # Opened even though print() can do without: the file then takes the closed stream's number, which would
            # otherwise go to the next file that is written, and libraries in C print to that number.
            return Printer(stream or stack.enter_context(Path(os.devnull).open("w", encoding="utf-8")))

        out = printer(sys.stdout)
        err = printer(sys.stderr)
        with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
            try:
                yield out
            finally:
                out.flush()
                err.flush()
