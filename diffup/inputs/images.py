"""Reading images of any common form as float tensors in [0, 1], or an error that says what is wrong."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from diffup.errors import ImageError, StorageError
from diffup.utils.storage import is_url, local_path, read_url, without_password

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any] | Tensor
"""A path, the bytes of a file, a PIL image, a numpy array (H, W), (H, W, 1 | 3 | 4), or a torch tensor (H, W),
(1 | 3 | 4, H, W)."""

MAX_PIXELS = 2**26
"""Most pixels of an image that is read unless the caller allows more: 8192 x 8192, 0.8 GB as a float tensor."""

ROUNDING = 1e-4
"""How far floats may leave [0, 1] and still be clipped instead of refused: resizing makes such errors."""

_SIXTEEN_BIT = 65535
_SHALLOW = (8, 10, 12, 14)  # bit depths of cameras and scanners that store their values in 16 bits
_LOST_BITS = "diffup: Pillow has read the upper 8 of 16 bits"  # a note among `Image.info`
_LATE = ("ICO", "ICNS")  # formats whose size is known only when they are decoded
_BAND = 256  # rows of an image that are converted at a time
_PROGRAMS = ("EPS", "WMF")
_NOT_DECODED = (*_PROGRAMS, "BUFR", "GRIB", "HDF5", "MPEG")  # Pillow only recognises the last four


def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that `read_image` reads, in lower case, such as ".jpg".

    They are those that Pillow knows, with the plugins that are registered at the time of the call.
    """
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if _is_read(name))


def is_image_name(name: str | os.PathLike[str]) -> bool:
    """Whether a file name has the suffix, in lower or upper case, of a format that `read_image` reads.

    Args:
        name: file name or path.
    """
    return _is_read(Image.registered_extensions().get(Path(name).suffix.lower()))


def _is_read(file_format: str | None) -> bool:
    """Whether `read_image` reads a format; Pillow opens MPO, photos of two lenses, as JPEG."""
    return (file_format in Image.OPEN or file_format == "MPO") and file_format not in _NOT_DECODED


class FetchedFile(bytes):
    """The content of an image file that was read from a URL.

    Args:
        content: bytes of the file.
        url: the URL, which error messages name.
    """

    url: str

    def __new__(cls, content: bytes, url: str) -> FetchedFile:
        """Keep the URL beside the content."""
        made = super().__new__(cls, content)
        made.url = url
        return made


def fetch(source: Any, argument: str) -> Any:
    """Read the file of an image that the user has given by a URL that fsspec opens, such as "s3://bucket/a.jpg".

    Only functions whose images the user names may call this; no other one fetches anything.

    Args:
        source: image or mask of any form.
        argument: name of the image in error messages.

    Returns:
        The content of the file that a URL names; a path for `file://`; anything else as it is.

    Raises:
        ImageError: there is no such file, it has more than `diffup.utils.storage.MAX_BYTES`, it cannot be read, or the
            URL is a web address.
        MissingPackageError: the package of the file system is not installed.
    """
    if not is_url(source):
        return source
    try:
        local = local_path(source)
        return FetchedFile(read_url(source), source) if local is None else local
    except StorageError as error:
        raise ImageError(f"{argument}: {error}") from error


def read_image(
    source: ImageLike, argument: str = "image", max_pixels: int = MAX_PIXELS, white: float | None = None
) -> Tensor:
    """Read an image as RGB.

    Files and PIL images are rotated as their EXIF orientation says; of an animation the first frame is read. Grey is
    repeated over the three channels; integers are divided by the largest value of their type, or by `white`.
    Transparent pixels are blended with white, as a viewer shows them (dropping alpha would uncover hidden colours).

    Warns (`UserWarning`) of an image of type uint16 whose values end far below 65535: cameras and scanners store 10, 12
    or 14 bits in 16, and such a picture comes out nearly black unless `white` is given.

    Args:
        source: path, bytes of an image file, PIL image, numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or
            torch tensor (H, W), (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors are uint8, uint16 or floats in
            [0, 1].
        argument: name of the image in error messages.
        max_pixels: most pixels of the image; a larger one is refused before it is decoded.
        white: pixel value of white, such as 4095 for 12 bits; integers of any type are then allowed, and floats up to
            it. By default the largest value of the type, or 1 for floats.

    Returns:
        (3, H, W) float32 RGB in [0, 1] on the CPU, in memory of its own.

    Raises:
        ImageError: the file is missing, damaged or not an image; the image is empty or larger than `max_pixels`; its
            shape or type is none of the above; it contains NaN, infinity, floats outside [0, 1] or values above
            `white`.

    Examples:
        >>> deep = read_image("twelve_bits.png", white=4095)
        >>> result = model.segment(deep, support="dog.jpg", annotation="dog_mask.png")
    """
    _check_white(white, argument)
    if isinstance(source, Tensor):
        check_dense(source, argument)
        channels_first = source.detach()
    elif isinstance(source, np.ndarray):
        channels_first = _array_to_tensor(source, argument, white)
    else:
        image, file_format = open_image(source, argument, max_pixels)
        _check_lost_bits(image, source, argument, white)
        channels_first = _array_to_tensor(_pil_to_array(image, file_format, source, argument, white), argument, white)
    _check_layout(channels_first, source, argument, max_pixels)
    if channels_first.ndim == 2:
        channels_first = channels_first[None]
    return _blend_rgb(_to_unit_floats(channels_first.cpu(), source, argument, white))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image bilinearly, with antialiasing when shrinking.

    Args:
        image: (3, H, W) in [0, 1].
        size: new (height, width) in pixels.

    Returns:
        (3, height, width) in [0, 1].
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)
    return resized[0].clamp(0.0, 1.0)


