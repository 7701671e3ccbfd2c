"""Family `open_clip`, on tiny towers with random weights; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_towers import add_towers
from fakes import images, random_backbone
from safetensors.torch import save_file
from timm_models import need
from torch import Tensor

from diffup.backbones import FrozenBackbone, load_backbone
from diffup.errors import BackboneError, WeightsError


@pytest.fixture(scope="module", autouse=True)
def _towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_towers(tmp_path_factory.mktemp("configs"), "tiny", words=64)


def load(variant: str, **options: Any) -> FrozenBackbone:
    return random_backbone(f"open_clip:{variant}", **options)


@pytest.mark.parametrize(
    ("variant", "strides", "levels"),
    [
        ("tiny-RN", (4, 8, 16, 32), (1, 2, 3, 4)),
        ("tiny-ViT", (16, 16, 16, 16), (1, 2, 4, 5)),
        ("tiny-timm", (16, 16, 16, 16), (1, 2, 4, 5)),
        ("tiny-convnext", (4, 8, 16, 32), (0, 1, 2, 3)),
    ],
)
def test_any_tower_gives_four_levels(variant: str, strides: tuple[int, ...], levels: tuple[int, ...]) -> None:
    backbone = load(variant, input_size=(96, 128))
    assert backbone.levels == levels
    maps = backbone.pyramid(images((96, 128), batch=2))
    assert [tuple(m.shape[2:]) for m in maps] == [(96 // s, 128 // s) for s in strides]
    assert backbone.mean.flatten().tolist() == pytest.approx(list(open_clip.OPENAI_DATASET_MEAN))


def test_default_input_sizes() -> None:
    assert load("tiny-RN").input_size == (400, 400)
    assert load("tiny-ViT").input_size == (400, 400)
    assert load("tiny-timm").input_size == (400, 400)


def test_vit_levels_are_the_towers_own_tokens() -> None:
    backbone = load("tiny-ViT", input_size=64)
    blocks: list[Tensor] = []
    for block in backbone.encoder.transformer.resblocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    levels = backbone.pyramid(images((64, 64)))
    assert torch.allclose(levels[0].flatten(2).transpose(1, 2), blocks[1][:, 1:], atol=1e-5)
    backbone.encoder.output_tokens = True
    with torch.no_grad():
        _, tokens = backbone.encoder((images((64, 64)) - backbone.mean) / backbone.std)
    assert torch.allclose(levels[3].flatten(2).transpose(1, 2), tokens, atol=1e-5)


def test_position_embeddings_are_resized_once_and_counted_by_the_fingerprint() -> None:
    own, wide = load("tiny-ViT", input_size=64), load("tiny-ViT", input_size=(64, 96))
    assert own.encoder.positional_embedding.shape == (17, 32)
    assert wide.encoder.positional_embedding.shape == (25, 32)
    assert not wide.encoder.positional_embedding.requires_grad
    assert torch.equal(own.encoder.positional_embedding[0], wide.encoder.positional_embedding[0])  # the class token
    assert own.fingerprint != wide.fingerprint
    with pytest.raises(BackboneError, match="built for 64 x 64 px, failed on images of 64 x 96 px"):
        own.pyramid(images((64, 96)))
    with pytest.raises(BackboneError, match="must be a multiple of 16 x 16"):
        load("tiny-ViT", input_size=100)


def test_a_tower_of_fixed_size_keeps_it() -> None:
    need("test_vit_relpos")
    backbone = load("tiny-relpos")
    size = backbone.input_size
    assert backbone.pyramid(images(size))[0].shape[2:] == (size[0] // 16, size[1] // 16)


@pytest.mark.parametrize("part", ["whole", "visual"])
def test_checkpoint_of_the_whole_clip_or_of_its_tower(tmp_path: Path, part: str) -> None:
    torch.manual_seed(1)
    model = open_clip.create_model("tiny-ViT")
    weights = (model if part == "whole" else model.visual).state_dict()
    file = tmp_path / "clip.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, file)
    backbone = load("tiny-ViT", checkpoint_path=file, input_size=64)
    for key, value in model.visual.state_dict().items():
        assert torch.allclose(backbone.encoder.state_dict()[key], value, atol=1e-6), key


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file(open_clip.create_model("tiny-RN").visual.state_dict(), file)
    with pytest.raises(WeightsError, match=r"do not fit: .*missing"):
        load("tiny-ViT", checkpoint_path=file)


def test_names_are_checked_before_anything_is_built() -> None:
    with pytest.raises(BackboneError, match="no architecture 'ViT-B16'; did you mean 'ViT-B-16'"):
        load_backbone("open_clip:ViT-B16/openai")
    with pytest.raises(BackboneError, match="no weights 'openia' of 'ViT-B-16'; there are: openai"):
        load_backbone("open_clip:ViT-B-16/openia")
    with pytest.raises(BackboneError, match="'open_clip:ViT-B-16' names no weights; there are: openai"):
        load_backbone("open_clip:ViT-B-16")
    with pytest.raises(BackboneError, match="needs ARCH/PRETRAINED"):
        load_backbone("open_clip")


def test_normalisation_belongs_to_the_named_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["mine"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"mean": (0.1,) * 3, "std": (0.9,) * 3})
    backbone = load("tiny-ViT/mine")
    assert backbone.mean.unique().tolist() == pytest.approx([0.1])
    assert backbone.std.unique().tolist() == pytest.approx([0.9])


def test_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **options: Any) -> Any:
        assert options["pretrained"] == "openai"
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(
        WeightsError, match=r"'open_clip:RN50/openai' needs the weights .* no route to host.*checkpoint_path"
    ):
        load_backbone("open_clip:RN50/openai")


@pytest.mark.parametrize("variant", ["tiny-RN", "tiny-ViT"])
def test_frozen_and_image_by_image(variant: str) -> None:
    backbone = load(variant, input_size=64).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    together = backbone.pyramid(images((64, 64), batch=2))
    alone = backbone.pyramid(images((64, 64), batch=2)[:1])
    assert all(torch.allclose(a[:1], b, atol=1e-5) for a, b in zip(together, alone, strict=True))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
