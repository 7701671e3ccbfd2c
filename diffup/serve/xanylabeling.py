"""X-AnyLabeling's contract of a remote server, as its public documentation states it.

https://github.com/CVHub520/X-AnyLabeling-Server, docs/router.md, configuration.md and user_guide.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from diffup.errors import DiffUpError, FormatError, ImageError
from diffup.formats.contours import EDITABLE, polygons
from diffup.formats.fields import decode_base64, field
from diffup.formats.shapes import number
from diffup.inputs.images import upright_size
from diffup.label_map import LabelMap
from diffup.serve.learner import Learner
from diffup.utils.serving import MAX_PIXELS

MODEL = "diffup"
"""The id of the one model, which marks all classes that are known."""

CODES = {401: "UNAUTHORIZED", 403: "UNAUTHORIZED", 413: "INVALID_IMAGE", 500: "INFERENCE_ERROR"}
"""Error codes of the contract by status; "INVALID_REQUEST" for others."""


class XAnyLabeling:
    """Answers X-AnyLabeling's requests. Threads may share the object.

    Args:
        learner: the classes.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def health(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /health`, which Label Studio asks for too.

        Args:
            request: not used.
        """
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        return {"status": "healthy", "models_loaded": 1, "timestamp": now}

    def models(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/models`.

        Args:
            request: not used.
        """
        return {"success": True, "data": {MODEL: self._description()}}

    def info(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/models/{model_id}/info`.

        Args:
            request: the request; `model_id` is the model's id.
        """
        if request.get("model_id") != MODEL:
            return _not_found(request.get("model_id"))
        return {"success": True, "data": {"model_id": MODEL, **self._description()}}

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /v1/predict`: polygons of every known class in an image.

        Args:
            request: the request; `image` is the image's file in base64, and `params.conf_threshold` the least presence
                of a class.
        """
        if request.get("model") != MODEL:
            return _not_found(request.get("model"))
        try:
            content = decode_base64(field(request, "image", str, "request"), "image")
            upright_size(content, "image", MAX_PIXELS)
            params = request.get("params")
            asked = params.get("conf_threshold") if isinstance(params, Mapping) else None
            least = None if asked is None else number(asked, "params.conf_threshold")
            found = self._learner.segment(content, self._learner.names, least)
            return {"success": True, "data": {"shapes": [] if found is None else _shapes(found), "description": ""}}
        except (ImageError, FormatError) as error:
            return failure("INVALID_IMAGE", str(error))
        except DiffUpError as error:
            return failure("INFERENCE_ERROR", str(error))

    def _description(self) -> dict[str, Any]:
        """What the tool shows of the model."""
        names, least = self._learner.names, self._learner.min_presence
        return {
            "display_name": f"diffup: {', '.join(names) if names else 'no class yet'}"[:120],
            "widgets": [
                {"name": "button_run", "value": None},
                {"name": "edit_conf", "value": least},
                {"name": "toggle_preserve_existing_annotations", "value": False},
            ],
            "params": {"classes": names, "conf_threshold": least},
        }


def failure(code: str, message: str) -> dict[str, Any]:
    """An error as the contract words it; its status is 200.

    Args:
        code: code of the error.
        message: what is wrong.
    """
    return {"success": False, "error": {"code": code, "message": message}}


def _not_found(given: Any) -> dict[str, Any]:
    return failure("MODEL_NOT_FOUND", f"there is no model {str(given)[:60]!r}; there is {MODEL!r}")


def _shapes(found: LabelMap) -> list[dict[str, Any]]:
    """A polygon for every connected part of every class."""
    return [
        {
            "label": found.names[item.label - 1],
            "shape_type": "polygon",
            "points": polygon.tolist(),
            "score": item.score,
            "attributes": {},
            "description": None,
            "difficult": False,
            "direction": 0,
            "flags": None,
            "group_id": None,
            "kie_linking": [],
        }
        for item in found.marked()
        for polygon in polygons(item.mask, EDITABLE)
    ]
