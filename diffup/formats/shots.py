"""What the readers return, and the checks that they share."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.annotation import Annotation, Box, Mask, Points, Scribble
from diffup.errors import AnnotationError, FormatError, ImageError
from diffup.images import MAX_PIXELS, ImageLike, describe, open_image
from diffup.masks import read_mask

Corners: TypeAlias = tuple[float, float, float, float]

_SLACK = 1.0  # pixels by which a box may leave its image and is cut: programs round


class Shots(NamedTuple):
    """Support images and what is known of each: `model.segment(query, *shots)`.

    Attributes:
        support: paths, or PIL images that were inside a record.
        annotation: one `Mask`, `Box`, `Scribble` or `Points` for each.
    """

    support: list[ImageLike]
    annotation: list[Annotation]


def gather(found: Sequence[tuple[ImageLike, Annotation]], nothing: str) -> Shots:
    """Put pairs of images and annotations together.

    Raises:
        FormatError: there are none; the message is `nothing`.
    """
    if not found:
        raise FormatError(nothing)
    return Shots([image for image, _ in found], [annotation for _, annotation in found])


def check_shots(shots: int | None) -> None:
    """Refuse a number of supports below 1.

    Raises:
        FormatError: it is.
    """
    if shots is not None and shots < 1:
        raise FormatError(f"shots: expected at least 1 or None for all, got {shots}")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FormatError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{os.fspath(path)}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise FormatError(f"{os.fspath(path)}: expected a JSON object, got {describe(content)}")
    return content


def field(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field that must be there.

    Args:
        record: which has it.
        name: of the field.
        kind: its type or types.
        where: what to call the record in error messages, such as `labels.json: images[3]`.

    Raises:
        FormatError: it is missing or of another type.
    """
    if not isinstance(record, Mapping):
        raise FormatError(f"{where}: expected an object with the field {name!r}, got {describe(record)}")
    value = record.get(name)
    if value is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise FormatError(f"{where}.{name}: expected {names}, got {'nothing' if value is None else describe(value)}")
    return value


def upright_size(source: str | os.PathLike[str] | Image.Image, where: str) -> tuple[int, int]:
    """Height and width of an image as it is read, its EXIF orientation applied, from the header alone.

    Raises:
        FormatError: it is missing or no image, or larger than `diffup.images.MAX_PIXELS`.
    """
    try:
        if isinstance(source, Image.Image):
            return _header_size(source, where)
        with Image.open(source) as image:
            return _header_size(image, where)
    except FormatError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise FormatError(f"{where}: {describe(source)} cannot be read as an image ({error})") from error


def check_size(stated: tuple[int, int], actual: tuple[int, int], where: str) -> None:
    """Refuse a record whose stated (height, width) is not its image's.

    Raises:
        FormatError: they differ.
    """
    if stated != actual:
        turned = " The image is turned by its EXIF orientation, the record is not." if stated == actual[::-1] else ""
        raise FormatError(
            f"{where}: the record says {stated[1]} x {stated[0]} pixels (width x height), the image has "
            f"{actual[1]} x {actual[0]}.{turned}"
        )


def decode_base64(text: str, where: str) -> bytes:
    """The bytes of a base64 field.

    Raises:
        FormatError: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{where}: not base64 ({error})") from error


def embedded_image(data: bytes, where: str) -> Image.Image:
    """An image from the bytes of its file, its size checked, not yet decoded.

    Raises:
        FormatError: no image, or one larger than `diffup.images.MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # as above
        raise FormatError(f"{where}: the embedded image cannot be read ({error})") from error
    _header_size(image, where)
    return image


def read_index(source: Any, where: str) -> npt.NDArray[np.integer[Any]]:
    """The labels of an index mask, as a path, PIL image or array.

    Raises:
        FormatError: it cannot be read, or has colours instead of labels.
    """
    if not isinstance(source, np.ndarray):
        try:
            image, _ = open_image(source, where)
        except ImageError as error:
            raise FormatError(str(error)) from error
        if image.mode not in ("P", "L", "I", "I;16", "1"):
            raise FormatError(f"{where}: expected an index mask, got an image of mode {image.mode}")
        source = np.asarray(image)
    if source.ndim != 2 or source.dtype.kind not in "iub":
        raise FormatError(f"{where}: expected labels (H, W), got {describe(source)}")
    return np.asarray(source.astype(np.uint8) if source.dtype == np.bool_ else source)


def class_mask(source: Any, label: int | None, where: str) -> Mask | None:
    """The mask of a label, or of whatever a two-valued mask marks; `None` if it marks nothing.

    Raises:
        FormatError: the mask cannot be read, or has several labels and none was chosen.
    """
    if label is not None:
        chosen = read_index(source, where) == label
        return Mask(chosen) if chosen.any() else None
    try:
        mask = Mask(read_mask(source, where))
    except AnnotationError as error:
        raise FormatError(f"{error} Or give label=, the class to take from index masks.") from error
    return mask if bool(mask.mask.any()) else None


def cut_box(box: Corners, size: tuple[int, int], where: str) -> Corners:
    """A box (x0, y0, x1, y1) within its image, which it may leave by a pixel.

    Raises:
        FormatError: it leaves the image by more, is empty, or is not of finite numbers.
    """
    height, width = size
    x0, y0, x1, y1 = box
    inside = -_SLACK <= x0 < x1 <= width + _SLACK and -_SLACK <= y0 < y1 <= height + _SLACK  # false for NaN
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not inside or cut[0] >= cut[2] or cut[1] >= cut[3]:
        shown = ", ".join(f"{number:g}" for number in box)
        raise FormatError(
            f"{where}: the box from ({shown}) as left, top, right and bottom is empty or leaves the image of "
            f"{width} x {height} pixels"
        )
    return cut


def unite(
    masks: Sequence[npt.NDArray[np.bool_]],
    boxes: Sequence[Corners],
    where: str,
    strokes: Sequence[Any] = (),
    points: Sequence[tuple[float, float]] = (),
) -> Annotation:
    """What several objects of one image say together.

    Raises:
        FormatError: kinds are mixed, or masks mark no pixel.
    """
    kinds: dict[str, tuple[Sequence[Any], Callable[[], Annotation]]] = {
        "masks": (masks, lambda: Mask(np.any(masks, axis=0))),
        "boxes": (boxes, lambda: Box(boxes)),
        "strokes": (strokes, lambda: Scribble(list(strokes))),
        "points": (points, lambda: Points(list(points))),
    }
    given = [name for name, (items, _) in kinds.items() if len(items)]
    if len(given) != 1:
        raise FormatError(f"{where}: an image has one kind of annotation, got {' and '.join(given) or 'none'}")
    if masks and not np.any(masks):
        raise FormatError(f"{where}: the masks mark no pixel")
    return kinds[given[0]][1]()


def _header_size(image: Image.Image, where: str) -> tuple[int, int]:
    if image.width * image.height > MAX_PIXELS:
        raise FormatError(f"{where}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}")
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations that swap the sides
    return (image.width, image.height) if turned else (image.height, image.width)
