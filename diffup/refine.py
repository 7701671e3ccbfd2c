"""Refinement of coarse probabilities to the outlines of an image, from its colours alone, behind any encoder.

Two steps, both without training. A conditional random field (CRF) is solved by mean-field inference at a reduced size:
positions of similar colour pull each other to the same side of the threshold (Krähenbühl and Koltun, 2011; with a local
window as in ConvCRF, Teichmann and Cipolla, 2018). A fast guided filter (He and Sun, 2015) then enlarges its logits: in
each window they become a linear function of the colour, which is evaluated at every pixel of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from diffup.utils.resize import resize_maps

REFINE = True
"""Whether probabilities and masks are refined by default."""

SIDE = 128
"""Longer side of the reduced size at which everything but the last step is computed, in pixels."""

WINDOW, DILATION = 7, 4
"""Neighbours of a position in the CRF: a grid of WINDOW x WINDOW positions, DILATION pixels apart."""

COLOUR = 0.05
"""Standard deviation of the colour kernel, for colours in [0, 1]."""

WEIGHT, ITERATIONS = 3.0, 5
"""Weight of the neighbours against the coarse logit, and number of mean-field updates."""

SHARPNESS = 0.5
"""Factor of the refined logits. Mean-field inference is overconfident; about the threshold the factor moves no mask."""

CLIP = 1e-3
"""Distance from 0 and 1 to which coarse probabilities are clipped, so that no position is beyond its neighbours."""

RADIUS, REGULARISATION = 4, 1e-4
"""Radius of the guided filter in pixels of the reduced size, and the variance that it adds to that of the colours."""

_FAR, _LEAST = 100.0, -40.0  # a colour that is like none; least exponent of a similarity

_NONE = 1e-6  # added to sums of similarities, so that a position that is like no other follows none

_BAND = 2**20  # pixels of the image that are computed together: temporary memory does not grow with the image


@dataclass(frozen=True, eq=False)
class Guide:
    """What refinement needs of an image, computed once for any number of classes.

    Attributes:
        pixels: (H, W, 3) uint8, the image.
        kernel: (WINDOW * WINDOW, h * w) float32, weights of each position's neighbours (`similarity_kernel`).
        mean: (3, h, w) float64, mean colour of the window around each position.
        inverse: (3, 3, h, w) float64, inverse of the regularised covariance of the colours in that window.
        colours: (3, h, w) float64 in [0, 1], the image at the reduced size.
    """

    pixels: npt.NDArray[np.uint8]
    kernel: Tensor
    mean: Tensor
    inverse: Tensor
    colours: Tensor

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Guide:
        """Compute the guide of an image.

        Args:
            pixels: (H, W, 3) uint8, the image.
        """
        height, width = reduced_size(pixels.shape[0], pixels.shape[1])
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        colours = rearrange(torch.from_numpy(np.array(small)), "h w c -> c h w").double() / 255
        mean = box_mean(colours)
        products = rearrange(colours[:, None] * colours, "i j h w -> (i j) h w")
        second = rearrange(box_mean(products), "(i j) h w -> i j h w", i=3)
        covariance = second - mean[:, None] * mean + REGULARISATION * torch.eye(3).double()[:, :, None, None]
        return cls(pixels, similarity_kernel(colours.float()), mean, inverse_3x3(covariance), colours)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def refine(probability: Tensor, guide: Guide, threshold: float, weight: float = WEIGHT) -> Tensor:
    """Refine probabilities of classes to the outlines of an image.

    Args:
        probability: (N, h, w) in [0, 1], coarse probabilities of N classes, at any size.
        guide: guide of the image (`Guide.of`).
        threshold: probability in (0, 1) that divides a class from the rest. Neighbours pull away from it.
        weight: weight of the neighbours against the coarse logit.

    Returns:
        (N, H, W) float32 in [0, 1], probabilities at the image's size, on the CPU.
    """
    small = (guide.colours.shape[1], guide.colours.shape[2])
    coarse = resize_maps(probability.detach().cpu().float()[None], small)[0]
    divide = math.log(threshold / (1 - threshold))
    refined = mean_field(coarse.clamp(CLIP, 1 - CLIP).logit() - divide, guide.kernel, weight)
    slope, offset = guided_filter(SHARPNESS * refined + divide, guide)
    return evaluate_bands(slope, offset, guide.pixels)


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of an image whose longer side is shrunk to `SIDE`; smaller images keep theirs.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def similarity_kernel(colours: Tensor) -> Tensor:
    """Compute the weights of the neighbours of each position, which add up to 1.

    They are Gaussians of the distance of the colours, 0 for the position itself and outside of the image, divided by
    their sum. Without a neighbour of any similarity the weights are 0.

    Args:
        colours: (3, h, w) in [0, 1].

    Returns:
        (WINDOW * WINDOW, h * w), the weights; columns are positions.
    """
    distance = torch.stack([(near - colours).square_().sum(dim=0) for near in neighbours(colours, outside=_FAR)])
    distance = distance.flatten(1)
    # Bounded, because processors are slow with numbers that are nearly 0.
    kernel = distance.mul_(-0.5 / COLOUR**2).clamp_(min=_LEAST).exp_()
    kernel[WINDOW * WINDOW // 2] = 0
    return kernel / (kernel.sum(dim=0) + _NONE)


def neighbours(maps: Tensor, outside: float = 0.0) -> list[Tensor]:
    """Shift maps to each of the WINDOW * WINDOW neighbours of a position; the tensors share their memory.

    Args:
        maps: (C, h, w), values of the positions.
        outside: value outside of the image.

    Returns:
        Tensors (C, h, w), one of each neighbour.
    """
    height, width = maps.shape[1:]
    padded = F.pad(maps, (WINDOW // 2 * DILATION,) * 4, value=outside)
    offsets = range(0, WINDOW * DILATION, DILATION)
    return [padded[:, y : y + height, x : x + width] for y in offsets for x in offsets]


def mean_field(logits: Tensor, kernel: Tensor, weight: float = WEIGHT) -> Tensor:
    """Solve the CRF by mean-field inference.

    Each update adds to the coarse logit the weighted mean of the neighbours' expected labels, from -1 (background) to 1
    (class).

    Args:
        logits: (N, h, w), coarse logits relative to the threshold's.
        kernel: (WINDOW * WINDOW, h * w), from `similarity_kernel`.
        weight: weight of the neighbours against the coarse logit.

    Returns:
        (N, h, w), logits relative to the threshold's.
    """
    weights = weight * kernel.view(-1, *logits.shape[1:])
    solved = logits
    for _ in range(ITERATIONS):
        update = logits.clone()
        # One product after the other: a tensor of all neighbours would not fit the caches.
        for share, near in zip(weights, neighbours(torch.tanh(solved / 2)), strict=True):
            update.addcmul_(share, near)
        solved = update
    return solved


def box_mean(maps: Tensor) -> Tensor:
    """Average over windows of `RADIUS`, clipped at the border: (C, h, w) -> (C, h, w)."""
    side = 2 * RADIUS + 1
    rows = F.avg_pool2d(maps[None], (1, side), stride=1, padding=(0, RADIUS), count_include_pad=False)
    return F.avg_pool2d(rows, (side, 1), stride=1, padding=(RADIUS, 0), count_include_pad=False)[0]


def inverse_3x3(matrices: Tensor) -> Tensor:
    """Invert symmetric 3 x 3 matrices by their cofactors: (3, 3, h, w) -> (3, 3, h, w)."""
    a, b, c = matrices
    cofactors = torch.stack([torch.linalg.cross(x, y, dim=0) for x, y in ((b, c), (c, a), (a, b))])
    determinant: Tensor = (a * cofactors[0]).sum(dim=0)
    return cofactors / determinant


def guided_filter(maps: Tensor, guide: Guide) -> tuple[Tensor, Tensor]:
    """Fit maps as linear functions of the colour in every window, and average the functions over the windows.

    The statistics are float64: the covariance of nearly equal colours is a small difference of large numbers.

    Args:
        maps: (N, h, w), maps at the guide's reduced size.
        guide: guide of the image.

    Returns:
        Slopes (N, 3, h, w) and offsets (N, h, w), float32.
    """
    values = maps.double()
    mean = box_mean(values)
    products = torch.stack([box_mean(guide.colours * value) for value in values])
    covariance = products - mean[:, None] * guide.mean
    slope = (guide.inverse * covariance[:, None]).sum(dim=2)
    offset = mean - (slope * guide.mean).sum(dim=1)
    return torch.stack([box_mean(item) for item in slope]).float(), box_mean(offset).float()


def evaluate_bands(slope: Tensor, offset: Tensor, pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Enlarge linear functions of the colour bilinearly and evaluate them at every pixel, in bands of rows.

    Args:
        slope: (N, 3, h, w), slopes.
        offset: (N, h, w), offsets; the values are logits.
        pixels: (H, W, 3) uint8, the image.

    Returns:
        (N, H, W) float32 in [0, 1], probabilities.
    """
    height, width = pixels.shape[:2]
    functions = torch.cat([slope, offset[:, None]], dim=1)
    wide = resize_maps(functions, (functions.shape[2], width))
    # The rows by hand, because a band's first and last depend on rows of the next: centres of pixels at (i + 1/2).
    last = functions.shape[2] - 1
    at = ((torch.arange(height, dtype=torch.float64) + 0.5) * (last + 1) / height - 0.5).clamp(0, last)
    upper, below = at.floor().long(), (at - at.floor()).float()
    lower = (upper + 1).clamp(max=last)
    result = torch.empty(len(slope), height, width)
    step = max(1, _BAND // width)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        colours = rearrange(torch.tensor(pixels[rows]), "h w c -> c h w").float() / 255
        for index, function in enumerate(wide):
            local = torch.lerp(function[:, upper[rows]], function[:, lower[rows]], below[rows, None])
            result[index, rows] = torch.sigmoid((local[:3] * colours).sum(dim=0) + local[3])
    return result
