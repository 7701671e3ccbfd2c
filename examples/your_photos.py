"""Segment one class in every photo of a folder: writes masks and overlays, and lists photos by score.

    python examples/your_photos.py photos --support dog.jpg --mask dog_mask.png --output marked
    python examples/your_photos.py photos --support dog.jpg --box 10,20,200,180 --output marked

The prototypes of the class are computed once and used for every photo. Photos that cannot be read are reported.
The score is the probability that a photo shows the class and its mask is a good one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffup import Box, DiffUp, Failure, Mask, Prototypes
from diffup.inputs.annotations import Annotation

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def mark(model: DiffUp, photos: list[Path], learnt: Prototypes, output: Path) -> dict[str, float]:
    """Write mask and overlay of each photo.

    Returns:
        The score of each photo by its name, highest first.
    """
    scores = {}
    for photo, result in zip(photos, model.segment_many(photos, learnt, progress=sys.stderr.isatty()), strict=True):
        if isinstance(result, Failure):
            print(f"{photo.name}: left out: {result.reason}", file=sys.stderr)
            continue
        result.save(output / f"{photo.stem}_mask.png")
        result.overlay().convert("RGB").save(output / f"{photo.stem}_overlay.jpg")
        scores[photo.name] = result.score
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the photos to segment")
    parser.add_argument("--support", type=Path, required=True, help="a photo that shows the class")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=Path, help="mask image of the support's size, white for the class")
    where.add_argument("--box", help="box left,top,right,bottom in pixels of the support")
    parser.add_argument("--encoder", help="name of the encoder; default: the package's")
    parser.add_argument("--output", type=Path, default=Path("marked"))
    args = parser.parse_args(argv)
    photos = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not photos:
        parser.error(f"{args.folder} holds no photo; looked for {', '.join(SUFFIXES)}")
    annotation: Annotation = Mask(args.mask) if args.mask else Box(*map(float, args.box.split(",")))
    args.output.mkdir(parents=True, exist_ok=True)
    model = DiffUp.from_pretrained(backbone=args.encoder)
    learnt = model.prototypes(args.support, annotation)
    for name, score in mark(model, photos, learnt, args.output).items():
        print(f"{score:.2f}  {name}")


if __name__ == "__main__":
    main()
