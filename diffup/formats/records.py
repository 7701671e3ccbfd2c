"""Supports from records in memory: FiftyOne's samples and rows of Hugging Face data sets."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.annotation import Annotation
from diffup.errors import FormatError
from diffup.formats.shots import (
    Corners,
    Shots,
    class_mask,
    cut_box,
    decode_base64,
    embedded_image,
    field,
    gather,
    read_index,
    unite,
    upright_size,
)
from diffup.images import MAX_PIXELS, ImageLike, describe

_MASK_COLUMNS = ("mask", "segmentation", "segmentation_mask", "annotation", "label")
_CLASS_FIELDS = ("category", "categories", "category_id", "label", "labels")


def read_fiftyone(
    samples: Mapping[str, Any] | Sequence[Mapping[str, Any]], label: str | int, field_name: str = "ground_truth"
) -> Shots:
    """Supports from FiftyOne's samples, as dictionaries (`sample.to_dict()`) or made by hand.

    Args:
        samples: one or several; those without the label are passed over. Of each are read `filepath` and the field,
            which holds `detections` (each with `label`, `bounding_box` as parts of the image [left, top, width,
            height], and `mask` or `mask_path`, relative to that box, or neither) or a segmentation: `mask` or
            `mask_path`, an index mask of the image's own size. Masks are arrays, or bytes as FiftyOne stores them.
        label: name of the class, or of a segmentation the number.
        field_name: of the field of the sample that holds the labels.

    Returns:
        Paths, and a `Mask` of all objects, or a `Box` around each if they have no masks. As in FiftyOne, an object's
        mask is brought to the pixels of its box by nearest neighbour.

    Raises:
        FormatError: a sample is not like that, or none has the label. The message names the sample and the field.
    """
    found = []
    for index, sample in enumerate([samples] if isinstance(samples, Mapping) else samples):
        where = f"samples[{index}]"
        path = field(sample, "filepath", (str, os.PathLike), where)
        labels = field(sample, field_name, Mapping, where)
        size = upright_size(path, f"{where}.filepath")
        at = f"{where}.{field_name}"
        annotation: Annotation
        if "detections" in labels:
            annotation = _detections(field(labels, "detections", list, at), label, size, at)
        elif "mask" in labels or "mask_path" in labels:
            if not isinstance(label, int):
                raise FormatError(f"label={label!r}: {at} is a segmentation, whose classes are numbers")
            annotation = class_mask(_stored_mask(labels, at), label, at)
        else:
            raise FormatError(f"{at}: expected detections or the mask of a segmentation, got {sorted(labels)}")
        if annotation is not None:
            found.append((path, annotation))
    return gather(found, f"label={label!r}: no sample has it in the field {field_name!r}")


def read_huggingface(
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    label: int | str | None = None,
    *,
    column: str | None = None,
    image_column: str = "image",
    box_format: Literal["xywh", "xyxy"] = "xywh",
) -> Shots:
    """Supports from rows of a Hugging Face data set.

    Args:
        rows: one or several (`dataset[0]`, `list(dataset.select(range(5)))`); those without the class are passed over.
        label: the class in an index mask or among the boxes; by default masks are two-valued, and all boxes count.
        column: that holds the masks (an image, an array or a path), or objects with `bbox` and their class in
            `category`, `categories`, `category_id`, `label` or `labels`. By default the only one of `mask`,
            `segmentation`, `segmentation_mask`, `annotation`, `label` and `objects` that the rows have.
        image_column: that holds the images.
        box_format: "xywh" (left, top, width, height: COCO's, and usual) or "xyxy" (left, top, right, bottom), pixels.

    Returns:
        Images as they are in the rows, and a `Mask` or a `Box`.

    Raises:
        FormatError: a row is not like that, or none has the class. The message names the row and the column.
    """
    if box_format not in ("xywh", "xyxy"):
        raise FormatError(f"box_format={box_format!r}: expected xywh or xyxy")
    found = []
    for index, row in enumerate([rows] if isinstance(rows, Mapping) else rows):
        where = f"rows[{index}]"
        if not isinstance(row, Mapping) or row.get(image_column) is None:
            raise FormatError(f"{where}.{image_column}: expected an image, got nothing")
        name = column or _only_column(row, where)
        if row.get(name) is None:
            raise FormatError(f"{where}.{name}: expected a mask or objects, got nothing")
        image, at = _picture(row[image_column], f"{where}.{image_column}"), f"{where}.{name}"
        annotation: Annotation
        if _has_boxes(row[name]):
            annotation = _objects(row[name], label, _size_of(image, f"{where}.{image_column}"), box_format, at)
        else:
            if label is not None and not isinstance(label, int):
                raise FormatError(f"label={label!r}: the classes of the masks in {at} are numbers")
            annotation = class_mask(_picture(row[name], at), label, at)
        if annotation is not None:
            found.append((image, annotation))
    return gather(found, f"label={label!r}: no row has it")


def _detections(entries: list[Any], label: str | int, size: tuple[int, int], where: str) -> Annotation:
    """The detections of one sample that have the label; `None` without any."""
    masks: list[npt.NDArray[np.bool_]] = []
    boxes: list[Corners] = []
    for index, entry in enumerate(entries):
        at = f"{where}.detections[{index}]"
        if field(entry, "label", str, at) != label:
            continue
        box = _numbers(field(entry, "bounding_box", (list, tuple, np.ndarray), at), f"{at}.bounding_box")
        x, y, width, height = (box * (size[1], size[0], size[1], size[0])).tolist()
        corners = cut_box((x, y, x + width, y + height), size, f"{at}.bounding_box")
        if entry.get("mask") is None and entry.get("mask_path") is None:
            boxes.append(corners)
        else:
            masks.append(_place(read_index(_stored_mask(entry, at), f"{at}.mask") > 0, corners, size))
    return unite(masks, boxes, where) if masks or boxes else None


def _place(mask: npt.NDArray[np.bool_], box: Corners, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask relative to its box, on the pixels of the image."""
    left, top = min(round(box[0]), size[1] - 1), min(round(box[1]), size[0] - 1)
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    resized = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    canvas = np.zeros(size, dtype=bool)
    canvas[top:bottom, left:right] = np.asarray(resized)
    return canvas


def _stored_mask(record: Mapping[str, Any], where: str) -> Any:
    """The array of a `mask` field, or the path in `mask_path`."""
    value = record.get("mask")
    if value is None:
        return field(record, "mask_path", (str, os.PathLike), where)
    if isinstance(value, Mapping):  # MongoDB's JSON
        value = field(field(value, "$binary", Mapping, f"{where}.mask"), "base64", str, f"{where}.mask.$binary")
    if isinstance(value, str):
        value = decode_base64(value, f"{where}.mask")
    if not isinstance(value, bytes):
        return np.asarray(value)
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(value, 8 * MAX_PIXELS)
        if inflater.unconsumed_tail:
            raise FormatError(f"{where}.mask: larger than {MAX_PIXELS} pixels")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (zlib.error, ValueError, EOFError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}.mask: no compressed array as FiftyOne stores it ({error})") from error


def _only_column(row: Mapping[str, Any], where: str) -> str:
    """The one column that can hold annotations."""
    present = [name for name in (*_MASK_COLUMNS, "objects") if not isinstance(row.get(name), int | float | None)]
    if len(present) != 1:
        raise FormatError(
            f"{where}: expected one of the columns {', '.join(_MASK_COLUMNS)} and objects, got "
            f"{' and '.join(present) or ', '.join(map(str, row))}. Name it with column="
        )
    return present[0]


def _picture(value: Any, where: str) -> Any:
    """An image or mask as it is in a row; the undecoded form, {"bytes", "path"}, is opened."""
    if not isinstance(value, Mapping):
        return np.asarray(value) if isinstance(value, list) else value
    if value.get("bytes") is not None:
        return embedded_image(field(value, "bytes", bytes, where), where)
    return field(value, "path", (str, os.PathLike), where)


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
    """The boxes of one row that have the label; `None` without any."""
    entries = value
    if isinstance(value, Mapping):  # a dictionary of lists, as data sets store a list of dictionaries
        entries = [dict(zip(value, items, strict=False)) for items in zip(*value.values(), strict=False)]
    boxes = []
    for index, entry in enumerate(entries):
        at = f"{where}[{index}]"
        numbers = _numbers(field(entry, "bbox", (list, tuple, np.ndarray), at), f"{at}.bbox")
        if label is not None:
            classes = [name for name in _CLASS_FIELDS if name in entry]
            if not classes:
                raise FormatError(f"{at}: expected the class in one of {', '.join(_CLASS_FIELDS)}")
            if entry[classes[0]] != label:
                continue
        x, y, right, bottom = numbers.tolist()
        if box_format == "xywh":
            right, bottom = x + right, y + bottom
        try:
            boxes.append(cut_box((x, y, right, bottom), size, f"{at}.bbox"))
        except FormatError as error:
            raise FormatError(f"{error}; box_format={box_format!r}, is it the other one?") from error
    return unite([], boxes, where) if boxes else None


def _numbers(value: Any, where: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: expected four numbers, got {describe(value)}") from error
    if numbers.shape != (4,):
        raise FormatError(f"{where}: expected four numbers, got {describe(value)}")
    return numbers
