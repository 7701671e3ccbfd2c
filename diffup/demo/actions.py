"""What a person does at the result: correct it by clicks, undo and redo that, use it as an example, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from diffup.correct import Correction
from diffup.demo.marks import read_mark, to_correction
from diffup.demo.session import Session, mask_examples, open_photo, remove_photo
from diffup.errors import ConfigError, ImageError
from diffup.inputs.annotations import Box

MAX_ACTIONS = 100
"""Maximum number of actions that a browser sends together."""


def act(session: Session, actions: object) -> Session:
    """Do in turn what a browser asks for.

    Args:
        session: the current session.
        actions: list of mappings with `do`, one of `ACTIONS`; `mark` also has what `diffup.demo.marks.read_mark` takes,
            and `class` has `index`, the number of the class.

    Returns:
        The changed session.

    Raises:
        ConfigError: an action is unknown, or there is nothing that it could be done to.
        ImageError: no photo is open.
        AnnotationError: a mark cannot be read.
    """
    if not isinstance(actions, list) or len(actions) > MAX_ACTIONS:
        raise ConfigError(f"actions: expected a list of at most {MAX_ACTIONS}. Load the page again.")
    for action in actions:
        name = action.get("do") if isinstance(action, Mapping) else None
        if not isinstance(name, str) or name not in ACTIONS:
            raise ConfigError(f"action: expected one of {', '.join(ACTIONS)}. Load the page again.")
        if session.opened is None:
            raise ImageError("There is no photo yet: add one.")
        session = ACTIONS[name](session, action)
    return session


def _mark(session: Session, action: Mapping[str, Any]) -> Session:
    """Correct the class that is chosen by a click or a stroke."""
    photo = session.photo
    assert photo is not None
    return _correct(session, to_correction(read_mark({"tool": "points", **action}), photo.size))


def _none(session: Session, action: Mapping[str, Any]) -> Session:
    """Mark the whole photo as what is not the class."""
    photo = session.photo
    assert photo is not None
    height, width = photo.size
    return _correct(session, Box(negative=(0, 0, width, height)))


def _correct(session: Session, correction: Correction) -> Session:
    """Correct the class that is chosen, in the results of all encoders."""
    opened, photo = session.opened, session.photo
    assert opened is not None and photo is not None
    if not opened.maps:
        raise ConfigError("Nothing was looked for in this photo yet: press 'Find', then click to correct it.")
    maps = tuple(result.correct(opened.name, correction) for result in opened.maps)
    photo = replace(photo, corrections=(*photo.corrections, (opened.name, correction)), undone=()).shown(maps[0])
    photos = list(session.photos)
    photos[session.index] = photo
    return replace(session, photos=tuple(photos), opened=replace(opened, maps=maps))


def _undo(session: Session, action: Mapping[str, Any]) -> Session:
    """Undo the latest correction of the photo, if there is one."""
    photo = session.photo
    assert photo is not None
    if not photo.corrections:
        return session
    undone = (*photo.undone, photo.corrections[-1])
    return _corrected(session, photo.corrections[:-1], undone)


def _redo(session: Session, action: Mapping[str, Any]) -> Session:
    """Make the latest correction again that was undone, if there is one."""
    photo = session.photo
    assert photo is not None
    if not photo.undone:
        return session
    return _corrected(session, (*photo.corrections, photo.undone[-1]), photo.undone[:-1])


def _corrected(session: Session, corrections: tuple[Any, ...], undone: tuple[Any, ...]) -> Session:
    """The session with other corrections of the photo that is open."""
    photos, index = list(session.photos), session.index
    photos[index] = replace(photos[index], corrections=corrections, undone=undone)
    session = open_photo(replace(session, photos=tuple(photos)), index)
    assert session.opened is not None
    photos[index] = photos[index].shown(session.opened.maps[0])
    return replace(session, photos=tuple(photos))


def _class(session: Session, action: Mapping[str, Any]) -> Session:
    """Choose the class that is corrected, if there are so many."""
    photo, index = session.photo, action.get("index")
    assert photo is not None and session.opened is not None
    if not isinstance(index, int) or not 0 <= index < len(photo.names):
        return session
    return replace(session, opened=replace(session.opened, name=photo.names[index]))


def _draw(session: Session, action: Mapping[str, Any]) -> Session:
    """Take the photo as the image on which an example is drawn."""
    assert session.opened is not None
    return replace(session, draft=session.opened.image)


ACTIONS: dict[str, Callable[[Session, Mapping[str, Any]], Session]] = {
    "mark": _mark,
    "none": _none,
    "undo": _undo,
    "redo": _redo,
    "use": lambda session, action: mask_examples(session),
    "draw": _draw,
    "next": lambda session, action: open_photo(session, session.index + 1),
    "previous": lambda session, action: open_photo(session, session.index - 1),
    "remove": lambda session, action: remove_photo(session),
    "class": _class,
}
"""What can be done at the result."""
