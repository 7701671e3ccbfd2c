"""Episode streams: HSNet's draws to the letter, BAM's rules, hashes, resizing."""

# ruff: noqa: NPY002 (the published streams are of numpy's legacy generator)
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.data.base import Areas, Benchmark, Dataset, FoldLists, Target, by_class
from diffup.data.coco20i import FOLDS as COCO_FOLDS
from diffup.data.folder import LabelledFolder
from diffup.data.pascal5i import FOLDS as PASCAL_FOLDS
from diffup.data.pascal5i import pair_lists
from diffup.errors import ConfigError, DataError
from diffup.evaluation import protocols
from diffup.evaluation.episodes import Episode
from diffup.evaluation.protocols import PROTOCOLS, draw_stream, hsnet_episodes, hsnet_stream, main, stream_hash

PAIRS = (*((f"2007_{index:06d}", index % 5 + 1) for index in range(23)), ("2007_000003", 2))
"""24 pairs of fold 0; one image has two classes."""

PINNED_PASCAL = [Episode(1, "2007_000000", ("2007_000010",)), Episode(2, "2007_000001", ("2007_000006",))]
PINNED_COCO = Episode(74, "val2014/74_5.jpg", tuple(f"val2014/74_{index}.jpg" for index in (2, 3, 0, 3, 1)))
PINNED_HASHES = ("aacfe63ab40c52b8", "9978550edf7af6e2")
PINNED_BAM, PINNED_BAM_HASH = Episode(1, "i0", ("i6", "i9")), "7479ff5ece9d35b7"


@dataclass(frozen=True)
class Fake:
    """A benchmark in memory."""

    pixels: Areas = field(default_factory=dict)
    pairs: tuple[tuple[str, int], ...] = PAIRS
    name: str = "fake"
    classes: dict[int, str] = field(default_factory=lambda: {c: str(c) for c in range(1, 21)})

    def fold(self, fold: int) -> tuple[int, ...]:
        return PASCAL_FOLDS[fold]

    def image(self, name: str) -> Tensor:
        return torch.zeros(3, 8, 8)

    def target(self, name: str, class_id: int) -> Target:
        return Target(np.ones((8, 8), bool), np.zeros((8, 8), bool))

    def lists(self, fold: int) -> FoldLists:
        return pair_lists(self.pairs, self.fold(fold))

    def areas(self, split: str) -> Areas:
        assert split == "test"
        return self.pixels


def make_list(path: Path, data: str) -> Path:
    if data == "pascal":
        path.write_text("".join(f"{name}__{c:02d}\n" for name, c in PAIRS))
    else:
        images = {c - 1: [f"val2014/{c}_{index}.jpg" for index in range(c % 7 + 2)] for c in COCO_FOLDS[1]}
        path.write_text(json.dumps(images))
    return path


# --- HSNet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 5])
def test_pascal_is_drawn_as_hsnet_draws(shots: int) -> None:
    np.random.seed(0)  # its global stream, its calls
    pools = {c: list(names) for c, names in by_class(PAIRS, PASCAL_FOLDS[0]).items()}
    expected = []
    for index in range(1000):
        query, c = PAIRS[index % len(PAIRS)]
        supports: list[str] = []
        while len(supports) < shots:
            support = np.random.choice(pools[c], 1, replace=False)[0]
            if query != support:
                supports.append(str(support))
        expected.append(Episode(c, query, tuple(supports)))
    stream = draw_stream(Fake(), 0, shots)
    assert stream == expected
    duplicates = sum(len(set(episode.supports)) < shots for episode in stream)
    assert (duplicates > 0) == (shots == 5), "supports may repeat"
    assert Counter(episode.query for episode in stream)["2007_000003"] == 83, "42 times for one class, 41 for the other"


def test_coco_is_drawn_class_by_class_as_hsnet_draws(tmp_path: Path) -> None:
    path = make_list(tmp_path / "fold1.json", "coco")
    images = {int(c): names for c, names in json.loads(path.read_text()).items()}
    np.random.seed(0)
    expected = []
    for _ in range(1000):
        c = np.random.choice([1 + 4 * v for v in range(20)], 1, replace=False)[0]
        query = np.random.choice(images[c], 1, replace=False)[0]
        supports: list[str] = []
        while len(supports) < 2:
            support = np.random.choice(images[c], 1, replace=False)[0]
            if query != support:
                supports.append(str(support))
        expected.append(Episode(int(c) + 1, str(query), tuple(supports)))
    assert hsnet_stream(path, 1, 2, "coco") == expected


