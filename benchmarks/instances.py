"""Separate objects of a class: `diffup.instances` against the connected parts of the mask, by count error and AP50.

The data set has masks of classes, not of objects. So there are two kinds of photos. In `apart` the objects are the
connected parts of the true mask, 2 to 10 of them in a photo; this favours connected parts, because objects that touch
are one object there. In `touching` 2 to 5 objects of one class are cut from their photos and pasted over another photo
of the split, each touching those before it. Supports are masks of `train` photos. Objects below 0.2 % of the photo do
not count. Each kind is scored with the masks of the model and with the true ones.

    python benchmarks/instances.py DATA --split test --photos 75 -o instances.json
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.measure import label, regionprops

from diffup.data.folder import LabelledFolder
from diffup.inputs.annotations import Mask
from diffup.inputs.images import to_bytes
from diffup.instances import SMALLEST, separate
from diffup.model import DiffUp
from diffup.result import Segmentation
from diffup.utils.files import write_text

Array = npt.NDArray[Any]
SEEDS = {"train": 7, "test": 8}
_LEAST_CLASS = 0.01  # least part of a photo that a class covers in it
_SINGLE, _SOLID = (0.015, 0.25), 0.6  # part of its photo that a pasted object covers, and least solidity
_PASTED, _OVERLAP = (0.03, 0.09), (0.005, 0.12)  # part of the new photo, and of the object that covers earlier ones
_TRIES = 200


@dataclass
class Photo:
    """A photo with several objects of a class: their numbers (0 elsewhere), what is not scored, and the result."""

    objects: Array
    ignored: Array
    result: Segmentation


@dataclass
class Scored:
    """A divided photo: error of the count, certainty and hit of every object that is found, number of true ones."""

    error: int
    found: list[tuple[float, bool]]
    total: int


class Photos:
    """Photos of a split, and supports from the train photos."""

    def __init__(self, data: LabelledFolder, split: str, model: DiffUp) -> None:
        self.data, self.model, self.random = data, model, random.Random(SEEDS[split])
        self.names = data.split(split)
        self.shown, self.supports = self._by_class(split), self._by_class("train")

    def _by_class(self, split: str) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in self.data.split(split):
            mask = self.data.mask(name)
            for c in np.unique(mask):
                if 0 < c < 255 and (mask == c).mean() > _LEAST_CLASS:
                    found.setdefault(int(c), []).append(name)
        return found

    def segment(self, image: Array, c: int, used: set[str]) -> Segmentation | None:
        """Segment a class from one support that is none of the used photos."""
        names = [name for name in self.supports.get(c, []) if name not in used]
        if not names:
            return None
        name = self.random.choice(names)
        return self.model.segment(image, self.data.image(name), Mask(self.data.mask(name) == c))

    def apart(self, count: int) -> list[Photo]:
        """Photos whose objects are the connected parts of the true mask."""
        pairs = []
        for c, names in self.shown.items():
            for name in names:
                mask = self.data.mask(name)
                parts = label(mask == c, connectivity=1)
                large = [part.label for part in regionprops(parts) if part.area >= SMALLEST * mask.size]
                if 2 <= len(large) <= 10:
                    objects = (np.searchsorted(large, parts) + 1) * np.isin(parts, large)
                    pairs.append((c, name, objects, (mask == 255) | ((parts > 0) & (objects == 0))))
        self.random.shuffle(pairs)
        return [
            Photo(objects, ignored, result)
            for c, name, objects, ignored in pairs[:count]
            if (result := self.segment(self.data.image(name), c, {name})) is not None
        ]

    def touching(self, count: int) -> list[Photo]:
        """Photos over which objects of one class are pasted, touching each other."""
        single = {c: found for c, names in self.shown.items() if (found := self._single(c, names))}
        classes = [c for c in single if len(self.supports.get(c, [])) >= 2]
        photos: list[Photo] = []
        while len(photos) < count:
            c, background = self.random.choice(classes), self.random.choice(self.names)
            if (self.data.mask(background) == c).any():
                continue
            canvas = to_bytes(self.data.image(background))
            objects, used = np.zeros(canvas.shape[:2], np.uint8), {background}
            wanted = self.random.randint(2, 5)
            pasted = all(self._paste(canvas, objects, single[c], used, number) for number in range(1, wanted + 1))
            if pasted and all(_whole(objects == number) for number in range(1, wanted + 1)):
                result = self.segment(canvas, c, used)
                if result is not None:
                    photos.append(Photo(objects, np.zeros_like(objects, bool), result))
        return photos

    def _single(self, c: int, names: list[str]) -> list[tuple[str, Array]]:
        """Photos that show one object of a class, and its mask."""
        found = []
        for name in names:
            mask = self.data.mask(name)
            parts = label(mask == c, connectivity=1)
            large = [part for part in regionprops(parts) if part.area >= SMALLEST * mask.size]
            if len(large) == 1 and _SINGLE[0] < large[0].area / mask.size < _SINGLE[1] and large[0].solidity > _SOLID:
                found.append((name, parts == large[0].label))
        return found

    def _paste(
        self, canvas: Array, objects: Array, single: list[tuple[str, Array]], used: set[str], number: int
    ) -> bool:
        """Paste an object in place; False if no place was found where it touches those before it."""
        name, mask = self.random.choice(single)
        used.add(name)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        scale = np.sqrt(self.random.uniform(*_PASTED) * objects.size / mask.sum())
        height, width = (max(8, int(side * scale)) for side in mask[crop].shape)
        if height >= objects.shape[0] or width >= objects.shape[1]:
            return False
        pixels = np.asarray(Image.fromarray(to_bytes(self.data.image(name))[crop]).resize((width, height)))
        shape = np.asarray(Image.fromarray(mask[crop]).resize((width, height)))
        if self.random.random() < 0.5:
            pixels, shape = pixels[:, ::-1], shape[:, ::-1]
        for _ in range(_TRIES):
            top = self.random.randint(0, objects.shape[0] - height)
            left = self.random.randint(0, objects.shape[1] - width)
            place = np.s_[top : top + height, left : left + width]
            covered = ((objects[place] > 0) & shape).sum() / shape.sum()
            if number == 1 or _OVERLAP[0] < covered < _OVERLAP[1]:
                canvas[place][shape], objects[place][shape] = pixels[shape], number
                return True
        return False


def _whole(mask: Array) -> bool:
    """Whether an object is visible and mostly one part."""
    return mask.mean() >= 0.01 and np.bincount(label(mask, connectivity=1).ravel())[1:].max() >= 0.9 * mask.sum()


def score(photo: Photo, divide: Callable[[Array, Array], Array], true_masks: bool) -> Scored:
    """Score the objects that a way of dividing finds in a photo."""
    result, numbers = photo.result, np.unique(photo.objects[photo.objects > 0])
    labels = divide(photo.objects > 0 if true_masks else result.mask, result.image)
    probability = (photo.objects > 0).astype(float) if true_masks else result.probability * result.score
    parts = []
    for number in np.flatnonzero(np.bincount(labels.ravel())[1:] >= SMALLEST * labels.size) + 1:
        part = labels == number
        if photo.ignored[part].mean() <= 0.5:
            parts.append((float(probability[part].mean()), part))
    found, free = [], set(numbers.tolist())
    for certainty, part in sorted(parts, key=lambda item: -item[0]):
        ious = {n: (part & (photo.objects == n)).sum() / (part | (photo.objects == n)).sum() for n in numbers}
        best = max(ious, key=lambda n: ious[n])
        hit = ious[best] >= 0.5 and best in free
        free -= {best} if hit else set()
        found.append((certainty, hit))
    return Scored(abs(len(parts) - len(numbers)), found, len(numbers))


def figures(photos: Sequence[Scored]) -> Array:
    """Mean count error of some photos, and AP50 of all objects in them."""
    found = [item for photo in photos for item in photo.found]
    ap = average_precision(found, sum(photo.total for photo in photos))
    return np.array([np.mean([photo.error for photo in photos]), ap])


def compare(parts: Sequence[Scored], instances: Sequence[Scored], draws: int = 1000) -> dict[str, Any]:
    """Figures of both ways, and the change with a 95 % interval from a bootstrap over the photos."""
    before, after = figures(parts), figures(instances)
    chosen = np.random.default_rng(0).integers(0, len(parts), (draws, len(parts)))
    drawn = [figures([instances[i] for i in row]) - figures([parts[i] for i in row]) for row in chosen]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    table: dict[str, Any] = {"photos": len(parts)}
    for index, name in enumerate(("count error", "AP50")):
        change = [after[index] - before[index], low[index], high[index]]
        table[name] = {"parts": before[index], "instances": after[index], "change": change}
    return table


def average_precision(found: list[tuple[float, bool]], total: int) -> float:
    """COCO's average precision in percent: interpolated at 101 recalls."""
    hits = np.cumsum([hit for _, hit in sorted(found, key=lambda item: -item[0])])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(hits / total, np.linspace(0, 1, 101))
    return float(100 * np.mean([precision[i] if i < len(precision) else 0.0 for i in at]))


def connected_parts(mask: Array, image: Array) -> Array:
    """Number the connected parts of a mask."""
    numbers: Array = label(mask, connectivity=1)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="labelled folder, such as coco_mini")
    parser.add_argument("--split", choices=SEEDS, default="test")
    parser.add_argument("--photos", type=int, default=75, help="number of photos of each kind")
    parser.add_argument("-o", "--output", help="JSON file for the figures")
    args = parser.parse_args()
    photos = Photos(LabelledFolder.open(args.data), args.split, DiffUp.from_pretrained())
    table: dict[str, Any] = {}
    for kind, chosen in (("apart", photos.apart(args.photos)), ("touching", photos.touching(args.photos))):
        for true_masks in (False, True):
            scored = [[score(photo, divide, true_masks) for photo in chosen] for divide in (connected_parts, separate)]
            name = f"{kind}, {'true' if true_masks else 'own'} masks"
            table[name] = compare(*scored)
            print(name, json.dumps(table[name]), flush=True)
    if args.output:
        write_text(args.output, json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
