"""Family `open_clip:ARCH/PRETRAINED`: the visual towers of OpenCLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    find_positions,
    grid_of_positions,
    load_weights,
    part_of_larger,
    read_weights,
    window_of_biases,
)
from diffup.backbones.downloads import missing_files
from diffup.backbones.timm import DEFAULT_INPUT_SIZE, patch_size, stage_maps, stage_strides
from diffup.errors import BackboneError, WeightsError
from diffup.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Unpack


_TEXT_POSITIONS = ("positional_embedding", "text.positional_embedding")
_RESNET_STRIDES = [4, 4, 8, 16, 32]  # CLIP's ResNets: stem of three convolutions with pooling, then four stages


class OpenClipBackbone(FrozenBackbone):
    """The visual tower of an OpenCLIP model: CLIP's ResNets and ViTs, and towers that come from timm.

    Attributes:
        architecture: OpenCLIP's name of the architecture, for its tokenizer.
        load_model: function without arguments that builds the whole model with the same weights, for its text tower.
    """

    architecture: str = ""
    load_model: Callable[[], Any] | None = None

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The maps of the chosen stages or blocks; the last block of a ViT passes through the tower's final norm."""
        tower: Any = self.network
        if hasattr(tower, "trunk"):
            return stage_maps(tower.trunk, images, self.levels)
        wanted = sorted(set(self.levels))
        output = tower.forward_intermediates(images, indices=wanted, stop_early=True, intermediates_only=True)
        maps = output["image_intermediates"]
        if _is_vit(tower) and wanted[-1] == len(tower.transformer.resblocks) - 1 and tower.attn_pool is None:
            maps[-1] = normalise_map(tower.ln_post, maps[-1])
        return [maps[wanted.index(level)] for level in self.levels]


def build(variant: str | None, **keywords: Unpack[EncoderKeywords]) -> FrozenBackbone:
    """Build the visual tower of an OpenCLIP model, e.g. `open_clip:ViT-B-16/openai`.

    Args:
        variant: ARCH/PRETRAINED as listed by `open_clip.list_pretrained()`; ARCH alone with `checkpoint_path` or
            `pretrained=False`; or `hf-hub:REPO` or `local-dir:FOLDER`.
        **keywords: fields of `EncoderOptions`. `levels` are stages (ResNets: stem and four stages) or blocks (ViTs).
            `input_size` is 400 by default, for ViTs the nearest multiple of the patch; towers whose size cannot be
            changed keep their own. Position embeddings are resized once, when the tower is built, from the grid that
            the weights were trained at. `checkpoint_path` holds the whole CLIP or its visual tower.

    Raises:
        BackboneError: OpenCLIP does not know the name, or the tower cannot take `input_size`.
        WeightsError: the weights cannot be downloaded or do not fit the tower.
    """
    chosen = EncoderOptions(**keywords)
    if variant is None:
        raise BackboneError("family 'open_clip' needs ARCH/PRETRAINED, e.g. 'open_clip:ViT-B-16/openai'")
    name = f"open_clip:{variant}"
    download = chosen.download
    architecture, tag = _parse(variant, name, download)
    requested = None if chosen.input_size is None else resolve_input_size(chosen.input_size, name)
    tower = _tower(_create(architecture, tag, name, download), architecture, tag, download)
    if chosen.checkpoint_path is not None:
        weights = read_weights(chosen.checkpoint_path, name)
        _take_grid(tower, weights, requested)
        load_weights(tower, weights, str(chosen.checkpoint_path), name, partial(part_of_larger, module=tower))
    strides, patch = _describe(tower, name)
    size = _resize(tower, patch, requested, name)
    backbone = OpenClipBackbone(
        name,
        tower,
        input_size=size,
        levels=resolve_levels(chosen.levels, strides, name),
        mean=tower.image_mean,
        std=tower.image_std,
        multiple=patch,
    )
    backbone.architecture = architecture
    backbone.load_model = partial(_load_model, architecture, tag, name, download, chosen.checkpoint_path, requested)
    return backbone


