"""The objects of one class in a mask: its connected parts, and touching objects that a waist or an edge divides.

A watershed (Vincent and Soille, 1991) of the distance to the mask's border has a basin for every bulge; edges of the
image lower the distance. Basins belong to one object if the pass between them is high, relative to the lower of their
two summits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.errors import ConfigError
from diffup.utils.optional import need

Labels = npt.NDArray[np.int32]
Map = npt.NDArray[np.float32]

SIDE = 192
"""Longer side in pixels of the reduced size at which touching objects are told apart."""

PASS = 0.4
"""Height of a pass, relative to the lower of its two summits, above which they are of one object."""

EDGE = 0.6
"""Part by which the strongest edges of the image lower the distance to the border."""

SMALLEST = 0.002
"""Least part of the image that counts as an object of its own, and that a touching object is cut into."""

_PURPOSE = "telling objects apart"
_STRONG = 0.95  # quantile of the gradients in a mask that counts as a strongest edge
_SMOOTHING = 1.0  # standard deviation in pixels of the reduced size, of distances and of the image


@dataclass(frozen=True, eq=False)
class Instance:
    """One object of a class.

    Attributes:
        labels: (H, W) int32, the numbers of all objects of the class in the query, from 1; 0 elsewhere.
        number: number of this object.
        box: bounding box (x0, y0, x1, y1) in pixels, in the coordinates of `Box`.
        score: score of the class times the mean probability in the object, in [0, 1].
    """

    labels: Labels
    number: int
    box: tuple[int, int, int, int]
    score: float

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, mask of the object; computed at every access."""
        return np.asarray(self.labels == self.number)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())


def find_instances(
    mask: npt.NDArray[np.bool_], image: npt.NDArray[np.uint8], probability: Map, score: float, smallest: float
) -> list[Instance]:
    """Find the objects in the mask of a class.

    Args:
        mask: (H, W) bool.
        image: (H, W, 3) uint8.
        probability: (H, W) in [0, 1], probability of the class.
        score: score of the class in [0, 1].
        smallest: least part of the image, in [0, 1], that an object has; smaller ones are left out.

    Returns:
        The objects, the one with the greatest score first.

    Raises:
        ConfigError: `smallest` is outside of [0, 1].
        MissingPackageError: scikit-image is not installed.
    """
    if not 0 <= smallest <= 1:
        raise ConfigError(f"smallest={smallest}: it must be 0 to 1, a part of the image")
    if not mask.any():
        return []
    labels = separate(mask, image)
    areas = np.bincount(labels.ravel())
    means = np.bincount(labels.ravel(), weights=probability.ravel()) / np.maximum(areas, 1)
    boxes = need("scipy.ndimage", _PURPOSE).find_objects(labels)
    found = [
        Instance(labels, number, (columns.start, rows.start, columns.stop, rows.stop), score * float(means[number]))
        for number, (rows, columns) in enumerate(boxes, start=1)
        if areas[number] >= smallest * mask.size
    ]
    return sorted(found, key=lambda item: -item.score)


