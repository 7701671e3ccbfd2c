"""Which tensor of which model a level is, stated exactly, for the encoders that people use; and all of them checked.

Every model is small, random and saved to a folder or a config; nothing is downloaded.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from fakes import images
from timm_models import need
from tiny_transformers import TEXT, VIT, save_model
from torch import Tensor, nn

from diffup.backbones import FrozenBackbone, load_backbone
from diffup.backbones.conformance import check_backbone

NAFLEX = {key: value for key, value in VIT.items() if key != "image_size"} | {"num_patches": 16}
SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "mlp_dim": 64,
    "image_size": 64,
    "patch_size": 16,
    "output_channels": 16,
    "window_size": 2,
    "global_attn_indexes": [2, 5],
}
SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 64}
STAGES = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 2, 1, 1]}
SAM2 = {
    "hidden_size": 16,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 8, 4],
    "global_attention_blocks": [3],
    "image_size": [64, 64],
}
# kind, config, tokens before those of the patches, attribute of the final norm
TOKENS: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("vit", VIT, 1, "layernorm"),
    ("deit", VIT, 2, "layernorm"),
    ("dinov2", VIT, 1, "layernorm"),
    ("dinov2_with_registers", VIT | {"num_register_tokens": 4}, 5, "layernorm"),
    ("dinov3_vit", VIT | {"num_register_tokens": 4}, 5, "norm"),
    ("clip", {"vision_config": VIT, "text_config": TEXT}, 1, "post_layernorm"),
    ("siglip", {"vision_config": VIT, "text_config": TEXT}, 0, "post_layernorm"),
    ("siglip2", {"vision_config": NAFLEX, "text_config": TEXT}, 0, "post_layernorm"),
    ("sam_vision_model", SAM, 0, None),
]


def load(kind: str, config: dict[str, Any], folder: Path, **options: Any) -> FrozenBackbone:
    """A random model, saved as `save_pretrained` does, as a backbone."""
    save_model(kind, config, folder)
    backbone = load_backbone(f"transformers:{folder}", **options)
    assert isinstance(backbone, FrozenBackbone)
    return backbone


def record_blocks(encoder: nn.Module, count: int = 6) -> list[Tensor]:
    """The outputs of a transformer's blocks, filled in by its next forward pass."""
    outputs: list[Tensor] = []
    blocks = next(m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    for block in blocks:
        block.register_forward_hook(
            lambda module, inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
    return outputs


@pytest.mark.parametrize(("kind", "config", "prefix", "norm"), TOKENS, ids=[row[0] for row in TOKENS])
def test_a_level_is_the_patch_tokens_of_a_block(
    tmp_path: Path, kind: str, config: dict[str, Any], prefix: int, norm: str | None
) -> None:
    """Position (i, j) of level l is token prefix + i * w + j after block `levels[l]`; the last, after its norm."""
    backbone = load(kind, config, tmp_path, input_size=(64, 96))
    blocks = record_blocks(backbone.encoder)
    levels = backbone.pyramid(images((64, 96)))
    assert backbone.levels == (1, 2, 4, 5)
    for level, block in zip(levels, backbone.levels, strict=True):
        state = blocks[block].reshape(1, -1, 32)
        assert state.shape[1] == prefix + 4 * 6
        expected = state[:, prefix:]
        if block == 5 and norm is not None:
            expected = getattr(backbone.encoder, norm)(expected)
        assert torch.allclose(level.flatten(2).mT, expected, atol=1e-5)


def test_siglip2_is_fed_as_its_processor_would(tmp_path: Path) -> None:
    """The last level is `last_hidden_state` of the model called on the patches of transformers' own function."""
    module = pytest.importorskip("transformers.models.siglip2.image_processing_siglip2")
    backbone = load("siglip2", {"vision_config": NAFLEX, "text_config": TEXT}, tmp_path, input_size=(64, 96))
    normalised = (images((64, 96)) - backbone.mean) / backbone.std
    patches = module.convert_image_to_patches(normalised[0], 16)[None]
    with torch.no_grad():
        output = backbone.encoder(
            pixel_values=patches, pixel_attention_mask=torch.ones(1, 24), spatial_shapes=torch.tensor([[4, 6]])
        )
    level = backbone.pyramid(images((64, 96)))[3]
    assert torch.allclose(level.flatten(2).mT, output.last_hidden_state, atol=1e-5)


def test_sam_at_its_own_size_is_untouched_and_resized_elsewhere(tmp_path: Path) -> None:
    own = load("sam_vision_model", SAM, tmp_path)
    assert own.input_size == (64, 64)  # 400 cannot be had without resizing: the model's own size is the default
    blocks = record_blocks(own.encoder)
    level = own.pyramid(images((64, 64)))[3]
    assert torch.equal(level, blocks[5].permute(0, 3, 1, 2))
    asked = load_backbone(f"transformers:{tmp_path}", input_size=(64, 64))
    assert asked.fingerprint == own.fingerprint
    wide = load_backbone(f"transformers:{tmp_path}", input_size=(64, 96))
    assert [tuple(m.shape[2:]) for m in wide.pyramid(images((64, 96)))] == [(4, 6)] * 4


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_swin_levels_are_its_hidden_states(tmp_path: Path, kind: str) -> None:
    """Level l is the reshaped hidden state at the end of stage l, before merging; Swin's, after a layer norm."""
    backbone = load(kind, SWIN, tmp_path, input_size=64)
    ends: list[Tensor] = []
    for layer in getattr(backbone.encoder, "swin", backbone.encoder).encoder.layers:  # as transformers' version has it
        layer.blocks[-1].register_forward_hook(
            lambda module, inputs, output: ends.append(output[0] if isinstance(output, tuple) else output)
        )
    levels = backbone.pyramid(images((64, 64)))
    for index, (level, end) in enumerate(zip(levels, ends, strict=True)):
        side = 16 // 2**index
        expected = F.layer_norm(end, (end.shape[-1],)) if kind == "swin" else end
        assert torch.allclose(level, expected.mT.reshape(1, -1, side, side), atol=1e-4)


def test_convnext_levels_are_its_stages(tmp_path: Path) -> None:
    """Level l is the output of stage l, after a norm over the channels."""
    backbone = load("convnext", STAGES, tmp_path, input_size=64)
    ends: list[Tensor] = []
    for stage in backbone.encoder.get_submodule("encoder.stages"):
        stage.register_forward_hook(lambda module, inputs, output: ends.append(output))
    for level, end in zip(backbone.pyramid(images((64, 64))), ends, strict=True):
        expected = F.layer_norm(end.permute(0, 2, 3, 1), (end.shape[1],), eps=1e-6).permute(0, 3, 1, 2)
        assert torch.allclose(level, expected, atol=1e-4)


def test_channels_last_stages_are_told_by_the_aspect_ratio(tmp_path: Path) -> None:
    backbone = load("sam2_hiera_det_model", SAM2, tmp_path, input_size=(64, 96))
    shapes = [tuple(level.shape[1:]) for level in backbone.pyramid(images((64, 96)))]
    assert shapes == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, config) for kind, config, _, _ in TOKENS),
        ("swin", SWIN),
        ("convnext", STAGES),
        ("dinov3_convnext", STAGES),
    ],
)
def test_transformers_keep_the_protocol(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    check_backbone(load(kind, config, tmp_path, input_size=(64, 96))).raise_for_problems()


CLIP_TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWER = {"image_size": 64, "layers": 6, "width": 32, "head_width": 16, "patch_size": 16}


def from_timm(name: str, pool: str, proj: str | None = "linear", size: int = 64) -> dict[str, Any]:
    return {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


TOWERS = {  # one for each kind of tower that OpenCLIP's model configs have
    "kind-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "kind-vit": TOWER,
    "kind-vit-alt": TOWER | {"ls_init_value": 1e-4},
    "kind-clipa": TOWER | {"final_ln_after_pool": True, "no_ln_pre": True, "pool_type": "avg"},
    "kind-coca-base": TOWER | {"output_tokens": True},
    "kind-coca": TOWER | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "kind-convnext": from_timm("test_convnext", ""),
    "kind-eva": from_timm("eva02_tiny_patch14_224", "token", None, 56),
    "kind-mobileclip": from_timm("fastvit_t8", "avg", None),
    "kind-siglip": from_timm("test_vit", "map", "none"),
    "kind-pe": from_timm("vit_pe_core_tiny_patch16_384", "map", None),
    "kind-swin": from_timm("swin_tiny_patch4_window7_224", "", size=224),
    "kind-relpos": from_timm("test_vit_relpos", ""),
    "kind-vitamin": from_timm("vitamin_small_224", ""),
    "kind-fixed": from_timm("hiera_tiny_224", "avg", size=224),
}


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("towers")
    for name, vision in TOWERS.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": CLIP_TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "kind-fixed"])
def test_every_kind_of_open_clip_tower_gives_a_pyramid(name: str) -> None:
    need(TOWERS[name].get("timm_model_name", "test_vit"))
    torch.manual_seed(0)
    size = (56, 84) if name == "kind-eva" else (64, 96)
    backbone = load_backbone(f"open_clip:{name}", pretrained=False, input_size=size)
    levels = backbone.pyramid(images(size, batch=2))
    assert len(levels) == 4
    assert all(level.shape[2] * 3 == level.shape[3] * 2 for level in levels)


def test_a_tower_that_cannot_be_resized_says_so_and_keeps_its_size() -> None:
    with pytest.raises(ValueError, match="cannot take images of 64 x 96 px; it was built for 224 x 224"):
        load_backbone("open_clip:kind-fixed", pretrained=False, input_size=(64, 96))
    assert load_backbone("open_clip:kind-fixed", pretrained=False).input_size == (224, 224)


def test_attention_pooled_tower_gives_raw_blocks_and_clipa_its_norm() -> None:
    """CoCa's final norm belongs behind its pooling, which maps are taken before; CLIPA's fits the tokens."""
    for name, normalised in (("kind-coca", False), ("kind-clipa", True), ("kind-vit", True)):
        backbone: Any = load_backbone(f"open_clip:{name}", pretrained=False, input_size=64)
        blocks = record_blocks(backbone.encoder.transformer)
        level = backbone.pyramid(images((64, 64)))[3]
        expected = blocks[5][:, 1:]
        expected = backbone.encoder.ln_post(expected) if normalised else expected
        assert torch.allclose(level.flatten(2).mT, expected, atol=1e-5), name


SMALL = ["timm:test_vit", "timm:test_resnet", "timm:test_convnext", "open_clip:kind-vit", "open_clip:kind-rn"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_encoders_give_nearly_the_same_directions(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone: Any = load_backbone(name, pretrained=False, input_size=(64, 96))
    expected = backbone.pyramid(images((64, 96)))
    half = backbone.to(dtype)
    assert half.dtype == dtype
    for level, reference in zip(half.pyramid(images((64, 96))), expected, strict=True):
        assert level.dtype == torch.float32
        assert F.cosine_similarity(level.flatten(1), reference.flatten(1)).item() > 0.99


@pytest.mark.parametrize("name", SMALL)
def test_threads_share_an_encoder(name: str) -> None:
    backbone = load_backbone(name, pretrained=False, input_size=64)
    batches = [images((64, 64), seed=seed) for seed in range(6)]
    expected = [backbone.pyramid(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(backbone.pyramid, batches))
    for levels, references in zip(found, expected, strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(levels, references, strict=True))
