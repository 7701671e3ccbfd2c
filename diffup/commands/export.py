"""`diffup export`: writes the decoder as ONNX and `torch.export`, and a query's condition as numpy arrays."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.commands.arguments import add_command, add_model, at_least, load_model, several
from diffup.commands.paths import existing_file, output_folder
from diffup.commands.supports import add_supports, as_given, read_annotation
from diffup.errors import ConfigError

if TYPE_CHECKING:
    from diffup.decoder.base import Decoder

EXAMPLES = """examples:
  diffup export -o exported
  diffup export -o exported --decoder runs/fold0/decoder --format onnx
  diffup export -o exported --condition query.jpg --support dog.jpg --mask dog_mask.png

The folder gets network.onnx, quality.onnx, the same as .pt2, and config.json; with --condition also
condition.npz, from which examples/onnx_numpy.py makes the mask without torch. docs/export.md describes inputs and
outputs."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "export", run, "export the decoder to ONNX and torch.export", EXAMPLES)
    parser.set_defaults(supports=[])
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the files")
    parser.add_argument("--format", dest="formats", help="formats to write, onnx or pt2; default: both", **several(str))
    parser.add_argument(
        "--condition", metavar="QUERY", help="also write the condition and the noise of this photo, as condition.npz"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the noise; default: 0")
    add_supports(parser)
    add_model(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Export the decoder, and the condition of a query if one is named."""
    from diffup.publish.export import FORMATS, export_decoder

    if bool(args.supports) != (args.condition is not None):
        raise ConfigError("--condition QUERY and --support IMG go together: a condition is of a query and its supports")
    output_folder(args.output)
    condition = args.output / "condition.npz"
    decoder = _write_condition(args, condition) if args.condition is not None else _load_decoder(args)
    written = export_decoder(decoder.cpu(), args.output, tuple(args.formats or FORMATS))
    if not args.quiet:
        for path, difference in written.items():
            print(f"{path}  (differs from the original by at most {difference:.1g})")
        if args.condition is not None:
            print(condition)


def _load_decoder(args: argparse.Namespace) -> Decoder:
    from diffup import model
    from diffup.decoder.weights import fetch_decoder, load_decoder

    return load_decoder(model.RELEASED if args.decoder is None else fetch_decoder(args.decoder))


def _write_condition(args: argparse.Namespace, path: Path) -> Decoder:
    """Write the condition that the model's encoder gives, and return the model's decoder."""
    from diffup.decoder.sampling import draw_noise
    from diffup.inference import query_condition, read_query
    from diffup.inputs.annotations import pair_supports
    from diffup.priors.support import encode_supports
    from diffup.publish.export import save_condition
    from diffup.utils.options import seeded

    existing_file(args.condition, "--condition", "give one photo")
    annotations = [read_annotation(support) for support in args.supports]
    model = load_model(args)
    query = read_query(args.condition, "--condition", model.backbone)
    with as_given(args.supports):
        supports = pair_supports([support.image for support in args.supports], annotations)
    support = encode_supports(model.backbone, supports)
    condition = query_condition(query, support, model.backbone, model.config)
    noise = draw_noise(condition, model.config.ensemble, seeded(args.seed))
    save_condition(path, condition, noise, query.size)
    return model.decoder
