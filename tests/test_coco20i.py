"""COCO-20i on a tiny tree of its layout."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import NAME, SIZE, make_coco, square

from diffup.data.coco20i import CATEGORIES, CLASSES, FOLDS, Coco20i, read_coco_list
from diffup.errors import DataError, MissingPackageError

coco_mask = pytest.importorskip("pycocotools.mask")


def make_lists(root: Path, suffix: str = ".pkl") -> Path:
    root.mkdir()
    for fold, classes in FOLDS.items():
        content = {c - 1: [NAME(c), NAME(c + 1)] for c in reversed(classes)}
        if suffix == ".pkl":
            (root / f"fold{fold}.pkl").write_bytes(pickle.dumps(content))
        else:
            (root / f"fold{fold}.json").write_text(json.dumps(content))
    return root


def test_classes_and_folds_are_coco_s() -> None:
    assert len(CLASSES) == len(CATEGORIES) == 80 and CATEGORIES[90] == 80
    assert [CLASSES[CATEGORIES[category]] for category in (1, 13, 44, 67, 90)] == [
        "person",
        "stop sign",
        "bottle",
        "dining table",
        "toothbrush",
    ]
    assert FOLDS[0][:3] == (1, 5, 9) and FOLDS[3][-1] == 80 and all(len(classes) == 20 for classes in FOLDS.values())


def test_masks_are_painted_in_file_order_without_crowds_and_kept(tmp_path: Path) -> None:
    data = Coco20i.open(make_coco(tmp_path / "coco"))
    expected = np.zeros(SIZE, np.uint8)
    expected[:, :40], expected[:, 40:] = 1, 5
    np.testing.assert_array_equal(data.mask(NAME(2)), expected)
    assert set(np.unique(data.mask(NAME(1)))) == {0, 80}, "the crowd is background, though it comes later"
    assert data.mask(NAME(1))[10:50, 10:70].mean() == 80
    assert (data.mask(NAME(3))[:, :5] == 5).all() and (data.mask(NAME(3))[:, 5:30] == 0).all()
    assert not data.mask(NAME(4)).any()
    target = data.target(NAME(2), 5)
    assert target.mask.sum() == 40 * 60 and not target.ignore.any() and target.mask.shape == SIZE
    path = tmp_path / "coco/masks/val2014/COCO_val2014_000000000002.png"
    assert path == data.mask_path(NAME(2)) and [p.name for p in path.parent.glob("*2.png")] == [path.name]
    (tmp_path / "coco/annotations/instances_val2014.json").unlink()
    again = Coco20i.open(tmp_path / "coco", masks=tmp_path / "coco/masks")
    np.testing.assert_array_equal(again.mask(NAME(2)), expected)


def test_compressed_run_lengths_are_read(tmp_path: Path) -> None:
    region = np.zeros(SIZE, np.uint8)
    region[5:50, 3:77] = 1
    encoded = coco_mask.encode(np.asfortranarray(region))
    encoded["counts"] = encoded["counts"].decode()
    data = Coco20i.open(make_coco(tmp_path / "coco", objects=[(1, 2, encoded, 0)]))
    np.testing.assert_array_equal(data.mask(NAME(1)), region * 2)


def test_instances_are_numbered_within_their_class(tmp_path: Path) -> None:
    data = Coco20i.open(make_coco(tmp_path / "coco"))
    instances = data.instances(NAME(3), 5)
    assert (instances[:, :5] == 1).all() and (instances[:, 30:] == 2).all() and (instances[:, 5:30] == 0).all()
    assert not data.instances(NAME(3), 1).any()


def test_areas_and_lists_by_rule_are_kept_on_disk(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    data = Coco20i.open(root)
    assert data.split("test") == tuple(NAME(i) for i in (1, 2, 3, 4))
    expected = {NAME(1): {80: 2400}, NAME(2): {1: 2400, 5: 2400}, NAME(3): {5: 3300}}
    assert data.areas("test") == expected
    lists = data.lists(0)
    assert lists.queries == () and list(lists.supports) == list(FOLDS[0]) and not lists.once
    assert lists.supports[1] == (NAME(2),) and lists.supports[5] == (NAME(2), NAME(3)) and lists.supports[9] == ()
    assert data.pairs("test", [80, 5]) == {5: (NAME(2), NAME(3)), 80: (NAME(1),)}
    kept = root / "masks/areas_val2014.json"
    again = Coco20i.open(root)
    (root / "annotations/instances_val2014.json").write_text("gone")
    assert again.areas("test") == expected, "what was counted is not counted again"
    kept.write_text('{"a": 3}')
    with pytest.raises(DataError, match=r"areas_val2014\.json is damaged .* delete it"):
        Coco20i.open(root).areas("test")


def test_images_of_2017_are_found_under_the_names_of_2014(tmp_path: Path) -> None:
    old, new = make_coco(tmp_path / "old"), make_coco(tmp_path / "new", year=2017)
    data = Coco20i.open(new, year=2017)
    assert data.image_path(NAME(2)) == new / "train2017/000000000002.jpg"
    assert data.image_path(NAME(4)) == new / "val2017/000000000004.jpg"
    assert data.image(NAME(2)).shape == Coco20i.open(old).image(NAME(2)).shape == (3, *SIZE)
    assert data.target(NAME(2), 1).mask.sum() == 40 * 60
    with pytest.raises(DataError, match=r"neither train2017 nor val2017 .* holds 000000000009\.jpg"):
        data.image(NAME(9))


@pytest.mark.parametrize("suffix", [".pkl", ".json"])
def test_lists_of_hsnet_are_read(tmp_path: Path, suffix: str) -> None:
    data = Coco20i.open(make_coco(tmp_path / "coco"), lists=make_lists(tmp_path / "val", suffix))
    lists = data.lists(2)
    assert list(lists.supports) == list(FOLDS[2]), "classes are drawn in ascending order, whatever the file's"
    assert lists.supports[3] == (NAME(3), NAME(4)) and lists.queries == ()


def test_faulty_arguments_are_refused(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    with pytest.raises(DataError, match="year=2015: expected 2014 or 2017"):
        Coco20i.open(root, year=2015)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nowhere is missing; COCO-20i"):
        Coco20i.open(root, masks=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"fold0\.pkl is missing, and so is \.json"):
        Coco20i.open(root, lists=tmp_path)
    data = Coco20i.open(root)
    with pytest.raises(DataError, match=r"instances_train2014\.json is missing"):
        data.areas("train")
    with pytest.raises(DataError, match="names of images look like"):
        data.mask("COCO_val2014_000000000001.jpg")
    with pytest.raises(DataError, match=r"000009\.jpg is not an image of"):
        data.mask(NAME(9))


@pytest.mark.parametrize(
    ("region", "category", "named"),
    [
        ("nonsense", 1, "segmentation cannot be rendered"),
        ({"size": [60, 80]}, 1, "segmentation cannot be rendered"),
        (square(0, 0, 9, 9), 12, r"categories \[12\], which COCO does not have"),
    ],
)
def test_damaged_objects_are_refused(tmp_path: Path, region: Any, category: int, named: str) -> None:
    data = Coco20i.open(make_coco(tmp_path / "coco", objects=[(1, category, region, 0)]))
    with pytest.raises(DataError, match=named):
        data.mask(NAME(1))
    assert not data.mask_path(NAME(1)).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{"id": 1}], "annotations": []}', '{"images": 3}'])
def test_damaged_annotations_are_refused(tmp_path: Path, text: str) -> None:
    root = make_coco(tmp_path / "coco")
    (root / "annotations/instances_val2014.json").write_text(text)
    with pytest.raises(DataError, match=r"instances_val2014\.json is not an instances json"):
        Coco20i.open(root).mask(NAME(1))


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm_was_done"),)


def test_a_pickle_that_holds_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_lists(tmp_path / "val") / "fold0.pkl"
    path.write_bytes(pickle.dumps({0: _Harmful()}))
    with pytest.raises(DataError, match=r"cannot be read as a list .*and lists are plain dicts, lists"):
        read_coco_list(path, 0)
    assert not Path("harm_was_done").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, r"holds classes \[\]"),
        ({c - 1: ["a"] for c in FOLDS[1]}, "is it the list of another fold"),
        ({c - 1: ["a"] for c in CLASSES if c not in FOLDS[0]}, "or a training list"),
        ({c - 1: "abc" for c in FOLDS[0]}, "class 0 is no list of image names"),
        ({c - 1: [] for c in FOLDS[0]}, "class 0 is no list of image names"),
        ({c - 1: [3] for c in FOLDS[0]}, "class 0 is no list of image names"),
        (["a"], "cannot be read as a list"),
        ({"x": ["a"]}, "cannot be read as a list"),
    ],
)
def test_faulty_lists_are_refused(tmp_path: Path, content: Any, named: str) -> None:
    for name, data in (("fold0.pkl", pickle.dumps(content)), ("fold0.json", json.dumps(content).encode())):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=named):
            read_coco_list(tmp_path / name, 0)
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps(content)[:-3])
    with pytest.raises(DataError, match="cannot be read as a list"):
        read_coco_list(tmp_path / "fold0.pkl", 0)
    with pytest.raises(DataError, match=r"fold1\.pkl is missing"):
        read_coco_list(tmp_path / "fold1.pkl", 1)


def test_without_pycocotools_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Coco20i.open(make_coco(tmp_path / "coco"))
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(MissingPackageError, match='pip install "pycocotools>='):
        data.mask(NAME(1))


def test_preparing_renders_every_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Coco20i.open(make_coco(tmp_path / "coco"))
    data.prepare("test")
    assert capsys.readouterr().err == ""
    assert all(data.mask_path(name).exists() for name in data.split("test"))
    data.prepare("test", progress=True)
    assert "masks of val2014" in capsys.readouterr().err
