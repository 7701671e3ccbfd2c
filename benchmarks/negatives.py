"""Negatives on similar classes: what they take from photos of the look-alike, and from photos of the class.

For each pair of similar classes, in both directions, `--episodes` times: prototypes of one support of the class, and
the same with one negative, a photo of the look-alike, both with masks from the train photos. Each segments a photo that
shows the class without its look-alike, and one that shows the look-alike without the class. Printed are means over the
episodes, and 95 % intervals from a bootstrap over the pairs of classes.

    python benchmarks/negatives.py DATA --split test --episodes 2 -o negatives.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from diffup.data.folder import LabelledFolder
from diffup.inputs.annotations import Mask
from diffup.model import DiffUp
from diffup.utils.files import write_text

SIMILAR = (
    "dog/cat, horse/cow, sheep/cow, zebra/giraffe, elephant/bear, car/bus, car/truck, bus/truck, bus/train, "
    "bicycle/motorcycle, chair/couch, bed/couch, cup/bowl, cup/wine glass, bottle/vase, bottle/wine glass, fork/knife, "
    "fork/spoon, apple/orange, cake/donut, cake/pizza, laptop/tv, microwave/oven, oven/refrigerator, sink/toilet, "
    "handbag/suitcase"
)
"""Pairs of similar classes of COCO."""

Figures = dict[str, list[float]]
"""What an episode gives, without negatives and with them, by the name of the figure."""


def main() -> None:
    args = _arguments()
    data = LabelledFolder.open(args.data)
    model = DiffUp.from_pretrained(args.decoder, backbone=args.backbone)
    shown = {split: data.pairs(split, data.classes) for split in {"train", args.split}}
    rng = np.random.default_rng(args.seed)
    pairs = []
    for pair in SIMILAR.split(", "):
        episodes = [episode for _ in range(args.episodes) for episode in draw(data, shown, args.split, pair, rng)]
        if episodes:
            pairs.append([compare(model, data, *episode) for episode in episodes])
            print(pair, json.dumps(means(pairs[-1])), flush=True)
    table = summarise(pairs)
    print(json.dumps(table, indent=2))
    if args.output:
        write_text(args.output, json.dumps({"table": table, "options": vars(args)}, indent=2) + "\n")


def draw(
    data: LabelledFolder, shown: dict[str, dict[int, tuple[str, ...]]], split: str, pair: str, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """Draw an episode of a pair of classes in each direction; none if a class has no photos without the other.

    Args:
        data: the photos.
        shown: names of the photos that show enough of a class, by split and class.
        split: split of the queries.
        pair: names of the two classes, a slash between them.
        rng: source of the choice.

    Yields:
        Ids of the class and of its look-alike, and the names of four photos: support, negative, photo of the class,
        photo of the look-alike.
    """
    ids = {name: c for c, name in data.classes.items()}
    for classes in permutations(ids[name] for name in pair.split("/")):
        names: list[str] = []
        for part in ("train", split):
            for c, absent in permutations(classes):
                candidates = [name for name in shown[part].get(c, ()) if name not in names]
                free = [name for name in candidates if not (data.mask(name) == absent).any()]
                names += [str(rng.choice(free))] if free else []
        if len(names) == 4:
            yield classes, names


def compare(model: DiffUp, data: LabelledFolder, classes: tuple[int, int], names: list[str]) -> Figures:
    """Segment the two queries of an episode without the negative and with it."""
    images = [data.image(name) for name in names]
    masks = [data.mask(name) for name in names]
    plain = model.prototypes(images[0], Mask(masks[0] == classes[0]), name="without")
    guarded = plain.add(model, negatives=images[1], negative_annotation=Mask(masks[1] == classes[1]))
    both = [plain, replace(guarded, name="with")]
    shows, alike = (model.segment(image, both).results for image in images[2:])
    target, known = masks[2] == classes[0], masks[2] != 255
    ious = [(item.mask & target).sum() / ((item.mask | target) & known).sum() for item in shows]
    return {
        "look-alikes: area marked": [100 * float(item.mask.mean()) for item in alike],
        "look-alikes: photos marked": [100 * float(item.mask.any()) for item in alike],
        "class: IoU": [100 * float(iou) for iou in ious],
        "class: photos not marked": [100 * float(not item.mask.any()) for item in shows],
    }


def means(episodes: list[Figures]) -> dict[str, list[float]]:
    """Average the figures of some episodes."""
    return {key: np.mean([item[key] for item in episodes], axis=0).round(1).tolist() for key in episodes[0]}


def summarise(pairs: list[list[Figures]], draws: int = 2000) -> dict[str, Any]:
    """Average over all episodes; the change that negatives make has a bootstrap interval over the pairs of classes."""
    table: dict[str, Any] = {"pairs": len(pairs), "episodes": sum(map(len, pairs))}
    chosen = np.random.default_rng(0).integers(0, len(pairs), (draws, len(pairs)))
    for key in pairs[0][0]:
        changes = np.array([sum(item[key][1] - item[key][0] for item in episodes) for episodes in pairs])
        counts = np.array([len(episodes) for episodes in pairs])
        drawn = changes[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
        without, guarded = np.mean([item[key] for episodes in pairs for item in episodes], axis=0)
        table[key] = {
            "without": round(float(without), 1),
            "with": round(float(guarded), 1),
            "change": [round(float(value), 1) for value in (guarded - without, *np.quantile(drawn, [0.025, 0.975]))],
        }
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="labelled folder with the names of COCO's classes")
    parser.add_argument("--split", default="test", help="split of the queries; default: test")
    parser.add_argument("--episodes", type=int, default=2, help="episodes of each ordered pair of classes; default: 2")
    parser.add_argument("--decoder", help="folder of a decoder; default: the package's")
    parser.add_argument("--backbone", help="encoder; default: the decoder's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", help="JSON file of the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
