"""The journal: several processes add to one file, some are killed, and no entry is lost, torn or mixed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from diffup.errors import StorageError
from diffup.utils.journal import Journal

FORK = "fork" in multiprocessing.get_all_start_methods()


def entries(path: Path) -> list[dict[str, object]]:
    return [entry for _, entry in Journal(path).read()]


def test_two_writers_take_turns(tmp_path: Path) -> None:
    """Each used to keep the file's end for itself and to cut there whatever the other had added."""
    a, b = Journal(tmp_path / "r.jsonl"), Journal(tmp_path / "r.jsonl")
    a.append([{"a": 1}])
    b.append([{"b": 1, "long": "x" * 200}])
    a.append([{"a": 2}])
    b.append([{"b": 2}])
    content = (tmp_path / "r.jsonl").read_bytes()
    assert b"\0" not in content
    assert [next(iter(json.loads(line).items())) for line in content.splitlines()] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
    ]


@pytest.mark.parametrize("torn", [b'{"c": ', b'{"c": "' + b"x" * 200_000, b"\0" * 10, b'{"c": 1}'])
def test_a_torn_end_goes_with_the_next_entry(torn: bytes, tmp_path: Path) -> None:
    """Also that of another process, which was killed after this one began."""
    journal = Journal(tmp_path / "r.jsonl")
    for number in range(2):
        journal.append([{"a": number}])
        with journal.path.open("ab") as file:
            file.write(torn)
    assert entries(journal.path) == [{"a": 0}, {"a": 1}]
    journal.append([{"a": 2}])
    assert journal.path.read_bytes() == b'{"a": 0}\n{"a": 1}\n{"a": 2}\n'


def test_nothing_but_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"{")
    assert entries(tmp_path / "r.jsonl") == []
    Journal(tmp_path / "r.jsonl").append([{"a": 1}])
    assert entries(tmp_path / "r.jsonl") == [{"a": 1}]


def write(path: Path, who: int, count: int) -> None:
    """Add pairs of entries; say after each that it is on the disk."""
    journal, said = Journal(path), path.with_name(f"said{who}")
    for number in range(count):
        pair = [{"who": who, "number": number, "half": half, "fill": "x" * (who * 97 % 60)} for half in (0, 1)]
        journal.append(pair)
        said.write_text(str(number))


def check(path: Path, writers: int) -> int:
    """All that was said to be there is there, in order, and pairs are side by side; how many pairs there are."""
    found = entries(path)
    assert b"\0" not in path.read_bytes()
    pairs = [(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
    assert all(a == {**b, "half": 0} and b["half"] == 1 for a, b in pairs)
    for who in range(writers):
        numbers = [a["number"] for a, _ in pairs if a["who"] == who]
        said = path.with_name(f"said{who}")
        last = int(said.read_text() or 0) if said.exists() else -1
        assert numbers == list(range(len(numbers))) and len(numbers) > last
    return len(pairs)


@pytest.mark.skipif(not FORK, reason="needs fork")
@pytest.mark.parametrize("writers", [2, 4])
def test_processes_interleave(writers: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write, args=(tmp_path / "r.jsonl", who, 25)) for who in range(writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * writers
    assert check(tmp_path / "r.jsonl", writers) == 25 * writers


@pytest.mark.skipif(not FORK, reason="needs fork")
def test_processes_that_are_killed_tear_nothing(tmp_path: Path) -> None:
    """Four add at once, three are killed at random, and the fourth goes on; ten times."""
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    for round_ in range(10):
        path = tmp_path / f"{round_}" / "r.jsonl"
        path.parent.mkdir()
        processes = [context.Process(target=write, args=(path, who, 1000 if who else 25)) for who in range(4)]
        for process in processes:
            process.start()
        for process in processes[1:]:
            time.sleep(draw.uniform(0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, *[-signal.SIGKILL] * 3]
        Journal(path).append([])  # what was cut off last goes
        found = entries(path)
        assert found == [json.loads(line) for line in path.read_bytes().splitlines()]
        numbers = [entry["number"] for entry in found if entry["who"] == 0]
        assert numbers == [number for number in range(25) for _ in range(2)]


def test_alone(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "out" / "r.jsonl"), Journal(tmp_path / "out" / "r.jsonl")
    with journal.alone("this test"):
        journal.append([{"a": 1}])
        with (
            pytest.raises(
                StorageError, match=rf"out is being written to by this test \(process {os.getpid()} on .*wait"
            ),
            other.alone("another"),
        ):
            pass
        journal.append([{"a": 2}])
    with other.alone("another"):
        other.append([{"a": 3}])
    assert entries(journal.path) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"r.jsonl"}
