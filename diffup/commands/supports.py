"""Support images and their annotations on the command line."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.commands.paths import existing_file, readable_file
from diffup.errors import AnnotationError, ImageError

if TYPE_CHECKING:
    from diffup.inputs.annotations import AnnotationLike


def add_supports(parser: argparse.ArgumentParser, negatives: bool = False) -> None:
    """Add the options of support images and their annotations, which are stored in `args.supports`.

    Args:
        parser: parser of the command.
        negatives: whether to add `--not`, images of what is not the class, which are stored there too.
    """
    parser.set_defaults(supports=[])
    support = parser.add_argument_group("support images and their annotations, repeatable")
    support.add_argument(
        "--support", dest="supports", nargs="+", metavar="IMG", action=_AddSupports, help="images that show the class"
    )
    if negatives:
        text = "images of what looks like the class and is not; annotations say where that is"
        support.add_argument(NOT, dest="supports", nargs="+", metavar="IMG", action=_AddSupports, help=text)
    for option, metavar, text in (
        ("--mask", "FILE", "mask image of the same size"),
        ("--box", "X0,Y0,X1,Y1", "box in pixels; repeat it for several"),
        ("--scribble", "STROKE", 'polyline "x,y x,y ...", repeatable, or the file of a stroke image'),
        ("--points", "POINTS", 'clicks "x,y x,y ..."'),
        ("--not-box", "X0,Y0,X1,Y1", "box without the class, beside --box; repeatable"),
        ("--not-scribble", "STROKE", "polyline over what is not the class, beside --scribble; repeatable"),
        ("--not-points", "POINTS", "clicks on what is not the class, beside --points"),
    ):
        support.add_argument(option, dest="supports", metavar=metavar, action=_Annotate, help=text)


NOT = "--not"
"""Option of images that show what is not the class."""


@dataclass
class SupportOptions:
    """A support image and its annotation, as given on the command line.

    Attributes:
        image: path of the image.
        kind: kind of annotation, such as "mask" or "box"; "from" if it comes from the file of a labelling tool; None if
            the image is not annotated.
        values: values of the annotation's options.
        negative: values of the options for what is not the class.
        opposed: whether the image shows what is not the class (`--not`).
    """

    image: str
    kind: str | None = None
    values: list[str] = field(default_factory=list)
    negative: list[str] = field(default_factory=list)
    opposed: bool = False


class _AddSupports(argparse.Action):
    """`--support IMG [IMG ...]` and `--not IMG [IMG ...]`: more images, not yet annotated."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.supports = [*namespace.supports, *(SupportOptions(image, opposed=option == NOT) for image in values)]


class _Annotate(argparse.Action):
    """`--mask`, `--box`, ...: an annotation of the last support image."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        kind = str(option).removeprefix("--").removeprefix("not-")
        if not namespace.supports:
            problem = f"it annotates the --support before it, and there is none; write --support IMG {option} ..."
            raise argparse.ArgumentError(self, problem)
        support = namespace.supports[-1]
        if support.kind not in (None, kind):
            raise argparse.ArgumentError(self, f"{support.image} has --{support.kind} already: one kind for an image")
        support.kind = kind
        (support.negative if str(option).startswith("--not-") else support.values).append(values)


def read_annotation(support: SupportOptions) -> AnnotationLike:
    """Read the annotation of a support image.

    Args:
        support: the support image and its options.

    Raises:
        ConfigError: the image or the file of its annotation does not exist.
        AnnotationError: the annotation cannot be read.
    """
    from diffup.inputs.annotations import Box, Points, Scribble

    option = NOT if support.opposed else "--support"
    readable_file(support.image, option, f"give its images by name: {option} a.jpg b.jpg")
    if support.negative and not support.values:
        raise AnnotationError(
            f"--not-{support.kind}: {support.image} has no --{support.kind} that marks the class; give one, too"
        )
    if support.kind is None:
        return None
    if support.kind == "mask":
        if len(support.values) > 1:
            raise AnnotationError(f"--mask: {support.image} has {len(support.values)} masks; join them into one")
        readable_file(support.values[0], "--mask", f"give the mask of {support.image}")
        return support.values[0]  # read beside its image, whose size it must have
    if support.kind == "box":
        form = "x0,y0,x1,y1"
        boxes = [read_numbers(text, 4, "--box", form) for text in support.values]
        return Box(boxes, negative=[read_numbers(text, 4, "--not-box", form) for text in support.negative])
    if support.kind == "points":
        clicks = [point for text in support.values for point in read_positions(text, "--points")]
        return Points(clicks, negative=[p for text in support.negative for p in read_positions(text, "--not-points")])
    negative = [read_positions(text, "--not-scribble") for text in support.negative]
    if len(support.values) == 1 and any(letter.isalpha() for letter in support.values[0]):
        existing_file(support.values[0], "--scribble", f"give the strokes of {support.image}")
        return Scribble(Path(support.values[0]), negative=negative)
    return Scribble([read_positions(text, "--scribble") for text in support.values], negative=negative)


@contextlib.contextmanager
def as_given(supports: Sequence[SupportOptions]) -> Iterator[None]:
    """Rewrite errors about supports so that they name the user's options and files instead of function arguments.

    Args:
        supports: the support images and their options, and those of negatives.
    """

    def named(match: re.Match[str]) -> str:
        opposed = match[1].startswith("negative")
        support = [item for item in supports if item.opposed == opposed][int(match[2])]
        option = NOT if opposed else "--from" if support.kind == "from" else "--support"
        return option if match[1] in ("support", "negatives") else f"--{support.kind} of {support.image}"

    try:
        yield
    except (AnnotationError, ImageError) as error:
        raise type(error)(
            re.sub(r"^(support|annotation|negatives|negative_annotation)\[(\d+)\]", named, str(error))
        ) from error


def read_positions(text: str, option: str) -> list[tuple[float, float]]:
    """Read positions "x,y x,y ...".

    Args:
        text: value of the option.
        option: name of the option.

    Raises:
        AnnotationError: there is no position, or one is not two numbers.
    """
    if not text.split():
        raise AnnotationError(f"{option}: expected x,y x,y ... in pixels, got an empty text")
    pairs = [read_numbers(pair, 2, option, "x,y x,y ...") for pair in text.split()]
    return [(x, y) for x, y in pairs]


def read_numbers(text: str, count: int, option: str, form: str) -> tuple[float, ...]:
    """Read numbers that commas divide.

    Args:
        text: value of the option, or a part of it.
        count: how many numbers there must be.
        option: name of the option.
        form: form of the value in error messages.

    Raises:
        AnnotationError: there is another number of them, or they are no numbers.
    """
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise AnnotationError(f"{option}: expected {form} in pixels, got {text!r}")
    return numbers
