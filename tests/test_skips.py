"""DIFFUP_NO_SKIPS=1: a skip that hides a test fails the session and is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_gpu():
    pass

def test_device():
    pytest.skip("to() returns the backbone; no second device here to move to")

def test_that_runs():
    pass
"""
HIDDEN = {
    "a test": ("def test_hidden():\n    pytest.skip('Chromium is not installed')\n", "Chromium is not installed"),
    "a module": ("pytest.importorskip('no_such_package')\n", "could not import 'no_such_package'"),
}


def session(folder: Path, text: str, *options: str, forbidden: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the tests of a module with the plugin that `conftest` has."""
    (folder / "test_it.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a CUDA device\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "DIFFUP_NO_SKIPS": str(int(forbidden))}
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", *options, "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "workers"])
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_hidden_test_is_named(kind: str, options: tuple[str, ...], tmp_path: Path) -> None:
    text, reason = HIDDEN[kind]
    done = session(tmp_path, TESTS + text, *options)
    told = done.stdout.partition("which DIFFUP_NO_SKIPS=1 forbids")[2]
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_it.py" in told and reason in told
    assert "CUDA" not in told and "second device" not in told


def test_gpus_and_other_devices_may_be_missing(tmp_path: Path) -> None:
    done = session(tmp_path, TESTS)
    assert done.returncode == 0 and "1 passed, 2 skipped" in done.stdout and "forbids" not in done.stdout


def test_elsewhere_skips_are_allowed(tmp_path: Path) -> None:
    assert session(tmp_path, TESTS + HIDDEN["a test"][0], forbidden=False).returncode == 0
