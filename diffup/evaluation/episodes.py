"""Seeded evaluation episodes on a labelled folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffup.data.folder import LabelledFolder
from diffup.errors import DataError


@dataclass(frozen=True)
class Episode:
    """One task: find the class of the supports in the query.

    Args:
        class_id: the class.
        query: name of the query image.
        supports: names of the K support images, none of them the query.
    """

    class_id: int
    query: str
    supports: tuple[str, ...]


def draw_episodes(
    folder: LabelledFolder, split: str, classes: Sequence[int], shots: int, count: int, seed: int
) -> list[Episode]:
    """Draw episodes class by class, as COCO-20i does: class, query and supports uniform.

    Supports differ from each other where the class has enough images; else some repeat.

    Args:
        folder: the data.
        split: image split.
        classes: classes to draw from; those with a single image are left out.
        shots: K.
        count: number of episodes.
        seed: seed of the stream.

    Raises:
        DataError: no class has two images.
    """
    shown = folder.pairs(split, classes)
    pairs = {c: names for c, names in shown.items() if len(names) > 1}
    if not pairs:
        have = ", ".join(f"{c} ({folder.classes.get(c, 'unknown')}) has {len(shown.get(c, ()))}" for c in classes)
        raise DataError(
            f"{folder.root}: no class of {list(classes)} has two images in split {split!r} in which it covers "
            f"{folder.min_area_fraction:g} of the pixels ('min_area_fraction'), one for the support and one for the "
            f"query: {have or 'no class is asked for'}"
        )
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        c = int(rng.choice(list(pairs)))
        query = int(rng.integers(len(pairs[c])))
        others = [name for index, name in enumerate(pairs[c]) if index != query]
        supports = rng.choice(others, size=shots, replace=len(others) < shots)
        episodes.append(Episode(c, pairs[c][query], tuple(str(name) for name in supports)))
    return episodes
