"""The text space of a CLIP, SigLIP or SigLIP 2 model of the transformers library."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffup.backbones.base import FrozenBackbone
from diffup.backbones.checkpoint import load_weights, read_weights
from diffup.backbones.transformers import TransformersBackbone, fit_config, load_pretrained, vision_part
from diffup.errors import BackboneError, WeightsError
from diffup.text.positions import block_values, run_and_catch, to_map
from diffup.text.two_towers import TwoTowers


class TransformersText(TwoTowers):
    """The text space of a `CLIPModel`, `SiglipModel` or `Siglip2Model`.

    Args:
        backbone: vision part of the model, which is shared and not copied.
        model: whole model of the transformers library.
        tokenizer: tokenizer of the model.

    Raises:
        BackboneError: the model has no text tower, or no dense features are known for it.
    """

    def __init__(self, backbone: FrozenBackbone, model: Any, tokenizer: Any) -> None:
        if not hasattr(model, "get_text_features") or not hasattr(model, "vision_model"):
            raise BackboneError(f"backbone '{backbone.name}' is a {type(model).__name__}, which reads no texts")
        model.vision_model = backbone.encoder  # replaces its own vision part
        super().__init__(backbone, model, tokenizer)

    def _dense(self, images: Tensor) -> Tensor:
        return dense_features(self.model, images)

    def _embed(self, texts: list[str]) -> Tensor:
        # SigLIP was trained on texts padded to the maximum length.
        padding = "longest" if hasattr(self.model, "text_projection") else "max_length"
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        accepted = inspect.signature(self.model.get_text_features).parameters
        inputs = {key: value.to(self.device) for key, value in tokens.items() if key in accepted}
        output = self.model.get_text_features(**inputs)
        return F.normalize(getattr(output, "pooler_output", output).float(), dim=1)


def build(backbone: TransformersBackbone) -> TransformersText:
    """Build the text space of a backbone's own CLIP or SigLIP, and load its text tower.

    Args:
        backbone: vision part of the model.

    Raises:
        BackboneError: the model has no text tower, or no dense text-space features are known for it.
        WeightsError: text tower or tokenizer cannot be loaded, or the backbone's checkpoint has no text tower.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    variant, download, checkpoint = backbone.name.partition(":")[2], backbone.pretrained, backbone.checkpoint
    weights = None if checkpoint is None else read_weights(checkpoint, backbone.name)
    try:
        config = AutoConfig.from_pretrained(variant)
        if not hasattr(config, "text_config"):
            raise BackboneError(f"backbone '{backbone.name}' is a {config.model_type} model, which reads no texts")
        if download and weights is None:
            model = load_pretrained(AutoModel, variant, backbone.name, config, text=True)
        else:
            model = AutoModel.from_config(config)
        if weights is not None and _fit_whole(config, model, weights):
            model = AutoModel.from_config(config)
        tokenizer = AutoTokenizer.from_pretrained(variant)
    except (BackboneError, WeightsError):
        raise
    except Exception as error:  # the hub's client raises OSError, ValueError, ImportError and its own
        raise WeightsError(
            f"backbone '{backbone.name}' needs the text tower and tokenizer of '{variant}', and getting them failed: "
            f"{error}. Download the repository elsewhere and name its folder: 'transformers:/path/to/folder'"
        ) from error
    if weights is not None:
        load_weights(model, weights, str(checkpoint), backbone.name)
    return TransformersText(backbone, model.float(), tokenizer)


def _fit_whole(config: Any, model: Any, weights: Mapping[str, Tensor]) -> bool:
    """`fit_config`, and the same for the maximum length of texts."""
    changed = fit_config(config, vision_part(model), weights)
    key = "text_model.embeddings.position_embedding.weight"
    own, theirs = model.state_dict().get(key), weights.get(key)
    if own is not None and theirs is not None and len(own) != len(theirs):
        config.text_config.max_position_embeddings = len(theirs)
        return True
    return changed


def dense_features(model: nn.Module, images: Tensor) -> Tensor:
    """Dense features in the space of a model's pooled image embedding.

    For CLIP they are the value path of the last block, the final norm and the projection; for SigLIP and SigLIP 2 the
    attention pooling head of every single token, its MLP included. Position embeddings are interpolated to the images'
    size.

    Args:
        model: `CLIPModel`, `SiglipModel` or `Siglip2Model`.
        images: (B, 3, H, W), normalised; H and W multiples of the patch size.

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: the model is of another kind.
    """
    whole: Any = model
    vision, patch = whole.vision_model, whole.vision_model.config.patch_size
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    if hasattr(whole, "visual_projection") and hasattr(vision, "post_layernorm"):
        tokens = run_and_catch(vision, vision.encoder.layers[-1], images, interpolate_pos_encoding=True)
        values = vision.post_layernorm(block_values(vision.encoder.layers[-1], tokens))
        return to_map(whole.visual_projection(values), grid, prefix=1)
    if getattr(vision, "head", None) is None or not hasattr(vision.head, "probe"):
        raise ValueError(f"{type(model).__name__} is neither CLIP nor SigLIP with its pooling head")
    if "spatial_shapes" in inspect.signature(vision.forward).parameters:  # SigLIP 2 takes patches, not images
        shapes = torch.tensor([grid] * len(images), device=images.device)
        patches = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, h, w, p, p)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        output = vision(patches, pixel_attention_mask=None, spatial_shapes=shapes)
    else:
        output = vision(images, interpolate_pos_encoding=True)
    tokens = output.last_hidden_state
    heads = vision.head(tokens.reshape(-1, 1, tokens.shape[2])).view(*tokens.shape[:2], -1)
    return to_map(heads, grid, prefix=0)
