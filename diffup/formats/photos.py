"""The image files that the records of another tool's file belong to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from diffup.errors import FormatError
from diffup.formats.supports import path_text
from diffup.inputs.recorded import Files


class Photos:
    """Image files, found by recorded paths, one for each record.

    Args:
        path: the file with the records. Without `images`, its own folder is searched, and then the folder `images` in
            it, where exports put them.
        images: folder that recorded paths start from, or None.
    """

    def __init__(self, path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> None:
        beside = Path(path).parent
        self._folders = (
            [Files(beside), Files(beside / "images")] if images is None else [Files(path_text(images, "images"))]
        )
        self._taken: dict[Path, str] = {}

    def find(self, names: Sequence[str], where: str, field: str) -> Path:
        """Find the image file of a record.

        Args:
            names: the recorded path, and other names that its file may have, likeliest first.
            where: name of the record in error messages.
            field: name of the record's field with the path.

        Raises:
            FormatError: there is no such file, several match, or it is the file of another record, which would show the
                objects of this one as background.
        """
        at = f"{where}.{field}"
        searches = (folder.search(name, at) for name in names for folder in self._folders)
        path = next((found for found in searches if found is not None), None) or self._folders[0].find(names[0], at)
        if self._taken.setdefault(path, where) != where:
            raise FormatError(f"{at}: {str(path)!r} is the file of {self._taken[path]} too; list an image once")
        return path
