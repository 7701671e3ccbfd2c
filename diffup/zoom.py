"""A second look at where the object was found: which crops of the query to look at, and how to merge what they show.

The decoder's masks have 64 positions a side whatever the image's size, so one pass over a large photo loses what is
small or thin. A crop around the object brings it to the decoder larger.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Crop: TypeAlias = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in whole pixels: left, top, right and bottom edge."""

MARGIN = 0.25
"""Context around an object's bounding box on each side, as a part of the box's longer side."""

MIN_SIDE = 0.25
"""Shortest side of a crop, as a part of the image's shorter side: an encoder needs surroundings to see what is what."""

MAX_AREA = 0.5
"""Largest part of the image that a crop is worth: beyond that it shows little that the first pass has not seen."""

SURE = 0.5
"""Part of the highest probability above which a position counts as found: thresholds on masks are lower."""

MAX_CROPS = 2
"""Crops of one image at most, each of which costs a run of the encoder and the decoder."""

FEATHER = 0.15
"""Width of the band along a crop's edges in which the first pass takes over, as a part of the crop's side."""


def choose_crops(
    probability: Tensor,
    size: tuple[int, int],
    threshold: float,
    margin: float = MARGIN,
    max_crops: int = MAX_CROPS,
) -> list[Crop]:
    """Crops around what the first pass is surest of: a square around each connected group of such positions.

    Args:
        probability: (h, w) in [0, 1], of the first pass.
        size: (height, width) of the image in pixels.
        threshold: a position counts if it lies above the threshold and above `SURE` of the highest probability.
        margin: see `MARGIN`.
        max_crops: see `MAX_CROPS`.

    Returns:
        Crops, the group with the most probability first. A group that lies within an earlier crop has none of its own,
        and neither has one whose crop would be larger than `MAX_AREA`; crops may overlap.
    """
    values = probability.detach().cpu().numpy()
    level = max(threshold, SURE * float(values.max()))
    crops: list[Crop] = []
    for box in _boxes(values, level, size):
        crop = _square(box, size, margin)
        within = any(c[0] <= box[0] and c[1] <= box[1] and box[2] <= c[2] and box[3] <= c[3] for c in crops)
        if not within and (crop[2] - crop[0]) * (crop[3] - crop[1]) <= MAX_AREA * size[0] * size[1]:
            crops.append(crop)
    return crops[:max_crops]


def merge_crop(maps: Tensor, crop: Crop, seen: Tensor) -> None:
    """Blend what a crop shows into the maps of the image, in place and without a seam.

    Within the crop the maps become the crop's; towards its edges the crop's share falls to zero, but for edges that are
    the image's own.

    Args:
        maps: (M, H, W), of the image; changed.
        crop: within the image.
        seen: (M, h, w), of the crop, of any resolution; it is enlarged bilinearly.
    """
    x0, y0, x1, y1 = crop
    height, width = maps.shape[-2:]
    columns = _ramp(x1 - x0, x0 == 0, x1 == width)
    rows = _ramp(y1 - y0, y0 == 0, y1 == height)
    share = (rows[:, None] * columns).to(maps)
    for part, single in zip(maps[:, y0:y1, x0:x1], seen, strict=True):  # one at a time: crops of photos are large
        enlarged = F.interpolate(single[None, None].to(maps), part.shape, mode="bilinear", align_corners=False)[0, 0]
        part.lerp_(enlarged, share)


def _boxes(values: npt.NDArray[np.float32], level: float, size: tuple[int, int]) -> list[Crop]:
    """Bounding boxes, in pixels, of connected positions (eight neighbours) above a level, by falling sum of values."""
    scale_y, scale_x = size[0] / values.shape[0], size[1] / values.shape[1]
    left = {(int(row), int(column)) for row, column in np.argwhere(values > level)}
    found: list[tuple[float, Crop]] = []
    while left:
        stack, members = [min(left)], []
        left.remove(stack[0])
        while stack:
            row, column = stack.pop()
            members.append((row, column))
            near = {(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        rows, columns = np.array(members).T
        x0, x1 = int(columns.min() * scale_x), int(np.ceil((columns.max() + 1) * scale_x))
        y0, y1 = int(rows.min() * scale_y), int(np.ceil((rows.max() + 1) * scale_y))
        found.append((float(values[rows, columns].sum()), (x0, y0, x1, y1)))
    return [box for _, box in sorted(found, key=lambda entry: (-entry[0], entry[1]))]


def _square(box: Crop, size: tuple[int, int], margin: float) -> Crop:
    """A square around a box with a margin, moved into the image and cut where it is larger than the image."""
    height, width = size
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * margin)
    side = round(max(side, MIN_SIDE * min(size)))
    x0 = _fit((box[0] + box[2] - side) // 2, side, width)
    y0 = _fit((box[1] + box[3] - side) // 2, side, height)
    return x0, y0, min(x0 + side, width), min(y0 + side, height)


def _fit(start: int, side: int, limit: int) -> int:
    return max(0, min(start, limit - side))


def _ramp(length: int, start_open: bool, end_open: bool) -> Tensor:
    """Shares along one side of a crop: 1 inside, falling linearly to 0 at the edges that are not the image's."""
    position = torch.arange(length) + 0.5
    band = max(FEATHER * length, 1.0)
    ramp = torch.ones(length)
    if not start_open:
        ramp = torch.minimum(ramp, position / band)
    if not end_open:
        ramp = torch.minimum(ramp, (length - position) / band)
    return ramp
