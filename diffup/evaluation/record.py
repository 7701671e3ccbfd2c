"""The append-only record of scored episodes: an evaluation that was stopped goes on where it was, from any settings.

One JSON object a line. A line says which setting (by the hash of all that an episode's figures depend on) and which
episode it is of, so that one file serves many settings and many commands.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffup.evaluation.episodes import Episode
from diffup.evaluation.evaluate import THRESHOLDS, EpisodeScore
from diffup.utils.journal import Journal

REVISION = 3
"""Of the scoring itself; raise it when the same setting comes to give other figures."""

_LABELS = ("decoder", "backbone")


@dataclass(frozen=True)
class Setting:
    """All that the figures of an episode depend on, besides the episode, and names to call it by.

    Args:
        dataset: name of the data set.
        protocol: name of the protocol.
        split: image split that episodes are drawn from.
        classes: whether the fold's classes are scored or the `others`.
        fold: the fold.
        shots: K.
        annotation: kind of the supports' annotations.
        backbone: name of the encoder.
        fingerprint: of the encoder.
        input_size: of the encoder, (height, width) in pixels.
        decoder: what the user calls it.
        decoder_hash: of its weights and config.
        seed: of episodes, weak annotations and noise.
        steps: DDIM steps.
        ensemble: samples averaged.
        threshold: probability above which a pixel is marked.
        batch_size: episodes sampled together; it changes rounding.
        bf16: sampled in bfloat16.
        device: type of the device, which changes rounding.
        text: fingerprint of the encoder that reads class names; empty where the annotation has none.
        templates: what class names are put into, likewise.
    """

    dataset: str
    protocol: str
    split: str
    classes: str
    fold: int
    shots: int
    annotation: str
    backbone: str
    fingerprint: str
    input_size: tuple[int, int]
    decoder: str
    decoder_hash: str
    seed: int
    steps: int
    ensemble: int
    threshold: float
    batch_size: int
    bf16: bool
    device: str
    text: str = ""
    templates: str = ""

    @property
    def key(self) -> str:
        """Hash of everything but the names, 16 hexadecimal digits."""
        facts = {name: value for name, value in asdict(self).items() if name not in _LABELS}
        text = json.dumps([REVISION, THRESHOLDS, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EpisodeRecord:
    """A file of scored episodes, which is only ever added to.

    A last line that was cut off by a kill is dropped.

    Args:
        path: the file; made with the first episode.

    Raises:
        DataError: any other line is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._journal = Journal(path)
        self.path = self._journal.path
        self._found: dict[tuple[str, str], EpisodeScore] = {}
        self._settings: set[str] = set()
        for number, entry in self._journal.read():
            try:
                self._read(entry)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise self._journal.damaged(number, error) from error

    def known(self, setting: Setting, episodes: Sequence[Episode]) -> dict[int, EpisodeScore]:
        """Scores of a stream's episodes that are on record, by index."""
        key = setting.key
        keys = ((key, _digest(index, episode)) for index, episode in enumerate(episodes))
        return {index: self._found[entry] for index, entry in enumerate(keys) if entry in self._found}

    def append(self, setting: Setting, episodes: Sequence[Episode], scores: Collection[EpisodeScore]) -> None:
        """Add scores of episodes of a stream; they are on the disk when this returns."""
        lines = []
        if setting.key not in self._settings:
            lines.append({"setting": setting.key, "is": asdict(setting)})
        for score in scores:
            lines.append(
                {"setting": setting.key, "episode": _digest(score.index, episodes[score.index]), **_pack(score)}
            )
        self._journal.append(lines)
        self._settings.add(setting.key)
        self._found |= {(setting.key, _digest(score.index, episodes[score.index])): score for score in scores}

    def _read(self, entry: dict[str, Any]) -> None:
        if "is" in entry:
            self._settings.add(entry["setting"])
        else:
            self._found[entry["setting"], entry["episode"]] = _unpack(entry)


def _digest(index: int, episode: Episode) -> str:
    """What an episode is, for the record: another class, query or support makes another episode."""
    text = json.dumps([index, episode.class_id, episode.query, episode.supports])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pack(score: EpisodeScore) -> dict[str, Any]:
    return {
        "index": score.index,
        "class": score.class_id,
        "pixels": score.pixels,
        "mask": score.mask,
        "decoder": score.decoder,
        "prior": score.prior,
        "quality": score.quality,
    }


def _unpack(line: dict[str, Any]) -> EpisodeScore:
    intersection, union = line["mask"]
    decoder, prior = (tuple((int(i), int(u)) for i, u in line[name]) for name in ("decoder", "prior"))
    if not len(decoder) == len(prior) == len(THRESHOLDS):
        raise ValueError(f"{len(decoder)} and {len(prior)} thresholds, not {len(THRESHOLDS)}")
    return EpisodeScore(
        index=int(line["index"]),
        class_id=int(line["class"]),
        pixels=int(line["pixels"]),
        mask=(int(intersection), int(union)),
        decoder=decoder,
        prior=prior,
        quality=float(line["quality"]),
    )
