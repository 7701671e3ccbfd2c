"""Family `transformers:REPO`: vision models of the Hugging Face hub or a local folder."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    describe_differences,
    find_positions,
    grid_of_positions,
    load_weights,
    part_of_larger,
    read_weights,
    window_of_biases,
)
from diffup.backbones.downloads import missing_files
from diffup.backbones.timm import DEFAULT_INPUT_SIZE
from diffup.errors import BackboneError, WeightsError

if TYPE_CHECKING:
    from typing_extensions import Unpack


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FINAL_NORMS = ("layernorm", "post_layernorm", "norm", "rms_norm")


class TransformersBackbone(FrozenBackbone):
    """A vision model of the transformers library.

    Levels are the stages of hierarchical models with a backbone class (Swin, ConvNeXt, ResNet, Hiera, ...), and the
    hidden states of every other model, without a ViT's class and register tokens, the last one after the final norm.
    """

    def __init__(
        self,
        name: str,
        encoder: nn.Module,
        *,
        flip_channels: bool,
        pretrained: bool = True,
        checkpoint: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, encoder, **options)
        self.pretrained = pretrained
        self.checkpoint = checkpoint
        self.flip_channels = flip_channels

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The maps of the chosen stages or blocks."""
        maps = stage_maps(self.network, images.flip(1) if self.flip_channels else images)
        return [maps[level] for level in self.levels]


def build(variant: str | None, **keywords: Unpack[EncoderKeywords]) -> FrozenBackbone:
    """Build a vision model of the transformers library, e.g. `transformers:facebook/dinov2-small`.

    Args:
        variant: repository of the Hugging Face hub, or local folder with a config.json. Of a model of images and text,
            the vision part is used.
        **keywords: fields of `EncoderOptions`. `input_size` is 400 by default, or the nearest multiple of the patch; a
            model that cannot take that keeps its own size (SAM: 1024). The position embeddings of SAM's image encoder
            are resized once if a size is given. The configuration comes from `variant` whatever the weights.

    Raises:
        BackboneError: the model's features cannot be arranged as maps, or it cannot take `input_size`.
        WeightsError: configuration or weights cannot be loaded, or do not fit each other.
    """
    chosen = EncoderOptions(**keywords)
    if variant is None:
        raise BackboneError("family 'transformers' needs a repository, e.g. 'transformers:facebook/dinov2-small'")
    name = f"transformers:{variant}"
    if chosen.checkpoint_path is None:
        model = _create(variant, name, download=chosen.pretrained)
    else:
        weights = read_weights(chosen.checkpoint_path, name)
        model = _create(variant, name, download=False, weights=weights)
        load_weights(model, weights, str(chosen.checkpoint_path), name, partial(part_of_larger, module=model))
    patch = _patch_size(model)
    requested = None if chosen.input_size is None else resolve_input_size(chosen.input_size, name)
    size, strides = _choose_size(model, patch, requested, name)
    mean, std, flip_channels = _normalisation(variant, name)
    return TransformersBackbone(
        name,
        model,
        flip_channels=flip_channels,
        pretrained=chosen.pretrained,
        checkpoint=chosen.checkpoint_path,
        input_size=size,
        levels=resolve_levels(chosen.levels, strides, name),
        mean=mean,
        std=std,
        multiple=patch,
    )


def stage_maps(model: Any, images: Tensor) -> list[Tensor]:
    """The maps (B, C, h, w) of every stage or block of a transformers model.

    Args:
        model: vision model of the transformers library.
        images: (B, 3, H, W), normalised.

    Raises:
        ValueError: the model's tokens do not lie on a grid of patches.
    """
    if hasattr(model, "channels"):  # a backbone class: it returns the maps of its stages itself
        return list(model(pixel_values=images).feature_maps)
    patch = _patch_size(model)
    grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
    states = model(**_inputs(model, images, patch, grid), output_hidden_states=True).hidden_states
    if states[0].ndim == 3:
        maps = [_grid_of_tokens(state, grid, type(model).__name__) for state in states]
    else:
        maps = _channels_first(states, images.shape[2] / images.shape[3])
    if maps[0].shape[2:] != maps[-1].shape[2:]:
        return [level for level in maps if level.shape[2:] != images.shape[2:]]  # some models return the image too
    norm = next((getattr(model, key) for key in _FINAL_NORMS if hasattr(model, key)), None)
    if norm is not None:
        maps[-1] = normalise_map(norm, maps[-1])
    return maps[1:]  # the first is the patch embedding


def _inputs(model: Any, images: Tensor, patch: Size, grid: Size) -> dict[str, Any]:
    """Arguments of a model's `forward`: images, or for SigLIP 2 the pixels of their patches."""
    parameters = inspect.signature(model.forward).parameters
    if "spatial_shapes" in parameters:
        batch, channels = images.shape[:2]
        patches = images.reshape(batch, channels, grid[0], patch[0], grid[1], patch[1])
        pixels = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid[0] * grid[1], -1)
        return {
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.long, device=images.device),
            "spatial_shapes": torch.tensor([grid] * batch, device=images.device),
        }
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
    return {"pixel_values": images, **options}


