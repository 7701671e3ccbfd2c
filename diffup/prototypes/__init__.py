"""Prototypes of a class, computed once from supports and text prompts, saved, and used on any number of queries."""

from diffup.prototypes.classes import MAX_CLASSES, check_classes, check_count, distinct_classes, has_text
from diffup.prototypes.join import join_prototypes
from diffup.prototypes.prototypes import (
    PrototypeEncoder,
    Prototypes,
    read_negatives,
    read_supports,
    teach,
    with_negatives,
)

__all__ = [
    "MAX_CLASSES",
    "PrototypeEncoder",
    "Prototypes",
    "check_classes",
    "check_count",
    "distinct_classes",
    "has_text",
    "join_prototypes",
    "read_negatives",
    "read_supports",
    "teach",
    "with_negatives",
]
