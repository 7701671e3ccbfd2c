"""The files that `diffup.labelling.folder` writes for an image: their names, what they are worth, and when they go."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffup.errors import FormatError
from diffup.formats.yolo import yolo_lines
from diffup.label_map import LabelMap
from diffup.utils.files import replacing, write_text

PLACES = {"png": ("labels", ".png"), "overlay": ("overlays", ".jpg"), "yolo": ("yolo/labels", ".txt")}
"""Folder and ending of the files of a format that has one for each image."""


@dataclass(frozen=True)
class PhotoFacts:
    """What a photo is told by from one run to the next.

    Args:
        size: bytes.
        modified: time of the last change of its content, in nanoseconds.
        changed: time of the last change of anything, likewise.
        digest: hash of its content.
    """

    size: int
    modified: int
    changed: int
    digest: str

    @classmethod
    def of(cls, path: Path) -> PhotoFacts | None:
        """Facts of a file; None if it cannot be read."""
        try:
            facts = path.stat()
            return cls(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, digest_of(path))
        except OSError:
            return None

    def still(self, path: Path) -> bool:
        """Whether the file has the same content; it is read only if it was touched."""
        try:
            facts = path.stat()
            if (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns) == (self.size, self.modified, self.changed):
                return True
            return facts.st_size == self.size and digest_of(path) == self.digest
        except OSError:
            return False


def digest_of(path: Path) -> str:
    """Hash of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def file_of(output: Path, written: str, name: str) -> Path:
    """The file of an image in a format of `PLACES`.

    Args:
        output: folder of the results.
        written: the format.
        name: what the image's files are called, of `names_of`.
    """
    folder, ending = PLACES[written]
    return output / folder / f"{name}{ending}"


def write_files(name: str, result: LabelMap, output: Path, formats: Iterable[str]) -> dict[str, str]:
    """Write the files of one image, each whole or not at all.

    Returns:
        The hash of each file's content, by its path relative to the output.
    """
    made = {}
    for written in formats:
        if written not in PLACES:
            continue
        path = file_of(output, written, name)
        if written == "png":
            result.save(path)
        elif written == "overlay":
            with replacing(path) as unfinished:
                result.overlay().save(unfinished, format="JPEG", quality=90)
        else:
            lines = yolo_lines(result.labels, range(len(result.names)))
            write_text(path, "".join(f"{line}\n" for line in lines))
        made[path.relative_to(output).as_posix()] = digest_of(path)
    return made


def remove_files(output: Path, files: Mapping[str, str]) -> list[Path]:
    """Remove files of an image, but none that was changed since it was written.

    Args:
        output: folder of the results.
        files: as `write_files` returned them.

    Returns:
        The files that were changed and stay.
    """
    edited = edited_files(output, files)
    if not edited:
        for path in files:
            (output / path).unlink(missing_ok=True)
    return edited


def edited_files(output: Path, files: Mapping[str, str]) -> list[Path]:
    """Those files of an image that were changed since they were written."""
    there = [(output / path, digest) for path, digest in files.items() if (output / path).is_file()]
    return [path for path, digest in there if digest_of(path) != digest]


def names_of(images: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """What the files of each image are called: as the image, without its ending where that is unmistakable.

    `a.jpg` gives `a`; `a.jpg` and `a.png`, side by side, give `a.jpg` and `a.png`, to which come the endings of what is
    written. Names that differ in case or in Unicode's composition alone count as one, as they do on some disks.

    Args:
        images: names of the images, relative to their folder.
        fixed: names that are given already, by image; of images in the list or of others.

    Returns:
        Names of all images in the list.
    """
    images = list(images)
    level = {image: 0 for image in images if image not in fixed}
    while True:
        names = {image: fixed.get(image) or _name(image, level[image]) for image in images}
        holders: dict[str, set[str]] = {}
        for image, name in {**fixed, **names}.items():
            for key in _keys(name):
                holders.setdefault(key, set()).add(image)
        folders = {_key(os.fspath(parent)) for name in names.values() for parent in Path(name).parents}
        raised: set[str] = set()
        for key, held in holders.items():
            if len(held) > 1 or key in folders:
                lowest = min(level.get(image, _LAST) for image in held)
                raised.update(image for image in held if level.get(image, _LAST) == lowest < _LAST)
        if not raised:
            return names
        for image in raised:
            level[image] += 1


def stem_of(image: str) -> str:
    """An image's name without its ending, but with its folders."""
    return Path(image).with_suffix("").as_posix()


_LAST = 2  # level of the longest names


def _name(image: str, level: int) -> str:
    """The name without ending, the whole name, or the whole name and a hash of it."""
    if level == 0:
        return stem_of(image)
    return image if level == 1 else f"{image}-{hashlib.sha256(image.encode()).hexdigest()[:8]}"


def _keys(name: str) -> list[str]:
    """What a name is known by to disks: by itself, and with the endings it gets, which may be those of a folder."""
    return [_key(f"{name}{ending}") for _, ending in PLACES.values()]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def yaml_string(text: str) -> str:
    """Text as a double-quoted scalar of YAML 1.1 and 1.2, in ASCII, so that no reader's encoding matters.

    JSON's escapes would not do: they write characters beyond U+FFFF as two halves, which YAML takes for two characters.

    Raises:
        FormatError: the text holds such a half by itself.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise FormatError(f"{text!r} holds half a character (a lone surrogate), which no file can hold; write it anew")
    return '"' + "".join(map(_yaml_character, text)) + '"'


def _yaml_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if " " <= character <= "~":
        return character
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def facts_of(entry: Mapping[str, Any]) -> PhotoFacts | None:
    """The photo's facts in an entry of the record; None in those of older versions."""
    return PhotoFacts(*entry["photo"]) if entry.get("photo") else None