def _grid_of_tokens(state: Tensor, grid: Size, kind: str) -> Tensor:
    """Arrange tokens (B, N, C) as a map (B, C, h, w), without the class and register tokens, which come first."""
    count = grid[0] * grid[1]
    if state.ndim != 3 or not count <= state.shape[1] < count + min(count, 64):
        shape = tuple(state.shape)
        raise ValueError(f"{kind} gives states of shape {shape}, which are no grid of {grid[0]} x {grid[1]} patches")
    return state[:, state.shape[1] - count :].transpose(1, 2).reshape(len(state), -1, *grid)


def _channels_first(states: Sequence[Tensor], aspect: float) -> list[Tensor]:
    """Arrange maps as NCHW. Their layout is the one in which all maps together have the image's aspect ratio."""
    first = sum(abs(math.log(state.shape[2] / state.shape[3] / aspect)) for state in states)
    last = sum(abs(math.log(state.shape[1] / state.shape[2] / aspect)) for state in states)
    return [state.permute(0, 3, 1, 2) for state in states] if last < first else list(states)


def _create(variant: str, name: str, download: bool, weights: Mapping[str, Tensor] | None = None) -> Any:
    """Build the model, or its vision part, with position tables that fit the weights."""
    from transformers import AutoBackbone, AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(variant)
    except (OSError, ValueError) as error:
        raise missing_files(name, f"the configuration of '{variant}'", remedy(variant), error) from error
    config.tie_last_hidden_states = False  # else version 5 may return the last hidden state already normalised
    staged = hasattr(config, "stage_names") and hasattr(config, "depths")
    if staged:
        config.out_features = [stage for stage in config.stage_names if stage != "stem"]
    kind: Any = AutoBackbone if staged else AutoModel
    try:
        if download:
            kind = type(kind.from_config(config)) if staged else kind
            return vision_part(load_pretrained(kind, variant, name, config)).float()  # some are in half precision
        model = kind.from_config(config)
        if weights is not None and fit_config(config, vision_part(model), weights):
            model = kind.from_config(config)
    except WeightsError:
        raise
    except Exception as error:
        if not download:
            raise BackboneError(f"transformers cannot build '{variant}': {error}") from error
        raise missing_files(name, f"the weights of '{variant}'", remedy(variant), error) from error
    return vision_part(model).float()


def remedy(variant: str) -> str:
    """Sentence for an error message: how to download a repository and use it offline.

    Args:
        variant: name of the repository.
    """
    return (
        f"On a machine with a network: hf download {variant} --local-dir FOLDER; then name the folder as the encoder: "
        "transformers:FOLDER"
    )


def vision_part(model: Any) -> Any:
    """The image encoder of CLIP-like models and SAM; any other model unchanged.

    Args:
        model: model of the transformers library.
    """
    for part in ("vision_model", "vision_encoder"):
        model = getattr(model, part, model)
    return model


def load_pretrained(kind: Any, variant: str, name: str, config: Any, text: bool = False) -> Any:
    """Load a model with the weights of its repository, correcting the size of position tables in the configuration.

    Args:
        kind: class of the model, or one of transformers' automatic classes.
        variant: repository or local folder.
        name: name of the backbone in error messages.
        config: configuration of the model; its image size is changed if the weights have another.
        text: whether the text tower's weights are required too.

    Raises:
        WeightsError: the weights do not fit the configuration. The library alone would replace missing ones by random
            ones.
    """
    options: dict[str, Any] = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = kind.from_pretrained(variant, **options)
    found = {key: torch.empty(tuple(shape), device="meta") for key, shape, _ in info["mismatched_keys"]}
    if found and fit_config(config, vision_part(model), found):
        model, info = kind.from_pretrained(variant, **options)
    prefix = "" if text else _prefix(model)
    problems = describe_differences(
        missing=[key for key in info["missing_keys"] if key.startswith(prefix)],
        shapes={
            key: (tuple(theirs), tuple(own)) for key, theirs, own in info["mismatched_keys"] if key.startswith(prefix)
        },
        entries=len(model.state_dict() if text else vision_part(model).state_dict()),
    )
    if problems:
        raise WeightsError(f"backbone '{name}': the weights of '{variant}' do not fit: {problems}")
    return model


def _prefix(model: Any) -> str:
    """Prefix of the names of the image encoder's tensors."""
    part = vision_part(model)
    return next(f"{name}." if name else "" for name, module in model.named_modules() if module is part)


