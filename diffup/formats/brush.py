"""Label Studio's run lengths of brush strokes: the four bytes of each pixel (RGBA), packed in bits.

A mask is a string of bits, highest first: the number of values (32 bits), the bits of a value less one (5), four counts
of bits less one (4 each), and then blocks. A block says whether one value is repeated (1 bit), which of the four counts
its length is written with (2), the length less one, and then the value, or all values if they are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.checks import as_mask
from diffup.inputs.images import describe

_CHANNELS = 4
_VALUE = 8  # bits of a value
_COUNTS = (3, 4, 8, 16)  # bits of a length
_LONGEST = 2 ** _COUNTS[-1]
_HEADER = f"{_VALUE - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in _COUNTS)
_MOST = 2**32  # values that the header can count


def encode_brush(mask: npt.ArrayLike) -> list[int]:
    """Encode a mask as the field `rle` of a brush region, all four channels 255 where the mask is.

    Args:
        mask: (H, W) bool.

    Returns:
        The bytes, 0 to 255 each: those that `label_studio_sdk.converter.brush.mask2rle` makes of the mask times 255.

    Raises:
        FormatError: the mask is not an (H, W) bool array, or too large for the format (2^30 pixels).
    """
    flat = as_mask(mask, "mask").ravel()
    if flat.size * _CHANNELS >= _MOST:
        raise FormatError(f"mask: {flat.size} pixels, more than Label Studio's run lengths can count")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.append(starts, flat.size)) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}", _HEADER]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        bits += _repeated(length, 255 if flat[start] else 0)
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(rle: Any, size: tuple[int, int], argument: str = "rle") -> npt.NDArray[np.bool_]:
    """Decode the field `rle` of a brush region.

    Args:
        rle: value of the field: bytes as a list of numbers.
        size: (height, width) of the image in pixels.
        argument: name of the field in error messages.

    Returns:
        (H, W) bool: where the opacity is above half of its greatest value, since a brush's edge may be smooth and some
        programs write 1 instead of 255.

    Raises:
        FormatError: the field holds no such run lengths, they are damaged, or they are those of an image of another
            size.
    """
    if not isinstance(rle, list):
        raise FormatError(f"{argument}: expected a list of bytes, got {describe(rle)}")
    try:
        bits = _Bits(bytes(rle))
    except (TypeError, ValueError) as error:
        raise FormatError(f"{argument}: expected bytes from 0 to 255 ({error})") from error
    count = size[0] * size[1] * _CHANNELS
    try:
        stated, value = bits.read(32), bits.read(5) + 1
        lengths = [bits.read(4) + 1 for _ in _COUNTS]
        if stated != count:
            raise FormatError(
                f"{argument}: run lengths of {stated} values, expected {count} for an image of {size[1]} x {size[0]} "
                "pixels"
            )
        if value != _VALUE:
            raise FormatError(f"{argument}: values of {value} bits, expected {_VALUE}")
        values = np.empty(count, dtype=np.uint8)
        end = 0
        while end < count:
            repeated, start = bits.read(1), end
            end += 1 + bits.read(lengths[bits.read(2)])
            if end > count:
                raise FormatError(f"{argument}: the runs are longer than the image; they are damaged")
            values[start:end] = bits.read(_VALUE) if repeated else bits.read_bytes(end - start)
    except EOFError as error:
        raise FormatError(f"{argument}: the runs are cut off, or damaged") from error
    opacity = values.reshape(*size, _CHANNELS)[..., -1]
    return np.asarray(opacity > opacity.max() / 2)


def _repeated(length: int, value: int) -> Iterator[str]:
    """The blocks of a value that is repeated."""
    for _ in range((length - 1) // _LONGEST):
        yield f"111{_LONGEST - 1:016b}{value:08b}"
    rest = (length - 1) % _LONGEST + 1
    index = 3 if length > _LONGEST else next(i for i, bits in enumerate(_COUNTS) if rest <= 2**bits)
    yield f"1{index:02b}{rest - 1:0{_COUNTS[index]}b}{value:08b}"


class _Bits:
    """Reads numbers from bytes, bit by bit, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def read(self, bits: int) -> int:
        """Read a number.

        Raises:
            EOFError: fewer bits are left.
        """
        first, end = self._at, self._at + bits
        if end > len(self._content) * 8:
            raise EOFError
        self._at = end
        whole = int.from_bytes(self._content[first // 8 : -(-end // 8)], "big")
        return whole >> -end % 8 & (1 << bits) - 1

    def read_bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """Read bytes, which may begin within a byte.

        Raises:
            EOFError: fewer are left.
        """
        return np.frombuffer(self.read(8 * count).to_bytes(count, "big"), dtype=np.uint8)
