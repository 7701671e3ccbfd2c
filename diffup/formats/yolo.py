"""YOLO's segmentation labels: a text file per image, a line per object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diffup.formats.checks import as_masks
from diffup.formats.contours import polygons


def yolo_lines(
    labels: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | Sequence[npt.NDArray[np.bool_]],
    class_ids: Sequence[int],
    tolerance: float = 0.0,
) -> list[str]:
    """Make the lines of a YOLO segmentation label file: `class x1 y1 x2 y2 ...`, as fractions of width and height.

    Every connected component is an object of its own, since YOLO has no objects of several parts. A hole is connected
    to the outline by a slit of zero width (`diffup.formats.contours.polygons`); a program that also draws the outline
    marks the pixels along the slit.

    Args:
        labels: label map, (H, W) integers with 0 for the background; or masks, (H, W) bool each.
        class_ids: YOLO's class number, from 0, of each label (label i + 1 has `class_ids[i]`) or of each mask.
        tolerance: greatest distance in pixels between polygon and exact outline; 0 is exact.

    Returns:
        One line for every connected component; none for an image without objects, whose label file is empty.

    Raises:
        FormatError: the labels have another form, there is another number of class ids, or the tolerance is negative.
        MissingPackageError: scikit-image is not installed.
    """
    lines = []
    for class_id, mask in zip(class_ids, as_masks(labels, class_ids, "labels", "class_ids"), strict=True):
        for polygon in polygons(mask, tolerance):
            relative = polygon / (mask.shape[1], mask.shape[0])
            lines.append(" ".join([str(int(class_id)), *(f"{value:.7g}" for value in relative.ravel())]))
    return lines
