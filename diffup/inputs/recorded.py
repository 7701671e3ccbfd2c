"""Reading what other programs wrote: texts, JSON, and paths as Windows, macOS and Linux write them.

A recorded path may have backslashes, a drive or the folders of another machine, be part of a URL, have another Unicode
form (NFC or NFD) or another letter case: file systems of Windows and macOS treat such names as the same. It is matched
with the existing files; if two of them match equally well, none is chosen.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from diffup.errors import DiffUpError, FormatError
from diffup.inputs.images import describe, is_image_name

_MARKS = {  # UTF-32 before UTF-16, whose mark it starts with
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DRIVE = re.compile(r"/?[A-Za-z]:(?=[\\/]|$)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of two letters at least: one letter is a drive


def read_text(path: str | os.PathLike[str], error: type[DiffUpError] = FormatError) -> str:
    """Read a text file in UTF-8, or in the encoding that its byte order mark names.

    Args:
        path: the file.
        error: type of the exception to raise.

    Raises:
        error: the file cannot be read or has another encoding.
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
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        error: type of the exception to raise.

    Raises:
        error: the file cannot be read, is not JSON or holds something other than an object.
    """
    content = parse_json(read_text(path, error), path, error)
    if not isinstance(content, dict):
        raise error(f"{os.fspath(path)}: expected a JSON object, got {describe(content)}")
    return content


def parse_json(text: str, path: str | os.PathLike[str], error: type[DiffUpError] = FormatError) -> Any:
    """Read the text of a JSON file.

    Args:
        text: content of the file.
        path: the file, for error messages.
        error: type of the exception to raise.

    Raises:
        error: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{os.fspath(path)}: cannot be read as JSON ({reason})") from reason


def without_ending(name: str) -> str:
    """A name without the suffix of an image file; another suffix, such as that of `img.2024`, stays."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if is_image_name(name) else name


def composed(name: str) -> str:
    """A name in the Unicode form NFC, accented letters as one character, as most systems write it; macOS uses NFD."""
    return unicodedata.normalize("NFC", name)


def same_name(name: str) -> str:
    """A key that is equal for names which Windows and macOS treat as the same: NFC, case folded."""
    return composed(composed(name).casefold())


def _same_but_ending(name: str) -> str:
    whole = PurePosixPath(composed(name))
    return whole.stem + whole.suffix.lower()


_LIKENESS: tuple[Callable[[str], str], ...] = (str, composed, _same_but_ending, same_name)
"""Keys by which two names may be the same, strictest first."""


def is_url(recorded: str) -> bool:
    """Whether a recorded path is a URL of a server or a store, which names no file of this machine."""
    scheme = _SCHEME.match(recorded)
    return scheme is not None and scheme[0].lower() != "file://"


class Names:
    """File names, found by a name in another Unicode form or letter case.

    Args:
        names: existing names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._found: list[dict[str, list[str]]] = [{} for _ in _LIKENESS]
        for name in sorted(names):
            for found, key in zip(self._found, _LIKENESS, strict=True):
                found.setdefault(key(name), []).append(name)

    def like(self, name: str) -> list[str]:
        """Find the names that match a recorded one by the strictest rule that any name meets.

        Args:
            name: recorded name.

        Returns:
            The matching names; several if the rule does not distinguish them, none if no rule is met.
        """
        for found, key in zip(self._found, _LIKENESS, strict=True):
            if key(name) in found:
                return found[key(name)]
        return []


class Files:
    """The files below a folder, found by paths that other programs recorded.

    Each folder is listed once, when it is first searched.

    Args:
        folder: folder that relative paths start from.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._listed: dict[Path, Names] = {}

    def find(self, recorded: str | os.PathLike[str], argument: str, error: type[DiffUpError] = FormatError) -> Path:
        r"""Find the file that a recorded path means.

        The path is used unchanged if it is a file. Else its parts are looked up in the folder in the forms that Windows
        and macOS treat as the same; and if the whole path does not exist, its ends are tried, since the folders of
        another machine mean nothing here: for `C:\data\img\a.png` these are `data/img/a.png`, `img/a.png` and `a.png`.

        Args:
            recorded: path as it was recorded.
            argument: name of the path in error messages.
            error: type of the exception to raise.

        Raises:
            error: there is no such file, or several match.
        """
        path = self.search(recorded, argument, error)
        if path is None and is_url(os.fspath(recorded)):
            raise error(
                f"{argument}: {os.fspath(recorded)!r} is a URL, and URLs are not fetched; download the image to "
                f"{os.fspath(self.folder)!r}"
            )
        if path is None:
            raise error(
                f"{argument}: {os.fspath(recorded)!r} is no file in {os.fspath(self.folder)!r}, and neither is an end "
                "of that path. Give the folder that recorded paths start from, and check the name"
            )
        return path

    def search(
        self, recorded: str | os.PathLike[str], argument: str, error: type[DiffUpError] = FormatError
    ) -> Path | None:
        """Find the file that a recorded path means, by the rules of `find`.

        Args:
            recorded: path as it was recorded.
            argument: name of the path in error messages.
            error: type of the exception to raise.

        Returns:
            The file's path; `None` if there is no such file.

        Raises:
            error: several files match.
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
        """The existing files below the folder whose path has these parts."""
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
    """The image files below a folder, found by their names with or without the suffix.

    Args:
        folder: folder that names start from.
        endings: suffixes of the files in lower case, such as ".jpg"; upper case is found too.
    """

    def __init__(self, folder: str | os.PathLike[str], endings: Collection[str]) -> None:
        super().__init__(folder)
        self._endings = endings
        self._stems: dict[Path, tuple[dict[str, list[str]], Names]] = {}

    def names(self) -> list[str]:
        """Names, without suffixes, of the files directly in the folder, sorted."""
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
    """Names in a folder; none if there is no such folder or it may not be read."""
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
    """Whether a file exists; False, not an error, for an impossible path: too long, with NUL, or not encodable."""
    return os.path.isfile(path)  # noqa: PTH113
