"""Corrections of a mask by clicks, strokes and boxes on the query itself, without training and without the encoder.

Two models of the logits, both in closed form, at the reduced size of `diffup.refine`:

- The marks: a residual that is met at every marked position and fades with the distance and with the likeness of the
  features (kriging, the mean of a Gaussian process; Rasmussen and Williams, 2006, eq. 2.25). It reaches as far as the
  mark lies from the border of the mask, because people mark the middle of what is wrong.
- The query as one more support: a ridge regression of the corrected labels on the query's own features, colours and
  positions takes part of the decoder's place, so that what looks like the marked parts follows them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.errors import AnnotationError
from diffup.inputs.annotations import Box, Points, Scribble, check_pixels, marked
from diffup.inputs.images import describe
from diffup.priors.level import pool_to_grid
from diffup.priors.similarity import unit
from diffup.refine import CLIP, Guide, mean_field, refine
from diffup.utils.resize import resize_maps

Correction: TypeAlias = Box | Scribble | Points
"""What corrects a mask: clicks, strokes or boxes on the query, positive, negative or both."""

SIDE = 64
"""Greatest side, in positions, of the query's features that are kept for corrections."""

COMPONENTS = (8, 16, 24, 24)
"""Principal components of each feature level on which labels are regressed."""

MARGIN = 3.0
"""Logit relative to the threshold that a marked position has at least, on its own side."""

REACH, NEAREST, FARTHEST = 2.5, 0.03, 0.2
"""Length in which a mark's influence falls to 1/e: REACH times its distance from the border of the mask, within bounds
that are fractions of the image's longer side."""

LIKENESS = 0.5
"""Exponent of the similarity of the features of the last level, by which a mark's influence is multiplied."""

NEIGHBOURS = 2.0
"""Weight of the neighbours in the refinement of a corrected mask: less than before, because marks are surer."""

NUGGET = 0.01
"""Variance of the noise of the marks, against a prior variance of 1; it keeps close marks solvable."""

SHARE, GAIN, BOUND = 0.3, 4.0, 4.0
"""Share of the regression against the decoder, its logit for a label of 1, and the bound of the decoder's logits."""

RIDGE, ATTENTION = 0.01, 6.0
"""Ridge of the regression, and the additional weight of a marked position against one that is far from all marks."""

MARKS = 16
"""Greatest number of positions that stand for a stroke or box."""


