"""Pictures and texts of results, as the page shows them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.label_map import LabelMap
from diffup.labelling.table import state_of
from diffup.overview import TINT
from diffup.result import Segmentation
from diffup.utils import pictures
from diffup.utils.fonts import legend_key
from diffup.utils.panels import GREY, Panel, stack, strip, with_legend

SMALL, SIDE = 512, 1024
"""Minimum and maximum length of the longer side of a picture on the page, in pixels."""

THUMBNAIL = 160
"""Longer side of a small picture in a list, in pixels."""

_STATES, _A_ROW, _STATE_HEIGHT = 8, 4, 192


def draw(result: LabelMap, name: str, view: str) -> Image.Image:
    """Draw a view of a result, `SMALL` to `SIDE` pixels at its longer side.

    Args:
        result: label map of one encoder.
        name: name of the class to show; the overlay shows all classes.
        view: name of the view, one of `VIEWS`.

    Raises:
        PrototypesError: there is no such class.
    """
    if view == "overlay":
        return overlay(result, min(max(*result.labels.shape, SMALL), SIDE))
    if view == "denoising":
        return _fit(_trace(result[name]))
    panel = result[name].panels(SIDE)[_MAPS[view]]
    return with_legend(_fit(Image.fromarray(panel.pixels)), panel.legend)


def overlay(result: LabelMap, side: int) -> Image.Image:
    """Draw the classes over a photo, at the size of the picture, which is quick for large photos too.

    Args:
        result: label map of one encoder.
        side: longer side of the picture in pixels.
    """
    size = _scaled(result.labels.shape, side)
    picture = np.asarray(Image.fromarray(result.image).resize(size, Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(result.labels).resize(size, Image.Resampling.NEAREST))
    for label in filter(None, np.unique(labels)):
        picture = pictures.tint(picture, labels == label, result.palette[label], TINT)
    return Image.fromarray(picture)


def show(image: npt.NDArray[np.uint8]) -> Image.Image:
    """Draw a photo or example without marks, `SMALL` to `SIDE` pixels at its longer side.

    Args:
        image: (H, W, 3) uint8.
    """
    return _fit(Image.fromarray(image))


def data_url(picture: Image.Image) -> str:
    """Return a picture as the `src` of an HTML image, without a file.

    Args:
        picture: RGB picture.
    """
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def legend(result: LabelMap, view: str) -> str:
    """Return the legend of a view in HTML, which shows names of any script; the overlay's has the classes' colours.

    Args:
        result: label map of any encoder; the colours are the same for all.
        view: name of the view, one of `VIEWS`.
    """
    if view != "overlay":
        return html.escape(VIEWS[view])
    swatch = '<span class="swatch" style="background: rgb{}"></span>{}'
    named = zip(result.palette[1:], result.names, strict=True)
    return f"{html.escape(VIEWS[view])} " + " ".join(swatch.format(tuple(c), html.escape(name)) for c, name in named)


def describe(result: LabelMap) -> str:
    """Return a Markdown table that says, for each class, whether it is there and how good its mask is likely to be.

    Args:
        result: label map of one encoder.
    """
    rows = []
    numbers = {name: f"{number} = " for number, name in legend_key(result.names, pictures.legend_width(SMALL)).items()}
    classes = result.summary()["classes"]
    for item in classes:
        own = result[item["name"]]
        uncertainty = own.summary()["uncertainty"]
        name = numbers.get(item["name"], "") + _escape(item["name"])
        there = f"{own.present_in_words} ({own.presence:.0%})"
        rows.append(f"| {name} | {there} | {item['quality']:.2f} | {item['area_fraction']:.1%} | {uncertainty:.3f} |")
    head = ["| class | in the photo? | expected IoU | area | uncertainty |", "|---|---|---|---|---|"]
    table = "\n".join([f"**{_escape(result.results[0].backbone)}**", "", *head, *rows])
    named: dict[str, list[str]] = {}
    for item in classes:
        named.setdefault(state_of(item), []).append(_escape(item["name"]))
    if absent := named.get("absent"):
        table += f"\n\nNot in the photo, it seems: {', '.join(absent)}. If it is there, another example may help."
    if overruled := named.get("overruled"):
        table += f"\n\nLeft to other classes, which have nearly all of it: {', '.join(overruled)}."
    if empty := named.get("empty"):
        table += f"\n\nNot marked: {', '.join(empty)}. "
        table += "A lower threshold (under *Options*) or another example may help."
    return table


def compare(first: LabelMap, second: LabelMap) -> str:
    """Compare the masks of two encoders for each class, in Markdown.

    Args:
        first: label map of one encoder.
        second: label map of another encoder.
    """
    parts = []
    for label, name in enumerate(first.names, start=1):
        one, other = first.labels == label, second.labels == label
        union = (one | other).sum()
        parts.append(f"{_escape(name)} {(one & other).sum() / union:.2f}" if union else f"{_escape(name)}: none found")
    return f"Agreement of the two encoders (IoU of their masks): {', '.join(parts)}. The decoder is the same."


def trace_grid(trace: npt.NDArray[np.float32], timesteps: Sequence[int]) -> Image.Image:
    """Draw the states of the sampling from noise to mask, in rows of four.

    Args:
        trace: (S, h, w) float32, noisy masks x_t, about -1 to 1.
        timesteps: time step t of each of the S states.
    """
    chosen = np.unique(np.linspace(len(trace) - 1, 0, _STATES).round().astype(int))
    labels = [f"t = {timesteps[i]}" if timesteps[i] >= 0 else "mask" for i in chosen]
    panels = [Panel(label, GREY.paint((trace[i] + 1) / 2)) for label, i in zip(labels, chosen, strict=True)]
    rows = [strip(panels[i : i + _A_ROW], _STATE_HEIGHT) for i in range(0, len(panels), _A_ROW)]
    return stack(rows)


def _trace(result: Segmentation) -> Image.Image:
    assert result.trace is not None, "the page always records it"
    return trace_grid(result.trace, result.trace_timesteps)


_MAPS = {
    "probability": "probability",
    "uncertainty": "deviation",
    "missing / too much": "expected error",
    "prior": "prior",
}
"""The views that show a map (`Segmentation.panels`)."""

VIEWS = {
    "overlay": "The classes over the photo, in their colours.",
    "probability": "The mean over the samples: black is 0, white is 1.",
    "uncertainty": "Standard deviation over the samples. With one sample there is none.",
    "missing / too much": "The expected error of the mask: red is missed, blue is too much.",
    "prior": "What the encoder alone says, before the decoder.",
    "denoising": "The first sample from noise to mask. One step is the default; raise the steps to see more.",
}
"""The views of a result, and how to read them."""


def _fit(picture: Image.Image) -> Image.Image:
    """Resize a picture to `SMALL` to `SIDE` pixels at its longer side, so that its text is legible."""
    longest = max(picture.size)
    wanted = min(max(longest, SMALL), SIDE)
    if wanted == longest:
        return picture
    return picture.resize(_scaled((picture.height, picture.width), wanted), Image.Resampling.BILINEAR)


def _scaled(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height of an image of this height and width whose longer side becomes `side`."""
    factor = side / max(shape)
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))


def _escape(text: str) -> str:
    """Escape text for Markdown and HTML."""
    return "".join(f"&#{ord(letter)};" if letter in "\\`*_{}[]<>()#+!|&~$" else letter for letter in text)
