"""The layout of the page and its event handlers; the logic is in the other modules of this package."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffup.decoder.options import SamplingOptions
from diffup.demo import events
from diffup.demo import session as work
from diffup.demo.downloads import write_files
from diffup.demo.encoders import Encoders
from diffup.demo.examples import KINDS
from diffup.demo.scenes import SCENES
from diffup.demo.session import Session
from diffup.demo.views import VIEWS, compare, describe, draw, legend
from diffup.errors import ImageError
from diffup.utils.optional import need

KEPT_SECONDS = 3600
"""Time in seconds for which a visitor's examples and results stay in memory after their last use."""

FILES_SECONDS = 600
"""Time in seconds after which uploaded and generated files are deleted."""

_NONE = "no other"
_HEIGHT = 340
"""Height of support editor and query in pixels: with the button 'Mark' they fit in a window of 1280 x 800."""

_INTRO = """# diffup
Show what you mean in one picture, and find it in another. No training; the encoder can be swapped."""
_NO_WORDS = (
    'For words instead of paint, `pip install "diffup[text]"` and start the page again, or with `--text-backbone NAME`.'
)
_KIND_HELP = (
    "scribble: strokes over it · mask: all of its pixels · outline: a closed line around it · box: drag from corner to "
    "corner, one stroke a box · whole image: no paint"
)