def shrink_image(image: Tensor, longest: int) -> Tensor:
    """Shrink an image whose longer side exceeds a limit to that limit; return others as they are.

    Args:
        image: (3, H, W) in [0, 1].
        longest: maximum side in pixels.

    Returns:
        (3, h, w) in [0, 1].
    """
    height, width = image.shape[-2:]
    ratio = min(1.0, longest / max(height, width))
    return resize_image(image, (max(1, round(height * ratio)), max(1, round(width * ratio))))


def to_bytes(image: Tensor) -> npt.NDArray[np.uint8]:
    """Turn a (3, H, W) image in [0, 1] into an (H, W, 3) uint8 array, some rows at a time to save memory."""
    pixels = np.empty((image.shape[1], image.shape[2], 3), dtype=np.uint8)
    for top in range(0, image.shape[1], _BAND):
        band = (image[:, top : top + _BAND].detach().cpu().float().clamp(0.0, 1.0) * 255).round_().to(torch.uint8)
        pixels[top : top + _BAND] = band.permute(1, 2, 0).numpy()
    return pixels


def to_pil(image: Tensor) -> Image.Image:
    """Turn a (3, H, W) image in [0, 1] into an 8-bit RGB PIL image."""
    return Image.fromarray(to_bytes(image))


def open_image(
    source: str | os.PathLike[str] | bytes | Image.Image, argument: str, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, str | None]:
    """Decode a file or a PIL image, checking its size first, and apply its EXIF orientation.

    Args:
        source: path, bytes of an image file, or PIL image, which is not changed.
        argument: name of the image in error messages.
        max_pixels: most pixels of the image; a larger one is refused before it is decoded.

    Returns:
        The decoded image in its own mode, and the format of its file ("PNG", "JPEG", ...; `None` if unknown).

    Raises:
        ImageError: the file is missing, damaged or not an image, or the image is empty or larger than `max_pixels`.
    """
    if isinstance(source, Image.Image):
        return _decode(source, source, argument, max_pixels)
    if not isinstance(source, str | os.PathLike | bytes):
        raise ImageError(
            f"{argument}: expected a path, the bytes of a file, a PIL image, a numpy array (H, W, C) or a torch tensor "
            f"(C, H, W), got {describe(source)}."
        )
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else _existing(source, argument)) as image:
            return _decode(image, source, argument, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{argument}: {describe(source)} is larger than Pillow's own limit ({error}). Shrink it first."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise ImageError(
            f"{argument}: {describe(source)} cannot be read as an image ({_reason(error)}). "
            "Give an intact PNG, JPEG, TIFF, WebP or other file that Pillow reads."
        ) from error


def upright_size(
    source: str | os.PathLike[str] | bytes | Image.Image, argument: str, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Size of an image after its EXIF orientation is applied, from the header alone wherever that is enough.

    Args:
        source: path, bytes of an image file, or PIL image.
        argument: name of the image in error messages.
        max_pixels: most pixels of the image.

    Returns:
        (height, width) in pixels, that of the image that `read_image` returns.

    Raises:
        ImageError: there is no such file, its header cannot be read, or the image is larger than `max_pixels`.
    """
    try:
        if isinstance(source, Image.Image):
            height, width = _upright_size(source)
        else:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else _existing(source, argument)) as image:
                _check_size(image.height, image.width, source, argument, max_pixels)  # before Pillow decodes a PNG file
                height, width = _upright_size(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        raise ImageError(f"{argument}: {describe(source)} cannot be read as an image ({_reason(error)})") from error
    _check_size(height, width, source, argument, max_pixels)
    return height, width


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after decoding and `ImageOps.exif_transpose`, which reads the orientation from `getexif` too."""
    if image.format in _LATE:
        image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in (5, 6, 7, 8):
        return image.height, image.width
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Some versions of Pillow have turned the size of a TIFF file before its pixels, so that of the file counts.
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])
    return image.width, image.height


