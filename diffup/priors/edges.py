"""Edges of the query image, the same for every encoder (paper, section 3.3.3).

Implemented here because kornia and OpenCV are heavy dependencies for two filters. The tests compare Canny with
scikit-image's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EXPORTED_ROUNDS = 128
"""Pixels by which strong edges grow along weak ones in an exported graph; few weak edges are longer."""

_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
_LUMA = torch.tensor([0.299, 0.587, 0.114])


def edge_maps(images: Tensor) -> Tensor:
    """Canny and Sobel edges of query images: (B, 3, H, W) in [0, 1] -> (B, 2, H, W) in [0, 1]."""
    return torch.cat([canny(images), sobel(images)], dim=1)


def to_grey(images: Tensor) -> Tensor:
    """Luminance of RGB images: (B, 3, H, W) -> (B, 1, H, W), same range."""
    return (images * _LUMA.to(images)[None, :, None, None]).sum(dim=1, keepdim=True)


def _gradients(grey: Tensor) -> Tensor:
    """Horizontal and vertical Sobel derivatives, per pixel: (B, 1, H, W) -> (B, 2, H, W)."""
    kernels = torch.stack([_SOBEL, _SOBEL.T])[:, None].to(grey)
    return F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)


def sobel(images: Tensor) -> Tensor:
    """Gradient magnitude of the luminance, the strongest of each image scaled to 1.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W) in [0, 1]; all zero for a constant image.
    """
    magnitude = _gradients(to_grey(images)).square().sum(dim=1, keepdim=True).sqrt()
    return magnitude / magnitude.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


def canny(images: Tensor, low: float = 0.1, high: float = 0.2, sigma: float = 1.0) -> Tensor:
    """Canny edge map of the luminance (Canny, 1986).

    Gaussian smoothing, Sobel gradient, non-maximum suppression along the gradient by linear interpolation, then
    hysteresis: weak edges stay where they touch a strong one.

    Args:
        images: (B, 3, H, W) in [0, 1].
        low: least gradient magnitude of a weak edge, as a fraction of the image's greatest magnitude.
        high: least gradient magnitude of a strong edge, as a fraction of the image's greatest magnitude.
        sigma: standard deviation of the smoothing in pixels.

    Returns:
        (B, 1, H, W), 0 or 1.
    """
    gradient = _gradients(_smooth(to_grey(images), sigma))
    magnitude = gradient.norm(dim=1, keepdim=True)
    peak = magnitude.amax(dim=(1, 2, 3), keepdim=True)
    thin = _is_ridge(gradient, magnitude) & (magnitude > 1e-6)
    weak, strong = thin & (magnitude >= low * peak), thin & (magnitude >= high * peak)
    return _hysteresis(weak, strong).to(images.dtype)


def _smooth(grey: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=grey.device, dtype=grey.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    grey = F.conv2d(F.pad(grey, (radius, radius, 0, 0), mode="replicate"), kernel[None, None, None, :])
    return F.conv2d(F.pad(grey, (0, 0, radius, radius), mode="replicate"), kernel[None, None, :, None])


def _is_ridge(gradient: Tensor, magnitude: Tensor) -> Tensor:
    """Whether a pixel's gradient is the greatest along its own direction: (B, 1, H, W) bool."""
    height, width = magnitude.shape[-2:]
    direction = gradient / magnitude.clamp_min(1e-12)
    rows = torch.arange(height, device=gradient.device, dtype=gradient.dtype)[:, None]
    columns = torch.arange(width, device=gradient.device, dtype=gradient.dtype)[None]

    def along(sign: int) -> Tensor:
        x = (columns + sign * direction[:, 0]) * 2 / max(width - 1, 1) - 1
        y = (rows + sign * direction[:, 1]) * 2 / max(height - 1, 1) - 1
        return F.grid_sample(magnitude, torch.stack([x, y], dim=-1), align_corners=True, padding_mode="zeros")

    # One comparison is strict, so that of a plateau two pixels wide one pixel remains.
    return (magnitude > along(-1)) & (magnitude >= along(1))


def _hysteresis(weak: Tensor, strong: Tensor) -> Tensor:
    """Grow the strong edges along the weak ones (8-neighbourhood) until nothing changes.

    A graph that is exported cannot stop early; its number of rounds is fixed.
    """
    if torch.compiler.is_exporting():
        marked, allowed = strong.float(), weak.float()
        for _ in range(EXPORTED_ROUNDS):
            marked = allowed * F.max_pool2d(marked, 3, stride=1, padding=1)
        return marked > 0
    while True:
        grown = weak & _widen(strong)
        if torch.equal(grown, strong):
            return grown
        strong = grown


def _widen(marked: Tensor) -> Tensor:
    """Whether a pixel or one of its 8 neighbours is marked: (B, 1, H, W) bool; a tenth of the cost of max pooling."""
    framed = F.pad(marked, (1, 1, 1, 1))
    rows = framed[..., :-2, :] | framed[..., 1:-1, :] | framed[..., 2:, :]
    return rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]
