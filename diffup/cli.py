"""The command line: `diffup segment`, `diffup train`, `diffup backbones`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup import __version__
from diffup.errors import AnnotationError, ConfigError, DiffUpError

if TYPE_CHECKING:
    from PIL import Image

    from diffup.annotation import Annotation
    from diffup.model import DiffUp
    from diffup.result import Segmentation
    from diffup.training.config import TrainConfig

FAILED = 2
INTERRUPTED = 130

_SEGMENT_EXAMPLES = """examples:
  diffup segment query.jpg --support dog.jpg --mask dog_mask.png -o out
  diffup segment query.jpg --support dog.jpg --box 10,20,200,180 --box 220,30,300,90 -o out
  diffup segment query.jpg --support a.jpg --mask a.png --support b.jpg --scribble "30,40 60,80" --support c.jpg -o out
  diffup segment query.jpg --support dog.jpg --points "30,40 60,80" --backbone bundled:efficientnet_lite2 -o out

An annotation belongs to the last --support before it; an image without one shows the class somewhere. Coordinates are
pixels of that image, x to the right and y down; a box is left,top,right,bottom."""

_TRAIN_EXAMPLES = """examples:
  diffup train data/coco_mini -o runs/all
  diffup train data/coco_mini -o runs/fold0 --fold 0 --backbone bundled:efficientnet_lite0 --backbone timm:resnet50
  diffup train data/coco_mini -o runs/mine --config train.json --cache runs/cache --device cuda

A run that was interrupted goes on when the same command is given again. The data folder holds images/, masks/ and
splits.json; docs/training.md describes it, and every field of the config."""

_BACKBONES_EXAMPLES = """examples:
  diffup backbones
  diffup backbones --json"""


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
    _add_segment(_add_command(commands, "segment", segment, "mark a class in a photo", _SEGMENT_EXAMPLES))
    _add_train(_add_command(commands, "train", train, "train a decoder on a labelled folder", _TRAIN_EXAMPLES))
    backbones = _add_command(commands, "backbones", list_backbones, "list the encoders", _BACKBONES_EXAMPLES)
    backbones.add_argument("--json", action="store_true", help="print JSON")
    return parser


def segment(args: argparse.Namespace) -> None:
    """`diffup segment`: one query, written to a folder as pictures and JSON."""
    if not args.supports:
        raise AnnotationError("give at least one image that shows the class: --support IMG")
    annotations = [_read_annotation(support) for support in args.supports]
    files = _output_files(args)
    args.output.mkdir(parents=True, exist_ok=True)
    model = _load_model(args)
    start = time.perf_counter()
    result = model.segment(
        args.query,
        [support.image for support in args.supports],
        annotations,
        steps=args.steps,
        ensemble=args.ensemble,
        threshold=args.threshold,
        seed=args.seed,
        trace=args.trace,
        progress=not args.quiet and sys.stderr.isatty(),
    )
    seconds = time.perf_counter() - start
    _write_results(result, files, _facts(args, model, result, seconds))
    if not args.quiet:
        print(f"{args.query}: {result!r}, {seconds:.1f} s")
        for path in files.values():
            print(path)


def train(args: argparse.Namespace) -> None:
    """`diffup train`: a decoder from a labelled folder, or more steps of a run that was interrupted."""
    from diffup.backbones import load_backbone
    from diffup.files import write_text
    from diffup.model import resolve_device
    from diffup.training import trainer

    device = resolve_device(args.device)
    checkpoints = dict(_split_backbone(text) for text in args.backbone)
    config = _train_config(args, tuple(checkpoints))
    backbones = [
        load_backbone(name, **_backbone_options(checkpoints.get(name), args.input_size)).to(device)
        for name in config.backbones
    ]
    if not (args.output / trainer.CHECKPOINT).exists():  # else the trainer refuses a config that is not the run's own
        write_text(args.output / "config.json", config.to_json())
    decoder = trainer.train(
        args.data,
        args.output,
        config,
        backbones,
        backgrounds=args.backgrounds,
        cache=args.cache,
        in_memory=args.in_memory,
        initial=args.initial,
        device=device,
        stop_after=args.stop_after,
        progress=not args.quiet,
    )
    if not args.quiet:
        print(f"decoder: {decoder}\nuse it with: diffup segment ... --decoder {decoder}")


def list_backbones(args: argparse.Namespace) -> None:
    """`diffup backbones`: the known families and what each offers."""
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


@dataclass
class _Support:
    """A support image as the command line gives it, with the options that annotate it."""

    image: str
    kind: str | None = None
    values: list[str] = field(default_factory=list)


class _AddSupports(argparse.Action):
    """`--support IMG [IMG ...]`: more support images, not yet annotated."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.supports = [*namespace.supports, *(_Support(image) for image in values)]


