"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and weights beside the project; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """Two threads are enough for the small tensors of the tests, and more make parallel test workers fight."""
    torch.set_num_threads(2)
