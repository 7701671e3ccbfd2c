"""Masks as polygons: exact ones, holes included.

Coordinates are those of COCO, LabelMe and YOLO: pixel (column, row) spans from (column, row) to (column + 1, row + 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.checks import as_mask
from diffup.utils.optional import need


def connected_components(mask: npt.ArrayLike) -> Iterator[npt.NDArray[np.bool_]]:
    """The connected parts of a mask, largest first, one at a time: of a large image a list of them might not fit.

    Args:
        mask: (H, W) bool. Pixels that touch at a corner alone are not connected.

    Returns:
        (H, W) bool each; none for an empty mask.

    Raises:
        FormatError: not an (H, W) bool array.
    """
    array = as_mask(mask, "mask")
    labels = _label(array)
    sizes = np.bincount(labels.ravel())
    order = np.argsort(-sizes[1:], kind="stable") + 1
    return (labels == index for index in order)


def polygons(mask: npt.ArrayLike, tolerance: float = 0.0) -> list[npt.NDArray[np.float64]]:
    """One polygon for every connected part of a mask.

    Holes are cut out of the polygon by a slit of no width from its outline to the hole's, there and back, since neither
    COCO nor YOLO has another way to say "hole" (their several polygons of an object are added to each other). Programs
    that fill by the even-odd or the nonzero rule show the hole; pycocotools gives back the mask pixel by pixel.

    Args:
        mask: (H, W) bool.
        tolerance: how far, in pixels, the outline may be off (Douglas-Peucker); 0 is exact. What a tolerance would
            reduce to less than a triangle stays exact.

    Returns:
        (N, 2) vertices (x, y) each, largest part first; the first vertex is not repeated at the end. x lies in
        [0, W] and y in [0, H].

    Raises:
        FormatError: not an (H, W) bool array, or a negative tolerance.
    """
    array = as_mask(mask, "mask")
    if not tolerance >= 0:
        raise FormatError(f"tolerance: expected a number of pixels from 0 on, got {tolerance}")
    measure = need("skimage.measure", "tracing polygons")
    found = []
    for region in sorted(measure.regionprops(_label(array)), key=lambda region: -region.area):
        top, left = region.bbox[:2]
        outlines = measure.find_contours(np.pad(region.image, 1).astype(np.float32), 0.5, fully_connected="low")
        # From (row, column) of pixel centres in the padded crop to (x, y) of pixel edges in the image.
        rings = [_simplify(ring[:-1, ::-1] + (left - 0.5, top - 0.5), tolerance) for ring in outlines]
        found.append(_join(rings))
    return found


def _label(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Connected parts, numbered from 1; four neighbours."""
    labels: npt.NDArray[np.intp] = need("skimage.measure", "finding connected parts").label(mask, connectivity=1)
    return labels


def _simplify(ring: npt.NDArray[np.float64], tolerance: float) -> npt.NDArray[np.float64]:
    """Drop the vertices of a closed ring (N, 2) that lie on the line between their neighbours, or near it."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    exact: npt.NDArray[np.float64] = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    if not tolerance:
        return exact
    closed = np.concatenate([exact, exact[:1]])
    rough = need("skimage.measure", "simplifying polygons").approximate_polygon(closed, tolerance)[:-1]
    return np.asarray(rough) if len(rough) >= 3 else exact


def _join(rings: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """The outline of a part and those of its holes as one ring, each hole reached through a slit."""
    rings = sorted(rings, key=lambda ring: -np.ptp(ring[:, 0]) * np.ptp(ring[:, 1]))
    joined = rings[0]
    for hole in rings[1:]:
        near = int(((joined - hole[0]) ** 2).sum(axis=1).argmin())
        joined = np.concatenate([joined[: near + 1], hole, hole[:1], joined[near:]])
    return joined
