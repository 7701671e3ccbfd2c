"""Which models the installed timm has: its tiny ones for tests grow in number with its versions."""

from __future__ import annotations

import pytest
import timm


def need(name: str) -> None:
    """Skip a test whose architecture this timm lacks; a tag of weights after it does not matter."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
