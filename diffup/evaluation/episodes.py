"""Evaluation episodes drawn from a labelled folder with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffup.data.folder import LabelledFolder
from diffup.errors import DataError


@dataclass(frozen=True)
class Episode:
    """One episode: segment the class of the supports in the query.

    Args:
        class_id: id of the class.
        query: name of the query image.
        supports: names of the K support images, none of them the query.
    """

    class_id: int
    query: str
    supports: tuple[str, ...]


def draw_episodes(
    folder: LabelledFolder, split: str, classes: Sequence[int], shots: int, count: int, seed: int
) -> list[Episode]:
    """Draw episodes as COCO-20i does: first a class, then a query and supports, all uniformly.

    The supports of an episode differ if the class has enough images; otherwise some repeat.

    Args:
        folder: the labelled folder.
        split: name of the image split.
        classes: ids of the classes to draw from; classes with a single image are left out.
        shots: K, number of supports.
        count: number of episodes.
        seed: random seed of the episodes.

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
