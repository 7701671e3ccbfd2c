"""Annotation kinds of an evaluation with class names: `text` alone, or with a visual annotation, as in `mask+text`."""

from __future__ import annotations

from typing import cast, get_args

from diffup.data.weak import AnnotationKind
from diffup.errors import ConfigError
from diffup.utils.suggestions import did_you_mean

TEXT = "text"


def split_annotation(annotation: str) -> tuple[AnnotationKind | None, bool]:
    """Split an annotation into the kind of the supports' annotations and whether the class name is given.

    Args:
        annotation: a kind such as `mask`, `box` or `scribble`, `text` (no supports), or `KIND+text`.

    Returns:
        The kind, None for `text`, and whether the class name is given.

    Raises:
        ConfigError: the annotation is none of these.
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
