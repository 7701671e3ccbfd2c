"""Class names as annotations of an evaluation: `text` alone, or besides a visual annotation, as in `mask+text`."""

from __future__ import annotations

from typing import cast, get_args

from diffup.data.weak import AnnotationKind
from diffup.errors import ConfigError
from diffup.utils.suggestions import did_you_mean

TEXT = "text"


def split_annotation(annotation: str) -> tuple[AnnotationKind | None, bool]:
    """The kind that the supports' masks are weakened to, and whether the class's name is given too.

    Args:
        annotation: a kind of `diffup.data.weak.weaken`, `text` (no supports at all), or `KIND+text`.

    Returns:
        The kind, None for `text`; and whether there is text.

    Raises:
        ConfigError: it is none of these.
    """
    if annotation == TEXT:
        return None, True
    kind, plus, text = annotation.partition("+")
    if kind not in get_args(AnnotationKind) or (plus and text != TEXT):
        raise ConfigError(
            f"annotation={annotation!r}: expected one of {', '.join(get_args(AnnotationKind))}, {TEXT}, or one of them "
            f"with the class's name, such as mask+{TEXT}{did_you_mean(kind, (*get_args(AnnotationKind), TEXT))}"
        )
    return cast(AnnotationKind, kind), bool(plus)
