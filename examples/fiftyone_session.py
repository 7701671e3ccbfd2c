r"""A session in FiftyOne: one photo is labelled, the model labels the others, and FiftyOne says how well.

    pip install ".[examples,fiftyone]"  # in a checkout
    python examples/fiftyone_session.py

It makes ten photos with coins, tiles and grass on them, whose true masks are known. The first one is what a person has
labelled: its masks become prototypes, and `apply_model` marks the other nine. The data set is gone in the end.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fiftyone as fo
import numpy as np
from label_studio_session import LABELS, iou, scene
from PIL import Image

from diffup import DiffUp
from diffup.formats import read_fiftyone
from diffup.integrations.fiftyone import DiffUpModel


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=10, help="number of photos; default: 10")
    parser.add_argument("--min-presence", type=float, default=0.0, help="presence below which a class is absent")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        dataset = made(Path(folder), args.photos)
        model = DiffUp.from_pretrained()
        classes = [model.prototypes(*read_fiftyone(dataset, name, "truth", shots=1), name=name) for name in LABELS]
        rest = dataset.skip(1)
        rest.apply_model(
            DiffUpModel(classes, model, min_presence=args.min_presence),
            label_field="diffup",
            batch_size=3,
            skip_failures=False,
        )
        for sample in rest:
            truth, found = sample["truth"].mask, labels_of(sample)
            scores = " ".join(f"{iou(found, truth, [label]):.2f}" for label in range(1, len(LABELS) + 1))
            presence = " ".join(f"{item.label} {item.presence:.2f}" for item in sample["diffup"].detections)
            print(f"{Path(sample.filepath).name}  IoU of {', '.join(LABELS)}: {scores}  presence: {presence}")
        mean = np.mean([iou(labels_of(sample), sample["truth"].mask) for sample in rest])
        print(f"mean IoU {mean:.3f} of {dataset.count('diffup.detections')} detections")

        masks = DiffUpModel(classes, model, output="segmentation", min_presence=args.min_presence)
        rest.apply_model(masks, label_field="diffup_masks", batch_size=3, skip_failures=False)
        names = {0: "background", **masks.mask_targets}
        rest.evaluate_segmentations("diffup_masks", "truth", mask_targets=names).print_report(list(LABELS))


def made(folder: Path, photos: int) -> fo.Dataset:
    """A data set of photos with their true masks, of which only the first is shown to the model."""
    dataset = fo.Dataset()
    for seed in range(photos):
        image, truth = scene(seed)
        path = folder / f"{seed}.png"
        Image.fromarray(image).save(path)
        dataset.add_sample(fo.Sample(filepath=str(path), truth=fo.Segmentation(mask=truth)))
    dataset.mask_targets = {"truth": dict(enumerate(LABELS, start=1))}
    dataset.save()
    return dataset


def labels_of(sample: fo.Sample) -> np.ndarray:
    """The label map of a sample's detections, as `read_fiftyone` reads them back."""
    labels = np.zeros(sample["truth"].mask.shape, np.uint8)
    for label in {item.label for item in sample["diffup"].detections}:
        (mask,) = read_fiftyone(sample, label, "diffup").annotation
        labels[mask.mask.numpy() > 0.5] = LABELS.index(label) + 1
    return labels


if __name__ == "__main__":
    main()
