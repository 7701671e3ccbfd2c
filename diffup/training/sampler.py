"""Sampling of training episodes from the banks, determined by (seed, step), so that a run can be resumed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.data.weak import AnnotationKind, weaken
from diffup.errors import TrainingError
from diffup.inputs.annotations import rasterise
from diffup.priors.condition import SIZES, SupportFeatures
from diffup.priors.views import ONE_SHOT_VIEWS, warp
from diffup.training.bank import Bank
from diffup.training.config import EpisodesConfig
from diffup.training.processes import ALL, Share

WHOLE, CROP, PASTED = "whole", "crop", "pasted"
GROUPS = (WHOLE, CROP, PASTED)
"""Names of the groups of views; in `whole`, the one-shot views of an image follow each other."""

NOTHING_TO_TRAIN_ON = "no training class has two images; add images, raise views.images, or lower min_area_fraction"


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes encoded by one encoder.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        support: features of the supports, a batch of B.
        images: (B, 3, 128, 128) in [0, 1], the queries.
        edges: (B, 2, 128, 128) in [0, 1], edges of the queries.
        mask: (B, 1, 64, 64) in [-1, 1], true masks x_0 of the queries.
        valid: (B, 1, 64, 64) in [0, 1], weight of each pixel in the loss; 0 where the mask is undefined.
    """

    query: list[Tensor]
    support: SupportFeatures
    images: Tensor
    edges: Tensor
    mask: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Entry:
    """One view in a bank."""

    group: str
    index: int


