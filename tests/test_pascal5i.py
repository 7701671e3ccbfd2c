"""PASCAL-5i on a tiny tree of its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import SIZE, VOC_TEST, make_voc

from diffup.data import coco20i
from diffup.data.pascal5i import CLASSES, COCO_TO_PASCAL, FOLDS, Pascal5i, read_pascal_list
from diffup.errors import DataError, ImageError


def make_lists(root: Path) -> Path:
    root.mkdir()
    lines = {0: ["b__01", "a__02", "a__01", ""], 1: ["c__06", "d__06"], 2: ["c__15", "e__11"], 3: ["f__20"]}
    for fold, own in lines.items():
        (root / f"fold{fold}.txt").write_text("\n".join(own))
    return root


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "VOC2012")


def test_images_targets_and_splits(voc: Path) -> None:
    data = Pascal5i.open(voc)
    assert data.name == "pascal5i" and data.ignore == 255
    assert data.split("test") == tuple(VOC_TEST) and data.split("train") == ("2008_000001", "2008_000002")
    assert data.image("2007_000001").shape == (3, *SIZE)
    target = data.target("2007_000001", 2)
    expected = np.zeros(SIZE, bool)
    expected[:, 40:76] = True
    np.testing.assert_array_equal(target.mask, expected)
    assert target.ignore.sum() == 4 and target.ignore[:2, :2].all()
    assert not data.target("2007_000001", 1).mask[:2, :2].any() and not data.target("2007_000001", 9).mask.any()


def test_folds_are_five_classes_each() -> None:
    assert [CLASSES[c] for c in FOLDS[0]] == ["aeroplane", "bicycle", "bird", "boat", "bottle"]
    assert [CLASSES[c] for c in FOLDS[2]] == ["diningtable", "dog", "horse", "motorbike", "person"]
    assert [CLASSES[c] for c in FOLDS[3]] == ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    assert sorted(c for classes in FOLDS.values() for c in classes) == sorted(CLASSES) == list(range(1, 21))


def test_cross_dataset_classes_are_those_held_out_in_the_fold_of_coco() -> None:
    same = {"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "sofa": "couch"}
    same |= {"pottedplant": "potted plant", "tvmonitor": "tv"}
    coco = {name: c for c, name in coco20i.CLASSES.items()}
    for fold, held_out in coco20i.FOLDS.items():
        assert COCO_TO_PASCAL[fold] == tuple(c for c, n in CLASSES.items() if coco[same.get(n, n)] in held_out)


def test_lists_by_rule_hold_the_pairs_that_cover_two_cells(voc: Path) -> None:
    data = Pascal5i.open(voc)
    assert data.areas("test")["2007_000002"] == {2: 596, 7: 3000}, "ignored pixels and background do not count"
    lists = data.lists(0)
    assert lists.queries == (("2007_000001", 1), ("2007_000001", 2)), "30 columns are too few"
    assert lists.supports == {1: ("2007_000001",), 2: ("2007_000001",), 3: (), 4: (), 5: ()}
    assert data.lists(1).queries == (("2007_000002", 7),) and not lists.once
    assert data.pairs("train", [7, 1]) == {1: ("2008_000001",), 7: ("2008_000002",)}
    assert data.pairs("test", [3]) == {}


def test_lists_of_hsnet_are_read_in_their_order(voc: Path, tmp_path: Path) -> None:
    data = Pascal5i.open(voc, lists=make_lists(tmp_path / "val"))
    assert data.lists(0).queries == (("b", 1), ("a", 2), ("a", 1))
    assert data.lists(0).supports == {1: ("b", "a"), 2: ("a",), 3: (), 4: (), 5: ()}
    cross = Pascal5i.open(voc, lists=tmp_path / "val", from_coco=True)
    assert cross.name == "coco_to_pascal" and cross.fold(0) == (1, 4, 9, 11, 12, 15)
    assert cross.lists(0).queries == (("b", 1), ("a", 1), ("c", 15), ("e", 11)), "of three files, classes 2 and 6 out"
    assert Pascal5i.open(voc, from_coco=True).lists(1).queries == (("2007_000001", 2),)


def test_instances_are_those_of_the_class(voc: Path) -> None:
    instances = Pascal5i.open(voc).instances("2007_000001", 2)
    assert set(np.unique(instances)) == {0, 2} and (instances == 2).sum() == 36 * SIZE[0]
    with pytest.raises(DataError, match=r"SegmentationObject/2008_000001\.png is missing"):
        Pascal5i.open(voc).instances("2008_000001", 1)


def test_with_lists_val_txt_is_needed_for_splits_alone(tmp_path: Path) -> None:
    root, lists = make_voc(tmp_path / "VOC2012"), make_lists(tmp_path / "val")
    (root / "ImageSets/Segmentation/val.txt").unlink()
    data = Pascal5i.open(root, lists=lists)
    assert len(data.lists(2).queries) == 2
    with pytest.raises(DataError, match=r"val\.txt is missing"):
        data.areas("test")
    (lists / "fold3.txt").unlink()
    with pytest.raises(DataError, match=r"fold3\.txt is missing; PASCAL-5i"):
        Pascal5i.open(root, lists=lists)


def test_unknown_names_are_refused(voc: Path) -> None:
    data = Pascal5i.open(voc)
    with pytest.raises(DataError, match=r"2009_1\.png is missing"):
        data.target("2009_1", 1)
    with pytest.raises(ImageError, match="2009_1"):
        data.image("2009_1")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a__01\nb_02\n", "line 2: 'b_02' is not of the form IMAGEID__CC"),
        ("a__01\n\nb__06\n", r"line 3: class 6 is not of fold 0, \(1, 2, 3, 4, 5\)"),
        ("a__00", "class 0 is not of fold 0"),
        ("\n\n", "holds no pair"),
    ],
)
def test_faulty_lists_are_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "fold0.txt").write_text(text)
    with pytest.raises(DataError, match=named):
        read_pascal_list(tmp_path / "fold0.txt", 0)


def test_a_missing_list_and_an_unknown_fold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fold0\.txt is missing"):
        read_pascal_list(tmp_path / "fold0.txt", 0)
    with pytest.raises(DataError, match="fold=7"):
        read_pascal_list(tmp_path / "fold0.txt", 7)


def test_a_mask_with_colours_is_refused(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOC2012")
    Image.new("RGB", (8, 8)).save(root / "SegmentationClassAug" / "2007_000001.png")
    with pytest.raises(DataError, match=r"2007_000001\.png has mode RGB"):
        Pascal5i.open(root).target("2007_000001", 1)
