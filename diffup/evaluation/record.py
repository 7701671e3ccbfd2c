"""The append-only record of scored episodes, from which an interrupted evaluation is resumed.

Each line is a JSON object with the hash of its setting (everything that an episode's scores depend on) and its episode,
so that one file serves many settings and commands.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffup.evaluation.episodes import Episode
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore
from diffup.utils.journal import Journal

REVISION = 8
"""Revision of the scoring; raise it when the same setting would give other scores, or more of them."""

_LABELS = ("decoder", "backbone")


@dataclass(frozen=True)
class Setting:
    """One setting of an evaluation: everything that an episode's scores depend on, and display names.

    Args:
        dataset: name of the data set.
        protocol: name of the protocol.
        split: name of the image split.
        classes: which classes are scored, those of the `fold` or the `others`.
        fold: number of the fold.
        shots: K, number of supports.
        annotation: kind of the supports' annotations.
        backbone: name of the encoder.
        fingerprint: fingerprint of the encoder's weights and settings.
        input_size: (height, width) in pixels at which the encoder sees images.
        decoder: the user's name of the decoder.
        decoder_hash: hash of the decoder's weights and config.
        seed: random seed of episodes, weak annotations and noise.
        steps: number of DDIM steps.
        ensemble: number of samples averaged.
        threshold: probability in (0, 1) above which a pixel is in the mask.
        batch_size: number of episodes sampled together, which affects rounding.
        bf16: whether sampling runs in bfloat16.
        device: type of the device, which affects rounding.
        refine: whether masks are refined to the outlines of the query.
        text: fingerprint of the text encoder; empty if the annotation has no text.
        templates: sentences with `{}` where the class name goes; empty if the annotation has no text.
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
    refine: bool
    text: str = ""
    templates: str = ""

    @property
    def key(self) -> str:
        """Hash of everything but the display names, 16 hexadecimal digits."""
        facts = {name: value for name, value in asdict(self).items() if name not in _LABELS}
        text = json.dumps([REVISION, THRESHOLDS, facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EpisodeRecord:
    """An append-only file of scored episodes.

    An incomplete last line, left by a killed process, is dropped. Episodes that were scored under another `REVISION`
    stay in the file, but do not count as known, so that they are scored again.

    Args:
        path: path of the file, created with the first episode.

    Raises:
        DataError: another line is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._journal = Journal(path)
        self.path = self._journal.path
        self._found: dict[tuple[str, str], EpisodeScore] = {}
        self._settings: set[str] = set()
        self._outdated: set[str] = set()
        for number, entry in self._journal.read():
            try:
                self._read(entry)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise self._journal.damaged(number, error) from error

    def known(self, setting: Setting, episodes: Sequence[Episode]) -> dict[int, EpisodeScore]:
        """Return the recorded scores of a stream's episodes, by index.

        Args:
            setting: setting of the evaluation.
            episodes: the episodes of the stream.
        """
        key = setting.key
        keys = ((key, _digest(index, episode)) for index, episode in enumerate(episodes))
        return {index: self._found[entry] for index, entry in enumerate(keys) if entry in self._found}

    def append(self, setting: Setting, episodes: Sequence[Episode], scores: Collection[EpisodeScore]) -> None:
        """Append scores of a stream's episodes; they are on the disk when this returns.

        Args:
            setting: setting of the evaluation.
            episodes: the episodes of the stream.
            scores: scores of some of these episodes.
        """
        lines = []
        if setting.key not in self._settings:
            lines.append({"setting": setting.key, "revision": REVISION, "is": asdict(setting)})
        for score in scores:
            lines.append(
                {"setting": setting.key, "episode": _digest(score.index, episodes[score.index]), **_pack(score)}
            )
        self._journal.append(lines)
        self._settings.add(setting.key)
        self._found |= {(setting.key, _digest(score.index, episodes[score.index])): score for score in scores}

    def _read(self, entry: dict[str, Any]) -> None:
        if "is" in entry:
            known = self._settings if entry.get("revision") == REVISION else self._outdated
            known.add(entry["setting"])
        elif entry["setting"] not in self._outdated:
            self._found[entry["setting"], entry["episode"]] = _unpack(entry)


def _digest(index: int, episode: Episode) -> str:
    """Hash of an episode's index, class, query and supports."""
    text = json.dumps([index, episode.class_id, episode.query, episode.supports])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pack(score: EpisodeScore) -> dict[str, Any]:
    return {
        "index": score.index,
        "class": score.class_id,
        "query": score.query,
        "pixels": score.pixels,
        "mask": score.mask,
        "boundary": score.boundary,
        "decoder": score.decoder,
        "prior": score.prior,
        "quality": score.quality,
        "presence": score.presence,
        "absent": score.absent,
    }


def _unpack(line: dict[str, Any]) -> EpisodeScore:
    mask, boundary = ((int(i), int(u)) for i, u in (line["mask"], line["boundary"]))
    decoder, prior = (tuple((int(i), int(u)) for i, u in line[name]) for name in ("decoder", "prior"))
    if not len(decoder) == len(prior) == len(THRESHOLDS):
        raise ValueError(f"{len(decoder)} and {len(prior)} thresholds, not {len(THRESHOLDS)}")
    return EpisodeScore(
        index=int(line["index"]),
        class_id=int(line["class"]),
        query=str(line["query"]),
        pixels=int(line["pixels"]),
        mask=mask,
        boundary=boundary,
        decoder=decoder,
        prior=prior,
        quality=float(line["quality"]),
        presence=float(line["presence"]),
        absent=None if line["absent"] is None else float(line["absent"]),
    )
