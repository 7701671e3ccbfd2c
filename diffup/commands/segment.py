"""`diffup segment`: one query, written to a folder as pictures and JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup import __version__
from diffup.commands.options import add_command, at_least, backbone_options
from diffup.errors import AnnotationError, ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from diffup.annotation import Annotation
    from diffup.model import DiffUp
    from diffup.result import Segmentation

EXAMPLES = """examples:
  diffup segment query.jpg --support dog.jpg --mask dog_mask.png -o out
  diffup segment query.jpg --support dog.jpg --box 10,20,200,180 --box 220,30,300,90 -o out
  diffup segment query.jpg --support a.jpg --mask a.png --support b.jpg --scribble "30,40 60,80" --support c.jpg -o out
  diffup segment query.jpg --support dog.jpg --points "30,40 60,80" --backbone bundled:efficientnet_lite2 -o out

An annotation belongs to the last --support before it; an image without one shows the class somewhere. Coordinates are
pixels of that image, x to the right and y down; a box is left,top,right,bottom."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "segment", run, "mark a class in a photo", EXAMPLES)
    parser.set_defaults(supports=[])
    parser.add_argument("query", metavar="QUERY", help="the photo to mark")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add_supports(parser)
    add_model(parser)
    _add_sampling(parser)


def add_supports(parser: argparse.ArgumentParser) -> None:
    """The support images and their annotations."""
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


def add_model(parser: argparse.ArgumentParser) -> None:
    """The decoder and the encoder."""
    model = parser.add_argument_group("model")
    model.add_argument("--decoder", metavar="FOLDER", help="folder or hub repository user/repo; default: the package's")
    model.add_argument("--backbone", metavar="NAME", help="encoder, see `diffup backbones`; default: the decoder's")
    model.add_argument("--backbone-weights", metavar="FILE", help="local checkpoint of the encoder")
    model.add_argument("--input-size", metavar="PIXELS", type=int, help="side that images are resized to")
    model.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling; defaults come from the decoder")
    sampling.add_argument("--steps", type=int, help="DDIM steps")
    sampling.add_argument("--ensemble", type=int, help="samples that are averaged")
    sampling.add_argument("--threshold", type=float, help="probability above which a pixel is marked")
    sampling.add_argument("--seed", type=at_least(0), default=0, help="the same seed gives the same result; default: 0")
    parser.add_argument("--trace", action="store_true", help="also write trace.png, the noisy masks along the way")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Segment one query and write the results."""
    if not args.supports:
        raise AnnotationError("give at least one image that shows the class: --support IMG")
    annotations = [read_annotation(support) for support in args.supports]
    files = _output_files(args)
    args.output.mkdir(parents=True, exist_ok=True)
    model = load_model(args)
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


def read_annotation(support: _Support) -> Annotation:
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


def load_model(args: argparse.Namespace) -> DiffUp:
    """The model that `add_model`'s options give."""
    from diffup import model
    from diffup.backbones import load_backbone
    from diffup.decoder.weights import fetch_decoder, load_decoder

    decoder = load_decoder(model.RELEASED if args.decoder is None else fetch_decoder(args.decoder))
    options = backbone_options(args.backbone_weights, args.input_size)
    backbone = load_backbone(args.backbone or decoder.config.backbone, **options)
    return model.DiffUp(decoder, backbone, args.device)


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
