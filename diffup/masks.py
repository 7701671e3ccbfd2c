"""Masks in whatever form the user has them, as weights in [0, 1]; or an error that says what is wrong."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.errors import AnnotationError, ImageError
from diffup.images import MAX_PIXELS, ROUNDING, check_dense, describe, open_image

MaskLike: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor
"""A path, a PIL image, a numpy array (H, W), (H, W, 1 | 3 | 4) or a torch tensor (H, W), (1 | 3 | 4, H, W)."""

_LOSSY = ("JPEG", "MPO")  # their masks are grey at the edges and can be nothing but two-valued
_MAX_GREY = 0.05  # part of such a mask that may be neither dark nor bright


def read_mask(source: MaskLike, argument: str = "mask") -> Tensor:
    """Read a mask of one class.

    - Two values: the larger one is the class (bool, 0 and 1, 0 and 255, ...). One value: the class everywhere,
      unless it is 0.
    - Floats in [0, 1] are weights.
    - More values are refused: an index mask holds several classes, and which one is meant is not for us to guess.
    - Transparency that varies is the mask: opaque is the class, whatever the colours.
    - Colours: black and one other colour; or red = green = blue, which counts as grey.
    - A palette's indices are the values, but a palette of black and one other colour is taken by its colours.
    - JPEG files must be black and white, and are cut between: their edges are never clean.

    Args:
        source: path, PIL image, numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or torch tensor (H, W),
            (1, H, W), (3, H, W) or (4, H, W).
        argument: what to call the mask in error messages.

    Returns:
        (H, W) float32 in [0, 1] on the CPU, in memory of its own. It may be all zeros.

    Raises:
        AnnotationError: none of the above, NaN, empty, larger than `diffup.images.MAX_PIXELS`, or an unreadable file.
    """
    if isinstance(source, Tensor):
        pixels = _tensor_to_array(source, argument)
    elif isinstance(source, np.ndarray):
        pixels = source
    else:
        pixels = _read_file(source, argument)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise AnnotationError(
            f"{argument}: expected a mask of shape (H, W), got {describe(source)}. Of several masks give one, such as "
            "mask[0]; masks of several support images are a list."
        )
    if not 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS:
        raise AnnotationError(f"{argument}: {describe(source)} is empty or has more than {MAX_PIXELS} pixels.")
    if pixels.dtype.kind not in "buif":
        raise AnnotationError(f"{argument}: expected bool, integers or floats in [0, 1], got {describe(source)}.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise AnnotationError(f"{argument}: {describe(source)} contains NaN or infinity. Remove them.")
    values = pixels if pixels.ndim == 2 else _flatten_colours(pixels, source, argument)
    return torch.from_numpy(_to_weights(values, source, argument))


def bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The edges (x0, y0, x1, y1) of the smallest box around an (H, W) mask, in pixels; `None` if it is empty."""
    if not mask.any():
        return None
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


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


def _read_file(source: str | os.PathLike[str] | Image.Image, argument: str) -> npt.NDArray[Any]:
    """Pixels of a file or PIL image, (H, W) values or (H, W, 3 | 4) colours."""
    try:
        image, file_format = open_image(source, argument)
    except ImageError as error:
        raise AnnotationError(str(error)) from error
    try:
        return _pil_to_values(image, file_format, argument)
    except ValueError as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(
            f"{argument}: {describe(source)} of mode {image.mode} has no conversion to grey. Give a grey mask."
        ) from error


def _pil_to_values(image: Image.Image, file_format: str | None, argument: str) -> npt.NDArray[Any]:
    if file_format in _LOSSY:
        return _cut_lossy(image, argument)
    if image.has_transparency_data:
        colours = np.asarray(image.convert("RGBA"))
        if np.ptp(colours[..., 3]):
            return colours
    if image.mode in ("P", "PA"):
        return _palette_values(image)
    if image.mode in ("L", "1", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _cut_lossy(image: Image.Image, argument: str) -> npt.NDArray[np.bool_]:
    """A black and white JPEG, whose compression blurs edges, cut at half of white; a photo is refused."""
    grey = np.asarray(image.convert("L"))
    if ((grey > 63) & (grey < 192)).mean() > _MAX_GREY:
        raise AnnotationError(
            f"{argument}: a JPEG file is taken as a mask only if it is black and white, and this one is not. Is it the "
            "photo? Save masks as PNG."
        )
    return np.asarray(grey > 127)


def _palette_values(image: Image.Image) -> npt.NDArray[Any]:
    """Indices of a palette image, or its colours where they are black and one other.

    Programs that reduce colours number them in any order, so that black is not always 0.
    """
    colours = np.asarray(image.convert("RGB"))
    bright = np.asarray(colours.any(axis=2))
    lit = colours[bright]
    if len(lit) and not bright.all() and (lit == lit[0]).all():
        return bright
    return np.asarray(image.getchannel(0) if image.mode == "PA" else image)


def _flatten_colours(pixels: npt.NDArray[Any], source: MaskLike, argument: str) -> npt.NDArray[Any]:
    """(H, W) values of an (H, W, 1 | 3 | 4) mask."""
    white = {"f": 1, "b": 1}.get(pixels.dtype.kind, 65535 if pixels.dtype == np.uint16 else 255)
    if pixels.shape[2] == 4 and (pixels[..., 3] != pixels[0, 0, 3]).any():
        return np.asarray(pixels[..., 3] / white)
    grey: npt.NDArray[Any] = pixels[..., 0]
    if (pixels[..., :3] == grey[..., None]).all():
        return grey
    marked = np.asarray((pixels[..., :3] != 0).any(axis=2))
    lit = pixels[marked][:, :3]
    if (lit == lit[0]).all() and not marked.all():
        return marked
    raise AnnotationError(
        f"{argument}: {describe(source)} has several colours, so it is no mask of one class. Choose the class, for "
        "example `(colours == (255, 0, 0)).all(axis=2)` of the numpy array (H, W, 3)."
    )


def _to_weights(values: npt.NDArray[Any], source: MaskLike, argument: str) -> npt.NDArray[np.float32]:
    """(H, W) float32 in [0, 1] of bool, two-valued or soft values."""
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        return values.clip(0, 1).astype(np.float32)
    if low == high:
        return np.full(values.shape, high != 0, dtype=np.float32)
    positive = np.asarray(values == high)
    if (positive | (values == low)).all():
        return positive.astype(np.float32)
    if values.dtype.kind == "f":
        raise AnnotationError(
            f"{argument}: expected two values or weights in [0, 1], got {describe(source)} with values in "
            f"[{low:g}, {high:g}]. Divide by the largest, or cut: `mask > 0.5`."
        )
    labels = np.unique(values)
    shown = ", ".join(str(label) for label in labels[:6]) + (", ..." if len(labels) > 6 else "")
    raise AnnotationError(
        f"{argument}: {describe(source)} holds {len(labels)} different values ({shown}). Of an index mask choose the "
        f"class: `Mask(labels == {labels[1]})` with `labels = numpy.asarray(PIL.Image.open(path))`; a mask with soft "
        "edges is `Mask(labels / 255)` or, cut, `Mask(labels > 127)`."
    )