def test_the_draws_are_pinned(tmp_path: Path) -> None:
    pascal = hsnet_stream(make_list(tmp_path / "fold0.txt", "pascal"), 0, 1)
    coco = hsnet_stream(make_list(tmp_path / "fold1.json", "coco"), 1, 5, "coco")
    assert pascal[:2] == PINNED_PASCAL and coco[0] == PINNED_COCO
    assert (stream_hash(pascal)[:16], stream_hash(coco)[:16]) == PINNED_HASHES
    assert len(pascal) == len(coco) == 1000


def test_the_stream_of_a_list_is_the_stream_of_the_data(tmp_path: Path) -> None:
    path = make_list(tmp_path / "fold0.txt", "pascal")
    assert hsnet_stream(path, 0, 3) == draw_stream(Fake(), 0, 3, "hsnet", seed=0)
    assert hsnet_stream(path, 0, 3, count=10) == hsnet_stream(path, 0, 3)[:10]
    assert hsnet_stream(path, 0, 3, seed=1) != hsnet_stream(path, 0, 3)


def test_the_hash_is_of_lines_with_classes_counted_from_zero() -> None:
    episodes = [Episode(1, "q", ("a", "b")), Episode(5, "r", ("c", "d"))]
    assert stream_hash(episodes) == hashlib.sha256(b"q 0 a b\nr 4 c d").hexdigest()


@pytest.mark.shared
def test_published_first_episodes_are_of_the_folds_that_we_take_them_for(shared: Path) -> None:
    golden = json.loads((shared / "reference/protocol/golden_episodes.json").read_text())
    for key, stream in golden.items():
        data, fold, _ = key.split("_")
        folds = {"pascal": PASCAL_FOLDS, "coco": COCO_FOLDS}[data]
        for query, c, supports in stream["first3"]:
            assert c + 1 in folds[int(fold[-1])] and query not in supports


def test_classes_with_one_image_are_refused() -> None:
    with pytest.raises(DataError, match="class 2 has 1 images; a query and another support are needed"):
        draw_stream(Fake(pairs=(("a", 1), ("b", 1), ("a", 2))), 0, 1)
    with pytest.raises(DataError, match="class 5 has 0 images"):
        hsnet_episodes(FoldLists({1: ("a", "b"), 5: ()}), 1, seed=0)
    with pytest.raises(DataError, match="class 1 has 2 images"):
        hsnet_episodes(FoldLists({1: ("a", "a")}), 1, seed=0)
    with pytest.raises(DataError, match=r"no \(image, class\) pair"):
        hsnet_episodes(FoldLists({}), 1, seed=0)


# --- BAM -------------------------------------------------------------------------------------------------------------

BIG, SMALL = 2048, 2047
AREAS: Areas = {f"i{index}": {index % 3 + 1: BIG} for index in range(12)} | {
    "mixed": {2: SMALL, 3: BIG, 9: BIG},
    "small": {1: SMALL},
    "other": {9: BIG},
}


@pytest.mark.parametrize("shots", [1, 3])
def test_bam_filters_by_area_and_draws_distinct_supports(shots: int) -> None:
    stream = draw_stream(Fake(AREAS), 0, shots, "bam", count=130)
    kept = [*(f"i{index}" for index in range(12)), "mixed"]
    assert [episode.query for episode in stream] == [kept[index % 13] for index in range(130)]
    for episode in stream:
        assert len(set(episode.supports)) == shots and episode.query not in episode.supports
        assert all(AREAS[support][episode.class_id] >= BIG for support in episode.supports)
    mixed = Counter(episode.class_id for episode in stream if episode.query == "mixed")
    assert set(mixed) == {2, 3}, "a class of the fold in a query counts whatever its area, as in BAM"
    assert stream == draw_stream(Fake(AREAS), 0, shots, "bam", seed=510, count=130)
    assert len({stream_hash(draw_stream(Fake(AREAS), 0, shots, "bam", seed)) for seed in PROTOCOLS["bam"].seeds}) == 5


