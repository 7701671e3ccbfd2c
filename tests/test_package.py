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
start = time.process_time()
import diffup
diffup.DiffUp
print(time.process_time() - start)
print(*sorted((set(sys.modules) - before) & {set(HEAVY)!r}))
print(len([name for name in set(sys.modules) - before if not name.startswith("diffup")]))
"""

EVERYTHING = """
import importlib, pkgutil, warnings
import torch
warnings.simplefilter("error")
import diffup
for module in pkgutil.walk_packages(diffup.__path__, "diffup."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def in_a_fresh_process(code: str) -> list[str]:
    """What code prints, in lines."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout.split("\n")


def test_import_is_cheap() -> None:
    """0.3 s beyond torch's own, in computing time, which other programs on the machine do not add to."""
    times = []
    for _ in range(3):  # the best of three: the first may have to compile the modules
        seconds, heavy, foreign = in_a_fresh_process(IMPORT)[:3]
        assert heavy == ""
        assert int(foreign) < 100, "modules of others; 41 when this was written"
        times.append(float(seconds))
        if times[-1] < 0.3:
            return
    pytest.fail(f"import diffup took {', '.join(f'{t:.2f}' for t in times)} s beyond torch; 0.3 s is allowed")


def test_every_module_imports_without_a_warning() -> None:
    names = in_a_fresh_process(EVERYTHING)
    assert {"diffup.model", "diffup.cli", "diffup.training.trainer", "diffup.backbones.timm"} <= set(names)


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", diffup.__version__)


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
