"""Files of labelling tools on the command line, from which supports are read."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.commands.arguments import at_least, several
from diffup.commands.paths import existing_file, existing_folder
from diffup.commands.supports import SupportOptions
from diffup.errors import AnnotationError, FormatError

if TYPE_CHECKING:
    from diffup.formats.supports import SupportSet

_OPTIONS = ("label", "images", "kind", "shots", "skip_faulty")
"""Names of the options that need `--from`."""


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Add the options of a labelling tool's file."""
    group = parser.add_argument_group("support images from the file of a labelling tool")
    group.add_argument(
        "--from",
        dest="files",
        metavar="FILE",
        default=[],
        **several(str),
        help="export of Label Studio (JSON), CVAT (XML) or COCO, or files of LabelMe",
    )
    group.add_argument("--label", metavar="NAME", help="label of the class in the file; default: the class's name")
    group.add_argument("--images", metavar="FOLDER", help="folder of the file's images; default: the file's own")
    group.add_argument(
        "--kind", metavar="KIND", help="kind of annotation to read: mask, box, scribble or points; default: all"
    )
    group.add_argument(
        "--shots", metavar="K", type=at_least(1), help="number of images, the file's first; default: all"
    )
    group.add_argument("--skip-faulty", action="store_true", help="skip and name faulty records instead of stopping")


def check_labelled(args: argparse.Namespace) -> None:
    """Check that the options of a labelling tool's file belong to one, and that it exists.

    Raises:
        AnnotationError: an option is given without `--from`.
        ConfigError: the file or the folder of images does not exist.
    """
    lonely = [name for name in _OPTIONS if getattr(args, name) not in (None, False)]
    if lonely and not args.files:
        raise AnnotationError(f"{_option(lonely[0])}: it belongs to the file of a labelling tool; add --from FILE")
    for path in args.files:
        existing_file(path, "--from", "give its files: --from FOLDER/*.json")
    if args.images is not None:
        existing_folder(args.images, "--images", "give the folder of the images")


def read_labelled(args: argparse.Namespace, label: str | None) -> SupportSet | None:
    """Read the supports of `--from`, and name the faulty records that were skipped.

    Args:
        args: parsed options of `add_labelled`.
        label: label of the class in the file.

    Returns:
        The supports; None without `--from`.

    Raises:
        AnnotationError: there is no label.
        FormatError: the file cannot be read; the message names options, not arguments.
    """
    if not args.files:
        return None
    if label is None:
        raise AnnotationError("--from: add --label NAME, the label of the class in the file")
    from diffup.formats.read_supports import read_supports

    options = {"images": args.images, "kind": args.kind, "shots": args.shots}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ faulty records were passed over")  # they are named below
            found = read_supports(args.files, label, on_error="skip" if args.skip_faulty else "raise", **options)
    except FormatError as error:
        raise FormatError(_as_options(str(error))) from error
    for record, reason in found.skipped:
        shown = reason if reason.startswith(record) else f"{record}: {reason}"
        print(f"diffup: skipped: {_as_options(shown)}", file=sys.stderr)
    return found


def as_options(found: SupportSet | None) -> list[SupportOptions]:
    """Supports of a file in the form of command-line supports, by which `as_given` names them in errors.

    Args:
        found: the supports, or None.
    """
    images = [] if found is None else found.support
    names = (str(image) if isinstance(image, str | Path) else "an image in the file" for image in images)
    return [SupportOptions(name, "from") for name in names]


_REMEDIES = {
    "Choose with shape_types=": "Choose with --kind mask, box, scribble or points",
    "give boxes=True": "add --kind box",
    "Give the folder that recorded paths start from": "Give the folder of the images with --images",
    "category=": "--label ",
}


def _as_options(message: str) -> str:
    """Name the options of the command line where an error names arguments."""
    for argument, option in _REMEDIES.items():
        message = message.replace(argument, option)
    return re.sub(rf"\b({'|'.join(_OPTIONS)})=", lambda match: f"{_option(match[1])} ", message)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
