"""Suggestions for mistyped names, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def close_to(name: str, candidates: Iterable[str], count: int = 4) -> list[str]:
    """Find the candidates that a mistyped name may mean, the likeliest first.

    Args:
        name: name as it was typed.
        candidates: existing names.
        count: greatest number of results.

    Returns:
        Candidates that differ in a few letters or in case, then those that contain the name.
    """
    by_key: dict[str, str] = {}
    for candidate in candidates:
        by_key.setdefault(candidate.casefold(), candidate)
    key = name.casefold()
    near = get_close_matches(key, list(by_key), n=count, cutoff=0.6)
    near += [other for other in by_key if len(key) > 2 and key in other and other not in near]
    return [by_key[found] for found in near][:count]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """The end of an error message: `"; did you mean 'a', 'b'?"`, or a full stop if no candidate is close.

    Args:
        name: name as it was typed.
        candidates: existing names.
    """
    close = close_to(name, candidates)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else "."


def neighbour_of(path: Path) -> str:
    """The end of an error message about a missing file: `"; did you mean 'photos/dog.jpg'?"`, or a full stop.

    Args:
        path: the missing file; its folder is searched for a similar name.
    """
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "."
    stems = {Path(name).stem: name for name in sorted(names)}  # suffixes are alike anyway
    close = close_to(path.stem, stems, 1)
    return f"; did you mean {str(path.with_name(stems[close[0]]))!r}?" if close and path.name else "."
