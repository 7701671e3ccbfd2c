"""What the fuzz tests share: the contract, and strategies for images."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from diffup.errors import DiffUpError

T = TypeVar("T")

SIDES = st.sampled_from([1, 2, 3, 7, 10, 31, 64])
SIZES = st.one_of(st.tuples(SIDES, SIDES), st.sampled_from([(1, 1), (10, 10_000), (10_000, 10), (1, 999)]))
"""(width, height)."""

MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "La",
    "RGBX",
    "I;16",
    "I;16B",
)
FORMATS = (
    *("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "ICO", "JPEG2000", "TGA", "PCX", "EPS", "PDF", "MPO"),
    *("AVIF", "ICNS", "DDS", "QOI", "SGI", "IM", "DIB"),
)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{}"/></x:xmpmeta>'

PARTS = st.floats(0, 1)
"""Places in a file, as a part of its length, which for some encoders is another every time."""


def outcome(call: Callable[[], T]) -> T | None:
    """What a call returns, or None where it raises an exception of the library's own that says something."""
    try:
        return call()
    except DiffUpError as error:
        assert len(str(error)) > 10, "an error must say what is wrong"
        return None


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    """PIL images of any mode, some with an EXIF orientation or transparency."""
    mode, (width, height) = draw(st.sampled_from(MODES)), draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    image = Image.new(mode, (width, height))
    if draw(st.booleans()) and mode in ("L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "RGBX", "I;16", "F", "I"):
        image.frombytes(rng.integers(0, 256, len(image.tobytes())).astype(np.uint8).tobytes())
    if draw(st.booleans()):
        image.getexif()[0x0112] = draw(st.integers(0, 12))
    if mode == "P" and draw(st.booleans()):
        image.info["transparency"] = draw(st.sampled_from([0, b"\x00\xff", 300]))
    return image


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Image files, whole, cut off, with changed bytes, followed by rubbish, or no image at all."""
    buffer = io.BytesIO()
    image = draw(pil_images())
    for mode in (image.mode, "RGB"):
        try:
            options = {"xmp": XMP.format(draw(st.integers(0, 9))).encode()} if draw(st.booleans()) else {}
            image.convert(mode).save(buffer, format=draw(st.sampled_from(FORMATS)), exif=image.getexif(), **options)
            break
        except Exception:
            buffer = io.BytesIO()
    content = bytearray(buffer.getvalue() or draw(st.binary(max_size=64)))
    damage = draw(st.sampled_from(["none", "cut", "bytes", "longer", "zeros", "header"]))
    if damage == "cut":
        content = content[: int(draw(PARTS) * len(content))]
    elif damage == "longer":
        content += draw(st.binary(max_size=64))
    elif damage == "zeros":
        content = bytearray(len(content))
    elif content and damage in ("bytes", "header"):
        end = min(len(content), 64) if damage == "header" else len(content)
        for _ in range(draw(st.integers(1, 8))):
            content[int(draw(PARTS) * (end - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def _filled(shape: tuple[int, ...], dtype: str, kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "unit":
        return np.asarray(rng.random(shape)).astype(dtype)
    if kind == "binary":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    values = np.asarray(rng.standard_normal(shape) * 200).astype(dtype)
    if kind == "broken" and values.size and values.dtype.kind in "fc":
        values.flat[0] = draw_broken(seed)
    return np.asarray(values)


def draw_broken(seed: int) -> float:
    return (np.nan, np.inf, -np.inf, 1e30)[seed % 4]


SHAPES = st.one_of(
    st.sampled_from([(), (0,), (5,), (0, 5), (5, 0), (0, 0, 3), (5, 7, 2), (5, 7, 5), (1, 5, 7, 3), (3, 5, 7), (5, 7)]),
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES, st.sampled_from([1, 3, 4])),
    st.tuples(st.sampled_from([1, 3, 4]), SIDES, SIDES),
)
KINDS = st.sampled_from(["unit", "binary", "any", "broken"])
DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int64", "float16", "float32", "float64", "bool", "complex64"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Numpy arrays of any shape and type."""
    dtype = draw(st.sampled_from([*DTYPES, ">u2", ">f4", "O", "U3", "longdouble"]))
    shape, seed = draw(SHAPES), draw(st.integers(0, 99))
    with np.errstate(all="ignore"):
        array = _filled(shape, "float64" if dtype == "U3" else dtype, draw(KINDS), seed)
        array = np.asarray(array.astype(dtype))
    return array[::-1] if array.ndim and draw(st.booleans()) else array


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Torch tensors of any shape, type and layout."""
    with np.errstate(all="ignore"):
        tensor = torch.from_numpy(
            _filled(draw(SHAPES), draw(st.sampled_from(DTYPES)), draw(KINDS), draw(st.integers(0, 99)))
        )
    change = draw(st.sampled_from(["none", "bfloat16", "sparse", "meta", "gradient", "float8", "turned"]))
    if change == "bfloat16" and not tensor.is_complex():
        return tensor.to(torch.bfloat16)
    if change == "float8" and tensor.dtype == torch.float32:
        return tensor.to(torch.float8_e4m3fn)
    if change == "sparse" and tensor.ndim == 2 and tensor.dtype == torch.float32:
        return tensor.to_sparse()
    if change == "meta":
        return tensor.to("meta")
    if change == "gradient" and tensor.is_floating_point():
        return tensor.requires_grad_(True)
    return tensor.mT if change == "turned" and tensor.ndim >= 2 else tensor


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 80),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=8,
)
