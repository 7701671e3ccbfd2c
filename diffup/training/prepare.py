"""The data of a run: training images of the data set, and the banks of their views under each encoder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from diffup.backbones import Backbone, members_of
from diffup.data.base import TrainingData
from diffup.errors import DataError, TrainingError
from diffup.inputs.images import is_image_name
from diffup.priors.condition import Members
from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View
from diffup.training.bank import Bank, Render, bank_name, feature_bank, file_facts, image_bank
from diffup.training.config import TrainConfig, ViewsConfig
from diffup.training.render import Renderer
from diffup.training.sampler import CROP, NOTHING_TO_TRAIN_ON, PASTED, WHOLE

_PICK = 3  # seed component, different from those of the views of `Renderer`

Plan = tuple[Render, int, tuple[View, ...], dict[str, Any]]
"""A group of views: the function that renders one, their number, their geometric views, what their content depends
on."""


@dataclass(frozen=True)
class Banks:
    """All cached views of a run.

    Args:
        images: image banks by group.
        features: feature banks by group, for each encoder.
        members: for each encoder, the split of its channels among the encoders it joins; empty for a single one.
    """

    images: dict[str, Bank]
    features: list[dict[str, Bank]]
    members: list[Members]

    def load(self) -> None:
        """Load all banks into memory."""
        for group in (self.images, *self.features):
            for bank in group.values():
                bank.arrays = {name: np.array(array) for name, array in bank.arrays.items()}


@dataclass(frozen=True)
class Sources:
    """The photos from which a run's views are rendered.

    Args:
        data: the data set.
        classes: ids of the training classes.
        names: names of the training images.
        pairs: names of the images of each training class, by class id.
        backgrounds: paths of additional photos onto which objects are pasted.
    """

    data: TrainingData
    classes: tuple[int, ...]
    names: tuple[str, ...]
    pairs: dict[int, tuple[str, ...]]
    backgrounds: tuple[Path, ...]

    @classmethod
    def find(
        cls, data: TrainingData, config: TrainConfig, backgrounds: str | os.PathLike[str] | None = None
    ) -> Sources:
        """Collect the training images of a data set, without the classes of the held-out folds.

        Args:
            data: the data set.
            config: settings of the run: held-out folds, and number of images.
            backgrounds: folder of additional photos onto which objects are pasted.

        Raises:
            DataError: a fold does not exist, or `backgrounds` holds no photo.
            TrainingError: no training class has two images.
        """
        held_out = {c for fold in config.folds for c in data.fold(fold)}
        classes = tuple(c for c in data.classes if c not in held_out)
        photos = _photos(backgrounds)
        names, pairs = _chosen(data.split("train"), data.pairs("train", classes), config.views)
        if all(len(shown) < 2 for shown in pairs.values()):
            raise TrainingError(NOTHING_TO_TRAIN_ON)
        return cls(data, classes, names, pairs, photos)

    def identity(self) -> dict[str, str]:
        """Return hashes of the names and sizes of data and background files, equal for copies on other machines."""
        return {
            "data": _names_and_sizes(self.data.files(self.names)),
            "backgrounds": _names_and_sizes(self.backgrounds),
        }


def build_banks(
    sources: Sources, config: TrainConfig, backbones: Sequence[Backbone], cache: Path, progress: bool
) -> Banks:
    """Render and encode the views that are not cached yet, and open all banks.

    Args:
        sources: the training photos.
        config: settings of the run.
        backbones: the training encoders.
        cache: folder of the banks.
        progress: whether to show progress bars.
    """
    images: dict[str, Bank] = {}
    features: list[dict[str, Bank]] = [{} for _ in backbones]
    grids = config.decoder.feature_grids
    for planned in plan_banks(sources, config, backbones, cache):
        render, length, geometry, _ = planned.plan
        if planned.encoder is None:
            images[planned.group] = image_bank(planned.folder, length, render, geometry, progress)
            continue
        backbone = backbones[planned.encoder]
        features[planned.encoder][planned.group] = feature_bank(
            planned.folder, length, render, geometry, backbone, grids, config.bf16, progress
        )
    return Banks(images, features, [members_of(backbone) for backbone in backbones])


@dataclass(frozen=True, eq=False)
class PlannedBank:
    """A bank that a run needs, filled or not.

    Args:
        group: name of the group of views.
        folder: folder of the bank.
        plan: the views, and how they are rendered.
        encoder: index of the encoder whose features it holds; None for the bank of images.
    """

    group: str
    folder: Path
    plan: Plan
    encoder: int | None

    @property
    def entries(self) -> int:
        """Number of views in the bank."""
        return self.plan[1] * len(self.plan[2])


def plan_banks(sources: Sources, config: TrainConfig, backbones: Sequence[Backbone], cache: Path) -> list[PlannedBank]:
    """List the banks that a run needs, in the order in which they are filled.

    Args:
        sources: the training photos.
        config: settings of the run.
        backbones: the training encoders.
        cache: folder of the banks.
    """
    planned = []
    for group, plan in _plans(sources, config.views).items():
        _, length, _, facts = plan
        if length == 0:
            continue
        planned.append(PlannedBank(group, cache / bank_name(group, facts), plan, None))
        for index, backbone in enumerate(backbones):
            more = {"backbone": backbone.fingerprint, "grids": config.decoder.feature_grids, "bf16": config.bf16}
            planned.append(PlannedBank(group, cache / bank_name(group, {**facts, **more}), plan, index))
    return planned


def _plans(sources: Sources, views: ViewsConfig) -> dict[str, Plan]:
    names = sources.names
    renderer = Renderer(sources.data, names, sources.pairs, sources.backgrounds, views)
    cropped = {"crops": views.crops, "crop_scale": views.crop_scale, "jitter": views.jitter, "seed": views.seed}
    pasted = {"jitter": views.jitter, "seed": views.seed, "classes": list(sources.classes)}
    pasted["backgrounds"] = file_facts(sources.backgrounds)
    plans: dict[str, Plan] = {
        WHOLE: (renderer.whole, len(names), ONE_SHOT_VIEWS, {}),
        CROP: (renderer.crop, len(names) * views.crops, (IDENTITY,), cropped),
        PASTED: (renderer.pasted, views.pasted_of(len(names)), (IDENTITY,), pasted),
    }
    files = file_facts(sources.data.files(names))
    return {
        group: (
            render,
            length,
            geometry,
            {**facts, "files": files, "views": [str(view) for view in geometry], "length": length},
        )
        for group, (render, length, geometry, facts) in plans.items()
    }


def _chosen(
    names: tuple[str, ...], pairs: dict[int, tuple[str, ...]], views: ViewsConfig
) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """Choose `views.images` images, or all; classes take turns, so that rare classes are included."""
    if views.images is None:
        return names, pairs
    rng = np.random.default_rng([views.seed, _PICK])
    waiting = {c: [shown[index] for index in rng.permutation(len(shown))] for c, shown in pairs.items()}
    chosen: set[str] = set()
    turns = cycle(pairs)
    while len(chosen) < views.images and any(waiting.values()):
        mine = waiting[next(turns)]
        while mine and mine[-1] in chosen:
            mine.pop()
        if mine:
            chosen.add(mine.pop())
    kept = {c: tuple(name for name in shown if name in chosen) for c, shown in pairs.items()}
    return tuple(name for name in names if name in chosen), {c: shown for c, shown in kept.items() if shown}


def _photos(folder: str | os.PathLike[str] | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    photos = sorted(path for path in Path(folder).glob("[!.]*") if is_image_name(path) and path.is_file())
    if not photos:
        raise DataError(f"backgrounds={str(folder)!r} holds no file with the ending of an image (.jpg, .png, ...)")
    return tuple(photos)


def _names_and_sizes(paths: Sequence[Path]) -> str:
    facts = [(path.name, path.stat().st_size) for path in paths]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
