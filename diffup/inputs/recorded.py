"""What other programs recorded: texts, JSON and paths as Windows, macOS and Linux write them.

A recorded path may have back-slashes, a drive or the folders of another machine, stand in a URL, be composed otherwise
(NFC or NFD) or differ in letter case: file systems of Windows and macOS take such names for the same. It is looked up
in the files that are there; where two of them fit equally well, none is chosen.
"""

from __future__ import annotations

import codecs
import functools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from PIL import Image

from diffup.errors import DiffUpError, FormatError
from diffup.inputs.images import describe

_MARKS = {  # UTF-32 before UTF-16, whose mark it starts with
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_PHOTOS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow names and cannot or must not decode
_DRIVE = re.compile(r"/?[A-Za-z]:(?=[\\/]|$)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of two letters at least: one letter is a drive


def read_text(path: str | os.PathLike[str], error: type[DiffUpError] = FormatError) -> str:
    """The text of a file, UTF-8, or what the byte order mark at its start says.

    Args:
        path: the file.
        error: exception to raise.

    Raises:
        error: the file cannot be read or is encoded otherwise.
    """
    try:
        content = Path(path).read_bytes()
        encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
        return content.decode(encoding)
    except UnicodeDecodeError as reason:
        raise error(f"{os.fspath(path)}: cannot be read as text ({reason}). Save it as UTF-8") from reason
    except (OSError, ValueError) as reason:
        raise error(f"{os.fspath(path)}: cannot be read ({reason})") from reason


def read_json(path: str | os.PathLike[str], error: type[DiffUpError] = FormatError) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        error: exception to raise.

    Raises:
        error: the file cannot be read, is not JSON or holds something else than an object.
    """
    text = read_text(path, error)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{os.fspath(path)}: cannot be read as JSON ({reason})") from reason
    if not isinstance(content, dict):
        raise error(f"{os.fspath(path)}: expected a JSON object, got {describe(content)}")
    return content


@functools.cache
def image_endings() -> frozenset[str]:
    """Endings of the image files that Pillow reads, in small letters."""
    Image.init()
    readable = set(Image.OPEN) - set(_NO_PHOTOS)
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in readable)


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of an image, in small or capital letters, and is not hidden."""
    return PurePosixPath(name).suffix.lower() in image_endings() and not name.startswith(".")


def without_ending(name: str) -> str:
    """A name without the ending of an image file; another ending, such as that of `img.2024`, stays."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in image_endings() else name


def composed(name: str) -> str:
    """A name with accents as one character each (NFC), as most systems write it; macOS takes them apart."""
    return unicodedata.normalize("NFC", name)


def same_name(name: str) -> str:
    """What names have in common that Windows and macOS take for the same."""
    return composed(composed(name).casefold())


def _same_but_ending(name: str) -> str:
    whole = PurePosixPath(composed(name))
    return whole.stem + whole.suffix.lower()


_LIKENESS: tuple[Callable[[str], str], ...] = (str, composed, _same_but_ending, same_name)
"""How two names may be the same, strictest first."""


class Names:
    """Names that are found although they were recorded in another form.

    Args:
        names: the names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._found: list[dict[str, list[str]]] = [{} for _ in _LIKENESS]
        for name in sorted(names):
            for found, key in zip(self._found, _LIKENESS, strict=True):
                found.setdefault(key(name), []).append(name)

    def like(self, name: str) -> list[str]:
        """The names that are this one by the strictest rule that any fits; several where the rule cannot tell."""
        for found, key in zip(self._found, _LIKENESS, strict=True):
            if key(name) in found:
                return found[key(name)]
        return []


class Files:
    """The files below a folder, found by the paths that programs recorded for them.

    Folders are listed once, when they are first looked at.

    Args:
        folder: what relative paths start from.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._listed: dict[Path, Names] = {}

    def find(self, recorded: str | os.PathLike[str], argument: str, error: type[DiffUpError] = FormatError) -> Path:
        r"""The file that a recorded path means.

        As it stands it is taken where it is a file. Else its names are looked up in the folder in the forms that
        Windows and macOS take for the same; and where the whole path is not there, its ends are, since the folders of
        another machine mean nothing here: of `C:\data\img\a.png` `data/img/a.png`, `img/a.png` and `a.png`.

        Args:
            recorded: the path.
            argument: what to call it in error messages.
            error: exception to raise.

        Raises:
            error: there is no such file, or several fit.
        """
        path = self.search(recorded, argument, error)
        if path is None:
            raise error(
                f"{argument}: {os.fspath(recorded)!r} is no file in {os.fspath(self.folder)!r}, and neither is an end "
                "of that path. Give the folder that recorded paths start from, and check the name"
            )
        return path

    def search(
        self, recorded: str | os.PathLike[str], argument: str, error: type[DiffUpError] = FormatError
    ) -> Path | None:
        """As `find`, but `None` where there is no such file.

        Raises:
            error: several fit.
        """
        text = os.fspath(recorded)
        if self._exact(text):
            return self.folder / text
        for form, parts in _readings(text):
            if self._exact(form):
                return self.folder / form
            found = self._below(parts)  # the whole path, or else its ends
            for start in range(1, 0 if found else len(parts)):
                found += [] if ".." in parts[start:] else self._below(parts[start:])
            if len(found) > 1:
                found = list({os.path.realpath(path): path for path in found}.values())
            if len(found) > 1:
                raise error(
                    f"{argument}: {text!r} may be {' or '.join(sorted(str(path) for path in found))}. Rename or move "
                    "all but one, or record the path as it is"
                )
            if found:
                return found[0]
        return None

    def _exact(self, text: str) -> bool:
        return _is_file(self.folder / text)

    def _below(self, parts: tuple[str, ...]) -> list[Path]:
        """The files of these names below the folder, one folder within the other."""
        places = [self.folder]
        for index, part in enumerate(parts):
            like = self._files_like if index == len(parts) - 1 else self._like
            places = [place / name for place in places for name in like(place, part)]
        return [place for place in places if _is_file(place)]

    def _files_like(self, folder: Path, part: str) -> list[str]:
        return self._like(folder, part)

    def _like(self, folder: Path, part: str) -> list[str]:
        if part == "..":
            return [part]
        if folder not in self._listed:
            self._listed[folder] = Names(_names_in(folder))
        return self._listed[folder].like(part)


class Pictures(Files):
    """The image files below a folder, found by their names with or without the ending.

    Args:
        folder: what names start from.
        endings: endings of the files, in small letters; capitals are found too.
    """

    def __init__(self, folder: str | os.PathLike[str], endings: Collection[str]) -> None:
        super().__init__(folder)
        self._endings = endings
        self._stems: dict[Path, tuple[dict[str, list[str]], Names]] = {}

    def names(self) -> list[str]:
        """Names, without endings, of the files that lie in the folder itself, sorted."""
        return sorted(self._by_stem(self.folder)[0])

    def _exact(self, text: str) -> bool:
        return self._fits(text) and super()._exact(text)

    def _fits(self, name: str) -> bool:
        return PurePosixPath(name).suffix.lower() in self._endings and not name.startswith(".")

    def _files_like(self, folder: Path, part: str) -> list[str]:
        named = [name for name in self._like(folder, part) if self._fits(name)]
        if named:
            return named
        by_stem, stems = self._by_stem(folder)
        return [name for stem in stems.like(part) or stems.like(without_ending(part)) for name in by_stem[stem]]

    def _by_stem(self, folder: Path) -> tuple[dict[str, list[str]], Names]:
        if folder not in self._stems:
            found: dict[str, list[str]] = {}
            for name in filter(self._fits, _names_in(folder)):
                found.setdefault(PurePosixPath(name).stem, []).append(name)
            self._stems[folder] = found, Names(found)
        return self._stems[folder]


def _names_in(folder: Path) -> list[str]:
    """Names in a folder; none where there is no folder or it may not be read."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (OSError, ValueError):
        return []


def _readings(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The ways in which a recorded path can be read, likeliest first: a local path, and the names along it."""
    forms = [text, unquote(text)]
    _, label_studio, tail = text.partition("?d=")  # /data/local-files/?d=images/a.png
    if label_studio:
        forms.insert(0, unquote(tail))
    elif _SCHEME.match(text):
        scheme, _, rest = text.partition("://")
        place = unquote(rest.partition("?")[0])
        root = "/" if scheme.lower() == "file" and place.startswith("/") else ""
        forms.insert(0, root + place.partition("/")[2])  # without the host
    for form in dict.fromkeys(forms):
        windows = "\\" in form or _DRIVE.match(form)
        pure = PureWindowsPath(form) if windows else PurePosixPath(form)
        yield form, tuple(part for part in pure.parts if part != pure.anchor and not _DRIVE.fullmatch(part))


def _is_file(path: Path) -> bool:
    """Whether there is such a file; no error for what cannot be a path: too long, with NUL, not to be encoded."""
    return os.path.isfile(path)  # noqa: PTH113
