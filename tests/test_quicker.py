"""The quicker copy of an encoder: equal features, the original's fingerprint, no copy where it does not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import FakeFrozen, images, random_backbone
from torch import Tensor, nn

from diffup.backbones import FrozenBackbone
from diffup.backbones.quicker import quicker

EPS = torch.finfo(torch.float64).eps
TERMS = 64 * 9
"""Greatest number of products that a position of the test encoders sums up."""


def with_statistics(backbone: FrozenBackbone) -> FrozenBackbone:
    """Give BatchNorm random weights and statistics, as training does; those of a new encoder change nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                tensor.data.uniform_(low, low + 1, generator=generator)
            module.running_mean.normal_(generator=generator)
    return backbone


def original(backbone: FrozenBackbone) -> FrozenBackbone:
    """The same backbone, which runs its encoder as it is."""
    plain = copy.copy(backbone)
    plain._network = (backbone.encoder,)
    return plain


def norms(module: nn.Module) -> int:
    return sum(isinstance(item, nn.BatchNorm2d) for item in module.modules())


class Plain(FrozenBackbone):
    """One stage, whose maps are all four levels."""

    def features(self, images: Tensor) -> list[Tensor]:
        return [self.network(images)] * 4


def plain(encoder: nn.Module) -> FrozenBackbone:
    settings = {"input_size": (32, 32), "levels": (0,) * 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return with_statistics(Plain("test:plain", encoder, **settings))


@pytest.mark.parametrize(
    "name", ["timm:test_efficientnet", "timm:test_resnet", "timm:test_byobnet", "timm:test_mambaout"]
)
def test_features_are_equal_but_for_rounding(name: str) -> None:
    backbone = with_statistics(random_backbone(name, input_size=96)).double()
    picture = images((96, 96)).double() - 0.5
    convolutions = sum(isinstance(item, nn.Conv2d) for item in backbone.encoder.modules())
    for a, b in zip(original(backbone).features(picture), backbone.features(picture), strict=True):
        # Every convolution rounds its sums anew; rounding grows at most with their number and terms.
        assert float((a - b).abs().max()) <= convolutions * TERMS * EPS * float(a.abs().max())
    assert (norms(backbone.network) < norms(backbone.encoder)) == (norms(backbone.encoder) > 0)


def test_what_a_copy_shares_and_what_it_folds() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, stride=2)
    )
    backbone = plain(encoder)
    network = backbone.network
    assert norms(network) == 0 and norms(encoder) == 1
    assert network[3].weight is encoder[3].weight and encoder[3].dilation == (1, 1)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    picture = images((32, 32))
    expected, found = (item.pyramid(picture)[0] for item in (original(backbone), backbone))
    assert torch.allclose(expected, found, atol=1e-5)


def test_pointwise_convolutions_are_given_to_onednn_on_a_cpu() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, padding=1))
    found = [layer.dilation for layer in quicker(layers)[0]]
    assert found == [(2, 2) if torch.backends.mkldnn.is_available() else (1, 1), (1, 1), (1, 1)]
    assert [layer.dilation for layer in quicker(layers.to("meta"))[0]] == [(1, 1)] * 3


def test_an_encoder_without_anything_to_change_is_itself() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)).eval()
    assert quicker(encoder) == (encoder, 0)


class Twice(nn.Module):
    """A convolution whose output is used beside BatchNorm, so that BatchNorm cannot be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class Backwards(nn.Module):
    """BatchNorm that is defined after a convolution and comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


@pytest.mark.parametrize("kind", [Twice, Backwards])
def test_a_wrong_fold_is_noticed(kind: type[nn.Module]) -> None:
    backbone = plain(kind())
    assert quicker(backbone.encoder)[1] == 1 and norms(backbone.encoder) == 1
    assert norms(backbone.network) == 1


def test_fingerprint_and_state_are_those_of_the_original() -> None:
    backbone = random_backbone("timm:test_efficientnet", input_size=64)
    fingerprint, names = backbone.fingerprint, list(backbone.state_dict())
    backbone.pyramid(images((64, 64)))
    assert backbone.network is not backbone.encoder
    backbone._hashes.clear()
    assert backbone.fingerprint == fingerprint and list(backbone.state_dict()) == names
    assert copy.deepcopy(backbone).fingerprint == fingerprint


def test_casting_and_moving() -> None:
    backbone = random_backbone("timm:test_efficientnet", input_size=64)
    first = backbone.network
    assert backbone.network is first
    assert backbone.to("cpu").network is not first  # made again: moved weights are other tensors
    assert backbone.to(torch.bfloat16).network is backbone.encoder
    assert backbone.float().network is not backbone.encoder
    meta = copy.deepcopy(backbone).to("meta")
    assert norms(meta.network) == norms(meta.encoder)  # values cannot be compared there


def test_a_graph_has_the_original() -> None:
    backbone = random_backbone("timm:test_efficientnet", input_size=64)
    backbone.pyramid(images((64, 64)))
    assert backbone.network is not backbone.encoder

    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, x: Tensor) -> list[Tensor]:
            return self.backbone.unchecked_pyramid(x)

    program = torch.export.export(Encode(), (images((64, 64)),), strict=False)
    found = [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    assert len(found) >= 10


def test_a_family_of_its_own_runs_its_encoder() -> None:
    backbone = FakeFrozen()
    backbone.pyramid(images((64, 64)))
    assert backbone._network is None
