"""`diffup segment`: segments one query and writes pictures and JSON to a folder."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffup import __version__
from diffup.commands.arguments import add_command, add_decoding, add_model, add_text, load_model, templates_of
from diffup.commands.corrections import add_corrections, corrections_as_given, read_correction
from diffup.commands.paths import output_folder, readable_file
from diffup.commands.segment_results import line_of, output_files, write_results
from diffup.commands.segment_whole import add_whole, segment_whole
from diffup.commands.supports import add_supports, as_given, read_annotation
from diffup.errors import AnnotationError

if TYPE_CHECKING:
    from diffup.model import DiffUp
    from diffup.result import Segmentation

EXAMPLES = """examples:
  diffup segment query.jpg --support dog.jpg --mask dog_mask.png -o out
  diffup segment query.jpg --support dog.jpg --box 10,20,200,180 --box 220,30,300,90 -o out
  diffup segment query.jpg --support a.jpg --mask a.png --support b.jpg --scribble "30,40 60,80" --support c.jpg -o out
  diffup segment query.jpg --support dog.jpg --points "30,40 60,80" --backbone bundled:efficientnet_lite2 -o out
  diffup segment query.jpg --text "a red bus" --text-backbone conse:efficientnet_lite2 -o out
  diffup segment query.jpg --support dog.jpg --mask dog_mask.png --click 120,80 --not-click "30,40 200,90" -o out
  diffup segment query.jpg --model pets.onnx -o out
  diffup segment query.jpg --model any.onnx --prototypes dog.safetensors cat.safetensors -o out

An annotation belongs to the last --support before it; an image without one shows the class somewhere. Coordinates are
pixels of that image, x to the right and y down; a box is left,top,right,bottom."""


_MANY = (
    "for the photos of a folder, teach the class once (diffup teach --support IMG --mask FILE --name NAME "
    "-o NAME.safetensors), then: diffup label FOLDER --prototypes NAME.safetensors -o labels"
)


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "segment", run, "segment a class in a photo", EXAMPLES)
    parser.add_argument("query", metavar="QUERY", help="the photo to segment")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add_supports(parser)
    add_corrections(parser)
    add_text(parser)
    add_model(parser)
    add_decoding(parser)
    add_whole(parser)
    parser.add_argument("--trace", action="store_true", help="also write trace.png, the noisy masks of the sampling")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Segment one query and write the results."""
    if args.model is not None or args.prototypes:
        segment_whole(args, _MANY)
        return
    if not args.supports and not args.text:
        raise AnnotationError("give at least one image that shows the class, --support IMG, or its name, --text NAME")
    output_folder(args.output)
    readable_file(args.query, "QUERY", _MANY)
    annotations = [read_annotation(support) for support in args.supports]
    corrections = [read_correction(given) for given in args.corrections]
    files = output_files(args, ("mask.png", "overlay.png", "overview.png", *(["trace.png"] if args.trace else [])))
    model = load_model(args)
    start = time.perf_counter()
    with as_given(args.supports), corrections_as_given(args.corrections):
        result = model.segment(
            args.query,
            [support.image for support in args.supports] or None,
            annotations or None,
            text=args.text,
            templates=templates_of(args),
            correction=corrections,
            steps=args.steps,
            ensemble=args.ensemble,
            threshold=args.threshold,
            min_presence=args.min_presence,
            seed=args.seed,
            refine=args.refine,
            trace=args.trace,
            progress=not args.quiet and sys.stderr.isatty(),
        )
    seconds = time.perf_counter() - start
    pictures = {
        "mask.png": result.to_pil,
        "overlay.png": result.overlay,
        "overview.png": result.overview,
        "trace.png": result.trace_picture,
    }
    write_results(pictures, files, _facts(args, model, result, seconds))
    if not args.quiet:
        print(line_of(args.query, result, seconds, len(corrections)))
        for path in files.values():
            print(path)


def _facts(args: argparse.Namespace, model: DiffUp, result: Segmentation, seconds: float) -> dict[str, Any]:
    """Content of result.json: results, inputs, settings, versions."""
    import torch

    return {
        **result.summary(),
        "seconds": round(seconds, 3),
        "query": args.query,
        "support": [asdict(support) for support in args.supports],
        "text": args.text,
        "corrections": [asdict(given) for given in args.corrections],
        "settings": {
            "decoder": args.decoder or "released",
            "backbone": model.backbone.name,
            "backbone_fingerprint": model.backbone.fingerprint,
            "input_size": list(model.backbone.input_size),
            "text_backbone": model.text_space.name if args.text else None,
            "templates": args.templates,
            "steps": args.steps or model.config.steps,
            "ensemble": args.ensemble or model.config.ensemble,
            "threshold": result.threshold,
            "min_presence": result.min_presence,
            "seed": args.seed,
            "refine": result.refine,
            "device": str(model.device),
        },
        "versions": {"diffup": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
