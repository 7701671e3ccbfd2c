"""Encoders given as text, `NAME[=CHECKPOINT][@PIXELS]`, on the command line and on the web page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from diffup.backbones.base import Backbone
from diffup.backbones.registry import load_backbone
from diffup.errors import ConfigError


def split_backbone(text: str, option: str = "--backbone") -> tuple[str, dict[str, Any]]:
    """Split the text of an encoder into its name and options.

    Args:
        text: `NAME[=CHECKPOINT][@PIXELS]`.
        option: name of the command-line option in error messages.

    Returns:
        Name of the backbone, and keyword options of `load_backbone`.

    Raises:
        ConfigError: the text has another form.
    """
    sized = re.fullmatch(r"(.*)@(\d+)", text)
    named, pixels = sized.groups() if sized else (text, None)
    name, equals, checkpoint = named.partition("=")
    if not name or (equals and not checkpoint):
        raise ConfigError(f"{option}: expected NAME[=CHECKPOINT][@PIXELS], got {text!r}")
    return name, backbone_options(checkpoint or None, int(pixels) if pixels else None)


def distinct_backbones(texts: Sequence[str], option: str = "--backbone") -> dict[str, str]:
    """Key texts of encoders by the encoders' names, each of which may occur once.

    Args:
        texts: `NAME[=CHECKPOINT][@PIXELS]` of each encoder.
        option: name of the command-line option in error messages.

    Raises:
        ConfigError: a name occurs twice, or a text has another form.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _ = split_backbone(text, option)
        if name in found:
            raise ConfigError(f"{option}: {name} is given twice, {found[name]} and {text}")
        found[name] = text
    return found


def backbone_options(checkpoint: str | None, input_size: int | None) -> dict[str, Any]:
    """Keyword options of `load_backbone`, without those that are None.

    Args:
        checkpoint: local file of weights, or None.
        input_size: side of the input images in pixels, or None.
    """
    given = {"checkpoint_path": checkpoint, "input_size": input_size}
    return {name: value for name, value in given.items() if value is not None}


def load_named(text: str, input_size: int | None, option: str = "--backbone") -> Backbone:
    """Load the encoder that a text names.

    Args:
        text: `NAME[=CHECKPOINT][@PIXELS]`.
        input_size: side of the input images in pixels if the text names none; None for the encoder's default.
        option: name of the command-line option in error messages.

    Raises:
        ConfigError: the text has another form.
        BackboneError, MissingPackageError, WeightsError: the encoder cannot be loaded.
    """
    name, options = split_backbone(text, option)
    return load_backbone(name, **backbone_options(None, input_size) | options)
