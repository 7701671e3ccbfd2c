"""Evaluation protocols of the literature, their episode streams and scoring rules: HSNet's (the default) and BAM's.

HSNet (Min et al., ICCV 2021; the same sampler and meter are in DCAMA, Matcher, GF-SAM): PASCAL-5i takes its (image,
class) pairs in turn as queries, COCO-20i draws a class and then a query, FSS-1000 takes every image once as the query.
Supports are drawn one by one and only the query is excluded, so they may repeat. Masks are resized to the input size,
400.

BAM (Lang et al., CVPR 2022; PFENet's data): its own filter of images, a class drawn from those in the query image,
distinct supports, five seeds, masks at the original size.

Both give K supports to one pass of the model: HSNet's vote over K passes belongs to its network, not to its protocol.
Compare a stream with a published one by its hash::

    python -m diffup.evaluation.protocols data/splits/pascal/val/fold0.txt --data pascal --fold 0 --shots 1
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from diffup.data.base import Benchmark, FoldLists, Target, by_class, pairs_of
from diffup.data.coco20i import read_coco_list
from diffup.data.pascal5i import FOLDS as PASCAL_FOLDS
from diffup.data.pascal5i import pair_lists, read_pascal_list
from diffup.errors import ConfigError, DataError, DiffUpError
from diffup.evaluation.episodes import Episode
from diffup.utils.suggestions import did_you_mean

ProtocolName: TypeAlias = Literal["hsnet", "bam"]
"""Protocols of the literature."""

EPISODES = 1000
"""Default number of episodes of a stream, in both protocols."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """The evaluation protocol of a benchmark.

    Args:
        name: name of the protocol.
        draw: function of (data, fold, shots, seed, count) that draws the episodes.
        episodes: number of episodes of a stream; on FSS-1000, where every image is a query once, the number of images.
        seeds: random seeds, one stream each; scores are means over them.
        mask_size: side in pixels to which target and prediction are resized for scoring; None for the image's size.
    """

    name: ProtocolName
    draw: Callable[[Benchmark, int, int, int, int | None], list[Episode]]
    episodes: int
    seeds: tuple[int, ...]
    mask_size: int | None

    def scored(self, target: Target) -> Target:
        """Resize a target to the size at which this protocol scores it: (mask_size, mask_size), by nearest neighbour.

        Args:
            target: the target at the image's size.
        """
        if self.mask_size is None:
            return target
        return Target(_nearest(target.mask, self.mask_size), _nearest(target.ignore, self.mask_size))


def draw_stream(
    data: Benchmark,
    fold: int,
    shots: int,
    protocol: ProtocolName = "hsnet",
    seed: int | None = None,
    count: int | None = None,
) -> list[Episode]:
    """Draw the episodes of a fold.

    Args:
        data: the data set.
        fold: number of the fold, whose classes are segmented.
        shots: K, number of supports.
        protocol: name of the protocol, "hsnet" or "bam".
        seed: seed of numpy's legacy generator; by default the protocol's first seed.
        count: number of episodes; by default the protocol's. A shorter stream is the start of a longer one.

    Raises:
        ConfigError: the protocol is unknown, or `shots` or `count` is below 1.
        DataError: the data set has no such fold or no rule for this protocol, or a class has too few images.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"protocol={protocol!r}: expected one of {', '.join(PROTOCOLS)}{did_you_mean(protocol, PROTOCOLS)}"
        )
    _check_positive(shots, count)
    rule = PROTOCOLS[protocol]
    return rule.draw(data, fold, shots, rule.seeds[0] if seed is None else seed, count)


def hsnet_stream(
    list_file: str | os.PathLike[str],
    fold: int,
    shots: int,
    data: Literal["pascal", "coco"] = "pascal",
    seed: int = 0,
    count: int | None = None,
) -> list[Episode]:
    """Draw HSNet's episodes from one of its list files, without the images.

    Args:
        list_file: path of a list in HSNet's `data/splits/*/val`: `fold0.txt` (PASCAL-5i), or `fold0.pkl` or its JSON
            (COCO-20i).
        fold: number of the fold that the list belongs to, 0 to 3.
        shots: K, number of supports.
        data: data set of the list, "pascal" or "coco".
        seed: seed of numpy's legacy generator; HSNet uses 0.
        count: number of episodes; by default HSNet's 1000.

    Raises:
        ConfigError: `data` is unknown, or `shots` or `count` is below 1.
        DataError: the list cannot be read or belongs to another fold, or a class has a single image.
    """
    if data not in ("pascal", "coco"):
        raise ConfigError(f"data={data!r}: expected pascal or coco")
    _check_positive(shots, count)
    if data == "coco":
        return hsnet_episodes(read_coco_list(list_file, fold), shots, seed, count)
    return hsnet_episodes(pair_lists(read_pascal_list(list_file, fold), PASCAL_FOLDS[fold]), shots, seed, count)


def stream_hash(episodes: Sequence[Episode]) -> str:
    r"""Return the SHA-256 of the lines `{query} {class} {support...}`, joined by "\n", classes from 0 as in HSNet.

    Args:
        episodes: the episodes of a stream.
    """
    return hashlib.sha256("\n".join(_line(episode) for episode in episodes).encode()).hexdigest()


