"""Reading masks of any common form as weights in [0, 1], or an error that says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.errors import AnnotationError, ImageError
from diffup.inputs.images import MAX_PIXELS, ROUNDING, FetchedFile, check_dense, describe, open_image

MaskLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any] | Tensor
"""A path, the bytes of a file, a PIL image, a numpy array (H, W), (H, W, 1 | 3 | 4) or a torch tensor (H, W),
(1 | 3 | 4, H, W)."""

_LOSSY = ("JPEG", "MPO")  # formats with grey edges, so that a mask can only be black and white
_MAX_GREY = 0.05  # greatest fraction of such a mask that is neither dark nor bright
_LABELS = 256  # most labels of an index mask; a photo with its background removed has more colours
_FEW = 16
_MOSTLY = 0.8  # least fraction of a JPEG index mask whose grey is close to that of a class
_ALL_BUT = 0.995  # greatest fraction of the image that an inverted mask marks: the hole is more than a speck
_BORDER = 0.98  # least fraction of the image's border that an inverted mask marks
_COMPACT = 0.3  # least fraction of its bounding box that the hole fills
_SHOWN = 6  # most classes in an error message


def read_mask(source: MaskLike, argument: str = "mask", size: tuple[int, int] | None = None) -> Tensor:
    """Read a mask of one class.

    - Two values: the larger one is the class (bool, 0 and 1, 0 and 255, ...). One value: the class everywhere,
      unless it is 0.
    - Floats in [0, 1] are weights.
    - More values are refused: an index mask holds several classes, and none of them is guessed.
    - Transparency that varies is the mask, opaque being the class, if the opaque part has one colour or is a photo.
      Several colours or indices are several classes and refused.
    - Colours: black and one other colour; or red = green = blue, which counts as grey.
    - A palette's indices are the values, but a palette of black and one other colour is read by its colours.
    - JPEG files must be black and white, and are cut at half of white: their edges are never clean.

    Args:
        source: path, bytes of an image file, PIL image, numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or torch
            tensor (H, W), (1, H, W), (3, H, W) or (4, H, W).
        argument: name of the mask in error messages.
        size: (height, width) of the annotated image in pixels; checked first, since a mask that was resized with its
            image is no longer two-valued. None is not checked.

    Returns:
        (H, W) float32 in [0, 1] on the CPU, in memory of its own. It may be all zeros.

    Raises:
        AnnotationError: the mask has none of these forms or another size than `size`, contains NaN, is empty, is larger
            than `diffup.inputs.images.MAX_PIXELS`, or is an unreadable file.
    """
    pixels = _pixels_of(source, argument, size)
    if pixels.dtype.kind not in "buif":
        raise AnnotationError(f"{argument}: expected bool, integers or floats in [0, 1], got {describe(source)}.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise AnnotationError(f"{argument}: {describe(source)} contains NaN or infinity. Remove them.")
    values = pixels if pixels.ndim == 2 else _flatten_colours(pixels, source, argument)
    return torch.from_numpy(_to_weights(values, source, argument))


def check_mask_size(shape: Sequence[int], size: tuple[int, int], what: str, argument: str) -> None:
    """Check that a mask has the size of its image.

    Args:
        shape: (height, width) of the mask in pixels.
        size: (height, width) of the annotated image in pixels.
        what: name of the mask in error messages, such as "the mask 'dog.png'".
        argument: name of the argument in error messages.

    Raises:
        AnnotationError: the sizes differ.
    """
    height, width = shape[0], shape[1]
    if (height, width) == size:
        return
    if (height, width) == size[::-1]:
        remedy = "It lies on its side: files are turned as their EXIF orientation says, so turn the mask too."
    elif abs(height * size[1] - width * size[0]) <= max(*size, height, width):
        remedy = (
            "Give the annotation at the size of its image. If one of them was resized, give the originals, or resize "
            f"the mask by nearest neighbour: `PIL.Image.open(path).resize(({size[1]}, {size[0]}), PIL.Image.NEAREST)`."
        )
    else:
        remedy = "Give the annotation at the size of its image; this seems to be that of another image."
    raise AnnotationError(
        f"{argument}: {what} is {width} x {height} pixels, its image {size[1]} x {size[0]} (width x height). {remedy}"
    )


def name_mask(source: object) -> str:
    """Name of a mask in error messages: "the mask", with its path if it was given as one."""
    named = isinstance(source, str | os.PathLike | FetchedFile)
    return f"the mask {describe(source)}" if named else "the mask"


def bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Bounding box of an (H, W) mask: its edges (x0, y0, x1, y1) in pixels; `None` if the mask is empty."""
    if not mask.any():
        return None
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def seems_inverted(mask: Tensor) -> bool:
    """Whether an (H, W) mask in [0, 1] marks most of its image and border, and leaves a compact hole: the object."""
    marked = mask.numpy() > 0.5
    border = np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]])
    hole = bounding_box(~marked)
    if hole is None or not 0.5 < marked.mean() < _ALL_BUT or border.mean() < _BORDER:
        return False
    x0, y0, x1, y1 = hole
    return bool((~marked).sum() >= _COMPACT * (x1 - x0) * (y1 - y0))


