"""The events of the page: what each part does, and what is shown of the session afterwards."""

from __future__ import annotations

import functools
import html
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffup.decoder.options import SamplingOptions
from diffup.demo import events
from diffup.demo import session as work
from diffup.demo.actions import act
from diffup.demo.downloads import write_files
from diffup.demo.encoders import Encoders
from diffup.demo.find import find, worst_first
from diffup.demo.photos import Photo
from diffup.demo.scenes import SCENES
from diffup.demo.session import Session
from diffup.demo.views import compare, data_url, describe, draw, legend, show
from diffup.errors import ConfigError
from diffup.inputs.annotations import Points, Scribble

NO_OTHER = "no other"
"""Choice of no second encoder."""

_turns = itertools.count(1)  # tells the browser that the server has answered, even if the picture stays the same

_EXAMPLES = ("examples", "tools", "chosen")
_PHOTOS = ("photos", "progress")
_RESULT = (
    "result",
    "aside",
    "class",
    "legend",
    "first table",
    "plain",
    "second part",
    "second picture",
    "second table",
    "agreement",
    "make",
)


def wire(gr: Any, encoders: Encoders, part: dict[str, Any]) -> None:
    """Connect the components of the page.

    Args:
        gr: Gradio.
        encoders: the encoders that the page offers.
        part: the components by name.
    """
    _wire_examples(gr, part)
    _wire_photos(gr, encoders, part)
    _wire_result(gr, part)


def _of(part: dict[str, Any], *names: str) -> list[Any]:
    return [part[name] for name in names]


def _wire_examples(gr: Any, part: dict[str, Any]) -> None:
    on = functools.partial(events.connect, gr)
    changed = _of(part, "state", *_EXAMPLES, "progress")

    def shown(session: Session) -> list[Any]:
        return [session, *show_examples(gr, session), _status(session)]

    def add(session: Session, name: str, drawing: str) -> list[Any]:
        return [*shown(work.add_drawn(session, name, drawing)), gr.HTML(turn=next(_turns))]

    def load(session: Session, path: str) -> list[Any]:
        session = work.load_draft(session, Path(path).read_bytes(), Path(path).name)
        return [session, show_draft(gr, session)]

    added = events.work(
        gr, part["add"], "Adding ...", add, _of(part, "state", "name", "editor"), [*changed, part["editor"]]
    )
    named = on(
        part["add_word"].click,
        lambda session, word: [*shown(work.add_word(session, word)), ""],
        _of(part, "state", "word"),
        [*changed, part["word"]],
    )
    for event in (added, named):
        events.reveal(event, "#examples", "nearest")
    on(part["load"].upload, load, _of(part, "state", "load"), _of(part, "state", "editor"))
    on(
        part["remove"].click,
        lambda session, index: shown(work.remove_example(session, index)),
        _of(part, "state", "chosen"),
        changed,
    )
    on(part["clear"].click, lambda session: shown(replace(session, examples=())), _of(part, "state"), changed)
    part["examples"].select(_selected(gr), None, part["chosen"], **events.QUIET)


