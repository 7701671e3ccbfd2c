"""Tables in documentation pages, between two marks, that a script updates."""

from __future__ import annotations

from pathlib import Path


def read_between(page: Path, start: str, end: str) -> str:
    """Return the text between two marks of a page, without surrounding blank lines.

    Args:
        page: path of the page.
        start: text of the first mark.
        end: text of the second mark.
    """
    return _split(page, start, end)[1].strip("\n")


def put_between(page: Path, start: str, end: str, text: str) -> None:
    """Replace the text between two marks of a page.

    Args:
        page: path of the page.
        start: text of the first mark.
        end: text of the second mark.
        text: new text between the marks.
    """
    before, _, after = _split(page, start, end)
    text = text.strip("\n")
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def _split(page: Path, start: str, end: str) -> tuple[str, str, str]:
    before, mark, rest = page.read_text(encoding="utf-8").partition(start)
    between, other, after = rest.partition(end)
    if not mark or not other:
        raise SystemExit(f"error: {page} lacks the marks {start} and {end}")
    return before, between, after
