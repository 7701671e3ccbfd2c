"""Reading supports from records in memory: FiftyOne's samples and rows of Hugging Face data sets."""

from __future__ import annotations

import io
import os
import tokenize
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import FormatError
from diffup.formats.checks import MarksNothing
from diffup.formats.fields import decode_base64, field, four_numbers
from diffup.formats.supports import (
    Corners,
    Gathering,
    OnError,
    SupportSet,
    check_pixels,
    check_shots,
    check_size,
    class_mask,
    cut_box,
    embedded_image,
    iterated,
    path_text,
    read_index,
    unite,
    upright_size,
    with_area,
)
from diffup.inputs.annotations import Annotation, Mask
from diffup.inputs.images import MAX_PIXELS, ImageLike, describe
from diffup.inputs.recorded import Files

_MASK_COLUMNS = ("mask", "segmentation", "segmentation_mask", "annotation", "label")
_CLASS_FIELDS = ("category", "categories", "category_id", "label", "labels")


def read_fiftyone(
    samples: Any,
    label: str | int,
    field_name: str = "ground_truth",
    *,
    mask_targets: Mapping[Any, str] | None = None,
    images: str | os.PathLike[str] = ".",
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports from FiftyOne's samples, or from dictionaries of the same form (`sample.to_dict()`).

    A sample has a `filepath` and a field of labels. The field holds `detections` (each with `label`, `bounding_box` as
    fractions of the image [left, top, width, height], and optionally `mask` or `mask_path`, relative to that box) or a
    segmentation: `mask` or `mask_path`, an index mask of the image's own size. Masks are arrays, or bytes as FiftyOne
    stores them.

    Args:
        samples: a data set or view of FiftyOne, one sample, or an iterable of samples or dictionaries. Samples without
            the label, or with an empty field, are ignored.
        label: name of the class; in a segmentation its pixel value, or its name if `mask_targets` has it.
        field_name: name of the field that holds the labels.
        mask_targets: names of a segmentation's classes by pixel value; by default those of the data set or view.
        images: folder in which paths of another machine are looked up, by the rules of `diffup.inputs.recorded.Files`.
        shots: number of supports K, the first of the samples; all by default.
        on_error: "raise" the error of a faulty sample, or "skip" the sample.

    Returns:
        Paths of the support images, and for each a `Mask` of all objects, or a `Box` around each object if they have no
        masks; `skipped` lists the faulty samples. As in FiftyOne, an object's mask is resized to its box by nearest
        neighbour. Boxes without area are ignored if their image has others.

    Raises:
        FormatError: a sample has another form, or fewer than `shots` have the label. The message names the sample and
            the field.
    """
    check_shots(shots)
    found, files = Gathering(on_error), Files(path_text(images, "images"))
    if not isinstance(mask_targets, Mapping | None):
        raise FormatError(f"mask_targets: expected names by pixel value, {{1: 'dog'}}, got {describe(mask_targets)}")
    value = _pixel_value(label, _mask_targets(samples, field_name) if mask_targets is None else mask_targets)
    for index, sample in enumerate(_samples(samples)):
        if len(found) == shots:
            break
        where = f"samples[{index}]"
        with found.record(where):
            recorded = field(sample, "filepath", (str, os.PathLike), where)
            at = f"{where}.{field_name}"
            labels = sample.get(field_name)
            if labels is None:
                found.without(f"{at} is {'empty' if field_name in sample else 'not there'}")
                continue
            path = files.find(recorded, f"{where}.filepath")
            annotation = _labels(field(sample, field_name, Mapping, where), label, value, path, files, at)
            if annotation is not None:
                found.add(path, annotation)
    return found.shots(f"label={label!r}: no sample has it in the field {field_name!r}", shots)


def _samples(given: Any) -> Iterator[Any]:
    """Samples as dictionaries; a sample of FiftyOne can be iterated over too, but has a file."""
    several = [given] if isinstance(given, Mapping) or hasattr(given, "filepath") else given
    expected = "samples of FiftyOne, or dictionaries of their form"
    return (
        sample.to_dict() if hasattr(sample, "to_dict") else sample for sample in iterated(several, "samples", expected)
    )


def _mask_targets(samples: Any, field_name: str) -> Mapping[Any, str]:
    """Names of a segmentation's classes by pixel value, as a data set or view of FiftyOne states them."""
    targets = getattr(samples, "mask_targets", None) or {}
    found = targets.get(field_name) or getattr(samples, "default_mask_targets", None)
    return found if isinstance(found, Mapping) else {}


def _pixel_value(label: str | int, mask_targets: Mapping[Any, str]) -> int | None:
    """Pixel value of a class in a segmentation; None if it is not known."""
    if isinstance(label, Integral):
        return int(label)
    return next((int(value) for value, name in mask_targets.items() if name == label and str(value).isdecimal()), None)


def _labels(
    labels: Mapping[str, Any], label: str | int, value: int | None, path: Path, files: Files, at: str
) -> Annotation:
    """The annotation of the class in the label field of one sample; `None` if it does not show the class."""
    size = upright_size(path, f"{at.partition('.')[0]}.filepath")
    if "detections" in labels:
        entries = labels["detections"]
        return _detections(field(labels, "detections", list, at), label, size, files, at) if entries else None
    if "mask" not in labels and "mask_path" not in labels:
        raise FormatError(f"{at}: expected detections or the mask of a segmentation, got {sorted(labels)}")
    if labels.get("mask") is None and labels.get("mask_path") is None:
        return None
    if value is None:
        raise FormatError(
            f"label={label!r}: {at} is a segmentation, whose classes are numbers; give one, or their names with "
            "mask_targets={1: 'dog'}"
        )
    mask = class_mask(_stored_mask(labels, files, at), value, at)
    return _fitting(mask, size, at)


def read_huggingface(
    rows: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    label: int | str | None = None,
    *,
    column: str | None = None,
    image_column: str = "image",
    box_format: Literal["xywh", "xyxy"] = "xywh",
    images: str | os.PathLike[str] = ".",
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports from rows of a Hugging Face data set.

    Args:
        rows: a data set, streamed or not, one row or several (`dataset[0]`, `dataset.select(range(5))`). Rows without
            the class, or with an empty column, are ignored.
        label: pixel value of the class in index masks, or the class of the boxes to read, which may be a name if the
            data set's features have the names; by default masks are two-valued, and all boxes are read.
        column: name of the column with the masks (an image, an array or a path), or with objects that have `bbox` and
            their class in `category`, `categories`, `category_id`, `label` or `labels`. By default the only one of
            `mask`, `segmentation`, `segmentation_mask`, `annotation`, `label` and `objects` that the rows have.
        image_column: name of the column with the images.
        box_format: form of `bbox` in pixels: "xywh" (left, top, width, height; COCO's) or "xyxy" (left, top, right,
            bottom).
        images: folder in which paths of another machine are looked up, by the rules of `diffup.inputs.recorded.Files`.
        shots: number of supports K, the first of the rows; all by default. The rows after them are not read.
        on_error: "raise" the error of a faulty row, or "skip" the row.

    Returns:
        Support images in the form that the rows have, and a `Mask` or a `Box` for each; `skipped` lists the faulty
        rows. Boxes without area are ignored if their image has others.

    Raises:
        FormatError: a row has another form, or fewer than `shots` have the class. The message names the row and the
            column.
    """
    check_shots(shots)
    if box_format not in ("xywh", "xyxy"):
        raise FormatError(f"box_format={box_format!r}: expected xywh or xyxy")
    found, files = Gathering(on_error), Files(path_text(images, "images"))
    features = getattr(rows, "features", None)
    several = (
        [rows] if isinstance(rows, Mapping) else iterated(rows, "rows", "a data set of Hugging Face, or rows of one")
    )
    for index, row in enumerate(several):
        if len(found) == shots:
            break
        where = f"rows[{index}]"
        with found.record(where):
            if not isinstance(row, Mapping) or row.get(image_column) is None:
                raise FormatError(f"{where}.{image_column}: expected an image, got nothing")
            name = column or _only_column(row, where)
            at = f"{where}.{name}"
            if name not in row:
                raise FormatError(f"{at}: there is no such column; the row has {', '.join(map(str, row))}")
            if row[name] is None:
                found.without(f"{at}: expected a mask or objects, got nothing")
                continue
            image = _picture(row[image_column], files, f"{where}.{image_column}")
            size = _size_of(image, f"{where}.{image_column}")
            annotation: Annotation
            if _has_boxes(row[name]):
                annotation = _objects(row[name], _numbered(label, features, name), size, box_format, at)
            else:
                if label is not None and not isinstance(label, Integral):
                    raise FormatError(f"label={label!r}: the classes of the masks in {at} are numbers")
                annotation = _fitting(class_mask(_picture(row[name], files, at), label, at), size, at)
            if annotation is not None:
                found.add(image, annotation)
    return found.shots(f"label={label!r}: no row has it", shots)


def _numbered(label: int | str | None, features: Any, column: str) -> int | str | None:
    """A class name as the number that the rows have, if the features of the column with the objects tell it."""
    fields = _inner(features.get(column)) if isinstance(features, Mapping) else None
    if not isinstance(fields, Mapping) or not isinstance(label, str):
        return label
    for name in _CLASS_FIELDS:
        names = getattr(_inner(fields.get(name)), "names", None)
        if names is not None and label in names:
            return int(names.index(label))
    return label


def _inner(feature: Any) -> Any:
    """The feature of a list's items; another feature as it is."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def _fitting(mask: Mask | None, size: tuple[int, int], where: str) -> Mask | None:
    """Check that a mask has the (height, width) of its image, and return it.

    Raises:
        FormatError: it has another size.
    """
    if mask is not None:
        check_size((mask.mask.shape[0], mask.mask.shape[1]), size, where)
    return mask


def _detections(entries: list[Any], label: str | int, size: tuple[int, int], files: Files, where: str) -> Annotation:
    """The annotation made of a sample's detections that have the label; `None` if there are none."""
    chosen = []
    for index, entry in enumerate(entries):
        at = f"{where}.detections[{index}]"
        if not isinstance(entry, Mapping):
            raise FormatError(f"{at}: expected an object with the field 'label', got {describe(entry)}")
        if entry.get("label") == label:
            chosen.append(partial(_detection, entry, size, files, at))
    read = with_area(chosen)
    masks = [one for one in read if isinstance(one, np.ndarray)]
    boxes = [one for one in read if isinstance(one, tuple)]
    return unite(masks, boxes, where) if read else None


def _detection(
    entry: Mapping[str, Any], size: tuple[int, int], files: Files, at: str
) -> npt.NDArray[np.bool_] | Corners:
    """The mask of one detection at the image's size, or its box."""
    box = four_numbers(field(entry, "bounding_box", (list, tuple, np.ndarray), at), f"{at}.bounding_box")
    x, y, width, height = (box * (size[1], size[0], size[1], size[0])).tolist()
    try:
        corners = cut_box((x, y, x + width, y + height), size, f"{at}.bounding_box")
    except MarksNothing:
        raise
    except FormatError as error:
        pixels = np.abs(box).max() > 2
        hint = "; they are fractions of the image, and these look like pixels: divide by its width and height"
        raise FormatError(f"{error}{hint if pixels else ''}") from error
    if entry.get("mask") is None and entry.get("mask_path") is None:
        return corners
    return _place(read_index(_stored_mask(entry, files, at), f"{at}.mask") > 0, corners, size)


def _place(mask: npt.NDArray[np.bool_], box: Corners, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Paste a mask that is relative to its box into an empty mask of the image's size."""
    left, top = min(round(box[0]), size[1] - 1), min(round(box[1]), size[0] - 1)
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    resized = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    canvas = np.zeros(size, dtype=bool)
    canvas[top:bottom, left:right] = np.asarray(resized)
    return canvas


def _stored_mask(record: Mapping[str, Any], files: Files, where: str) -> Any:
    """The array of a `mask` field, or the path in `mask_path`."""
    value = record.get("mask")
    if value is None:
        return files.find(field(record, "mask_path", (str, os.PathLike), where), f"{where}.mask_path")
    if isinstance(value, Mapping):  # MongoDB's JSON
        value = field(field(value, "$binary", Mapping, f"{where}.mask"), "base64", str, f"{where}.mask.$binary")
    if isinstance(value, str):
        value = decode_base64(value, f"{where}.mask")
    if not isinstance(value, bytes):
        return _array(value, f"{where}.mask")
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(value, 8 * MAX_PIXELS)
        if inflater.unconsumed_tail:
            raise FormatError(f"{where}.mask: larger than {MAX_PIXELS} pixels")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (zlib.error, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:  # numpy's of headers, too
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}.mask: no compressed array as FiftyOne stores it ({error})") from error


def _only_column(row: Mapping[str, Any], where: str) -> str:
    """Name of the one column that holds annotations; if all are empty, of the first that could."""
    columns = [name for name in (*_MASK_COLUMNS, "objects") if name in row]
    present = [name for name in columns if not isinstance(row[name], int | float | np.generic | None)]
    present = present or [name for name in columns if row[name] is None][:1]
    if len(present) != 1:
        raise FormatError(
            f"{where}: expected one of the columns {', '.join(_MASK_COLUMNS)} and objects, got "
            f"{' and '.join(present) or ', '.join(map(str, row))}. Name it with column="
        )
    return present[0]


def _picture(value: Any, files: Files, where: str) -> Any:
    """An image or mask of a row; a path is looked up, and the undecoded form {"bytes", "path"} is opened."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return embedded_image(field(value, "bytes", bytes, where), where)
        value = field(value, "path", (str, os.PathLike), where)
    if isinstance(value, str | os.PathLike):
        return files.find(value, where)
    return _array(value, where) if isinstance(value, list) else value


def _array(value: Any, where: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise FormatError(f"{where}: expected rows of pixels, got {describe(value)}") from error


def _size_of(image: ImageLike, where: str) -> tuple[int, int]:
    """(height, width) of a row's image."""
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3):
            raise FormatError(f"{where}: expected an image (H, W, C), got {describe(image)}")
        return image.shape[0], image.shape[1]
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise FormatError(f"{where}: expected a PIL image, an array or a path, got {describe(image)}")
    return upright_size(image, where)


def _has_boxes(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return "bbox" in first if isinstance(first, Mapping) else isinstance(value, list) and not value


def _objects(value: Any, label: int | str | None, size: tuple[int, int], box_format: str, where: str) -> Annotation:
    """The annotation made of a row's boxes that have the label; `None` if there are none."""
    entries = _listed(value, where) if isinstance(value, Mapping) else value
    chosen = []
    for index, entry in enumerate(entries):
        at = f"{where}[{index}]"
        numbers = field(entry, "bbox", (list, tuple, np.ndarray), at)
        if label is not None:
            classes = [name for name in _CLASS_FIELDS if name in entry]
            if not classes:
                raise FormatError(f"{at}: expected the class in one of {', '.join(_CLASS_FIELDS)}")
            if entry[classes[0]] != label:
                continue
        chosen.append(partial(_object, numbers, size, box_format, f"{at}.bbox"))
    boxes = with_area(chosen)
    return unite([], boxes, where) if boxes else None


def _object(numbers: Any, size: tuple[int, int], box_format: str, at: str) -> Corners:
    """The corners of one box of a row."""
    x, y, right, bottom = four_numbers(numbers, at).tolist()
    if box_format == "xywh":
        right, bottom = x + right, y + bottom
    try:
        box = cut_box((x, y, right, bottom), size, at)
    except MarksNothing:
        raise
    except FormatError as error:
        raise FormatError(f"{error}; box_format={box_format!r}, is it the other one?") from error
    check_pixels((box[:2], box[2:]), size, at)
    return box


def _listed(objects: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Turn a dictionary of lists, as data sets store objects, into a list of dictionaries.

    Raises:
        FormatError: the lists differ in length.
    """
    columns = {name: items for name, items in objects.items() if isinstance(items, list | tuple | np.ndarray)}
    lengths = {name: len(items) for name, items in columns.items()}
    if len(set(lengths.values())) > 1:
        raise FormatError(f"{where}: every object has one value of each field, got {lengths}")
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]