def hsnet_episodes(lists: FoldLists, shots: int, seed: int, count: int | None = None) -> list[Episode]:
    """Draw episodes with HSNet's sampler: its `np.random.choice` calls after `np.random.seed(seed)`.

    Args:
        lists: images and pairs of the fold from which queries and supports are drawn.
        shots: K, number of supports.
        seed: seed of numpy's legacy generator.
        count: number of episodes; by default 1000. With `lists.once` the default and the maximum is the number of
            queries.

    Raises:
        DataError: a class that may be drawn has no two different images.
    """
    drawn = {c for _, c in lists.queries} if lists.queries else set(lists.supports)
    for c in sorted(drawn):
        if len(set(lists.supports[c])) < 2:
            raise DataError(f"class {c} has {len(lists.supports[c])} images; a query and another support are needed")
    if not drawn:
        raise DataError("there is no (image, class) pair to draw queries from")
    rng = np.random.RandomState(seed)
    classes = list(lists.supports)
    episodes = []
    total = count or EPISODES
    if lists.once:
        total = min(count or len(lists.queries), len(lists.queries))
    for index in range(total):
        if lists.queries:
            query, c = lists.queries[index % len(lists.queries)]
        else:
            c = classes[_choice(rng, len(classes))]
            query = lists.supports[c][_choice(rng, len(lists.supports[c]))]
        pool = lists.supports[c]
        supports: list[str] = []
        while len(supports) < shots:
            support = pool[_choice(rng, len(pool))]
            if support != query:
                supports.append(support)
        episodes.append(Episode(c, query, tuple(supports)))
    return episodes


def _hsnet(data: Benchmark, fold: int, shots: int, seed: int, count: int | None) -> list[Episode]:
    return hsnet_episodes(data.lists(fold), shots, seed, count)


def _bam(data: Benchmark, fold: int, shots: int, seed: int, count: int | None) -> list[Episode]:
    """Draw episodes with BAM's rule: the queries are the test images with a large enough class of the fold, in turn.

    The class is drawn from all classes of the fold in the image, whatever their area, as in BAM; supports must show it
    with a large enough area. BAM draws in the workers of a data loader, so there is no published stream to reproduce.
    """
    classes = data.fold(fold)
    areas = data.areas("test")
    pairs = pairs_of(areas, classes)
    pools = by_class(pairs, classes)
    queries = [(name, [c for c in sorted(areas[name]) if c in classes]) for name in dict.fromkeys(n for n, _ in pairs)]
    for c in sorted({c for _, present in queries for c in present}):
        if len(pools[c]) <= shots:
            raise DataError(f"class {c} has {len(pools[c])} images; {shots} distinct supports and a query are needed")
    if not queries:
        raise DataError(f"no test image of {data.name} has a large enough object of fold {fold}")
    rng = np.random.RandomState(seed)
    episodes = []
    for index in range(count or EPISODES):
        query, present = queries[index % len(queries)]
        c = present[rng.randint(len(present))]
        supports: list[str] = []
        while len(supports) < shots:
            support = pools[c][rng.randint(len(pools[c]))]
            if support != query and support not in supports:
                supports.append(support)
        episodes.append(Episode(c, query, tuple(supports)))
    return episodes


PROTOCOLS: dict[str, EvaluationProtocol] = {
    "hsnet": EvaluationProtocol("hsnet", _hsnet, episodes=EPISODES, seeds=(0,), mask_size=400),
    "bam": EvaluationProtocol("bam", _bam, episodes=EPISODES, seeds=(510, 365, 382, 322, 988), mask_size=None),
}
"""Protocols by name. BAM's seeds are those of its `np.random.seed(123); np.random.randint(0, 1000, 5)`."""


def _check_positive(shots: int, count: int | None) -> None:
    if shots < 1 or (count is not None and count < 1):
        raise ConfigError(f"shots and count must be at least 1, got shots={shots}, count={count}")


def _choice(rng: np.random.RandomState, size: int) -> int:
    """Draw the index that `np.random.choice(list, 1, replace=False)` draws; it shuffles the whole list."""
    return int(rng.choice(size, 1, replace=False)[0])


def _nearest(mask: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.bool_]:
    tensor = torch.from_numpy(mask.astype(np.uint8))[None, None]
    return np.asarray(F.interpolate(tensor, size=(side, side), mode="nearest")[0, 0].numpy().astype(bool))


def _line(episode: Episode) -> str:
    return f"{episode.query} {episode.class_id - 1} {' '.join(episode.supports)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the hash and the first episodes of HSNet's stream."""
    parser = argparse.ArgumentParser(prog="python -m diffup.evaluation.protocols", description=main.__doc__)
    parser.add_argument("list", help="a list file of HSNet: fold0.txt, fold0.pkl or fold0.json")
    parser.add_argument("--data", choices=("pascal", "coco"), required=True, help="data set of the list")
    parser.add_argument("--fold", type=int, required=True, help="number of the fold, 0 to 3")
    parser.add_argument("--shots", type=int, default=1, help="K, number of supports (default: 1)")
    parser.add_argument("--show", type=int, default=3, help="number of episodes to print (default: 3)")
    options = parser.parse_args(arguments)
    try:
        episodes = hsnet_stream(options.list, options.fold, options.shots, options.data)
    except DiffUpError as error:
        parser.error(str(error))
    print(f"sha256 {stream_hash(episodes)}")
    for episode in episodes[: options.show]:
        print(_line(episode))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
