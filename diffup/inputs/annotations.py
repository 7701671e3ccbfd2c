"""Annotations of support images, and what they say about each pixel.

An image is annotated by a `Mask`, a `Box` (one or many), a `Scribble`, `Points`, or `None` (the image shows the class,
but where is unknown). Kinds may be mixed across the support images. All coordinates are pixels of the annotated image,
x to the right and y down.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.errors import AnnotationError
from diffup.inputs.coordinates import check_beyond_first_pixel, kind_of_numbers
from diffup.inputs.drawing import Boxes, Strokes, cover_boxes, draw_points, draw_strokes, fill_boxes
from diffup.inputs.images import ImageLike, describe, fetch, read_image
from diffup.inputs.masks import MaskLike, check_mask_size, name_mask, read_mask, seems_inverted
from diffup.inputs.read_shapes import fetched, positive, read_boxes, read_points, read_strokes

Polyline: TypeAlias = Sequence[tuple[float, float]] | npt.NDArray[Any]

DEFAULT_STROKE = 0.02
"""Default width of a scribble and radius of a point, as a fraction of the image's shorter side."""


@dataclass(frozen=True, eq=False, init=False)
class Mask:
    """The pixels of the class, from a mask of the image's own size.

    The mask holds either two values, the larger one being the class (bool, 0 and 1, 0 and 255, ...), or soft weights as
    floats in [0, 1]. `diffup.inputs.masks.read_mask` documents how colours, palettes and transparency are read.

    Args:
        mask: path, bytes of an image file, PIL image, numpy array or torch tensor, of the image's size.

    Attributes:
        mask: (H, W) float32 in [0, 1] on the CPU, weight of the class.
        name: name of the mask in error messages, such as "the mask 'dog.png'".

    Raises:
        AnnotationError: the mask cannot be read, has more than two values without being soft, or contains NaN.
    """

    mask: Tensor
    name: str

    def __init__(self, mask: MaskLike) -> None:
        mask = fetched(mask, "Mask")
        object.__setattr__(self, "mask", read_mask(mask, "Mask"))
        object.__setattr__(self, "name", name_mask(mask))

    def __repr__(self) -> str:
        return f"Mask({describe(self.mask)})"


@dataclass(frozen=True, init=False)
class Box:
    """One box, `Box(10, 20, 200, 180)`, or several on one image, `Box([(10, 20, 200, 180), (220, 30, 300, 90)])`.

    A box is (x0, y0, x1, y1): its left, top, right and bottom edges in pixels, where the image spans from (0, 0) to
    (width, height). `Box(0, 0, width, height)` is the whole image, and x1 - x0 is the box's width.

    Args:
        *box: four numbers, or a sequence or (N, 4) array of boxes. None are needed if there are negative ones.
        negative: boxes that hold nothing of the class: four numbers, or a sequence or (N, 4) array of boxes.

    Attributes:
        boxes: the boxes (x0, y0, x1, y1) in pixels.
        negative: the negative boxes (x0, y0, x1, y1) in pixels.

    Raises:
        AnnotationError: not four finite numbers per box, an inverted or empty box, no box at all, or fractions of the
            image (all numbers within [0, 1] and not all whole) instead of pixels.
    """

    boxes: Boxes
    negative: Boxes

    def __init__(
        self,
        *box: float | Sequence[Any] | npt.NDArray[Any] | Tensor,
        negative: Sequence[Any] | npt.NDArray[Any] | Tensor = (),
    ) -> None:
        object.__setattr__(self, "negative", () if _is_empty(negative) else read_boxes(negative))
        alone = not box and self.negative
        object.__setattr__(self, "boxes", () if alone else read_boxes(box[0] if len(box) == 1 else box))


