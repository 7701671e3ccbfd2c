"""The pictures on which somebody draws: Gradio's HTML component with `canvas.js`."""

from __future__ import annotations

import html
from importlib import resources
from typing import Any

from diffup.demo.marks import TOOLS

_FRAME = """<div class="frame" tabindex="0" aria-label="{label}">
<img alt="" draggable="false" hidden><svg preserveAspectRatio="none"></svg><p class="empty">{empty}</p></div>"""

_BUTTON = '<button type="button" {data} title="{title}" aria-pressed="false">{text}</button>'

_DO = {
    "previous": ("←", "Previous photo (left arrow)"),
    "next": ("→", "Next photo (right arrow)"),
    "undo": ("↶", "Undo the last correction (U or Ctrl+Z)"),
    "redo": ("↷", "Redo (R, Ctrl+Y or Ctrl+Shift+Z)"),
    "none": ("None here", "The class is not in this photo (X)"),
    "use": ("Use as example", "Make this photo with its mask an example (E)"),
    "draw": ("Draw on it", "Take this photo as the image of an example"),
    "remove": ("Remove", "Remove this photo from the list"),
}


def drawing_canvas(gr: Any, upload: str) -> Any:
    """The image of an example with its tools; its value is JSON that `diffup.demo.marks.read_drawing` takes.

    Args:
        gr: Gradio.
        upload: CSS selector of the button that loads an image.
    """
    tools = "".join(
        _BUTTON.format(data=f'data-tool="{name}"', title=html.escape(hint), text=name) for name, hint in TOOLS.items()
    )
    edit = _BUTTON.format(data='data-do="undo"', title="Undo the last mark (Ctrl+Z)", text="↶")
    edit += _BUTTON.format(data='data-do="clear"', title="Remove all marks", text="✕")
    width = (
        '<label class="brush-width" hidden>Brush <input class="width" type="range" min="1" max="20" value="5"></label>'
    )
    frame = _FRAME.format(label="Image of the example", empty="Load an image, drop it here or paste it.")
    bar = f'<div class="bar tools" role="toolbar">{tools}{edit}</div><p class="hint"></p>{width}'
    return _component(gr, f"{bar}{frame}", mode="draw", upload=upload, picture="", turn=0, elem_id="editor")


def result_canvas(gr: Any, upload: str) -> Any:
    """The result that clicks correct, with its buttons; its event `act` sends what `diffup.demo.actions.act` takes.

    Args:
        gr: Gradio.
        upload: CSS selector of the button that adds photos.
    """
    made = {
        name: f'<button type="button" data-do="{name}" title="{title}" disabled>{text}</button>'
        for name, (text, title) in _DO.items()
    }
    head = f'<div class="bar">{made["previous"]}{made["next"]}<span class="title" role="status"></span></div>'
    signs = _BUTTON.format(data='data-sign="more"', title="Clicks mark more of the class", text="+ more")
    signs += _BUTTON.format(
        data='data-sign="not"',
        title="Clicks mark what is not the class (N; a right-click or Shift-click always does)",
        text="- not this",
    )
    rest = "".join(made[name] for name in ("undo", "redo", "none", "use", "draw", "remove"))
    frame = _FRAME.format(label="Result", empty="Add photos, drop them here or paste one.")
    return _component(
        gr,
        f'{head}{frame}<div class="bar" role="toolbar">{signs}{rest}</div>',
        mode="correct",
        upload=upload,
        picture="",
        title="",
        dots=[],
        enabled={},
        ready=False,
        classes=0,
        turn=0,
        elem_id="result",
    )


def _component(gr: Any, template: str, **properties: Any) -> Any:
    script = resources.files("diffup.demo").joinpath("canvas.js").read_text(encoding="utf-8")
    return gr.HTML(
        value="",
        html_template=template,
        js_on_load=script,
        apply_default_css=False,
        elem_classes="canvas",
        **properties,
    )