def _wire_photos(gr: Any, encoders: Encoders, part: dict[str, Any]) -> None:
    on = functools.partial(events.connect, gr)
    outputs = _of(part, "state", *_PHOTOS, *_RESULT)

    def shown(session: Session, view: str) -> list[Any]:
        return [session, *show_photos(gr, session), *show_result(gr, session, view)]

    def add(session: Session, paths: list[str], view: str) -> list[Any]:
        files = [(Path(path).name, Path(path).read_bytes()) for path in paths]
        session, problems = work.add_photos(session, files)
        for problem in problems:
            gr.Warning(events.plain(problem), title="Refused")
        return shown(session, view)

    stopping: set[str | None] = set()  # visitors who pressed 'Stop'

    def run(
        session: Session,
        encoder: str,
        other: str,
        steps: float,
        ensemble: float,
        threshold: float,
        view: str,
        request: Any,
    ) -> Iterator[list[Any]]:
        chosen = [encoder] if other in (NO_OTHER, encoder) else [encoder, other]
        options = SamplingOptions(steps=int(steps), ensemble=int(ensemble), threshold=threshold or None)
        began, before = time.monotonic(), session.opened
        stopping.discard(request.session_hash)
        for state, done, total in find(session, encoders, chosen, options):
            stopped = request.session_hash in stopping
            if stopped:
                state = worst_first(state)
            ended = stopped or done == total
            same = state.opened is before and not ended
            before = state.opened
            result = [gr.skip()] * len(_RESULT) if same else show_result(gr, state, view)
            gallery, line = show_photos(gr, state)
            telling = line if stopped else _progress(done, total, time.monotonic() - began)
            yield [state, gallery, telling, *result, gr.Button(visible=not ended), gr.File(visible=False)]
            if ended:
                return

    run.__annotations__["request"] = gr.Request

    def stop(request: Any) -> None:
        stopping.add(request.session_hash)

    stop.__annotations__["request"] = gr.Request

    def load(name: str, session: Session, view: str) -> list[Any]:
        if any(photo.corrections or session.is_used(photo) for photo in session.photos):
            raise ConfigError(
                "There are corrected photos, which this would replace: save them, then load the page again."
            )
        scene = SCENES[name]()
        session = Session(scene.examples, scene.examples[0].image, taught=session.taught, keys=session.keys)
        session, _ = work.add_photos(session, scene.files())
        return [
            *shown(session, view),
            *show_examples(gr, session),
            show_draft(gr, session),
            scene.examples[0].name,
            gr.File(visible=False),
        ]

    on(part["add_photos"].upload, add, _of(part, "state", "add_photos", "view"), outputs)
    sampling = _of(part, "encoder", "other", "steps", "ensemble", "threshold")
    found = events.work(
        gr,
        part["find"],
        "Finding ...",
        run,
        [part["state"], *sampling, part["view"]],
        [*outputs, *_of(part, "stop", "files")],
    )
    events.reveal(found, "#result", "nearest")
    part["stop"].click(stop, None, None, **events.QUIET)
    for name, button in part["scenes"].items():
        loaded = [*outputs, *_of(part, *_EXAMPLES, "editor", "name", "files")]
        events.reveal(
            on(button.click, functools.partial(load, name), _of(part, "state", "view"), loaded), "#find", "nearest"
        )

    def choose(session: Session, view: str, event: Any) -> list[Any]:
        return shown(work.open_photo(session, event.index), view)

    choose.__annotations__["event"] = gr.SelectData  # Gradio reads the annotation, and is not imported above
    on(part["photos"].select, choose, _of(part, "state", "view"), outputs)


def _wire_result(gr: Any, part: dict[str, Any]) -> None:
    on = functools.partial(events.connect, gr)
    outputs = _of(part, "state", *_PHOTOS, *_RESULT)

    def shown(before: Session, session: Session, view: str) -> list[Any]:
        same = before.opened is not None and session.opened is not None and before.opened.key == session.opened.key
        return [session, *show_photos(gr, session), *show_result(gr, session, view, same)]

    def do(session: Session, view: str, event: Any) -> list[Any]:
        after = act(session, event._data.get("actions"))
        draft = gr.skip() if after.draft is session.draft else show_draft(gr, after)
        examples = [gr.skip()] * len(_EXAMPLES) if after.examples is session.examples else show_examples(gr, after)
        return [*shown(session, after, view), *examples, draft]

    do.__annotations__["event"] = gr.EventData
    acted = on(
        part["result"].act,
        do,
        _of(part, "state", "view"),
        [*outputs, *_of(part, *_EXAMPLES), part["editor"]],
        trigger_mode="multiple",  # the canvas sends the next ones from within the answer, when Gradio still waits
    )
    acted.failure(lambda: gr.HTML(turn=next(_turns)), None, part["result"], **events.QUIET)
    on(
        part["view"].input,
        lambda session, view: show_result(gr, session, view, True),
        _of(part, "state", "view"),
        _of(part, *_RESULT),
    )

    def choose(session: Session, view: str, name: str) -> list[Any]:
        names = session.photo.names if session.photo else ()
        after = act(session, [{"do": "class", "index": names.index(name)}]) if name in names else session
        return shown(session, after, view)

    on(part["class"].input, choose, _of(part, "state", "view", "class"), outputs)

    def make(session: Session) -> Any:
        folder = Path(tempfile.mkdtemp(dir=part["files"].GRADIO_CACHE))
        return gr.File([str(path) for path in write_files(session, folder)], visible=True)

    made = events.work(gr, part["make"], "Making ...", make, _of(part, "state"), _of(part, "files"))
    events.reveal(made, "#files", "nearest")


def show_examples(gr: Any, session: Session) -> list[Any]:
    """Updates of the components `_EXAMPLES`."""
    pictures = [(example.picture(), f"{example.name}: {example.kind}") for example in session.examples]
    return [gr.Gallery(pictures, visible=bool(pictures), selected_index=None), gr.Row(visible=bool(pictures)), None]


