"""The routes of the server: which tool asks for what."""

from __future__ import annotations

from typing import Any

from diffup.serve.app import Guard, build_app
from diffup.serve.label_studio import LabelStudioBackend
from diffup.serve.learner import Learner
from diffup.serve.photos import Photos
from diffup.serve.xanylabeling import XAnyLabeling


def tools_app(learner: Learner, photos: Photos, guard: Guard) -> Any:
    """Build the application that Label Studio and X-AnyLabeling connect to.

    Args:
        learner: the classes that grow with what people save.
        photos: finds the images of Label Studio's tasks.
        guard: who may ask, and how much.

    Raises:
        MissingPackageError: Starlette is not installed.
    """
    label_studio, anylabeling = LabelStudioBackend(learner, photos), XAnyLabeling(learner)
    return build_app(
        gets={
            "/health": anylabeling.health,
            "/v1/models": anylabeling.models,
            "/v1/models/{model_id}/info": anylabeling.info,
        },
        posts={
            "/setup": label_studio.setup,
            "/predict": label_studio.predict,
            "/webhook": label_studio.webhook,
            "/v1/predict": anylabeling.predict,
        },
        guard=guard,
    )
