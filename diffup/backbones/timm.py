"""Family `timm:NAME`: any timm model that offers intermediate features."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from diffup.backbones.base import (
    EncoderKeywords,
    EncoderOptions,
    FrozenBackbone,
    check_size,
    nearest_size,
    normalise_map,
    resolve_input_size,
    resolve_levels,
)
from diffup.backbones.checkpoint import (
    BIASES,
    Size,
    find_positions,
    grid_of_positions,
    load_weights,
    read_weights,
    window_of_biases,
)
from diffup.backbones.downloads import missing_files
from diffup.errors import BackboneError, WeightsError
from diffup.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Unpack


DEFAULT_INPUT_SIZE = 400
"""Default side of input images in pixels; encoders that cannot take it use the nearest size that they can."""


class TimmBackbone(FrozenBackbone):
    """A timm model, by `forward_intermediates` if it has that, else as a `features_only` network."""

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The maps of the chosen stages, before any pooling or head."""
        return stage_maps(self.network, images, self.levels)


def build(variant: str | None, **keywords: Unpack[EncoderKeywords]) -> FrozenBackbone:
    """Build a timm model with intermediate features, e.g. `timm:resnet50.tv_in1k`.

    Args:
        variant: timm's model name, with or without tag, or an `hf-hub:` or `local-dir:` name.
        **keywords: fields of `EncoderOptions`. `levels` are stages (CNNs, ...) or blocks (ViTs). `input_size` is 400
            by default, or for ViTs the nearest multiple of the patch; encoders that cannot take that get the nearest
            multiple of 32, else of the size that they were trained at. Position embeddings in `checkpoint_path` of
            another grid than the architecture's are loaded unchanged and resized once to the input's grid.

    Raises:
        BackboneError: timm does not know the model, or the model has no intermediate features or cannot take
            `input_size`.
        WeightsError: the weights cannot be downloaded or do not fit the model.
    """
    chosen = EncoderOptions(**keywords)
    if variant is None:
        raise BackboneError("family 'timm' needs a model name, e.g. 'timm:resnet50.tv_in1k'")
    name = f"timm:{variant}"
    _check_known(variant)
    requested = None if chosen.input_size is None else resolve_input_size(chosen.input_size, name)
    weights = None if chosen.checkpoint_path is None else read_weights(chosen.checkpoint_path, name)
    trained = {} if weights is None else _trained_options(weights, variant, name, requested)
    options, size = _plan(variant, name, requested, trained)
    download = chosen.download
    model, built_at = _build_at(options, trained, variant, name, download)
    if weights is not None:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        load_weights(model, weights, str(chosen.checkpoint_path), name, convert and partial(convert, model=model))
    if built_at is not None:
        model.set_input_size(img_size=built_at)
    strides = stage_strides(model, name)
    return TimmBackbone(
        name,
        model,
        input_size=size,
        levels=resolve_levels(chosen.levels, strides, name),
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
        multiple=patch_size(model, strides),
        layout=_layout(model),
    )


