"""Few-shot segmentation with any image encoder: annotate a class in a few images, get its mask in others.

The encoder is frozen and exchangeable. The decoder is trained once and sees only priors computed from the encoder's
features, so the encoder can be replaced without re-training (DiffUp, arXiv 2407.16182).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffup.backbones import available_backbones, load_backbone, register_backbone
    from diffup.errors import DiffUpError
    from diffup.inputs.annotations import Box, Mask, Points, Scribble
    from diffup.label_map import LabelMap
    from diffup.model import DiffUp
    from diffup.prototypes import Prototypes
    from diffup.result import Segmentation
    from diffup.stream import Failure

__all__ = [
    "Box",
    "DiffUp",
    "DiffUpError",
    "Failure",
    "LabelMap",
    "Mask",
    "Points",
    "Prototypes",
    "Scribble",
    "Segmentation",
    "available_backbones",
    "load_backbone",
    "register_backbone",
]

__version__ = "0.9.0"

_HOMES = {
    "inputs.annotations": ("Box", "Mask", "Points", "Scribble"),
    "backbones": ("available_backbones", "load_backbone", "register_backbone"),
    "stream": ("Failure",),
    "errors": ("DiffUpError",),
    "label_map": ("LabelMap",),
    "model": ("DiffUp",),
    "prototypes": ("Prototypes",),
    "result": ("Segmentation",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `diffup --help` does not wait for torch."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"diffup.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
