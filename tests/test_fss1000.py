"""FSS-1000 on a tiny tree of its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trees import make_fss

from diffup.data.fss1000 import FSS1000
from diffup.errors import ConfigError, DataError, ImageError
from diffup.evaluation.protocols import draw_stream


@pytest.fixture(scope="module")
def fss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fss(tmp_path_factory.mktemp("fss") / "FSS-1000")


def test_all_categories_by_rule(fss: Path) -> None:
    data = FSS1000.open(fss)
    assert data.name == "fss1000" and data.classes == {1: "ab_wheel", 2: "burj_al", 3: "zebra"}
    assert data.fold(0) == (1, 2, 3) and data.image("zebra/10").shape == (3, 12, 16)
    target = data.target("zebra/3", 3)
    assert target.mask[:, 8:].all() and not target.mask[:, :8].any() and not target.ignore.any()


@pytest.mark.parametrize(("split", "first"), [("train", 1), ("val", 521), ("test", 761)])
def test_ids_of_a_list_follow_from_its_split(fss: Path, tmp_path: Path, split: str, first: int) -> None:
    (tmp_path / "list.txt").write_text("zebra\nab_wheel\n")
    data = FSS1000.open(fss, categories=tmp_path / "list.txt", split=split)  # type: ignore[arg-type]
    assert data.classes == {first: "ab_wheel", first + 1: "zebra"}


def test_every_image_is_a_query_once_and_supports_are_of_its_category(fss: Path) -> None:
    episodes = draw_stream(FSS1000.open(fss), 0, 2)
    assert [e.query for e in episodes[:4]] == ["ab_wheel/1", "ab_wheel/10", "ab_wheel/2", "ab_wheel/3"]
    assert len(episodes) == len({e.query for e in episodes}) == 30
    assert len(draw_stream(FSS1000.open(fss), 0, 2, count=7)) == 7
    assert len(draw_stream(FSS1000.open(fss), 0, 2, count=1000)) == 30, "once means once"
    rng = np.random.RandomState(0)
    for episode in episodes:  # HSNet's draws
        supports: list[str] = []
        while len(supports) < 2:
            support = f"{episode.query.rpartition('/')[0]}/{rng.choice(range(1, 11), 1, replace=False)[0]}"
            if support != episode.query:
                supports.append(support)
        assert episode.supports == tuple(supports)


def test_faulty_trees_and_lists_are_refused(fss: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is missing; FSS-1000 looks like this"):
        FSS1000.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no category"):
        FSS1000.open(tmp_path)
    with pytest.raises(DataError, match=r"list\.txt is missing"):
        FSS1000.open(fss, categories=tmp_path / "list.txt")
    with pytest.raises(DataError, match="split='trn'"):
        FSS1000.open(fss, split="trn")  # type: ignore[arg-type]
    (tmp_path / "list.txt").write_text("zebra\nunicorn\n")
    with pytest.raises(DataError, match=r"unicorn/1\.jpg is missing; FSS-1000"):
        FSS1000.open(fss, categories=tmp_path / "list.txt")
    own = make_fss(tmp_path / "own")
    (own / "burj_al/7.png").unlink()
    with pytest.raises(DataError, match=r"burj_al/7\.png is missing"):
        FSS1000.open(own)


def test_what_there_is_not_is_refused(fss: Path) -> None:
    data = FSS1000.open(fss)
    with pytest.raises(DataError, match="fold=1: fss1000 has 0"):
        data.lists(1)
    with pytest.raises(DataError, match="class_id=1: zebra/3 is not an image of class ab_wheel"):
        data.target("zebra/3", 1)
    with pytest.raises(ImageError, match="zebra/11"):
        data.target("zebra/11", 3)
    with pytest.raises(DataError, match="protocol='bam' has no rule for FSS-1000"):
        draw_stream(data, 0, 1, "bam")
    with pytest.raises(ConfigError, match="shots=0"):
        draw_stream(data, 0, 0)
