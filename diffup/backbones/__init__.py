"""Frozen, exchangeable image encoders, loaded by name: `load_backbone("timm:resnet50")`.

A family of backbones is an entry point of the group `diffup.backbones`; `registry` documents how to add one, and
`conformance` and `testing` check that a backbone follows the protocol.
"""

from diffup.backbones.base import Backbone, FrozenBackbone, check_pyramid
from diffup.backbones.joint import JointBackbone, members_of
from diffup.backbones.registry import BackboneFamily, available_backbones, load_backbone, register_backbone

__all__ = [
    "Backbone",
    "BackboneFamily",
    "FrozenBackbone",
    "JointBackbone",
    "available_backbones",
    "check_pyramid",
    "load_backbone",
    "members_of",
    "register_backbone",
]
