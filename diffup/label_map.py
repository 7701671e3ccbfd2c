"""Label maps: several classes in one image, and the rule that decides where their masks overlap."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.correct import Correction
from diffup.errors import ImageError, PrototypesError
from diffup.formats.detections import to_detections
from diffup.formats.png import encode_label_png, write_label_png
from diffup.instances import SMALLEST, Instance, find_instances
from diffup.prototypes import check_count
from diffup.refine import Guide
from diffup.result import Segmentation, enlarge, odds_over
from diffup.utils import pictures
from diffup.utils.fonts import legend_key

LEAST_KEPT = 0.2
"""Share of its own mask that a class has to keep beside the other classes (`docs/experiments.md`)."""


class Marked(NamedTuple):
    """What is marked of a class: all of it, or one object.

    Attributes:
        label: label of the class, 1 for the first.
        mask: (H, W) bool, not empty.
        score: score of the mask in [0, 1].
    """

    label: int
    mask: npt.NDArray[np.bool_]
    score: float


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The label map of several classes in one query image.

    **The rule for overlaps.** Each class is segmented separately and has its own probability p and threshold t. Its
    score is its odds relative to the odds at its threshold, p / (1 - p) * (1 - t) / t, times its presence in the query;
    the background's score is 1. Of the classes whose p is above their t the one with the highest score gets the pixel,
    so that a class that is hardly there takes little from one that is; if there is none, the pixel is background. If
    scores are equal, the class that comes first in the list wins. Scores divided by their sum are the probabilities;
    with the background's they add up to 1 at every pixel.

    A class that is absent from the query (`Segmentation.present`) has the score 0: it takes no pixel from the others.
    So has a class that is overruled: one that would keep less than a fifth of its own mask (`LEAST_KEPT`), since what
    it has found is more likely the others'. One after another is taken out, that which keeps the smallest share first,
    and the shares of the rest are counted anew, at the decoder's size before refinement. A class is never overruled if
    a person marked it (`correct`) or its `min_presence` is 0, which says that it is there.

    So a pixel is background exactly where it is in the own mask of no class that takes part, and with equal thresholds
    and presences the class with the highest p wins.

    The maps of the classes are stored at the decoder's size, and refined or enlarged on request, which saves memory
    with many classes in a large photo.

    Attributes:
        image: (H, W, 3) uint8, the query as RGB, upright.
        labels: (H, W) uint8, 0 for the background, i + 1 for the class `names[i]`.
        background: (H, W) float32 in [0, 1], probability of the background.
        names: names of the C classes.
        results: the separate result of each class.
        overruled: names of the classes that are present and overruled.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    background: npt.NDArray[np.float32]
    names: tuple[str, ...]
    results: tuple[Segmentation, ...]
    overruled: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], results: Sequence[Segmentation]) -> LabelMap:
        """Merge the results of several classes into a label map.

        Args:
            names: names of the C classes.
            results: the result of each class in the same query.

        Raises:
            PrototypesError: there are more than 255 classes.
        """
        check_count(len(names), "names")
        part = take_part(results)
        labels, total = merge(results, part)
        overruled = tuple(
            name for name, item, some in zip(names, results, part, strict=True) if item.present and not some
        )
        return cls(results[0].image, labels.numpy(), (1 / total).numpy(), tuple(names), tuple(results), overruled)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        areas = self._areas()
        parts = ", ".join(f"{name} {area:.1%}" for name, area in zip(self.names, areas, strict=True))
        return f"LabelMap({width} x {height} pixels: {parts}; {self.results[0].backbone})"

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(C, H, W) float32 in [0, 1], probability of each class; computed at every access."""
        background = torch.from_numpy(self.background)
        found = []
        for name, item, probability in zip(self.names, self.results, _probabilities(self.results), strict=True):
            found.append(_claim(item, probability) * (background * (name not in self.overruled)))
        return torch.stack(found).numpy()

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(C, H, W) bool, each class's own mask, which may overlap with those of others; computed at every access.

        A class that is overruled has its own mask all the same; one that is absent has none.
        """
        maps = zip(self.results, _probabilities(self.results), strict=True)
        return np.stack([(probability > item.threshold).numpy() & item.present for item, probability in maps])

    @property
    def quality(self) -> dict[str, float]:
        """Expected IoU of each class's own mask if the class is there, in [0, 1], by class name."""
        return {name: item.quality for name, item in zip(self.names, self.results, strict=True)}

    @property
    def presence(self) -> dict[str, float]:
        """Probability that the query shows each class, in [0, 1], by class name."""
        return {name: item.presence for name, item in zip(self.names, self.results, strict=True)}

    @property
    def score(self) -> dict[str, float]:
        """Probability that each class's own mask is right, in [0, 1], by class name (`Segmentation.score`)."""
        return {name: item.score for name, item in zip(self.names, self.results, strict=True)}

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """RGB colours of the labels, 0 to 255, in the order of the labels; the first is the background's black."""
        return [(0, 0, 0), *pictures.class_colours(len(self.names))]

    def __getitem__(self, name: str) -> Segmentation:
        """The result of one class as if it had been segmented alone; its mask may overlap with those of others.

        Args:
            name: name of the class.

        Raises:
            PrototypesError: there is no such class.
        """
        if name not in self.names:
            raise PrototypesError(f"there is no class {name!r}; the classes are {', '.join(map(repr, self.names))}")
        return dataclasses.replace(self.results[self.names.index(name)])  # a copy: its enlarged maps are freed with it

    def correct(self, name: str, *corrections: Correction) -> LabelMap:
        """Correct the mask of one class by what is marked on the query (`Segmentation.correct`).

        A pixel that is marked as the class is taken from the others.

        Args:
            name: name of the class.
            *corrections: `Points`, `Scribble` and `Box` with coordinates of the query, one or more.

        Returns:
            A new label map.

        Raises:
            PrototypesError: there is no such class.
            AnnotationError: a correction is of another kind, leaves the query, or marks nothing.
            ConfigError: the results keep no features of the query, as those of `segment_many`.
        """
        better = self[name].correct(*corrections)
        results = [better if other == name else item for other, item in zip(self.names, self.results, strict=True)]
        return LabelMap.of(self.names, results)

    def overlay(self, alpha: float = 0.45, legend: bool = True) -> Image.Image:
        """Draw the query with each class tinted and outlined in its colour.

        Args:
            alpha: opacity of the tint, from 0 (outlines only) to 1.
            legend: whether to add a strip below the image with names and colours of the classes in it. A name that no
                font can show is replaced by its label, which the attribute `legend` resolves.

        Raises:
            ImageError: `alpha` is out of range.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ImageError(f"alpha: expected a number from 0 to 1, got {alpha}.")
        picture = self.image
        present = [label for label in np.unique(self.labels) if label]
        for label in present:
            picture = pictures.tint(picture, self.labels == label, self.palette[label], alpha)
        if not legend:
            return Image.fromarray(picture)
        entries = [(self.names[label - 1], self.palette[label]) for label in present]
        return pictures.add_legend(picture, entries, self.names)

    @property
    def legend(self) -> dict[int, str]:
        """Class names that the overlay's legend replaces by their labels, by label.

        No available font has their characters, or they look the same as another name.
        """
        return legend_key(self.names, pictures.legend_width(self.labels.shape[1]))

    def instances(self, overlap: bool = False, smallest: float = SMALLEST) -> Iterator[tuple[int, Instance]]:
        """Iterate over the objects of all classes (`Segmentation.instances`), class by class.

        Args:
            overlap: whether to take each class's own mask, instead of its pixels in the label map.
            smallest: least part of the image, in [0, 1], that an object has; smaller ones are left out.

        Returns:
            Iterator of pairs of a label and an object.

        Raises:
            ConfigError: `smallest` is outside of [0, 1].
            MissingPackageError: scikit-image is not installed (extra `formats`).
        """
        maps = zip(self.results, _probabilities(self.results), strict=True)
        for label, (item, probability) in enumerate(maps, start=1):
            own = (probability > item.threshold).numpy() & item.present if overlap else self.labels == label
            for found in find_instances(own, self.image, probability.numpy(), item.score, smallest):
                yield label, found

    def marked(self, *, instances: bool = False, overlap: bool = False) -> Iterator[Marked]:
        """Iterate over the masks that are not empty, in the order of the classes.

        Args:
            instances: whether to yield every object (`instances`) with its own score, instead of each class as a whole.
            overlap: whether to take each class's own mask, instead of its pixels in the label map.

        Returns:
            Iterator of a label, a mask and a score each.

        Raises:
            MissingPackageError: scikit-image, which `instances` needs, is not installed
                (extra `formats`).
        """
        if instances:
            for label, found in self.instances(overlap):
                yield Marked(label, found.mask, found.score)
            return
        own = self.masks if overlap else None
        for label, item in enumerate(self.results, start=1):
            mask = self.labels == label if own is None else own[label - 1]
            if mask.any():
                yield Marked(label, mask, item.score)

    def to_supervision(self, *, instances: bool = False, overlap: bool = False) -> Any:
        """Return the masks as `supervision.Detections`.

        Args:
            instances: whether to make a detection of every object (`instances`) with its own score, instead of one of
                each class.
            overlap: whether to take each class's own mask, instead of its pixels in the label map.

        Returns:
            Detections with boxes, masks, `class_id` (0 for the first class), the name in `data["class_name"]` and, as
            `confidence`, the score; none for an absent class.

        Raises:
            MissingPackageError: supervision is not installed (extra `supervision`), or scikit-image,
                which `instances` needs.
        """
        found = list(self.marked(instances=instances, overlap=overlap))
        return to_detections(
            [item.mask for item in found],
            [item.score for item in found],
            [item.label - 1 for item in found],
            [self.names[item.label - 1] for item in found],
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the labels as an indexed PNG file whose pixel values are the labels. A partial file is never left.

        Args:
            path: path of the file, ending in .png; its folder is created if needed, an older file is replaced.

        Returns:
            The path of the file.

        Raises:
            FormatError: the path has another ending.
            StorageError: the file cannot be written.
        """
        return write_label_png(path, self.labels, self.palette)

    def to_png(self) -> bytes:
        """Encode the labels as an indexed PNG: the bytes of the file that `save` writes."""
        return encode_label_png(self.labels, self.palette)

    def summary(self) -> dict[str, Any]:
        """Summarise the result in numbers that can be written as JSON.

        Returns:
            `width` and `height` in pixels; `backbone`, name of the encoder; `classes`, for each class in order its
            `name`, `label`, `area_fraction` (share of the image, in [0, 1]), `presence`, `present`, `overruled`,
            `quality`, `score` (`Segmentation.summary`) and `threshold`.
        """
        height, width = self.labels.shape
        classes = [
            {
                "name": name,
                "label": index + 1,
                "area_fraction": area,
                "presence": item.presence,
                "present": item.present,
                "overruled": name in self.overruled,
                "quality": item.quality,
                "score": item.score,
                "threshold": item.threshold,
            }
            for index, (name, area, item) in enumerate(zip(self.names, self._areas(), self.results, strict=True))
        ]
        return {"width": width, "height": height, "backbone": self.results[0].backbone, "classes": classes}

    def _areas(self) -> list[float]:
        """Share of the image that each class covers, in [0, 1]."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names) + 1)
        return [float(count) for count in counts[1:] / self.labels.size]


def to_result(results: Sequence[Segmentation], names: Sequence[str] | None) -> Segmentation | LabelMap:
    """Return a query's results as a `LabelMap`, or as a `Segmentation` if a single class was asked for.

    Args:
        results: the result of each class.
        names: names of the classes for a label map; None for the segmentation of the only class.
    """
    return results[0] if names is None else LabelMap.of(names, results)


def take_part(results: Sequence[Segmentation]) -> list[bool]:
    """Decide which classes take part in a label map: those that are present and not overruled (`LabelMap`).

    It is decided at the decoder's resolution before refinement, where the maps of all classes fit in memory.

    Args:
        results: the results of C classes in the same query.

    Returns:
        Whether each class takes part.
    """
    size = (results[0].maps.shape[1], results[0].maps.shape[2])
    maps = torch.stack([_coarse(item, size) for item in results]).flatten(1)
    own = torch.stack([row > item.threshold for row, item in zip(maps, results, strict=True)])
    claims = own * torch.stack([_claim(item, row) for row, item in zip(maps, results, strict=True)])
    part = torch.tensor([item.present for item in results])
    judged = torch.tensor([item.min_presence > 0 and not _is_marked(item) for item in results])
    while True:
        best, winner = (claims * part[:, None]).max(dim=0)
        counts = torch.bincount(winner[best > 0], minlength=len(results))
        kept = torch.where(part & judged & own.any(dim=1), counts / own.sum(dim=1).clamp_min(1), 1.0)
        if kept.min() >= LEAST_KEPT:
            return [bool(some) for some in part]
        part[kept.argmin()] = False


def _coarse(item: Segmentation, size: tuple[int, int]) -> Tensor:
    """Probability of a class before refinement, corrected if it was, at the given size."""
    state = item.corrected
    return enlarge(torch.from_numpy(item.maps[:1]) if state is None else state.logits[None].sigmoid(), size)[0]


def _is_marked(item: Segmentation) -> bool:
    """Whether a person marked something as the class."""
    return item.corrected is not None and bool((item.corrected.seeds.label > 0).any())


def merge(results: Sequence[Segmentation], part: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Merge the results of several classes by the rule that `LabelMap` describes.

    Args:
        results: the results of at most 255 classes in the same query of H x W pixels.
        part: whether each class takes part.

    Returns:
        Labels (H, W) uint8, and the sum of all scores, the background's 1 included, (H, W) float32.
    """
    size = results[0].size
    labels, best, total = torch.zeros(size, dtype=torch.uint8), torch.zeros(size), torch.ones(size)
    there = [(label, item) for label, (item, some) in enumerate(zip(results, part, strict=True), start=1) if some]
    for (label, item), probability in zip(there, _probabilities([item for _, item in there]), strict=True):
        score = _claim(item, probability)
        total += score
        wins = (probability > item.threshold) & (score > best)
        labels[wins] = label
        best[wins] = score[wins]
    return labels, total


def _claim(item: Segmentation, probability: Tensor) -> Tensor:
    """Score of a class by the rule that `LabelMap` describes: 0 everywhere if it is absent."""
    return odds_over(probability, item.threshold) * (item.presence * item.present)


def _probabilities(results: Sequence[Segmentation]) -> Iterator[Tensor]:
    """(H, W) in [0, 1] of each class, one at a time, so that only one is held at full size; they share a guide."""
    guide = Guide.of(results[0].image) if any(item.refine for item in results) else None
    for item in results:
        yield item.full_probability(guide)
