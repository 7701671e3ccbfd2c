"""The example package: built, installed into an environment of its own, found by name, checked, and used on a photo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "examples" / "plugin_package"

USE = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
import numpy as np
from skimage import data
from diffup import Box, DiffUp, available_backbones
from diffup.backbones.conformance import check_backbone

family = next(family for family in available_backbones() if family.family == "hog")
print("origin", family.origin, family.installed)
report = check_backbone("hog", input_size=128)
print(report)
report.raise_for_problems()
model = DiffUp.from_pretrained(backbone="hog")
photo = data.coins()
truth = photo[88:] > 120
result = model.segment(photo[88:], support=photo[20:85, 14:76], annotation=Box(8, 15, 53, 54), steps=1, ensemble=1)
inside, outside = result.probability[truth].mean(), result.probability[~truth].mean()
print("segmented", result.mask.shape, result.backbone, f"{inside:.3f} {outside:.3f}")
assert inside > outside + 0.1
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that sees this one's packages, with the package built and installed."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")
    venv.create(folder / "env", system_site_packages=True, with_pip=False)
    bin_folder = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    interpreter = bin_folder / ("python.exe" if os.name == "nt" else "python")
    site = next((folder / "env").rglob("site-packages"))
    # An environment made from within another one sees the base interpreter's packages alone: add those of this one.
    (site / "outer.pth").write_text("\n".join([*(p for p in sys.path if p.endswith("site-packages")), str(ROOT)]))
    install = [
        interpreter,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        source,
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return interpreter


def test_found_by_name_conforms_and_segments_a_photo(python: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    done = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "origin diffup-hog True" in done.stdout
    assert "keeps the protocol" in done.stdout
    assert "segmented (215, 384) hog" in done.stdout


def test_its_own_tests_pass_and_nothing_is_left_behind(python: Path, tmp_path: Path) -> None:
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", PACKAGE / "tests"]
    done = subprocess.run(
        tests,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    leftovers = [
        path.name for path in PACKAGE.rglob("*") if path.name in ("build", "dist") or path.suffix == ".egg-info"
    ]
    assert leftovers == []
