"""The command that measures speed runs, and keeps a file of figures; nothing is timed here that could fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import speed

    return speed


def figures(file: Path) -> dict[str, dict[str, dict[str, object]]]:
    return {part: facts["figures"] for part, facts in json.loads(file.read_text(encoding="utf-8")).items()}


def test_the_quick_table_is_printed_accepted_and_compared_with(speed, tmp_path: Path, capsys) -> None:
    file = tmp_path / "accepted.json"
    parts = [name for name in speed.PARTS if name != "start"]
    speed.main(["--quick", "--write", "--accepted", str(file), "--parts", *parts])
    first = capsys.readouterr().out
    found = figures(file)
    assert list(found) == parts
    for part, entries in found.items():
        assert entries, part
        for name, entry in entries.items():
            assert entry["value"] > 0 and entry["spread"] >= 0 and entry["unit"], (part, name)
            assert name in first
    facts = json.loads(file.read_text(encoding="utf-8"))["jobs"]
    assert facts["machine"]["clock"] == "cpu" and facts["machine"]["cores"] and facts["date"] and facts["backbone"]

    known = found["peak"]["U-Net, one sample, operations"]["value"]
    speed.main(["--quick", "--accepted", str(file), "--parts", "peak"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "U-Net, one sample, operations" in line]
    assert line.removeprefix("  U-Net, one sample, operations").split() == [
        f"{known:.4g}",
        "0%",
        f"{known:.4g}",
        "1.00",
        "billion",
    ]
    assert figures(file) == found  # nothing is accepted unasked


def test_parts_that_are_not_measured_stay(speed, tmp_path: Path) -> None:
    file = tmp_path / "accepted.json"
    for part, value in (("jobs", 2.0), ("peak", 3.0), ("jobs", 4.0)):
        speed.accept(part, "what", {"a": speed.Figure(value, "passes", 0.1)}, "encoder", "cpu", file)
    assert figures(file) == {
        "jobs": {"a": {"value": 4.0, "unit": "passes", "spread": 0.1}},
        "peak": {"a": {"value": 3.0, "unit": "passes", "spread": 0.1}},
    }


def test_a_figure_is_the_median_and_half_the_quartiles_distance(speed) -> None:
    figure = speed.Figure.of([1.0, 2.0, 3.0, 4.0, 100.0], "passes", 2.0)
    assert figure.value == 1.5
    assert figure.spread == pytest.approx((52 - 1.5) / 2 / 3, abs=1e-3)
    assert speed.Figure.of([5.0], "s") == speed.Figure(5.0, "s", 0.0)


def test_accepted_figures_say_where_they_were_taken_and_the_docs_show_them(speed) -> None:
    import timing
    from marked import read_between

    accepted = speed.read_accepted()
    assert read_between(timing.PAGE, *timing.MARKS) == timing.tables(accepted)
    assert accepted and set(accepted) <= set(speed.PARTS)
    for facts in accepted.values():
        assert facts["figures"] and facts["machine"]["cpu"] and facts["commit"]


@pytest.mark.slow
def test_a_fresh_process_is_timed(speed, tmp_path: Path) -> None:
    file = tmp_path / "accepted.json"
    speed.main(["--quick", "--write", "--accepted", str(file), "--parts", "start"])
    assert [entry["unit"] for entry in figures(file)["start"].values()] == ["s"] * 5
