"""The CSV table of a label run: its images in the order in which a person should look at them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal

FIGURES = ("presence", "quality", "score", "area_fraction")
"""Figures of each class in the table."""


def quality_table(entries: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return a CSV table of the images, in the order in which they need review.

    Images that could not be read come first, then the others by their doubt: a class that was marked may be wrong, with
    the doubt 1 - score; one that was overruled may have been right, with its score as the doubt; any other that was not
    marked may be there, with its presence as the doubt. An image has the doubt of its most doubtful class. Each class
    also has its state (`marked`, `absent`: below the minimum presence, `overruled`: other classes have nearly all of
    its mask, or `empty`: present, but no pixel is above the threshold), presence, quality, score and share of the
    image. Classes in the column `found` are separated by semicolons, and a name with a semicolon is quoted, as in CSV.

    Args:
        entries: entries of the images in the record.
        names: names of the classes.
    """
    rows = []
    for entry in entries:
        classes = entry.get("classes", [])
        found = [item["name"] for item in classes if item["area_fraction"] > 0]
        doubt = max((doubt_of(item) for item in classes), default=None)
        order = (0 if "error" in entry else 1, -(doubt or 0.0), entry["image"])
        figures = [cell for item in classes for cell in (state_of(item), *(f"{item[key]:.4f}" for key in FIGURES))]
        cells = [entry["image"], "" if doubt is None else f"{doubt:.4f}", _row(found, ";"), entry.get("error", "")]
        rows.append((order, [*cells, *(figures or [""] * (1 + len(FIGURES)) * len(names))]))
    heads = [f"{what} {name}" for name in names for what in ("state", "presence", "quality", "score", "area")]
    lines = [["image", "doubt", "found", "error", *heads]]
    lines += [cells for _, cells in sorted(rows, key=lambda row: row[0])]
    return "".join(f"{_row(cells, ',')}\n" for cells in lines)


def doubt_of(item: dict[str, Any]) -> float:
    """Probability that what was marked of a class is wrong, or that what was left out should have been marked.

    Args:
        item: summary of the class in an image (`LabelMap.summary`).
    """
    if item["area_fraction"] > 0:
        return float(1 - item["score"])
    return float(item["score"] if item["overruled"] else item["presence"])


def state_of(item: dict[str, Any]) -> Literal["marked", "absent", "overruled", "empty"]:
    """What became of a class in an image, as `quality_table` explains.

    Args:
        item: summary of the class in the image (`LabelMap.summary`).
    """
    if item["area_fraction"] > 0:
        return "marked"
    if not item["present"]:
        return "absent"
    return "overruled" if item["overruled"] else "empty"


def _row(cells: Sequence[str], delimiter: str) -> str:
    """Join cells to a CSV row, without the line ending."""
    text, end = io.StringIO(), "\r\n"  # with this ending the writer quotes cells that hold either character of it
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerow(cells)
    return text.getvalue().removesuffix(end)
