"""Training on trees of PASCAL-5i and COCO-20i, and what training asks of a data set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import TINY, FakeBackbone, make_folder, shape_image
from PIL import Image
from runs import CONFIG, encoder

from diffup import cli
from diffup.data.base import TrainingData
from diffup.data.coco20i import Coco20i
from diffup.data.folder import LabelledFolder
from diffup.data.pascal5i import Pascal5i
from diffup.errors import DataError, TrainingError
from diffup.training.config import ViewsConfig
from diffup.training.prepare import Sources, build_banks
from diffup.training.sampler import GROUPS, WHOLE
from diffup.training.trainer import CHECKPOINT, train

SIZE = (160, 192)
CONTENTS = ((1,), (2,), (1, 2), (2, 1), (1,), (3,), (3, 1), (2,))
TEST = 2
"""Of the images, so many are of the test split."""


def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [shape_image(classes, SIZE, seed=index) for index, classes in enumerate(CONTENTS)]


def make_voc(root: Path) -> Path:
    """Shapes as the first three classes, all of fold 0."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for index, (image, labels) in enumerate(scenes()):
        labels[:2] = 255
        Image.fromarray(image).save(root / "JPEGImages" / f"{index}.jpg", quality=95)
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{index}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(str(index) for index in range(TEST)))
    return root


def make_coco(root: Path) -> Path:
    """Squares as persons (class 1, fold 0), discs as bicycles (2, fold 1), triangles as cars (3, fold 2), in boxes."""
    for split, indices in (("val", range(TEST)), ("train", range(TEST, len(CONTENTS)))):
        (root / f"{split}2014").mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
        for index in indices:
            image, labels = scenes()[index]
            name = f"COCO_{split}2014_{index:012d}.jpg"
            Image.fromarray(image).save(root / f"{split}2014" / name, quality=95)
            content["images"].append({"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            for c in CONTENTS[index]:
                rows, columns = np.nonzero(labels == c)
                x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
                polygon = [[int(value) for value in (x0, y0, x1, y0, x1, y1, x0, y1)]]
                content["annotations"].append({"image_id": index, "category_id": c, "segmentation": polygon})
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("pycocotools")
    root = tmp_path_factory.mktemp("trees")
    return {"pascal5i": make_voc(root / "voc"), "coco20i": make_coco(root / "coco")}


def opened(name: str, trees: dict[str, Path]) -> TrainingData:
    return Pascal5i.open(trees[name]) if name == "pascal5i" else Coco20i.open(trees[name])


@pytest.mark.parametrize(("name", "fold", "trained"), [("pascal5i", 1, {1, 2, 3}), ("coco20i", 1, {1, 3})])
def test_training_images_without_the_fold(name: str, fold: int, trained: set[int], trees: dict[str, Path]) -> None:
    data = opened(name, trees)
    sources = Sources.find(data, dataclasses.replace(CONFIG, folds=(fold,)))
    assert sources.names == data.split("train") and len(sources.names) == len(CONTENTS) - TEST
    assert sources.pairs.keys() == trained and not set(data.fold(fold)) & set(sources.classes)
    for c, names in sources.pairs.items():
        numbers = [int(Path(shown).stem.rpartition("_")[2]) for shown in names]
        assert set(numbers) <= {index for index, classes in enumerate(CONTENTS) if c in classes and index >= TEST}
    assert all(path.exists() for path in data.files(sources.names))
    assert len(sources.identity()["data"]) == 16


@pytest.mark.parametrize("name", ["pascal5i", "coco20i"])
def test_banks_and_steps_on_the_real_layouts(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    data, views = opened(name, trees), ViewsConfig(images=5, crops=1, pasted=4)
    config = dataclasses.replace(CONFIG, folds=(2,), views=views)
    banks = build_banks(Sources.find(data, config), config, [encoder()], tmp_path / "cache", progress=False)
    assert len(banks.images[WHOLE].arrays["mask"]) == 15
    assert {int(c) for group in GROUPS for c in np.unique(banks.images[group].arrays["mask"])} <= {0, 1, 2, 3, 255}
    settings = {"cache": tmp_path / "cache", "tensorboard": False, "progress": False}
    train(data, tmp_path / "run", config, [encoder()], stop_after=2, **settings)
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_a_fold_that_holds_everything_leaves_nothing_to_train_on(trees: dict[str, Path]) -> None:
    with pytest.raises(TrainingError, match="two images"):
        Sources.find(opened("pascal5i", trees), dataclasses.replace(CONFIG, folds=(0,)))
    with pytest.raises(DataError, match="fold=4"):
        Sources.find(opened("pascal5i", trees), dataclasses.replace(CONFIG, folds=(4,)))


def test_the_command_trains_on_coco(
    trees: dict[str, Path], tmp_path: Path, families: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    families(fake=lambda variant, **options: FakeBackbone((8,) * 4, (8, 8, 16, 16), (48, 48)))
    base, views = tmp_path / "base.json", tmp_path / "views.json"
    decoder = {**TINY, "timesteps": 50, "steps": 3, "ensemble": 2, "priors": {"grid": 6}}
    base.write_text(json.dumps({"decoder": decoder, "backbones": ["fake"], "steps": 3, "views": {"pasted": 9}}))
    views.write_text(json.dumps({"views": {"crops": 1, "pasted": 0, "images": 4}}))
    command = ["train", str(trees["coco20i"]), "--dataset", "coco20i", "-o", str(tmp_path / "run"), "--fold", "1"]
    options = ["--device", "cpu", "--quiet", "--batch-size", "2", "--no-tensorboard"]
    assert cli.main([*command, "--config", str(base), str(views), *options]) == 0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["views"]["images"] == 4 and written["views"]["pasted"] == 0 and written["folds"] == [1]
    command[1] = str(trees["pascal5i"])
    assert cli.main([*command, "--config", str(base), str(views), *options]) == cli.FAILED
    assert "val2014 is missing" in capsys.readouterr().err


@pytest.mark.parametrize("c", [0, 256, 255, 1000])
def test_class_ids_that_no_pixel_can_have_are_refused(tmp_path: Path, c: int) -> None:
    data = make_folder(tmp_path / "data")
    splits = json.loads((data / "splits.json").read_text())
    splits["classes"][str(c)] = "ghost"
    (data / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match=rf"class ids \[{c}\] cannot be pixels"):
        LabelledFolder.open(data)
