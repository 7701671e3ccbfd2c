"""Encoders as text says them, `NAME[=CHECKPOINT][@PIXELS]`: on the command line and on the web page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from diffup.backbones.base import Backbone
from diffup.backbones.registry import load_backbone
from diffup.errors import ConfigError


def split_backbone(text: str, option: str = "--backbone") -> tuple[str, dict[str, Any]]:
    """The name and the options that `NAME[=CHECKPOINT][@PIXELS]` gives."""
    sized = re.fullmatch(r"(.*)@(\d+)", text)
    named, pixels = sized.groups() if sized else (text, None)
    name, equals, checkpoint = named.partition("=")
    if not name or (equals and not checkpoint):
        raise ConfigError(f"{option}: expected NAME[=CHECKPOINT][@PIXELS], got {text!r}")
    return name, backbone_options(checkpoint or None, int(pixels) if pixels else None)


def distinct_backbones(texts: Sequence[str], option: str = "--backbone") -> dict[str, str]:
    """What was given of each encoder, `NAME[=CHECKPOINT][@PIXELS]`, by its name, which may come once."""
    found: dict[str, str] = {}
    for text in texts:
        name, _ = split_backbone(text, option)
        if name in found:
            raise ConfigError(f"{option}: {name} is given twice, {found[name]} and {text}")
        found[name] = text
    return found


def backbone_options(checkpoint: str | None, input_size: int | None) -> dict[str, Any]:
    """The options of an encoder that were given."""
    given = {"checkpoint_path": checkpoint, "input_size": input_size}
    return {name: value for name, value in given.items() if value is not None}


def load_named(text: str, input_size: int | None, option: str = "--backbone") -> Backbone:
    """The encoder that `NAME[=CHECKPOINT][@PIXELS]` says; `input_size` is of one that names no size."""
    name, options = split_backbone(text, option)
    return load_backbone(name, **backbone_options(None, input_size) | options)
