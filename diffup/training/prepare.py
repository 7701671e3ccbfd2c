"""The data of a run: training images of the data set, and the banks of their views under each encoder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from diffup.backbones import Backbone, members_of
from diffup.data.base import TrainingData
from diffup.data.joined import JoinedData
from diffup.errors import DataError, TrainingError
from diffup.inputs.images import is_image_name
from diffup.priors.features import Members
from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View
from diffup.text.prompts import embed
from diffup.text.space import TextSpace
from diffup.text.templates import prompts, resolve_templates
from diffup.training.bank import Bank, Render, bank_name, feature_bank, file_facts, image_bank, text_bank
from diffup.training.config import TrainConfig, ViewsConfig
from diffup.training.render import Renderer
from diffup.training.sampler import CROP, NOTHING_TO_TRAIN_ON, PASTED, WHOLE

_PICK = 3  # seed component, different from those of the views of `Renderer`

TEXT = -1
"""Number of the text space among the encoders of a run."""

Plan = tuple[Render, int, tuple[View, ...], dict[str, Any]]
"""A group of views: the function that renders one, their number, their geometric views, what their content depends
on."""


@dataclass(frozen=True)
class Banks:
    """All cached views of a run.

    Args:
        images: image banks by group.
        features: feature banks by group, for each encoder.
        text: banks of similarities to the names of the training classes, by group; empty without a text space.
        members: for each encoder, the split of its channels among the encoders it joins; empty for a single one.
    """

    images: dict[str, Bank]
    features: list[dict[str, Bank]]
    text: dict[str, Bank]
    members: list[Members]

    def load(self) -> None:
        """Load all banks into memory."""
        for group in (self.images, *self.features, self.text):
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
        labelled: for each data set, the training classes that its masks label.
        parts: for each name, the number of its data set.
        backgrounds: paths of additional photos onto which objects are pasted.
    """

    data: TrainingData
    classes: tuple[int, ...]
    names: tuple[str, ...]
    pairs: dict[int, tuple[str, ...]]
    labelled: tuple[frozenset[int], ...]
    parts: tuple[int, ...]
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
        photos = () if backgrounds is None else list_photos(backgrounds)
        joined = data if isinstance(data, JoinedData) else None
        parts = {name: 0 if joined is None else joined.part(name) for name in data.split("train")}
        # By all classes, so that runs with different held-out folds share the cached views of the same images.
        names, shown = _chosen(parts, data.pairs("train", data.classes), config.views)
        pairs = {c: images for c, images in shown.items() if c in classes}
        if all(len(shown) < 2 for shown in pairs.values()):
            raise TrainingError(NOTHING_TO_TRAIN_ON)
        sets = [data.classes] if joined is None else [ids.values() for ids in joined.ids]
        labelled = tuple(frozenset(ids) & set(classes) for ids in sets)
        return cls(data, classes, names, pairs, labelled, tuple(parts[name] for name in names), photos)

    @property
    def class_names(self) -> list[str]:
        """Names of the training classes."""
        return [self.data.classes[c] for c in self.classes]

    def identity(self) -> dict[str, str]:
        """Return hashes of the names and sizes of data and background files, equal for copies on other machines."""
        return {
            "data": _names_and_sizes(self.data.files(self.names)),
            "backgrounds": _names_and_sizes(self.backgrounds),
        }