def fit_config(config: Any, model: Any, weights: Mapping[str, Tensor]) -> bool:
    """Set the image size in a configuration to that of the images that weights were trained on.

    Args:
        config: configuration of the whole model, changed in place.
        model: vision part of the model.
        weights: state dict of the whole model or of its vision part; only shapes are used.

    Returns:
        Whether the configuration was changed.
    """
    part, state = getattr(config, "vision_config", config), model.state_dict()
    own_size, patch = getattr(part, "image_size", None), _patch_size(model)
    own = find_positions(state, getattr(part, "hidden_size", 0))
    theirs = None if own is None else find_positions(weights, own.shape[-1])
    if own is not None and theirs is not None and own_size is not None:
        height, width = resolve_input_size(own_size, "config")
        grid = (height // patch[0], width // patch[1])
        if own.ndim == theirs.ndim == 4:
            found: Size | None = (theirs.shape[1], theirs.shape[2])
        else:
            found = grid_of_positions(theirs.shape[-2], own.shape[-2], grid)
        if found is None or found == grid:
            return False
        sides = (found[0] * patch[0], found[1] * patch[1])
        part.image_size = sides[0] if isinstance(own_size, int) and sides[0] == sides[1] else sides
        return True
    return _fit_window(part, state, weights)


def _fit_window(config: Any, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """`fit_config` for tables of relative positions: BEiT's window is its grid, Swin's is a separate setting."""
    own = next((value for key, value in state.items() if key.endswith(BIASES)), None)
    theirs = next((value for key, value in weights.items() if key.endswith(BIASES)), None)
    if own is None or theirs is None or len(own) == len(theirs):
        return False
    if isinstance(getattr(config, "window_size", None), int):
        window = window_of_biases(len(theirs), len(own), (config.window_size, config.window_size))
        if window is not None:
            config.window_size = window[0]
        return window is not None
    side = config.image_size // config.patch_size
    window = window_of_biases(len(theirs), len(own), (side, side))
    if window is not None:
        config.image_size = window[0] * config.patch_size
    return window is not None


def _patch_size(model: Any) -> Size:
    """(height, width) in pixels of a ViT's patch, which divides the sides of images; (1, 1) for other models."""
    patch = getattr(model.config, "patch_size", None)
    if hasattr(model, "channels") or not isinstance(patch, (int, list, tuple)) or hasattr(model.config, "depths"):
        return 1, 1
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def _choose_size(model: Any, patch: Size, requested: Size | None, name: str) -> tuple[Size, list[int]]:
    """Choose the first size that the model takes, tried on a blank image, and its strides at that size.

    Strides are rounded to powers of two, because the coarse maps of a CNN round their size up or down.
    """
    own = getattr(model.config, "image_size", None)
    if requested is not None:
        check_size(requested, patch, f"backbone '{name}': input_size")
        _resize_positions(model, requested, patch)
        sizes = [requested]
    else:
        sizes = [nearest_size((DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE), multiple) for multiple in (patch, (32, 32))]
        sizes += [resolve_input_size(own, name)] if own else []
    for size in dict.fromkeys(sizes):
        try:
            with torch.no_grad():
                maps = stage_maps(model.eval(), torch.zeros(1, 3, *size))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            problem: Exception = error
        else:
            return size, [2 ** round(math.log2(size[0] / level.shape[2])) for level in maps]
    hint = f"; it was built for {own} px" if own else ""
    raise BackboneError(
        f"backbone '{name}' gives no feature maps at {' or '.join(f'{h} x {w}' for h, w in sizes)} px: {problem}{hint}"
    ) from problem


def _resize_positions(model: Any, size: Size, patch: Size) -> None:
    """Adapt SAM's image encoder to another size; the model itself resizes its relative positions."""
    from timm.layers import resample_abs_pos_embed_nhwc

    table: Any = getattr(model, "pos_embed", None)
    embed: Any = getattr(model, "patch_embed", None)
    if not hasattr(embed, "image_size") or not isinstance(table, nn.Parameter) or len(table.shape) != 4:
        return
    if table.shape[3] != model.config.hidden_size:  # SAM 2 resizes its table itself
        return
    with torch.no_grad():
        grid = [size[0] // patch[0], size[1] // patch[1]]
        model.pos_embed = nn.Parameter(resample_abs_pos_embed_nhwc(table, grid), requires_grad=False)
    embed.image_size = size


def _normalisation(variant: str, name: str) -> tuple[Sequence[float], Sequence[float], bool]:
    """Mean and standard deviation from the repository's image processor, and whether the model expects BGR."""
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(variant)
    except (OSError, ValueError, ImportError):
        processor = None
    if not hasattr(processor, "do_rescale"):
        warnings.warn(
            f"backbone '{name}' comes without an image processor; ImageNet's mean and std are used",
            stacklevel=5,
        )
        return (*_IMAGENET, False)
    flip = bool(getattr(processor, "do_flip_channel_order", False))
    if not getattr(processor, "do_normalize", False):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), flip
    return processor.image_mean, processor.image_std, flip
