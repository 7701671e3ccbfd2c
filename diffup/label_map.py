"""Several classes in one image: a label map, and the rule for where they overlap."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diffup.errors import ImageError, PrototypesError
from diffup.formats.png import encode_label_png, voc_palette, write_label_png
from diffup.result import Segmentation, enlarge
from diffup.utils import pictures
from diffup.utils.fonts import legend_key

_EPS = 1e-6  # probabilities are kept this far from 0 and 1, so that their odds are finite


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Several classes in one query image.

    **The rule.** Every class is sought by itself, with a probability p and a threshold t of its own. Its score is its
    odds relative to the odds at its threshold, s = p / (1 - p) * (1 - t) / t, which is 1 where p = t; the background's
    score is 1. A pixel is of the class with the highest score, or background where no p is above its t. Of equal scores
    the class that comes first in the list wins. Scores divided by their sum are the probabilities; with the
    background's they add up to 1 at every pixel.

    So a pixel is background here exactly where it is in no class's own mask, and with equal thresholds the class with
    the highest p wins.

    The maps of the classes are kept at the decoder's size and enlarged when asked for, so that many classes in a large
    photo do not fill the memory.

    Attributes:
        image: (H, W, 3) uint8, the query as RGB, upright.
        labels: (H, W) uint8: 0 is the background, i + 1 the class `names[i]`.
        background: (H, W) float32 in [0, 1], probability of the background.
        names: names of the C classes.
        results: what was found of each class by itself.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    background: npt.NDArray[np.float32]
    names: tuple[str, ...]
    results: tuple[Segmentation, ...]

    @classmethod
    def of(cls, names: Sequence[str], results: Sequence[Segmentation]) -> LabelMap:
        """Apply the rule.

        Args:
            names: names of the classes.
            results: what was found of each class in the same query.
        """
        labels, total = merge(results)
        return cls(results[0].image, labels.numpy(), (1 / total).numpy(), tuple(names), tuple(results))

    def __repr__(self) -> str:
        height, width = self.labels.shape
        areas = self._areas()
        parts = ", ".join(f"{name} {area:.1%}" for name, area in zip(self.names, areas, strict=True))
        return f"LabelMap({width} x {height} pixels: {parts}; {self.results[0].backbone})"

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(C, H, W) in [0, 1], of each class; computed at every call."""
        background = torch.from_numpy(self.background)
        found = [scores(_probability(item), item.threshold) * background for item in self.results]
        return torch.stack(found).numpy()

    @property
    def quality(self) -> dict[str, float]:
        """The IoU that the decoder expects each class's own mask to have, in [0, 1]."""
        return {name: item.quality for name, item in zip(self.names, self.results, strict=True)}

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Colours of the labels, the background's black first."""
        return voc_palette(len(self.names) + 1)

    def __getitem__(self, name: str) -> Segmentation:
        """A class by itself, as if it had been sought alone; its mask may overlap with others.

        Raises:
            PrototypesError: there is no such class.
        """
        if name not in self.names:
            raise PrototypesError(f"there is no class {name!r}; the classes are {', '.join(map(repr, self.names))}")
        return dataclasses.replace(self.results[self.names.index(name)])  # what it enlarges goes with it

    def overlay(self, alpha: float = 0.45, legend: bool = True) -> Image.Image:
        """The query with each class tinted and outlined in its colour.

        Args:
            alpha: how much of the colours covers the image, from 0 (the outlines alone) to 1.
            legend: add a strip below that names the classes in the image, with their colours; a name that it cannot
                show has its number, see `legend`.

        Raises:
            ImageError: an alpha outside of its range.
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
        """Names that the overlay's legend shows by their labels alone, by these labels.

        No font at hand has their characters, or they look like another name.
        """
        return legend_key(self.names, pictures.legend_width(self.labels.shape[1]))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the labels as an indexed PNG file, whole or not at all; its pixel values are the labels.

        Args:
            path: a file name that ends in .png; its folder is made if needed, an older file is replaced.

        Returns:
            The path.

        Raises:
            FormatError: another file ending.
            StorageError: the file cannot be written.
        """
        return write_label_png(path, self.labels, self.palette)

    def to_png(self) -> bytes:
        """The content of the file that `save` writes."""
        return encode_label_png(self.labels, self.palette)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON.

        Returns:
            `width` and `height` in pixels; `backbone`; `classes`: for each class in order its `name`, `label`,
            `area_fraction` in the label map, `quality` and `threshold`.
        """
        height, width = self.labels.shape
        classes = [
            {
                "name": name,
                "label": index + 1,
                "area_fraction": area,
                "quality": item.quality,
                "threshold": item.threshold,
            }
            for index, (name, area, item) in enumerate(zip(self.names, self._areas(), self.results, strict=True))
        ]
        return {"width": width, "height": height, "backbone": self.results[0].backbone, "classes": classes}

    def _areas(self) -> list[float]:
        """The part of the image that each class has."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names) + 1)
        return [float(count) for count in counts[1:] / self.labels.size]


def to_result(results: Sequence[Segmentation], names: Sequence[str] | None) -> Segmentation | LabelMap:
    """The result of one query.

    Args:
        results: what was found of each class in it.
        names: names of the classes of a label map; None for a segmentation of the only class.
    """
    return results[0] if names is None else LabelMap.of(names, results)


def scores(probability: Tensor, threshold: float) -> Tensor:
    """Odds relative to those at the threshold: above 1 where the probability is above it. See `LabelMap`.

    Args:
        probability: of any shape, in [0, 1].
        threshold: in (0, 1).
    """
    clipped = probability.clamp(_EPS, 1 - _EPS)
    return clipped / (1 - clipped) * ((1 - threshold) / threshold)


def merge(results: Sequence[Segmentation]) -> tuple[Tensor, Tensor]:
    """The rule of `LabelMap`, one class after the other.

    Args:
        results: what was found of at most 255 classes in one query of H x W pixels.

    Returns:
        Labels (H, W) uint8, and the sum of all scores with the background's 1, (H, W) float32.
    """
    size = results[0].size
    labels, best, total = torch.zeros(size, dtype=torch.uint8), torch.zeros(size), torch.ones(size)
    for index, item in enumerate(results):
        probability = _probability(item)
        score = scores(probability, item.threshold)
        total += score
        wins = (probability > item.threshold) & (score > best)
        labels[wins] = index + 1
        best[wins] = score[wins]
    return labels, total


def _probability(result: Segmentation) -> Tensor:
    """(H, W) in [0, 1]; enlarged anew each time, so that many classes in a large photo do not fill the memory."""
    return enlarge(torch.from_numpy(result.maps[:1]), result.size)[0]