def _load_model(
    architecture: str,
    tag: str | None,
    name: str,
    download: bool,
    checkpoint: str | Path | None,
    requested: Size | None,
) -> Any:
    """Load the whole model, text tower included."""
    if checkpoint is None:
        return _create(architecture, tag, name, download)
    weights = read_weights(checkpoint, name)
    model = _create(architecture, tag, name, download)
    own = model.state_dict()
    for key in _TEXT_POSITIONS:
        if key in own and key in weights and len(own[key]) != len(weights[key]):
            length = len(weights[key]) - len(own[key]) + model.context_length
            model = _create(architecture, tag, name, download, length)
    _take_grid(model.visual, weights, requested)
    load_weights(model, weights, str(checkpoint), name)
    return model


def _take_grid(tower: Any, weights: Mapping[str, Tensor], requested: Size | None) -> None:
    """Resize a tower's tables of positions to those of a checkpoint that is loaded next."""
    part = part_of_larger(weights, tower)
    if hasattr(tower, "attnpool") and "attnpool.positional_embedding" in part:  # one size; dense features go without
        tower.attnpool.positional_embedding = nn.Parameter(part["attnpool.positional_embedding"].clone())
    elif _is_vit(tower) and "positional_embedding" in part:
        own: Size = tuple(tower.grid_size)
        table = part["positional_embedding"]
        others = [] if requested is None else [_patches(requested, tower.patch_size)]
        grid = grid_of_positions(len(table), len(tower.positional_embedding), own, others)
        if grid is not None and grid != own:
            tower.positional_embedding = nn.Parameter(torch.empty_like(table, dtype=torch.float32))
            tower.grid_size = grid
            tower.image_size = (grid[0] * tower.patch_size[0], grid[1] * tower.patch_size[1])
    elif hasattr(getattr(tower, "trunk", None), "set_input_size"):
        grid = _grid_of_trunk(tower.trunk, part, requested)
        if grid is not None:
            patch = tower.trunk.patch_embed.patch_size
            tower.trunk.set_input_size(img_size=(grid[0] * patch[0], grid[1] * patch[1]))


def _grid_of_trunk(trunk: Any, part: Mapping[str, Tensor], requested: Size | None) -> Size | None:
    """The grid of a checkpoint's positions for a tower from timm; None if it has no positions of its own."""
    weights, state = {key.removeprefix("trunk."): value for key, value in part.items()}, trunk.state_dict()
    own, theirs = (find_positions(tables, trunk.num_features) for tables in (state, weights))
    grid: Size = tuple(trunk.patch_embed.grid_size)
    if own is not None and theirs is not None:
        others = [] if requested is None else [_patches(requested, trunk.patch_embed.patch_size)]
        return grid_of_positions(theirs.shape[-2], own.shape[-2], grid, others)
    biases = [key for key in state if key.endswith(BIASES) and key in weights]
    whole = biases and tuple(trunk.get_submodule(biases[0].rpartition(".")[0]).window_size) == grid
    return window_of_biases(len(weights[biases[0]]), len(state[biases[0]]), grid) if whole else None


def _patches(size: Size, patch: Sequence[int]) -> Size:
    return size[0] // patch[0], size[1] // patch[1]


