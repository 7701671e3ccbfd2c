"""`diffup evaluate`: scores a decoder in every combination of encoder, fold, shots, annotation and so on."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from diffup.commands.arguments import (
    add_command,
    add_data,
    add_sampling,
    add_templates,
    add_text_backbone,
    at_least,
    distinct,
    open_data,
    several,
    shared_plan,
    templates_of,
)
from diffup.commands.paths import output_folder

if TYPE_CHECKING:
    from diffup.decoder.base import Decoder
    from diffup.evaluation.sweep import Plan

EXAMPLES = """examples:
  diffup evaluate data/coco_mini --decoder runs/fold0/decoder --fold 0 -o scores
  diffup evaluate data/coco_mini --decoder runs/fold0/decoder --fold 0 --shots 1 5 --annotation mask box none -o scores
  diffup evaluate data/coco_mini --decoder runs/fold0/decoder --fold 0 --steps 1 2 4 8 --shots 1 2 5 10 -o fig8
  diffup evaluate VOC2012 --dataset pascal5i --lists lists/pascal --decoder runs/pascal0/decoder --fold 0 -o pascal

Score a fold with a decoder that was trained without its classes: the package's has seen all classes of COCO.
An evaluation that was interrupted goes on when the same command is given again, and one that shares settings with an
earlier one in the same OUT takes its episodes over. docs/evaluation.md describes data sets, protocols and files."""

RECORD = "episodes.jsonl"
"""Name of the file of recorded episodes in the output folder."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    add_arguments(add_command(commands, "evaluate", run, "score a decoder on a data set", EXAMPLES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    add_data(parser)
    swept = parser.add_argument_group("what is varied; every combination of the values makes a row")
    swept.add_argument(
        "--backbone",
        dest="backbones",
        metavar="NAME[=CHECKPOINT][@PIXELS]",
        **several(str),
        help="encoders, with a local file of weights and a side of input images; default: the decoder's",
    )
    swept.add_argument("--shots", metavar="K", **several(int), help="numbers of support images; default: 1")
    swept.add_argument(
        "--annotation",
        dest="annotations",
        metavar="KIND",
        **several(str),
        help="mask (default), box, scribble, points, none, ...; text for class names alone, or both as in mask+text; "
        "docs/evaluation.md lists all",
    )
    swept.add_argument(
        "--steps", metavar="N", **several(at_least(1)), help="numbers of DDIM steps; default: the decoder's"
    )
    swept.add_argument(
        "--ensemble", metavar="N", **several(at_least(1)), help="numbers of samples; default: the decoder's"
    )
    parser.add_argument("--decoder", metavar="FOLDER", help="folder or hub repository; default: the package's")
    add_text_backbone(parser)
    add_templates(parser)
    parser.add_argument("--others", action="store_true", help="score the classes outside the fold instead")
    add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    """Score, print the table, write `scores.json` and `scores.csv`."""
    from diffup.decoder.weights import fetch_decoder, load_decoder
    from diffup.model import RELEASED

    decoder = load_decoder(RELEASED if args.decoder is None else fetch_decoder(args.decoder))
    score(args, decoder, args.decoder or "released")


def score(args: argparse.Namespace, decoder: Decoder, name: str) -> list[dict[str, Any]]:
    """Score a decoder in all settings of the options.

    Args:
        args: parsed options of `add_arguments`.
        decoder: the decoder to score.
        name: name of the decoder in the results.

    Returns:
        The rows as plain data, as in `scores.json`.
    """
    from diffup.backbones.named import load_named
    from diffup.evaluation import table
    from diffup.evaluation.record import EpisodeRecord
    from diffup.evaluation.sweep import Candidate, sweep
    from diffup.model import DiffUp
    from diffup.utils.files import replacing_together

    output_folder(args.output)
    data = open_data(args)
    plan = plan_of(args).resolve(data)  # before encoders are loaded
    backbones = distinct(args.backbones) or (decoder.config.backbone,)
    encoders = [load_named(text, args.input_size) for text in backbones]
    candidates = [Candidate(name, DiffUp(decoder, encoder, args.device, args.text_backbone)) for encoder in encoders]
    record = EpisodeRecord(args.output / RECORD)
    options = {"cache_bytes": args.cache_mib * 2**20, "progress": not args.quiet and sys.stderr.isatty()}
    found = table.tabulate(sweep(candidates, data, plan, record, **options), data.classes)
    with replacing_together([args.output / "scores.csv", args.output / "scores.json"]) as (csv, document):
        csv.write_text(table.to_csv(found), encoding="utf-8", errors="backslashreplace")
        document.write_text(table.to_json(found), encoding="utf-8", errors="backslashreplace")
    if not args.quiet:
        print(table.to_text(found))
        print(f"scores: {args.output / 'scores.json'}, {args.output / 'scores.csv'}")
    return found.rows


def plan_of(args: argparse.Namespace) -> Plan:
    """Return the evaluation plan that the options describe.

    Args:
        args: parsed options of `add_arguments`.
    """
    from diffup.evaluation.sweep import Plan

    return Plan(
        shots=distinct(args.shots) or (1,),
        annotations=distinct(args.annotations) or ("mask",),
        steps=distinct(args.steps) or (None,),
        ensembles=distinct(args.ensemble) or (None,),
        others=args.others,
        templates=templates_of(args),
        **shared_plan(args),
    )
