"""A folder of photos, half of which show one of some classes: how much of what is marked would have to be deleted.

For each class, `--photos` test photos that show it well and as many that show none of the classes; supports come from
the train photos. All classes are labelled together, as `diffup label` does. Printed are the masks of classes that a
photo does not show (to be deleted), the classes that it shows and that are not marked, and the IoU of present classes
in the label map and of their own masks.

    python benchmarks/mixed_folder.py DATA --classes dog cat chair --photos 10 --shots 1 5 -o mixed.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.data.folder import LabelledFolder
from diffup.inputs.annotations import Mask
from diffup.label_map import LabelMap
from diffup.model import DiffUp
from diffup.utils.files import write_text


def main() -> None:
    args = _arguments()
    data = LabelledFolder.open(args.data)
    ids = {name: c for c, name in data.classes.items()}
    classes = [ids[name] for name in args.classes]
    model = DiffUp.from_pretrained(args.decoder, backbone=args.backbone)
    photos = choose(data, classes, args.photos, args.seed)
    table = {}
    for shots in args.shots:
        prototypes = [teach(model, data, c, shots, args.seed) for c in classes]
        options = {} if args.min_presence is None else {"min_presence": args.min_presence}
        results = model.segment_many([data.image(name) for name in photos], prototypes, **options)
        found = [compare(result, data.mask(name), classes) for name, result in zip(photos, results, strict=True)]
        table[shots] = summarise([item for items in found for item in items])
        print(shots, json.dumps(table[shots]))
    if args.output:
        write_text(args.output, json.dumps({"table": table, "options": vars(args)}, indent=2, default=str) + "\n")


def choose(data: LabelledFolder, classes: Sequence[int], count: int, seed: int) -> list[str]:
    """Choose test photos: `count` of each class, and as many in all that show none of the classes."""
    rng = np.random.default_rng(seed)
    pairs = data.pairs("test", classes)
    chosen: list[str] = []
    for c in classes:
        free = [name for name in pairs[c] if name not in chosen]
        chosen += [str(name) for name in rng.choice(free, size=min(count, len(free)), replace=False)]
    without = [name for name in data.split("test") if not set(np.unique(data.mask(name)).tolist()) & set(classes)]
    return [*chosen, *(str(name) for name in rng.choice(without, size=len(chosen), replace=False))]


def teach(model: DiffUp, data: LabelledFolder, c: int, shots: int, seed: int) -> Any:
    """Make prototypes of a class from train photos."""
    rng = np.random.default_rng([seed, c])
    names = rng.choice(data.pairs("train", [c])[c], size=shots, replace=False)
    masks = [Mask(data.mask(name) == c) for name in names]
    return model.prototypes([data.image(name) for name in names], masks, name=data.classes[c])


def compare(result: LabelMap, truth: npt.NDArray[np.uint8], classes: Sequence[int]) -> list[dict[str, Any]]:
    """Compare each class of a label map with the truth."""
    known = truth != 255
    found = []
    for label, (c, own) in enumerate(zip(classes, result.results, strict=True), start=1):
        target, mine = (truth == c) & known, (result.labels == label) & known
        item: dict[str, Any] = {"present": bool(target.any()), "marked": bool(mine.any()), "presence": own.presence}
        if item["present"]:
            item["iou"], item["own_iou"] = (_iou(mask, target) for mask in (mine, own.mask & known))
        found.append(item)
    return found


def summarise(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Count masks to delete and missing ones, and average the IoU of present classes."""
    shown = [item for item in items if item["present"]]
    return {
        "pairs": len(items),
        "present": len(shown),
        "to_delete": sum(item["marked"] and not item["present"] for item in items),
        "missing": sum(not item["marked"] for item in shown),
        "iou_in_label_map": round(float(np.mean([item["iou"] for item in shown])), 3),
        "iou_alone": round(float(np.mean([item["own_iou"] for item in shown])), 3),
    }


def _iou(mask: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_]) -> float:
    return float((mask & target).sum() / max((mask | target).sum(), 1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="labelled folder")
    parser.add_argument("--classes", nargs="+", default=["dog", "cat", "chair"])
    parser.add_argument("--photos", type=int, default=10, help="photos of each class; default: 10")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--decoder", help="folder of a decoder; default: the package's")
    parser.add_argument("--backbone", help="encoder; default: the decoder's")
    parser.add_argument("--min-presence", type=float, help="default: the decoder's; 0 marks every class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", help="JSON file of the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
