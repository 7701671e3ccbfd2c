"""The file format of prototypes: JSON fields in the metadata and tensors, both checked when they are read."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from diffup.errors import PrototypesError
from diffup.priors.condition import EDGE_SIDE
from diffup.priors.config import LEVELS
from diffup.priors.features import SupportFeatures
from diffup.priors.support import change_support
from diffup.text.prompts import TextPrompt

FORMAT = "diffup-prototypes"
VERSION, VERSION_OF_NEGATIVES = 1, 2
"""Versions of the file format, without and with negatives, which an older diffup cannot read."""

_HALF_ERROR = 1e-3  # relative to a tensor's largest value; a tensor that loses more in float16 is saved in float32


def _compact(tensor: Tensor) -> Tensor:
    """Convert to float16 where that loses little, else leave float32."""
    half = tensor.half()
    lost = (half.float() - tensor).abs().max()
    return half.contiguous() if lost <= _HALF_ERROR * tensor.abs().max() else tensor.contiguous()


def read_facts(metadata: dict[str, str] | None, path: str) -> dict[str, Any]:
    """Read the JSON fields of a prototype file from its metadata.

    Args:
        metadata: metadata of the safetensors file, or None if it has none.
        path: path or URL of the file, for error messages.

    Returns:
        The fields by name, without the version.

    Raises:
        PrototypesError: the file holds no prototypes, or its format is newer.
        ValueError: the metadata are no JSON object.
        KeyError: a field is missing.
    """
    if FORMAT not in (metadata or {}):
        raise PrototypesError(f"{path} holds no prototypes; `diffup teach` and Prototypes.save write them")
    facts = json.loads((metadata or {})[FORMAT])
    if not isinstance(facts, dict):
        raise ValueError(f"its facts are {type(facts).__name__}, not an object")
    version = facts.pop("version")
    if version > VERSION_OF_NEGATIVES:
        raise PrototypesError(
            f"{path} has version {version} of the format, this diffup reads up to {VERSION_OF_NEGATIVES}: upgrade "
            "diffup, or make the prototypes again"
        )
    return dict(facts)


def feature_tensors(features: SupportFeatures) -> dict[str, Tensor]:
    """Pack support features into named tensors for the file.

    Args:
        features: features of the supports, a batch of one.
    """
    features = change_support(features, lambda tensor: tensor[0].cpu())
    regions = torch.stack([features.foreground, features.background], dim=1)
    tensors = {f"level.{index}": _compact(level) for index, level in enumerate(features.levels)}
    flags = {name: getattr(features, name).to(torch.uint8) for name in ("valid", "annotated")}
    return tensors | {"regions": _compact(regions)} | flags


def read_text_prompt(tensors: dict[str, Tensor], facts: dict[str, Any] | None) -> TextPrompt | None:
    """Read the text prompts of a prototype file and check them.

    Args:
        tensors: tensors of the file by name.
        facts: JSON fields of the text prompts; None if the prototypes have no text.

    Raises:
        ValueError: the embeddings do not fit the sentences, or are not finite.
        KeyError: a tensor or field is missing.
        TypeError: a field is missing or unknown.
    """
    if facts is None:
        return None
    words = TextPrompt(**{**facts, "sentences": tuple(facts["sentences"])}, embeddings=tensors["embeddings"].float())
    shape = tuple(words.embeddings.shape)
    if len(shape) != 2 or shape[0] != len(words.sentences) or not all(shape) or not words.embeddings.isfinite().all():
        raise ValueError(f"embeddings of shape {shape} for {len(words.sentences)} sentences, or not finite")
    return words


def read_features(tensors: dict[str, Tensor], shots: int) -> SupportFeatures:
    """Read the support features of a prototype file and check them.

    Args:
        tensors: tensors of the file by name.
        shots: number of support images, 1 or more.

    Returns:
        Features of the supports, a batch of one.

    Raises:
        ValueError: shapes do not fit each other, or values are not finite.
        KeyError: a tensor is missing.
    """
    levels = [tensors[f"level.{index}"].float() for index in range(LEVELS)]
    regions, valid = tensors["regions"].float(), tensors["valid"].bool()
    views = len(valid)
    counted = type(shots) is int and shots in (1, views)  # a single support has several views, others one each
    if regions.shape != (views, 2, EDGE_SIDE, EDGE_SIDE) or not counted or not bool(valid.any()):
        raise ValueError(f"{views} views of {shots} shots with regions {tuple(regions.shape)}")
    for name, tensor in (*((f"level.{index}", level) for index, level in enumerate(levels)), ("regions", regions)):
        if tensor.ndim != 4 or len(tensor) != views or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} for {views} views, or not finite")
    annotated = tensors["annotated"].bool() if "annotated" in tensors else _infer_annotated(regions, shots)
    if annotated.shape != valid.shape:
        raise ValueError(f"annotated of shape {tuple(annotated.shape)} for {views} views")
    return SupportFeatures(
        tuple(level[None] for level in levels),
        regions[None, :, 0],
        regions[None, :, 1],
        valid[None],
        annotated[None],
        shots,
    )


def _infer_annotated(regions: Tensor, shots: int) -> Tensor:
    """Infer which views are annotated, (V,) bool, for files without that field: those that are not all foreground.

    The unchanged view of each support comes first; a single support's other views follow it.
    """
    unchanged = regions[:shots, 0].amin(dim=(1, 2)) < 1
    return unchanged.expand(len(regions)) if shots == 1 else unchanged
