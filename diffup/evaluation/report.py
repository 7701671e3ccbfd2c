"""The upgrade report: decoders (by training encoder) with different test encoders, as a self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from diffup import __version__
from diffup.evaluation.bootstrap import LEVEL, Difference, Interval, difference, intervals
from diffup.evaluation.charts import histogram
from diffup.evaluation.sweep import Row
from diffup.evaluation.table import facts

BINS = 20
PRIOR_THRESHOLD = 0.5
"""Threshold at which the priors of Fig. 6 are binarised."""


@dataclass(frozen=True)
class UpgradeMatrix:
    """Scores of decoders, named by their training encoder, with different test encoders (Table 5).

    Args:
        trained: names of the training encoders.
        tested: names of the test encoders.
        rows: scores of every pair (trained, tested), a row for each fold and seed.
    """

    trained: tuple[str, ...]
    tested: tuple[str, ...]
    rows: Mapping[tuple[str, str], Sequence[Row]]

    def miou(self, trained: str, tested: str) -> float:
        """Return the mean mIoU over folds and seeds, in percent.

        Args:
            trained: name of the training encoder.
            tested: name of the test encoder.
        """
        return statistics.fmean(row.scores.miou for row in self.rows[trained, tested])

    def interval(self, trained: str, tested: str) -> Interval:
        """Return the 95 % confidence interval of `miou`, over the query photos.

        Args:
            trained: name of the training encoder.
            tested: name of the test encoder.
        """
        return intervals(self.rows[trained, tested])["miou"]

    def gain(self, trained: str, tested: str) -> Difference | None:
        """Return the gain in mIoU points over the same decoder with its training encoder; None if not tested.

        Args:
            trained: name of the training encoder.
            tested: name of the test encoder.
        """
        if trained not in self.tested:
            return None
        return difference(self.rows[trained, tested], self.rows[trained, trained])

    def retention(self, trained: str, tested: str) -> float | None:
        """Return the ratio of the mIoU to that of a decoder trained with the test encoder; None without such a decoder.

        Args:
            trained: name of the training encoder.
            tested: name of the test encoder.
        """
        own = self.miou(tested, tested) if tested in self.trained else 0.0
        return self.miou(trained, tested) / own if own > 0 else None

    def prior_ious(self, tested: str) -> list[float]:
        """Return the IoU in [0, 1] of each episode's prior at `PRIOR_THRESHOLD`, under the first decoder's config.

        Args:
            tested: name of the test encoder.
        """
        rows = self.rows[self.trained[0], tested]
        return [episode.prior_iou(PRIOR_THRESHOLD) for row in rows for episode in row.episodes]

    def histogram(self, tested: str) -> list[int]:
        """Count `prior_ious` in `BINS` bins of equal width over [0, 1].

        Args:
            tested: name of the test encoder.
        """
        counts, _ = np.histogram(self.prior_ious(tested), bins=BINS, range=(0.0, 1.0))
        return [int(count) for count in counts]

    def to_json(self, class_names: Mapping[int, str]) -> str:
        """Return cells, histograms and rows as JSON text.

        Args:
            class_names: class names by id.
        """
        cells = [self._cell(trained, tested, class_names) for trained in self.trained for tested in self.tested]
        histograms = {
            tested: {"mean": statistics.fmean(self.prior_ious(tested)), "counts": self.histogram(tested)}
            for tested in self.tested
        }
        content = {"cells": cells, "prior_iou": {"threshold": PRIOR_THRESHOLD, "histograms": histograms}}
        return json.dumps(content, indent=2) + "\n"

    def _cell(self, trained: str, tested: str, class_names: Mapping[int, str]) -> dict[str, Any]:
        gain = self.gain(trained, tested)
        return {
            "trained": trained,
            "tested": tested,
            "miou": self.miou(trained, tested),
            "miou_interval": self.interval(trained, tested),
            "retention": self.retention(trained, tested),
            "gain": None if gain is None else gain.value,
            "gain_interval": None if gain is None else gain.interval,
            "rows": [facts(row, class_names) for row in self.rows[trained, tested]],
        }


@dataclass(frozen=True)
class Figure:
    """A picture of the report with its caption.

    Args:
        caption: text above the picture.
        picture: the picture.
    """

    caption: str
    picture: Image.Image


def render(
    matrix: UpgradeMatrix, traces: Sequence[Figure], swaps: Sequence[Figure], errors: Sequence[Figure], note: str = ""
) -> str:
    """Render the report as a self-contained HTML page.

    Args:
        matrix: scores of all pairs of encoders.
        traces: pictures of the sampling with several kinds of annotation (Fig. 7).
        swaps: pictures of the sampling with each test encoder.
        errors: error maps under noise (Fig. 9).
        note: reason why there are no error maps, if there are none.
    """
    sections = [
        _section("Decoders behind other encoders", _MATRIX_TEXT, _matrix(matrix)),
        _section("What was scored", "", _settings(matrix)),
        _section(
            "Priors before the decoder",
            f"IoU of every episode's fused mean prior, binarised at {PRIOR_THRESHOLD} (Fig. 6 of the paper), by "
            "encoder. The priors are made as the first decoder of the table has them.",
            '<div class="charts">'
            + "".join(
                f"<div>{histogram(matrix.histogram(t), t, statistics.fmean(matrix.prior_ious(t)))}</div>"
                for t in matrix.tested
            )
            + "</div>",
        ),
        _section("Sampling under several annotations", _TRACE_TEXT, _figures(traces)),
        _section("Sampling behind each encoder", "The same query, support mask and noise.", _figures(swaps)),
        _section("Error maps", note or _ERROR_TEXT, _figures(errors)),
    ]
    title = "Upgrade report"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{''.join(sections)}"
        f"<footer><p>diffup {escape(__version__)}</p></footer>\n</main>\n</body>\n</html>\n"
    )


_MATRIX_TEXT = (
    "mIoU in percent; rows: the encoder that the decoder was trained with, columns: the encoder that it was tested "
    "behind, nothing trained again. Below it, its interval, retention (relative to the decoder trained with the test "
    "encoder) and gain (points above the same decoder behind its training encoder) with its interval. Intervals are of "
    f"{100 * LEVEL:.0f} %, from a bootstrap over the query photos. Framed cells are decoders behind their own."
)
_TRACE_TEXT = (
    "The noisy mask x_t along the sampling, from noise on the left to the final estimate, then the mask on the query "
    "(Fig. 7 of the paper). The query is that of the first episode, not chosen by its result."
)
_ERROR_TEXT = (
    "The true mask with low, medium and high noise, what the decoder takes to be wrong with it, and what is (Fig. 9 of "
    "the paper): red is missing, blue is too much."
)
_STYLE = """
body{margin:0;font:16px/1.5 system-ui,sans-serif;color:#1c2530;background:#fff}
main{max-width:62rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;border:1px solid #d4dae1;text-align:left;vertical-align:top}
th{background:#f2f5f8;font-weight:600;overflow-wrap:anywhere;min-width:6rem}
td.cell{text-align:right;white-space:nowrap}td.own{outline:2px solid #1c2530;outline-offset:-3px}
td small{display:block;color:#44505c}
figure{margin:1rem 0}figcaption{font-size:.9rem;color:#44505c}
img{display:block;height:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem}
svg{width:100%;max-width:24rem;height:auto;font:10px system-ui,sans-serif}
svg .bar{fill:#3a78b5}svg .axis{stroke:#44505c}svg .mark{stroke:#c8402a;stroke-dasharray:3 2}
"""


def _section(title: str, text: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{f'<p>{escape(text)}</p>' if text else ''}\n{body}\n</section>\n"


def _matrix(matrix: UpgradeMatrix) -> str:
    values = [matrix.miou(a, b) for a in matrix.trained for b in matrix.tested]
    low, span = min(values), max(max(values) - min(values), 1e-9)
    head = "".join(f'<th scope="col">{escape(tested)}</th>' for tested in matrix.tested)
    lines = []
    for trained in matrix.trained:
        cells = []
        for tested in matrix.tested:
            miou = matrix.miou(trained, tested)
            light = 97 - 22 * (miou - low) / span
            own = " own" if trained == tested else ""
            cells.append(
                f'<td class="cell{own}" style="background:hsl(150,45%,{light:.0f}%)">{miou:.1f}'
                f"<small>{_cell_notes(matrix, trained, tested)}</small></td>"
            )
        lines.append(f'<tr><th scope="row">{escape(trained)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">trained with \\ tested behind</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell_notes(matrix: UpgradeMatrix, trained: str, tested: str) -> str:
    retention, gain = matrix.retention(trained, tested), matrix.gain(trained, tested)
    low, high = matrix.interval(trained, tested)
    kept = "retention n/a" if retention is None else f"retention {100 * retention:.1f} %"
    gained = "gain n/a"
    if gain is not None:
        gained = f"gain {gain.value:+.1f} [{gain.interval[0]:+.1f}, {gain.interval[1]:+.1f}]"
    return f"[{low:.1f}, {high:.1f}]<br>{kept}<br>{gained}"


def _settings(matrix: UpgradeMatrix) -> str:
    rows = [row for group in matrix.rows.values() for row in group]
    setting = rows[0].setting
    entries: dict[str, Any] = {
        "data set": setting.dataset,
        "protocol": setting.protocol,
        "folds": ", ".join(map(str, sorted({row.setting.fold for row in rows}))),
        "seeds": ", ".join(map(str, sorted({row.setting.seed for row in rows}))),
        "episodes of a fold and seed": ", ".join(map(str, sorted({len(row.episodes) for row in rows}))),
        "shots": setting.shots,
        "annotation": setting.annotation,
    }
    for name in ("steps", "ensemble", "threshold", "refine"):
        entries[name] = ", ".join(map(str, sorted({getattr(row.setting, name) for row in rows})))
    for tested in matrix.tested:
        one = matrix.rows[matrix.trained[0], tested][0].setting
        entries[tested] = f"{one.fingerprint}, {one.input_size[0]} x {one.input_size[1]} px"
    lines = "".join(f'<tr><th scope="row">{escape(n)}</th><td>{escape(str(v))}</td></tr>' for n, v in entries.items())
    return f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>'


def _figures(figures: Sequence[Figure]) -> str:
    return "\n".join(_figure(figure) for figure in figures)


def _figure(figure: Figure) -> str:
    size = f'width="{figure.picture.width}" height="{figure.picture.height}"'
    image = f'<img {size} alt="{escape(figure.caption, quote=True)}" src="{_data_uri(figure.picture)}">'
    return f'<figure><figcaption>{escape(figure.caption)}</figcaption><div class="scroll">{image}</div></figure>'


def _data_uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
