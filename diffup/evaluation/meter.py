"""The meter of few-shot segmentation: mIoU and FB-IoU from accumulated intersections and unions (HSNet's protocol)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Meter:
    """Accumulates intersections and unions over episodes; the IoU of a class is computed from their sums.

    Args:
        classes: ids of the scored classes. A class without an episode counts as 0, as in HSNet.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = tuple(classes)
        self.intersection = np.zeros((2, len(self.classes)), dtype=np.int64)
        self.union = np.zeros((2, len(self.classes)), dtype=np.int64)

    def add(self, class_id: int, intersection: int, union: int, pixels: int) -> None:
        """Add an episode by its pixel counts; those of the background follow from them.

        Args:
            class_id: id of the class, one of `classes`.
            intersection: number of pixels that are in both masks.
            union: number of pixels that are in at least one mask.
            pixels: number of all pixels that count.
        """
        column = self.classes.index(class_id)
        self.intersection[:, column] += (pixels - union, intersection)
        self.union[:, column] += (pixels - intersection, union)

    def class_iou(self) -> dict[int, float]:
        """Return the foreground IoU of each class by class id, in percent."""
        iou = self.intersection[1] / np.maximum(self.union[1], 1) * 100
        return dict(zip(self.classes, iou.tolist(), strict=True))

    def miou(self) -> float:
        """Return the mean of the class IoUs, in percent."""
        return float(np.mean(list(self.class_iou().values())))

    def fb_iou(self) -> float:
        """Return the mean of foreground and background IoU over all classes together, in percent."""
        return float((self.intersection.sum(axis=1) / np.maximum(self.union.sum(axis=1), 1)).mean() * 100)