def list_photos(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """List the photos of a folder that is given as `backgrounds`, sorted by name; hidden files are left out.

    Raises:
        DataError: the folder holds no photo.
    """
    photos = sorted(path for path in Path(folder).glob("[!.]*") if is_image_name(path) and path.is_file())
    if not photos:
        raise DataError(f"backgrounds={str(folder)!r} holds no file with the ending of an image (.jpg, .png, ...)")
    return tuple(photos)


def build_banks(
    sources: Sources,
    config: TrainConfig,
    backbones: Sequence[Backbone],
    cache: Path,
    progress: bool,
    text_space: TextSpace | None = None,
) -> Banks:
    """Render and encode the views that are not cached yet, and open all banks.

    Args:
        sources: the training photos.
        config: settings of the run.
        backbones: the training encoders.
        cache: folder of the banks.
        progress: whether to show progress bars.
        text_space: the text space in which classes are named; None for none.
    """
    images: dict[str, Bank] = {}
    features: list[dict[str, Bank]] = [{} for _ in backbones]
    text: dict[str, Bank] = {}
    sentences = prompts(sources.class_names, resolve_templates(None))
    embeddings = None if text_space is None else embed(text_space, sentences).embeddings
    grids = config.decoder.feature_grids
    for planned in plan_banks(sources, config, backbones, cache, text_space):
        render, length, geometry, _ = planned.plan
        if planned.encoder == TEXT and text_space is not None and embeddings is not None:
            text[planned.group] = text_bank(planned.folder, length, render, geometry, text_space, embeddings, progress)
        elif planned.encoder is None:
            images[planned.group] = image_bank(planned.folder, length, render, geometry, progress)
        else:
            backbone = backbones[planned.encoder]
            features[planned.encoder][planned.group] = feature_bank(
                planned.folder, length, render, geometry, backbone, grids, config.bf16, progress
            )
    return Banks(images, features, text, [members_of(backbone) for backbone in backbones])


@dataclass(frozen=True, eq=False)
class PlannedBank:
    """A bank that a run needs, filled or not.

    Args:
        group: name of the group of views.
        folder: folder of the bank.
        plan: the views, and how they are rendered.
        encoder: index of the encoder whose features it holds; `TEXT` for text similarities, None for images.
    """

    group: str
    folder: Path
    plan: Plan
    encoder: int | None

    @property
    def entries(self) -> int:
        """Number of views in the bank."""
        return self.plan[1] * len(self.plan[2])


def plan_banks(
    sources: Sources,
    config: TrainConfig,
    backbones: Sequence[Backbone],
    cache: Path,
    text_space: TextSpace | None = None,
) -> list[PlannedBank]:
    """List the banks that a run needs, in the order in which they are filled.

    Args:
        sources: the training photos.
        config: settings of the run.
        backbones: the training encoders.
        cache: folder of the banks.
        text_space: the text space in which classes are named; None for none.
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
        if text_space is not None:
            more = {"text": text_space.fingerprint, "names": sources.class_names}
            planned.append(PlannedBank(group, cache / bank_name(group, {**facts, **more}), plan, TEXT))
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
    parts: Mapping[str, int], pairs: dict[int, tuple[str, ...]], views: ViewsConfig
) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """Choose at most `views.images` images of each data set; classes take turns, so that rare classes are included."""
    chosen: set[str] = set()
    for part in sorted(set(parts.values())):
        names = [name for name, number in parts.items() if number == part]
        if views.images is None or len(names) <= views.images:
            chosen.update(names)
        else:
            own = {c: [name for name in shown if parts[name] == part] for c, shown in pairs.items()}
            chosen.update(_in_turns(own, views.images, np.random.default_rng([views.seed, _PICK])))
    kept = {c: tuple(name for name in shown if name in chosen) for c, shown in pairs.items()}
    return tuple(name for name in parts if name in chosen), {c: shown for c, shown in kept.items() if shown}


def _in_turns(pairs: Mapping[int, Sequence[str]], count: int, rng: np.random.Generator) -> set[str]:
    """Choose `count` images, the classes in turn, or all if there are fewer."""
    waiting = {c: [shown[index] for index in rng.permutation(len(shown))] for c, shown in pairs.items() if shown}
    chosen: set[str] = set()
    turns = cycle(waiting)
    while len(chosen) < count and any(waiting.values()):
        mine = waiting[next(turns)]
        while mine and mine[-1] in chosen:
            mine.pop()
        if mine:
            chosen.add(mine.pop())
    return chosen


def _names_and_sizes(paths: Sequence[Path]) -> str:
    facts = [(path.name, path.stat().st_size) for path in paths]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
