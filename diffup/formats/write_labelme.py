"""Writing LabelMe's JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.checks import as_masks
from diffup.formats.contours import polygons

_VERSION = "5.5.0"  # of LabelMe, whose format this is


def labelme_document(
    labels: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | Sequence[npt.NDArray[np.bool_]],
    names: Sequence[str],
    image_path: str,
    tolerance: float = 0.0,
) -> dict[str, Any]:
    """Make the content of an image's file, ready for `json.dumps`, which LabelMe and X-AnyLabeling open.

    Every connected component is a polygon, the one shape of an area that both programs can edit. It has no holes: a
    hole is connected to the outline by a slit of zero width (`diffup.formats.contours.polygons`).

    Args:
        labels: label map, (H, W) integers with 0 for the background; or masks, (H, W) bool each, which may overlap.
        names: name of each label (label i + 1 is `names[i]`) or of each mask.
        image_path: path of the image relative to the folder of the file.
        tolerance: greatest distance in pixels between polygon and exact outline; 0 is exact.

    Raises:
        FormatError: the labels have another form, there is another number of names or no name at all, or the tolerance
            is negative.
        MissingPackageError: scikit-image is not installed.
    """
    masks = as_masks(labels, names, "labels", "names")
    if not masks:
        raise FormatError("names: expected at least one, got none")
    shapes = [
        {
            "label": name,
            "points": polygon.tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for name, mask in zip(names, masks, strict=True)
        for polygon in polygons(mask, tolerance)
    ]
    height, width = masks[0].shape
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
