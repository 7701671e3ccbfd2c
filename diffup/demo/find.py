"""Segment the photos of a visitor, and order them by how doubtful the results are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from diffup.decoder.options import SamplingOptions
from diffup.demo.encoders import Encoders
from diffup.demo.examples import WORD, Example
from diffup.demo.photos import Photo, Run
from diffup.demo.session import Session, Taught, open_photo
from diffup.errors import ImageError, PrototypesError
from diffup.model import DiffUp


def waiting(session: Session, run: Run) -> list[int]:
    """Keys of the photos that a run would segment, in the order of the list.

    Photos whose results are of the same run are left as they are, and so are those that a person corrected or that are
    examples, unless other classes or encoders are asked for.

    Args:
        session: the current session.
        run: what the results shall depend on.
    """
    return [photo.key for photo in session.photos if not _is_done(session, photo, run)]


def _is_done(session: Session, photo: Photo, run: Run) -> bool:
    if photo.run is None or photo.run == run:
        return photo.run is not None
    settled = bool(photo.corrections) or session.is_used(photo)
    return settled and photo.names == tuple(session.names) and photo.run.encoders == run.encoders


def find(
    session: Session, encoders: Encoders, chosen: Sequence[str], options: SamplingOptions
) -> Iterator[tuple[Session, int, int]]:
    """Segment every class in the photos, once with each of the chosen encoders.

    At the end the most doubtful photos come first, and the first one is open.

    Args:
        session: session with examples and photos.
        encoders: the encoders that the page offers.
        chosen: names of the chosen encoders.
        options: sampling options.

    Yields:
        The session, the number of photos that are done and of those to do: once at the beginning, and after each photo.

    Raises:
        PrototypesError: there is no example.
        ImageError: there is no photo.
        ConfigError: an encoder is not offered, or a sampling option is out of range.
    """
    if not session.examples:
        raise PrototypesError("There is no example yet: mark an object and press 'Add example'.")
    if not session.photos:
        raise ImageError("There is no photo to mark yet: add one.")
    run = Run(session.examples, tuple(dict.fromkeys(chosen)), options)
    keys = waiting(session, run)
    yield session, 0, len(keys)
    if keys:
        session = _teach(session, encoders, run)
    for count, key in enumerate(keys, start=1):
        session = _segment(session, encoders, run, key)
        last = count == len(keys)
        yield worst_first(session) if last else session, count, len(keys)


def worst_first(session: Session) -> Session:
    """Order the photos by doubt, and open the first one.

    Photos without a result come first, those that a person corrected or that are examples come last. Equal ones keep
    their order.

    Args:
        session: the current session.
    """

    def rank(photo: Photo) -> tuple[bool, float]:
        return session.is_used(photo), -photo.doubt

    return open_photo(replace(session, photos=tuple(sorted(session.photos, key=rank))), 0)


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


def _teach(session: Session, encoders: Encoders, run: Run) -> Session:
    """The session with the prototypes of all classes and encoders of a new run, without those of removed classes."""
    taught = {key: value for key, value in session.taught.items() if key[1] in session.names}
    for encoder in run.encoders:
        model = encoders.get(encoder)
        for name in session.names:
            examples = [example for example in run.examples if example.name == name]
            taught[encoder, name] = prototypes(model, examples, taught.get((encoder, name)))
    return replace(session, taught=taught, run=run)


def _segment(session: Session, encoders: Encoders, run: Run, key: int) -> Session:
    """The session with new results of one photo, which is opened again if it is open."""
    photos = list(session.photos)
    index = next(index for index, photo in enumerate(photos) if photo.key == key)
    image = photos[index].image()
    maps = [
        encoders.get(encoder).segment(
            image,
            [session.taught[encoder, name].prototypes for name in session.names],
            options=run.options,
            trace=True,
        )
        for encoder in run.encoders
    ]
    photos[index] = photos[index].with_found(maps, run)
    session = replace(session, photos=tuple(photos))
    is_open = session.opened is not None and session.opened.key == key
    return open_photo(session, index) if is_open else session
