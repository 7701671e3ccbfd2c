"""The readers' result, and the checks that they share."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
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
from diffup.utils.storage import is_url

Corners: TypeAlias = tuple[float, float, float, float]
T = TypeVar("T")

OnError: TypeAlias = Literal["raise", "skip"]
"""What a reader does with a faulty record: raise its error, or skip and report it."""

_SLACK = 4.0  # pixels by which a box may leave its image and is clipped: programs round, and hands slip
_SLACK_PART = 0.02  # the same as a fraction of the longer side, for large images
_SHOWN_LABELS = 20  # most labels that an error names


class Skipped(NamedTuple):
    """A faulty record that was skipped.

    Attributes:
        record: name of the record, such as `labels.json: images[3]`.
        reason: text of the error.
    """

    record: str
    reason: str


class _Pair(NamedTuple):
    support: list[ImageLike]
    annotation: list[Annotation]


class SupportSet(_Pair):
    """Support images and their annotations, to be used as `model.segment(query, *shots)`.

    Attributes:
        support: support images: paths, or images that were inside a record.
        annotation: one `Mask`, `Box`, `Scribble` or `Points` for each image.
        skipped: faulty records that `on_error="skip"` left out, with the reasons. It is not part of the tuple.
    """

    skipped: tuple[Skipped, ...] = ()


class Gathering:
    """Collects the supports that a reader finds and the records that it skips.

    Args:
        on_error: "raise" the error of a faulty record, or "skip" the record.

    Raises:
        FormatError: `on_error` is something else.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise FormatError(f"on_error={on_error!r}: expected {' or '.join(get_args(OnError))}")
        self._skip = on_error == "skip"
        self._found: list[tuple[ImageLike, Annotation]] = []
        self._skipped: list[Skipped] = []
        self._without: str | None = None
        self._labels: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, image: ImageLike, annotation: Annotation) -> None:
        """Add a support image with its annotation.

        Raises:
            FormatError: the image is a URL; only a user's own are fetched, and this one comes from a file.
        """
        if is_url(image):
            raise FormatError(f"{image!r} is a URL, and URLs are not fetched; download the image")
        self._found.append((image, annotation))

    def without(self, reason: str) -> None:
        """Note that a record has no label at all, which is not an error.

        Args:
            reason: text for the error message in case no support is found; the first one is used.
        """
        self._without = self._without or reason

    def saw(self, labels: Iterable[Any]) -> None:
        """Note labels of the file, which the error message names if none of its records has the one that was asked for.

        Args:
            labels: labels of shapes; what is no text is ignored.
        """
        self._labels.update(label for label in labels if isinstance(label, str))

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        """Read a record within the block; an error is raised, or noted as the reason to skip the record.

        Args:
            name: name of the record in the report.
        """
        try:
            yield
        except (AnnotationError, FormatError, ImageError) as error:
            if not self._skip:
                raise
            self._skipped.append(Skipped(name, str(error)))

    def shots(self, nothing: str, wanted: int | None = None) -> SupportSet:
        """The supports found. Warns (`UserWarning`) with the number of skipped records, if any.

        Args:
            nothing: error message in case no support was found.
            wanted: least number of supports; None for at least one.

        Raises:
            FormatError: there are no supports, or fewer than wanted.
        """
        passed = ""
        if self._skipped:
            first = self._skipped[0]
            reason = first.reason if first.reason.startswith(first.record) else f"{first.record}: {first.reason}"
            passed = f"{len(self._skipped)} faulty records were passed over, the first: {reason}"
        if not self._found:
            shown = sorted(self._labels)[:_SHOWN_LABELS]
            labels = f"The labels are {', '.join(map(repr, shown))}{', ...' * (len(shown) < len(self._labels))}"
            notes = (passed, self._without, labels if shown else None)
            remarks = "".join(f". {remark}" for remark in notes if remark)
            raise FormatError(nothing + remarks)
        if wanted is not None and len(self._found) < wanted:
            raise FormatError(
                f"shots={wanted} were asked for, and {len(self._found)} can be read{passed and f'. {passed}'}"
            )
        if passed:
            warnings.warn(f"{passed}. `.skipped` of the result names them all", stacklevel=3)
        shots = SupportSet([image for image, _ in self._found], [annotation for _, annotation in self._found])
        shots.skipped = tuple(self._skipped)
        return shots


def with_area(readings: Iterable[Callable[[], T]]) -> list[T]:
    """Read the objects of one image; objects without area are left out.

    Args:
        readings: functions that read one object each and raise `MarksNothing` if it has no area.

    Returns:
        Results of the functions for objects with an area.

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
    """Check that a number of supports is at least 1, or None for all.

    Raises:
        FormatError: it is below 1, or no whole number.
    """
    if shots is not None and (isinstance(shots, bool) or not isinstance(shots, Integral) or shots < 1):
        raise FormatError(f"shots: expected at least 1 or None for all, got {shots!r}")


def path_text(path: str | os.PathLike[str], argument: str) -> str:
    """Check that an argument is a path, and return it as text.

    Args:
        path: the value of the argument.
        argument: its name in error messages.

    Raises:
        FormatError: it is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise FormatError(f"{argument}: expected a path, got {describe(path)}")
    return os.fspath(path)