def separate(mask: npt.NDArray[np.bool_], image: npt.NDArray[np.uint8]) -> Labels:
    """Number the objects in a mask.

    Every pixel of the mask is of one object, and every object is connected (by sides of pixels).

    Args:
        mask: (H, W) bool.
        image: (H, W, 3) uint8.

    Returns:
        (H, W) int32, numbers from 1 without gaps, 0 outside of the mask.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    measure, ndimage = need("skimage.measure", _PURPOSE), need("scipy.ndimage", _PURPOSE)
    scale = min(1.0, SIDE / max(mask.shape))
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    small = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) > 0.5
    objects = _objects(small, np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)))
    if objects.any():  # each position takes the number of the nearest object, for the mask reaches beyond the small one
        nearest = ndimage.distance_transform_edt(objects == 0, return_distances=False, return_indices=True)
        objects = objects[tuple(nearest)]
    enlarged = np.asarray(Image.fromarray(objects + 1).resize(mask.shape[::-1], Image.Resampling.NEAREST))
    labels: Labels = measure.label(np.where(mask, enlarged, 0), background=0, connectivity=1).astype(np.int32)
    return _join_slivers(labels)


def _objects(mask: npt.NDArray[np.bool_], image: npt.NDArray[np.uint8]) -> Labels:
    """Number the objects in a small mask; holes are of the object around them."""
    ndimage = need("scipy.ndimage", _PURPOSE)
    filled = ndimage.binary_fill_holes(mask)
    if not filled.any():
        return np.zeros(mask.shape, dtype=np.int32)
    distance = ndimage.distance_transform_edt(np.pad(filled, 1))[1:-1, 1:-1]
    height = ndimage.gaussian_filter(distance, _SMOOTHING) * filled * (1 - EDGE * _edges(image, filled))
    basins: Labels = need("skimage.segmentation", _PURPOSE).watershed(-height, mask=filled, connectivity=1)
    return _merge(basins.astype(np.int32), height)


def _edges(image: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Strength of the edges at every position in [0, 1], relative to the strongest in a mask: (H, W, 3) -> (H, W)."""
    ndimage, filters = need("scipy.ndimage", _PURPOSE), need("skimage.filters", _PURPOSE)
    channels = [ndimage.gaussian_filter(image[..., index] / 255, _SMOOTHING) for index in range(3)]
    gradient = np.max([filters.sobel(channel) for channel in channels], axis=0)
    strongest = np.quantile(gradient[inside], _STRONG)
    return np.asarray(np.clip(gradient / max(strongest, 1e-6), 0, 1))


def _merge(basins: Labels, height: npt.NDArray[np.float64]) -> Labels:
    """Merge neighbouring basins, highest pass first, whose pass is above `PASS` times the lower of their summits."""
    count = int(basins.max())
    summits = need("scipy.ndimage", _PURPOSE).maximum(height, basins, np.arange(count + 1))
    first, second, side = _borders(basins)
    pairs, place = np.unique(first.astype(np.int64) * (count + 1) + second, return_inverse=True)
    passes = np.zeros(len(pairs))
    np.maximum.at(passes, place, np.minimum(height.ravel()[side[0]], height.ravel()[side[1]]))
    owner = list(range(count + 1))

    def find(number: int) -> int:
        while owner[number] != number:
            number = owner[number]
        return number

    for index in np.argsort(-passes, kind="stable"):
        one, other = (find(int(number)) for number in divmod(pairs[index], count + 1))
        low, high = sorted((one, other), key=lambda number: float(summits[number]))
        if one != other and passes[index] > PASS * summits[low]:
            owner[low] = high
    return np.array([find(number) for number in range(count + 1)], dtype=np.int32)[basins]


def _join_slivers(labels: Labels) -> Labels:
    """Give parts below `SMALLEST` that touch other objects to the largest of these, and number the objects anew.

    The line between two objects has steps, since it is drawn at the reduced size, and may cut off a few pixels.
    """
    areas = np.bincount(labels.ravel())
    first, second, _ = _borders(labels)
    owner = np.arange(len(areas))
    least = SMALLEST * labels.size
    for part, neighbour in sorted({*zip(first.tolist(), second.tolist(), strict=True)}):
        for small, large in ((part, neighbour), (neighbour, part)):
            if areas[small] < least and areas[large] > max(areas[small], areas[owner[small]] * (owner[small] != small)):
                owner[small] = large
    while (owner[owner] != owner).any():
        owner = owner[owner]
    return np.unique(owner, return_inverse=True)[1].astype(np.int32)[labels]


def _borders(labels: Labels) -> tuple[Labels, Labels, tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Pairs of neighbouring pixels of two objects: the lower number, the greater number, and both pixels' indices."""
    index = np.arange(labels.size).reshape(labels.shape)
    here = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    there = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    one, other = labels.ravel()[here], labels.ravel()[there]
    apart = (one != other) & (one > 0) & (other > 0)
    one, other = one[apart], other[apart]
    return np.minimum(one, other), np.maximum(one, other), (here[apart], there[apart])
