"""Family `transformers`, on tiny models saved to a folder; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import images
from safetensors.torch import save_file
from tiny_transformers import PROCESSOR, TEXT, VIT, save_model
from transformers import AutoConfig

from diffup.backbones import FrozenBackbone, load_backbone
from diffup.errors import BackboneError, WeightsError

STAGES = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
MODELS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "dinov2": VIT | {"patch_size": 14, "image_size": 70},
    "dinov2_with_registers": VIT | {"num_register_tokens": 4},
    "clip": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 16},
    "siglip": {"vision_config": VIT, "text_config": TEXT},
    "vitdet": VIT,
    "swinv2": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 64},
    "convnext": STAGES,
    "resnet": STAGES | {"embedding_size": 8},
    "segformer": STAGES | {"num_attention_heads": [1, 1, 2, 2]},
    "vit_mae": VIT,
}


def save(kind: str, folder: Path, seed: int = 0) -> Any:
    return save_model(kind, MODELS[kind], folder, seed)


def load(folder: Path, **options: Any) -> FrozenBackbone:
    backbone = load_backbone(f"transformers:{folder}", **options)
    assert isinstance(backbone, FrozenBackbone)
    return backbone


@pytest.mark.parametrize(
    ("kind", "size", "strides", "levels"),
    [
        ("vit", (64, 96), (16, 16, 16, 16), (1, 2, 4, 5)),
        ("dinov2", (56, 84), (14, 14, 14, 14), (1, 2, 4, 5)),
        ("dinov2_with_registers", (64, 96), (16, 16, 16, 16), (1, 2, 4, 5)),
        ("clip", (64, 96), (16, 16, 16, 16), (1, 2, 4, 5)),
        ("siglip", (64, 96), (16, 16, 16, 16), (1, 2, 4, 5)),
        ("vitdet", (64, 96), (16, 16, 16, 16), (1, 2, 4, 5)),
        ("swinv2", (64, 128), (4, 8, 16, 32), (0, 1, 2, 3)),
        ("convnext", (64, 96), (4, 8, 16, 32), (0, 1, 2, 3)),
        ("resnet", (64, 96), (4, 8, 16, 32), (0, 1, 2, 3)),
        ("segformer", (64, 96), (4, 8, 16, 32), (0, 1, 2, 3)),
    ],
)
def test_any_architecture_gives_four_levels(
    tmp_path: Path, kind: str, size: tuple[int, int], strides: tuple[int, ...], levels: tuple[int, ...]
) -> None:
    save(kind, tmp_path)
    backbone = load(tmp_path, input_size=size)
    assert backbone.levels == levels
    maps = backbone.pyramid(images(size, batch=2))
    assert [tuple(m.shape[2:]) for m in maps] == [(size[0] // s, size[1] // s) for s in strides]
    alone = backbone.pyramid(images(size, batch=2)[1:])
    assert all(torch.allclose(a[1:], b, atol=1e-5) for a, b in zip(maps, alone, strict=True))


@pytest.mark.parametrize(("kind", "prefix"), [("vit", 1), ("dinov2_with_registers", 5)])
def test_vit_levels_are_the_models_patch_tokens(tmp_path: Path, kind: str, prefix: int) -> None:
    model = save(kind, tmp_path)
    levels = load(tmp_path, input_size=64).pyramid(images((64, 64)))
    normalised = (images((64, 64)) - torch.tensor(PROCESSOR["image_mean"]).view(3, 1, 1)) / torch.tensor(
        PROCESSOR["image_std"]
    ).view(3, 1, 1)
    with torch.no_grad():
        output = model(pixel_values=normalised, output_hidden_states=True)
    assert torch.allclose(levels[3].flatten(2).transpose(1, 2), output.last_hidden_state[:, prefix:], atol=1e-5)
    assert torch.allclose(levels[0].flatten(2).transpose(1, 2), output.hidden_states[2][:, prefix:], atol=1e-5)


def test_of_a_clip_the_vision_part_is_taken(tmp_path: Path) -> None:
    model = save("clip", tmp_path)
    backbone = load(tmp_path, input_size=64)
    own, expected = backbone.encoder.state_dict(), model.vision_model.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], value) for key, value in expected.items())


def test_cnn_stages_are_the_models_hidden_states(tmp_path: Path) -> None:
    model = save("resnet", tmp_path)
    backbone = load(tmp_path, input_size=64)
    with torch.no_grad():
        expected = model((images((64, 64)) - backbone.mean) / backbone.std, output_hidden_states=True).hidden_states[1:]
    got = backbone.pyramid(images((64, 64)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, got, strict=True))


def test_default_input_size_is_the_nearest_multiple_of_the_patch(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    assert load(tmp_path).input_size == (406, 406)
    with pytest.raises(BackboneError, match="must be a multiple of 14 x 14; the nearest is 98 x 98"):
        load(tmp_path, input_size=100)


def test_normalisation_of_the_processor(tmp_path: Path) -> None:
    save("vit", tmp_path)
    backbone = load(tmp_path, input_size=64)
    assert backbone.mean.flatten().tolist() == pytest.approx(PROCESSOR["image_mean"])
    assert backbone.std.flatten().tolist() == pytest.approx(PROCESSOR["image_std"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"do_normalize": False}))
    assert load(tmp_path, input_size=64).std.unique().tolist() == [1.0]
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="comes without an image processor; ImageNet's mean and std"):
        backbone = load(tmp_path, input_size=64)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_models_trained_on_bgr_get_bgr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("resnet", tmp_path)
    rgb = load(tmp_path, input_size=64)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True})
    )
    bgr = load(tmp_path, input_size=64)
    assert bgr.std.unique().tolist() == [1.0]
    picture = images((64, 64))
    expected = rgb.pyramid((picture * rgb.std + rgb.mean).clamp(-0.4, 1.4))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, bgr.pyramid(picture.flip(1)), strict=True))


def test_random_weights_and_checkpoint_need_only_the_configuration(tmp_path: Path) -> None:
    model = save("vit", tmp_path, seed=5)
    file = tmp_path / "weights" / "vit.safetensors"
    file.parent.mkdir()
    save_file({f"vit.{key}": value.clone() for key, value in model.state_dict().items()}, file)
    pretrained = load(tmp_path, input_size=64)
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(0)
    random = load(tmp_path, input_size=64, pretrained=False)
    restored = load(tmp_path, input_size=64, checkpoint_path=file)
    assert restored.fingerprint == pretrained.fingerprint != random.fingerprint
    save_file({"something.else": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"do not fit: .*missing"):
        load(tmp_path, input_size=64, checkpoint_path=file)


def test_checkpoint_of_a_hierarchical_model(tmp_path: Path) -> None:
    model = save("convnext", tmp_path, seed=5)
    file = tmp_path / "convnext.safetensors"
    weights = {f"convnext.{key}": value.clone() for key, value in model.state_dict().items()}
    save_file(weights | {"classifier.weight": torch.zeros(2, 64)}, file)
    expected, got = load(tmp_path, input_size=64), load(tmp_path, input_size=64, checkpoint_path=file)
    maps = zip(expected.pyramid(images((64, 64))), got.pyramid(images((64, 64))), strict=True)
    assert all(torch.equal(a, b) for a, b in maps)


def test_half_precision_repositories_are_computed_in_single(tmp_path: Path) -> None:
    save("vit", tmp_path).half().save_pretrained(tmp_path)
    assert load(tmp_path, input_size=64).dtype == torch.float32


def test_models_that_hide_patches_are_refused(tmp_path: Path) -> None:
    save("vit_mae", tmp_path)
    with pytest.raises(BackboneError, match=r"gives no feature maps .* no grid of 4 x 4 patches"):
        load(tmp_path, input_size=64)


def test_what_cannot_be_had_says_how_to_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, **options: Any) -> Any:
        raise OSError("We couldn't connect.\nMore text.")

    save("vit", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="needs the weights of"):
        load(tmp_path)
    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(WeightsError, match=r"configuration of 'some/repo', .*couldn't connect.*hf download some/repo"):
        load_backbone("transformers:some/repo")
    with pytest.raises(BackboneError, match="needs a repository"):
        load_backbone("transformers")


def test_stays_frozen(tmp_path: Path) -> None:
    save("resnet", tmp_path)
    backbone = load(tmp_path, input_size=64).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    levels = backbone.pyramid(images((64, 64)))
    assert not any(level.requires_grad for level in levels)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
