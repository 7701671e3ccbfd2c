"""Measurement tools of `speed.py`: clocks, medians of alternating jobs, and the file of accepted figures."""

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

import numpy as np
import numpy.typing as npt
import torch
from marked import put_between

from diffup import __version__
from diffup.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = ROOT / "benchmarks" / "accepted.json"
PAGE = ROOT / "docs" / "speed.md"
MARKS = ("<!-- accepted figures -->", "<!-- end of accepted figures -->")

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
"""Clocks by name: CPU seconds of this process, on which other work has little effect, or wall-clock seconds."""


@dataclass(frozen=True)
class Figure:
    """A measured number.

    Args:
        value: median of the measurements.
        unit: unit of the value, such as `passes` (of the encoder).
        spread: half the interquartile range relative to the median; 0 for values that are counted, not timed.
        other: the value by the other clock; None if it was taken by one alone.
    """

    value: float
    unit: str
    spread: float = 0.0
    other: float | None = None

    @classmethod
    def of(cls, values: list[float], unit: str, scale: float = 1.0) -> Figure:
        """Compute a figure from several measurements.

        Args:
            values: the measurements.
            unit: unit of the figure.
            scale: number by which the measurements are divided.
        """
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [middle] * 3
        return cls(float(f"{middle / scale:.4g}"), unit, round((high - low) / 2 / middle, 3) if middle else 0.0)


Figures = dict[str, Figure]


def both_clocks() -> npt.NDArray[np.float64]:
    """Return the time in seconds by each of `CLOCKS`."""
    return np.array([clock() for clock in CLOCKS.values()])


def take_turns(jobs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], Any]) -> dict[str, Any]:
    """Measure the seconds of every call of each job, except the first, which is the warm-up.

    The jobs alternate, so that a change of the machine's load affects all of them.

    Args:
        jobs: functions to measure, by name.
        rounds: number of timed calls of each job.
        clock: function that returns the time in seconds, or the times by several clocks as an array.
    """
    taken: dict[str, list[Any]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if turn:
                taken[name].append(clock() - start)
    return taken


def machine(clock: str) -> dict[str, Any]:
    """Return facts about the machine on which figures are measured.

    Args:
        clock: name of the clock.
    """
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
    """Read the file of accepted figures: for each part `figures`, `machine`, `date`, `commit` and `backbone`.

    Args:
        path: path of the file.
    """
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def accept(part: str, about: str, figures: Figures, backbone: str, clock: str, path: Path = ACCEPTED) -> None:
    """Store the figures of one part as accepted, and update the tables of docs/speed.md.

    Args:
        part: name of the part.
        about: description of the part.
        figures: measured figures.
        backbone: name of the encoder.
        clock: name of the clock, one of `CLOCKS`.
        path: path of the file; docs/speed.md is updated only for the project's own file.
    """
    facts = {
        "about": about,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "backbone": backbone,
        "machine": machine(clock),
        "figures": {name: _without_none(asdict(figure)) for name, figure in figures.items()},
    }
    accepted = read_accepted(path) | {part: facts}
    write_text(path, json.dumps(accepted, indent=1) + "\n")
    if path == ACCEPTED:
        put_between(PAGE, *MARKS, tables(accepted))


def tables(accepted: Mapping[str, Any]) -> str:
    """Format the accepted figures as Markdown tables.

    Args:
        accepted: content of the file of accepted figures.
    """
    parts = []
    for part, facts in accepted.items():
        on = facts["machine"]
        lines = [f"### {part.capitalize()}", "", facts["about"], "", "| | figure | | +- |", "|---|---|---|---|"]
        if any("other" in figure for figure in facts["figures"].values()):
            lines[-2:] = [f"| | figure | | +- | {_other(on['clock'])} time |", "|---|---|---|---|---|"]
        for name, figure in facts["figures"].items():
            spread = f"{figure['spread']:.0%}" if figure["spread"] else ""
            other = f" {figure['other']:.4g} |" if "other" in figure else ""
            lines.append(f"| {name} | {figure['value']:.4g} | {figure['unit']} | {spread} |{other}")
        lines += [
            "",
            f"{facts['date']}, commit `{facts['commit']}`, {facts['backbone']}; {on['cpu']} ({on['instructions']}), "
            f"{on['threads']} of {on['cores']} cores, {on['clock']} time, Python {on['python']}, torch {on['torch']}.",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def commit() -> str:
    """Return the commit of the checkout, with a + if the library has changes; empty outside of a checkout."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "diffup"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def rows(part: str, figures: Figures, accepted: Mapping[str, Any], clock: str) -> list[str]:
    """Format the lines of the printed table: each figure, the accepted one, their ratio, and the other clock's figure.

    Args:
        part: name of the part.
        figures: measured figures.
        accepted: content of the file of accepted figures.
        clock: name of the clock, one of `CLOCKS`.
    """
    known = accepted.get(part, {}).get("figures", {})
    lines = [f"\n{part:50s} {'now':>9s} {'+-':>5s} {'accepted':>9s} {'ratio':>6s}"]
    for name, figure in figures.items():
        before = known.get(name, {}).get("value")
        beside = "" if before is None else f"{before:9.4g} {figure.value / before:6.2f}" if before else f"{before:9.4g}"
        other = "" if figure.other is None else f" ({figure.other:.4g} by {_other(clock)} time)"
        lines.append(f"  {name:48s} {figure.value:9.4g} {figure.spread:5.0%} {beside:16s} {figure.unit}{other}")
    return lines


def _other(clock: str) -> str:
    return next(name for name in CLOCKS if name != clock)


def _without_none(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
