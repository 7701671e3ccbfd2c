"""What a labelling run does, and what the files that it writes depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffup.decoder.options import SamplingOptions, refuse_generator
from diffup.decoder.weights import decoder_hash
from diffup.errors import ConfigError, DataError
from diffup.labelling.outputs import Place
from diffup.model import DiffUp
from diffup.prototypes import Prototypes
from diffup.utils.optional import need

Format = Literal["png", "coco", "yolo", "labelme", "label-studio", "overlay", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

REVISION = 4
"""Revision of the written files; raise it when the same settings would give other files."""


@dataclass(frozen=True)
class LabelPlan(SamplingOptions):
    """The files to write, and the sampling options (the fields of `SamplingOptions`).

    Attributes:
        formats: formats to write: `png` (label maps), `coco` (one instances file), `yolo` (text files), `labelme`
            (files of polygons), `label-studio` (one file of tasks with predictions), `overlay` (pictures), `csv` (table
            of what each image needs review for).
        encoding: format of COCO's masks, `rle` (exact and short) or `polygon` (editable in labelling tools).
        instances: whether COCO's and YOLO's files hold the separate objects (`LabelMap.instances`). Otherwise COCO's
            has one object per class and image, and YOLO's the connected parts.
        overlap: whether each class's own mask, which may overlap with those of others, is written to `own/` too, and to
            COCO's file instead of the class's pixels in the label map.

    Raises:
        ConfigError: `formats` is empty, a format or the encoding is unknown, or a generator is given instead of a seed.
    """

    formats: tuple[Format, ...] = ("png", "csv")
    encoding: Literal["rle", "polygon"] = "rle"
    instances: bool = False
    overlap: bool = False

    def __post_init__(self) -> None:
        refuse_generator(self)
        chosen = tuple(name for name in FORMATS if name in self.formats)
        if not self.formats or len(chosen) < len(set(self.formats)):
            raise ConfigError(f"formats={self.formats!r}: choose one or more of {', '.join(FORMATS)}")
        object.__setattr__(self, "formats", chosen)
        if self.encoding not in ("rle", "polygon"):
            raise ConfigError(f"encoding={self.encoding!r}: choose rle or polygon")


def need_packages(plan: LabelPlan) -> None:
    """Check, before anything is computed, that the packages of the formats are installed.

    Args:
        plan: the plan of the run.

    Raises:
        MissingPackageError: a package is not installed.
    """
    if "coco" in plan.formats:
        need("pycocotools.mask", "the format coco")
    if {"yolo", "labelme"} & set(plan.formats) or (
        "coco" in plan.formats and (plan.instances or plan.encoding == "polygon")
    ):
        need("skimage.measure", "outlines and connected parts")


def settings_of(model: DiffUp, classes: Sequence[Prototypes], plan: LabelPlan) -> dict[str, Any]:
    """Collect everything that the written files depend on besides the images, ready for JSON.

    Args:
        model: the model that segments.
        classes: prototypes of the classes.
        plan: the plan of the run.
    """
    sampling = plan.resolve(model.config)
    return {
        "revision": REVISION,
        "classes": [item.name for item in classes],
        "prototypes": [digest(item) for item in classes],
        "backbone": model.backbone.fingerprint,
        "decoder": decoder_hash(model.decoder)[:16],
        "thresholds": [sampling.threshold(item.threshold) for item in classes],
        "formats": list(plan.formats),
        "encoding": plan.encoding,
        "instances": plan.instances,
        "overlap": plan.overlap,
        "steps": sampling.steps,
        "ensemble": sampling.ensemble,
        "seed": plan.seed,
        "refine": sampling.refine,
        "min_presence": sampling.min_presence,
    }


def digest(prototypes: Prototypes) -> str:
    """Return a hash of the features and embeddings of prototypes and their negatives, 16 hexadecimal digits.

    Args:
        prototypes: prototypes of one class.
    """
    tensors: list[Tensor] = []
    if prototypes.features is not None:
        features = prototypes.features
        tensors += (*features.levels, features.foreground, features.background, features.valid)
    if prototypes.text_prompt is not None:
        tensors.append(prototypes.text_prompt.embeddings)
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if prototypes.negative is not None:
        found.update(digest(prototypes.negative).encode())
    return found.hexdigest()[:16]


def compare_settings(record: Place, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Check that a run to be resumed has the same settings.

    Args:
        record: path or URL of the file with the settings of the earlier run.
        theirs: settings of the earlier run.
        ours: settings of this run.

    Raises:
        DataError: settings differ; the message names them.
    """
    other = [name for name in ours if theirs.get(name) != ours[name]]
    if other:
        shown = "; ".join(f"{name}: {theirs.get(name)} there, {ours[name]} here" for name in other)
        raise DataError(
            f"{record} is of a run with other settings ({shown}). Give the same ones to go on with it, or choose "
            "another output folder"
        )