def show_draft(gr: Any, session: Session) -> Any:
    """Update of the image on which an example is drawn, without marks."""
    picture = "" if session.draft is None else data_url(show(session.draft))
    return gr.HTML(picture=picture, turn=next(_turns))


def show_photos(gr: Any, session: Session) -> list[Any]:
    """Updates of the components `_PHOTOS`."""
    pictures = [(photo.thumbnail, _caption(session, photo)) for photo in session.photos]
    selected = session.index if pictures else None
    return [gr.Gallery(pictures, visible=bool(pictures), selected_index=selected), _status(session)]


def show_result(gr: Any, session: Session, view: str, same: bool = False) -> list[Any]:
    """Updates of the components `_RESULT`.

    Args:
        gr: Gradio.
        session: the session.
        view: name of the view.
        same: whether the same photo was shown before, so that it need not be sent again.
    """
    opened = session.opened
    maps = () if opened is None else opened.maps
    first, two = (maps[0] if maps else None), len(maps) > 1
    name = "" if opened is None else opened.name
    names = list(first.names) if first else []
    plain: dict[str, Any] = {} if same or opened is None else {"value": show(opened.image)}
    return [
        gr.HTML(**_canvas(session, view), turn=next(_turns)),
        gr.Column(visible=first is not None),
        gr.Dropdown(names, value=name if name in names else None, visible=len(names) > 1),
        legend(first, view) if first else "",
        gr.Markdown(describe(first) if first else "", visible=first is not None),
        gr.Image(**plain, visible=not two),
        gr.Column(visible=two),
        draw(maps[1], name, view) if two else None,
        describe(maps[1]) if two else "",
        gr.Markdown(compare(*maps) if two else "", visible=two),
        gr.Button(visible=any(item.found for item in session.photos)),
    ]


def _canvas(session: Session, view: str) -> dict[str, Any]:
    """Properties of the result's canvas."""
    opened, photo = session.opened, session.photo
    if opened is None or photo is None:
        return {"picture": "", "title": "", "dots": [], "enabled": {}, "ready": False, "classes": 0}
    marked = bool(opened.maps)
    picture = draw(opened.maps[0], opened.name, view) if marked else show(opened.image)
    return {
        "picture": data_url(picture),
        "title": f"{session.index + 1} of {len(session.photos)}: {photo.name} · {_caption(session, photo)}",
        "dots": _dots(photo) if view == "overlay" else [],
        "enabled": {
            "previous": session.index > 0,
            "next": session.index + 1 < len(session.photos),
            "undo": bool(photo.corrections),
            "redo": bool(photo.undone),
            "none": marked,
            "use": marked,
            "draw": True,
            "remove": True,
        },
        "ready": marked and view == "overlay",
        "classes": len(photo.names),
    }


def _dots(photo: Photo) -> list[tuple[float, float, bool]]:
    """Where a photo was corrected: x and y as fractions, and whether that is not the class; a stroke by its start."""
    height, width = photo.size
    dots = []
    for _, correction in photo.corrections:
        for negative in (False, True):
            if isinstance(correction, Points):
                places = list(correction.negative if negative else correction.points)
            elif isinstance(correction, Scribble):
                places = [line[0] for line in (correction.negative if negative else correction.strokes)]
            else:
                places = []
            dots += [(float(x + 0.5) / width, float(y + 0.5) / height, negative) for x, y in places]
    return dots


def _caption(session: Session, photo: Photo) -> str:
    if session.is_used(photo):
        return "example"
    if photo.corrections:
        return "corrected"
    return "new" if photo.run is None else f"doubt {photo.doubt:.0%}"


def _status(session: Session) -> str:
    """HTML of the line that says what to do next."""
    runs = [photo.run for photo in session.photos]
    if not session.examples or not runs:
        return ""
    if any(run is not None and run.examples != session.examples for run in runs):
        return "The examples have changed: press <b>Find</b> to look again. Corrected photos stay as they are."
    return "Press <b>Find</b> to look in the new photos." if None in runs else ""


def _progress(done: int, total: int, seconds: float) -> str:
    """HTML of the progress of a run."""
    if done == total:
        return f"Done: {total} in {seconds:.0f} s." if total else "All photos are up to date."
    left = f", about {seconds / done * (total - done):.0f} s left" if done else ""
    return f'<progress value="{done}" max="{total}"></progress>{html.escape(f"{done} of {total} photos{left}")}'


def _selected(gr: Any) -> Callable[..., Any]:
    """Return the event handler that gives the index of the clicked picture of a gallery."""

    def select(event: Any) -> Any:
        return event.index

    select.__annotations__["event"] = gr.SelectData
    return select
