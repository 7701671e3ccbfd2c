"""A journal in an object store, where nothing can be appended to: its entries are objects until they are joined."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from diffup.errors import DataError, StorageError
from diffup.utils.journal import damaged_line, parsed
from diffup.utils.storage import RemoteFolder

ENTRIES, SECONDS = 64, 10.0
"""Entries that are held back at most before they are written together, and seconds for which they are."""

LEASE, RENEWAL = 60.0, 15.0
"""Seconds after which a lock that its holder does not renew counts as that of a dead process; seconds between two
renewals."""


class RemoteJournal:
    """The journal of a folder in an object store, with the methods of `diffup.utils.journal.Journal`.

    Entries are appended as objects in a folder beside it, `NAME.parts`, many to an object, and joined to the object
    NAME when the next run begins and when a run ends. A killed process loses the entries of its last seconds.

    Args:
        folder: the folder.
        name: name of the journal in it.
    """

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self.path = folder.shown(name)
        self._folder, self._name = folder, name
        self._held: list[dict[str, Any]] = []
        self._flushed = -math.inf  # so that the first entry, which says what the others belong to, is written at once
        self._written: int | None = None  # number of the last part, once it is known
        self._lock: _Lock | None = None

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield numbers (from 1) and entries, in order; none if there is no journal.

        Raises:
            DataError: an entry is no JSON object.
            StorageError: the journal cannot be read.
        """
        self._flush()
        return parsed(self._content().splitlines(keepends=True), self.damaged)

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries; the first are in the store at once, others after some seconds or at the end of `alone`.

        Args:
            entries: objects that JSON can hold.

        Raises:
            StorageError: they cannot be written, or another process has taken over.
        """
        self._held += entries
        if len(self._held) >= ENTRIES or time.monotonic() - self._flushed >= SECONDS:
            self._flush()

    @contextlib.contextmanager
    def alone(self, task: str) -> Iterator[None]:
        """Keep every other process from appending while the block runs.

        Args:
            task: what the block does, for the error message of a process that is refused.

        Raises:
            StorageError: another process is writing to the journal.
        """
        with _Lock(self._folder, f"{self._name}.lock", task) as self._lock:
            self._join()
            try:
                yield
            finally:
                self._flush()
            self._join()

    def damaged(self, number: int, error: Exception) -> DataError:
        """The error to raise for a damaged entry.

        Args:
            number: number of the entry, from 1.
            error: the reason, named in the message.
        """
        return damaged_line(self.path, number, error)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _parts(self) -> list[str]:
        return sorted(self._folder.versions(f"{self._name}.parts"))

    def _content(self) -> bytes:
        return b"".join(_whole_lines(self._folder.read(name) or b"") for name in (self._name, *self._parts()))

    def _flush(self) -> None:
        """Write the entries that were held back, as the last part."""
        if not self._held:
            return
        self._check_lock()
        if self._written is None:
            self._written = max((int(name.rpartition("/")[2].partition("-")[0]) for name in self._parts()), default=0)
        text = "".join(json.dumps(entry) + "\n" for entry in self._held).encode()
        # No two processes give a part the same name, so that none is lost should two ever write at once.
        self._folder.write(f"{self._name}.parts/{self._written + 1:09d}-{secrets.token_hex(4)}.jsonl", text)
        self._written += 1
        self._held, self._flushed = [], time.monotonic()

    def _join(self) -> None:
        """Put all parts into one object, and remove them.

        If the process is killed in between, parts are read again behind the object that has their entries already; the
        last entry of an image counts, so nothing changes.
        """
        parts = self._parts()
        if parts:
            self._check_lock()
            self._folder.write(self._name, self._content())
            for name in parts:
                self._folder.remove(name)


def _whole_lines(content: bytes) -> bytes:
    """An object without a last line that was cut off, as where a file system shows half an upload."""
    return content[: content.rfind(b"\n") + 1]


class _Lock:
    """A lock that is an object, renewed while it is held, so that that of a killed process can be told by its age.

    Ages are measured by watching the object, so that clocks of different machines are not compared.

    Args:
        folder: the folder of the object.
        name: its name.
        task: what it is held for, for the error message of a process that is refused.
    """

    def __init__(self, folder: RemoteFolder, name: str, task: str) -> None:
        self._folder, self._name, self._task = folder, name, task
        self._token = secrets.token_hex(8)
        self._ended, self._lost = threading.Event(), threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> _Lock:
        while not self._folder.create(self._name, self._content(0)):
            held = self._folder.read(self._name)
            if held is None:
                continue
            if self._changes(held):
                raise StorageError(
                    f"{self._folder.shown()} is being written to by {_holder(held)}; wait until it has ended, or "
                    "choose another folder"
                )
            if self._folder.read(self._name) == held:
                self._folder.remove(self._name)
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(StorageError):  # it grows old then, as that of a killed process does
            if self._is_ours():
                self._folder.remove(self._name)

    def check(self) -> None:
        """Check that no other process has taken over, which one does if this one could not renew its lock in time.

        Raises:
            StorageError: one has.
        """
        if self._lost.is_set():
            raise StorageError(
                f"{self._folder.shown()}: another process has taken over, because this one did not renew its lock for "
                f"{LEASE:g} seconds; run it again when the other one has ended"
            )

    def _content(self, renewals: int) -> bytes:
        facts = {"token": self._token, "task": self._task, "process": os.getpid(), "node": platform.node()}
        return json.dumps({**facts, "renewals": renewals}).encode()

    def _changes(self, held: bytes) -> bool:
        """Whether the lock is renewed or released within the lease."""
        end = time.monotonic() + LEASE
        while time.monotonic() < end:
            time.sleep(min(1.0, LEASE / 10))
            if self._folder.read(self._name) != held:
                return True
        return False

    def _renew(self) -> None:
        renewals = 0
        while not self._ended.wait(RENEWAL):
            with contextlib.suppress(StorageError):  # perhaps it can be written the next time
                if not self._is_ours():
                    self._lost.set()
                    return
                renewals += 1
                self._folder.write(self._name, self._content(renewals))

    def _is_ours(self) -> bool:
        return _facts(self._folder.read(self._name)).get("token") == self._token


def _facts(held: bytes | None) -> dict[str, Any]:
    try:
        facts = json.loads(held or b"{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _holder(held: bytes) -> str:
    facts = _facts(held)
    return f"{facts.get('task')} (process {facts.get('process')} on {facts.get('node')})"
