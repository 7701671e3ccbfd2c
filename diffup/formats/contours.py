"""Connected components of masks, and their exact polygons, holes included.

Coordinates are those of COCO, LabelMe and YOLO: pixel (column, row) spans from (column, row) to (column + 1, row + 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.checks import as_mask
from diffup.utils.optional import need

EDITABLE = 0.5
"""Tolerance in pixels of polygons that people edit: a vertex at every pixel could not be moved by hand."""


def connected_components(mask: npt.ArrayLike) -> Iterator[npt.NDArray[np.bool_]]:
    """Iterate over the connected components of a mask, largest first.

    They are made one at a time, since those of a large image might not fit into memory together.

    Args:
        mask: (H, W) bool. Pixels that touch only at a corner are not connected.

    Returns:
        Iterator of (H, W) bool masks; empty for an empty mask.

    Raises:
        FormatError: the mask is not an (H, W) bool array.
        MissingPackageError: scikit-image is not installed.
    """
    array = as_mask(mask, "mask")
    labels = _label(array)
    sizes = np.bincount(labels.ravel())
    order = np.argsort(-sizes[1:], kind="stable") + 1
    return (labels == index for index in order)


def polygons(mask: npt.ArrayLike, tolerance: float = 0.0) -> list[npt.NDArray[np.float64]]:
    """Trace one polygon around every connected component of a mask.

    A hole is connected to the outline by a slit of zero width, since neither COCO nor YOLO has another way to say
    "hole" (they add the polygons of an object to each other). Programs that fill by the even-odd or the nonzero rule
    show the hole; pycocotools reproduces the mask pixel by pixel.

    Args:
        mask: (H, W) bool.
        tolerance: greatest distance in pixels between polygon and exact outline (Douglas-Peucker); 0 is exact. An
            outline that would be reduced to less than a triangle stays exact.

    Returns:
        One (N, 2) array of vertices (x, y) per component, largest component first; the first vertex is not repeated at
        the end. x lies in [0, W] and y in [0, H].

    Raises:
        FormatError: the mask is not an (H, W) bool array, or the tolerance is negative.
        MissingPackageError: scikit-image is not installed.
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
    """Label connected components (of four neighbours) from 1."""
    labels: npt.NDArray[np.intp] = need("skimage.measure", "finding connected parts").label(mask, connectivity=1)
    return labels


def _simplify(ring: npt.NDArray[np.float64], tolerance: float) -> npt.NDArray[np.float64]:
    """Drop vertices of a closed ring (N, 2) that lie on the line between their neighbours, or within the tolerance."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    exact: npt.NDArray[np.float64] = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    if not tolerance:
        return exact
    closed = np.concatenate([exact, exact[:1]])
    rough = need("skimage.measure", "simplifying polygons").approximate_polygon(closed, tolerance)[:-1]
    return np.asarray(rough) if len(rough) >= 3 else exact


def _join(rings: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Join the outline of a component and those of its holes to one ring, each hole by a slit of zero width."""
    rings = sorted(rings, key=lambda ring: -np.ptp(ring[:, 0]) * np.ptp(ring[:, 1]))
    joined = rings[0]
    for hole in rings[1:]:
        near = int(((joined - hole[0]) ** 2).sum(axis=1).argmin())
        joined = np.concatenate([joined[: near + 1], hole, hole[:1], joined[near:]])
    return joined