@dataclass(frozen=True, eq=False, init=False)
class Scribble:
    """Strokes over the object: polylines, or an image of them.

    Args:
        strokes: one polyline [(x, y), ...], a list of polylines, or a stroke image in any form that `Mask` takes (an
            array of shape (N, 2) is a polyline unless it is bool). A polyline of one vertex is a dot.
        width: line width of the polylines in pixels; `None` is 2 % of the image's shorter side. Not used for a stroke
            image.
        negative: strokes over what is not the class, in the same forms; strokes over the object are then not needed.

    Attributes:
        strokes: polylines, each an (N, 2) float64 array of (x, y) in pixels, where (0, 0) is the centre of the top left
            pixel; or an (H, W) float32 stroke image in [0, 1].
        width: line width of the polylines in pixels, or `None`.
        negative: strokes over what is not the class, likewise.
        name: name of a stroke image in error messages.

    Raises:
        AnnotationError: neither polylines nor a readable stroke image, no vertex, NaN, a width that is not positive, or
            fractions of the image instead of pixels.
    """

    strokes: Strokes
    width: float | None
    negative: Strokes
    name: str

    def __init__(
        self,
        strokes: Polyline | Sequence[Polyline] | MaskLike = (),
        width: float | None = None,
        negative: Polyline | Sequence[Polyline] | MaskLike = (),
    ) -> None:
        object.__setattr__(self, "negative", () if _is_empty(negative) else read_strokes(negative))
        alone = _is_empty(strokes) and not _is_empty(negative)
        object.__setattr__(self, "strokes", () if alone else read_strokes(strokes))
        object.__setattr__(self, "name", name_mask(strokes).replace("mask", "stroke image"))
        object.__setattr__(self, "width", positive(width, "Scribble", "width"))

    def __repr__(self) -> str:
        negative = "" if _is_empty(self.negative) else f", negative={_describe_strokes(self.negative)}"
        return f"Scribble({_describe_strokes(self.strokes)}, width={self.width}{negative})"


@dataclass(frozen=True, init=False)
class Points:
    """Clicks on the object: `Points([(x, y), ...])`, each marking a disc.

    Args:
        points: one (x, y) or several in pixels, a sequence or an (N, 2) array; (0, 0) is the centre of the top left
            pixel.
        radius: radius of the discs in pixels; `None` is 2 % of the image's shorter side.
        negative: clicks on what is not the class, in the same forms; clicks on the object are then not needed.

    Attributes:
        points: the clicks (x, y) in pixels.
        radius: radius of the discs in pixels, or `None`.
        negative: the negative clicks (x, y) in pixels.

    Raises:
        AnnotationError: not two finite numbers per point, no point at all, a radius that is not positive, or fractions
            of the image instead of pixels.
    """

    points: tuple[tuple[float, float], ...]
    radius: float | None
    negative: tuple[tuple[float, float], ...]

    def __init__(
        self, points: Polyline | Tensor = (), radius: float | None = None, negative: Polyline | Tensor = ()
    ) -> None:
        object.__setattr__(self, "negative", () if _is_empty(negative) else read_points(negative))
        alone = _is_empty(points) and self.negative
        object.__setattr__(self, "points", () if alone else read_points(points))
        object.__setattr__(self, "radius", positive(radius, "Points", "radius"))


Annotation: TypeAlias = Mask | Box | Scribble | Points | None
"""Where the class is in a support image; `None`: the image shows the class, but where is unknown."""

AnnotationLike: TypeAlias = Annotation | MaskLike
"""An annotation, or a mask in a form that `Mask` takes."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Foreground and background weights of an annotation at each pixel of its image; the remainder to 1 is unknown.

    Attributes:
        foreground: (H, W) float32 in [0, 1], weight of the class.
        background: (H, W) float32 in [0, 1], weight of what is known not to be the class.
        annotated: whether the annotation distinguishes any pixels. If not, saliency marks the class.
    """

    foreground: Tensor
    background: Tensor
    annotated: bool


@dataclass(frozen=True, eq=False)
class Support:
    """One support image with its annotation, checked against each other.

    Attributes:
        image: (3, H, W) float32 RGB in [0, 1].
        annotation: the annotation, as an object of this module or `None`.
        regions: foreground and background of the annotation at the image's pixels.
    """

    image: Tensor
    annotation: Annotation
    regions: Regions


