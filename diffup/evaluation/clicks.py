"""How quickly clicks on the query put a mask right, by the protocol of interactive segmentation.

Each click is set in the middle of the largest error: of the connected parts that are missing or falsely marked, the
largest is taken, and in it the pixel farthest from its border (Sofiiuk et al., 2022, section 4; Xu et al., 2016).

    python -m diffup.evaluation.clicks DATA --split test --episodes 100
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from diffup.backbones.encode import encode
from diffup.data.base import Dataset, Target
from diffup.data.folder import LabelledFolder
from diffup.errors import ConfigError, DiffUpError
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.inputs.annotations import Mask, Points
from diffup.inputs.images import resize_image
from diffup.model import DiffUp
from diffup.result import Segmentation
from diffup.utils.optional import need

CLICKS = 5
"""Default number of clicks."""

REACHED = 0.8
"""IoU at which an episode counts as put right."""


@dataclass(frozen=True, eq=False)
class Play:
    """What became of the masks of N episodes under C clicks.

    Attributes:
        iou: (N, C + 1) in [0, 1], IoU of each episode before and after each click.
        seconds: duration of each correction with its mask; of the first, what later ones reuse is a part.
        encoder: duration of one pass of the encoder over one query, for each episode.
    """

    iou: npt.NDArray[np.float64]
    seconds: tuple[float, ...]
    encoder: tuple[float, ...]

    def report(self) -> dict[str, object]:
        """Summarise in numbers that can be written as JSON.

        Returns:
            `episodes`, N; `iou`, mean IoU before and after each click, in percent; `reached`, share of the episodes
            that reach `REACHED` with at most as many clicks, in percent; `relative_time`, median duration of a
            correction as a multiple of the median pass of the encoder.
        """
        best = np.maximum.accumulate(self.iou, axis=1)
        return {
            "episodes": len(self.iou),
            "iou": _percent(self.iou.mean(axis=0)),
            "reached": _percent((best >= REACHED).mean(axis=0)),
            "relative_time": round(statistics.median(self.seconds) / statistics.median(self.encoder), 2),
        }


def next_click(mask: npt.NDArray[np.bool_], target: Target) -> Points | None:
    """Set the next click: in the middle of the largest connected part that is missing or falsely marked.

    Args:
        mask: (H, W) bool, the mask so far.
        target: the true mask, of the same size. Ignored pixels are no errors.

    Returns:
        One click, positive where the class is missing; None if the mask is right.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    ndimage = need("scipy.ndimage", "the simulation of clicks", extra="eval")
    largest, size, positive = np.zeros_like(mask), 0, True
    for missing, wrong in ((True, target.mask & ~mask), (False, mask & ~target.mask & ~target.ignore)):
        labels, count = ndimage.label(wrong)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        if count and sizes.max() > size:
            largest, size, positive = labels == sizes.argmax() + 1, int(sizes.max()), missing
    if not size:
        return None
    distance = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    click = [(int(x), int(y))]
    return Points(click) if positive else Points(negative=click)


def play(result: Segmentation, target: Target, clicks: int) -> tuple[list[float], list[float]]:
    """Correct a mask click by click.

    Args:
        result: the mask to correct.
        target: the true mask, of the same size.
        clicks: number of clicks; a mask that is right gets no more.

    Returns:
        IoU in [0, 1] before and after each click, clicks + 1 numbers, and the duration of each click in seconds.
    """
    found, seconds = [_iou(result.mask, target)], []
    for _ in range(clicks):
        click = next_click(result.mask, target)
        if click is not None:
            start = time.perf_counter()
            result = result.correct(click)
            mask = result.mask
            seconds.append(time.perf_counter() - start)
            found.append(_iou(mask, target))
        else:
            found.append(found[-1])
    return found, seconds


def play_episodes(
    model: DiffUp,
    data: Dataset,
    episodes: Sequence[Episode],
    clicks: int = CLICKS,
    seed: int = 0,
    progress: bool = False,
) -> Play:
    """Segment the queries of episodes, whose supports have masks, and correct them click by click.

    Args:
        model: the model.
        data: the data set.
        episodes: the episodes, one or more.
        clicks: number of clicks, 1 or more.
        seed: seed of the starting noise.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: `clicks` is below 1.
        MissingPackageError: scipy is not installed.
    """
    if clicks < 1:
        raise ConfigError(f"clicks={clicks}: it must be 1 or more")
    ious, seconds, encoder = [], list[float](), list[float]()
    for episode in tqdm(episodes, desc="episodes", disable=not progress):
        masks = [Mask(data.target(name, episode.class_id).mask) for name in episode.supports]
        query = data.image(episode.query)
        supports = [data.image(name) for name in episode.supports]
        result = model.segment(query, supports, masks, seed=seed, min_presence=0.0)  # every query shows the class
        found, durations = play(result, data.target(episode.query, episode.class_id), clicks)
        ious.append(found)
        seconds += durations
        resized = resize_image(query, model.backbone.input_size)
        start = time.perf_counter()
        encode(model.backbone, [resized])
        encoder.append(time.perf_counter() - start)
    return Play(np.array(ious), tuple(seconds), tuple(encoder))


def _iou(mask: npt.NDArray[np.bool_], target: Target) -> float:
    counted = ~target.ignore
    union = ((mask | target.mask) & counted).sum()
    return float((mask & target.mask).sum() / max(union, 1))


def _percent(shares: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(share) * 100, 1) for share in shares]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m diffup.evaluation.clicks` and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="labelled folder")
    parser.add_argument("--decoder", metavar="DECODER", help="folder of a decoder; default: the released one")
    parser.add_argument("--backbone", metavar="NAME", help="encoder; default: the decoder's")
    parser.add_argument("--split", default="test", help="split of the images; default: test")
    parser.add_argument("--fold", type=int, action="append", default=[], help="fold to draw from; default: all classes")
    parser.add_argument("--shots", type=int, default=1, help="supports of an episode; default: 1")
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes; default: 100")
    parser.add_argument("--clicks", type=int, default=CLICKS, help=f"clicks on each query; default: {CLICKS}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes and of the noise; default: 0")
    args = parser.parse_args(arguments)
    try:
        for name in ("shots", "episodes"):
            if getattr(args, name) < 1:
                raise ConfigError(f"--{name}: it must be 1 or more")
        data = LabelledFolder.open(args.data)
        classes = [c for fold in args.fold for c in data.fold(fold)] or list(data.classes)
        episodes = draw_episodes(data, args.split, classes, args.shots, args.episodes, args.seed)
        model = DiffUp.from_pretrained(args.decoder, backbone=args.backbone)
        played = play_episodes(model, data, episodes, args.clicks, args.seed, progress=sys.stderr.isatty())
    except (DiffUpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2  # as `diffup` does
    print(json.dumps(played.report(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