class EpisodeSampler:
    """Draws training episodes.

    Args:
        images: image banks by group.
        classes: ids of the training classes.
        config: distribution of the episodes.
        min_area_fraction: minimum share of a view that a class must cover for the view to be its query or support.
        ignore: mask value of pixels that do not count.

    Raises:
        TrainingError: no class has two images, which an episode needs.
    """

    def __init__(
        self,
        images: dict[str, Bank],
        classes: Sequence[int],
        config: EpisodesConfig,
        min_area_fraction: float,
        ignore: int,
    ) -> None:
        self.images = images
        self.config = config
        self.ignore = ignore
        self.views = len(ONE_SHOT_VIEWS)
        areas = {group: _areas(bank.arrays["mask"], classes) >= min_area_fraction for group, bank in images.items()}
        self.queries: dict[int, dict[str, npt.NDArray[np.intp]]] = {}
        self.supports: dict[int, npt.NDArray[np.intp]] = {}
        for position, c in enumerate(classes):
            shown = np.flatnonzero(areas[WHOLE][:, position])
            supports = shown[shown % self.views == 0]
            if len(supports) < 2:
                continue
            self.supports[c] = supports
            found = {group: np.flatnonzero(area[:, position]) for group, area in areas.items()}
            # Queries are the image and its mirror image; the other views serve as supports only.
            found[WHOLE] = shown[shown % self.views <= 1]
            self.queries[c] = {group: entries for group, entries in found.items() if len(entries)}
        if not self.supports:
            raise TrainingError(NOTHING_TO_TRAIN_ON)
        self.classes = sorted(self.supports)

    def draw(
        self,
        seed: int,
        step: int,
        batch_size: int,
        features: dict[str, Bank],
        device: torch.device,
        share: Share = ALL,
    ) -> Episodes:
        """Draw the batch of a step: independent episodes with the same number of support views.

        Args:
            seed: random seed of the run.
            step: number of the step, from 0.
            batch_size: number of episodes over all processes.
            features: feature banks of one encoder, by group.
            device: device of the returned tensors.
            share: rows of the batch to return.
        """
        shots = int(np.random.default_rng([seed, step]).integers(1, self.config.max_shots + 1))
        queries, supports, classes, foreground, background, annotated = [], [], [], [], [], []
        for row in share.rows(batch_size):
            rng = np.random.default_rng([seed, step, row])
            c = int(rng.choice(self.classes))
            query, chosen = self._choose(c, shots, rng)
            regions, flags = self._annotate(c, chosen, rng)
            queries.append(query)
            classes.append(c)
            if shots == 1:
                supports.append([Entry(WHOLE, chosen[0].index + view) for view in range(self.views)])
                regions = torch.cat([warp(regions, view) for view in ONE_SHOT_VIEWS])
                flags = flags.expand(self.views)
            else:
                supports.append(chosen)
            foreground.append(regions[:, 0])
            background.append(regions[:, 1])
            annotated.append(flags)
        marked = torch.stack(foreground)
        support = SupportFeatures(
            levels=tuple(_gather(features, supports, level).to(device) for level in range(len(SIZES))),
            foreground=marked.to(device),
            background=torch.stack(background).to(device),
            # A view may have moved a small object outside the image.
            valid=(marked.amax(dim=(2, 3)) > 0).to(device),
            annotated=torch.stack(annotated).to(device),
        )
        mask, valid = self._targets(queries, classes)
        return Episodes(
            query=[_gather(features, [queries], level)[0].to(device) for level in range(len(SIZES))],
            support=support,
            images=torch.stack([self._array(entry, "image") for entry in queries]).to(device).float() / 255,
            edges=torch.stack([self._array(entry, "edges") for entry in queries]).to(device).float() / 255,
            mask=mask.to(device),
            valid=valid.to(device),
        )

    def _choose(self, c: int, shots: int, rng: np.random.Generator) -> tuple[Entry, list[Entry]]:
        found = self.queries[c]
        shares = {PASTED: self.config.pasted, CROP: self.config.cropped}
        shares[WHOLE] = 1 - sum(shares.values())
        groups = [group for group in GROUPS if group in found and shares[group] > 0] or list(found)
        weights = np.array([shares[group] for group in groups]) + 1e-9
        group = str(rng.choice(groups, p=weights / weights.sum()))
        query = Entry(group, int(rng.choice(found[group])))
        source = int(self.images[group].arrays["source"][query.index])
        same = rng.random() < self.config.same_image
        candidates = self.supports[c]
        sources = candidates // self.views
        allowed = candidates[sources == source] if same and (sources == source).any() else candidates[sources != source]
        picked = rng.choice(allowed, size=shots, replace=len(allowed) < shots)
        return query, [Entry(WHOLE, int(index)) for index in picked]

    def _annotate(self, c: int, supports: Sequence[Entry], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Foreground and background of each support, (K, 2, 128, 128), and which supports are annotated, (K,)."""
        kinds: list[AnnotationKind] = ["mask", "box", "scribble", "points", "none"]
        probabilities = [self.config.kinds[kind] for kind in kinds]
        mixed = rng.random() < self.config.mixed
        kind = kinds[int(rng.choice(len(kinds), p=probabilities))]
        regions, annotated = [], []
        for entry in supports:
            if mixed:
                kind = kinds[int(rng.choice(len(kinds), p=probabilities))]
            labels = self.images[entry.group].arrays["mask"][entry.index]
            rastered = rasterise(weaken(labels == c, kind, rng), labels.shape)
            known = torch.from_numpy(labels != self.ignore).float()
            regions.append(torch.stack([rastered.foreground, rastered.background * known]))
            annotated.append(rastered.annotated)
        return torch.stack(regions), torch.tensor(annotated)

    def _targets(self, queries: Sequence[Entry], classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        labels = torch.stack([self._array(entry, "mask") for entry in queries])
        wanted = torch.tensor(classes, dtype=labels.dtype)[:, None, None]
        mask = F.adaptive_avg_pool2d((labels == wanted).float()[:, None], SIZES[0]) * 2 - 1
        return mask, F.adaptive_avg_pool2d((labels != self.ignore).float()[:, None], SIZES[0])

    def _array(self, entry: Entry, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.images[entry.group].arrays[name][entry.index]))


def _areas(masks: npt.NDArray[np.uint8], classes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Share of each mask that each class covers, (N, number of classes) in [0, 1]."""
    counts = np.stack([np.bincount(mask.ravel(), minlength=256)[list(classes)] for mask in masks])
    return np.asarray(counts / masks[0].size)


def _gather(features: dict[str, Bank], entries: Sequence[Sequence[Entry]], level: int) -> Tensor:
    """Read the features of entries, (B, K, C, h, w) float32."""
    rows = [[features[e.group].arrays[f"level{level}"][e.index] for e in row] for row in entries]
    return torch.from_numpy(np.array(rows)).float()
