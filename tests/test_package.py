"""What the package promises as a whole: a cheap import, a version, types, public names."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import diffup

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("timm", "open_clip", "transformers", "torchvision", "scipy", "skimage", "diffusers", "huggingface_hub")

IMPORT = f"""
import sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import diffup
diffup.DiffUp
print(time.perf_counter() - start)
print(*sorted((set(sys.modules) - before) & {set(HEAVY)!r}))
"""


def import_in_a_fresh_process() -> tuple[float, str]:
    """Seconds that `import diffup` takes after `import torch`, and the heavy modules that it brings in."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    seconds, heavy = done.stdout.split("\n")[:2]
    return float(seconds), heavy


def test_import_is_cheap() -> None:
    times = []
    for _ in range(3):  # the best of three: the machine may be busy
        seconds, heavy = import_in_a_fresh_process()
        assert heavy == ""
        times.append(seconds)
        if seconds < 0.3:
            return
    pytest.fail(f"import diffup took {', '.join(f'{t:.2f}' for t in times)} s beyond torch; 0.3 s is allowed")


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", diffup.__version__)
    release = re.match(r"\d+\.\d+\.\d+", diffup.__version__)
    assert release is not None
    assert f"## [{release[0]}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_version_of_the_installed_distribution() -> None:
    try:
        installed = importlib.metadata.version("diffup")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("diffup runs from the source tree, not installed")
    assert installed == diffup.__version__


def test_types_are_shipped() -> None:
    assert resources.files("diffup").joinpath("py.typed").is_file()


def test_public_names() -> None:
    assert list(diffup.__all__) == sorted(diffup.__all__)
    assert {"DiffUp", "Segmentation", "Mask", "Box", "Scribble", "Points", "DiffUpError"} <= set(diffup.__all__)
    for name in diffup.__all__:
        assert getattr(diffup, name).__doc__, name
    with pytest.raises(AttributeError):
        diffup.no_such_name  # noqa: B018
