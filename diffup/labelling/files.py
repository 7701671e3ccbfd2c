"""The files that `diffup.labelling.folder` writes for an image: names, hashes, writing and removal."""

from __future__ import annotations

import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import FormatError
from diffup.formats.write_labelme import labelme_document
from diffup.formats.yolo import yolo_lines
from diffup.label_map import LabelMap
from diffup.labelling.hashes import PhotoFacts
from diffup.labelling.outputs import Output, Place
from diffup.utils.files import numbered_name

PLACES = {
    "png": ("labels", ".png"),
    "overlay": ("overlays", ".jpg"),
    "yolo": ("yolo/labels", ".txt"),
    "labelme": ("labelme", ".json"),
}
"""Folder and file ending of each format that writes one file per image."""

OWN = "own"
"""Folder of the classes' own masks, which has a folder for each class."""


def file_of(written: str, name: str) -> str:
    """Return the name of an image's file in one format, relative to the folder of the results.

    Args:
        written: the format, a key of `PLACES`.
        name: base name of the image's files, from `names_of`.
    """
    folder, ending = PLACES[written]
    return f"{folder}/{name}{ending}"


def own_files_of(classes: Sequence[str], name: str) -> list[str]:
    """Return the names of an image's masks, one of each class, relative to the folder of the results.

    Args:
        classes: names of the classes.
        name: base name of the image's files, from `names_of`.
    """
    folders = (numbered_name(number, item) for number, item in enumerate(classes, start=1))
    return [f"{OWN}/{folder}/{name}.png" for folder in folders]


def write_files(
    name: str,
    seen_from: Callable[[str], str],
    result: LabelMap,
    output: Output,
    formats: Iterable[str],
    own: npt.NDArray[np.bool_] | None = None,
    instances: bool = False,
) -> dict[str, str]:
    """Write the files of one image. A partial file is never left, and a file of other content is never replaced.

    What a killed run wrote before it was recorded has the same content, and may stay.

    Args:
        name: base name of the image's files, from `names_of`.
        seen_from: function that returns the image's path as seen from a file of `output`, given the file's name.
        result: label map of the image.
        output: folder of the results.
        formats: formats to write; those without a file per image are skipped.
        own: (C, H, W) bool, the classes' own masks, written to a file each; None for no such files.
        instances: whether touching objects are separated in files that hold objects (`yolo`).

    Returns:
        The hash of each file's content, by the file's name relative to `output`.

    Raises:
        DataError: a file of other content has the name of one of them.
        StorageError: a file cannot be written.
    """
    contents = _contents(name, seen_from, result, formats, own, instances)
    return {file: output.put(file, content) for file, content in contents}


def _contents(
    name: str,
    seen_from: Callable[[str], str],
    result: LabelMap,
    formats: Iterable[str],
    own: npt.NDArray[np.bool_] | None,
    instances: bool,
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of an image."""
    for written in formats:
        if written not in PLACES:
            continue
        file = file_of(written, name)
        if written == "png":
            yield file, result.to_png()
        elif written == "overlay":
            yield file, _encoded(result.overlay(), format="JPEG", quality=90)
        elif written == "labelme":
            document = labelme_document(result.labels, result.names, seen_from(file))
            yield file, f"{json.dumps(document)}\n".encode()
        else:
            lines = _object_lines(result) if instances else yolo_lines(result.labels, range(len(result.names)))
            yield file, "".join(f"{line}\n" for line in lines).encode()
    if own is not None:
        for file, mask in zip(own_files_of(result.names, name), own, strict=True):
            yield file, _encoded(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)), format="PNG")


def _object_lines(result: LabelMap) -> list[str]:
    """YOLO's lines of all objects."""
    return [line for label, item in result.instances(smallest=0) for line in yolo_lines([item.mask], [label - 1])]


def _encoded(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def path_from(folder: Path, path: Path) -> str:
    """Return the path of a file relative to a folder, with forward slashes; the whole path if it is on another drive.

    Args:
        folder: the folder, which need not exist.
        path: path of the file.
    """
    whole = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(whole, folder.resolve())).as_posix()
    except ValueError:  # Windows has a root for each drive
        return whole.as_posix()


def remove_files(output: Output, files: Mapping[str, str]) -> list[Place]:
    """Remove the files of an image, unless one of them was changed after it was written.

    Args:
        output: folder of the results.
        files: hashes of the written files by name, from `write_files`.

    Returns:
        The changed files; if there are any, no file is removed.
    """
    there = {file: output.digest(file) for file in files}
    edited = [output.at(file) for file, digest in there.items() if digest not in (None, files[file])]
    if not edited:
        for file in files:
            output.remove(file)
    return edited


def names_of(images: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """Choose the base name of each image's files: the image's name, without its ending if that is unique.

    `a.jpg` gives `a`; `a.jpg` and `a.png` in one folder give `a.jpg` and `a.png`, to which the endings of the written
    files are added. Names that differ only in case or in Unicode composition count as equal, as on some file systems.

    Args:
        images: names of the images, relative to their folder.
        fixed: base names already in use, by image name; also those of images that are not in `images`.

    Returns:
        Base names by image name, for all of `images`.
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
    """Return an image's name with its folders and without its ending.

    Args:
        image: name of the image, relative to its folder.
    """
    return Path(image).with_suffix("").as_posix()


_LAST = 2  # level of the longest names


def _name(image: str, level: int) -> str:
    """The name without ending, the whole name, or the whole name and a hash of it."""
    if level == 0:
        return stem_of(image)
    return image if level == 1 else f"{image}-{hashlib.sha256(image.encode()).hexdigest()[:8]}"


def _keys(name: str) -> list[str]:
    """Keys under which file systems compare a base name: the name with each ending that is added to it."""
    return [_key(f"{name}{ending}") for _, ending in PLACES.values()]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def yaml_string(text: str) -> str:
    """Quote text as a scalar of YAML 1.1 and 1.2, in ASCII so that a reader's encoding does not matter.

    JSON escapes are not suitable: they write characters beyond U+FFFF as surrogate pairs, which YAML reads as two
    characters.

    Args:
        text: the text to quote.

    Raises:
        FormatError: the text holds a lone surrogate.
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
    """Return the photo's facts in an entry of the record; None for entries of older versions.

    Args:
        entry: entry of an image in the record.

    Raises:
        KeyError, TypeError: the entry is damaged.
    """
    if not entry.get("photo"):
        return None
    if not isinstance(entry["files"], Mapping):
        raise TypeError(f"files: expected an object, got {entry['files']!r}")
    return PhotoFacts(*entry["photo"])
