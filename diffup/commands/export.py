"""`diffup export`: the decoder as ONNX and `torch.export`, a query's condition as numpy arrays, or the whole model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.commands.arguments import add_command, add_model, at_least, load_model, several
from diffup.commands.paths import existing_file, existing_folder, output_file, output_folder
from diffup.commands.prototypes import check_prototypes, load_classes
from diffup.commands.supports import add_supports, as_given, read_annotation
from diffup.errors import ConfigError, DataError

if TYPE_CHECKING:
    from diffup.decoder.base import Decoder

EXAMPLES = """examples:
  diffup export -o exported
  diffup export -o exported --decoder runs/fold0/decoder --format onnx
  diffup export -o exported --condition query.jpg --support dog.jpg --mask dog_mask.png
  diffup export --whole --prototypes dog.safetensors cat.safetensors -o pets.onnx
  diffup export --whole --prototypes dog.safetensors --prototypes-as-inputs -o any.onnx
  diffup export --whole --int8 --calibrate photos --prototypes dog.safetensors -o dog_int8.onnx

The folder gets network.onnx, quality.onnx, the same as .pt2, and config.json; with --condition also
condition.npz, from which examples/onnx_numpy.py makes the mask without torch. With --whole, encoder, priors and decoder
are one file, which examples/onnx_whole.py runs. docs/export.md describes inputs and outputs."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "export", run, "export the decoder to ONNX and torch.export", EXAMPLES)
    parser.set_defaults(supports=[])
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for the files; with --whole, the .onnx file",
    )
    parser.add_argument("--format", dest="formats", help="formats to write, onnx or pt2; default: both", **several(str))
    parser.add_argument(
        "--condition", metavar="QUERY", help="also write the condition and the noise of this photo, as condition.npz"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the noise; default: 0")
    add_supports(parser)
    whole = parser.add_argument_group("encoder, priors and decoder in one file")
    whole.add_argument("--whole", action="store_true", help="write one ONNX file from photo to probability")
    whole.add_argument("--prototypes", metavar="FILE", help="prototype files, one for each class", **several(Path))
    whole.add_argument(
        "--prototypes-as-inputs",
        action="store_true",
        help="make the class an input, so that the file serves any; the classes given are written beside it as .npz",
    )
    whole.add_argument("--steps", type=at_least(1), help="sampling steps; default: the decoder's")
    whole.add_argument("--ensemble", type=at_least(1), help="samples that are averaged; default: the decoder's")
    whole.add_argument("--encoder-licence", metavar="TEXT", help="licence of the encoder's weights, for the metadata")
    whole.add_argument(
        "--int8", action="store_true", help="let the encoder compute in int8, calibrated on the photos of --calibrate"
    )
    whole.add_argument(
        "--calibrate",
        metavar="FOLDER",
        type=Path,
        help="8 photos or more, of which 24 at most are drawn, like those that the model will see",
    )
    add_model(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Export the decoder, and the condition of a query if one is named."""
    if args.whole:
        _export_whole(args)
        return
    alone = [name for name in _OF_WHOLE if getattr(args, name) not in (None, False)]
    if alone:
        raise ConfigError(f"--{alone[0].replace('_', '-')}: it belongs to the whole model; add --whole")
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


_OF_WHOLE = ("prototypes", "prototypes_as_inputs", "steps", "ensemble", "encoder_licence", "int8", "calibrate")
"""Names of the options that need `--whole`."""


def _export_whole(args: argparse.Namespace) -> None:
    """Export encoder, priors and decoder as one file."""
    if not args.prototypes:
        raise ConfigError("--whole: give the classes, --prototypes FILE; `diffup teach` makes such files")
    if args.supports or args.condition is not None or args.formats:
        raise ConfigError("--whole: it writes one ONNX file; --condition, --support and --format are for the decoder")
    if args.int8 != (args.calibrate is not None):
        raise ConfigError("--int8 and --calibrate FOLDER go together: photos tell the range of the encoder's numbers")
    output_file(args.output, ".onnx")
    calibration = None if args.calibrate is None else _photos(args.calibrate)

    def say(line: str) -> None:
        if not args.quiet:
            print(f"diffup: {line} ...", file=sys.stderr, flush=True)

    say("loading the model")
    from diffup.decoder.options import SamplingOptions
    from diffup.publish.whole import export_whole

    classes = load_classes(args.prototypes)
    args.device = "cpu"
    model = load_model(args)
    for path, item in classes.items():
        check_prototypes(item, path, "--prototypes", model)
    found = export_whole(
        model.backbone,
        model.decoder,
        list(classes.values()),
        args.output,
        options=SamplingOptions(steps=args.steps, ensemble=args.ensemble, seed=args.seed),
        as_inputs=args.prototypes_as_inputs,
        encoder_licence=args.encoder_licence,
        calibration=calibration,
        progress=say,
    )
    if args.quiet:
        return
    if found.int8 is None or found.int8_pixels is None:
        print(f"{args.output}  (differs from the original by at most {found.float32:.1g})")
    else:
        print(
            f"{args.output}  (on the calibration photos the encoder in int8 changes probabilities by {found.int8:.1g} "
            f"on average, and {found.int8_pixels:.1%} of the masks' pixels; in float32 the graph differs from the "
            f"original by at most {found.float32:.1g})"
        )


def _photos(folder: Path) -> list[Path]:
    """Paths of the photos that calibrate an encoder."""
    existing_folder(folder, "--calibrate", "give a folder of photos")
    from diffup.labelling.listing import list_images
    from diffup.publish.quantise import MIN_PHOTOS

    try:
        names = list_images(folder).images
    except DataError as error:
        raise ConfigError(f"--calibrate: {error}") from error
    if len(names) < MIN_PHOTOS:
        raise ConfigError(f"--calibrate: {str(folder)!r} holds {len(names)} photos, fewer than {MIN_PHOTOS}; add some")
    return [folder / name for name in names]


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
