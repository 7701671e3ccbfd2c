"""The command line, `diffup COMMAND`; each command is a module of `diffup.commands`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffup import __version__
from diffup.commands import backbones, demo, evaluate, export, label, push, segment, teach, train, upgrade_report
from diffup.errors import DiffUpError

FAILED = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit status: 0; 2 for an error, which is told on stderr; 130 where the user interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        args.command(args)
    except (DiffUpError, OSError) as error:
        print(f"diffup: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("diffup: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="diffup", description="Few-shot segmentation with an exchangeable encoder.")
    parser.add_argument("--version", action="version", version=f"diffup {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (segment, teach, label, train, evaluate, upgrade_report, export, push, demo, backbones):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
