"""The `config.json` of a decoder folder: the decoder's config and the version of the format that it is written in.

A file of an earlier format is converted by `MIGRATIONS`, one version after the other. A new version is needed whenever
an existing file would otherwise describe another decoder: when a field is renamed or removed, or a new field's default
differs from what files without it meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from diffup import __version__
from diffup.decoder.config import DecoderConfig, from_dict
from diffup.errors import ConfigError

FORMAT = 2
"""Version of the format that is written."""

KEY = "format_version"
"""Name of the version's field; a file without it has version 1."""

Fields = dict[str, Any]


def _name_what_came_later(fields: Fields) -> Fields:
    """1 -> 2: 0.1.0 had no saliency, calibration or prior skip, and diffusions only; now the file says so."""
    priors = fields.get("priors", {})
    if isinstance(priors, dict):
        priors = {"saliency": False, "calibration": False} | priors
    return {"prior_skip": False, "system": "diffusion"} | fields | {"priors": priors}


MIGRATIONS: dict[int, Callable[[Fields], Fields]] = {1: _name_what_came_later}
"""Functions that convert the fields of each earlier version to the next version."""


def write_config(config: DecoderConfig) -> str:
    """Make the text of a decoder folder's `config.json`.

    Args:
        config: the decoder's config.
    """
    return json.dumps({KEY: FORMAT, **json.loads(config.to_json())}, indent=2) + "\n"


def read_config(text: str, source: str) -> DecoderConfig:
    """Read the config from the text of a `config.json` of any supported version.

    Args:
        text: JSON object.
        source: name of the file in error messages.

    Raises:
        ConfigError: the text is not a JSON object, its format is newer than this library, or a field is unknown or
            wrong.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{source} must be a JSON object, not {type(fields).__name__}")
    version = fields.pop(KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(f"{source}: {KEY} must be a whole number from 1 on, not {version!r}")
    if version > FORMAT:
        raise ConfigError(
            f"{source} is of format {version}, and diffup {__version__} reads formats up to {FORMAT}; install a newer "
            "version: pip install --upgrade diffup"
        )
    for earlier in range(version, FORMAT):
        fields = MIGRATIONS[earlier](fields)
    return from_dict(DecoderConfig, fields)
