"""Tiny towers of OpenCLIP, known to it by name; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip

TOWERS: dict[str, dict[str, Any]] = {
    "RN": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "ViT": {"image_size": 64, "layers": 6, "width": 32, "head_width": 16, "patch_size": 16},
    "timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "relpos": {"image_size": 160, "timm_model_name": "test_vit_relpos", "timm_pool": "avg", "timm_proj": "linear"},
    "convnext": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
}


def add_towers(folder: Path, prefix: str, words: int) -> None:
    """Make `PREFIX-NAME` known for every tower, each with a text tower of so many words; the files go to a folder."""
    text = {"context_length": 8, "vocab_size": words, "width": 16, "heads": 2, "layers": 1}
    for name, vision in TOWERS.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
        (folder / f"{prefix}-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
