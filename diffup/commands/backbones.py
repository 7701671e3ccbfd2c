"""`diffup backbones`: lists the families of encoders, or checks one encoder against the backbone protocol."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from diffup.commands.arguments import add_command, at_least
from diffup.errors import ConfigError

EXAMPLES = """examples:
  diffup backbones
  diffup backbones --json
  diffup backbones --check timm:resnet50=weights.safetensors --input-size 128"""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "backbones", run, "list the encoders", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    check = parser.add_argument_group("check one (status 2 where it breaks the protocol)")
    check.add_argument("--check", metavar="NAME[=CHECKPOINT][@PIXELS]", help="name of the encoder, family[:variant]")
    check.add_argument(
        "--input-size", metavar="PIXELS", type=at_least(1), help="side of the input images; smaller is faster"
    )


def run(args: argparse.Namespace) -> None:
    """List the known families and what each offers, or check one encoder."""
    from diffup.backbones import available_backbones

    if args.check is not None:
        check(args)
        return
    if args.input_size is not None:
        raise ConfigError("--input-size: it goes with --check")
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


def check(args: argparse.Namespace) -> None:
    """Check one encoder and print the report.

    Args:
        args: parsed options.

    Raises:
        ConformanceError: a check failed.
    """
    from diffup.backbones.conformance import check_backbone
    from diffup.backbones.named import load_named

    report = check_backbone(load_named(args.check, args.input_size, "--check"))
    if args.json:
        print(json.dumps(asdict(report), indent=2))
    elif report.ok:
        print(report)
    report.raise_for_problems()
