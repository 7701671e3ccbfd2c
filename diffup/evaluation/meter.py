"""The few-shot segmentation meter: mIoU and FB-IoU from accumulated intersections and unions (HSNet's protocol)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Meter:
    """Accumulates episodes; an IoU is taken once, of the sums over all episodes of a class.

    Args:
        classes: class ids that are scored. One that never occurs counts as 0, as in HSNet.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = tuple(classes)
        self.intersection = np.zeros((2, len(self.classes)), dtype=np.int64)
        self.union = np.zeros((2, len(self.classes)), dtype=np.int64)

    def add(self, class_id: int, intersection: int, union: int, pixels: int) -> None:
        """Add an episode by its counts; those of the background follow from them.

        Args:
            class_id: its class, one of `classes`.
            intersection: pixels that are in both masks.
            union: pixels that are in either.
            pixels: all pixels that count.
        """
        column = self.classes.index(class_id)
        self.intersection[:, column] += (pixels - union, intersection)
        self.union[:, column] += (pixels - intersection, union)

    def class_iou(self) -> dict[int, float]:
        """Foreground IoU of each class, percent."""
        iou = self.intersection[1] / np.maximum(self.union[1], 1) * 100
        return dict(zip(self.classes, iou.tolist(), strict=True))

    def miou(self) -> float:
        """Mean of the class IoUs, percent."""
        return float(np.mean(list(self.class_iou().values())))

    def fb_iou(self) -> float:
        """Mean of foreground and background IoU over all classes together, percent."""
        return float((self.intersection.sum(axis=1) / np.maximum(self.union.sum(axis=1), 1)).mean() * 100)
