"""Corrections of the query's mask on the command line: clicks, strokes and areas, in turn."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffup.commands.supports import read_numbers, read_positions
from diffup.errors import AnnotationError

if TYPE_CHECKING:
    from diffup.correct import Correction


@dataclass(frozen=True)
class CorrectionOption:
    """A correction as given on the command line.

    Attributes:
        option: name of the option, such as "--not-click".
        value: its value.
    """

    option: str
    value: str


def add_corrections(parser: argparse.ArgumentParser) -> None:
    """Add the options of corrections, which are stored in `args.corrections` in their order."""
    parser.set_defaults(corrections=[])
    group = parser.add_argument_group("corrections, marked on QUERY itself, repeatable and in turn")
    for name, metavar, what in (
        ("click", "POINTS", 'clicks "x,y x,y ..."'),
        ("stroke", "STROKE", 'a polyline "x,y x,y ..."'),
        ("area", "X0,Y0,X1,Y1", "a box in pixels"),
    ):
        for option, meaning in ((f"--{name}", "on the class"), (f"--not-{name}", "on what is not the class")):
            group.add_argument(option, dest="corrections", metavar=metavar, action=_Append, help=f"{what} {meaning}")


class _Append(argparse.Action):
    """`--click`, `--not-click`, ...: one more correction."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.corrections = [*namespace.corrections, CorrectionOption(str(option), values)]


def read_correction(given: CorrectionOption) -> Correction:
    """Read a correction.

    Args:
        given: the option and its value.

    Raises:
        AnnotationError: the value cannot be read.
    """
    from diffup.inputs.annotations import Box, Points, Scribble

    negative = given.option.startswith("--not-")
    if given.option.endswith("area"):
        box = read_numbers(given.value, 4, given.option, "x0,y0,x1,y1")
        return Box(negative=box) if negative else Box(*box)
    kind = Points if given.option.endswith("click") else Scribble
    positions = read_positions(given.value, given.option)
    return kind(negative=positions) if negative else kind(positions)


@contextlib.contextmanager
def corrections_as_given(given: Sequence[CorrectionOption]) -> Iterator[None]:
    """Rewrite errors about corrections so that they name the user's options instead of function arguments.

    Args:
        given: the corrections.
    """
    try:
        yield
    except AnnotationError as error:
        named = re.sub(r"^correction\[(\d+)\]", lambda match: given[int(match[1])].option, str(error))
        raise AnnotationError(named) from error
