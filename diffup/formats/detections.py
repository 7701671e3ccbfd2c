"""Masks as detections of the supervision library."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.formats.contours import connected_components
from diffup.inputs.masks import bounding_box
from diffup.utils.optional import need


def to_detections(
    mask: npt.NDArray[np.bool_], confidence: float, class_id: int, class_name: str | None, instances: bool
) -> Any:
    """Convert a mask to `supervision.Detections`.

    Args:
        mask: (H, W) bool.
        confidence: score of the mask in [0, 1], such as `Segmentation.score`, given to every detection.
        class_id: number of the class.
        class_name: name of the class, or None.
        instances: make a detection of every connected component, instead of one of the whole mask.

    Returns:
        The detections; empty for an empty mask.

    Raises:
        MissingPackageError: supervision is not installed, or scikit-image for `instances`.
    """
    detections = need("supervision", "Detections", extra="supervision").Detections
    parts = (list(connected_components(mask)) if instances else [mask]) if mask.any() else []
    if not parts:
        return detections.empty()
    return detections(
        xyxy=np.array([bounding_box(part) for part in parts], dtype=np.float32),
        mask=np.stack(parts),
        confidence=np.full(len(parts), confidence, dtype=np.float32),
        class_id=np.full(len(parts), class_id),
        data={} if class_name is None else {"class_name": np.array([class_name] * len(parts))},
    )
