"""Small charts as inline SVG, without scripts or fonts, so that a page is self-contained."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 280, 150
_LEFT, _BOTTOM, _TOP = 34, 24, 22


def histogram(counts: Sequence[int], title: str, mark: float | None = None) -> str:
    """Draw a histogram of values in [0, 1].

    Args:
        counts: number of values in each bin, bins of equal width.
        title: title above the bars.
        mark: value in [0, 1] at which a vertical line is drawn, such as the mean.

    Returns:
        An `svg` element that scales with the page.
    """
    high, width, height = max(1, *counts), WIDTH - _LEFT - 6, HEIGHT - _BOTTOM - _TOP
    step = width / len(counts)
    parts = [
        f'<rect class="bar" x="{_LEFT + index * step + 0.5:.1f}" y="{_TOP + height * (1 - count / high):.1f}" '
        f'width="{step - 1:.1f}" height="{height * count / high:.1f}"><title>{index / len(counts):.2f} to '
        f"{(index + 1) / len(counts):.2f}: {count}</title></rect>"
        for index, count in enumerate(counts)
    ]
    base = _TOP + height
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_LEFT + width}" y2="{base}"/>')
    for value in (0.0, 0.5, 1.0):
        parts.append(_text(_LEFT + value * width, base + 15, f"{value:g}", "middle"))
    parts.append(_text(_LEFT - 5, _TOP + 8, str(high), "end"))
    parts.append(_text(_LEFT - 5, base, "0", "end"))
    if mark is not None:
        x = _LEFT + mark * width
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}"/>')
        anchor, at = ("start", x + 3) if mark < 0.8 else ("end", x - 3)
        parts.append(_text(at, _TOP + 9, f"mean {mark:.2f}", anchor))
    parts.append(_text(WIDTH / 2, 12, title, "middle"))
    label = escape(f"Histogram: {title}", quote=True)
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
