"""What somebody who mistyped a name may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def close_to(name: str, candidates: Iterable[str], count: int = 4) -> list[str]:
    """The candidates that a name may stand for, the likeliest first.

    Args:
        name: what was typed.
        candidates: what there is.
        count: at most so many.

    Returns:
        Those that differ in a few letters or in upper and lower case, then those that contain the name.
    """
    by_key: dict[str, str] = {}
    for candidate in candidates:
        by_key.setdefault(candidate.casefold(), candidate)
    key = name.casefold()
    near = get_close_matches(key, list(by_key), n=count, cutoff=0.6)
    near += [other for other in by_key if len(key) > 2 and key in other and other not in near]
    return [by_key[found] for found in near][:count]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`"; did you mean 'a', 'b'?"`, or a full stop where no candidate is close."""
    close = close_to(name, candidates)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else "."


def neighbour_of(path: Path) -> str:
    """`"; did you mean 'photos/dog.jpg'?"` where the folder of a missing file holds one of a similar name."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "."
    stems = {Path(name).stem: name for name in sorted(names)}  # endings are alike anyway
    close = close_to(path.stem, stems, 1)
    return f"; did you mean {str(path.with_name(stems[close[0]]))!r}?" if close and path.name else "."
