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
    """A mask as `supervision.Detections`; see `diffup.result.Segmentation.to_supervision`.

    Args:
        mask: (H, W).
        confidence: of the mask, given to every part.
        class_id: number of the class.
        class_name: its name, or None.
        instances: a detection for every connected part.

    Raises:
        MissingPackageError: supervision is not installed, or scikit-image for parts.
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
