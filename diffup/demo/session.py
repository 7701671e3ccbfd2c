"""The state of one visitor of the page: examples, a query photo, results. Every change gives a new `Session`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.decoder.options import SamplingOptions
from diffup.demo.encoders import Encoders
from diffup.demo.examples import WORD, Example, read_editor, read_paint
from diffup.errors import ConfigError, ImageError, PrototypesError
from diffup.inputs.images import read_image, to_pil
from diffup.label_map import LabelMap
from diffup.model import DiffUp
from diffup.prototypes import Prototypes
from diffup.utils.serving import MAX_PIXELS

TOO_LARGE = f"the image has more than the {MAX_PIXELS // 10**6} million pixels that this page takes. Shrink it first."

MAX_KEPT = 2**26
"""Maximum number of pixels of all examples of a visitor."""

MAX_EXAMPLES = 100


@dataclass(frozen=True)
class Taught:
    """Prototypes of a class, and the examples from which they were computed."""

    examples: tuple[Example, ...]
    prototypes: Prototypes


@dataclass(frozen=True, eq=False)
class Session:
    """The state of one visitor.

    Attributes:
        examples: examples of all classes, in the order in which they were added.
        query: (H, W, 3) uint8, the photo to segment; None if there is none.
        query_name: file name of the query.
        taught: computed prototypes by encoder and class, so that nothing is computed twice.
        results: results of the last run, one for each encoder, in the order of the menu.
    """

    examples: tuple[Example, ...] = ()
    query: npt.NDArray[np.uint8] | None = None
    query_name: str = "query.png"
    taught: Mapping[tuple[str, str], Taught] = field(default_factory=dict)
    results: tuple[LabelMap, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order of their first examples."""
        return list(dict.fromkeys(example.name for example in self.examples))


def add_painted(session: Session, name: str, editor: Mapping[str, Any] | None, kind: str) -> Session:
    """Add an example from the image editor.

    Args:
        session: the current session.
        name: name of the class.
        editor: value of Gradio's image editor, as `read_editor` takes it.
        kind: kind of annotation that the paint means, one of `diffup.demo.examples.KINDS`.

    Returns:
        The changed session.

    Raises:
        PrototypesError: the class has no name.
        ImageError: there is no image, or it is too large.
        AnnotationError: the paint is missing or does not suit the kind.
        ConfigError: there are too many examples.
    """
    image, paint = read_editor(editor)
    return add_example(session, Example(_class_name(name), kind, image, read_paint(paint, kind)))


def add_word(session: Session, word: str) -> Session:
    """Add a text prompt: as a new class, or to the class of the same name.

    Args:
        session: the current session.
        word: name of the class, such as "a red bus".

    Returns:
        The changed session.

    Raises:
        PrototypesError: the name is empty or not printable.
        ConfigError: there are too many examples.
    """
    if not word.strip():
        raise PrototypesError("There is no word yet: type what the object is called.")
    name = _class_name(word)
    return add_example(session, Example(name, WORD, word=name))


def add_example(session: Session, example: Example) -> Session:
    """Add an example. Earlier results stay until the next run.

    Args:
        session: the current session.
        example: the example.

    Returns:
        The changed session.

    Raises:
        ImageError: the image is too large.
        ConfigError: there are too many examples.
    """
    sizes = [
        item.image.shape[0] * item.image.shape[1] for item in (*session.examples, example) if item.image is not None
    ]
    if sizes and max(sizes) > MAX_PIXELS:
        raise ImageError(f"The example has {max(sizes)} pixels, more than the {MAX_PIXELS} of this page: shrink it.")
    if sum(sizes) > MAX_KEPT or len(session.examples) >= MAX_EXAMPLES:
        raise ConfigError(
            f"The page holds {MAX_EXAMPLES} examples of {MAX_KEPT} pixels in all: remove some, or use `diffup teach`."
        )
    return replace(session, examples=(*session.examples, example))


def remove_example(session: Session, index: int | None) -> Session:
    """Remove an example.

    Args:
        session: the current session.
        index: index of the example; None, or an index that does not exist, for the last one.

    Returns:
        The changed session.
    """
    examples = list(session.examples)
    if examples:
        del examples[index if index is not None and 0 <= index < len(examples) else -1]
    return replace(session, examples=tuple(examples))


def set_query(session: Session, path: str | None) -> Session:
    """Set the query photo.

    Args:
        session: the current session.
        path: path of the photo; None to remove it.

    Returns:
        The changed session.

    Raises:
        ImageError: the photo cannot be read or is too large.
    """
    if path is None:
        return replace(session, query=None, results=())
    image = np.asarray(to_pil(read_image(path, "The photo", MAX_PIXELS)))
    return replace(session, query=image, query_name=Path(path).name, results=())


def prototypes(model: DiffUp, examples: Sequence[Example], before: Taught | None = None) -> Taught:
    """Compute the prototypes of one class, reusing those of its first examples.

    Args:
        model: the model.
        examples: examples of the class, one or more.
        before: prototypes computed before with the same encoder; None if there are none.
    """
    examples = tuple(examples)
    if before is not None and before.examples == examples:
        return before
    plain = not any(example.kind == WORD for example in examples)
    if before is not None and plain and before.examples == examples[: len(before.examples)]:
        new = examples[len(before.examples) :]
        images, annotations = [example.image for example in new], [example.annotation for example in new]
        return Taught(examples, before.prototypes.add(model, images, annotations))  # type: ignore[arg-type]
    shown = [example for example in examples if example.kind != WORD]
    given: dict[str, Any] = {} if plain else {"text": [example.word for example in examples if example.kind == WORD]}
    if shown:
        given |= {
            "support": [example.image for example in shown],
            "annotation": [example.annotation for example in shown],
        }
    return Taught(examples, model.prototypes(name=examples[0].name, **given))


def segment(session: Session, encoders: Encoders, chosen: Sequence[str], options: SamplingOptions) -> Session:
    """Segment every class in the query photo, once with each of the chosen encoders.

    Args:
        session: session with examples and a photo.
        encoders: the encoders that the page offers.
        chosen: names of the chosen encoders.
        options: sampling options.

    Returns:
        The session with results.

    Raises:
        ImageError: there is no photo.
        PrototypesError: there is no example.
        ConfigError: an encoder is not offered, or a sampling option is out of range.
    """
    if not session.examples:
        raise PrototypesError("There is no example yet: paint over an object and press 'Add example'.")
    if session.query is None:
        raise ImageError("There is no photo to mark yet: load one.")
    taught, results = dict(session.taught), []
    for encoder in dict.fromkeys(chosen):
        model = encoders.get(encoder)
        for name in session.names:
            examples = [example for example in session.examples if example.name == name]
            taught[encoder, name] = prototypes(model, examples, taught.get((encoder, name)))
        classes = [taught[encoder, name].prototypes for name in session.names]
        results.append(
            model.segment(
                session.query,
                classes,
                options=options,
                trace=True,
            )
        )
    current = {key: value for key, value in taught.items() if key[1] in session.names}
    return replace(session, taught=current, results=tuple(results))


def _class_name(name: str) -> str:
    if not name.strip() or not name.strip().isprintable() or len(name) > 60:
        raise PrototypesError("Give the class a name of at most 60 printable characters, such as 'dog'.")
    return name.strip()
