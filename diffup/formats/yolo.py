"""Segmentation labels of YOLO: a text file per image, a line per object."""

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
    """Lines of a YOLO segmentation label file: `class x1 y1 x2 y2 ...`, coordinates as parts of width and height.

    Every connected part is an object of its own: YOLO has no object of several parts. A hole is cut out by a slit of no
    width (`diffup.formats.contours.polygons`); a program that also draws the outline marks the pixels along the slit.

    Args:
        labels: a label map (H, W) of integers, 0 being the background, or masks (H, W) of type bool.
        class_ids: YOLO's class number, from 0 on, of label i + 1 or of mask i.
        tolerance: how far, in pixels, outlines may be off; 0 is exact.

    Returns:
        One line for every connected part, none for an image without any: an empty file is YOLO's way to say so.

    Raises:
        FormatError: labels of another form, another number of class ids, or a negative tolerance.
    """
    lines = []
    for class_id, mask in zip(class_ids, as_masks(labels, class_ids, "labels", "class_ids"), strict=True):
        for polygon in polygons(mask, tolerance):
            relative = polygon / (mask.shape[1], mask.shape[0])
            lines.append(" ".join([str(int(class_id)), *(f"{value:.7g}" for value in relative.ravel())]))
    return lines