@dataclass(frozen=True, eq=False)
class Seeds:
    """Marked positions.

    Attributes:
        index: (n,) int64, index of the position in the flattened grid.
        label: (n,) float32, 1 for the class and -1 for the rest.
        reach: (n,) float32, length in which the influence falls to 1/e, in the unit of `Corrected.places`.
    """

    index: Tensor
    label: Tensor
    reach: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Seeds]) -> Seeds:
        """Concatenate seeds."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("index", "label", "reach")))


@dataclass(frozen=True, eq=False)
class Corrected:
    """The state of a mask between two corrections. Grids have h x w positions, the guide's reduced size.

    Attributes:
        guide: guide of the query.
        places: (2, h * w) float32, y and x of the positions; the longer side is 1.
        inputs: (D, h * w) float32, regressors of the positions (`regressors`).
        features: (C, h_l, w_l) float32, features of the last level.
        decoder: (h, w) float32, logits of the decoder.
        logits: (h, w) float32, corrected logits.
        seeds: all positions that were marked.
        marks: (H, W) int8, 1 at pixels that are the class by a mark, -1 at those that are not, else 0.
    """

    guide: Guide
    places: Tensor
    inputs: Tensor
    features: Tensor
    decoder: Tensor
    logits: Tensor
    seeds: Seeds
    marks: npt.NDArray[np.int8]

    @classmethod
    def start(cls, image: npt.NDArray[np.uint8], probability: Tensor, levels: Sequence[Tensor]) -> Corrected:
        """Prepare the corrections of a mask.

        Args:
            image: (H, W, 3) uint8, the query.
            probability: (1, h', w') in [0, 1], the decoder's probability, at any size.
            levels: four tensors (C_l, h_l, w_l), features of the query.
        """
        guide = Guide.of(image)
        grid = (guide.colours.shape[1], guide.colours.shape[2])
        places = torch.stack(torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))
        places = places.flatten(1).float() / max(grid)
        logits = resize_maps(probability[None], grid)[0, 0].clamp(CLIP, 1 - CLIP).logit()
        none = Seeds(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
        inputs = regressors(levels, guide.colours.float(), places)
        marks = np.zeros(image.shape[:2], dtype=np.int8)
        return cls(guide, places, inputs, levels[-1], logits, logits, none, marks)

    def turn(self, correction: Correction, threshold: float, argument: str) -> Corrected:
        """Correct the mask once.

        Args:
            correction: what is marked.
            threshold: probability in (0, 1) above which a pixel is in the mask.
            argument: name of the correction in error messages.

        Raises:
            AnnotationError: the correction is no annotation that can correct, leaves the query, or marks nothing.
        """
        weights = check_correction(correction, self.guide.size, argument)
        divide = math.log(threshold / (1 - threshold))
        before = self._neighbourly(self.logits - divide) > 0
        seeds = Seeds.cat([self.seeds, find_seeds(correction, weights, before, self.places)])
        decoder = self.decoder - divide
        kernel = influence(seeds, self.places) * likeness(self.features, seeds.index, before.shape)
        first = krige(decoder.flatten(), seeds, kernel).view_as(decoder)
        labels = torch.tanh(self._neighbourly(first).flatten() / 2)
        regressed = regress(self.inputs, labels, 1 + ATTENTION * kernel.amax(dim=0))
        joint = (1 - SHARE) * decoder.flatten().clamp(-BOUND, BOUND) + SHARE * GAIN * regressed
        logits = krige(joint, seeds, kernel).view_as(decoder) + divide
        return replace(self, logits=logits, seeds=seeds, marks=draw_marks(self.marks, correction, weights))

    def _neighbourly(self, logits: Tensor) -> Tensor:
        """Logits (h, w) that agree with those of neighbours of the same colour."""
        return mean_field(logits[None], self.guide.kernel, NEIGHBOURS)[0]

    def probability(self, threshold: float, refined: bool) -> Tensor:
        """Compute the probability of the class at the query's size: 1 or 0 where that is marked.

        Args:
            threshold: probability in (0, 1) above which a pixel is in the mask.
            refined: whether to refine it to the query's outlines; else it is enlarged bilinearly.

        Returns:
            (H, W) in [0, 1].
        """
        coarse = torch.sigmoid(self.logits)[None]
        if refined:
            found = refine(coarse, self.guide, threshold, NEIGHBOURS)[0]
        else:
            found = resize_maps(coarse[None], self.guide.size)[0, 0]
        marks = torch.from_numpy(self.marks)
        return found.masked_fill(marks > 0, 1.0).masked_fill(marks < 0, 0.0)


def kept_levels(levels: Sequence[Tensor], row: int) -> tuple[Tensor, ...]:
    """Features of one query of a batch, pooled to `SIDE`, on the CPU: four (B, C, h, w) -> four (C, h', w')."""
    return tuple(pool_to_grid(level[row : row + 1].float(), SIDE)[0].cpu() for level in levels)


def check_correction(correction: Correction, size: tuple[int, int], argument: str) -> Tensor:
    """Rasterise a correction: the weights of `marked`, (2, H, W).

    Args:
        correction: what is marked.
        size: (height, width) of the query in pixels.
        argument: name of the correction in error messages.

    Raises:
        AnnotationError: it is no annotation that can correct, leaves the query, or marks nothing.
    """
    if not isinstance(correction, Box | Scribble | Points):
        raise AnnotationError(
            f"{argument}: expected Points, Scribble or Box with coordinates of the query, got {describe(correction)}."
        )
    check_pixels(correction, size, argument)
    weights = marked(correction, size, argument)
    if not weights.any():
        raise AnnotationError(f"{argument}: {correction!r} marks no pixel. Mark at least one.")
    return weights


def regressors(levels: Sequence[Tensor], colours: Tensor, places: Tensor) -> Tensor:
    """What labels are regressed on: principal components of the features, colours, positions and a constant.

    Args:
        levels: four tensors (C_l, h_l, w_l), features of the query.
        colours: (3, h, w) in [0, 1], the query at the reduced size.
        places: (2, h * w), the positions.

    Returns:
        (D, h * w), each part standardised.
    """
    grid = (colours.shape[1], colours.shape[2])
    parts: list[Tensor] = []
    for level, count in zip(levels, COMPONENTS, strict=True):
        components = principal_components(level.flatten(1), count).view(-1, *level.shape[1:])
        parts.append(resize_maps(components[None], grid)[0].flatten(1))
    for values in (colours.flatten(1), places):
        centred = values - values.mean(dim=1, keepdim=True)
        parts.append(centred / centred.square().mean().sqrt().clamp_min(CLIP))
    return torch.cat([*parts, torch.ones(1, places.shape[1])])


def principal_components(features: Tensor, count: int) -> Tensor:
    """Principal components of centred features of unit length, whose mean length is 1.

    Args:
        features: (C, P), features of P positions.
        count: greatest number of components.

    Returns:
        (min(count, C), P).
    """
    centred = features / features.abs().amax().clamp_min(torch.finfo(features.dtype).tiny)
    directions = unit(centred - centred.mean(dim=1, keepdim=True), dim=0)
    directions = directions - directions.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(directions @ directions.T)
    components = vectors[:, -count:].T @ directions
    scaled: Tensor = components / components.norm(dim=0).mean().clamp_min(CLIP)
    return scaled


def find_seeds(correction: Correction, weights: Tensor, before: Tensor, places: Tensor) -> Seeds:
    """Find the positions that stand for a correction.

    Args:
        correction: what is marked.
        weights: (2, H, W), weights of the class and of the negatives (`marked`).
        before: (h, w) bool, the mask that is corrected.
        places: (2, h * w), the positions.
    """
    grid = (before.shape[0], before.shape[1])
    scale = torch.tensor([grid[1] / weights.shape[2], grid[0] / weights.shape[1]])
    found = []
    for label, part in ((1.0, weights[0]), (-1.0, weights[1])):
        pooled = F.adaptive_max_pool2d(part[None], grid)[0]
        if isinstance(correction, Points):
            points = torch.tensor(correction.points if label > 0 else correction.negative).view(-1, 2)
            x, y = ((points.float() + 0.5) * scale).long().T
            index = y.clamp(max=grid[0] - 1) * grid[1] + x.clamp(max=grid[1] - 1)
        elif part.any():
            index = spread((pooled.flatten() >= 0.5 * pooled.max()).nonzero()[:, 0], places)
        else:
            continue
        regions = before.flatten() == before.flatten()[index][:, None]
        if isinstance(correction, Box):
            regions = regions & (pooled.flatten() > 0)
        depths = [depth(region.view(grid), int(at)) for region, at in zip(regions, index, strict=True)]
        reach = torch.tensor(depths) / max(grid)
        found.append(Seeds(index, torch.full((len(index),), label), (REACH * reach).clamp(NEAREST, FARTHEST)))
    return Seeds.cat(found)


def spread(candidates: Tensor, places: Tensor) -> Tensor:
    """Choose at most `MARKS` positions, each as far from those before it as possible.

    Args:
        candidates: (N,) int64, indices of positions, N at least 1.
        places: (2, P), all positions.

    Returns:
        (n,) int64, the chosen ones.
    """
    if len(candidates) <= MARKS:
        return candidates
    at = places[:, candidates]
    distance = (at - at.mean(dim=1, keepdim=True)).norm(dim=0)
    chosen = [int(distance.argmin())]
    distance = torch.full_like(distance, torch.inf)
    while len(chosen) < MARKS:
        distance = torch.minimum(distance, (at - at[:, chosen[-1:]]).norm(dim=0))
        chosen.append(int(distance.argmax()))
    return candidates[torch.tensor(chosen)]


def depth(region: Tensor, index: int) -> float:
    """Distance of a position in a region from the nearest one outside of it or of the grid, in positions.

    Args:
        region: (h, w) bool.
        index: index of the position in the flattened grid.
    """
    height, width = region.shape
    y, x = divmod(index, width)
    border = min(y + 1, x + 1, height - y, width - x)
    outside = (~region).nonzero().float()
    if not len(outside):
        return float(border)
    nearest = (outside - torch.tensor([y, x])).norm(dim=1).min()
    return min(float(border), float(nearest))


def influence(seeds: Seeds, places: Tensor) -> Tensor:
    """Influence of each seed on each position: (n, P) in [0, 1], an exponential of the distance."""
    distance = torch.cdist(places[:, seeds.index].T, places.T, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-distance / seeds.reach[:, None])


def likeness(features: Tensor, index: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Likeness of positions to seeds: centred cosines, 0 where they are negative, to the power of `LIKENESS`.

    Args:
        features: (C, h_l, w_l), features of one level.
        index: (n,), indices of the seeds in the flattened grid.
        grid: (h, w), sides of the grid.

    Returns:
        (n, h * w) in [0, 1].
    """
    directions = unit(features - features.mean(dim=(1, 2), keepdim=True), dim=0)
    sides = torch.tensor([grid[1], grid[0]])
    at = torch.stack([index % grid[1], index // grid[1]], dim=1)
    seeds = F.grid_sample(
        directions[None], ((at + 0.5) / sides * 2 - 1)[None, None], padding_mode="border", align_corners=False
    )
    similar = torch.einsum("cn,chw->nhw", unit(seeds[0, :, 0], dim=0), directions)
    enlarged: Tensor = resize_maps(similar[None], (grid[0], grid[1]))[0].flatten(1)
    return enlarged.clamp(0, 1).pow(LIKENESS)


def krige(logits: Tensor, seeds: Seeds, kernel: Tensor) -> Tensor:
    """Add a residual to logits by which every seed is on its side of 0, by at least `MARGIN`.

    Args:
        logits: (P,), logits relative to the threshold's.
        seeds: n seeds.
        kernel: (n, P), influence of the seeds (`influence`).

    Returns:
        (P,), the corrected logits.
    """
    own = logits[seeds.index]
    residual = seeds.label * (seeds.label * own).clamp_min(MARGIN) - own
    among = kernel[:, seeds.index].T + NUGGET * torch.eye(len(own))
    # Least squares, because a position may be marked twice, and kernels of different reach need not be definite.
    shares: Tensor = torch.linalg.lstsq(among, residual[:, None]).solution[:, 0]
    return logits + shares @ kernel


def regress(inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted ridge regression of labels on inputs.

    Args:
        inputs: (D, P), regressors of P positions.
        labels: (P,), what is regressed.
        weights: (P,), positive weights of the positions.

    Returns:
        (P,), the regressed labels.
    """
    weighted = inputs * (weights / weights.sum())
    moments = weighted @ inputs.T + RIDGE * torch.eye(len(inputs))
    factors: Tensor = torch.linalg.solve(moments, weighted @ labels)
    return factors @ inputs


def draw_marks(marks: npt.NDArray[np.int8], correction: Correction, weights: Tensor) -> npt.NDArray[np.int8]:
    """Draw the pixels whose label a correction fixes: clicked pixels, strokes, and negative boxes.

    Args:
        marks: (H, W) int8, pixels that were marked before.
        correction: what is marked.
        weights: (2, H, W), its weights (`marked`).

    Returns:
        (H, W) int8, a copy with the new marks.
    """
    marks = marks.copy()
    if isinstance(correction, Points):
        height, width = marks.shape
        for label, points in ((1, correction.points), (-1, correction.negative)):
            for x, y in points:  # (x, y) is the centre of a pixel
                marks[min(round(y), height - 1), min(round(x), width - 1)] = label
        return marks
    if isinstance(correction, Scribble):
        marks[weights[0].numpy() >= 0.5] = 1  # a box does not say which of its pixels are the class
    marks[weights[1].numpy() >= 0.5] = -1
    return marks
