"""What the readers return, and the checks that they share."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import AnnotationError, FormatError, ImageError
from diffup.formats.checks import MarksNothing
from diffup.inputs import images
from diffup.inputs.annotations import Annotation, Box, Mask, Points, Scribble
from diffup.inputs.images import MAX_PIXELS, ImageLike, describe, open_image
from diffup.inputs.masks import read_mask

Corners: TypeAlias = tuple[float, float, float, float]
T = TypeVar("T")

OnError: TypeAlias = Literal["raise", "skip"]
"""What a reader does about a faulty record: raise its error, or pass it over and report it."""

_SLACK = 4.0  # pixels by which a box may leave its image and is cut: programs round, and hands slip
_SLACK_PART = 0.02  # the same as a part of the longer side, for large images
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")


class Skipped(NamedTuple):
    """A record that was passed over.

    Attributes:
        record: what it is called, such as `labels.json: images[3]`.
        reason: what is wrong with it.
    """

    record: str
    reason: str


class _Pair(NamedTuple):
    support: list[ImageLike]
    annotation: list[Annotation]


class Shots(_Pair):
    """Support images and what is known of each: `model.segment(query, *shots)`.

    Attributes:
        support: paths, or PIL images that were inside a record.
        annotation: one `Mask`, `Box`, `Scribble` or `Points` for each.
        skipped: records that `on_error="skip"` passed over, with the reasons. It is no part of the tuple.
    """

    skipped: tuple[Skipped, ...] = ()


class Gathering:
    """Supports as a reader finds them, and the records that it passes over.

    Args:
        on_error: "raise" or "skip".

    Raises:
        FormatError: another `on_error`.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise FormatError(f"on_error={on_error!r}: expected {' or '.join(get_args(OnError))}")
        self._skip = on_error == "skip"
        self._found: list[tuple[ImageLike, Annotation]] = []
        self._skipped: list[Skipped] = []
        self._without: str | None = None

    def __len__(self) -> int:
        return len(self._found)

    def add(self, image: ImageLike, annotation: Annotation) -> None:
        """Take a support."""
        self._found.append((image, annotation))

    def without(self, reason: str) -> None:
        """Note that a record has nothing of the class, which is no fault; the first is told where none has."""
        self._without = self._without or reason

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        """Read a record within: its error is raised, or the record passed over and reported."""
        try:
            yield
        except (AnnotationError, FormatError, ImageError) as error:
            if not self._skip:
                raise
            self._skipped.append(Skipped(name, str(error)))

    def shots(self, nothing: str, wanted: int | None = None) -> Shots:
        """What was found; a warning counts what was passed over.

        Args:
            nothing: message of the error where nothing was found.
            wanted: number of supports there must be.

        Raises:
            FormatError: there are none, or less than wanted.
        """
        passed = ""
        if self._skipped:
            first = self._skipped[0]
            reason = first.reason if first.reason.startswith(first.record) else f"{first.record}: {first.reason}"
            passed = f"{len(self._skipped)} faulty records were passed over, the first: {reason}"
        if not self._found:
            remarks = "".join(f". {remark}" for remark in (passed, self._without) if remark)
            raise FormatError(nothing + remarks)
        if wanted is not None and len(self._found) < wanted:
            raise FormatError(
                f"shots={wanted} were asked for, and {len(self._found)} can be read{passed and f'. {passed}'}"
            )
        if passed:
            warnings.warn(f"{passed}. `.skipped` of the result names them all", stacklevel=3)
        shots = Shots([image for image, _ in self._found], [annotation for _, annotation in self._found])
        shots.skipped = tuple(self._skipped)
        return shots


def with_area(readings: Iterable[Callable[[], T]]) -> list[T]:
    """What the objects of one image give; those without area are left out, unless there is no other.

    Raises:
        FormatError: an object is faulty, or none has an area.
    """
    good: list[T] = []
    nothing: MarksNothing | None = None
    for reading in readings:
        try:
            good.append(reading())
        except MarksNothing as error:
            nothing = nothing or error
    if nothing is not None and not good:
        raise nothing
    return good


def check_shots(shots: int | None) -> None:
    """Refuse a number of supports below 1.

    Raises:
        FormatError: it is.
    """
    if shots is not None and shots < 1:
        raise FormatError(f"shots: expected at least 1 or None for all, got {shots}")


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


def number_field(record: Mapping[str, Any], name: str, where: str) -> int:
    """A whole number that must be there; 60.0 and "60" are 60, as some programs write it.

    Raises:
        FormatError: it is missing or no whole number.
    """
    value = whole(field(record, name, (int, float, str), where))
    if not isinstance(value, int):
        raise FormatError(f"{where}.{name}: expected int, got {describe(value)}")
    return value


