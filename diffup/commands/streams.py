"""Standard streams that do not raise: any name can be printed, and a closed pipe is no error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast


class Printer:
    """A standard stream whose `write` does not raise.

    Characters that its encoding lacks are written as Python escapes: users choose the names of files and classes, and a
    Windows console or a pipe may use cp1252 or ASCII. When the reader of a pipe is gone (`| head`), further output is
    dropped and the command finishes its work.

    Args:
        stream: the wrapped stream; everything but `write` and `flush` is delegated to it.

    Attributes:
        failure: another error that prevented output, such as a full disk; None if there was none.
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
        """Flush the stream's buffer."""
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
        """Redirect the stream to the null device; Python flushes its buffer at exit and would report an error."""
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())


@contextlib.contextmanager
def printing() -> Iterator[Printer]:
    """Replace `sys.stdout` and `sys.stderr` by printers while a command runs; a missing stream discards its output.

    Yields:
        The printer that replaces `sys.stdout`.
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
