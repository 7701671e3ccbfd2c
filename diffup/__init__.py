"""Mark a new class of object in images from a few examples, with any image encoder.

The encoder is frozen and exchangeable; the decoder, trained once, sees only priors computed from the encoder's
features, so a better encoder is used without re-training anything (DiffUp, arXiv 2407.16182).
"""

from diffup.annotation import Box, Mask, Points, Scribble
from diffup.backbones import available_backbones, load_backbone, register_backbone
from diffup.errors import DiffUpError
from diffup.model import DiffUp
from diffup.result import Segmentation

__all__ = [
    "Box",
    "DiffUp",
    "DiffUpError",
    "Mask",
    "Points",
    "Scribble",
    "Segmentation",
    "available_backbones",
    "load_backbone",
    "register_backbone",
]

__version__ = "0.1.0.dev0"