class _Annotate(argparse.Action):
    """`--mask`, `--box`, ...: an annotation of the last support image."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        kind = str(option).removeprefix("--")
        if not namespace.supports:
            raise argparse.ArgumentError(self, "it annotates the --support before it, and there is none")
        support = namespace.supports[-1]
        if support.kind not in (None, kind):
            raise argparse.ArgumentError(self, f"{support.image} has --{support.kind} already: one kind for an image")
        support.kind = kind
        support.values.append(values)


def _add_command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], None], summary: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `_Annotate` reads the kind from the option as it is written
    )
    parser.set_defaults(command=command)
    return parser


def _add_segment(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(supports=[])
    parser.add_argument("query", metavar="QUERY", help="the photo to mark")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    support = parser.add_argument_group("support images and their annotations, repeatable")
    support.add_argument(
        "--support", dest="supports", nargs="+", metavar="IMG", action=_AddSupports, help="it shows the class"
    )
    for option, metavar, text in (
        ("--mask", "FILE", "mask image of the same size"),
        ("--box", "X0,Y0,X1,Y1", "box in pixels; repeat it for several"),
        ("--scribble", "STROKE", 'polyline "x,y x,y ...", repeatable, or the file of a stroke image'),
        ("--points", "POINTS", 'clicks "x,y x,y ..."'),
    ):
        support.add_argument(option, dest="supports", metavar=metavar, action=_Annotate, help=text)
    model = parser.add_argument_group("model")
    model.add_argument("--decoder", metavar="FOLDER", help="folder or hub repository user/repo; default: the package's")
    model.add_argument("--backbone", metavar="NAME", help="encoder, see `diffup backbones`; default: the decoder's")
    model.add_argument("--backbone-weights", metavar="FILE", help="local checkpoint of the encoder")
    model.add_argument("--input-size", metavar="PIXELS", type=int, help="side that images are resized to")
    model.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")
    sampling = parser.add_argument_group("sampling; defaults come from the decoder")
    sampling.add_argument("--steps", type=int, help="DDIM steps")
    sampling.add_argument("--ensemble", type=int, help="samples that are averaged")
    sampling.add_argument("--threshold", type=float, help="probability above which a pixel is marked")
    sampling.add_argument(
        "--seed", type=_at_least(0), default=0, help="the same seed gives the same result; default: 0"
    )
    parser.add_argument("--trace", action="store_true", help="also write trace.png, the noisy masks along the way")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=Path, help="labelled folder")
    parser.add_argument("-o", "--output", metavar="RUN", type=Path, required=True, help="folder of the run")
    parser.add_argument("--config", metavar="FILE", type=Path, help="JSON of the settings; options below override it")
    parser.add_argument(
        "--fold",
        type=int,
        action="append",
        dest="folds",
        metavar="N",
        help="hold out the classes of this fold; repeat for more",
    )
    parser.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="NAME[=CHECKPOINT]",
        help="encoder to train with, and a local file of its weights; repeatable",
    )
    parser.add_argument("--input-size", metavar="PIXELS", type=int, help="side that images are resized to")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps")
    parser.add_argument("--batch-size", type=int, metavar="N", help="episodes a step")
    parser.add_argument("--seed", type=_at_least(0), metavar="N", help="seed of the run")
    parser.add_argument("--backgrounds", metavar="FOLDER", type=Path, help="more photos to paste objects onto")
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help="cached features; default: RUN/cache")
    parser.add_argument("--in-memory", action="store_true", help="keep the cached features in memory, for slow disks")
    parser.add_argument("--initial", metavar="FOLDER", type=Path, help="decoder to start from; default: random weights")
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")
    parser.add_argument(
        "--stop-after", type=_at_least(1), metavar="N", help="stop at this step; the run can go on later"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _at_least(minimum: int) -> Callable[[str], int]:
    """Reader of whole numbers, for argparse."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"it must be {minimum} or more, not {value}")
        return value

    return number


def _read_annotation(support: _Support) -> Annotation:
    """The annotation that a support image's options give."""
    from diffup.annotation import Box, Mask, Points, Scribble

    if support.kind is None:
        return None
    if support.kind == "mask":
        if len(support.values) > 1:
            raise AnnotationError(f"--mask: {support.image} has {len(support.values)} masks; join them into one")
        return Mask(support.values[0])
    if support.kind == "box":
        return Box([_numbers(text, 4, "--box", "x0,y0,x1,y1") for text in support.values])
    if support.kind == "points":
        return Points([point for text in support.values for point in _positions(text, "--points")])
    if len(support.values) == 1 and any(letter.isalpha() for letter in support.values[0]):
        return Scribble(Path(support.values[0]))
    return Scribble([_positions(text, "--scribble") for text in support.values])


