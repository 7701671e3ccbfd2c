"""`diffup teach`: computes the prototypes of a class from annotated images and text, and saves them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffup.commands.arguments import add_command, add_model, add_text, load_model, templates_of
from diffup.commands.labelled import add_labelled, as_options, check_labelled, read_labelled
from diffup.commands.paths import output_file
from diffup.commands.prototypes import check_prototypes, load_prototypes
from diffup.commands.supports import add_supports, as_given, read_annotation
from diffup.errors import AnnotationError, PrototypesError

EXAMPLES = """examples:
  diffup teach --support dog.jpg --mask dog_mask.png --name dog -o dog.safetensors
  diffup teach --support a.jpg --box 10,20,60,90 --support b.jpg --points "30,40 60,80" --name dog -o dog.safetensors
  diffup teach --from export.json --label dog --images photos -o dog.safetensors
  diffup teach --text "a red bus" --text-backbone conse:efficientnet_lite2 --name bus -o bus.safetensors
  diffup teach --add dog.safetensors --support c.jpg --mask c.png -o dog.safetensors
  diffup teach --support wolf.jpg --mask wolf_mask.png --not dog.jpg --mask dog_mask.png --name wolf -o wolf.safetensors

--from takes the files that Label Studio, LabelMe, CVAT or COCO tools write, as a person has drawn or corrected them.
An annotation belongs to the last --support before it; an image without one shows the class somewhere. `diffup label`
takes the file."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "teach", run, "compute and save the prototypes of a class", EXAMPLES)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="prototype file, .safetensors")
    parser.add_argument("--name", help="name of the class")
    parser.add_argument("--add", metavar="FILE", type=Path, help="prototype file to add the supports to")
    parser.add_argument("--class-threshold", metavar="P", type=float, help="the class's own probability threshold")
    parser.add_argument("--keep-images", action="store_true", help="store images and annotations in the file")
    add_supports(parser, negatives=True)
    add_labelled(parser)
    add_text(parser)
    add_model(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Compute prototypes, or add supports to existing ones."""
    check_labelled(args)
    shown, opposed = ([item for item in args.supports if item.opposed == side] for side in (False, True))
    if not shown and not args.files and not args.text and not (args.add and opposed):
        raise AnnotationError(
            "give at least one image that shows the class, --support IMG, a file of a labelling tool, --from FILE, or "
            "the name of the class, --text NAME"
        )
    output_file(args.output, ".safetensors")
    args.name = args.name or (None if args.add else args.label)
    if (args.name is None) == (args.add is None):
        raise PrototypesError("give either --name, for a new class, or --add FILE, for one that there is")
    if args.add is not None and (args.keep_images or args.class_threshold is not None):
        raise PrototypesError("--keep-images and --class-threshold are for a new class; --add FILE keeps what it has")
    images: list[Any] = [support.image for support in shown]
    annotations: list[Any] = [read_annotation(support) for support in shown]
    words = {
        "text": args.text,
        "templates": templates_of(args),
        "negatives": [support.image for support in opposed] or None,
        "negative_annotation": [read_annotation(support) for support in opposed] or None,
    }
    before = None if args.add is None else load_prototypes(args.add, "--add")
    labelled = read_labelled(args, args.label or args.name or getattr(before, "name", None))
    if labelled is not None:
        images, annotations = images + labelled.support, annotations + labelled.annotation
    model = load_model(args)
    with as_given([*args.supports, *as_options(labelled)]):
        if before is not None:
            check_prototypes(before, args.add, "--add", model)
            prototypes = before.add(model, images or None, annotations or None, **words)
        else:
            options = {"name": args.name, "threshold": args.class_threshold, "keep_images": args.keep_images}
            prototypes = model.prototypes(images or None, annotations or None, **words, **options)
    prototypes.save(args.output)
    if not args.quiet:
        print(f"{args.output}: {prototypes!r}")