def _existing(source: str | os.PathLike[str], argument: str) -> Path:
    path = Path(source)
    if not path.is_file():
        remedy = (
            "URLs are not fetched here: download the file and give its path." if is_url(source) else "Check the path."
        )
        raise ImageError(f"{argument}: there is no file {describe(source)}. {remedy}")
    return path


def describe(value: object) -> str:
    """Describe a value in a few words for error messages: type, shape, data type, path."""
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode} and {value.width} x {value.height} pixels"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, Tensor):
        return f"a torch tensor of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, str | os.PathLike):
        return repr(without_password(os.fspath(value)))
    if isinstance(value, FetchedFile):
        return repr(without_password(value.url))
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def check_dense(tensor: Tensor, argument: str) -> None:
    """Check that a tensor holds plain real values.

    Args:
        tensor: image or mask.
        argument: name of the tensor in error messages.

    Raises:
        ImageError: the tensor is sparse, quantised, complex or on the device `meta`.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise ImageError(
            f"{argument}: expected a dense tensor of real numbers, got {describe(tensor)} ({tensor.layout})."
        )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text names a file, or an object in memory
        return "UnidentifiedImageError: its format is unknown"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _decode(
    image: Image.Image, source: str | os.PathLike[str] | bytes | Image.Image, argument: str, max_pixels: int
) -> tuple[Image.Image, str | None]:
    """Check the size that the header states, then decode and apply the EXIF orientation."""
    _check_size(image.height, image.width, source, argument, max_pixels)
    if image.format in _PROGRAMS:
        raise ImageError(
            f"{argument}: {describe(source)} is a {image.format} file, a program for another interpreter, which is not "
            "run. Save it as PNG."
        )
    try:
        file_format, sixteen = image.format, _is_sixteen_bit(image)
        image.load()
        upright = ImageOps.exif_transpose(image)
        if sixteen and upright.mode in ("RGB", "RGBA", "LA", "CMYK"):
            upright.info[_LOST_BITS] = True
        return upright, file_format
    except Exception as error:  # as above
        raise ImageError(
            f"{argument}: {describe(source)} cannot be decoded ({_reason(error)}): the file is truncated, damaged or "
            "already closed. Give an intact image."
        ) from error


def _is_sixteen_bit(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet has 16 bits a channel."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _check_lost_bits(image: Image.Image, source: object, argument: str, white: float | None) -> None:
    """Refuse or warn of 16-bit colours, of which Pillow reads the upper 8 bits: 12 bits would become 16 dark steps."""
    if _LOST_BITS not in image.info:
        return
    if white is not None:
        raise ImageError(
            f"{argument}: {describe(source)} has colours of 16 bits, of which Pillow reads the upper 8, so white="
            f"{white:g} cannot be applied. Read it by another library, such as tifffile or imageio, and give the array."
        )
    top = int(np.asarray(image)[..., :3].max())
    if 0 < top < 2 ** (_SHALLOW[-1] - 8):
        remedy = "read it by another library, such as tifffile or imageio, and give the array divided by {white}"
        _warn_of_shallow(top * 256 + 255, remedy)


def _check_white(white: object, argument: str) -> None:
    if white is None:
        return
    if isinstance(white, bool) or not isinstance(white, int | float | np.number) or not 0 < white < np.inf:
        raise ImageError(f"{argument}: white={white!r}: expected a positive number, such as 4095 for 12 bits, or None.")


def _warn_of_shallow(top: int, remedy: str) -> None:
    """Warn of 16-bit values whose maximum, `top`, is far below white; one text per depth, so Python shows it once."""
    bits = next(bits for bits in _SHALLOW if top < 2**bits)
    white = 2**bits - 1
    warnings.warn(
        f"a 16-bit image has no value above {white} and is nearly black where white is 65535. If it has {bits} bits, "
        + remedy.format(white=white),
        UserWarning,
        stacklevel=2,
    )


def _check_size(height: int, width: int, source: object, argument: str, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{argument}: {describe(source)} is empty. Give at least one pixel.")
    if height * width > max_pixels:
        raise ImageError(
            f"{argument}: {describe(source)} has {width} x {height} = {height * width} pixels, more than the limit of "
            f"{max_pixels} (max_pixels). Shrink it first."
        )


def _pil_to_array(
    image: Image.Image, file_format: str | None, source: ImageLike, argument: str, white: float | None
) -> npt.NDArray[Any]:
    """Pixels of a decoded image: (H, W) uint16 or float32 (with `white` int32), (H, W, 3) or (H, W, 4) uint8."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I" and file_format in ("PNG", "PPM"):  # how Pillow opens, or once opened, their 16-bit grey
        return np.asarray(image).clip(0, _SIXTEEN_BIT).astype(np.uint16)
    if image.mode == "I" and white is not None:
        return np.asarray(image)
    if image.mode == "I":
        raise ImageError(
            f"{argument}: {describe(source)} holds 32-bit integers, whose white is not defined. Say what it is, "
            "read_image(..., white=4095), or give a numpy array of uint8, uint16 or floats in [0, 1]."
        )
    if image.mode == "F":
        return np.asarray(image)
    try:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return np.asarray(image if image.mode == mode else image.convert(mode))
    except ValueError as error:
        raise ImageError(
            f"{argument}: {describe(source)} of mode {image.mode} has no conversion to RGB ({error}). "
            "Convert it to mode RGB first."
        ) from error


