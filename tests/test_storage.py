"""Full disks and folders that may not be written to: a clear error, and the last good file stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, shape_image, tiny_config, tiny_model
from runs import state

from diffup import DiffUp
from diffup.errors import DiffUpError, StorageError
from diffup.evaluation.episodes import Episode
from diffup.evaluation.record import EpisodeRecord, Setting
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore
from diffup.training.checkpoint import save_checkpoint
from diffup.training.trainer import CHECKPOINT
from diffup.utils import files
from diffup.utils.journal import Journal

resource = pytest.importorskip("resource")


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond a size in bytes, as if the disk were full; pytest's own log neither, so keep it short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def model(seed: int = 0) -> DiffUp:
    return tiny_model(FakeBackbone(input_size=(32, 32)), seed=seed)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    before = contents(tmp_path)
    with full_disk(4096), pytest.raises(StorageError, match=r"model\.safetensors cannot be written"):
        model(1).save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    assert DiffUp.from_pretrained(tmp_path, backbone=FakeBackbone(), device="cpu").config == tiny_config()


def test_only_our_own_leftovers_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".vscode-settings.json").write_text("{}")
    (tmp_path / ".diffup-folder").mkdir()
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a.png") as unfinished:
        shutil.copy(tmp_path / ".vscode-settings.json", kept := unfinished.with_name(f"{unfinished.stem}x.png"))
        raise KeyboardInterrupt
    assert kept.exists() and kept.name.startswith(".diffup-")
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".diffup-folder", ".vscode-settings.json"]


def test_pictures(tmp_path: Path) -> None:
    query, _ = shape_image((1,), size=(300, 300))
    result = model().segment(query, query)
    path = result.save(tmp_path / "mask.png")
    before = contents(tmp_path)
    with full_disk(16), pytest.raises(StorageError, match=r"mask\.png cannot be written"):
        result.save(path)
    assert contents(tmp_path) == before


def test_training_checkpoints(run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, stop_after=2)
    before = contents(tmp_path)
    with full_disk((tmp_path / CHECKPOINT).stat().st_size // 2), pytest.raises(StorageError, match="cannot be written"):
        run(tmp_path, stop_after=4)
    after = contents(tmp_path)
    assert after[CHECKPOINT] == before[CHECKPOINT]
    assert not [name for name in after if name.startswith(".")]
    assert len(state(tmp_path)) > 10


def setting() -> Setting:
    texts = ("dataset", "protocol", "split", "classes", "backbone", "fingerprint", "decoder", "decoder_hash", "device")
    numbers = ("fold", "shots", "seed", "steps", "ensemble", "batch_size", "threshold", "bf16", "refine")
    return Setting(**dict.fromkeys(texts, "a"), **dict.fromkeys(numbers, 1), annotation="mask", input_size=(8, 8))


def test_the_record_of_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    episodes = [Episode(class_id=1, query=str(index), supports=("x",)) for index in range(3)]
    pairs = tuple((1, 2) for _ in THRESHOLDS)
    scores = [EpisodeScore(index, 1, str(index), 9, (1, 2), (1, 2), pairs, pairs, 0.5, 0.9, 0.2) for index in range(3)]
    record = EpisodeRecord(path)
    record.append(setting(), episodes, scores[:1])
    with full_disk(path.stat().st_size + 40), pytest.raises(StorageError, match=r"record\.jsonl cannot be written"):
        record.append(setting(), episodes, scores[1:])
    assert EpisodeRecord(path).known(setting(), episodes) == {0: scores[0]}
    record.append(setting(), episodes, scores[1:])
    assert EpisodeRecord(path).known(setting(), episodes) == dict(enumerate(scores))


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As root, who may write anywhere, act as a user who may not; anybody else is one."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user reaches; those of pytest are its user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def write_weights(folder: Path, seed: int) -> None:
    model(seed).save_pretrained(folder)


def write_picture(folder: Path, seed: int) -> None:
    query, _ = shape_image((1,), size=(40, 60), seed=seed)
    model(seed).segment(query, query, refine=False).save(folder / "mask.png")


def write_checkpoint(folder: Path, seed: int) -> None:
    save_checkpoint(folder / CHECKPOINT, {"model": {"a": torch.full((3,), seed)}}, seed, "{}")


def write_record(folder: Path, seed: int) -> None:
    Journal(folder / "record.jsonl").append([{"seed": seed}])


@pytest.mark.parametrize("write", [write_weights, write_picture, write_checkpoint, write_record])
def test_read_only_folders(open_folder: Path, write: Callable[[Path, int], None]) -> None:
    """The error says what and where, and what was there stays, and nothing beside it."""
    write(open_folder, 0)
    before = contents(open_folder)
    for path in open_folder.iterdir():
        path.chmod(0o444)
    open_folder.chmod(0o555)
    with nobody():
        assert contents(open_folder) == before, "the folder of temporary files must be open to every user"
        with pytest.raises(StorageError, match=r"cannot be written \(.*Permission denied.*choose a folder"):
            write(open_folder, 1)
        assert contents(open_folder) == before
    open_folder.chmod(0o755)
    for path in open_folder.iterdir():
        path.chmod(0o644)
    write(open_folder, 1)
    assert contents(open_folder) != before


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match="choose a folder"):
        model().save_pretrained(tmp_path / "file" / "folder")
    with pytest.raises(StorageError):
        save_checkpoint(Path("/proc/nonsense/checkpoint"), {}, 0, "{}")
    assert contents(tmp_path) == {"file": b"here"}


def test_errors_of_our_own_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(DiffUpError, match=r"^mine$"), files.replacing(tmp_path / "a.npy") as temporary:
        np.save(temporary, np.zeros(3))
        raise DiffUpError("mine")
    assert not list(tmp_path.iterdir())
