"""Several processes on one output: each waits, is refused, or adds its part; killed at random, nothing is torn."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import make_folder
from writers import REFUSED, Task, evaluating, labelling, storm_apart, training, training_into_one

from diffup.errors import StorageError
from diffup.training.trainer import CHECKPOINT
from diffup.utils import files

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "data")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "processes", "refuses"),
    [
        (evaluating, 2, False),
        (evaluating, 4, False),
        (labelling, 4, True),
        (training, 4, False),
        (training_into_one, 2, True),
    ],
)
def test_killed_at_random(
    make: Callable[[Path], Task], processes: int, refuses: bool, data: Path, tmp_path: Path
) -> None:
    place = tmp_path / "photos" if make is labelling else data
    outcome = storm_apart(make, place, tmp_path / "out", processes, kills=3)
    assert outcome.kills == 3 and outcome.statuses[0] >= outcome.rounds
    assert refuses or REFUSED not in outcome.statuses


def test_a_second_training_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path / "out", stop_after=2)
    before = (tmp_path / "out" / CHECKPOINT).read_bytes()
    with (
        files.sole_writer(tmp_path / "out" / CHECKPOINT, "diffup train"),
        pytest.raises(StorageError, match=r"out is being written to by diffup train \(process \d+ on .*choose another"),
    ):
        run(tmp_path / "out", stop_after=4)
    assert (tmp_path / "out" / CHECKPOINT).read_bytes() == before
    run(tmp_path / "out", stop_after=4)
    assert (tmp_path / "out" / CHECKPOINT).read_bytes() != before


def test_a_lock_outlives_its_file_of_names(tmp_path: Path) -> None:
    """A process that is killed leaves its name; the lock is free all the same."""
    (tmp_path / ".a.owner").write_text("somebody who was killed")
    with files.sole_writer(tmp_path / "a", "me"):
        pass
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("at", range(8))
def test_files_that_belong_together(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any rename or removal, the file that vouches for the others is with its own or not there."""
    paths = [tmp_path / name for name in ("mask.png", "overlay.png", "result.json")]
    extra = tmp_path / "trace.png"
    for path in (*paths, extra):
        path.write_text("old")
    count, plain = 0, {name: getattr(Path, name) for name in ("replace", "unlink")}

    def step(name: str) -> Callable[..., object]:
        def act(path: Path, *args: object, **options: object) -> object:
            nonlocal count
            if count == at:
                raise Killed
            count += 1
            return plain[name](path, *args, **options)

        return act

    with monkeypatch.context() as patch:
        for name in plain:
            patch.setattr(Path, name, step(name))
        try:
            with files.replacing_together(paths, [extra]) as unfinished:
                for path in unfinished:
                    path.write_text("new")
        except Killed:
            pass
    now = {path.name: path.read_text() if path.exists() else None for path in (*paths, extra)}
    if now["result.json"] is not None:
        whole = {"mask.png": "new", "overlay.png": "new", "result.json": "new", "trace.png": None}
        assert now in (whole, dict.fromkeys(now, "old"))
    assert at > 0 or now == dict.fromkeys(now, "old")
    assert at < 5 or now["result.json"] == "new"


def test_an_error_while_writing_leaves_all_as_it_was(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.json"]
    for path in paths:
        path.write_text("old")
    with pytest.raises(ValueError, match="no picture"), files.replacing_together(paths) as unfinished:
        unfinished[0].write_text("new")
        raise ValueError("no picture")
    assert [path.read_text() for path in paths] == ["old", "old"] and len(list(tmp_path.iterdir())) == 2


def test_names_may_be_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")
    files.write_text(path, "😀")
    assert path.read_bytes() == "😀".encode()