def _array_to_tensor(array: npt.NDArray[Any], argument: str, white: float | None) -> Tensor:
    """(H, W) or (H, W, C) array to an (H, W) or (C, H, W) tensor, whatever its byte order and strides."""
    if array.dtype.kind == "f" or (array.dtype.kind in "ui" and white is not None):
        with np.errstate(over="ignore"):  # becomes infinity, which is refused below
            array = array.astype(np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        array = array.astype(array.dtype.newbyteorder("="))
    else:
        raise ImageError(_type_message(array, argument, str(array.dtype)))
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor


def _type_message(source: object, argument: str, dtype: str) -> str:
    remedy = "If it is a mask, give it as annotation." if "bool" in dtype else "Convert it, 0 being black."
    return f"{argument}: expected pixels of type uint8, uint16 or floats in [0, 1], got {describe(source)}. {remedy}"


def _check_layout(tensor: Tensor, source: ImageLike, argument: str, max_pixels: int) -> None:
    """Refuse anything but (H, W) and (C, H, W) with 1, 3 or 4 channels, and empty or huge images."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        expected = "(C, H, W)" if isinstance(source, Tensor) else "(H, W, C)"
        remedy = ""
        if tensor.ndim == 4:
            remedy = " For several images give a list of images."
        elif tensor.ndim == 3 and tensor.shape[-1 if isinstance(source, Tensor) else 1] in (1, 3, 4):
            order = ".permute(2, 0, 1)" if isinstance(source, Tensor) else ".transpose(1, 2, 0)"
            remedy = f" The channels seem to be at the other end: use {order}."
        raise ImageError(
            f"{argument}: expected an image of shape (H, W) or {expected} with C = 1, 3 or 4, got {describe(source)}."
            + remedy
        )
    _check_size(tensor.shape[-2], tensor.shape[-1], source, argument, max_pixels)


def _to_unit_floats(tensor: Tensor, source: ImageLike, argument: str, white: float | None) -> Tensor:
    """Convert pixels of any accepted type to floats in [0, 1]."""
    if white is not None and tensor.dtype != torch.bool:
        return _checked_floats(tensor.to(torch.float32) / white, source, argument, white)
    if tensor.dtype in (torch.uint8, torch.uint16):
        # In place and laid out for good: a large photo is held as floats once, not three times.
        floats = tensor.to(torch.float32, memory_format=torch.contiguous_format)
        if tensor.dtype == torch.uint8:
            return floats.div_(255)
        top = int(floats.max())
        if 0 < top < 2 ** _SHALLOW[-1]:
            _warn_of_shallow(top, "give read_image(..., white={white}), or the array divided by {white}")
        return floats.div_(_SIXTEEN_BIT)
    if not tensor.is_floating_point():
        raise ImageError(_type_message(source, argument, str(tensor.dtype)))
    return _checked_floats(tensor.to(torch.float32), source, argument, white)


def _checked_floats(tensor: Tensor, source: ImageLike, argument: str, white: float | None) -> Tensor:
    """Clip floats that leave [0, 1] by rounding errors, and refuse others."""
    if not torch.isfinite(tensor).all():
        raise ImageError(f"{argument}: {describe(source)} contains NaN or infinity. Remove them.")
    low, high = tensor.min().item(), tensor.max().item()
    if (low < -ROUNDING or high > 1 + ROUNDING) and white is not None:
        raise ImageError(
            f"{argument}: white={white:g}, but {describe(source)} has values in [{low * white:g}, {high * white:g}]. "
            "Give the value of white, which no other exceeds, or clip the others."
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ImageError(
            f"{argument}: expected floats in [0, 1], got {describe(source)} with values in [{low:g}, {high:g}]. "
            "Divide by 255 if its white is 255, undo any normalisation, or convert it to uint8."
        )
    return tensor.clamp(0.0, 1.0)


def _blend_rgb(tensor: Tensor) -> Tensor:
    """(1 | 3 | 4, H, W) to (3, H, W): grey is repeated, alpha is blended with white."""
    if tensor.shape[0] == 4:
        alpha = tensor[3:]
        tensor = tensor[:3] * alpha + (1 - alpha)
    return tensor.expand(3, -1, -1).contiguous()
