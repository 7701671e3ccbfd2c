"""Table of the installed dependencies with version and licence, for docs/security.md.

python benchmarks/maintenance/dependencies.py            print the table
python benchmarks/maintenance/dependencies.py --write    put it into docs/security.md
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from marked import put_between  # noqa: E402

PAGE = ROOT / "docs" / "security.md"
MARKS = ("<!-- dependencies -->", "<!-- end of dependencies -->")


def requirements() -> dict[str, str]:
    """Return the distributions in pyproject.toml and the extra that needs each, or `always`."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    plain = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    extras = re.search(r"^\[project\.optional-dependencies\](.*?)^\[", text, re.MULTILINE | re.DOTALL)
    assert plain is not None and extras is not None
    found = dict.fromkeys(re.findall(r'"([\w.-]+)[><=]', plain[1]), "always")
    for name, listed in re.findall(r"^(\w+) = \[(.*?)\]$", extras[1], re.MULTILINE | re.DOTALL):
        for package in re.findall(r'"([A-Za-z][\w.-]*)', listed):
            if package != "diffup":
                found.setdefault(package, name)
    return found


def licence(name: str) -> tuple[str, str]:
    """Return version and licence of an installed distribution, from its metadata or else its licence file."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return "-", "not installed here"
    facts = found.metadata
    classifiers = [
        text.split(" :: ")[-1] for text in facts.get_all("Classifier") or [] if text.startswith("License ::")
    ]
    lines = (facts.get("License") or "").strip().splitlines()
    stated = facts.get("License-Expression") or ", ".join(classifiers) or (lines[0] if lines else "")
    if stated in ("", "UNKNOWN"):
        stated = _licence_file(found)
    return facts["Version"], stated or "not stated"


def _licence_file(found: metadata.Distribution) -> str:
    """First line of a distribution's licence file; empty if it has none."""
    for path in found.files or []:
        if path.name.upper().startswith("LICEN"):
            lines = path.read_text(encoding="utf-8").strip().splitlines()
            return f"{lines[0].strip()} (its file {path.name})" if lines else ""
    return ""


def table() -> str:
    rows = ["| package | for | version | licence |", "|---|---|---|---|"]
    for name, use in sorted(requirements().items(), key=lambda pair: (pair[1] != "always", pair[1], pair[0])):
        rows.append(f"| {name} | {use} | {' | '.join(licence(name))} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if not args.write:
        print(table())
        return
    put_between(PAGE, *MARKS, table())


if __name__ == "__main__":
    main()
