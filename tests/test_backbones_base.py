"""The frozen base class, level selection and the protocol check, on encoders of a few parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffup.backbones import Backbone, FrozenBackbone, check_pyramid
from diffup.backbones.base import (
    hash_weights,
    nearest_size,
    resolve_input_size,
    resolve_levels,
    select_levels,
    spread_levels,
)
from diffup.errors import BackboneError


class Tiny(FrozenBackbone):
    """Four strided convolutions with BatchNorm."""

    def features(self, images: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.encoder:
            images = stage(images)
            maps.append(images.permute(0, 2, 3, 1) if self.layout == "NHWC" else images)
        return [maps[level] for level in self.levels]


def tiny(seed: int = 0, **options: Any) -> Tiny:
    torch.manual_seed(seed)
    stages = [nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.BatchNorm2d(8)) for c in (3, 8, 8, 8)]
    settings = {"input_size": (32, 48), "levels": (0, 1, 2, 3), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    return Tiny("test:tiny", nn.Sequential(*stages), **(settings | options))


def images(batch: int = 2, size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def test_satisfies_the_protocol() -> None:
    assert isinstance(tiny(), Backbone)


def test_levels_come_fine_to_coarse_as_float32_without_gradient() -> None:
    levels = tiny().pyramid(images().requires_grad_())
    assert [tuple(level.shape) for level in levels] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert all(level.dtype == torch.float32 and not level.requires_grad for level in levels)


def test_normalises_with_mean_and_std() -> None:
    backbone = tiny()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = backbone.encoder[0]((images() - mean) / std)
    assert torch.allclose(backbone.pyramid(images())[0], expected, atol=1e-6)


def test_stays_frozen_when_a_parent_trains() -> None:
    backbone = tiny()
    parent = nn.Sequential(backbone, nn.BatchNorm2d(3)).train()
    assert parent[1].training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.pyramid(images())
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_each_image_is_encoded_by_itself() -> None:
    backbone = tiny()
    together = backbone.pyramid(images())
    for index in range(2):
        alone = backbone.pyramid(images()[index : index + 1])
        assert all(torch.allclose(a[0], b[index], atol=1e-6) for a, b in zip(alone, together, strict=True))
    again = backbone.pyramid(images())
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))


def test_channels_last_output_becomes_nchw() -> None:
    expected, got = tiny().pyramid(images()), tiny(layout="NHWC").pyramid(images())
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_half_precision_weights_still_give_float32() -> None:
    expected = tiny().pyramid(images())
    backbone = tiny().to(torch.bfloat16)
    got = backbone.pyramid(images())
    assert backbone.dtype == torch.bfloat16
    assert all(level.dtype == torch.float32 for level in got)
    assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(expected, got, strict=True))


def test_fingerprint_follows_everything_that_changes_features() -> None:
    reference = tiny().fingerprint
    assert tiny().fingerprint == reference
    assert reference.startswith("test:tiny-")
    changed = [
        tiny(seed=1),
        tiny(levels=(0, 1, 2, 2)),
        tiny(input_size=(48, 32)),
        tiny(mean=(0.5, 0.5, 0.5)),
        tiny(std=(0.5, 0.5, 0.5)),
        tiny().to(torch.float16),
    ]
    assert len({reference, *(backbone.fingerprint for backbone in changed)}) == len(changed) + 1


def test_hash_of_weights_ignores_batch_counters_but_no_value() -> None:
    encoder = tiny().encoder
    reference = hash_weights(encoder)
    encoder[0][1].num_batches_tracked += 5
    assert hash_weights(encoder) == reference
    encoder[0][1].running_mean[0] += 1e-6
    assert hash_weights(encoder) != reference


def test_images_on_another_device_are_not_moved_silently() -> None:
    with pytest.raises(BackboneError, match="is on cpu but the images are on meta; move one of them"):
        tiny().pyramid(images().to("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moves_to_a_gpu_and_keeps_its_fingerprint() -> None:
    expected, backbone = tiny().pyramid(images()), tiny().to("cuda")
    got = backbone.pyramid(images().to("cuda"))
    assert all(torch.allclose(a, b.cpu(), atol=1e-3) for a, b in zip(expected, got, strict=True))
    assert backbone.fingerprint == tiny().fingerprint


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 32, 48), r"tensor \(B, 3, H, W\), got \(3, 32, 48\)"),
        (torch.zeros(2, 32, 48, 3), r"got \(2, 32, 48, 3\)"),
        ([[1]], "got list"),
        (torch.zeros(1, 3, 32, 48, dtype=torch.uint8), "divide by 255"),
        (torch.full((1, 3, 32, 48), 255.0), "before normalisation"),
        (torch.full((1, 3, 32, 48), -2.0), "before normalisation"),
        (torch.full((1, 3, 32, 48), float("nan")), "before normalisation"),
    ],
)
def test_refuses_images_that_would_mislead(bad: Any, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        tiny().pyramid(bad)


def test_names_the_nearest_size_that_fits() -> None:
    with pytest.raises(BackboneError, match="30 x 48 px must be a multiple of 16 x 16; the nearest is 32 x 48"):
        tiny(multiple=(16, 16)).pyramid(images(size=(30, 48)))
    with pytest.raises(BackboneError, match="input_size 30 x 48"):
        tiny(multiple=(16, 16), input_size=(30, 48))


def test_an_encoder_that_fails_is_named_with_the_size() -> None:
    backbone = tiny()
    backbone.encoder[3] = nn.Linear(7, 7)
    with pytest.raises(BackboneError, match="'test:tiny', built for 32 x 48 px, failed on images of 32 x 48") as caught:
        backbone.pyramid(images())
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[0], "must return a list of 4 tensors, got Tensor"),
        (lambda p: p[:3], "exactly 4 levels, got 3"),
        (lambda p: [*p[:3], "x"], "level 3 must be a tensor, got str"),
        (lambda p: [p[0].flatten(2), *p[1:]], r"level 0 must have 4 dimensions \(B, C, h, w\), got shape \(2, 8, 64\)"),
        (lambda p: [p[0], p[1].half(), *p[2:]], "level 1 must be float32, got torch.float16"),
        (lambda p: [*p[:2], p[2][:1], p[3]], "level 2 must have batch size 2, got 1"),
        (lambda p: [*p[:3], p[3][..., :0]], "level 3 is empty"),
        (lambda p: [p[1], p[0], *p[2:]], "fine to coarse, got 4x4 8x8"),
        (lambda p: [*p[:3], p[3] / 0], "level 3 has NaN or infinite values"),
    ],
)
def test_check_pyramid_says_what_is_wrong(change: Callable[[list[Tensor]], Any], message: str) -> None:
    levels = [torch.ones(2, 8, side, side) for side in (8, 4, 2, 1)]
    assert check_pyramid(tuple(levels), "mine", 2) == levels
    with pytest.raises(BackboneError, match=f"backbone 'mine' breaks the protocol: .*{message}"):
        check_pyramid(change(levels), "mine", 2)


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ([2, 4, 8, 16, 32], (1, 2, 3, 4)),
        ([1, 2, 4, 8, 16, 32], (2, 3, 4, 5)),
        ([4, 4, 8, 16, 32], (1, 2, 3, 4)),
        ([4, 8, 16, 32], (0, 1, 2, 3)),
        ([4, 8, 16, 32, 64], (0, 1, 2, 3)),
        ([2, 4, 8, 8, 8], (1, 2, 3, 4)),
        ([8, 16, 16, 16], (0, 1, 2, 3)),
        ([4, 8, 16], (0, 1, 2, 2)),
        ([8, 16], (0, 0, 1, 1)),
        ([32], (0, 0, 0, 0)),
        ([14] * 12, (2, 5, 8, 11)),
        ([16] * 24, (5, 11, 17, 23)),
        ([16] * 6, (1, 2, 4, 5)),
    ],
)
def test_default_levels(strides: list[int], expected: tuple[int, ...]) -> None:
    assert select_levels(strides) == expected


@pytest.mark.parametrize("stages", range(1, 40))
def test_spread_levels_end_at_the_last_stage_and_never_go_back(stages: int) -> None:
    levels = spread_levels(stages)
    assert levels[-1] == stages - 1
    assert list(levels) == sorted(levels)
    assert levels[0] >= 0


def test_levels_of_the_user() -> None:
    assert resolve_levels((-4, -3, -2, -1), [14] * 12, "x") == (8, 9, 10, 11)
    assert resolve_levels([3, 3, 3, 7], [14] * 12, "x") == (3, 3, 3, 7)
    assert resolve_levels(None, [14] * 12, "x") == (2, 5, 8, 11)
    for levels, message in [
        ((1, 2, 3), "must be 4 integers"),
        ((1, 2, 3, 4.0), "must be 4 integers"),
        (3, "must be 4 integers"),
        ((0, 1, 2, 12), r"has 12 stages \(0 to 11\)"),
        ((5, 4, 3, 2), "fine to coarse"),
    ]:
        with pytest.raises(BackboneError, match=message):
            resolve_levels(levels, [14] * 12, "x")
    with pytest.raises(BackboneError, match="no feature stages"):
        resolve_levels(None, [], "x")


def test_input_sizes() -> None:
    assert resolve_input_size(320, "x") == (320, 320)
    assert resolve_input_size([240, 320], "x") == (240, 320)
    whole = resolve_input_size(np.int64(320), "x")
    assert whole == (320, 320) and type(whole[0]) is int
    for bad in (0, 320.5, "320", None, -1, (1, 2, 3), (320.0, 320), True):
        with pytest.raises(BackboneError, match="positive integer or"):
            resolve_input_size(bad, "x")  # type: ignore[arg-type]
    assert nearest_size((400, 400), (14, 16)) == (406, 400)
    assert nearest_size((400, 3), (32, 32)) == (416, 32)
