"""Data sets that cannot be right say what is wrong with them; names of Windows and macOS are found."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import make_folder
from PIL import Image
from runs import CONFIG, encoder
from trees import VOC_TEST, make_fss, make_voc

from diffup.data.folder import LabelledFolder
from diffup.data.fss1000 import FSS1000
from diffup.data.pascal5i import Pascal5i, read_pascal_list
from diffup.errors import DataError
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.protocols import draw_stream
from diffup.training.prepare import Sources
from diffup.training.trainer import train


def make(root: Path, names: list[str], lists: dict[str, Any], value: int = 1, **splits: Any) -> Path:
    """A folder of images with masks of one class, both named with their endings, and its lists."""
    for number, name in enumerate(names):
        for part in ("images", "masks"):
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 255, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / name)
        mask = np.zeros((40, 50), dtype=np.uint8)
        mask[5:30, 10:40] = value
        path = root / "masks" / f"{Path(name).with_suffix('')}{'.PNG' if Path(name).suffix.isupper() else '.png'}"
        Image.fromarray(mask).save(path, format="PNG")
    content = {"classes": {"1": "cat"}, "folds": {"0": [1]}, "images": {"train": [], **lists}, **splits}
    (root / "splits.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    return root


NFC, NFD = (unicodedata.normalize(form, "Küche") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("lists", "match"),
    [
        ({"test": ["a", "a"]}, r"splits\.json: split 'test' lists 'a' twice; it would be support and query"),
        ({"test": ["a", "b", "a.jpg"]}, r"split 'test' lists 'a' and 'a\.jpg', which are one image"),
        ({"test": ["a", "A"]}, "lists 'a' and 'A', which are one image"),
        ({"test": [NFC, NFD]}, "which are one image"),
        ({"test": ["sub/c", "sub\\c.JPG"]}, "which are one image"),
        ({"test": ["gone", "GONE.png"]}, "which are one image"),
        ({"train": ["b", "b"], "test": ["a"]}, "split 'train' lists 'b' twice"),
        (
            {"train": ["b", "a"], "test": ["a", "sub/c"]},
            "split 'test' lists 'a', and so does 'train'; what was trained",
        ),
        ({"train": ["b", "a"], "val": ["B.jpg", "a"]}, r"split 'val' lists 'B\.jpg', and so .*, 2 images in all"),
        ({"test": "ab"}, "a split is a list of image names"),
        ({"test": [["a"]]}, "a split is a list of image names"),
    ],
)
def test_images_that_are_listed_twice(tmp_path: Path, lists: dict[str, Any], match: str) -> None:
    data = make(tmp_path, ["a.jpg", "b.jpg", "sub/c.jpg", f"{NFC}.jpg"], lists)
    with pytest.raises(DataError, match=match):
        LabelledFolder.open(data)


def test_lists_that_are_right(tmp_path: Path) -> None:
    lists = {"train": ["a"], "trainval": ["a", "b"], "test": ["A", "b"]}
    data = LabelledFolder.open(make(tmp_path, ["a.jpg", "A.jpg", "b.jpg"], lists))
    assert data.image_path("a").name == "a.jpg" and data.image_path("A").name == "A.jpg"
    assert data.mask_path("A").name == "A.png" and data.split("test") == ("A", "b")


@pytest.mark.parametrize("name", ["a", "a.jpg", "A.JPG", "images/a.jpg", ".\\a.jpg", "C:\\set\\images\\a.jpg"])
@pytest.mark.parametrize("file", ["a.jpg", "a.JPG", "a.jpeg", "a.Png", "a.BMP", "a.tif", "a.webp"])
def test_images_are_found_whatever_the_ending(tmp_path: Path, name: str, file: str) -> None:
    data = LabelledFolder.open(make(tmp_path, [file], {"test": [name]}))
    assert data.image_path(name) == tmp_path / "images" / file
    assert data.target(name, 1).mask.sum() == 25 * 30
    assert data.pairs("test", [1]) == {1: (name,)}


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    data = LabelledFolder.open(make(tmp_path, ["a.jpg", "a.bmp"], {"test": ["a"]}))
    with pytest.raises(DataError, match=r"'a' may be .*a\.bmp or .*a\.jpg"):
        data.image("a")


@pytest.mark.parametrize(
    ("value", "ignore", "match"),
    [
        (255, 255, "all 2 images hold nothing but 0 and 255, and 255 is ignored, .* Are they two-valued masks"),
        (255, 254, r"a\.png holds the values 255, which are none of the classes \(1\), .* Is it a two-valued mask"),
        (7, 255, r"a\.png holds the values 7, .* Add these classes"),
    ],
)
def test_masks_without_a_class(tmp_path: Path, value: int, ignore: int, match: str) -> None:
    data = make(tmp_path / "d", ["a.jpg", "b.jpg"], {"test": ["a", "b"]}, value, ignore=ignore)
    with pytest.raises(DataError, match=match):
        draw_episodes(LabelledFolder.open(data), "test", [1], 1, 2, seed=0)
    data = make(tmp_path / "t", ["a.jpg", "b.jpg"], {"train": ["a", "b"]}, value, ignore=ignore, folds={})
    with pytest.raises(DataError, match=match):
        train(data, tmp_path / "run", CONFIG.__class__(backbones=("fake",)), [encoder()], progress=False)


def test_smoothed_masks_and_masks_of_another_size(tmp_path: Path) -> None:
    data = make(tmp_path, ["a.jpg"], {"test": ["a"]}, classes={"40": "cat"}, folds={}, value=40)
    mask = data / "masks" / "a.png"
    Image.open(mask).resize((500, 400), Image.Resampling.BICUBIC).resize((50, 40)).save(mask)
    small = np.asarray(Image.open(mask)).copy()
    small[0, :30] = np.arange(30)
    Image.fromarray(small).save(mask)
    with pytest.raises(DataError, match="Was it smoothed when it was resized, or saved as JPEG"):
        LabelledFolder.open(data).mask("a")
    Image.open(mask).resize((10, 10)).save(mask)
    with pytest.raises(DataError, match=r"a\.png has 10 x 10 pixels \(height x width\), .*a\.jpg has 40 x 50"):
        LabelledFolder.open(data).target("a", 40)


def test_empty_lists_and_too_few_images(tmp_path: Path) -> None:
    data = LabelledFolder.open(make(tmp_path / "d", ["a.jpg"], {"test": ["a"], "val": []}))
    for split in ("val", "train"):
        with pytest.raises(DataError, match=rf"splits\.json: split '{split}' lists no image"):
            data.pairs(split, [1])
    with pytest.raises(DataError, match=r"no class of \[1\] has two images .* 1 \(cat\) has 1"):
        draw_episodes(data, "test", [1], 1, 2, seed=0)
    with pytest.raises(DataError, match="lists no image"):
        Sources.find(data, CONFIG)
    with pytest.raises(DataError, match="'classes' names no class"):
        LabelledFolder.open(make(tmp_path / "e", ["a.jpg"], {"test": ["a"]}, classes={}, folds={}))


def test_the_folder_of_shapes_is_right(tmp_path: Path) -> None:
    data = LabelledFolder.open(make_folder(tmp_path))
    assert [path.name for path in data.files(["test0"])] == ["test0.png", "test0.png", "splits.json"]


# the benchmarks


def test_pascal_lists_and_files_of_other_systems(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    plain = Pascal5i.open(root)
    expected = plain.split("train"), plain.split("test"), plain.lists(0)
    for path in sorted(root.glob("JPEGImages/*")):
        path.rename(path.with_suffix(".JPG"))
    for path in sorted(root.glob("SegmentationClassAug/*")):
        path.rename(path.with_suffix(".PNG"))
    val = root / "ImageSets/Segmentation/val.txt"
    val.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(f"{name}.jpg" for name in VOC_TEST).encode())
    data = Pascal5i.open(root)
    assert (data.split("train"), data.split("test"), data.lists(0)) == expected
    assert data.image("2007_000001").shape == (3, 60, 80) and data.target("2007_000001", 2).mask.any()
    (tmp_path / "fold0.txt").write_text("a__01\na.jpg__02\n", encoding="utf-8-sig")
    assert read_pascal_list(tmp_path / "fold0.txt", 0) == (("a", 1), ("a", 2))
    val.write_text("2007_000001\n2007_000001.jpg\n")
    with pytest.raises(DataError, match=r"val\.txt lists '2007_000001' twice"):
        data.split("test")
    val.write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt lists no image"):
        data.split("test")


def test_pascal_masks_that_cannot_be_right(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    mask = root / "SegmentationClassAug/2007_000001.png"
    Image.fromarray(np.full((60, 80), 21, np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"holds the values 21, which are none of the classes \(1 to 20\)"):
        Pascal5i.open(root).areas("test")
    Image.fromarray(np.ones((6, 8), np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"000001\.png has 6 x 8 pixels"):
        Pascal5i.open(root).target("2007_000001", 1)
    for name in VOC_TEST:
        Image.fromarray(np.full((60, 80), 255, np.uint8)).save(mask.with_name(f"{name}.png"))
    with pytest.raises(DataError, match="all 4 images hold nothing but 0 and 255"):
        draw_stream(Pascal5i.open(root), 0, 1)


def test_fss_files_of_other_systems_and_faulty_ones(tmp_path: Path) -> None:
    root = make_fss(tmp_path / "fss")
    for path in sorted(root.glob("zebra/*")):
        path.rename(path.with_suffix(path.suffix.upper()))
    data = FSS1000.open(root)
    assert data.image("zebra/3").shape == (3, 12, 16) and data.target("zebra/3", 3).mask[:, 8:].all()
    Image.fromarray(np.ones((12, 16), np.uint8)).save(root / "burj_al/7.png")
    with pytest.raises(DataError, match=r"7\.png holds values up to 1, and the object begins at 128: is it 0 and 1"):
        data.target("burj_al/7", 2)
    Image.fromarray(np.ones((12, 12), np.uint8)).save(root / "burj_al/7.png")
    with pytest.raises(DataError, match=r"7\.png has 12 x 12 pixels"):
        data.target("burj_al/7", 2)
    (tmp_path / "list.txt").write_text("zebra\nzebra\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"list\.txt lists 'zebra' twice"):
        FSS1000.open(root, categories=tmp_path / "list.txt")