def parse_annotation(
    value: AnnotationLike, argument: str = "annotation", size: tuple[int, int] | None = None
) -> Annotation:
    """Turn what a user gives as an annotation into an annotation object.

    A path, bytes, PIL image, numpy array or torch tensor becomes a `Mask`; an annotation object is returned unchanged.

    Args:
        value: annotation, or a mask in any form that `Mask` takes.
        argument: name of the argument in error messages.
        size: (height, width) of the annotated image in pixels, which a mask must have; with None, `rasterise` checks
            it later.

    Returns:
        The annotation as an object of this module, or `None`.

    Raises:
        AnnotationError: an object of another type, or a mask that `Mask` would not take.
    """
    if value is None or isinstance(value, Mask | Box | Scribble | Points):
        return value
    if isinstance(value, str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor):
        mask = Mask(read_mask(value, argument, size))
        object.__setattr__(mask, "name", name_mask(value))
        return mask
    raise AnnotationError(
        f"{argument}: expected Mask, Box, Scribble, Points, None or a mask (path, bytes, PIL image, numpy array or "
        f"torch tensor), got {describe(value)}. "
        + (kind_of_numbers(value) or "Numbers need their kind: Box(x0, y0, x1, y1), Points([(x, y)]).")
    )


def rasterise(annotation: Annotation, size: tuple[int, int], argument: str = "annotation") -> Regions:
    """Rasterise an annotation: foreground and background weights at the pixels of its image.

    A mask's background is the rest of the image. A box weights every pixel that it touches, most in its middle, since
    objects rarely reach into the corners; everything outside the boxes is background, and boxes that leave nothing
    outside say as little as `None`. Scribbles and points say nothing about the other pixels. What is marked as negative
    is background, even where the annotation marks the class too. `None` marks the whole image and no background;
    `diffup.priors.level.annotation_at_level` then marks the class by saliency.

    Args:
        annotation: annotation object, or `None`.
        size: (height, width) of the annotated image in pixels.
        argument: name of the argument in error messages.

    Returns:
        Foreground and background, (height, width) each.

    Raises:
        AnnotationError: a mask of another size, a box, point or vertex outside of the image, or no pixel marked.
    """
    if annotation is None:
        return Regions(torch.ones(size), torch.zeros(size), annotated=False)
    if isinstance(annotation, Mask):
        check_mask_size(annotation.mask.shape, size, annotation.name, argument)
        foreground, background = annotation.mask, 1 - annotation.mask
    else:
        foreground, background = _draw(annotation, size, argument)
    if not foreground.any():
        shown = repr(annotation)
        if isinstance(annotation, Mask) or (isinstance(annotation, Scribble) and len(annotation.strokes)):
            shown = f"{annotation.name} is 0 everywhere (black), so it"
        raise AnnotationError(
            f"{argument}: {shown} marks no pixel of the class. Mark at least one, or give None if the class is "
            "somewhere in the image."
        )
    if isinstance(annotation, Box) and not background.any():
        return Regions(torch.ones(size), background, annotated=False)
    return Regions(foreground, background, annotated=bool((foreground < 1).any()))


def marked(annotation: Box | Scribble | Points, size: tuple[int, int], argument: str = "annotation") -> Tensor:
    """Rasterise what an annotation marks as the class and as not the class, without a guess about the rest.

    Args:
        annotation: boxes, strokes or clicks.
        size: (height, width) of the annotated image in pixels.
        argument: name of the argument in error messages.

    Returns:
        (2, height, width) in [0, 1], weights of the class and of the negatives; boxes weight the class most in their
        middle.

    Raises:
        AnnotationError: a box, point or vertex outside of the image, or a stroke image of another size.
    """
    if isinstance(annotation, Box):
        return torch.stack(
            [fill_boxes(annotation.boxes, size, argument), cover_boxes(annotation.negative, size, argument)]
        )
    if isinstance(annotation, Points):
        radius = annotation.radius or DEFAULT_STROKE * min(size)
        both = (annotation.points, annotation.negative)
        return torch.stack([draw_points(points, radius, size, argument) for points in both])
    width = annotation.width or DEFAULT_STROKE * min(size)
    strokes = (annotation.strokes, annotation.negative)
    return torch.stack([draw_strokes(lines, width, annotation.name, size, argument) for lines in strokes])


def _draw(annotation: Box | Scribble | Points, size: tuple[int, int], argument: str) -> tuple[Tensor, Tensor]:
    """Foreground and background of a support: around boxes there is nothing of the class."""
    foreground, negative = marked(annotation, size, argument)
    if isinstance(annotation, Box) and annotation.boxes:
        negative = torch.maximum(negative, 1 - cover_boxes(annotation.boxes, size, argument))
    return foreground * (1 - negative), negative


