"""Position tables of another grid than the architecture's own: the features are the library's own model's, exactly.

Encoders with BatchNorm run with it folded, which rounds otherwise; their features are compared in float64.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from clip_towers import add_towers
from fakes import images
from safetensors.torch import load_file, save_file
from timm_models import need
from tiny_transformers import TEXT, VIT, save_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from diffup.backbones import load_backbone
from diffup.backbones.base import normalise_map
from diffup.backbones.open_clip import _take_grid
from diffup.backbones.timm import stage_strides
from diffup.errors import WeightsError
from diffup.text import load_text_space

Sides = int | tuple[int, int]


def sized(size: Sides) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def scatter(model: nn.Module) -> nn.Module:
    """Make positions matter: the tables are small at random initialisation."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("pos_embed", "position", "bias_table", "gamma")):
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def write(model: nn.Module, file: Path) -> Path:
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, file)
    return file


def equal(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def folded(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def same(got: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether features that were computed in float64 and given in float32 differ by no more than that rounds."""
    assert all(part.dtype == torch.float64 for part in expected)
    return all(float((a - b).abs().max()) <= 2**-23 * float(b.abs().max()) for a, b in zip(got, expected, strict=True))


def timm_features(model: Any, backbone: Any, picture: Tensor) -> list[Tensor]:
    wanted = sorted(set(backbone.levels))
    with torch.no_grad():
        maps = model.forward_intermediates(
            (picture - backbone.mean) / backbone.std, indices=wanted, norm=False, intermediates_only=True
        )
        if isinstance(getattr(model, "norm", None), nn.Module) and len(set(stage_strides(model, "timm"))) == 1:
            maps[-1] = normalise_map(model.norm, maps[-1])
    return [maps[wanted.index(level)] for level in backbone.levels]


TIMM: list[tuple[str, Sides, dict[str, Any], Sides]] = [
    ("test_vit", 96, {}, (64, 128)),
    ("test_vit", 256, {}, 224),  # the grid is larger than the architecture's
    ("test_vit2", 96, {}, (64, 128)),
    ("test_vit_relpos", 96, {}, (64, 128)),  # a table of relative positions in each block
    ("vit_tiny_patch16_224", 384, {}, 256),
    ("deit_tiny_distilled_patch16_224", 96, {}, 64),  # two class tokens
    ("vit_small_patch14_dinov2", 112, {}, 140),
    ("eva02_tiny_patch14_224", 112, {}, 140),
    ("test_maxvit", 224, {}, 160),
    ("swin_tiny_patch4_window7_224", 384, {"window_size": 12}, 384),
]


@pytest.mark.parametrize(("variant", "trained", "options", "other"), TIMM)
def test_timm(variant: str, trained: Sides, options: dict[str, Any], other: Sides, tmp_path: Path) -> None:
    need(variant)
    model: Any = scatter(timm.create_model(variant, num_classes=0, img_size=trained, **options))
    file = write(model, tmp_path / "weights.safetensors")
    for size in (trained, other):
        backbone: Any = load_backbone(f"timm:{variant}", checkpoint_path=file, input_size=size)
        picture = images(sized(size))
        if size != trained:
            model.set_input_size(img_size=size)
        if folded(model):
            model, backbone, picture = model.double(), backbone.double(), picture.double()
        compare = same if folded(model) else equal
        assert compare(backbone.pyramid(picture), timm_features(model, backbone, picture)), size


def test_timm_keeps_the_table_of_the_file_at_every_size(tmp_path: Path) -> None:
    model: Any = scatter(timm.create_model("test_vit", num_classes=0, img_size=96))
    file = write(model, tmp_path / "weights.safetensors")
    for size in (96, 160, 400, None):
        backbone: Any = load_backbone(
            "timm:test_vit", checkpoint_path=file, **({} if size is None else {"input_size": size})
        )
        assert torch.equal(backbone.encoder.pos_embed, model.pos_embed), size


@pytest.mark.slow
def test_timm_beit(tmp_path: Path) -> None:
    model: Any = scatter(timm.create_model("beit_base_patch16_224", num_classes=0, img_size=96))
    file = write(model, tmp_path / "weights.safetensors")
    backbone: Any = load_backbone("timm:beit_base_patch16_224", checkpoint_path=file, input_size=96)
    assert equal(backbone.pyramid(images((96, 96))), timm_features(model, backbone, images((96, 96))))


def test_a_grid_that_is_not_square_is_the_inputs_own(tmp_path: Path) -> None:
    model: Any = scatter(timm.create_model("test_vit", num_classes=0, img_size=(64, 96)))
    file = write(model, tmp_path / "weights.safetensors")
    with pytest.warns(UserWarning, match="positions of 24 patches, which form no square; .* input_size, 4 x 6"):
        backbone: Any = load_backbone("timm:test_vit", checkpoint_path=file, input_size=(64, 96))
    assert equal(backbone.pyramid(images((64, 96))), timm_features(model, backbone, images((64, 96))))
    with pytest.raises(
        WeightsError, match=r"do not fit: their positions .*pos_embed: \[1, 25, 64\], not \[1, 101, 64\]"
    ):
        load_backbone("timm:test_vit", checkpoint_path=file, input_size=160)


def test_as_many_patches_in_another_grid_are_resized(tmp_path: Path) -> None:
    need("test_vit_relpos")
    model: Any = scatter(timm.create_model("test_vit", num_classes=0, img_size=64))
    file = write(model, tmp_path / "weights.safetensors")
    backbone: Any = load_backbone("timm:test_vit", checkpoint_path=file, input_size=(32, 128))
    model.set_input_size(img_size=(32, 128))
    assert equal(backbone.pyramid(images((32, 128))), timm_features(model, backbone, images((32, 128))))


def test_joint_members_each_keep_their_grid(tmp_path: Path) -> None:
    model: Any = scatter(timm.create_model("test_vit", num_classes=0, img_size=96))
    file = write(model, tmp_path / "weights.safetensors")
    one: Any = load_backbone("timm:test_vit", checkpoint_path=file, input_size=96)
    both = load_backbone("timm:test_vit + timm:test_vit", checkpoint_path=file, input_size=96)
    expected = timm_features(model, one, images((96, 96)))
    assert equal(both.pyramid(images((96, 96))), [torch.cat([level, level], dim=1) for level in expected])


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_towers(tmp_path_factory.mktemp("configs"), "posed", words=49408)


@pytest.mark.parametrize("part", ["whole", "visual"])
@pytest.mark.parametrize("variant", ["posed-ViT", "posed-timm", "posed-relpos"])
def test_open_clip(variant: str, part: str, tmp_path: Path) -> None:
    if variant == "posed-relpos":
        need("test_vit_relpos")
    model: Any = scatter(open_clip.create_model(variant, force_image_size=96))
    file = write(model if part == "whole" else model.visual, tmp_path / "clip.safetensors")
    tower = model.visual
    for size in ((96, 96), (64, 128)):
        backbone: Any = load_backbone(f"open_clip:{variant}", checkpoint_path=file, input_size=size)
        picture = images(size)
        if size != (96, 96) and hasattr(tower, "trunk"):
            tower.trunk.set_input_size(img_size=size)
        elif size != (96, 96):
            from timm.layers import resample_abs_pos_embed

            table = resample_abs_pos_embed(tower.positional_embedding[None], [4, 8], [6, 6], num_prefix_tokens=1)
            tower.positional_embedding = nn.Parameter(table[0])
        if hasattr(tower, "trunk"):
            expected = timm_features(tower.trunk, backbone, picture)
        else:
            with torch.no_grad():
                output = tower.forward_intermediates(
                    (picture - backbone.mean) / backbone.std, indices=[1, 2, 4, 5], intermediates_only=True
                )
                expected = output["image_intermediates"]
                expected[-1] = normalise_map(tower.ln_post, expected[-1])
        assert equal(backbone.pyramid(picture), expected), size


def test_open_clip_texts_of_a_checkpoint_of_another_grid_and_length(tmp_path: Path) -> None:
    model: Any = scatter(open_clip.create_model("posed-ViT", force_image_size=96, force_context_length=12))
    file = write(model, tmp_path / "clip.safetensors")
    backbone: Any = load_backbone("open_clip:posed-ViT", checkpoint_path=file, input_size=96)
    texts = ["a dog", "a very long sentence about a dog that sleeps on a sofa"]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("posed-ViT", context_length=12)(texts)
        expected = model.encode_text(tokens, normalize=True)
    assert torch.allclose(load_text_space(backbone).embed(texts), expected, atol=1e-6)


def test_open_clip_resnets_of_another_size(tmp_path: Path) -> None:
    model: Any = scatter(open_clip.create_model("posed-RN", force_image_size=96))
    file = write(model, tmp_path / "clip.safetensors")
    backbone: Any = load_backbone("open_clip:posed-RN", checkpoint_path=file, input_size=96)
    model, backbone, picture = model.double(), backbone.double(), images((96, 96)).double()
    with torch.no_grad():
        output = model.visual.forward_intermediates(
            (picture - backbone.mean) / backbone.std, indices=[1, 2, 3, 4], intermediates_only=True
        )
    assert same(backbone.pyramid(picture), output["image_intermediates"])


def test_a_tower_without_positions_is_left_alone() -> None:
    tower: Any = open_clip.create_model("posed-ViT").visual
    before = tower.positional_embedding
    _take_grid(tower, {"conv1.weight": torch.zeros(1)}, None)
    assert tower.positional_embedding is before


CLIP = {"vision_config": VIT, "text_config": TEXT | {"max_position_embeddings": 16}, "projection_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT,
    "dinov2": VIT | {"patch_size": 16},
    "dinov2_with_registers": VIT | {"num_register_tokens": 4},
    "clip": CLIP,
    "siglip": CLIP,
    "beit": VIT | {"use_relative_position_bias": True, "use_absolute_position_embeddings": False},
}


def at_size(kind: str, size: int) -> dict[str, Any]:
    config = MODELS[kind]
    if "vision_config" in config:
        return {**config, "vision_config": {**config["vision_config"], "image_size": size}}
    return {**config, "image_size": size}


def transformers_features(model: Any, backbone: Any, size: tuple[int, int]) -> list[Tensor]:
    """Raw blocks 1, 2 and 4; the last passes through a norm whose place differs from model to model."""
    import inspect

    part = getattr(model, "vision_model", model)
    takes = "interpolate_pos_encoding" in inspect.signature(part.forward).parameters
    options = {"interpolate_pos_encoding": True} if takes else {}
    with torch.no_grad():
        normalised = (images(size) - backbone.mean) / backbone.std
        states = part(pixel_values=normalised, output_hidden_states=True, **options).hidden_states
    grid = (size[0] // 16, size[1] // 16)
    rows = [states[level + 1][:, -grid[0] * grid[1] :] for level in (1, 2, 4)]
    return [row.transpose(1, 2).reshape(1, -1, *grid) for row in rows]


@pytest.mark.parametrize("given", ["checkpoint", "folder"])
@pytest.mark.parametrize("kind", MODELS)
def test_transformers(kind: str, given: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    save_model(kind, at_size(kind, 64), folder)
    model: Any = scatter(AutoModel.from_config(AutoConfig.for_model(kind, **at_size(kind, 96))))
    file = write(model, tmp_path / "other.safetensors" if given == "checkpoint" else folder / "model.safetensors")
    if given == "folder":
        save_file(load_file(file), file, metadata={"format": "pt"})
    for size in ((96, 96), (64, 64), (64, 128)):
        options = {"checkpoint_path": file} if given == "checkpoint" else {}
        backbone: Any = load_backbone(f"transformers:{folder}", input_size=size, **options)
        assert equal(backbone.pyramid(images(size))[:3], transformers_features(model, backbone, size)), size


def test_transformers_swin_of_another_window(tmp_path: Path) -> None:
    config = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "image_size": 64}
    save_model("swin", config | {"window_size": 2}, tmp_path)
    from transformers import AutoBackbone

    names = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    model: Any = scatter(AutoBackbone.from_config(AutoConfig.for_model("swin", **config, window_size=4, **names)))
    file = write(model, tmp_path / "other.safetensors")
    backbone: Any = load_backbone(f"transformers:{tmp_path}", checkpoint_path=file, input_size=64)
    with torch.no_grad():
        expected = list(model(pixel_values=(images((64, 64)) - backbone.mean) / backbone.std).feature_maps)
    assert equal(backbone.pyramid(images((64, 64))), expected)


def test_transformers_folders_with_other_weights_name_what_differs(tmp_path: Path) -> None:
    model = save_model("vit", VIT, tmp_path)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    del weights[
        "encoder.layer.2.output.dense.bias"
        if "encoder.layer.2.output.dense.bias" in weights
        else next(key for key in weights if key.endswith("layernorm_before.bias"))
    ]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit: the file is incomplete.*; 1 missing \(.*bias\)"):
        load_backbone(f"transformers:{tmp_path}")


def cases() -> list[tuple[str, dict[str, Tensor], str]]:
    own = timm.create_model("test_vit", num_classes=0).state_dict()
    wide = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=160, depth=6).state_dict()
    deep = timm.create_model("test_vit", num_classes=0, depth=8).state_dict()
    positions = own | {"pos_embed": torch.zeros(1, 24, 64)}
    return [
        (
            "of another architecture",
            timm.create_model("test_resnet", num_classes=0).state_dict(),
            r"78 missing \(cls_token",
        ),
        ("of a smaller or larger size", wide, r"cls_token: \[1, 1, 192\], not \[1, 1, 64\]"),
        ("of a deeper variant", deep, r"24 unexpected \(blocks.6.attn.proj.bias"),
        ("incomplete", {key: value for key, value in own.items() if "blocks.5" not in key}, r"12 missing \(blocks.5"),
        ("their positions are of a grid", positions, r"1 of another shape \(pos_embed: \[1, 24, 64\], not"),
    ]


@pytest.mark.parametrize(("cause", "weights", "named"), cases())
def test_load_errors_say_the_likeliest_cause_and_the_tensors(
    cause: str, weights: dict[str, Tensor], named: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    with pytest.raises(WeightsError, match=f"do not fit: [^;]*{cause}.*{named}"):
        load_backbone("timm:test_vit", checkpoint_path=file)


def test_what_a_converter_mends_is_not_named_as_the_fault(tmp_path: Path) -> None:
    model: Any = timm.create_model("test_vit_relpos", num_classes=0, img_size=96)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    del weights["blocks.0.mlp.fc1.bias"]
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    with pytest.raises(WeightsError) as caught:
        load_backbone("timm:test_vit_relpos", checkpoint_path=file, input_size=128)
    assert "1 missing (blocks.0.mlp.fc1.bias)" in str(caught.value)
    assert "relative_position_bias_table" not in str(caught.value)


def test_nothing_warns_where_nothing_is_guessed(tmp_path: Path) -> None:
    file = write(timm.create_model("test_vit", num_classes=0, img_size=96), tmp_path / "weights.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone("timm:test_vit", checkpoint_path=file, input_size=96)
