"""The overview of a result: its supports, its mask and its maps as titled panels with legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffup.utils import pictures
from diffup.utils.panels import GREY, HEAT, Panel, Scale

TINT = 0.45
"""Opacity of a mask over its photo."""

_SHOWN = 3  # most supports in an overview
_LEAST_DEVIATION = 0.01  # below it samples agree, and a scale that such values fill would show noise
_ERROR = Scale(
    ((40, 80, 200), (206, 217, 244), (255, 255, 255), (245, 212, 206), (200, 40, 40)),
    low=-1.0,
    ends=("too much", "missed"),
)


def support_panels(supports: Sequence[pictures.Bytes]) -> list[Panel]:
    """Panels of the first supports, and a line about the others.

    Args:
        supports: pictures of the supports with their annotations (`diffup.inputs.support_picture.draw_support`).
    """
    given = [Panel("support", picture, "green: as given") for picture in supports[:_SHOWN]]
    if len(supports) > _SHOWN:
        given[-1] = replace(given[-1], legend=f"and {len(supports) - _SHOWN} more")
    return given


def mask_panel(image: pictures.Bytes, mask: npt.NDArray[np.bool_], score: float, height: int) -> Panel:
    """Panel of the mask over its photo, drawn at the panel's size, since an outline would fade when shrunk.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        score: score of the mask in [0, 1].
        height: height of the panel's picture in pixels.
    """
    size = pictures.fitted_size((mask.shape[0], mask.shape[1]), height)[::-1]
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    small, marked = (np.asarray(picture.resize(size)) for picture in (Image.fromarray(image), grey))
    return Panel("mask", pictures.tint(small, marked > 127, pictures.RED, TINT), f"red: found, score {score:.2f}")


def map_panels(
    prior: npt.NDArray[np.float32],
    probability: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    expected_error: npt.NDArray[np.float32],
    height: int,
) -> dict[str, Panel]:
    """Paint the maps of a result, each with its colour scale (`Segmentation.panels`).

    Args:
        prior: (H, W) in [0, 1].
        probability: (H, W) in [0, 1].
        variance: (H, W), variance of the probability over the samples.
        expected_error: (H, W) in [-1, 1].
        height: greatest height of a picture in pixels.

    Returns:
        "prior", "probability", "deviation" and "expected error".
    """
    deviation = np.sqrt(pictures.shrink(variance, height).clip(min=0))
    most = max(float(np.quantile(deviation, 0.99)), _LEAST_DEVIATION)
    painted = {
        "prior": (pictures.shrink(prior, height), GREY),
        "probability": (pictures.shrink(probability, height), GREY),
        "deviation": (deviation, replace(HEAT, high=float(f"{most:.2g}"), ends=("", "from"))),
        "expected error": (pictures.shrink(expected_error, height), _ERROR),
    }
    return {name: Panel(name, scale.paint(values), scale) for name, (values, scale) in painted.items()}
