"""The command line, `diffup COMMAND`; each command is a module of `diffup.commands`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffup import __version__
from diffup.commands import backbones, demo, evaluate, export, label, push, segment, serve, teach, train, upgrade_report
from diffup.commands.spelling import CommandParser, check_spelling, refuse_extra
from diffup.commands.streams import printing
from diffup.errors import DiffUpError
from diffup.utils.storage import without_password

FAILED = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: command-line arguments after the program's name; by default those of the process.

    Returns:
        Exit status: 0 for success, 2 for an error (printed on stderr), 130 if the user interrupted.
    """
    with printing() as out:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        out.flush()
        if out.failure is not None and not status:
            print(f"diffup: error: what was printed could not be written ({out.failure})", file=sys.stderr)
            status = FAILED
    return status


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser of the program with all its commands."""
    return _parsers()[0]


def _run(argv: list[str]) -> int:
    try:
        args = _parse(argv)
        args.command(args)
    except (DiffUpError, OSError) as error:
        print(f"diffup: error: {without_password(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("diffup: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    check_spelling(parser, commands, argv)
    args, extra = parser.parse_known_args(argv)
    if extra:
        refuse_extra(args.parser, extra, argv)
    return args


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Build the program's parser, and the parser of each command by command name."""
    parser = argparse.ArgumentParser(prog="diffup", description="Few-shot segmentation with an exchangeable encoder.")
    parser.add_argument("--version", action="version", version=f"diffup {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in (segment, teach, label, train, evaluate, upgrade_report, export, push, demo, serve, backbones):
        command.add(commands)
    return parser, dict(commands.choices)


if __name__ == "__main__":
    sys.exit(main())
