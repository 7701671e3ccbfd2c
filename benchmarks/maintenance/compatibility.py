"""Run the tests in a fresh environment with the oldest or the newest supported versions of the dependencies.

An environment takes about 6 GB if pip's default torch is the one with CUDA; it is removed afterwards unless
`--environment` names a folder.

    python benchmarks/maintenance/compatibility.py --versions oldest --python python3.10 --write
    python benchmarks/maintenance/compatibility.py --versions newest --python python3.13 --tests tests/test_model.py
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from marked import put_between, read_between  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
MARKS = ("<!-- runs -->", "<!-- end of runs -->")
EXTRAS = ("eval", "train")  # installed along, at the same end of their ranges
TOOLS = ["pytest", "hypothesis"]
LEFT_OUT = {"test_demo_browser.py", "test_ray.py", "test_plugin_package.py"}  # a browser, a cluster, pip itself
SHOWN = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "numpy", "pillow", "safetensors")
COLUMNS = ("Python", *SHOWN, "passed", "failed", "skipped", "tests")
NEEDED = 8 * 2**30


def oldest() -> list[str]:
    """Return the lower bounds of all dependencies and extras in pyproject.toml as exact versions."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = [re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)]
    lists += [re.search(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE) for extra in EXTRAS]
    bounds: list[tuple[str, str]] = []
    for listed in lists:
        assert listed is not None
        bounds += re.findall(r'"([\w.-]+)>=([\d.]+)"', listed[1])
    return [f"{name}=={bound}.*" for name, bound in bounds]


def install(folder: Path, interpreter: str, versions: str) -> None:
    """Create an environment with the library, its extras and the test tools."""
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    wanted = [f"{ROOT}[{','.join(EXTRAS)}]", *(oldest() if versions == "oldest" else []), *TOOLS]
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *wanted], check=True)


def versions_of(python: str) -> dict[str, str]:
    """Return the versions of Python and of the packages in the table."""
    code = "import json, platform, sys; from importlib import metadata\n"
    code += "found = {name: metadata.version(name) for name in sys.argv[1:]}\n"
    code += "print(json.dumps({'Python': platform.python_version(), **found}))"
    done = subprocess.run([python, "-c", code, *SHOWN], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test(python: str, paths: list[str]) -> tuple[int, dict[str, str]]:
    """Run tests and return pytest's exit status and the numbers of passed, failed and skipped tests."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *paths]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        if report.exists():
            for suite in ElementTree.parse(report).getroot().iter("testsuite"):
                counts = {key: counts[key] + int(suite.get(key, 0)) for key in counts}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return status, {"passed": str(passed), "failed": str(failed), "skipped": str(counts["skipped"])}


def write(row: str) -> None:
    """Add a row to the table of the documentation."""
    put_between(PAGE, *MARKS, f"{read_between(PAGE, *MARKS)}\n{row}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", choices=["oldest", "newest"], required=True)
    parser.add_argument("--python", default=sys.executable, help="Python interpreter of the environment")
    parser.add_argument("--environment", type=Path, help="folder of the environment, kept and reused")
    parser.add_argument("--tests", nargs="+", help="test files; default: all but browser, Ray and plugins")
    parser.add_argument("--write", action="store_true", help="add a row to docs/compatibility.md")
    parser.add_argument("--list", action="store_true", help="print what would be installed")
    args = parser.parse_args()
    if args.list:
        print("\n".join(oldest()) if args.versions == "oldest" else "whatever pip takes")
        return 0
    everything = sorted(str(path) for path in (ROOT / "tests").glob("test_*.py") if path.name not in LEFT_OUT)
    with tempfile.TemporaryDirectory() as name:
        folder: Path = args.environment or Path(name)
        if not (folder / "bin" / "python").exists():
            if shutil.disk_usage(folder.parent).free < NEEDED:
                print(f"{folder.parent} has less than {NEEDED >> 30} GB free; set TMPDIR", file=sys.stderr)
                return 2
            install(folder, args.python, args.versions)
        python = str(folder / "bin" / "python")
        facts = versions_of(python)
        print(facts)
        status, counts = test(python, args.tests or everything)
    facts |= counts | {"tests": f"{len(args.tests)} files" if args.tests else "all"}
    row = f"| {' | '.join(facts[column] for column in COLUMNS)} |"
    print(row)
    if args.write:
        write(row)
    return status


if __name__ == "__main__":
    sys.exit(main())
