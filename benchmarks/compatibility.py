"""Install the oldest or the newest supported versions into a fresh environment, and run the tests there.

An environment takes about 6 GB where pip's default torch is the one with CUDA; it is removed afterwards.

    python benchmarks/compatibility.py --versions oldest --python python3.10
    python benchmarks/compatibility.py --versions newest --python python3.13 --tests tests/test_model.py
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = [
    "annotation",
    "backbones_timm",
    "backbones_open_clip",
    "backbones_transformers",
    "condition",
    "decoder",
    "model",
]
SHOWN = ("torch", "torchvision", "timm", "transformers", "open_clip", "numpy")
NEEDED = 8 * 2**30


def oldest() -> list[str]:
    """Every lower bound of the dependencies in pyproject.toml as an exact version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    return [f"{name}=={bound}.*" for name, bound in re.findall(r'"([\w.-]+)>=([\d.]+)"', listed[1])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", choices=["oldest", "newest"], required=True)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--tests", nargs="+", default=[f"tests/test_{name}.py" for name in CORE])
    parser.add_argument("--list", action="store_true", help="print what would be installed")
    args = parser.parse_args()
    wanted = oldest() if args.versions == "oldest" else []
    if args.list:
        print("\n".join(wanted) or "whatever pip takes")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < NEEDED:
            print(f"{folder} has less than {NEEDED >> 30} GB free; set TMPDIR to a folder that has", file=sys.stderr)
            return 2
        subprocess.run([args.python, "-m", "venv", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        tools = ["pytest", "hypothesis", "scipy", "scikit-image"]
        subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT), *wanted, *tools], check=True)
        show = f"import platform, {', '.join(SHOWN)}; print(platform.python_version())\n"
        show += "\n".join(f"print('{name}', {name}.__version__)" for name in SHOWN)
        subprocess.run([python, "-c", show], check=True)
        strict = ["-W", "error::DeprecationWarning:diffup", "-W", "error::FutureWarning:diffup"]
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *strict, *args.tests]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
