"""Reading supports from a file of a labelling tool, whose format is recognised by its content."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffup.errors import FormatError
from diffup.formats.labelme import SHAPE_TYPES as LABELME_SHAPES
from diffup.formats.labelme import read_labelme
from diffup.formats.read_coco import read_coco
from diffup.formats.read_cvat import SHAPE_TYPES as CVAT_SHAPES
from diffup.formats.read_cvat import read_cvat
from diffup.formats.read_label_studio import SHAPE_TYPES as LABEL_STUDIO_SHAPES
from diffup.formats.read_label_studio import read_label_studio
from diffup.formats.shapes import KINDS, Kind
from diffup.formats.supports import OnError, SupportSet, path_list, path_text
from diffup.inputs.annotations import Mask
from diffup.inputs.recorded import parse_json, read_text

_SPACE = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # byte order marks, and what may stand before the first element of XML


class Format(NamedTuple):
    """A format that supports are read from.

    Attributes:
        recognise: function that tells whether the content of a JSON file is of the format; None for XML.
        shape_types: kind of annotation that each of its shape types makes.
        read: its reader, which takes the files (all but LabelMe's take the first), the label, and the keyword arguments
            `images`, `shape_types`, `shots` and `on_error`.
    """

    recognise: Callable[[Any], bool] | None
    shape_types: Mapping[str, Kind]
    read: Callable[..., SupportSet]


def _read_coco(
    files: Sequence[str | os.PathLike[str]],
    label: str,
    *,
    images: Any,
    shape_types: Sequence[str] | None,
    **options: Any,
) -> SupportSet:
    folder = Path(files[0]).parent if images is None else images
    found = read_coco(files[0], folder, label, boxes=shape_types == ["bbox"], **options)
    if shape_types == ["segmentation"] and not all(isinstance(annotation, Mask) for annotation in found.annotation):
        raise FormatError(f"kind='mask': {os.fspath(files[0])} has boxes alone")
    return found


FORMATS: dict[str, Format] = {
    "COCO": Format(
        lambda content: isinstance(content, dict) and {"images", "annotations"} <= content.keys(),
        {"segmentation": "mask", "bbox": "box"},
        _read_coco,
    ),
    "LabelMe": Format(
        lambda content: isinstance(content, dict) and "shapes" in content,
        LABELME_SHAPES,
        read_labelme,
    ),
    "Label Studio": Format(
        lambda content: isinstance(content, list) or (isinstance(content, dict) and "data" in content),
        LABEL_STUDIO_SHAPES,
        lambda files, label, **options: read_label_studio(files[0], label, **options),
    ),
    "CVAT": Format(
        None,
        CVAT_SHAPES,
        lambda files, label, **options: read_cvat(files[0], label, **options),
    ),
}
"""The formats, by name."""


def recognise_format(path: str | os.PathLike[str]) -> str:
    """Recognise the format of a file by its content.

    Args:
        path: the file.

    Returns:
        "COCO", "LabelMe", "Label Studio" or "CVAT".

    Raises:
        FormatError: the file cannot be read, or is of no known format.
    """
    name = path_text(path, "path")
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:
        raise FormatError(f"{name}: cannot be read ({error})") from error
    if head.startswith(b"PK\3\4"):
        raise FormatError(f"{name}: a ZIP archive; unpack it, and give the file with the annotations that is in it")
    if head.lstrip(_SPACE).startswith(b"<"):
        return next(known for known, format_ in FORMATS.items() if format_.recognise is None)
    expected = f"expected a file of {', '.join(FORMATS)}"
    try:
        content = parse_json(read_text(path), path)
    except FormatError as error:
        raise FormatError(f"{error}; {expected}") from error
    for known, format_ in FORMATS.items():
        if format_.recognise is not None and format_.recognise(content):
            return known
    raise FormatError(f"{name}: of no known format; {expected}")


def read_supports(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    label: str,
    *,
    images: str | os.PathLike[str] | None = None,
    kind: Kind | None = None,
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports of one class from a file of COCO, LabelMe, Label Studio or CVAT.

    Args:
        paths: the file, or several of LabelMe, which has one for each image.
        label: label of the class.
        images: folder of the images; by default the file's own.
        kind: the kind of annotation to read: "mask", "box", "scribble" or "points"; all by default. Needed if an image
            has several. COCO's boxes are read instead of its masks.
        shots: number of supports K, the first of the file; all by default.
        on_error: "raise" the error of a faulty record, or "skip" the record.

    Returns:
        Support images and annotations; `skipped` lists the faulty records.

    Raises:
        FormatError: the file is of no known format, there are several and not all are LabelMe's, the format has no such
            kind of annotation, or the format's own reader raises it.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    files = path_list(paths, "paths")
    if not files:
        raise FormatError("paths: got an empty list; give at least one file")
    if kind is not None and kind not in KINDS:
        raise FormatError(f"kind={kind!r}: expected {', '.join(KINDS)}")
    names = [recognise_format(files[0])] if len(files) == 1 else [_recognise_one_of_many(file) for file in files]
    other = next((index for index, name in enumerate(names) if name != "LabelMe"), None)
    if len(files) > 1 and other is not None:
        raise FormatError(
            f"{os.fspath(files[other])}: several files are read of LabelMe alone, and this one is of {names[other]}; "
            "give one file"
        )
    format_ = FORMATS[names[0]]
    shape_types = None if kind is None else [shape for shape, made in format_.shape_types.items() if made == kind]
    if shape_types == []:
        known = ", ".join(dict.fromkeys(format_.shape_types.values()))
        raise FormatError(f"kind={kind!r}: {os.fspath(files[0])} is of {names[0]}, which has {known}")
    return format_.read(files, label, images=images, shape_types=shape_types, shots=shots, on_error=on_error)


def _recognise_one_of_many(path: str | os.PathLike[str]) -> str:
    """The format of one of several files; one that cannot be read is left to LabelMe's reader, which may skip it."""
    try:
        return recognise_format(path)
    except FormatError:
        return "LabelMe"
