"""Suggestions for mistyped commands and options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from diffup.utils.suggestions import close_to, did_you_mean

_USES = {
    "segment": "one QUERY at a time; for the photos of a folder: diffup label FOLDER --prototypes FILE",
    "label": "give the folder itself: diffup label FOLDER --prototypes FILE",
    "backbones": "it takes no names; to check one: diffup backbones --check NAME",
}


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors suggest what to write instead."""

    def error(self, message: str) -> NoReturn:
        """Print a usage error and exit with status 2.

        Args:
            message: message of argparse.
        """
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice is not None:
            message += did_you_mean(choice[1], re.split(r"[', ]+", choice[2]))
        if message.endswith("required: QUERY"):
            message += "; it comes first, since --support takes every file name after it"
        super().error(message)


def check_spelling(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], given: Sequence[str]
) -> None:
    """Exit with a usage error if a command or an option does not exist.

    argparse ignores a mistyped option at first and would report missing arguments instead.

    Args:
        parser: parser of the program.
        commands: parsers of its commands, by name.
        given: command-line arguments.
    """
    words = list(given[: given.index("--")] if "--" in given else given)
    if not words:
        return
    if words[0].startswith("-"):
        _check_options(parser, commands, words)
        return
    if words[0] not in commands:
        _refuse_command(parser, commands, words[0])
    _check_options(commands[words[0]], commands, words[1:])


def refuse_extra(parser: argparse.ArgumentParser, extra: Sequence[str], given: Sequence[str]) -> None:
    """Exit with a usage error about arguments that belong to no option.

    Args:
        parser: parser of the command.
        extra: the superfluous arguments.
        given: all command-line arguments.
    """
    named = " ".join(map(repr, extra))
    before = given[given.index(extra[0]) - 1] if extra[0] in given[1:] else ""
    joined = f"{before} {' '.join(extra)}"
    if all(re.fullmatch(r"-?[\d.]+", text) for text in extra):
        hint = "coordinates are joined by commas, such as --box 10,20,200,180"
    elif all(re.fullmatch(r"-?[\d.]+,-?[\d.]+", text) for text in extra):
        hint = f'several points are one text in quotes: "{joined}"'
    elif before and Path(joined).exists():
        hint = f'a name with spaces needs quotes: "{joined}"'
    else:
        hint = _USES.get(parser.prog.split()[-1], f"{parser.prog} --help tells what it takes")
    parser.error(f"what is {named}? {hint}")


def _refuse_command(parser: argparse.ArgumentParser, commands: Mapping[str, object], name: str) -> None:
    close = close_to(name, commands)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif Path(name).exists():
        hint = f"a command comes first, such as: diffup segment {name} ..."
    else:
        hint = f"there are {', '.join(commands)}; diffup --help describes them"
    parser.error(f"there is no command {name!r}; {hint}")


def _check_options(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], words: Sequence[str]
) -> None:
    known = _options(parser)
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"-[a-z][a-z-]+", option) and f"-{option}" in known:
            parser.error(f"there is no option {option}; did you mean -{option}?")
        if not option.startswith("--") or len(option) < 3 or " " in option or option in known:
            continue
        spelled = option.replace("_", "-")
        close = [spelled] if spelled in known else close_to(option, known, 1)
        elsewhere = [name for name, other in commands.items() if option in _options(other)]
        if elsewhere:
            hint = f"it belongs to diffup {', '.join(elsewhere)}"
        elif close:
            hint = f"did you mean {close[0]}?"
        else:
            hint = f"{parser.prog} --help lists those that there are"
        parser.error(f"there is no option {option}; {hint}")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]
