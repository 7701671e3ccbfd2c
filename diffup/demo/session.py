"""The state of one visitor of the page: examples and photos. Every change gives a new `Session`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from diffup.demo.examples import PHOTO, WORD, Example
from diffup.demo.marks import read_drawing, to_annotation
from diffup.demo.photos import Photo, Run, decode, read_photo
from diffup.errors import ConfigError, ImageError, PrototypesError
from diffup.inputs.annotations import Mask
from diffup.label_map import LabelMap
from diffup.prototypes import Prototypes
from diffup.utils.serving import MAX_PIXELS

MAX_KEPT = 2**26
"""Maximum number of pixels of all examples of a visitor."""

MAX_EXAMPLES = 100

MAX_PHOTOS, MAX_FILES = 100, 2**28
"""Maximum number of photos of a visitor, and of the bytes of their files."""


@dataclass(frozen=True)
class Taught:
    """Prototypes of a class, and the examples from which they were computed."""

    examples: tuple[Example, ...]
    prototypes: Prototypes


@dataclass(frozen=True, eq=False)
class Opened:
    """The photo that is looked at.

    Attributes:
        key: key of the photo.
        image: (H, W, 3) uint8, the photo.
        maps: label maps of each encoder, with all corrections; none before the first run.
        name: name of the class that clicks correct; empty before the first run.
    """

    key: int
    image: npt.NDArray[np.uint8]
    maps: tuple[LabelMap, ...] = ()
    name: str = ""


@dataclass(frozen=True, eq=False)
class Session:
    """The state of one visitor.

    Attributes:
        examples: examples of all classes, in the order in which they were added.
        draft: (H, W, 3) uint8, the image on which the next example is drawn; None if there is none.
        photos: the photos in the order of the list.
        opened: the photo that is looked at; None if there is none.
        taught: computed prototypes by encoder and class, so that nothing is computed twice.
        run: what the results of the last run depend on; None before the first. If it was stopped, other photos have
            results of an earlier one.
        keys: number of photos that were ever added.
    """

    examples: tuple[Example, ...] = ()
    draft: npt.NDArray[np.uint8] | None = None
    photos: tuple[Photo, ...] = ()
    opened: Opened | None = None
    taught: Mapping[tuple[str, str], Taught] = field(default_factory=dict)
    run: Run | None = None
    keys: int = 0

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order of their first examples."""
        return list(dict.fromkeys(example.name for example in self.examples))

    @property
    def photo(self) -> Photo | None:
        """The photo that is looked at."""
        return None if self.opened is None else self.photos[self.index]

    @property
    def index(self) -> int:
        """Index of the photo that is looked at in the list; -1 if there is none."""
        keys = [photo.key for photo in self.photos]
        return -1 if self.opened is None else keys.index(self.opened.key)

    def is_used(self, photo: Photo) -> bool:
        """Whether a photo with its mask is an example."""
        return any(example.photo == photo.key and example.kind == PHOTO for example in self.examples)


def load_draft(session: Session, content: bytes, name: str) -> Session:
    """Load an image on which an example is drawn.

    Args:
        session: the current session.
        content: bytes of the file.
        name: file name.

    Returns:
        The changed session.

    Raises:
        ImageError: it cannot be read as an image, or is too large.
    """
    return replace(session, draft=decode(content, name))


def add_drawn(session: Session, name: str, drawing: object) -> Session:
    """Add an example that was drawn on the draft.

    Args:
        session: the current session.
        name: name of the class.
        drawing: what the canvas sends, as `diffup.demo.marks.read_drawing` takes it.

    Returns:
        The changed session.

    Raises:
        PrototypesError: the class has no name.
        ImageError: there is no image, or it is too large.
        AnnotationError: nothing is drawn, or it cannot be read.
        ConfigError: there are too many examples.
    """
    if session.draft is None:
        raise ImageError("There is no example image yet: load one (PNG, JPEG or WebP).")
    name = check_class_name(name)
    image = session.draft
    tool, marks = read_drawing(drawing)
    annotation = to_annotation(tool, marks, (image.shape[0], image.shape[1]))
    return add_example(session, Example(name, tool, image, annotation))


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
    name = check_class_name(word)
    return add_example(session, Example(name, WORD, word=name))


