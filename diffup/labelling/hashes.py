"""Hashes of files, by which a later run recognises what has changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PhotoFacts:
    """File facts by which a changed photo is recognised in a later run.

    Args:
        size: size of the file in bytes.
        modified: time of the last change of content, in nanoseconds.
        changed: time of the last change of content or metadata, in nanoseconds.
        digest: hash of the content.
    """

    size: int
    modified: int
    changed: int
    digest: str

    @classmethod
    def of(cls, path: Path) -> PhotoFacts | None:
        """Read the facts of a file; None if it cannot be read.

        Args:
            path: path of the file.
        """
        try:
            facts = path.stat()
            return cls(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, digest_of(path))
        except OSError:
            return None

    def still(self, path: Path) -> bool:
        """Whether a file still has the same content; it is read only if its times changed.

        Args:
            path: path of the file.
        """
        try:
            facts = path.stat()
            if (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns) == (self.size, self.modified, self.changed):
                return True
            return facts.st_size == self.size and digest_of(path) == self.digest
        except OSError:
            return False


def digest_of(path: Path) -> str:
    """Return the hash of a file's content, 32 hexadecimal digits.

    Args:
        path: path of the file.
    """
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_bytes(content: bytes) -> str:
    """Return the hash of a file's content, 32 hexadecimal digits.

    Args:
        content: all bytes of the file.
    """
    return hashlib.blake2b(content, digest_size=16).hexdigest()
