"""ImageNet's class names and their sentence embeddings, which come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

CLASSES = 1000
BANK = Path(__file__).parent / "imagenet_names.safetensors"
"""Embeddings of ImageNet's class names and definitions, made by `benchmarks/make_name_bank.py`."""


def read_bank(path: Path = BANK) -> tuple[list[str], Tensor]:
    """Read ImageNet's class names and their embeddings.

    Args:
        path: safetensors file of the embeddings, with the names in its metadata.

    Returns:
        1000 class names with their definitions, and their unit embeddings, (1000, C) float32, in ImageNet's order.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        descriptions: list[str] = json.loads(file.metadata()["descriptions"])
        return descriptions, F.normalize(file.get_tensor("embeddings").float(), dim=1)