def _pixels_of(source: MaskLike, argument: str, size: tuple[int, int] | None) -> npt.NDArray[Any]:
    """Read (H, W) values or (H, W, 1 | 3 | 4) colours from any source, and check its size."""
    if isinstance(source, Tensor | np.ndarray):
        pixels = _tensor_to_array(source, argument) if isinstance(source, Tensor) else source
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
            raise AnnotationError(
                f"{argument}: expected a mask of shape (H, W), got {describe(source)}. {_other_than_a_mask(pixels)}"
            )
        if size is not None and pixels.ndim == 2 and pixels.shape[1] in (2, 4) and pixels.shape != size:
            kind = "boxes, give Box(array)" if pixels.shape[1] == 4 else "clicks, give Points(array)"
            raise AnnotationError(
                f"{argument}: {describe(source)} is no mask of an image of {size[1]} x {size[0]} pixels. If it holds "
                f"{kind}."
            )
        if not 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
            raise AnnotationError(f"{argument}: {describe(source)} is empty or has more than {MAX_PIXELS} pixels.")
        if size is not None:
            check_mask_size(pixels.shape, size, name_mask(source), argument)
        return pixels
    try:
        image, file_format = open_image(source, argument)
    except ImageError as error:
        raise AnnotationError(str(error)) from error
    if size is not None:
        check_mask_size((image.height, image.width), size, name_mask(source), argument)
    try:
        return _pil_to_values(image, file_format, source, argument)
    except ValueError as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(
            f"{argument}: {describe(source)} of mode {image.mode} has no conversion to grey. Give a grey mask."
        ) from error


def _other_than_a_mask(pixels: npt.NDArray[Any]) -> str:
    """End of an error message: what an array that cannot be a mask may be instead."""
    if pixels.shape == (4,):
        return f"If it is a box, give Box({', '.join(map(str, pixels.tolist()))})."
    if pixels.shape == (2,):
        return f"If it is a click, give Points([({', '.join(map(str, pixels.tolist()))})])."
    return "Of several masks give one, such as mask[0]; masks of several support images are a list."


def _tensor_to_array(tensor: Tensor, argument: str) -> npt.NDArray[Any]:
    try:
        check_dense(tensor, argument)
    except ImageError as error:
        raise AnnotationError(str(error)) from error
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():  # numpy has no bfloat16
        tensor = tensor.float()
    array: npt.NDArray[Any] = tensor.numpy()
    return array.transpose(1, 2, 0) if tensor.ndim == 3 else array


