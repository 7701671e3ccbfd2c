"""What `speed.py` measures with: a clock, medians of jobs that take turns, and the file of accepted figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from marked import put_between

from diffup import __version__
from diffup.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = ROOT / "benchmarks" / "accepted.json"
PAGE = ROOT / "docs" / "speed.md"
MARKS = ("<!-- accepted figures -->", "<!-- end of accepted figures -->")

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
"""Seconds that this process computed, which other work on the machine hardly disturbs, or that went by."""


@dataclass(frozen=True)
class Figure:
    """A measured number.

    Args:
        value: the median.
        unit: `passes` of the encoder, or another.
        spread: half the distance between the quartiles, relative to the median; 0 of what is counted, not timed.
    """

    value: float
    unit: str
    spread: float = 0.0

    @classmethod
    def of(cls, values: list[float], unit: str, scale: float = 1.0) -> Figure:
        """Of several measurements, divided by `scale`."""
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [middle] * 3
        return cls(float(f"{middle / scale:.4g}"), unit, round((high - low) / 2 / middle, 3) if middle else 0.0)


Figures = dict[str, Figure]


def take_turns(jobs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of every call of each job after the first, which warms up.

    The jobs take turns, so that a change of the machine's load meets all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if turn:
                taken[name].append(clock() - start)
    return taken


def machine(clock: str) -> dict[str, Any]:
    """What a figure was taken on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffup": __version__,
    }


def read_accepted(path: Path = ACCEPTED) -> dict[str, Any]:
    """The file of accepted figures: for each part its `figures`, `machine`, `date`, `commit` and `backbone`."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def accept(part: str, about: str, figures: Figures, backbone: str, clock: str, path: Path = ACCEPTED) -> None:
    """Put a part in the place of the accepted one; the others stay. The tables of docs/speed.md follow.

    Args:
        part: its name.
        about: what its figures are.
        figures: as measured.
        backbone: name of the encoder.
        clock: of `CLOCKS`.
        path: the file; the docs follow the one that comes with the project alone.
    """
    facts = {
        "about": about,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "backbone": backbone,
        "machine": machine(clock),
        "figures": {name: asdict(figure) for name, figure in figures.items()},
    }
    accepted = read_accepted(path) | {part: facts}
    write_text(path, json.dumps(accepted, indent=1) + "\n")
    if path == ACCEPTED:
        put_between(PAGE, *MARKS, tables(accepted))


def tables(accepted: Mapping[str, Any]) -> str:
    """The accepted figures as Markdown."""
    parts = []
    for part, facts in accepted.items():
        on = facts["machine"]
        lines = [f"### {part.capitalize()}", "", facts["about"], "", "| | figure | | +- |", "|---|---|---|---|"]
        for name, figure in facts["figures"].items():
            spread = f"{figure['spread']:.0%}" if figure["spread"] else ""
            lines.append(f"| {name} | {figure['value']:.4g} | {figure['unit']} | {spread} |")
        lines += [
            "",
            f"{facts['date']}, commit `{facts['commit']}`, {facts['backbone']}; {on['cpu']} ({on['instructions']}), "
            f"{on['threads']} of {on['cores']} cores, {on['clock']} time, Python {on['python']}, torch {on['torch']}.",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def commit() -> str:
    """Of the checkout, with a + where the library differs from it; empty outside of one."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "diffup"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def rows(part: str, figures: Figures, accepted: Mapping[str, Any]) -> list[str]:
    """Lines of the printed table, the accepted figure and the ratio to it beside each."""
    known = accepted.get(part, {}).get("figures", {})
    lines = [f"\n{part:50s} {'now':>9s} {'+-':>5s} {'accepted':>9s} {'ratio':>6s}"]
    for name, figure in figures.items():
        before = known.get(name, {}).get("value")
        beside = "" if before is None else f"{before:9.4g} {figure.value / before:6.2f}" if before else f"{before:9.4g}"
        lines.append(f"  {name:48s} {figure.value:9.4g} {figure.spread:5.0%} {beside:16s} {figure.unit}")
    return lines


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