def test_bam_s_draws_are_pinned() -> None:
    stream = draw_stream(Fake(AREAS), 0, 2, "bam")
    assert len(stream) == 1000 and stream[0] == PINNED_BAM and stream_hash(stream)[:16] == PINNED_BAM_HASH


def test_bam_needs_one_image_more_than_shots() -> None:
    assert draw_stream(Fake(AREAS), 0, 3, "bam", count=1)
    with pytest.raises(DataError, match="class 1 has 4 images; 4 distinct supports and a query are needed"):
        draw_stream(Fake(AREAS), 0, 4, "bam")
    with pytest.raises(DataError, match="no test image of fake has a large enough object of fold 2"):
        draw_stream(Fake(AREAS), 2, 1, "bam")


# --- both ------------------------------------------------------------------------------------------------------------


def test_protocols_as_data() -> None:
    assert set(PROTOCOLS) == {"hsnet", "bam"} and all(PROTOCOLS[name].name == name for name in PROTOCOLS)
    hsnet, bam = PROTOCOLS["hsnet"], PROTOCOLS["bam"]
    assert (hsnet.episodes, hsnet.seeds, hsnet.mask_size) == (1000, (0,), 400)
    assert (bam.episodes, bam.mask_size) == (1000, None)
    assert bam.seeds == tuple(np.random.RandomState(123).randint(0, 1000, 5))


def test_targets_are_resized_by_hsnet_alone() -> None:
    rng = np.random.default_rng(0)
    target = Target(rng.random((37, 53)) > 0.5, rng.random((37, 53)) > 0.9)
    assert PROTOCOLS["bam"].scored(target) is target
    scored = PROTOCOLS["hsnet"].scored(target)
    for ours, plain in ((scored.mask, target.mask), (scored.ignore, target.ignore)):
        theirs = F.interpolate(torch.from_numpy(plain)[None, None].float(), (400, 400), mode="nearest").squeeze()
        assert ours.dtype == bool
        np.testing.assert_array_equal(ours, theirs.numpy() == 1)


def test_faulty_arguments_are_refused(tmp_path: Path) -> None:
    path = make_list(tmp_path / "fold0.txt", "pascal")
    with pytest.raises(ConfigError, match="protocol='pfenet': expected one of hsnet, bam"):
        draw_stream(Fake(), 0, 1, "pfenet")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="data='fss': expected pascal or coco"):
        hsnet_stream(path, 0, 1, "fss")  # type: ignore[arg-type]
    for shots, count in ((0, None), (1, 0)):
        with pytest.raises(ConfigError, match=f"shots={shots}, count={count}"):
            hsnet_stream(path, 0, shots, count=count)
        with pytest.raises(ConfigError, match=f"shots={shots}, count={count}"):
            draw_stream(Fake(), 0, shots, count=count)
    with pytest.raises(DataError, match="class 1 is not of fold 1"):
        hsnet_stream(path, 1, 1)


def test_the_command_prints_the_hash_and_the_first_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_list(tmp_path / "fold0.txt", "pascal")
    stream = hsnet_stream(path, 0, 2)
    assert main([str(path), "--data", "pascal", "--fold", "0", "--shots", "2", "--show", "1"]) == 0
    first = stream[0]
    expected = f"sha256 {stream_hash(stream)}\n{first.query} {first.class_id - 1} {' '.join(first.supports)}\n"
    assert capsys.readouterr().out == expected
    with pytest.raises(SystemExit):
        main([str(path), "--data", "pascal", "--fold", "3"])
    assert "is not of fold 3" in capsys.readouterr().err
    ran = subprocess.run(
        [sys.executable, "-m", protocols.__name__, str(path), "--data", "pascal", "--fold", "0", "--shots", "2"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert ran.stdout.startswith(expected)


def test_a_plain_folder_is_a_data_set(shapes: Path) -> None:
    folder = LabelledFolder.open(shapes)
    data: Dataset = folder
    labels = folder.mask("test1")
    target = data.target("test1", 2)
    np.testing.assert_array_equal(target.mask, labels == 2)
    np.testing.assert_array_equal(target.ignore, labels == 255)
    assert data.name == "data" and target.mask.any() and target.ignore.sum() == 2 * labels.shape[1]


def test_the_fake_is_what_a_benchmark_is() -> None:
    data: Benchmark = Fake()
    assert data.fold(0) == (1, 2, 3, 4, 5)