def _pil_to_values(image: Image.Image, file_format: str | None, source: MaskLike, argument: str) -> npt.NDArray[Any]:
    """Pixels of a file or PIL image, (H, W) values or (H, W, 3 | 4) colours."""
    if file_format in _LOSSY:
        return _cut_lossy(np.asarray(image.convert("RGB")), source, argument)
    indexed = image.mode in ("P", "PA")
    if image.has_transparency_data:
        colours = np.asarray(image.convert("RGBA"))
        alpha = colours[..., 3]
        if np.ptp(alpha):
            if indexed:  # colours may be the same where the indices, which are the classes, are not
                opaque = np.asarray(image.getchannel(0) if image.mode == "PA" else image)[alpha == alpha.max()]
                _check_one_class(opaque, source, argument)
            return colours
    if indexed:
        return _palette_values(image)
    if image.mode in ("L", "1", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _cut_lossy(colours: npt.NDArray[np.uint8], source: MaskLike, argument: str) -> npt.NDArray[np.bool_]:
    """Threshold a black and white JPEG, whose compression blurs edges, at half of white; others are refused."""
    only = f"{argument}: a JPEG file is taken as a mask only if it is black and white, and {describe(source)}"
    if (np.ptp(colours, axis=2) > 64).sum() > _FEW:
        raise AnnotationError(f"{only} is coloured. Is it the photo? Save masks as PNG, one class each.")
    grey = colours[..., 1]
    levels, high = _flat_levels(grey), grey.max()
    dark, bright = [level for level in levels if level < 64], [level for level in levels if level > 191]
    mixed = ((grey > 63) & (grey < 192)).mean() > _MAX_GREY
    black_and_white = len(dark) <= 1 and len(bright) <= 1 and len(dark) + len(bright) == len(levels)
    if black_and_white and not mixed and (high == 0 or high > 191):
        return np.asarray(grey > 127)
    distance = np.abs(grey[..., None].astype(np.int16) - np.array(levels or [0], dtype=np.int16))
    if (distance.min(axis=2) <= 8).mean() < _MOSTLY:
        raise AnnotationError(f"{only} is not. Is it the photo? Save masks as PNG.")
    counts = np.bincount(distance.argmin(axis=2).ravel(), minlength=len(levels)).tolist()
    raise AnnotationError(
        f"{only} holds about {_listed(list(zip(levels, counts, strict=True)))}. Which one is the class? Save its mask "
        "as PNG, 255 in the class and 0 elsewhere; the values of this file are blurred by compression."
    )


def _flat_levels(grey: npt.NDArray[np.uint8]) -> list[int]:
    """Grey levels that fill areas of an image, in ascending order: those of classes away from blurred edges.

    An area is at least four 3 x 3 neighbourhoods without contrast. The rings that compression draws around edges
    have more contrast than that, or are nearer to black or white.
    """
    low, high = grey, grey
    for axis, side in enumerate(grey.shape):
        if side >= 3:
            parts = [range(at, side - 2 + at) for at in range(3)]
            low = np.minimum.reduce([np.take(low, part, axis) for part in parts])
            high = np.maximum.reduce([np.take(high, part, axis) for part in parts])
    flat = high - low <= 16
    histogram = np.bincount(low[flat] + (high - low)[flat] // 2, minlength=256)
    levels: list[int] = []
    while histogram.any():
        level = int(histogram.argmax())
        around = slice(max(0, level - 28), level + 29)
        if not levels or histogram[around].sum() >= 4:
            levels.append(level)
        histogram[around] = 0
    return sorted(levels)


def _palette_values(image: Image.Image) -> npt.NDArray[Any]:
    """Indices of a palette image, or its colours where two are used, black and one other.

    Programs that reduce colours number them in any order, so that black is not always 0.
    """
    indices = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
    bright = np.asarray(np.asarray(image.convert("RGB")).any(axis=2))
    two = np.count_nonzero(np.bincount(indices.ravel())) == 2
    # Two indices of which one is black: whether a pixel is bright tells them apart.
    return bright if two and bright.any() and not bright.all() else indices


def _flatten_colours(pixels: npt.NDArray[Any], source: MaskLike, argument: str) -> npt.NDArray[Any]:
    """(H, W) values of an (H, W, 1 | 3 | 4) mask."""
    if pixels.shape[2] == 4 and (pixels[..., 3] != pixels[0, 0, 3]).any():
        return _alpha_values(pixels, source, argument)
    grey: npt.NDArray[Any] = pixels[..., 0]
    if (pixels[..., :3] == grey[..., None]).all():
        return grey
    marked = np.asarray((pixels[..., :3] != 0).any(axis=2))
    lit = pixels[marked][:, :3]
    if (lit == lit[0]).all() and not marked.all():
        return marked
    classes = _count_colours(pixels[..., :3].reshape(-1, 3))
    chosen = max(classes, key=lambda item: item[1] if any(item[0]) else 0)[0]
    question = "Which one is the class?" if len(classes) <= _LABELS else "Is it the photo?"
    raise AnnotationError(
        f"{argument}: {describe(source)} has several colours, so it is no mask of one class: {_listed(classes)}. "
        f"{question} Choose it, for example `Mask((colours == {chosen}).all(axis=2))` with {_array_of(source)}."
    )


def _alpha_values(pixels: npt.NDArray[Any], source: MaskLike, argument: str) -> npt.NDArray[Any]:
    """The alpha channel of (H, W, 4) pixels as weights, unless their colours could be the mask instead."""
    white = {"f": 1, "b": 1}.get(pixels.dtype.kind, 65535 if pixels.dtype == np.uint16 else 255)
    alpha = pixels[..., 3]
    steps = np.unique(alpha)
    # Edges are smoothed over many steps of transparency, and their colours may be rounded; few steps are areas.
    counted = alpha > 0 if len(steps) <= 3 else alpha == steps[-1]
    _check_one_class(pixels[counted][:, :3], source, argument)
    return np.asarray(alpha != 0) if len(steps) == 2 and steps[0] == 0 else np.asarray(alpha / white)


def _check_one_class(opaque: npt.NDArray[Any], source: MaskLike, argument: str) -> None:
    """Refuse opaque pixels, (N,) indices or (N, 3) colours, that are several classes.

    Raises:
        AnnotationError: there are several values, and not so many that it is a photo whose background was removed.
    """
    if (opaque == opaque[0]).all():
        return
    if opaque.ndim == 1:
        classes = [
            (int(index), int(count)) for index, count in zip(*np.unique(opaque, return_counts=True), strict=True)
        ]
        kind = "indices"
        choice = f"`Mask(labels == {classes[-1][0]})` with {_array_of(source, 'labels')}"
    else:
        classes = _count_colours(opaque)
        kind = "colours"
        choice = f"`Mask((colours[..., :3] == {classes[-1][0]}).all(axis=2))` with {_array_of(source)}"
    if _is_photo([count for _, count in classes]):
        return
    raise AnnotationError(
        f"{argument}: {describe(source)} is transparent in part and the rest has {len(classes)} {kind}: "
        f"{_listed(classes)}. Which one is the class? Choose it, for example {choice}; if all that is opaque is the "
        "class, give its alpha alone: `Mask(rgba[..., 3] > 127)`."
    )


def _is_photo(counts: Sequence[int]) -> bool:
    """Whether colours with these pixel counts are those of a photo rather than of classes."""
    pixels = sum(counts)
    if len(counts) <= _LABELS:
        return len(counts) > _FEW and 2 * len(counts) > pixels  # a tiny one, nearly each pixel of its own colour
    areas = [count for count in counts if 100 * count >= pixels]
    return len(areas) < 2 or 2 * sum(areas) < pixels


def _count_colours(colours: npt.NDArray[Any]) -> list[tuple[Any, int]]:
    """Pixel count of each distinct colour in (N, 3), in ascending order of the colours."""
    if colours.dtype.kind == "u" and colours.dtype.itemsize <= 2:  # as one number each: a hundred times faster
        packed = (colours.astype(np.uint64) << np.array([32, 16, 0], dtype=np.uint64)).sum(axis=1)
        found, counts = np.unique(packed, return_counts=True)
        unique = np.stack([(found >> np.uint64(shift)) & np.uint64(65535) for shift in (32, 16, 0)], axis=1)
    else:
        unique, counts = np.unique(colours, axis=0, return_counts=True)
    return [(tuple(colour), count) for colour, count in zip(unique.tolist(), counts.tolist(), strict=True)]


def _listed(classes: Sequence[tuple[Any, int]]) -> str:
    """Values and their pixel counts as text for error messages; of many values, the most frequent."""
    shown = sorted(classes, key=lambda item: -item[1])[:_SHOWN] if len(classes) > _SHOWN else classes
    parts = [f"{value} ({count} pixel{'s' if count > 1 else ''})" for value, count in shown]
    return ", ".join(parts) + (f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else "")


def _array_of(source: MaskLike, name: str = "colours") -> str:
    """Code that makes the array which an error message's remedy uses."""
    if isinstance(source, np.ndarray):
        return f"`{name}` the array"
    if isinstance(source, Tensor):
        return f"`{name} = tensor.permute(1, 2, 0).numpy()`" if source.ndim == 3 else f"`{name} = tensor.numpy()`"
    opened = "image" if isinstance(source, Image.Image) else "PIL.Image.open(path)"
    return f"`{name} = numpy.asarray({opened})`"


def _to_weights(values: npt.NDArray[Any], source: MaskLike, argument: str) -> npt.NDArray[np.float32]:
    """Turn (H, W) bool, two-valued or soft values into float32 weights in [0, 1]."""
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        _check_scale(values, float(high), source, argument)
        return values.clip(0, 1).astype(np.float32)
    if low == high:
        return np.full(values.shape, high != 0, dtype=np.float32)
    positive = np.asarray(values == high)
    if (positive | (values == low)).all():
        return positive.astype(np.float32)
    raise AnnotationError(f"{argument}: {describe(source)} {_several_values(values, source)}")


def _check_scale(values: npt.NDArray[Any], high: float, source: MaskLike, argument: str) -> None:
    """Refuse weights that are small labels divided by 255, as torchvision's `ToTensor` makes them."""
    labels = values * 255.0
    if 0.5 < high * 255 < 11 and np.abs(labels - np.rint(labels)).max() < 1e-3:
        raise AnnotationError(
            f"{argument}: {describe(source)} has no weight above {high:.3g}, and all of them are whole numbers divided "
            "by 255: labels, it seems, that were scaled as if they were grey values. Choose the class, for example "
            "`Mask((mask * 255).round() == 1)`."
        )


def _several_values(values: npt.NDArray[Any], source: MaskLike) -> str:
    """Error message for a mask of more than two values, the likeliest cause first."""
    labels, counts = np.unique(values, return_counts=True)
    low, high = labels[0], labels[-1]
    if values.dtype.kind == "f" and (labels != np.rint(labels)).any():
        return (
            f"has values in [{low:g}, {high:g}], expected two values or weights in [0, 1]. Divide by the largest, or "
            "cut: `mask > 0.5`."
        )
    classes = [(int(label), int(count)) for label, count in zip(labels, counts, strict=True)]
    held = f"holds {len(classes)} different values: {_listed(classes)}."
    name = "mask" if isinstance(source, np.ndarray | Tensor) else "labels"
    given = "" if name == "mask" else f" with {_array_of(source, 'labels')}"
    cut = f"`Mask({name} > {(int(low) + int(high)) // 2})`"
    # Class numbers are small, grey edges take all values.
    if len(classes) > 5 and 2 * classes[-2][0] > classes[-1][0] > _FEW and 2 * (counts[0] + counts[-1]) > values.size:
        return (
            f"{held} Nearly all of it is {classes[0][0]} or {classes[-1][0]}, so it has most likely been resized with "
            "interpolation, smoothed or compressed with loss (its size is "
            f"{values.shape[1]} x {values.shape[0]} pixels, which must be its image's). Give the original, resize by "
            f"nearest neighbour (PIL.Image.NEAREST), or cut: {cut}{given}."
        )
    choice = f"{held} Which one is the class? Of an index mask choose it: `Mask({name} == {classes[1][0]})`{given}"
    if high < _FEW or low < 0:
        return f"{choice}."
    return f"{choice}; a mask with soft edges is `Mask({name} / {classes[-1][0]})` or, cut, {cut}."
