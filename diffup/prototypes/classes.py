"""One or more classes as the argument of a function: prototypes that fit the model and each other."""

from __future__ import annotations

from diffup.errors import PrototypesError
from diffup.prototypes.prototypes import PrototypeEncoder, Prototypes

MAX_CLASSES = 255
"""Greatest number of classes in a label map, whose labels are bytes."""


def check_classes(given: object, model: PrototypeEncoder) -> list[Prototypes]:
    """Return prototypes as a list of classes, after checking that they fit the model and each other.

    Args:
        given: prototypes of one class, or a list with those of several.
        model: the model to use them with.

    Raises:
        PrototypesError: the list is empty, holds something else, more than 255 classes or a name twice; or a class was
            made with another encoder or text space.
    """
    classes = distinct_classes(given)
    for item in classes:
        item.check(model)
    return classes


def distinct_classes(given: object) -> list[Prototypes]:
    """Return prototypes as a list of classes, after checking that their names differ.

    Args:
        given: prototypes of one class, or a list with those of several.

    Raises:
        PrototypesError: the list is empty, holds something else, more than 255 classes or a name twice.
    """
    items = list(given) if isinstance(given, list | tuple) else [given]
    classes = [item for item in items if isinstance(item, Prototypes)]
    if not classes or len(classes) < len(items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items})) or "an empty list"
        raise PrototypesError(
            f"prototypes: expected Prototypes or a list of them, got {kinds}; make them with model.prototypes(support, "
            "annotation), or read them with Prototypes.load(path)"
        )
    names = [item.name for item in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PrototypesError(
            f"prototypes: {', '.join(map(repr, twice))} is there more than once; shots of one class are added with "
            "prototypes.add(model, support, annotation), other classes have other names"
        )
    check_count(len(names), "prototypes")
    return classes


def check_count(count: int, argument: str) -> None:
    """Check that a label map can hold a number of classes.

    Args:
        count: number of classes.
        argument: name of the argument with the classes in error messages.

    Raises:
        PrototypesError: there are more than 255.
    """
    if count > MAX_CLASSES:
        raise PrototypesError(f"{argument}: {count} classes do not fit into a label map; give up to {MAX_CLASSES}")


def has_text(given: object) -> bool:
    """Whether any prototypes among the given object or list have text prompts.

    Args:
        given: the `support` argument of `DiffUp.segment`: prototypes, images, or a list of either.
    """
    items = given if isinstance(given, list | tuple) else [given]
    return any(isinstance(item, Prototypes) and item.text_prompt is not None for item in items)