def _positions(text: str, option: str) -> list[tuple[float, float]]:
    if not text.split():
        raise AnnotationError(f"{option}: expected x,y x,y ... in pixels, got an empty text")
    pairs = [_numbers(pair, 2, option, "x,y x,y ...") for pair in text.split()]
    return [(x, y) for x, y in pairs]


def _numbers(text: str, count: int, option: str, form: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise AnnotationError(f"{option}: expected {form} in pixels, got {text!r}")
    return numbers


def _load_model(args: argparse.Namespace) -> DiffUp:
    from diffup import model
    from diffup.backbones import load_backbone
    from diffup.decoder.weights import fetch_decoder, load_decoder

    decoder = load_decoder(model.RELEASED if args.decoder is None else fetch_decoder(args.decoder))
    options = _backbone_options(args.backbone_weights, args.input_size)
    backbone = load_backbone(args.backbone or decoder.config.backbone, **options)
    return model.DiffUp(decoder, backbone, args.device)


def _backbone_options(checkpoint: str | None, input_size: int | None) -> dict[str, Any]:
    """The options of an encoder that were given."""
    given = {"checkpoint_path": checkpoint, "input_size": input_size}
    return {name: value for name, value in given.items() if value is not None}


def _output_files(args: argparse.Namespace) -> dict[str, Path]:
    """The files to write, none of which may be one that is read."""
    names = ["mask.png", "overlay.png", "overview.png", *(["trace.png"] if args.trace else []), "result.json"]
    files = {name: args.output / name for name in names}
    read = [args.query, *(support.image for support in args.supports)]
    read += [value for support in args.supports if support.kind in ("mask", "scribble") for value in support.values]
    written = {path.resolve() for path in files.values()}
    for name in read:
        if Path(name).resolve() in written:
            raise ConfigError(f"--output: the results would overwrite {name}; choose another folder")
    return files


def _write_results(result: Segmentation, files: dict[str, Path], facts: dict[str, Any]) -> None:
    """Write each file whole or not at all; the JSON comes last, so that it vouches for the rest."""
    from diffup.files import replacing, write_text

    result.save(files["mask.png"])
    pictures: dict[str, Callable[[], Image.Image]] = {
        "overlay.png": result.overlay,
        "overview.png": result.overview,
        "trace.png": result.trace_picture,
    }
    for name, draw in pictures.items():
        if name in files:
            with replacing(files[name]) as unfinished:
                draw().save(unfinished, format="PNG")
    write_text(files["result.json"], json.dumps(facts, indent=2) + "\n")


def _facts(args: argparse.Namespace, model: DiffUp, result: Segmentation, seconds: float) -> dict[str, Any]:
    """What result.json holds: figures, input, settings, versions."""
    import torch

    return {
        **result.summary(),
        "seconds": round(seconds, 3),
        "query": args.query,
        "support": [asdict(support) for support in args.supports],
        "settings": {
            "decoder": args.decoder or "released",
            "backbone": model.backbone.name,
            "backbone_fingerprint": model.backbone.fingerprint,
            "input_size": list(model.backbone.input_size),
            "steps": args.steps or model.config.steps,
            "ensemble": args.ensemble or model.config.ensemble,
            "threshold": result.threshold,
            "seed": args.seed,
            "device": str(model.device),
        },
        "versions": {"diffup": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _train_config(args: argparse.Namespace, backbones: tuple[str, ...]) -> TrainConfig:
    """The config file's settings, or the defaults, with the options on top."""
    from diffup.training.config import TrainConfig

    config = TrainConfig() if args.config is None else TrainConfig.from_json(args.config.read_text("utf-8", "replace"))
    names = ("folds", "steps", "batch_size", "seed")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if backbones:
        given["backbones"] = backbones
    return replace(config, **given)


def _split_backbone(text: str) -> tuple[str, str | None]:
    """`NAME[=CHECKPOINT]` as its two parts."""
    name, _, checkpoint = text.partition("=")
    if not name or text.endswith("="):
        raise ConfigError(f"--backbone: expected NAME or NAME=CHECKPOINT, got {text!r}")
    return name, checkpoint or None


if __name__ == "__main__":
    sys.exit(main())
