"""Corrections by clicks, undo and redo, corrected photos as examples: what they do to a session, without a browser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fakes import shape_image, tiny_model
from visits import SAMPLING, add_shape, fake, found, with_photos

from diffup import Box, Mask, Points, Scribble
from diffup.demo.actions import ACTIONS, act
from diffup.demo.encoders import Encoders
from diffup.demo.session import Session, remove_example
from diffup.errors import AnnotationError, ConfigError, ImageError
from diffup.label_map import LabelMap

CLICK = {"do": "mark", "path": [[0.5, 0.5]]}


@pytest.fixture
def encoders(families: Callable[..., None]) -> Encoders:
    families(fake=fake)
    return Encoders(tiny_model(fake("a")), ["fake:bbb"])


@pytest.fixture
def state(encoders: Encoders) -> Session:
    """Two classes, found in two photos."""
    state = add_shape(add_shape(Session(), "square"), "disc", label=2)
    return found(with_photos(state, 7, 8), encoders)


def labels(state: Session, index: int = 0) -> np.ndarray:
    assert state.opened is not None
    return state.opened.maps[index].labels


def do(state: Session, *names: str) -> Session:
    return act(state, [{"do": name} for name in names])


def uncorrected(state: Session, encoders: Encoders, name: str = "fake:a") -> LabelMap:
    """The label map of the open photo as the library computes it."""
    classes = [state.taught[name, item].prototypes for item in state.names]
    result = encoders.get(name).segment(state.opened.image, classes, options=SAMPLING)
    assert isinstance(result, LabelMap)
    return result


def test_a_click_gives_what_the_library_gives(state: Session, encoders: Encoders) -> None:
    corrected = act(state, [{"do": "class", "index": 1}, CLICK, {**CLICK, "path": [[0.1, 0.2]], "negative": True}])
    expected = uncorrected(state, encoders).correct("disc", Points([(48, 40)]), Points(negative=[(9, 16)]))
    assert (labels(corrected) == expected.labels).all()
    assert labels(corrected)[40, 48] == 2 and labels(corrected)[16, 9] != 2
    assert corrected.photo.corrections == (("disc", Points([(48, 40)])), ("disc", Points(negative=[(9, 16)])))
    assert (labels(state) == uncorrected(state, encoders).labels).all(), "the session before is unchanged"


def test_a_stroke_marks_all_of_its_pixels(state: Session, encoders: Encoders) -> None:
    stroke = {"do": "mark", "tool": "scribble", "path": [[0.2, 0.25], [0.6, 0.25]]}
    corrected = act(state, [stroke])
    assert (labels(corrected)[20, 19:58] == 1).all()
    expected = uncorrected(state, encoders).correct("square", Scribble([(19, 20), (57, 20)]))
    assert (labels(corrected) == expected.labels).all()
    erased = act(corrected, [{**stroke, "negative": True}])
    assert not (labels(erased)[20, 19:58] == 1).any()


def test_the_results_of_all_encoders_are_corrected(encoders: Encoders, state: Session) -> None:
    state = act(found(state, encoders, "fake:a", "fake:bbb"), [CLICK])
    for index, name in enumerate(("fake:a", "fake:bbb")):
        expected = uncorrected(state, encoders, name).correct("square", Points([(48, 40)]))
        assert (labels(state, index) == expected.labels).all()


def test_a_class_that_is_not_there_is_taken_from_the_whole_photo(state: Session) -> None:
    none = do(state, "none")
    assert not (labels(none) == 1).any() and (labels(none) == 2).any() == (labels(state) == 2).any()
    assert none.photo.corrections == (("square", Box(negative=(0, 0, 96, 80))),)
    assert act(none, [CLICK]).opened.maps[0].labels[40, 48] == 1, "a click after it counts"
    assert (labels(do(none, "undo")) == labels(state)).all()


def test_undo_and_redo_go_back_and_forth(state: Session) -> None:
    one = act(state, [CLICK])
    two = act(one, [{**CLICK, "path": [[0.9, 0.9]], "negative": True}])
    assert (labels(do(two, "undo")) == labels(one)).all()
    back = do(two, "undo", "undo", "undo")
    assert (labels(back) == labels(state)).all() and back.photo.corrections == ()
    assert back.photo.doubt == state.photo.doubt
    assert (labels(do(back, "redo")) == labels(one)).all()
    forth = do(back, "redo", "redo", "redo")
    assert (labels(forth) == labels(two)).all() and forth.photo.corrections == two.photo.corrections
    other = act(do(two, "undo"), [CLICK])
    assert other.photo.undone == (), "what is drawn after an undo cannot be redone over"


def test_each_photo_has_its_own_corrections(state: Session) -> None:
    first = act(state, [CLICK])
    second = do(first, "next")
    assert second.index == 1 and second.photo.corrections == ()
    assert (labels(do(second, "undo")) == labels(second)).all()
    again = do(second, "previous")
    assert (labels(again) == labels(first)).all() and again.photo.corrections == first.photo.corrections
    assert do(again, "previous").index == 0 and do(second, "next").index == 1


def test_a_corrected_class_is_beyond_doubt_and_present(state: Session) -> None:
    before = {item["name"]: item for item in state.photo.classes}
    one = act(state, [CLICK])
    after = {item["name"]: item for item in one.photo.classes}
    assert after["square"]["presence"] == 1.0 and after["disc"]["presence"] == before["disc"]["presence"]
    assert one.photo.doubt == max(
        1 - item["score"] if item["area_fraction"] else item["presence"] for item in [after["disc"]]
    )
    assert act(one, [{"do": "class", "index": 1}, CLICK]).photo.doubt == 0.0
    colours = np.asarray(one.photo.thumbnail)
    assert colours.shape == (133, 160, 3) and (colours != np.asarray(state.photo.thumbnail)).any()


def test_a_corrected_photo_is_an_example_of_each_class(state: Session, encoders: Encoders) -> None:
    corrected = act(state, [CLICK, {"do": "class", "index": 1}, {**CLICK, "path": [[0.9, 0.9]]}])
    used = do(corrected, "use")
    new = used.examples[2:]
    assert [(item.name, item.kind, item.photo) for item in new] == [
        ("square", "photo", corrected.photo.key),
        ("disc", "photo", corrected.photo.key),
    ]
    for label, example in enumerate(new, start=1):
        assert isinstance(example.annotation, Mask)
        assert (example.annotation.mask.numpy() == (labels(corrected) == label)).all()
        assert (example.image == corrected.opened.image).all()
    assert used.is_used(used.photo) and not corrected.is_used(corrected.photo)
    again = do(act(used, [{**CLICK, "path": [[0.1, 0.9]]}]), "use")
    assert len(again.examples) == 4, "it replaces what was made of the photo before"
    assert (again.examples[3].annotation.mask.numpy() == (labels(again) == 2)).all()


def test_a_run_leaves_corrected_photos_and_examples_as_they_are(state: Session, encoders: Encoders) -> None:
    corrected = act(state, [CLICK, {"do": "class", "index": 1}, CLICK])
    key, kept = corrected.photo.key, labels(corrected)
    used = do(corrected, "use")
    backbone = encoders.first.backbone
    calls = backbone.encoded
    after = found(used, encoders)
    made = len(used.examples) - len(state.examples)
    assert backbone.encoded == calls + made + 1, "the new examples, and the other photo"
    assert after.photos[-1].key == key, "examples are last in the list"
    assert after.photo.key != key, "the most doubtful photo is open"
    last = do(after, "next")
    assert last.photo.key == key and (labels(last) == kept).all()
    assert [item.prototypes.shots for item in after.taught.values()] == [1 + (kept == 1).any(), 1 + (kept == 2).any()]
    removed = found(remove_example(remove_example(after, None), None), encoders)
    assert (labels(do(removed, "next")) == kept).all(), "corrected photos stay too"


def test_new_classes_are_looked_for_in_corrected_photos_too(state: Session, encoders: Encoders) -> None:
    corrected = act(state, [CLICK])
    key = corrected.photo.key
    state = found(add_shape(corrected, "third", seed=3), encoders)
    photo = next(photo for photo in state.photos if photo.key == key)
    assert photo.names == ("square", "disc", "third") and photo.corrections == corrected.photo.corrections
    assert photo.maps(photo.image())[0].labels[40, 48] == 1, "its corrections are made again"
    state = found(remove_example(state, 0), encoders)
    assert next(photo for photo in state.photos if photo.key == key).corrections == ()


def test_a_photo_is_drawn_on_and_removed(state: Session) -> None:
    taken = do(state, "draw")
    assert (taken.draft == taken.opened.image).all()
    assert (taken.draft == shape_image((2, 1), seed=7 + taken.photo.key)[0]).all()
    removed = do(taken, "remove")
    assert [photo.key for photo in removed.photos] == [1 - taken.photo.key]
    with pytest.raises(ImageError, match="no photo"):
        do(removed, "remove", "next")


def test_the_class_stays_when_a_photo_is_removed(state: Session) -> None:
    second = act(state, [{"do": "class", "index": 1}])
    assert do(second, "remove").opened.name == "disc"


def test_what_cannot_be_done_is_told(state: Session) -> None:
    new = with_photos(Session(), 7)
    with pytest.raises(ConfigError, match="press 'Find'"):
        act(new, [CLICK])
    with pytest.raises(ConfigError, match="Nothing is marked in this photo"):
        do(new, "use")
    with pytest.raises(ImageError, match="no photo"):
        do(Session(), "next")
    assert do(new, "undo", "redo").photo.corrections == ()
    for index in (2, -1, "0", None, 1e9):
        assert act(state, [{"do": "class", "index": index}]).opened.name == "square"
    for actions in (
        None,
        "undo",
        {"do": "undo"},
        [None],
        [{"do": "explode"}],
        [{}],
        [{"do": ["undo"]}],
        [{"do": "undo"}] * 101,
    ):
        with pytest.raises(ConfigError):
            act(state, actions)
    for path in ([[0.5, 2]], [], None, [["a", 0]]):
        with pytest.raises(AnnotationError):
            act(state, [{"do": "mark", "path": path}])
    with pytest.raises(AnnotationError, match="clicks and strokes"):
        act(state, [{"do": "mark", "tool": "box", "path": [[0, 0], [1, 1]]}])
    assert set(ACTIONS) == {"mark", "none", "undo", "redo", "use", "draw", "next", "previous", "remove", "class"}
