"""COCO's instance annotations: dictionaries ready for JSON that pycocotools loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.checks import SCORE_DIGITS, MarksNothing, as_mask, as_masks
from diffup.formats.contours import connected_components, polygons
from diffup.formats.rle import decode_rle
from diffup.inputs.masks import bounding_box
from diffup.utils.optional import need

_PURPOSE = "COCO's masks"


def encode_rle(mask: npt.ArrayLike) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run lengths, `{"size": [H, W], "counts": str}`.

    Args:
        mask: (H, W) bool.

    Raises:
        FormatError: the mask is not an (H, W) bool array.
        MissingPackageError: pycocotools is not installed.
    """
    encoded = need("pycocotools.mask", _PURPOSE).encode(np.asfortranarray(as_mask(mask, "mask").astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_segmentation(
    segmentation: Any, size: tuple[int, int], argument: str = "segmentation"
) -> npt.NDArray[np.bool_]:
    """Decode the `segmentation` field of an annotation: polygons, compressed or plain run lengths.

    Args:
        segmentation: value of the field. Polygons of fewer than three vertices are ignored if there are others.
        size: (height, width) of the image in pixels.
        argument: name of the field in error messages.

    Returns:
        (H, W) bool mask.

    Raises:
        FormatError: the field holds neither polygons nor run lengths, or run lengths that are damaged or of another
            size, or no polygon with an area.
        MissingPackageError: polygons need pycocotools, which is not installed.
    """
    if isinstance(segmentation, list):
        return _fill(segmentation, size, argument)
    if not isinstance(segmentation, Mapping):
        raise FormatError(f"{argument}: expected polygons [[x, y, ...], ...] or run lengths {{'size', 'counts'}}")
    return decode_rle(segmentation, size, argument)


def coco_annotations(
    masks: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | Sequence[npt.NDArray[np.bool_]],
    image_id: int,
    category_ids: Sequence[int],
    *,
    encoding: Literal["rle", "polygon"] = "rle",
    instances: bool = False,
    tolerance: float = 0.0,
    scores: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Make the annotations of one image, ready for `coco_document`.

    Args:
        masks: label map, (H, W) integers with 0 for the background; or masks, (H, W) bool each, which may overlap.
        image_id: id of the image.
        category_ids: category id of each label (label i + 1 has `category_ids[i]`) or of each mask.
        encoding: "rle" (exact and short) or "polygon" (which labelling tools can edit; exact if `tolerance` is 0).
        instances: make an object of every connected component, instead of one object per category; touching objects
            are separated by `LabelMap.instances` instead.
        tolerance: greatest distance in pixels between a polygon and the exact outline; 0 is exact.
        scores: score of each category's mask in [0, 1], such as `Segmentation.score`, written to the field `score`;
            None writes none.

    Returns:
        `image_id`, `category_id`, `segmentation`, `area`, `bbox`, `iscrowd` 0 and, if given, `score` of every object;
        none for an empty mask. `coco_document` adds ids. Area and box are the mask's, whatever the encoding.

    Raises:
        FormatError: the masks have another form, or there is another number of category ids or scores.
        MissingPackageError: pycocotools ("rle") or scikit-image ("polygon", `instances`) is not installed.
    """
    if encoding not in ("rle", "polygon"):
        raise FormatError(f"encoding={encoding!r}: expected rle or polygon")
    if tolerance and encoding == "rle":
        raise FormatError(f"tolerance={tolerance}: run lengths are exact; give encoding='polygon'")
    if scores is not None and len(scores) != len(category_ids):
        raise FormatError(f"scores: got {len(scores)} for {len(category_ids)} category ids; give one for each")
    annotations = []
    for index, mask in enumerate(as_masks(masks, category_ids, "masks", "category_ids")):
        for part in connected_components(mask) if instances else [mask]:
            box = bounding_box(part)
            if box is None:
                continue
            annotation: dict[str, Any] = {
                "image_id": image_id,
                "category_id": int(category_ids[index]),
                "segmentation": encode_rle(part) if encoding == "rle" else _flat_polygons(part, tolerance),
                "area": int(part.sum()),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "iscrowd": 0,
            }
            if scores is not None:
                annotation["score"] = round(float(scores[index]), SCORE_DIGITS)
            annotations.append(annotation)
    return annotations


def coco_document(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]] | Sequence[str],
) -> dict[str, Any]:
    """Make the content of an instances file, ready for `json.dumps`.

    Args:
        images: dictionaries with `id`, `file_name`, `width` and `height` (pixels); other fields are copied.
        annotations: annotations of all images, as `coco_annotations` makes them; their ids are counted from 1.
        categories: dictionaries with `id` and `name`, or names alone, whose ids are counted from 1.

    Returns:
        `info`, `licenses`, `images`, `annotations` and `categories`.

    Raises:
        FormatError: a field is missing, an id occurs twice, or an annotation belongs to an image or category that is
            not listed.
    """
    named: list[dict[str, Any]] = []
    for number, category in enumerate(categories, start=1):
        named.append(dict(category) if isinstance(category, Mapping) else {"id": number, "name": category})
    listed = {
        "image_id": _ids(images, "images", ("id", "file_name", "width", "height")),
        "category_id": _ids(named, "categories", ("id", "name")),
    }
    for index, annotation in enumerate(annotations):
        for field, ids in listed.items():
            if annotation.get(field) not in ids:
                raise FormatError(f"annotations[{index}].{field}: {annotation.get(field)!r} is not listed")
    return {
        "info": {"description": "made with diffup"},
        "licenses": [],
        "images": [dict(image) for image in images],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)],
        "categories": named,
    }


def _ids(entries: Sequence[Mapping[str, Any]], argument: str, fields: Sequence[str]) -> set[Any]:
    """Check that entries have all the fields and distinct ids, and return the ids."""
    ids = set()
    for index, entry in enumerate(entries):
        missing = [field for field in fields if field not in entry]
        if missing:
            raise FormatError(f"{argument}[{index}]: {', '.join(missing)} missing; expected {', '.join(fields)}")
        if entry["id"] in ids:
            raise FormatError(f"{argument}[{index}].id: {entry['id']!r} occurs twice")
        ids.add(entry["id"])
    return ids


def _flat_polygons(mask: npt.NDArray[np.bool_], tolerance: float) -> list[list[float]]:
    return [polygon.ravel().tolist() for polygon in polygons(mask, tolerance)]


def _fill(polygon_list: list[Any], size: tuple[int, int], argument: str) -> npt.NDArray[np.bool_]:
    """Rasterise the union of polygons [x, y, x, y, ...] in pixels as an (H, W) bool mask."""
    if polygon_list and all(isinstance(value, int | float) for value in polygon_list):
        polygon_list = [polygon_list]  # one polygon without the list around it
    flat = []
    for index, polygon in enumerate(polygon_list):
        try:
            values = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"{argument}[{index}]: expected numbers x, y, x, y, ...") from error
        if values.ndim == 2 and values.shape[1] == 2:  # [[x, y], ...]
            values = values.ravel()
        if values.ndim != 1 or len(values) % 2 or not np.isfinite(values).all():
            raise FormatError(f"{argument}[{index}]: expected at least three finite vertices x, y, x, y, ...")
        if (np.abs(values.reshape(-1, 2) - (size[1] / 2, size[0] / 2)) > 1.5 * max(size)).any():
            raise FormatError(f"{argument}[{index}]: a vertex lies far outside of the {size[1]} x {size[0]} image")
        if len(values) >= 6:
            flat.append(values.tolist())
    if not polygon_list:
        raise MarksNothing(f"{argument}: an empty list of polygons")
    if not flat:
        raise MarksNothing(f"{argument}[0]: expected at least three finite vertices x, y, x, y, ...")
    coco = need("pycocotools.mask", _PURPOSE)
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(flat, *size))), dtype=bool)
