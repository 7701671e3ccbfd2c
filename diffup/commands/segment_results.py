"""The files that `diffup segment` writes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


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
        if Path(name).resolve() in written:
            raise ConfigError(f"--output: the results would overwrite {name}; choose another folder")
    return files


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
                path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