def path_list(paths: Any, argument: str) -> list[str | os.PathLike[str]]:
    """Return an argument of one path or several as a list.

    Args:
        paths: the value of the argument.
        argument: its name in error messages.

    Raises:
        FormatError: it is neither a path nor paths.
    """
    if isinstance(paths, str | os.PathLike):
        return [paths]
    several = list(iterated(paths, argument, "a path or a list of paths"))
    for index, path in enumerate(several):
        path_text(path, f"{argument}[{index}]")
    return several


def iterated(given: Any, argument: str, expected: str) -> Iterator[Any]:
    """Iterate over an argument.

    Args:
        given: the value of the argument.
        argument: its name in error messages.
        expected: what it should be, for the error message.

    Raises:
        FormatError: it cannot be iterated over.
    """
    try:
        return iter(given)
    except TypeError as error:
        raise FormatError(f"{argument}: expected {expected}, got {describe(given)}") from error


def upright_size(source: str | os.PathLike[str] | Image.Image, where: str) -> tuple[int, int]:
    """(height, width) in pixels of an image after its EXIF orientation is applied.

    Args:
        source: path or PIL image.
        where: name of the image in error messages.

    Raises:
        FormatError: the image is missing, cannot be read, or is larger than `diffup.inputs.images.MAX_PIXELS`.
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
    """Check that the image size which a record states is that of its image.

    Args:
        stated: (height, width) in the record; None if it states none, which is accepted.
        actual: (height, width) of the image.
        where: name of the record in error messages.

    Raises:
        FormatError: the sizes differ.
    """
    if stated is not None and stated != actual:
        turned = " The image is turned by its EXIF orientation, the record is not." if stated == actual[::-1] else ""
        raise FormatError(
            f"{where}: the record says {stated[1]} x {stated[0]} pixels (width x height), the image has "
            f"{actual[1]} x {actual[0]}.{turned}"
        )


def embedded_image(data: bytes, where: str) -> Image.Image:
    """Open an image from the bytes of its file and check its size; it is not decoded yet.

    Args:
        data: content of an image file.
        where: name of the image in error messages.

    Raises:
        FormatError: the bytes are not an image, or it is larger than `diffup.inputs.images.MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's decoders raise whatever they like
        raise FormatError(f"{where}: the embedded image cannot be read ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise FormatError(f"{where}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}")
    return image


def read_index(source: Any, where: str) -> npt.NDArray[np.integer[Any]]:
    """Read an index mask as (H, W) integers.

    Args:
        source: path, bytes of an image file, PIL image or array.
        where: name of the mask in error messages.

    Raises:
        FormatError: the mask cannot be read, or has colours instead of labels.
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
    """Read the mask of one class from an index mask or a two-valued mask.

    Args:
        source: path, bytes of an image file, PIL image or array.
        label: pixel value of the class in an index mask; None for a two-valued mask.
        where: name of the mask in error messages.

    Returns:
        The mask; `None` if it marks no pixel.

    Raises:
        FormatError: the mask cannot be read, or has several labels and `label` is None.
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
    """Clip a box to its image, which it may leave by at most 4 pixels or 2 % of the longer side.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        size: (height, width) of the image in pixels.
        where: name of the box in error messages.

    Raises:
        MarksNothing: the box has no area within the image.
        FormatError: the box leaves the image by more, is inverted, or is not finite.
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
    """Refuse positions that all lie within the first pixel of a larger image: they must be fractions of it.

    Args:
        positions: (N, 2) positions (x, y).
        size: (height, width) of the image in pixels.
        where: name of the field in error messages.

    Raises:
        FormatError: all positions lie within the first pixel.
    """
    points = np.asarray(positions, dtype=np.float64).reshape(-1, 2)
    if len(points) and min(size) > 2 and (points >= 0).all() and (points <= 1).all():
        raise FormatError(
            f"{where}: all of it lies within the first pixel, so these are fractions of the image, and pixels are "
            f"expected; multiply x by the image's width ({size[1]}) and y by its height ({size[0]})"
        )


def check_outline(vertices: npt.NDArray[np.float64], size: tuple[int, int], where: str) -> None:
    """Refuse a polygon that lies within the first pixel of a larger image: its vertices must be fractions of it.

    A polygon without area is not checked, nor is the diamond within the first pixel, which
    `diffup.formats.contours.polygons` writes for an object of that pixel alone.

    Args:
        vertices: (N, 2) vertices (x, y).
        size: (height, width) of the image in pixels.
        where: name of the field in error messages.

    Raises:
        FormatError: all vertices lie within the first pixel.
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
    """Combine the objects of one image, all of one kind, to one annotation.

    Args:
        masks: (H, W) bool masks; their union is the annotation.
        boxes: boxes (x0, y0, x1, y1) in pixels.
        where: name of the image's record in error messages.
        strokes: polylines, (N, 2) positions (x, y) in pixels each.
        points: clicks (x, y) in pixels.

    Raises:
        FormatError: the objects are of several kinds, or the masks mark no pixel.
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
