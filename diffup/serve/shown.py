"""What a person shows in an image while labelling it: clicks, rectangles and strokes, on the object or beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffup.errors import FormatError
from diffup.formats.read_label_studio import read_region, region_labels, shape_type
from diffup.formats.shapes import KINDS, Reading, together
from diffup.formats.supports import with_area
from diffup.inputs.annotations import Box, Regions, Support, rasterise

_MOST_REGIONS = 64


class Shown(NamedTuple):
    """Regions that a person has drawn to show a class.

    Attributes:
        label: label of the class.
        regions: the regions, as Label Studio sends them.
    """

    label: str
    regions: tuple[Mapping[str, Any], ...]


def read_shown(context: Any, labels: Sequence[str]) -> Shown | None:
    """Read the context of an interactive prediction.

    Args:
        context: the context as Label Studio sends it, with the regions in `result`.
        labels: the labels that there are; if there is one alone, a region needs no label.

    Returns:
        The label of the last region, and all regions with that label or none; None if the context has no region.

    Raises:
        FormatError: the context has another form, too many regions, or the last region has no label.
    """
    results = context.get("result") if isinstance(context, Mapping) else None
    if results is None or results == []:
        return None
    if not isinstance(results, list) or len(results) > _MOST_REGIONS:
        raise FormatError(f"context.result: expected a list of at most {_MOST_REGIONS} regions")
    given = [region_labels(region, f"context.result[{index}]") for index, region in enumerate(results)]
    last = given[-1] or (list(labels) if len(labels) == 1 else [])
    if not last or last[0] not in labels:
        raise FormatError("context: the region has no label of the labelling interface; choose one before you draw")
    return Shown(last[0], tuple(region for region, own in zip(results, given, strict=True) if last[0] in (own or last)))


def shown_support(image: Tensor, shown: Shown) -> Support:
    """The image as a support, with what was shown in it.

    What was drawn on the object is foreground, what was drawn beside it (`is_positive` is false) is background, and so
    is everything outside of rectangles. The rest is unknown: a stroke in the tool is not the whole object.

    Args:
        image: (3, H, W) float32 RGB in [0, 1].
        shown: what was shown.

    Raises:
        FormatError: a region is faulty, or none is on the object.
        MissingPackageError: polygons need pycocotools (extra `formats`).
    """
    size = (image.shape[1], image.shape[2])
    on = _drawn([region for region in shown.regions if region.get("is_positive", True)], size)
    beside = _drawn([region for region in shown.regions if not region.get("is_positive", True)], size)
    background = beside.foreground.ceil()
    foreground = on.foreground * (1 - background)
    if not foreground.any():
        raise FormatError("context: nothing is shown of the object; draw on it before you draw beside it")
    return Support(image, None, Regions(foreground, torch.maximum(on.background, background), annotated=True))


def _drawn(regions: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Regions:
    """The union of what regions mark, and what lies outside of the rectangles among them."""
    readings = with_area(partial(_read, index, region, size) for index, region in enumerate(regions))
    foreground, background = torch.zeros(size), torch.zeros(size)
    for kind in KINDS:
        alike = [partial(_same, reading) for reading in readings if reading[0] == kind]
        if alike:
            annotation = together(alike, size, "context", pixels=False)
            marked = rasterise(annotation, size, "context")
            foreground = torch.maximum(foreground, marked.foreground)
            background = torch.maximum(background, marked.background) if isinstance(annotation, Box) else background
    return Regions(foreground, background * (1 - foreground), annotated=True)


def _read(index: int, region: Mapping[str, Any], size: tuple[int, int]) -> Reading:
    where = f"context.result[{index}]"
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise FormatError(f"{where}.value: expected an object")
    return read_region(where, shape_type(value, str(region.get("type")), where), dict(region), size)


def _same(reading: Reading) -> Reading:
    return reading
