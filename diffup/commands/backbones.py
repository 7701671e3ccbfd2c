"""`diffup backbones`: the known families of encoders."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from diffup.commands.options import add_command

EXAMPLES = """examples:
  diffup backbones
  diffup backbones --json"""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "backbones", run, "list the encoders", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """List the known families and what each offers."""
    from diffup.backbones import available_backbones

    families = available_backbones()
    if args.json:
        print(json.dumps([asdict(family) for family in families], indent=2))
        return
    for family in families:
        print(f"{family.family}  ({family.origin}, {'installed' if family.installed else 'not installed'})")
        for label, text in (
            ("", family.description),
            ("names: ", ", ".join(f"{family.family}:{variant}" for variant in family.variants)),
            ("more: " if family.installed else "needs: ", family.hint),
        ):
            if text:
                print(f"    {label}{text}")
