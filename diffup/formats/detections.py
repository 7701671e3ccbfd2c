"""Masks as detections of the supervision library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.inputs.masks import bounding_box
from diffup.utils.optional import need


def to_detections(
    masks: Sequence[npt.NDArray[np.bool_]],
    confidences: Sequence[float],
    class_ids: Sequence[int],
    class_names: Sequence[str] | None,
) -> Any:
    """Convert masks to `supervision.Detections`.

    Args:
        masks: (H, W) bool each; empty ones are left out.
        confidences: score of each mask in [0, 1].
        class_ids: number of each mask's class.
        class_names: name of each mask's class, or None.

    Returns:
        The detections; empty if all masks are.

    Raises:
        MissingPackageError: supervision is not installed.
    """
    detections = need("supervision", "Detections", extra="supervision").Detections
    found = [index for index, mask in enumerate(masks) if mask.any()]
    if not found:
        return detections.empty()
    return detections(
        xyxy=np.array([bounding_box(masks[index]) for index in found], dtype=np.float32),
        mask=np.stack([masks[index] for index in found]),
        confidence=np.array([confidences[index] for index in found], dtype=np.float32),
        class_id=np.array([class_ids[index] for index in found]),
        data={} if class_names is None else {"class_name": np.array([class_names[index] for index in found])},
    )
