"""The folder of the results, a local one or one of an object store. Files are named relative to it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeAlias

from diffup.errors import DataError
from diffup.labelling.hashes import digest_of, digest_of_bytes
from diffup.utils.files import replacing, sweep, utf8, write_text
from diffup.utils.journal import Journal
from diffup.utils.remote_journal import RemoteJournal
from diffup.utils.storage import RemoteFolder

Place: TypeAlias = Path | str
"""A local path, or a URL."""


class Output(Protocol):
    """The folder of the results."""

    def at(self, name: str = "") -> Place:
        """Path or URL of a file, or of the folder itself."""
        ...

    def journal(self, name: str) -> Journal | RemoteJournal:
        """The journal of this name."""
        ...

    def begin(self) -> None:
        """Prepare for writing, when no other process may."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        ...

    def digest(self, name: str) -> str | None:
        """Hash of a file's content; None if there is no such file."""
        ...

    def put(self, name: str, content: bytes) -> str:
        """Write a file, and return the hash of its content.

        Raises:
            DataError: a file of other content is there.
            StorageError: it cannot be written.
        """
        ...

    def replace(self, name: str, text: str) -> None:
        """Write a text file, whatever is there.

        Raises:
            FormatError: the text holds half a character (a lone surrogate).
            StorageError: it cannot be written.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        ...


class LocalOutput:
    """A folder on a disk.

    Args:
        folder: path of the folder, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def at(self, name: str = "") -> Path:
        """Path of a file, or of the folder itself."""
        return self.folder / name

    def journal(self, name: str) -> Journal:
        """The journal of this name."""
        return Journal(self.folder / name)

    def begin(self) -> None:
        """Remove the temporary files of killed runs."""
        sweep(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.folder / name).exists()

    def digest(self, name: str) -> str | None:
        """Hash of a file's content; None if there is no such file."""
        path = self.folder / name
        return digest_of(path) if path.is_file() else None

    def put(self, name: str, content: bytes) -> str:
        """Write a file, and return the hash of its content (see `Output`)."""
        path = self.folder / name
        with replacing(path) as unfinished:
            unfinished.write_bytes(content)
            digest = digest_of(unfinished)
            if path.exists() and digest_of(path) != digest:
                raise _other_content(path)
        return digest

    def replace(self, name: str, text: str) -> None:
        """Write a text file, whatever is there (see `Output`)."""
        write_text(self.folder / name, text)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        (self.folder / name).unlink(missing_ok=True)


class RemoteOutput:
    """A folder of an object store.

    What is there is listed once, when the run begins; after that only this process writes.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self.folder = folder
        self._there: set[str] = set()

    def at(self, name: str = "") -> str:
        """URL of a file, or of the folder itself, without a password."""
        return self.folder.shown(name)

    def journal(self, name: str) -> RemoteJournal:
        """The journal of this name."""
        return RemoteJournal(self.folder, name)

    def begin(self) -> None:
        """List the files that are there."""
        self._there = set(self.folder.versions())

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._there

    def digest(self, name: str) -> str | None:
        """Hash of a file's content; None if there is no such file."""
        content = self.folder.read(name) if name in self._there else None
        return None if content is None else digest_of_bytes(content)

    def put(self, name: str, content: bytes) -> str:
        """Write a file, and return the hash of its content (see `Output`)."""
        digest = digest_of_bytes(content)
        there = self.digest(name)
        if there is None:
            self.folder.write(name, content)
            self._there.add(name)
        elif there != digest:
            raise _other_content(self.at(name))
        return digest

    def replace(self, name: str, text: str) -> None:
        """Write a text file, whatever is there (see `Output`)."""
        self.folder.write(name, utf8(self.at(name), text))
        self._there.add(name)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        self.folder.remove(name)
        self._there.discard(name)


def open_output(place: Path | RemoteFolder) -> Output:
    """The folder of the results at a place.

    Args:
        place: path of a local folder, or a folder of an object store; neither need exist.
    """
    return LocalOutput(place) if isinstance(place, Path) else RemoteOutput(place)


def _other_content(place: Place) -> DataError:
    return DataError(f"{place} was not written by this run and would be replaced; move it away, and run it again")
