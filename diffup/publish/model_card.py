"""The model card of a decoder: architecture, training settings and scores, taken from the files that record them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffup import __version__
from diffup.decoder.base import Decoder
from diffup.decoder.config import FORMAT
from diffup.decoder.weights import decoder_hash
from diffup.errors import ConfigError
from diffup.training.config import TrainConfig

NOT_STATED = "Not stated."

_SYSTEMS = {
    "diffusion": "the diffusion decoder",
    "one_step": "the decoder without diffusion",
    "gan": "the generator in the place of the diffusion decoder",
    "prior": "the mean prior at a threshold, nothing trained",
}
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SETTING = ("dataset", "protocol", "split", "classes", "fold", "seed", "backbone", "shots", "annotation")
_SAMPLING = ("steps", "ensemble", "threshold")
_FIGURES = {"episodes": "episodes", "miou": "mIoU", "fb_iou": "FB-IoU", "prior_best_miou": "prior, best threshold"}


@dataclass(frozen=True)
class CardSources:
    """Sources of a model card. A section without a source says "Not stated."; nothing is guessed.

    Attributes:
        scores: path of the `scores.json` that `diffup evaluate` wrote for this decoder.
        training: path of the training run's `config.json`.
        licence: licence identifier in lower case, such as `apache-2.0`.
        notes: Markdown text for the end of the card, such as the origin of the training data.
    """

    scores: str | os.PathLike[str] | None = None
    training: str | os.PathLike[str] | None = None
    licence: str | None = None
    notes: str | None = None


def model_card(
    decoder: Decoder, name: str, sources: CardSources | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """Write the Markdown of a model card.

    Args:
        decoder: the decoder to describe.
        name: name of its repository, `"user/repo"`.
        sources: files and texts from which the card is generated.
        dtype: precision of the weights file.

    Returns:
        The text of the card.

    Raises:
        ConfigError: the licence is no identifier, or a file cannot be read or belongs to another decoder.
    """
    sources = CardSources() if sources is None else sources
    scores, training, licence, notes = sources.scores, sources.training, sources.licence, sources.notes
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ConfigError(f"licence={licence!r}: give an identifier in lower case, such as apache-2.0 or mit")
    rounded = any(not torch.equal(value, value.to(dtype).to(value.dtype)) for value in decoder.state_dict().values())
    parts = [
        _header(licence),
        f"# {name}",
        _summary(decoder, dtype),
        f'```python\nfrom diffup import DiffUp\n\nmodel = DiffUp.from_pretrained("{name}")\n```',
        _facts(decoder),
        "## Training",
        NOT_STATED if training is None else _training(_read_training(training, decoder)),
        "## Figures",
        NOT_STATED if scores is None else _figures(_read_scores(scores, decoder)),
    ]
    if scores is not None and rounded:
        parts.append(f"They were measured before the weights were rounded to {_name(dtype)}.")
    if notes:
        parts += ["## Notes", notes.strip()]
    return "\n\n".join(parts) + "\n"


def _header(licence: str | None) -> str:
    lines = ["library_name: diffup", "pipeline_tag: image-segmentation", "tags: [few-shot-segmentation]"]
    if licence is not None:
        lines.insert(1, f"license: {licence}")
    return "\n".join(["---", *lines, "---"])


def _summary(decoder: Decoder, dtype: torch.dtype) -> str:
    config = decoder.config
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    tie = (
        f"It reads low-level features of `{config.backbone}` and works behind that encoder alone."
        if config.low_level_channels
        else "It sees similarity maps made from an encoder's features, never the features: any encoder may be used."
    )
    kind = f"{_SYSTEMS[config.system]} ({parameters / 1e6:.1f} M parameters, {_name(dtype)})"
    return f"A decoder for few-shot segmentation with diffup: {kind}. {tie}"


def _facts(decoder: Decoder) -> str:
    config = decoder.config
    return _table(
        ("", ""),
        [
            ("system", f"`{config.system}`"),
            ("encoder unless another is named", f"`{config.backbone}`"),
            ("sampling", ", ".join(f"{name} {getattr(config, name)}" for name in (*_SAMPLING, "temperature"))),
            ("priors", ", ".join(config.priors.kinds)),
            ("format", f"{FORMAT}, written by diffup {__version__}"),
            ("decoder hash", f"`{decoder_hash(decoder)[:16]}`"),
        ],
    )


def _training(config: TrainConfig) -> str:
    held = ", ".join(map(str, config.folds)) or "none: all classes of the data were trained on"
    rows = [
        ("encoders", ", ".join(f"`{backbone}`" for backbone in config.backbones)),
        ("folds held out", held),
        ("steps, episodes a step", f"{config.steps}, {config.batch_size}"),
        ("seed", str(config.seed)),
    ]
    return _table(("", ""), rows) + "\n\nAll settings are in `training.json`."


def _figures(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in (*_SETTING, *_SAMPLING) if len({str(row[name]) for row in rows}) > 1]
    common = [f"{name} {rows[0][name]}" for name in (*_SETTING, *_SAMPLING) if name not in names]
    body = [tuple(_cell(row[name]) for name in (*names, *_FIGURES)) for row in rows]
    legend = (
        'In percent. "Prior, best threshold" is the fused prior without a decoder at the best of 19 thresholds on the '
        "same episodes, which no user could choose. Every figure of every class is in `scores.json`."
    )
    return "\n\n".join([f"{', '.join(common)}.", _table((*names, *_FIGURES.values()), body), legend])


def _read_training(path: str | os.PathLike[str], decoder: Decoder) -> TrainConfig:
    config = TrainConfig.from_files([_file(path, "training")])
    tie = {name: getattr(decoder.config, name) for name in ("low_level_width", "low_level_encoder")}
    if not decoder.config.same_network(replace(config.decoder, **tie)):
        raise ConfigError(f"training={str(path)!r}: its decoder has another config than the one that is described")
    return config


def _read_scores(path: str | os.PathLike[str], decoder: Decoder) -> list[dict[str, Any]]:
    needed = {*_SETTING, *_SAMPLING, *_FIGURES, "decoder_hash"}
    try:
        rows = json.loads(_file(path, "scores").read_text(encoding="utf-8"))["rows"]
        lacking = [name for row in rows for name in needed - set(row)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"scores={str(path)!r} is no scores.json of diffup evaluate ({error!r})") from error
    if lacking or not rows:
        raise ConfigError(f"scores={str(path)!r}: {f'a row lacks {lacking[0]}' if lacking else 'no rows'}")
    if {row["decoder_hash"] for row in rows} != {decoder_hash(decoder)}:
        raise ConfigError(
            f"scores={str(path)!r} are of another decoder or of other settings than the one that is described; score "
            "this one: diffup evaluate DATA --decoder FOLDER -o OUT"
        )
    return list(rows)


def _file(path: str | os.PathLike[str], argument: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{argument}={str(path)!r}: there is no such file")
    return path


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
