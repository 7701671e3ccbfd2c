"""The 4D convolutions of the benchmark's HSNet, against their definition."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def hsnet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import hsnet

    return hsnet


def pivot_kernel(query: Tensor, support: Tensor) -> Tensor:
    """The 4D kernel (O, C, 3, 3, 3, 3) of two 2D kernels (O, C, 3, 3): zero unless one of the offsets is the centre."""
    kernel = torch.zeros(*query.shape, 3, 3, dtype=query.dtype)
    kernel[:, :, :, :, 1, 1] += query
    kernel[:, :, 1, 1] += support
    return kernel


@pytest.mark.parametrize("stride", [1, 2])
def test_a_center_pivot_convolution_is_a_4d_convolution_with_a_masked_kernel(hsnet, stride: int) -> None:
    torch.manual_seed(0)
    layer = hsnet.CenterPivotConv4d(2, 3, stride).double()
    x = torch.randn(2, 5, 4, 6, 6, 2, dtype=torch.float64)
    kernel = pivot_kernel(layer.query.weight, layer.support.weight)
    padded = torch.nn.functional.pad(x, (0, 0, *(1,) * 8))
    expected = torch.zeros(2, 5, 4, 6 // stride, 6 // stride, 3, dtype=torch.float64)
    for a, b, c, d in product(range(3), repeat=4):
        shifted = padded[:, a : a + 5, b : b + 4, c : c + 6 : stride, d : d + 6 : stride]
        expected += shifted @ kernel[:, :, a, b, c, d].T
    torch.testing.assert_close(layer(x), expected + layer.query.bias)


def test_the_network_sees_the_support_only_inside_its_foreground(hsnet) -> None:
    torch.manual_seed(0)
    network = hsnet.HSNet().eval()
    query, support, other = ([torch.randn(1, 8, side, side) for side in (16, 16, 32, 16)] for _ in range(3))
    foreground = torch.zeros(1, 128, 128)
    foreground[:, :64] = 1
    mixed = [
        torch.cat([a.chunk(2, dim=2)[0], b.chunk(2, dim=2)[1]], dim=2) for a, b in zip(support, other, strict=True)
    ]
    with torch.no_grad():
        before, after, elsewhere = (network(query, side, foreground) for side in (support, mixed, other))
    torch.testing.assert_close(before, after)
    assert (before - elsewhere).abs().max() > 1e-3
