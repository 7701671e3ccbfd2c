"""`diffup label`: segments one or several classes in every image of a folder."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from diffup.commands.arguments import add_command, add_decoding, add_model, at_least, distinct, load_model, several
from diffup.commands.paths import existing_folder, output_folder, path_or_url
from diffup.commands.prototypes import check_prototypes, load_classes
from diffup.utils.storage import is_url

EXAMPLES = """examples:
  diffup label photos --prototypes dog.safetensors cat.safetensors -o labels
  diffup label photos --prototypes dog.safetensors --format coco yolo overlay csv -o labels
  diffup label photos --prototypes dog.safetensors --format labelme label-studio -o labels
  diffup label photos --prototypes dog.safetensors --format coco --coco-encoding polygon --instances -o labels
  diffup label photos --prototypes dog.safetensors cat.safetensors --format png coco --overlap -o labels
  diffup label s3://bucket/photos --prototypes dog.safetensors -o s3://bucket/labels

FOLDER, FILE and OUT may be URLs that fsspec opens; s3:// needs the package s3fs, gs:// gcsfs, az:// adlfs.

A run that was stopped or killed goes on where it was when the same command is given again."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "label", run, "segment classes in every image of a folder", EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", type=path_or_url, help="folder of the images, with its subfolders")
    parser.add_argument(
        "--prototypes",
        metavar="FILE",
        required=True,
        **several(path_or_url),
        help="prototype files, one for each class",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=path_or_url, required=True, help="folder for the results")
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--format",
        dest="formats",
        metavar="F",
        **several(str),
        help="png, coco, yolo, labelme, label-studio, overlay, csv; default: png csv",
    )
    written.add_argument(
        "--coco-encoding", default="rle", metavar="E", help="format of COCO masks: rle (default) or polygon"
    )
    written.add_argument(
        "--instances", action="store_true", help="write separate objects to COCO and YOLO, touching ones divided"
    )
    written.add_argument(
        "--overlap", action="store_true", help="also write each class's own mask, which may overlap with others'"
    )
    add_model(parser)
    add_decoding(parser)
    parser.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="images per batch; default: 8")
    parser.add_argument("--workers", type=at_least(1), default=4, metavar="N", help="reading threads; default: 4")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Label a folder, and print which images could not be read."""
    from diffup.labelling import LabelPlan, label_folder
    from diffup.labelling.listing import summary
    from diffup.utils.fonts import legend_key

    if not is_url(args.folder):
        single = "for a single photo: diffup segment QUERY --support IMG --mask FILE -o OUT"
        existing_folder(args.folder, "FOLDER", single)
    if not is_url(args.output):
        output_folder(args.output)
    plan = LabelPlan(
        formats=distinct(args.formats) or LabelPlan.formats,
        encoding=args.coco_encoding,
        instances=args.instances,
        overlap=args.overlap,
        **{name: getattr(args, name) for name in ("steps", "ensemble", "threshold", "min_presence", "seed", "refine")},
    )
    classes = load_classes(args.prototypes)
    model = load_model(args)
    for path, item in classes.items():
        check_prototypes(item, path, "--prototypes", model)
    report = label_folder(
        model,
        args.folder,
        list(classes.values()),
        args.output,
        plan,
        batch_size=args.batch_size,
        workers=args.workers,
        progress=not args.quiet and sys.stderr.isatty(),
    )
    for image, reason in report.failed.items():
        print(f"diffup: {image}: {reason}", file=sys.stderr)
    if not args.quiet:
        counts = f"{report.labelled} labelled, {report.known} on record, {len(report.failed)} could not be read"
        more = {"left out": len(report.left_out), "gone since the last run": len(report.gone)}
        print(counts + "".join(f", {count} {what}" for what, count in more.items() if count))
        if report.left_out:
            print(f"left out: {summary(report.left_out)}")
        if report.kept:
            print(f"changed by hand, so they stay though their photos are gone: {', '.join(map(str, report.kept))}")
        for place in report.files:
            print(place)
        if "overlay" in plan.formats:
            for number, name in legend_key([item.name for item in classes.values()]).items():
                print(f"in the legends of the overlays: {number} = {name}")