def pair_supports(
    support: ImageLike | Sequence[ImageLike],
    annotation: AnnotationLike | Sequence[AnnotationLike] = None,
) -> list[Support]:
    """Read the support images and their annotations, and check that they match.

    Only lists and tuples hold several images or annotations; an array or a tensor is always a single one.

    Args:
        support: one image or a list of images, in any form that `diffup.inputs.images.read_image` takes.
        annotation: one annotation for one image, a list with one (or `None`) for each image, or `None` for all.

    Returns:
        One `Support` for each support image.

    Raises:
        ImageError: an image cannot be used; the message says which one, such as `support[1]`.
        AnnotationError: no support image, another number of annotations than of images, or an annotation that cannot
            be used; the message says which one, such as `annotation[2]`.

    Warns (`UserWarning`) of masks that seem to be inverted: they mark most of the image, all around a hole.
    """
    images, image_names = _itemise(support, "support")
    if not images:
        raise AnnotationError("support: got an empty list. Give at least one support image.")
    annotations, annotation_names = _itemise(annotation, "annotation")
    if annotation is None:
        annotations, annotation_names = [None] * len(images), ["annotation"] * len(images)
    if len(annotations) != len(images):
        count = (
            f"got {len(annotations)} for {len(images)} support images. Give one for each image, None where there is "
            "none; several boxes on one image are Box([(x0, y0, x1, y1), ...])."
        )
        raise AnnotationError(f"annotation: {kind_of_numbers(annotation) or count}")
    supports, inverted = [], []
    for source, value, image_name, name in zip(images, annotations, image_names, annotation_names, strict=True):
        image = read_image(fetch(source, image_name), image_name)
        size = (image.shape[1], image.shape[2])
        parsed = parse_annotation(fetched(value, name), name, size)
        check_pixels(parsed, size, name)
        supports.append(Support(image, parsed, rasterise(parsed, size, name)))
        if isinstance(parsed, Mask) and seems_inverted(parsed.mask):
            inverted.append(f"{name} ({parsed.name})")
    if inverted:
        warnings.warn(
            f"{', '.join(inverted)}: marks most of the image and all of its border, and leaves a hole. If the object "
            "is the hole, the mask is inverted: give 1 - mask.",
            UserWarning,
            stacklevel=2,
        )
    return supports


def check_pixels(annotation: Annotation, size: tuple[int, int], argument: str) -> None:
    """Refuse boxes, clicks and strokes that all lie within the first pixel of a larger image.

    Args:
        annotation: annotation object, or `None`.
        size: (height, width) of the annotated image in pixels.
        argument: name of the argument in error messages.

    Raises:
        AnnotationError: all of them lie within the first pixel, so that they are probably fractions of the image.
    """
    kind = type(annotation).__name__
    for table in _coordinates(annotation):
        check_beyond_first_pixel(table, kind, size, argument)


def _coordinates(annotation: Annotation) -> list[npt.NDArray[np.float64]]:
    """Tables of the coordinates of an annotation, those of the class and the negative ones; none of masks."""
    if isinstance(annotation, Box):
        both: tuple[Any, ...] = (annotation.boxes, annotation.negative)
    elif isinstance(annotation, Points):
        both = (annotation.points, annotation.negative)
    elif isinstance(annotation, Scribble):
        both = (annotation.strokes, annotation.negative)
    else:
        return []
    return [
        np.concatenate(rows) if isinstance(annotation, Scribble) else np.array(rows)
        for rows in both
        if not isinstance(rows, Tensor) and rows
    ]


def _itemise(value: Any, argument: str) -> tuple[list[Any], list[str]]:
    """The items of a list or tuple, or a single value as a list of one, and the name of each in error messages."""
    if isinstance(value, list | tuple):
        return list(value), [f"{argument}[{index}]" for index in range(len(value))]
    return [value], [argument]


def _is_empty(values: Any) -> bool:
    """Whether a list or tuple of coordinates is empty; arrays are not asked, so that they are read and refused."""
    return isinstance(values, list | tuple) and not values


def _describe_strokes(strokes: Strokes) -> str:
    return describe(strokes) if isinstance(strokes, Tensor) else f"{len(strokes)} polylines"
