"""Checking and decoding COCO's run lengths, plain and compressed.

pycocotools' decoder, in C, does not check them: for runs that end early it returns whatever was in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.inputs.images import describe

_LONGEST = 13  # most characters of a run, five bits each: 64 bits


def decode_rle(segmentation: Mapping[str, Any], size: tuple[int, int], argument: str) -> npt.NDArray[np.bool_]:
    """Decode run lengths to a mask.

    Args:
        segmentation: `size` [height, width] and `counts`: a list of runs, or compressed as a string or bytes.
        size: (height, width) of the image in pixels.
        argument: name of the field in error messages.

    Returns:
        (H, W) bool.

    Raises:
        FormatError: the size differs, or the runs are damaged or do not add up to the image's pixels.
    """
    if "size" not in segmentation or "counts" not in segmentation:
        raise FormatError(f"{argument}: expected run lengths {{'size', 'counts'}}, got {describe(segmentation)}")
    stated = segmentation["size"]
    if not isinstance(stated, list | tuple | np.ndarray) or list(stated) != list(size):
        turned = isinstance(stated, list | tuple) and list(stated) == [size[1], size[0]]
        remedy = " It is (height, width), not the other way round." if turned else ""
        raise FormatError(f"{argument}.size: the image is {list(size)} (height, width), got {stated!r}.{remedy}")
    counts, where = segmentation["counts"], f"{argument}.counts"
    runs = _uncompressed(counts, where) if isinstance(counts, str | bytes) else _whole_numbers(counts, where)
    total = sum(runs)
    if min(runs, default=0) < 0 or total != size[0] * size[1]:
        damage = f"{total} in all" if min(runs, default=0) >= 0 else f"one is {min(runs)}"
        raise FormatError(
            f"{where}: the runs do not add up to {size[0]} x {size[1]} pixels ({damage}); they are cut off or damaged"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(size[1], size[0]).T)


def _whole_numbers(counts: Any, where: str) -> list[int]:
    """Read plain runs as integers; programs that compute with floats write 5.0 for 5."""
    if not isinstance(counts, list | tuple | np.ndarray):
        raise FormatError(f"{where}: expected a list of runs or their compressed text, got {describe(counts)}")
    runs = []
    for run in counts:
        number = isinstance(run, int | float | np.integer | np.floating) and not isinstance(run, bool)
        if not number or run != run or abs(run) > 2**63 or run != int(run):
            raise FormatError(f"{where}: the runs are whole numbers of pixels, got {describe(run)}")
        runs.append(int(run))
    return runs


def _uncompressed(counts: str | bytes, where: str) -> list[int]:
    """Decode the compressed form to runs.

    A character holds five bits of a number, and a sixth that says whether the number continues. From the fourth run on,
    the number is the difference to the run before the previous one.
    """
    codes = counts if isinstance(counts, bytes) else counts.encode("utf-8", "replace")
    runs: list[int] = []
    number = length = 0
    for position, code in enumerate(codes):
        bits = code - 48
        if not 0 <= bits < 64 or length == _LONGEST:
            raise FormatError(f"{where}: no compressed runs, character {position} is damaged")
        number |= (bits & 31) << 5 * length
        length += 1
        if not bits & 32:
            number -= (bits & 16) << 5 * length - 4  # the sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = length = 0
    if length:
        raise FormatError(f"{where}: the compressed runs are cut off within a number")
    return runs
