"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import make_folder

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and weights beside the project; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One thread is as fast on the small tensors of the tests; more fight with whatever else runs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder of coloured shapes; not to be changed (see `fakes.make_folder` for a folder of one's own)."""
    return make_folder(tmp_path_factory.mktemp("shapes") / "data")
