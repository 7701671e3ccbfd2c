"""The layout of the page; `wiring` connects it, and the logic is in the other modules of this package."""

from __future__ import annotations

from typing import Any

from diffup.demo.canvas import drawing_canvas, result_canvas
from diffup.demo.encoders import Encoders
from diffup.demo.scenes import SCENES
from diffup.demo.session import Session
from diffup.demo.views import VIEWS
from diffup.demo.wiring import NO_OTHER, wire
from diffup.utils.optional import install_command, need

KEPT_SECONDS = 3600
"""Time in seconds for which a visitor's examples and results stay in memory after their last use."""

FILES_SECONDS = 600
"""Time in seconds after which uploaded and generated files are deleted."""

_INTRO = "Show what you mean in one picture, and find it in others. No training; the encoder can be swapped."
_KEYS = """| key | what it does |
|---|---|
| click, drag | more of the class, at this place or along this stroke |
| right-click or Shift-click, drag | not this |
| N | a plain click means *not this*, or *more* again |
| X | the class is not in this photo |
| 1 to 9 | the class that clicks correct |
| U or Ctrl+Z, R or Ctrl+Y | undo, redo |
| left and right arrow | the photo before, the next photo |
| E | use the photo as an example |
| F | find in all photos |"""


def build(encoders: Encoders) -> Any:
    """Build the page as `gradio.Blocks`.

    Args:
        encoders: the encoders that the page offers.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    gr = need("gradio", "the web page", extra="demo")
    with gr.Blocks(title="diffup", analytics_enabled=False, delete_cache=(60, FILES_SECONDS), fill_width=False) as page:
        parts: dict[str, Any] = {"state": gr.State(Session(), time_to_live=KEPT_SECONDS)}
        with gr.Row(elem_id="scenes"):
            gr.Markdown("# diffup")
            gr.Markdown(_INTRO, elem_id="intro")
            gr.Markdown("Try:")
            parts["scenes"] = {name: gr.Button(name, size="sm", min_width=80) for name in SCENES}
        with gr.Row(equal_height=False, elem_id="page"):
            with gr.Column(min_width=320, elem_id="teach"):
                parts |= _examples(gr, encoders.reader)
            with gr.Column(min_width=320, scale=3, elem_id="photos-part"):
                parts |= _photos(gr, encoders)
                parts |= _result(gr)
        wire(gr, encoders, parts)
    return page


def _examples(gr: Any, reader: str | None) -> dict[str, Any]:
    """Column with the examples of classes; text prompts are offered if there is a text encoder."""
    part: dict[str, Any] = {}
    gr.Markdown("## 1 · Show examples")
    with gr.Row(elem_id="naming"):
        part["name"] = gr.Textbox(
            "object", label="Class", max_lines=1, max_length=60, elem_id="name", min_width=140, container=False
        )
        part["load"] = gr.UploadButton("Load image", file_types=["image"], elem_id="load", size="md", min_width=110)
    part["editor"] = drawing_canvas(gr, "#load")
    part["add"] = gr.Button("Add example", variant="primary", elem_id="add", size="md")
    with gr.Row(visible=reader is not None, elem_id="words"):
        part["word"] = gr.Textbox(
            label="Or only name it",
            container=False,
            placeholder="or only name it: a red bus",
            max_lines=1,
            max_length=60,
            elem_id="word",
            min_width=140,
        )
        part["add_word"] = gr.Button("Add word", elem_id="add-word", size="md", min_width=110)
    no_words = (
        f"For words instead of pictures, `{install_command('text')}` and start the page again, or with "
        "`--text-backbone NAME`."
    )
    gr.Markdown(no_words, visible=reader is None, elem_id="no-words")
    part["chosen"] = gr.State(None)
    part["examples"] = _gallery(gr, "Examples", 4, "examples")
    with gr.Row(visible=False) as part["tools"]:
        part["remove"] = gr.Button("Remove (the one selected, or the last)", size="sm", elem_id="remove")
        part["clear"] = gr.Button("Remove all", size="sm", min_width=90, elem_id="clear")
    return part


def _gallery(gr: Any, label: str, columns: int, name: str) -> Any:
    """A list of thumbnails of which one can be selected; it is hidden while it is empty."""
    return gr.Gallery(
        label=label,
        columns=columns,
        object_fit="contain",
        allow_preview=False,
        elem_id=name,
        buttons=[],
        interactive=False,
        visible=False,
    )


def _photos(gr: Any, encoders: Encoders) -> dict[str, Any]:
    """The list of photos, and the options with which classes are found in them."""
    part: dict[str, Any] = {}
    config, names = encoders.first.config, encoders.names
    gr.Markdown("## 2 · Find them in photos")
    with gr.Row(elem_id="finding"):
        part["add_photos"] = gr.UploadButton(
            "Add photos", file_types=["image"], file_count="multiple", elem_id="add-photos", size="md", min_width=110
        )
        part["find"] = gr.Button("Find", variant="primary", elem_id="find", size="md", min_width=110)
        part["stop"] = gr.Button("Stop", variant="stop", elem_id="stop", size="md", min_width=80, visible=False)
    part["progress"] = gr.HTML(elem_id="progress")
    part["photos"] = _gallery(gr, "Photos, the most doubtful first", 8, "photos")
    with gr.Accordion("Options", open=False, elem_id="options"):
        with gr.Row():
            part["encoder"] = gr.Dropdown(names, value=names[0], label="Encoder", min_width=220, elem_id="encoder")
            part["other"] = gr.Dropdown(
                [NO_OTHER, *names],
                value=NO_OTHER,
                label="Compare with",
                min_width=220,
                elem_id="other",
                visible=len(names) > 1,
            )
        with gr.Row():
            part["threshold"] = gr.Slider(
                0, 0.95, value=0, step=0.05, label="Threshold (0: the decoder's own; lower marks more)", min_width=220
            )
            part["steps"] = gr.Slider(
                1,
                min(50, config.timesteps),
                value=min(50, config.steps),
                step=1,
                label="Denoising steps",
                elem_id="steps",
                min_width=220,
            )
            part["ensemble"] = gr.Slider(
                1, 16, value=min(16, config.ensemble), step=1, label="Samples averaged", min_width=220
            )
    return part


def _result(gr: Any) -> dict[str, Any]:
    """The photo that is looked at: its result, and beside it the photo or the result of a second encoder."""
    part: dict[str, Any] = {}
    with gr.Row(equal_height=False, elem_id="pictures"):
        with gr.Column(min_width=320, scale=3):
            part["result"] = result_canvas(gr, "#add-photos")
            part["first table"] = gr.Markdown(elem_id="first-table", visible=False)
        with gr.Column(min_width=320, scale=3, visible=False) as part["second part"]:
            part["second picture"] = gr.Image(
                show_label=False, interactive=False, buttons=["fullscreen"], elem_id="second-picture"
            )
            part["second table"] = gr.Markdown(elem_id="second-table")
        with gr.Column(min_width=240, scale=2, visible=False, elem_id="aside") as part["aside"]:
            part["plain"] = gr.Image(
                label="The photo", interactive=False, buttons=["fullscreen"], format="jpeg", elem_id="plain"
            )
            with gr.Row(elem_id="looking"):
                part["view"] = gr.Dropdown(list(VIEWS), value="overlay", label="View", min_width=150, elem_id="view")
                part["class"] = gr.Dropdown([], label="Clicks correct", min_width=150, visible=False, elem_id="class")
            part["legend"] = gr.HTML(elem_id="legend")
            part["agreement"] = gr.Markdown(visible=False, elem_id="agreement")
    part["make"] = gr.Button("Make files: masks, COCO JSON, prototypes", size="sm", elem_id="make", visible=False)
    with gr.Column(elem_id="files-part"):
        part["files"] = gr.File(label="Files of all photos, by the first encoder", visible=False, elem_id="files")
    with gr.Accordion("Keys", open=False, elem_id="keys"):
        gr.Markdown(_KEYS)
    return part
