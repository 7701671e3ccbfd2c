"""Tiny random models of transformers, saved to a folder as `save_pretrained` does; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def save_model(kind: str, config: dict[str, Any], folder: Path, seed: int = 0) -> Any:
    """A random model, with its configuration, weights and processor in a folder; skips where transformers lacks it."""
    torch.manual_seed(seed)
    try:
        model = AutoModel.from_config(AutoConfig.for_model(kind, **config)).eval()
    except ValueError:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model
