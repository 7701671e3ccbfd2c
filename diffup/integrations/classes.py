"""The classes that a labelling tool asks for: files of prototypes, or prototypes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from diffup.model import DiffUp
from diffup.prototypes import Prototypes, check_classes

PrototypesLike: TypeAlias = Prototypes | str | os.PathLike[str]
"""Prototypes, or the path of their file."""


def read_classes(given: PrototypesLike | Sequence[PrototypesLike], model: DiffUp) -> list[Prototypes]:
    """Read the classes to mark, and check that they fit the model and each other.

    Args:
        given: prototypes or the path of their file, or a list of them, one for each class. A text may name several
            files, with commas between.
        model: the model to use them with.

    Raises:
        PrototypesError: a file is missing or holds no prototypes, there is none, two are of one name, or one was made
            with another encoder than the model's.
    """
    if isinstance(given, str) and not _is_file(given):
        given = [part.strip() for part in given.split(",")]
    items = list(given) if isinstance(given, list | tuple) else [given]
    classes = [Prototypes.load(item) if isinstance(item, str | os.PathLike) else item for item in items]
    return check_classes(classes, model)


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file; the names of many files are longer than a path may be."""
    try:
        return Path(text).is_file()
    except OSError:
        return False