def build(encoders: Encoders) -> Any:
    """Build the page as `gradio.Blocks`.

    Args:
        encoders: the encoders that the page offers.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    gr = need("gradio", "the web page", extra="demo")
    with gr.Blocks(title="diffup", analytics_enabled=False, delete_cache=(60, FILES_SECONDS), fill_width=False) as page:
        state = gr.State(Session(), time_to_live=KEPT_SECONDS)
        gr.Markdown(_INTRO)
        with gr.Row(elem_id="scenes"):
            gr.Markdown("Try an example:", elem_id="try")
            scenes = {name: gr.Button(name, size="sm", min_width=90) for name in SCENES}
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                teach = _teach_column(gr, encoders.reader)
            with gr.Column(min_width=320):
                mark = _mark_column(gr, encoders)
        show = _results(gr)
        _wire(gr, encoders, state, scenes, teach, mark, show)
    return page


def _teach_column(gr: Any, reader: str | None) -> dict[str, Any]:
    """Column with the examples of classes; text prompts are offered if there is a text encoder."""
    part: dict[str, Any] = {}
    gr.Markdown("## 1 · Show examples")
    part["name"] = gr.Textbox("object", label="Class", max_lines=1, max_length=60, elem_id="name")
    part["editor"] = gr.ImageEditor(
        label="Image to paint over",
        sources=("upload", "clipboard"),
        type="numpy",
        transforms=(),
        layers=False,
        format="png",
        brush=gr.Brush(default_size=8, colors=["#28c850"], color_mode="fixed"),
        height=_HEIGHT,
        elem_id="editor",
    )
    part["kind"] = gr.Radio(list(KINDS), value="scribble", label="The paint is a", info=_KIND_HELP, elem_id="kind")
    part["add"] = gr.Button("Add example", variant="primary", elem_id="add")
    with gr.Row(visible=reader is not None, elem_id="words"):
        part["word"] = gr.Textbox(
            label="Or only name it",
            info=f"No image is needed: the word names the class. Read by {reader}.",
            placeholder="a red bus",
            max_lines=1,
            max_length=60,
            elem_id="word",
            scale=3,
        )
        part["add_word"] = gr.Button("Add word", elem_id="add-word", scale=1, min_width=90)
    gr.Markdown(_NO_WORDS, visible=reader is None, elem_id="no-words")
    part["chosen"] = gr.State(None)
    part["gallery"] = gr.Gallery(
        label="Examples", columns=4, height=170, object_fit="contain", elem_id="examples", buttons=[], visible=False
    )
    with gr.Row(visible=False) as part["tools"]:
        part["remove"] = gr.Button("Remove (the one selected, or the last)", size="sm", elem_id="remove")
        part["clear"] = gr.Button("Remove all", size="sm", min_width=90)
    return part


def _mark_column(gr: Any, encoders: Encoders) -> dict[str, Any]:
    """Column with the query photo and the segmentation options."""
    part: dict[str, Any] = {}
    config, names = encoders.first.config, encoders.names
    gr.Markdown("## 2 · Mark a photo")
    part["query"] = gr.Image(
        label="Photo",
        sources=["upload", "clipboard"],
        type="filepath",
        image_mode=None,
        format="png",  # a lossy format would change the example photos
        height=_HEIGHT,
        elem_id="query",
    )
    with gr.Row():
        part["encoder"] = gr.Dropdown(names, value=names[0], label="Encoder", min_width=220, elem_id="encoder")
        part["other"] = gr.Dropdown(
            [_NONE, *names], value=_NONE, label="Compare with", min_width=220, elem_id="other", visible=len(names) > 1
        )
    with gr.Accordion("Sampling", open=False):
        part["threshold"] = gr.Slider(
            0.05, 0.95, value=config.threshold, step=0.05, label="Threshold", info="Lower marks more."
        )
        part["steps"] = gr.Slider(
            1, min(50, config.timesteps), value=min(50, config.steps), step=1, label="Denoising steps", elem_id="steps"
        )
        part["ensemble"] = gr.Slider(1, 16, value=min(16, config.ensemble), step=1, label="Samples averaged")
    part["mark"] = gr.Button("Mark", variant="primary", elem_id="mark")
    return part


def _results(gr: Any) -> dict[str, Any]:
    """Column with the results."""
    part: dict[str, Any] = {}
    with gr.Column(visible=False, elem_id="results") as part["all"]:
        gr.Markdown("## 3 · Look, and take it with you")
        with gr.Row():
            part["view"] = gr.Radio(list(VIEWS), value="overlay", label="View", scale=3, min_width=300, elem_id="view")
            part["class"] = gr.Dropdown([], label="Class", scale=1, min_width=150, visible=False, elem_id="class")
        part["legend"] = gr.HTML(elem_id="legend")
        part["agreement"] = gr.Markdown(visible=False, elem_id="agreement")
        with gr.Row(equal_height=False):
            for side in ("first", "second"):
                with gr.Column(min_width=320) as part[f"{side} column"]:
                    part[f"{side} picture"] = gr.Image(
                        show_label=False, interactive=False, buttons=["fullscreen"], elem_id=f"{side}-picture"
                    )
                    part[f"{side} table"] = gr.Markdown(elem_id=f"{side}-table")
        part["make"] = gr.Button("Make files: masks, COCO JSON, prototypes", elem_id="make")
        part["files"] = gr.File(label="Files of the first encoder", visible=False, elem_id="files")
    return part


def _wire(
    gr: Any,
    encoders: Encoders,
    state: Any,
    scenes: dict[str, Any],
    teach: dict[str, Any],
    mark: dict[str, Any],
    show: dict[str, Any],
) -> None:
    """Connect the components of examples and query with their event handlers."""
    taught = [state, teach["gallery"], teach["tools"], teach["chosen"]]
    on = functools.partial(events.connect, gr)

    def gallery(session: Session) -> list[Any]:
        pictures = [(example.picture(), f"{example.name}: {example.kind}") for example in session.examples]
        shown = bool(pictures)
        return [session, gr.Gallery(pictures, visible=shown, selected_index=None), gr.Row(visible=shown), None]

    def add(session: Session, name: str, editor: dict[str, Any] | ImageError, kind: str) -> list[Any]:
        if isinstance(editor, ImageError):
            raise editor
        session = work.add_painted(session, name, editor, kind)
        clean: dict[str, Any] = {"background": session.examples[-1].image, "layers": [], "composite": None}
        return [*gallery(session), clean]

    def load(name: str, session: Session) -> list[Any]:
        scene = SCENES[name]()
        session = replace(session, examples=scene.examples)
        editor: dict[str, Any] = {"background": scene.examples[0].image, "layers": [], "composite": None}
        return [*gallery(session), editor, scene.query, scene.examples[0].name, gr.Column(visible=False)]

    def choose(session: Session, path: str | ImageError | None) -> list[Any]:
        if isinstance(path, ImageError):
            raise path
        return [work.set_query(session, path), gr.Column(visible=False)]

    painted = [state, teach["name"], teach["editor"], teach["kind"]]
    added = events.work(gr, teach["add"], "Adding ...", add, painted, [*taught, teach["editor"]])
    named = on(
        teach["add_word"].click,
        lambda session, word: [*gallery(work.add_word(session, word)), ""],
        [state, teach["word"]],
        [*taught, teach["word"]],
    )
    for event in (added, named):
        events.reveal(event, "#examples", "nearest")
    on(
        teach["remove"].click,
        lambda session, index: gallery(work.remove_example(session, index)),
        [state, teach["chosen"]],
        taught,
    )
    on(teach["clear"].click, lambda session: gallery(replace(session, examples=())), [state], taught)
    teach["gallery"].select(_selected(gr), None, teach["chosen"], show_progress="hidden", api_visibility="private")
    for name, button in scenes.items():
        loaded = [*taught, teach["editor"], mark["query"], teach["name"], show["all"]]
        events.reveal(on(button.click, functools.partial(load, name), [state], loaded), "#mark", "nearest")
    chosen = on(mark["query"].change, choose, [state, mark["query"]], [state, show["all"]])
    on(  # the session always has the photo that is shown
        chosen.failure,
        lambda session: [work.set_query(session, None), None, gr.Column(visible=False)],
        [state],
        [state, mark["query"], show["all"]],
    )
    _wire_results(gr, encoders, state, mark, show)
    for component in (teach["editor"], mark["query"]):
        events.guard(gr, component)


def _wire_results(gr: Any, encoders: Encoders, state: Any, mark: dict[str, Any], show: dict[str, Any]) -> None:
    """Connect segmentation, views and downloads with their event handlers."""
    on = functools.partial(events.connect, gr)
    drawn = [show["first picture"], show["second picture"], show["legend"]]

    def look(session: Session, view: str, name: str | None) -> list[Any]:
        if not session.results:
            return [None, None, ""]
        name = name if name in session.results[0].names else session.results[0].names[0]
        pictures = [draw(result, name, view) for result in session.results]
        return [pictures[0], pictures[1] if len(pictures) > 1 else None, legend(session.results[0], view)]

    def run(
        session: Session,
        encoder: str,
        other: str,
        steps: float,
        ensemble: float,
        threshold: float,
        view: str,
        name: str | None,
    ) -> list[Any]:
        chosen = [encoder] if other in (_NONE, encoder) else [encoder, other]
        options = SamplingOptions(steps=int(steps), ensemble=int(ensemble), threshold=threshold)
        session = work.segment(session, encoders, chosen, options)
        results = session.results
        names = list(results[0].names)
        name = name if name in names else names[0]
        two = len(results) > 1
        return [
            session,
            *look(session, view, name),
            gr.Column(visible=True),
            gr.Dropdown(names, value=name, visible=len(names) > 1),
            gr.Markdown(compare(*results) if two else "", visible=two),
            describe(results[0]),
            gr.Column(visible=two),
            describe(results[1]) if two else "",
            gr.File(visible=False),
        ]

    def make(session: Session) -> Any:
        folder = Path(tempfile.mkdtemp(dir=show["files"].GRADIO_CACHE))
        return gr.File([str(path) for path in write_files(session, folder)], visible=True)

    sampling = [mark[name] for name in ("encoder", "other", "steps", "ensemble", "threshold")]
    outputs = [show[name] for name in ("all", "class", "agreement", "first table", "second column", "second table")]
    marked = events.work(
        gr,
        mark["mark"],
        "Marking ...",
        run,
        [state, *sampling, show["view"], show["class"]],
        [state, *drawn, *outputs, show["files"]],
    )
    events.reveal(marked, "#results", "start")
    for control in (show["view"], show["class"]):
        on(control.input, look, [state, show["view"], show["class"]], drawn)
    events.reveal(on(show["make"].click, make, [state], [show["files"]]), "#files", "nearest")


def _selected(gr: Any) -> Callable[..., Any]:
    """Return the event handler that gives the index of the clicked picture of a gallery."""

    def select(event: Any) -> Any:
        return event.index

    select.__annotations__["event"] = gr.SelectData  # Gradio reads the annotation, and is not imported above
    return select
