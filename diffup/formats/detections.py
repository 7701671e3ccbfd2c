"""Masks as detections of the supervision library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.inputs.masks import bounding_box
from diffup.utils.optional import need


def to_detections(
    masks: Sequence[npt.NDArray[np.bool_]], confidences: Sequence[float], class_id: int, class_name: str | None
) -> Any:
    """Convert masks of one class to `supervision.Detections`.

    Args:
        masks: (H, W) bool each; empty ones are left out.
        confidences: score of each mask in [0, 1].
        class_id: number of the class.
        class_name: name of the class, or None.

    Returns:
        The detections; empty for an empty mask.

    Raises:
        MissingPackageError: supervision is not installed.
    """
    detections = need("supervision", "Detections", extra="supervision").Detections
    found = [(mask, score) for mask, score in zip(masks, confidences, strict=True) if mask.any()]
    if not found:
        return detections.empty()
    return detections(
        xyxy=np.array([bounding_box(mask) for mask, _ in found], dtype=np.float32),
        mask=np.stack([mask for mask, _ in found]),
        confidence=np.array([score for _, score in found], dtype=np.float32),
        class_id=np.full(len(found), class_id),
        data={} if class_name is None else {"class_name": np.array([class_name] * len(found))},
    )
