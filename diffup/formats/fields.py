"""Fields of the records that other programs write, read and checked."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.inputs.images import describe

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")


def field(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Read a required field of a record.

    Args:
        record: the record.
        name: name of the field.
        kind: type or types of its value.
        where: name of the record in error messages, such as `labels.json: images[3]`.

    Raises:
        FormatError: the field is missing or has another type.
    """
    if not isinstance(record, Mapping):
        raise FormatError(f"{where}: expected an object with the field {name!r}, got {describe(record)}")
    value = record.get(name)
    if value is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise FormatError(f"{where}.{name}: expected {names}, got {'nothing' if value is None else describe(value)}")
    return value


def number_field(record: Mapping[str, Any], name: str, where: str) -> int:
    """Read a required field that holds a whole number; 60.0 and "60" are 60, as some programs write it.

    Args:
        record: the record.
        name: name of the field.
        where: name of the record in error messages.

    Raises:
        FormatError: the field is missing or holds no whole number.
    """
    value = whole(field(record, name, (int, float, str), where))
    if not isinstance(value, int):
        raise FormatError(f"{where}.{name}: expected int, got {describe(value)}")
    return value


def id_field(record: Mapping[str, Any], name: str, where: str) -> int | str:
    """Read a required field that holds an id; 1.0 and "1" are 1, other strings are unchanged.

    Args:
        record: the record.
        name: name of the field.
        where: name of the record in error messages.

    Raises:
        FormatError: the field is missing or holds neither a string nor a whole number.
    """
    value = whole(field(record, name, (int, str, float), where))
    if isinstance(value, float):
        raise FormatError(f"{where}.{name}: expected int or str, got {describe(value)}")
    return value


def whole(value: float | str) -> int | float | str:
    """Turn a float or a string that holds a whole number into an integer; return any other value unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    return value


def stated_size(record: Mapping[str, Any], height: str, width: str, where: str) -> tuple[int, int] | None:
    """Read the image size that a record states.

    Args:
        record: the record.
        height: name of the field with the height.
        width: name of the field with the width.
        where: name of the record in error messages.

    Returns:
        (height, width) in pixels; `None` if a side is missing, null or not above 0.

    Raises:
        FormatError: a side is not a whole number.
    """
    if record.get(height) is None or record.get(width) is None:
        return None
    size = number_field(record, height, where), number_field(record, width, where)
    return size if min(size) > 0 else None


def decode_base64(text: str, where: str) -> bytes:
    """Decode a base64 field, which may be a data URL.

    Args:
        text: value of the field.
        where: name of the field in error messages.

    Raises:
        FormatError: the text is not base64.
    """
    if text.startswith("data:"):  # a data URL
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{where}: not base64 ({error})") from error


def four_numbers(value: Any, where: str, form: str = "four numbers") -> npt.NDArray[np.float64]:
    """Read the four numbers of a box, which may be strings.

    Args:
        value: value of the field.
        where: name of the field in error messages.
        form: expected form in error messages.

    Returns:
        (4,) float64.

    Raises:
        FormatError: the value is not four numbers.
    """
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: expected {form}, got {describe(value)}") from error
    if numbers.shape != (4,):
        raise FormatError(f"{where}: expected {form}, got {describe(value)}")
    return numbers