def _parse(variant: str, name: str, download: bool) -> tuple[str, str | None]:
    """Split a variant into architecture and tag, and check that OpenCLIP knows them."""
    import open_clip

    if variant.startswith(("hf-hub:", "local-dir:")):
        return variant, None
    architecture, _, tag = variant.partition("/")
    if architecture not in open_clip.list_models():
        raise BackboneError(
            f"OpenCLIP has no architecture '{architecture}'{did_you_mean(architecture, open_clip.list_models())} "
            "All names: open_clip.list_pretrained()"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if (tag or download) and tag not in tags:
        problem = f"OpenCLIP knows no weights '{tag}' of '{architecture}'" if tag else f"'{name}' names no weights"
        raise BackboneError(
            f"{problem}; there are: {', '.join(tags) or 'none'}. Write open_clip:{architecture}/PRETRAINED, or pass "
            "checkpoint_path=FILE, or pretrained=False for random weights"
        )
    return architecture, tag or None


def _create(architecture: str, tag: str | None, name: str, download: bool, length: int | None = None) -> Any:
    """Build a model, for texts of another length than the architecture's if one is given."""
    import open_clip

    try:
        return open_clip.create_model(
            architecture,
            pretrained=tag if download else None,
            require_pretrained=download,
            pretrained_hf=False,  # a language model as text tower comes with the whole model's weights
            **({} if length is None else {"force_context_length": length}),
        )
    except Exception as error:
        if not download:
            raise BackboneError(f"OpenCLIP cannot build '{architecture}': {error}") from error
        if "state_dict" in str(error):
            raise WeightsError(f"backbone '{name}': the weights of '{architecture}' do not fit: {error}") from error
        source, file = _weights_source(architecture, tag)
        raise missing_files(
            name,
            f"the weights '{source}'",
            f"On a machine with a network: {file}; then pass checkpoint_path=FILE, or pretrained=False for random "
            "weights",
            error,
        ) from error


def _tower(model: Any, architecture: str, tag: str | None, download: bool) -> Any:
    """The visual tower of a model, with the normalisation of the named weights."""
    import open_clip

    tower: Any = model.visual
    if tag and not download:  # the normalisation still belongs to the named weights
        config = open_clip.get_pretrained_cfg(architecture, tag)
        tower.image_mean = config.get("mean") or tower.image_mean
        tower.image_std = config.get("std") or tower.image_std
    return tower


def _weights_source(architecture: str, tag: str | None) -> tuple[str, str]:
    """Location of the weights of a name, and how to download them."""
    import open_clip

    if tag is None:  # hf-hub: or local-dir:
        repository = architecture.partition(":")[2]
        return repository, f"hf download {repository} --local-dir ."
    config = open_clip.get_pretrained_cfg(architecture, tag)
    repository, _, file = (config.get("hf_hub") or "").rpartition("/")
    if repository:
        return repository, f"hf download {repository} {file or 'open_clip_model.safetensors'} --local-dir ."
    return config.get("url", ""), f"download {config.get('url', '')}"


def _is_vit(tower: Any) -> bool:
    return hasattr(tower, "transformer") and hasattr(tower, "positional_embedding")


def _describe(tower: Any, name: str) -> tuple[list[int], Size]:
    """Strides of the stages or blocks, and (height, width) that the sides of an image must be multiples of."""
    if hasattr(tower, "trunk"):
        strides = stage_strides(tower.trunk, name)
        return strides, patch_size(tower.trunk, strides)
    if _is_vit(tower):
        return [tower.patch_size[0]] * len(tower.transformer.resblocks), tuple(tower.patch_size)
    if hasattr(tower, "layer4"):
        return _RESNET_STRIDES, (1, 1)
    raise BackboneError(f"backbone '{name}': towers of the type {type(tower).__name__} offer no intermediate features")


def _resize(tower: Any, patch: Size, requested: Size | None, name: str) -> Size:
    """Adapt the tower to images of the requested or default size, and return that size."""
    side = (DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE)
    size = requested or nearest_size(side, patch)
    own: Size = tuple(tower.image_size) if isinstance(tower.image_size, Sequence) else (tower.image_size,) * 2
    check_size(size, patch, f"backbone '{name}': input_size")
    if _is_vit(tower):
        _resize_positions(tower, size)
    elif hasattr(getattr(tower, "trunk", None), "set_input_size"):
        tower.trunk.set_input_size(img_size=size)
    elif hasattr(tower, "trunk") and size != own and not _takes(tower.trunk, size, name):
        if requested is not None:
            raise BackboneError(
                f"backbone '{name}' cannot take images of {size[0]} x {size[1]} px; it was built for "
                f"{own[0]} x {own[1]}"
            )
        return own
    return size


def _takes(trunk: Any, size: Size, name: str) -> bool:
    """Whether an unchanged tower from timm takes a size, tried on a blank image."""
    try:
        with torch.no_grad():
            stage_maps(trunk.eval(), torch.zeros(1, 3, *size), [len(stage_strides(trunk, name)) - 1])
    except Exception:  # architectures refuse sizes with TypeError, AssertionError, RuntimeError, ...
        return False
    return True


def _resize_positions(tower: Any, size: Size) -> None:
    from timm.layers import resample_abs_pos_embed

    grid = (size[0] // tower.patch_size[0], size[1] // tower.patch_size[1])
    with torch.no_grad():
        positions = resample_abs_pos_embed(
            tower.positional_embedding[None], new_size=list(grid), old_size=list(tower.grid_size), num_prefix_tokens=1
        )
    tower.positional_embedding = nn.Parameter(positions[0])
    tower.grid_size, tower.image_size = grid, size