def id_field(record: Mapping[str, Any], name: str, where: str) -> int | str:
    """An id that must be there: 1.0 and "1" are 1, other texts stay.

    Raises:
        FormatError: it is missing or neither a text nor a whole number.
    """
    value = whole(field(record, name, (int, str, float), where))
    if isinstance(value, float):
        raise FormatError(f"{where}.{name}: expected int or str, got {describe(value)}")
    return value


def whole(value: float | str) -> int | float | str:
    """The whole number that a float or a text stands for, or the value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    return value


def stated_size(record: Mapping[str, Any], height: str, width: str, where: str) -> tuple[int, int] | None:
    """The (height, width) that a record states; `None` where a side is missing, null or not above 0.

    Raises:
        FormatError: it is no whole number.
    """
    if record.get(height) is None or record.get(width) is None:
        return None
    size = number_field(record, height, where), number_field(record, width, where)
    return size if min(size) > 0 else None


def upright_size(source: str | os.PathLike[str] | Image.Image, where: str) -> tuple[int, int]:
    """Height and width of an image as `diffup.inputs.images.read_image` gives it.

    Raises:
        FormatError: it is missing or no image, or larger than `diffup.inputs.images.MAX_PIXELS`.
    """
    try:
        if isinstance(source, Image.Image):
            image, _ = open_image(source, where)
            return image.height, image.width
        height, width = images.upright_size(Path(source), where)
    except ImageError as error:
        raise FormatError(str(error)) from error
    if height * width > MAX_PIXELS:
        raise FormatError(f"{where}: {width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    return height, width


def check_size(stated: tuple[int, int] | None, actual: tuple[int, int], where: str) -> None:
    """Refuse a record whose stated (height, width) is not its image's; one that states none is taken.

    Raises:
        FormatError: they differ.
    """
    if stated is not None and stated != actual:
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
    if text.startswith("data:"):  # a data URL
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{where}: not base64 ({error})") from error


def embedded_image(data: bytes, where: str) -> Image.Image:
    """An image from the bytes of its file, its size checked, not yet decoded.

    Raises:
        FormatError: no image, or one larger than `diffup.inputs.images.MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # as above
        raise FormatError(f"{where}: the embedded image cannot be read ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise FormatError(f"{where}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}")
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


def four_numbers(value: Any, where: str, form: str = "four numbers") -> npt.NDArray[np.float64]:
    """A box's four numbers, which may be written as texts.

    Raises:
        FormatError: it is anything else.
    """
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: expected {form}, got {describe(value)}") from error
    if numbers.shape != (4,):
        raise FormatError(f"{where}: expected {form}, got {describe(value)}")
    return numbers


def cut_box(box: Corners, size: tuple[int, int], where: str) -> Corners:
    """A box (x0, y0, x1, y1) within its image, which it may leave by 4 pixels or 2 % of the longer side.

    Raises:
        MarksNothing: it is without area.
        FormatError: it leaves the image by more, is inverted, or is not of finite numbers.
    """
    height, width = size
    x0, y0, x1, y1 = box
    shown = ", ".join(f"{number:g}" for number in box)
    slack = max(_SLACK, _SLACK_PART * max(size))
    inside = -slack <= x0 <= x1 <= width + slack and -slack <= y0 <= y1 <= height + slack  # false for NaN
    if not inside:
        raise FormatError(
            f"{where}: the box from ({shown}) as left, top, right and bottom is inverted or leaves the image of "
            f"{width} x {height} pixels"
        )
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise MarksNothing(
            f"{where}: the box from ({shown}) as left, top, right and bottom is empty in the image of "
            f"{width} x {height} pixels"
        )
    return cut


def check_pixels(positions: npt.ArrayLike, size: tuple[int, int], where: str) -> None:
    """Refuse positions (N, 2) that all lie within the first pixel of a larger image: they are fractions of it.

    Raises:
        FormatError: they do.
    """
    points = np.asarray(positions, dtype=np.float64).reshape(-1, 2)
    if len(points) and min(size) > 2 and (points >= 0).all() and (points <= 1).all():
        raise FormatError(
            f"{where}: all of it lies within the first pixel, so these are fractions of the image, and pixels are "
            f"expected; multiply x by the image's width ({size[1]}) and y by its height ({size[0]})"
        )


def check_outline(vertices: npt.NDArray[np.float64], size: tuple[int, int], where: str) -> None:
    """`check_pixels` for a polygon (N, 2).

    One without area is no polygon, and the diamond within the first pixel is how `diffup.formats.contours.polygons`
    writes an object of that pixel alone.
    """
    diamond = (vertices == 0.5).any(axis=1).all()
    if np.ptp(vertices, axis=0).all() and not diamond:
        check_pixels(vertices, size, where)


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
