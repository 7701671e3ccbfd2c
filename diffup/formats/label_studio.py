"""Writing predictions that Label Studio imports: tasks in JSON, with a brush region for every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from diffup.errors import FormatError
from diffup.formats.brush import encode_brush
from diffup.formats.checks import SCORE_DIGITS, as_masks


def label_studio_prediction(
    labels: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | Sequence[npt.NDArray[np.bool_]],
    names: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    model_version: str = "diffup",
    from_name: str = "label",
    to_name: str = "image",
) -> dict[str, Any]:
    """Make the prediction of one image: one brush region for every class in it.

    Args:
        labels: label map, (H, W) integers with 0 for the background; or masks, (H, W) bool each, which may overlap.
        names: name of each label (label i + 1 is `names[i]`) or of each mask, a `Label` of the labelling interface.
        scores: score of each class's mask in [0, 1], such as `Segmentation.score`; None writes none.
        model_version: name of the model, which the interface shows.
        from_name: name of the tag `BrushLabels` in the labelling interface.
        to_name: name of the tag `Image` in the labelling interface.

    Returns:
        `model_version`, `result` (the regions, none of an empty mask) and, if `scores` are given and a class is found,
        `score`: the lowest of the classes found, by which Label Studio sorts tasks.

    Raises:
        FormatError: the labels have another form, or there is another number of names or scores.
    """
    if scores is not None and len(scores) != len(names):
        raise FormatError(f"scores: got {len(scores)} for {len(names)} names; give one for each")
    regions = []
    for index, mask in enumerate(as_masks(labels, names, "labels", "names")):
        if not mask.any():
            continue
        region: dict[str, Any] = {
            "id": f"class{index + 1}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [names[index]]},
        }
        if scores is not None:
            region["score"] = round(float(scores[index]), SCORE_DIGITS)
        regions.append(region)
    prediction: dict[str, Any] = {"model_version": model_version, "result": regions}
    if scores is not None and regions:
        prediction["score"] = min(region["score"] for region in regions)
    return prediction


def label_studio_task(image: str, prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Make the task of one image; a list of tasks, as JSON, is a file that Label Studio imports.

    Args:
        image: the image's URL as Label Studio gets it, such as `local_file_url` makes it; in the labelling interface it
            is `$image`.
        prediction: the prediction, from `label_studio_prediction`.
    """
    return {"data": {"image": image}, "predictions": [dict(prediction)]}


def local_file_url(path: str) -> str:
    """Make the URL by which Label Studio serves a file of its own disk (`LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED`).

    Args:
        path: path of the file, with forward slashes, relative to Label Studio's document root
            (`LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`).
    """
    return f"/data/local-files/?d={quote(path, errors='surrogateescape')}"