def add_example(session: Session, *examples: Example) -> Session:
    """Add examples. Earlier results stay until the next run.

    Args:
        session: the current session.
        *examples: the examples.

    Returns:
        The changed session.

    Raises:
        ImageError: an image is too large.
        ConfigError: there are too many examples.
    """
    together = (*session.examples, *examples)
    sizes = [item.image.shape[0] * item.image.shape[1] for item in together if item.image is not None]
    if sizes and max(sizes) > MAX_PIXELS:
        raise ImageError(f"The example has {max(sizes)} pixels, more than the {MAX_PIXELS} of this page: shrink it.")
    if sum(sizes) > MAX_KEPT or len(together) > MAX_EXAMPLES:
        raise ConfigError(
            f"The page holds {MAX_EXAMPLES} examples of {MAX_KEPT} pixels in all: remove some, or use `diffup teach`."
        )
    return replace(session, examples=together)


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


def add_photos(session: Session, files: Sequence[tuple[str, bytes]]) -> tuple[Session, list[str]]:
    """Add photos, and open the first of them if none is open.

    Args:
        session: the current session.
        files: file names and contents.

    Returns:
        The changed session, and for each file that was refused why.
    """
    problems = []
    for name, content in files:
        total = sum(len(photo.content) for photo in session.photos) + len(content)
        if len(session.photos) >= MAX_PHOTOS or total > MAX_FILES:
            problems.append(
                f"{name}: the page holds {MAX_PHOTOS} photos of {MAX_FILES >> 20} MiB in all. Remove some, or use "
                "`diffup label`."
            )
            continue
        try:
            photo = read_photo(session.keys, name, content)
        except ImageError as error:
            problems.append(str(error))
        else:
            session = replace(session, photos=(*session.photos, photo), keys=session.keys + 1)
    if session.opened is None and session.photos:
        session = open_photo(session, 0)
    return session, problems


def open_photo(session: Session, index: int) -> Session:
    """Open a photo, and compute its label maps.

    Args:
        session: session with photos.
        index: index of the photo in the list; one beyond the ends opens the first or the last.

    Returns:
        The changed session.
    """
    if not session.photos:
        return replace(session, opened=None)
    photo = session.photos[min(max(index, 0), len(session.photos) - 1)]
    image = photo.image()
    maps = photo.maps(image)
    before = "" if session.opened is None else session.opened.name
    name = before if before in photo.names or not photo.names else photo.names[0]
    return replace(session, opened=Opened(photo.key, image, maps, name))


def remove_photo(session: Session) -> Session:
    """Remove the photo that is looked at, and open the next one at the same class. Examples made of it stay.

    Args:
        session: the current session.

    Returns:
        The changed session.
    """
    if session.opened is None:
        return session
    index = session.index
    rest = (*session.photos[:index], *session.photos[index + 1 :])
    return open_photo(replace(session, photos=rest), index)


def mask_examples(session: Session) -> Session:
    """Make the photo that is looked at, with the masks of its classes, an example of each class that is marked.

    Examples that were made of it before are replaced.

    Args:
        session: the current session.

    Returns:
        The changed session.

    Raises:
        ImageError: no photo is open.
        ConfigError: nothing is marked in it, or there are too many examples.
    """
    if session.opened is None:
        raise ImageError("There is no photo yet: add one.")
    opened, made = session.opened, []
    result = opened.maps[0] if opened.maps else None
    for label, name in enumerate(result.names if result else (), start=1):
        assert result is not None
        if (result.labels == label).any():
            made.append(Example(name, PHOTO, opened.image, Mask(result.labels == label), photo=opened.key))
    if not made:
        raise ConfigError("Nothing is marked in this photo: press 'Find', or click on the object.")
    others = tuple(item for item in session.examples if item.photo != opened.key)
    return add_example(replace(session, examples=others), *made)


def check_class_name(name: str) -> str:
    """Check the name of a class, and return it without spaces around it.

    Args:
        name: name that somebody typed.

    Raises:
        PrototypesError: it is empty, too long or not printable.
    """
    if not name.strip() or not name.strip().isprintable() or len(name) > 60:
        raise PrototypesError("Give the class a name of at most 60 printable characters, such as 'dog'.")
    return name.strip()
