"""Sampling of training episodes from the banks, determined by (seed, step), so that a run can be resumed exactly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.data.weak import AnnotationKind, weaken
from diffup.errors import TrainingError
from diffup.inputs.annotations import rasterise
from diffup.priors.condition import SIZES
from diffup.priors.features import SupportFeatures
from diffup.priors.views import ONE_SHOT_VIEWS, warp
from diffup.training.bank import Bank
from diffup.training.config import EpisodesConfig
from diffup.training.processes import ALL, Share

WHOLE, CROP, PASTED = "whole", "crop", "pasted"
GROUPS = (WHOLE, CROP, PASTED)
"""Names of the groups of views; in `whole`, the one-shot views of an image follow each other."""

SIZE_LIMITS = (0.04, 0.15)
"""Shares of a view that divide small, medium and large objects, which are drawn equally often."""

NEAR_AREA = 0.01
"""Minimum share of a view that a similar class covers in a query without the class."""

NOTHING_TO_TRAIN_ON = "no training class has two images; add images, raise views.images, or lower min_area_fraction"


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes encoded by one encoder.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        support: features of the supports, a batch of B; None if the classes are given by name alone.
        text: (B, 1, h, w), similarities of the queries to the names of their classes; None without text.
        images: (B, 3, 128, 128) in [0, 1], the queries.
        edges: (B, 2, 128, 128) in [0, 1], edges of the queries.
        mask: (B, 1, 64, 64) in [-1, 1], true masks x_0 of the queries.
        valid: (B, 1, 64, 64) in [0, 1], weight of each pixel in the loss; 0 where the mask is undefined.
    """

    query: list[Tensor]
    support: SupportFeatures | None
    text: Tensor | None
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
    """Draws training episodes: classes evenly, then data sets, then sizes of objects.

    Args:
        images: image banks by group.
        classes: ids of the training classes.
        config: distribution of the episodes.
        min_area_fraction: minimum share of a view that a class must cover for the view to be its query or support.
        ignore: mask value of pixels that do not count.
        parts: for each training image, the number of its data set; empty for a single one.
        labelled: for each data set, the classes that its masks label; empty if a single one labels all.
        near: for each class, the classes most similar to it (`near_classes`); empty draws queries without the class at
            random.

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
        parts: Sequence[int] = (),
        labelled: Sequence[Collection[int]] = (),
        near: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.images = images
        self.config = config
        self.ignore = ignore
        self.near = near or {}
        self.views = len(ONE_SHOT_VIEWS)
        self.areas = {group: _areas(bank.arrays["mask"], classes) for group, bank in images.items()}
        self.column = {c: position for position, c in enumerate(classes)}
        self.parts = {
            group: np.asarray(parts or [0])[bank.arrays["source"] if parts else np.zeros(bank.length, int)]
            for group, bank in images.items()
            if group != PASTED
        }
        self.labelled = [set(part) for part in labelled] or [set(classes)]
        # Queries are the image and its mirror image; the other views serve as supports only.
        self.as_query = {group: np.ones(bank.length, bool) for group, bank in images.items()}
        self.as_query[WHOLE] = np.arange(images[WHOLE].length) % self.views <= 1
        self.queries: dict[int, dict[str, npt.NDArray[np.intp]]] = {}
        self.supports: dict[int, npt.NDArray[np.intp]] = {}
        for c in classes:
            shown = {group: self._area(group, c) >= min_area_fraction for group in images}
            supports = np.flatnonzero(shown[WHOLE])
            supports = supports[supports % self.views == 0]
            if len(supports) < 2:
                continue
            self.supports[c] = supports
            found = {group: np.flatnonzero(shown[group] & self.as_query[group]) for group in images}
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
        text: dict[str, Bank] | None = None,
    ) -> Episodes:
        """Draw the batch of a step: independent episodes with the same number of support views.

        Args:
            seed: random seed of the run.
            step: number of the step, from 0.
            batch_size: number of episodes over all processes.
            features: feature banks of one encoder, by group.
            device: device of the returned tensors.
            share: rows of the batch to return.
            text: banks of text similarities by group; None or empty without a text space.
        """
        whole = np.random.default_rng([seed, step])
        shots, kind = int(whole.integers(1, self.config.max_shots + 1)), whole.random() if text else 1.0
        named = kind < self.config.text + self.config.text_and_supports
        shown = not kind < self.config.text
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
        support = None
        if shown:
            support = SupportFeatures(
                levels=tuple(_gather(features, supports, level).to(device) for level in range(len(SIZES))),
                foreground=marked.to(device),
                background=torch.stack(background).to(device),
                # A view may have moved a small object outside the image.
                valid=(marked.amax(dim=(2, 3)) > 0).to(device),
                annotated=torch.stack(annotated).to(device),
                shots=shots,
            )
        similar = None
        if named and text:
            rows = [
                text[query.group].arrays["similar"][query.index, self.column[c]]
                for query, c in zip(queries, classes, strict=True)
            ]
            similar = torch.from_numpy(np.array(rows)).float()[:, None].to(device)
        mask, valid = self._targets(queries, classes)
        return Episodes(
            query=[_gather(features, [queries], level)[0].to(device) for level in range(len(SIZES))],
            support=support,
            text=similar,
            images=torch.stack([self._array(entry, "image") for entry in queries]).to(device).float() / 255,
            edges=torch.stack([self._array(entry, "edges") for entry in queries]).to(device).float() / 255,
            mask=mask.to(device),
            valid=valid.to(device),
        )

    def _choose(self, c: int, shots: int, rng: np.random.Generator) -> tuple[Entry, list[Entry]]:
        query = self._absent(c, rng) if rng.random() < self.config.absent else None
        absent = query is not None
        query = query or self._present(c, rng)
        source = int(self.images[query.group].arrays["source"][query.index])
        same = not absent and rng.random() < self.config.same_image
        candidates = self.supports[c]
        sources = candidates // self.views
        allowed = candidates[sources == source] if same and (sources == source).any() else candidates[sources != source]
        weights = _even(self.parts[WHOLE][allowed])
        picked = rng.choice(allowed, size=shots, replace=len(allowed) < shots, p=weights)
        return query, [Entry(WHOLE, int(index)) for index in picked]

    def _present(self, c: int, rng: np.random.Generator) -> Entry:
        """Draw a query that shows a class: its group, then its data set and the size of the object, each evenly."""
        found = self.queries[c]
        shares = {PASTED: self.config.pasted, CROP: self.config.cropped}
        shares[WHOLE] = 1 - sum(shares.values())
        groups = [group for group in GROUPS if group in found and shares[group] > 0] or list(found)
        weights = np.array([shares[group] for group in groups]) + 1e-9
        group = str(rng.choice(groups, p=weights / weights.sum()))
        entries = found[group]
        if group in self.parts:
            entries = _one_of(self.parts[group][entries], entries, rng)
        sizes = np.digitize(self._area(group, c)[entries], SIZE_LIMITS)
        return Entry(group, int(rng.choice(_one_of(sizes, entries, rng))))

    def _absent(self, c: int, rng: np.random.Generator) -> Entry | None:
        """Draw a query that does not show a class, from the data sets that label it; None if there is none."""
        crops = self.config.cropped / max(1 - self.config.pasted, 1e-9)  # pasted images have unknown backgrounds
        group = CROP if CROP in self.images and rng.random() < crops else WHOLE
        labels = np.array([c in part for part in self.labelled])[self.parts[group]]
        free = labels & self.as_query[group] & (self._area(group, c) == 0)
        if rng.random() < self.config.near and self.near.get(c):
            other = int(rng.choice(self.near[c]))
            shown = free & (self._area(group, other) >= NEAR_AREA)
            free = shown if shown.any() else free
        entries = np.flatnonzero(free)
        return Entry(group, int(rng.choice(entries))) if len(entries) else None

    def _area(self, group: str, c: int) -> npt.NDArray[np.float64]:
        """Share of each view of a group that a class covers, (N,) in [0, 1]."""
        return self.areas[group][:, self.column[c]]

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


def near_classes(
    images: Bank, level: npt.NDArray[np.float16], classes: Sequence[int], count: int = 5
) -> dict[int, tuple[int, ...]]:
    """Find the classes whose prototypes are the most similar to each class's own.

    Args:
        images: the bank of whole images.
        level: (N, C, h, w), features of these views at an encoder's last level.
        classes: ids of the classes.
        count: number of similar classes.

    Returns:
        For each class that is shown, the most similar classes, the nearest first.
    """
    sums: dict[int, Tensor] = {}
    for index in range(0, images.length, len(ONE_SHOT_VIEWS)):
        features = torch.from_numpy(np.array(level[index])).float()
        centred = features - features.mean(dim=(1, 2), keepdim=True)
        labels = torch.from_numpy(np.array(images.arrays["mask"][index]))
        for c in set(np.unique(labels.numpy()).tolist()) & set(classes):
            weights = F.adaptive_avg_pool2d((labels == c).float()[None], (features.shape[1], features.shape[2]))
            prototype = F.normalize((centred * weights).sum(dim=(1, 2)), dim=0)
            sums[c] = sums.get(c, torch.zeros_like(prototype)) + prototype
    if not sums:
        return {}
    shown = sorted(sums)
    vectors = F.normalize(torch.stack([sums[c] for c in shown]), dim=1)
    similar = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    order = similar.argsort(dim=1, descending=True)[:, : min(count, len(shown) - 1)]
    return {c: tuple(shown[other] for other in row.tolist()) for c, row in zip(shown, order, strict=True)}


def _even(groups: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Probabilities of entries, (N,), by which each of their groups is equally likely."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1 / (counts[inverse] * len(counts)))


def _one_of(
    groups: npt.NDArray[np.intp], entries: npt.NDArray[np.intp], rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """The entries of one of the groups, drawn evenly."""
    return np.asarray(entries[groups == rng.choice(np.unique(groups))])


def _areas(masks: npt.NDArray[np.uint8], classes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Share of each mask that each class covers, (N, number of classes) in [0, 1]."""
    counts = np.stack([np.bincount(mask.ravel(), minlength=256)[list(classes)] for mask in masks])
    return np.asarray(counts / masks[0].size)


def _gather(features: dict[str, Bank], entries: Sequence[Sequence[Entry]], level: int) -> Tensor:
    """Read the features of entries, (B, K, C, h, w) float32."""
    rows = [[features[e.group].arrays[f"level{level}"][e.index] for e in row] for row in entries]
    return torch.from_numpy(np.array(rows)).float()
