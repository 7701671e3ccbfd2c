"""The files that `diffup segment` writes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.errors import ConfigError
from diffup.utils.storage import is_url, local_path, without_password

if TYPE_CHECKING:
    from PIL import Image

    from diffup.label_map import LabelMap
    from diffup.result import Segmentation


def output_files(args: argparse.Namespace, pictures: Sequence[str]) -> dict[str, Path]:
    """Paths of the files to write, by name, `result.json` last, after checking that none of them is an input file.

    Args:
        args: parsed options of `diffup segment`.
        pictures: names of the pictures.

    Raises:
        ConfigError: a file would overwrite an input.
    """
    files = {name: args.output / name for name in (*pictures, "result.json")}
    read = [args.query, *(support.image for support in args.supports)]
    read += [value for support in args.supports if support.kind in ("mask", "scribble") for value in support.values]
    written = {path.resolve() for path in files.values()}
    for name in read:
        path = local_path(name) if is_url(name) else Path(name)
        if path is not None and path.resolve() in written:
            raise ConfigError(f"--output: the results would overwrite {name}; choose another folder")
    return files


def line_of(query: str, found: Segmentation | LabelMap, seconds: float, corrections: int = 0) -> str:
    """Describe a result in a line: what is marked, whether the class is there, and what went into it.

    Args:
        query: the photo as it was given.
        found: the result, of one class or several.
        seconds: time that it took.
        corrections: number of corrections that were given.
    """
    from diffup.result import Segmentation

    if isinstance(found, Segmentation):
        there: str = found.present_in_words
    else:
        pairs = zip(found.names, found.results, strict=True)
        there = ", ".join(f"{name} {item.present_in_words}" for name, item in pairs)
    corrected = f"; {corrections} correction{'s' if corrections > 1 else ''}" if corrections else ""
    return f"{without_password(query)}: {found!r}; in the photo: {there}{corrected}; {seconds:.1f} s"


def write_results(
    pictures: Mapping[str, Callable[[], Image.Image]], files: Mapping[str, Path], facts: Mapping[str, Any]
) -> None:
    """Write all files or none; a result.json means that the other files belong to it and are complete.

    Args:
        pictures: functions that draw the pictures, by name.
        files: paths of the files to write, by name.
        facts: content of result.json.
    """
    from diffup.utils.files import replacing_together

    document = files["result.json"]
    optional = [name for name in ("overview.png", "trace.png") if name not in files]
    older = [document.with_name(name) for name in optional if document.exists()]
    with replacing_together([*files.values()], older) as unfinished:
        for name, path in zip(files, unfinished, strict=True):
            if name in pictures:
                pictures[name]().save(path, format="PNG")
            else:
                path.write_text(without_password(json.dumps(facts, indent=2)) + "\n", encoding="utf-8")
