"""Family `timm`, on small models with random weights; nothing is downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from fakes import images, random_backbone
from safetensors.torch import save_file
from timm_models import need
from torch import Tensor

from diffup.backbones import FrozenBackbone, load_backbone
from diffup.backbones.timm import TimmBackbone
from diffup.errors import BackboneError, WeightsError


def load(variant: str, seed: int = 0, **options: Any) -> FrozenBackbone:
    return random_backbone(f"timm:{variant}", seed, **options)


@pytest.mark.parametrize(
    ("variant", "size", "strides", "levels"),
    [
        ("test_resnet", (64, 96), (4, 8, 16, 32), (1, 2, 3, 4)),  # five stages, the first dropped
        ("test_convnext", (64, 96), (4, 8, 16, 32), (0, 1, 2, 3)),  # four stages
        ("test_efficientnet", (64, 96), (4, 8, 16, 32), (1, 2, 3, 4)),
        ("visformer_tiny", (64, 96), (8, 16, 32, 32), (0, 1, 2, 2)),  # three stages, built to the size
        ("dla46_c", (64, 96), (4, 8, 16, 32), (2, 3, 4, 5)),  # six stages
        ("swin_tiny_patch4_window7_224", (64, 96), (4, 8, 16, 32), (0, 1, 2, 3)),  # NHWC inside
        ("test_vit", (64, 96), (16, 16, 16, 16), (1, 2, 4, 5)),
        ("eva02_tiny_patch14_224", (56, 84), (14, 14, 14, 14), (2, 5, 8, 11)),
        ("test_vit_relpos", (64, 96), (16, 16, 16, 16), (2, 4, 6, 8)),  # fixed input, built to the size
        ("vit_tiny_r_s16_p8_224", (64, 96), (32, 32, 32, 32), (2, 5, 8, 11)),  # ViT behind a convolutional stem
    ],
)
def test_any_architecture_gives_four_levels(
    variant: str, size: tuple[int, int], strides: tuple[int, ...], levels: tuple[int, ...]
) -> None:
    need(variant)
    if variant in ("dla46_c", "visformer_tiny") and not hasattr(timm.create_model(variant), "forward_intermediates"):
        pytest.skip(f"timm {timm.__version__} counts the stages of {variant} otherwise, or does not give them")
    backbone = load(variant, input_size=size)
    assert backbone.input_size == size
    assert backbone.levels == levels
    maps = backbone.pyramid(images(size, batch=2))
    assert [tuple(m.shape[2:]) for m in maps] == [(size[0] // s, size[1] // s) for s in strides]


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("test_resnet", 400),
        ("vit_tiny_patch16_224", 400),
        ("vit_small_patch14_dinov2.lvd142m", 406),
        ("resnet50_clip.openai", 416),  # its pooled shortcuts need multiples of 32
        ("halonet26t", 512),  # attention blocks: a multiple of the training size
        ("test_vit_relpos", 400),  # fixed input, built to the size
    ],
)
def test_default_input_size_is_near_400(variant: str, size: int) -> None:
    need(variant)
    assert load(variant).input_size == (size, size)


def test_cnn_levels_are_the_models_own_stages() -> None:
    backbone = load("test_resnet", input_size=64)
    reference = timm.create_model("test_resnet", features_only=True).eval()
    reference.load_state_dict(backbone.encoder.state_dict(), strict=False)
    config = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.no_grad():
        expected = reference((images((64, 64)) - mean) / std)[1:]
    got = backbone.pyramid(images((64, 64)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, got, strict=True))


def test_last_vit_level_is_the_models_output_and_earlier_ones_are_raw_blocks() -> None:
    backbone = load("test_vit", input_size=64)
    outputs: list[Tensor] = []
    backbone.encoder.blocks[2].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    levels = backbone.pyramid(images((64, 64)))
    normalised = (images((64, 64)) - backbone.mean) / backbone.std
    with torch.no_grad():
        final = backbone.encoder.forward_features(normalised)[:, 1:]
    assert torch.allclose(levels[3].flatten(2).transpose(1, 2), final, atol=1e-5)
    assert torch.allclose(levels[1].flatten(2).transpose(1, 2), outputs[0][:, 1:], atol=1e-5)


def test_levels_may_be_chosen_and_repeated() -> None:
    backbone = load("test_vit", input_size=64, levels=(-3, -3, -2, -1))
    assert backbone.levels == (3, 3, 4, 5)
    maps = backbone.pyramid(images((64, 64)))
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[1], maps[2])
    with pytest.raises(BackboneError, match=r"has 6 stages \(0 to 5\)"):
        load("test_vit", levels=(0, 1, 2, 6))


def test_flexible_encoders_take_other_sizes_than_their_input_size() -> None:
    for variant in ("test_resnet", "test_vit"):
        maps = load(variant, input_size=64).pyramid(images((96, 128)))
        assert maps[-1].shape[2:] in {(3, 4), (6, 8)}


def test_frozen_deterministic_and_image_by_image() -> None:
    backbone = load("test_resnet", input_size=64)
    before = {key: value.clone() for key, value in backbone.encoder.state_dict().items()}
    backbone.train()
    together = backbone.pyramid(images((64, 64), batch=2))
    again = backbone.pyramid(images((64, 64), batch=2))
    alone = backbone.pyramid(images((64, 64), batch=2)[1:])
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    assert all(torch.allclose(a[1:], b, atol=1e-5) for a, b in zip(together, alone, strict=True))
    assert all(torch.equal(before[key], value) for key, value in backbone.encoder.state_dict().items())


def test_a_model_without_forward_intermediates_goes_through_features_only(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load("test_resnet", input_size=64)
    for kind in type(expected.encoder).__mro__:
        if "forward_intermediates" in vars(kind):
            monkeypatch.delattr(kind, "forward_intermediates")
    backbone = load("test_resnet", input_size=64)
    assert not hasattr(backbone.encoder, "forward_intermediates")
    backbone.encoder.load_state_dict(expected.encoder.state_dict(), strict=False)
    monkeypatch.undo()
    maps = zip(expected.pyramid(images((64, 64))), backbone.pyramid(images((64, 64))), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in maps)


def test_features_only_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load("test_mambaout", input_size=64)
    monkeypatch.delattr(type(expected.encoder), "forward_intermediates")
    backbone = load("test_mambaout", input_size=64)
    assert backbone.layout == "NHWC"
    shapes = [tuple(m.shape) for m in backbone.pyramid(images((64, 64)))]
    monkeypatch.undo()
    assert shapes == [tuple(m.shape) for m in expected.pyramid(images((64, 64)))]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoint_round_trip_without_network(tmp_path: Path, suffix: str) -> None:
    source = load("test_resnet", seed=1, input_size=64)
    weights = {key: value.half().contiguous() for key, value in source.encoder.state_dict().items()}
    weights = {key: value for key, value in weights.items() if "num_batches_tracked" not in key}
    weights["fc.weight"] = torch.zeros(10, 4)  # a classifier in the file is no problem
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, file)
    else:
        save_file(weights, file)
    one, two = (load("test_resnet", seed=seed, input_size=64, checkpoint_path=file) for seed in (2, 3))
    assert one.fingerprint == two.fingerprint != source.fingerprint  # the file holds half precision
    assert one.dtype == torch.float32
    for expected, got in zip(source.pyramid(images((64, 64))), one.pyramid(images((64, 64))), strict=True):
        assert torch.allclose(expected, got, atol=0.02)


def test_position_tables_of_another_size_are_resized(tmp_path: Path) -> None:
    need("test_vit_relpos")
    file = tmp_path / "weights.safetensors"
    save_file(load("test_vit_relpos", input_size=96).encoder.state_dict(), file)
    backbone = load("test_vit_relpos", input_size=128, checkpoint_path=file)
    assert backbone.pyramid(images((128, 128)))[0].shape[2:] == (8, 8)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    weights = dict(load("test_resnet").encoder.state_dict())
    del weights["layer1.0.conv1.weight"]
    weights["extra.weight"] = torch.zeros(1)
    weights["bn1.bias"] = torch.zeros(3)
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    with pytest.raises(WeightsError) as caught:
        load("test_resnet", checkpoint_path=file)
    message = str(caught.value)
    assert "1 missing (layer1.0.conv1.weight)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (bn1.bias: [3], not [32])" in message
    assert "num_batches_tracked" not in message


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a file"):
        load("test_resnet", checkpoint_path=tmp_path / "absent.pth")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load("test_resnet", checkpoint_path=broken)
    listed = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], listed)
    with pytest.raises(WeightsError, match="does not hold a state dict"):
        load("test_resnet", checkpoint_path=listed)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil-was-here"),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    torch.save({"conv1.weight": Evil()}, file)
    with pytest.raises(WeightsError, match="cannot be read as a torch file of plain weights"):
        load("test_resnet", checkpoint_path=file)
    (tmp_path / "evil2.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError):
        load("test_resnet", checkpoint_path=tmp_path / "evil2.pth")
    assert not (tmp_path / "evil-was-here").exists()


def test_unknown_names_get_near_misses() -> None:
    with pytest.raises(BackboneError, match=r"no model 'resnet5O'; did you mean .*'resnet50'"):
        load("resnet5O")
    with pytest.raises(BackboneError, match=r"no weights 'nope' of 'test_resnet'; it has: test_resnet.r160_in1k"):
        load("test_resnet.nope")
    with pytest.raises(BackboneError, match="needs a model name"):
        load_backbone("timm")


def test_sizes_that_cannot_be_taken() -> None:
    with pytest.raises(
        BackboneError, match="input_size 100 x 64 px must be a multiple of 16 x 16; the nearest is 96 x 64"
    ):
        load("test_vit", input_size=(100, 64))
    need("test_maxvit")
    with pytest.raises(BackboneError, match=r"cannot take images of 72 x 72 px .* trained at 160 x 160"):
        load("test_maxvit", input_size=72)
    with pytest.raises(BackboneError, match="failed on images of 96 x 96 px"):
        load("test_vit_relpos", input_size=64).pyramid(images((96, 96)))


def test_failed_download_names_the_weights_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        WeightsError, match=r"needs the weights 'timm/test_resnet.r160_in1k', .*no route.*checkpoint_path=FILE"
    ):
        load("test_resnet.r160_in1k", pretrained=True)


def test_fingerprint_tells_weights_and_levels_apart() -> None:
    prints = [
        load("test_resnet").fingerprint,
        load("test_resnet", seed=1).fingerprint,
        load("test_resnet", levels=(0, 1, 2, 3)).fingerprint,
        load("test_resnet", input_size=64).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert load("test_resnet").fingerprint == prints[0]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("variant", "file", "size", "last"),
    [
        ("mobilenetv2_100", "mobilenetv2_100.safetensors", 320, (320, 10, 10)),
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_saliency.safetensors", 322, (384, 23, 23)),
    ],
)
def test_real_weights_from_a_local_file(
    shared: Path, variant: str, file: str, size: int, last: tuple[int, ...]
) -> None:
    backbone = load(variant, checkpoint_path=shared / "weights" / file, input_size=size)
    assert isinstance(backbone, TimmBackbone)
    assert tuple(backbone.pyramid(images((size, size)))[-1].shape[1:]) == last
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