def stage_maps(model: Any, images: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """The maps of the chosen stages or blocks of a timm model, one for each entry of `levels`, repetitions included.

    The final norm is applied to the last block of a ViT, for which it was trained, but not to earlier blocks.

    Args:
        model: timm model.
        images: (B, 3, H, W), normalised.
        levels: indices of stages or blocks, from 0.

    Returns:
        Maps (B, C_l, h_l, w_l), or in the output format of a `features_only` network.
    """
    wanted = sorted(set(levels))
    if hasattr(model, "forward_intermediates"):
        maps = model.forward_intermediates(
            images,
            indices=wanted,
            norm=False,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
    else:
        outputs = model(images)
        maps = [outputs[index] for index in wanted]
    strides, norm = stage_strides(model, "timm"), getattr(model, "norm", None)
    if _is_isotropic(strides) and wanted[-1] == len(strides) - 1 and isinstance(norm, nn.Module):
        maps[-1] = normalise_map(norm, maps[-1])
    return [maps[wanted.index(level)] for level in levels]


def stage_strides(model: nn.Module, name: str) -> list[int]:
    """Stride in pixels of every stage or block that a timm model can return.

    Args:
        model: timm model.
        name: name of the backbone in error messages.

    Raises:
        BackboneError: the model does not describe its stages.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise BackboneError(f"backbone '{name}' offers no intermediate features; choose another model")
    return list(info.reduction()) if hasattr(info, "reduction") else [stage["reduction"] for stage in info]


def patch_size(model: nn.Module, strides: Sequence[int]) -> Size:
    """(height, width) in pixels that the sides of an image must be multiples of: a ViT's patch, (1, 1) for a CNN.

    Args:
        model: timm model.
        strides: stride of every stage or block in pixels.
    """
    if not _is_isotropic(strides):
        return 1, 1
    patch: Any = getattr(getattr(model, "patch_embed", None), "patch_size", strides[0])
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return max(height, strides[0]), max(width, strides[0])  # after a convolutional stem, the patch is in map positions


def _is_isotropic(strides: Sequence[int]) -> bool:
    """Whether every stage has the same stride, as the blocks of a ViT do."""
    return len(strides) > 1 and len(set(strides)) == 1


def _check_known(variant: str) -> None:
    import timm

    if ":" in variant:  # hf-hub:, local-dir: the hub or the folder knows
        return
    architecture, _, tag = variant.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(
            f"timm {timm.__version__} has no model '{architecture}'{did_you_mean(architecture, timm.list_models())} "
            "All names: timm.list_models()"
        )
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and variant not in tagged:
        raise BackboneError(
            f"timm {timm.__version__} knows no weights '{tag}' of '{architecture}'; "
            f"it has: {', '.join(tagged) or 'none'}"
        )


def _trained_options(weights: Mapping[str, Tensor], variant: str, name: str, requested: Size | None) -> dict[str, Any]:
    """Options with which an architecture has the position tables of a checkpoint; none if it has them by default.

    The tables show the size at which the checkpoint was trained: there is one absolute position for each patch; windows
    of relative positions are the whole grid (BEiT), or grow with it (Swin, MaxViT).
    """
    probe = _probe(variant, name)
    embed: Any = getattr(probe, "patch_embed", None)
    own, grid = getattr(embed, "img_size", None), getattr(embed, "grid_size", None)
    if own is None or grid is None:
        own = grid = tuple(probe.pretrained_cfg["input_size"][1:])  # only the scale of windows is needed
    tables = [_absolute(weights, probe, grid, requested), *_relative(weights, probe)]
    changed = [(old, new) for old, new in filter(None, tables) if old != new]
    if not changed:
        return {}
    (old, new), *_ = changed
    size = (own[0] * new[0] // old[0], own[1] * new[1] // old[1])
    for options in ({"img_size": size}, {"img_size": size, "window_size": new}, {"window_size": new}):
        try:
            built = _probe(variant, name, **options).state_dict()
        except (BackboneError, TypeError):
            continue
        biases = [key for key in built if key.endswith(BIASES) and key in weights]
        if all(built[key].shape == weights[key].shape for key in biases):
            return options
    return {}


def _absolute(
    weights: Mapping[str, Tensor], probe: Any, grid: Size, requested: Size | None
) -> tuple[Size, Size] | None:
    """The grid of an architecture's absolute positions, and that of a checkpoint's."""
    own = find_positions(probe.state_dict(), getattr(probe, "embed_dim", 0))
    theirs = None if own is None else find_positions(weights, own.shape[-1])
    if own is None or theirs is None:
        return None
    if own.ndim == theirs.ndim == 4:
        return (own.shape[1], own.shape[2]), (theirs.shape[1], theirs.shape[2])
    patch = patch_size(probe, stage_strides(probe, "timm"))
    others = [] if requested is None else [(requested[0] // patch[0], requested[1] // patch[1])]
    found = grid_of_positions(theirs.shape[-2], own.shape[-2], grid, others)
    return None if found is None else (grid, found)


def _relative(weights: Mapping[str, Tensor], probe: Any) -> list[tuple[Size, Size]]:
    """For each table of relative positions the window of the architecture, and that of a checkpoint."""
    pairs = []
    for key, own in probe.state_dict().items():
        if key.endswith(BIASES) and key in weights:
            window: Any = probe.get_submodule(key.rpartition(".")[0]).window_size
            window = (window, window) if isinstance(window, int) else (window[0], window[1])
            found = window_of_biases(len(weights[key]), len(own), window)
            pairs += [] if found is None else [(window, found)]
    return pairs


def _build_at(
    options: dict[str, Any], trained: dict[str, Any], variant: str, name: str, download: bool
) -> tuple[Any, Size | None]:
    """Build the model of a plan; also returns the size to set after the weights are loaded, or None.

    A model of a fixed size that can change it is built at the size that its weights were trained at: `set_input_size`
    knows the grid that it starts from, while a converter of weights can only guess it.
    """
    if "img_size" in options:
        model = _create(variant, name, download=download, **trained)
        if hasattr(model, "set_input_size"):
            return model, options["img_size"]
    return _create(variant, name, download=download, **trained | options), None


def _plan(variant: str, name: str, requested: Size | None, trained: dict[str, Any]) -> tuple[dict[str, Any], Size]:
    """Choose the options of a model so that it takes images of the requested or a sensible default size.

    Most encoders take any size. Those with a fixed input are tried with dynamic sizes first (ViTs, Swin), then
    unchanged (CLIP ResNets: only their pooling head is fixed), then built for the one size. Each attempt is a forward
    pass of shapes alone, on torch's meta device: it costs neither memory nor arithmetic, and needs no table of
    architectures.

    Args:
        variant: timm's model name.
        name: name of the backbone in error messages.
        requested: (height, width) in pixels; None for a default.
        trained: options that the weights require, from `_trained_options`.

    Returns:
        Further options for `timm.create_model`, and the size.
    """
    probe = _probe(variant, name, **trained)
    patch = patch_size(probe, stage_strides(probe, name))
    own: Size = trained.get("img_size", tuple(probe.pretrained_cfg["input_size"][1:]))
    if requested is not None:
        check_size(requested, patch, f"backbone '{name}': input_size")
        sizes = [requested]
    else:
        near = [nearest_size((DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE), multiple) for multiple in (patch, (32, 32), own)]
        sizes = list(dict.fromkeys([*near, own]))
    plans: list[tuple[dict[str, Any], Size]] = [({}, size) for size in sizes]
    if probe.pretrained_cfg.get("fixed_input_size"):
        flexible = [size for size in sizes if size != own or requested]
        plans = [(options, size) for options in ({"dynamic_img_size": True}, {}) for size in flexible]
        plans += [*(({"img_size": size}, size) for size in sizes), ({}, sizes[-1])]
    problem: Exception | None = None
    for options, size in plans:
        try:
            _try_size(_probe(variant, name, **trained | options), size)
        except Exception as error:  # architectures refuse sizes with TypeError, AssertionError, RuntimeError, ...
            problem = error
        else:
            return options, size
    raise BackboneError(
        f"backbone '{name}' cannot take images of {' or '.join(f'{h} x {w}' for h, w in sizes)} px ({problem}); it was "
        f"trained at {own[0]} x {own[1]}: try input_size= with multiples of that or of 32"
    ) from problem


def _probe(variant: str, name: str, **options: Any) -> Any:
    """Create the model without weights on the meta device, or with random weights if that fails."""
    try:
        with torch.device("meta"):
            return _create(variant, name, download=False, **options)
    except BackboneError:
        return _create(variant, name, download=False, **options)


def _try_size(model: Any, size: Size) -> None:
    """Run the model on one image of a size; an exception means that it cannot take the size."""
    device = next(model.parameters()).device
    with torch.no_grad():
        try:
            stage_maps(model.eval(), torch.zeros(1, 3, *size, device=device), range(len(stage_strides(model, "timm"))))
        except (RuntimeError, NotImplementedError) as error:
            if "meta tensor" not in str(error):  # else the forward pass depends on values, and the size may be right
                raise


def _create(variant: str, name: str, *, download: bool, **options: Any) -> Any:
    """Create a timm model without classifier, `features_only` if it has no `forward_intermediates`."""
    import timm

    try:
        model = timm.create_model(variant, pretrained=download, num_classes=0, **options)
        if not hasattr(model, "forward_intermediates"):
            model = timm.create_model(variant, pretrained=download, features_only=True, **options)
    except TypeError:
        raise  # an option that the architecture does not have
    except Exception as error:
        if not download:
            raise BackboneError(f"timm cannot build '{variant}': {error}") from error
        if "state_dict" in str(error):
            raise WeightsError(f"backbone '{name}': the weights of '{variant}' do not fit: {error}") from error
        source, how = _weights_source(variant)
        raise missing_files(
            name,
            f"the weights '{source}'",
            f"On a machine with a network: {how}; then pass checkpoint_path=FILE, or pretrained=False for random "
            "weights",
            error,
        ) from error
    return model


def _weights_source(variant: str) -> tuple[str, str]:
    """Location of timm's weights of a name, and how to download them."""
    import timm

    if ":" in variant:
        repository = variant.partition(":")[2]
        return repository, f"hf download {repository}"
    config: Any = timm.get_pretrained_cfg(variant)
    if config and config.hf_hub_id:
        return config.hf_hub_id, f"hf download {config.hf_hub_id} model.safetensors --local-dir ."
    if config and config.url:
        return config.url, f"download {config.url}"
    return variant, "there are none: this architecture comes without weights"


def _layout(model: nn.Module) -> Literal["NCHW", "NHWC"]:
    """Layout of `stage_maps`: NCHW by `forward_intermediates`, else the format of the `features_only` network."""
    nhwc = not hasattr(model, "forward_intermediates") and "NHWC" in str(getattr(model, "output_fmt", "NCHW"))
    return "NHWC" if nhwc else "NCHW"
