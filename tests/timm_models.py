"""Which models the installed timm has: its tiny ones for tests grow in number with its versions."""

from __future__ import annotations

import pytest
import timm


def need(name: str) -> None:
    """Skip a test whose model this timm lacks."""
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
