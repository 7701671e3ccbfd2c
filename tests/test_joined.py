"""Several data sets as one for training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import TINY, FakeBackbone, ReadingBackbone, shape_image
from PIL import Image
from runs import CONFIG, encoder

from diffup import cli
from diffup.data.folder import LabelledFolder
from diffup.data.joined import JoinedData, join_data
from diffup.errors import DataError
from diffup.training.config import TrainConfig, ViewsConfig
from diffup.training.prepare import Sources, build_banks
from diffup.training.sampler import WHOLE
from diffup.training.trainer import CHECKPOINT, train

SHAPES = {"square": 1, "disc": 2, "triangle": 3}
"""Number of a shape in `shape_image`."""

FIRST, SECOND = {1: "square", 4: "disc"}, {1: "disc", 3: "triangle"}
CONTENTS = {"train": ["square", "disc", "square disc"], "test": ["disc"]}
OTHERS = {"train": ["disc", "triangle", "disc triangle", "triangle"], "test": ["triangle"]}


def make(
    root: Path,
    classes: Mapping[int, str],
    contents: Mapping[str, Sequence[str]],
    *,
    seed: int,
    ignore: int = 255,
    folds: Mapping[int, Sequence[int]] | None = None,
    area: float = 0.01,
) -> LabelledFolder:
    """A labelled folder with a strip of ignored pixels; images are named by split and number."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    own = {name: c for c, name in classes.items()}
    images: dict[str, list[str]] = {}
    for split, shown in contents.items():
        images[split] = [f"{split}{index}" for index in range(len(shown))]
        for index, shapes in enumerate(shown):
            image, labels = shape_image(
                [SHAPES[shape] for shape in shapes.split()], seed=100 * seed + len(images) * 10 + index
            )
            mask = np.zeros_like(labels)
            for shape in shapes.split():
                mask[labels == SHAPES[shape]] = own[shape]
            mask[:2] = ignore
            Image.fromarray(image).save(root / "images" / f"{split}{index}.png")
            Image.fromarray(mask).save(root / "masks" / f"{split}{index}.png")
    splits = {"ignore": ignore, "min_area_fraction": area, "classes": {str(c): n for c, n in classes.items()}}
    splits |= {"folds": {str(k): list(ids) for k, ids in (folds or {}).items()}, "images": images}
    (root / "splits.json").write_text(json.dumps(splits))
    return LabelledFolder.open(root)


@pytest.fixture
def parts(tmp_path: Path) -> list[LabelledFolder]:
    first = make(tmp_path / "first", FIRST, CONTENTS, seed=1, folds={0: [4], 1: [1]})
    return [first, make(tmp_path / "second", SECOND, OTHERS, seed=2, ignore=254, folds={0: [1, 3]})]


def test_a_single_data_set_stays_as_it_is(parts: list[LabelledFolder]) -> None:
    assert join_data(parts[:1]) is parts[0]


def test_classes_are_joined_by_name(parts: list[LabelledFolder]) -> None:
    joined = join_data(parts)
    assert isinstance(joined, JoinedData)
    assert joined.classes == {1: "square", 4: "disc", 2: "triangle"}  # the next free id
    assert joined.ids == ({1: 1, 4: 4}, {1: 4, 3: 2})
    assert joined.name == "first+second" and joined.ignore == 255 and joined.min_area_fraction == 0.01
    assert joined.split("train") == ("0/train0", "0/train1", "0/train2", "1/train0", "1/train1", "1/train2", "1/train3")
    assert [joined.part(name) for name in joined.split("test")] == [0, 1]
    assert joined.dropped == frozenset()


def test_images_are_their_own_and_masks_have_the_joined_ids(parts: list[LabelledFolder]) -> None:
    joined = join_data(parts)
    assert torch.equal(joined.image("1/train2"), parts[1].image("train2"))
    assert np.array_equal(joined.mask("0/train2"), parts[0].mask("train2"))
    own, mask = parts[1].mask("train2"), joined.mask("1/train2")
    assert mask.dtype == np.uint8 and set(np.unique(own)) == {0, 1, 3, 254}
    for before, after in ((0, 0), (1, 4), (3, 2), (254, 255)):
        assert np.array_equal(own == before, mask == after)
    target = joined.target("1/train2", 4)
    assert np.array_equal(target.mask, own == 1) and np.array_equal(target.ignore, own == 254)


def test_images_of_a_class_come_from_all_data_sets(parts: list[LabelledFolder]) -> None:
    joined = join_data(parts)
    assert joined.pairs("train", {1, 2, 4}) == {
        1: ("0/train0", "0/train2"),
        2: ("1/train1", "1/train2", "1/train3"),
        4: ("0/train1", "0/train2", "1/train0", "1/train2"),
    }
    assert joined.pairs("train", {2}).keys() == {2} and joined.pairs("test", {1}) == {}
    files = joined.files(["1/train0", "0/train1"])
    assert files == [*parts[0].files(["train1"]), *parts[1].files(["train0"])]
    assert joined.files(["1/train0"]) == parts[1].files(["train0"])


def test_a_fold_holds_out_the_classes_of_all_data_sets(parts: list[LabelledFolder]) -> None:
    joined = join_data(parts)
    assert joined.fold(0) == (2, 4) and joined.fold(1) == (1,)
    with pytest.raises(DataError, match=r"fold=5: none of first\+second has it"):
        joined.fold(5)
    sources = Sources.find(joined, dataclasses.replace(CONFIG, folds=(0,)))
    assert sources.classes == (1,) and sources.labelled == ({1}, set())
    assert Sources.find(joined, dataclasses.replace(CONFIG, folds=(1,))).labelled == ({4}, {2, 4})


def test_a_class_in_different_folds_is_a_contradiction(tmp_path: Path) -> None:
    first = make(tmp_path / "first", FIRST, CONTENTS, seed=1, folds={0: [4]})
    second = make(tmp_path / "second", SECOND, OTHERS, seed=2, folds={0: [3], 1: [1]})
    with pytest.raises(DataError, match="class 'disc' is in fold 0 of first and in fold 1 of second"):
        JoinedData.join([first, second])


def test_a_photo_that_an_earlier_data_set_holds_is_used_once(parts: list[LabelledFolder]) -> None:
    shutil.copy(parts[0].image_path("train1"), parts[1].image_path("train2"))
    joined = JoinedData.join(parts)
    assert joined.dropped == {"1/train2"}
    assert "1/train2" not in joined.split("train") and len(joined.split("train")) == 6
    assert joined.pairs("train", {2, 4}) == {
        2: ("1/train1", "1/train3"),
        4: ("0/train1", "0/train2", "1/train0"),
    }


@pytest.mark.parametrize(("trains", "tests"), [(0, 1), (1, 0)])
def test_what_one_tests_on_another_must_not_train_on(parts: list[LabelledFolder], trains: int, tests: int) -> None:
    shutil.copy(parts[tests].image_path("test0"), parts[trains].image_path("train0"))
    names = [part.name for part in parts]
    with pytest.raises(DataError, match=f"{names[trains]} trains on 'train0', and {names[tests]} tests on the same im"):
        JoinedData.join(parts)


def test_the_same_photo_in_two_test_splits_is_no_clash(parts: list[LabelledFolder]) -> None:
    shutil.copy(parts[0].image_path("test0"), parts[1].image_path("test0"))
    assert JoinedData.join(parts).split("test") == ("0/test0", "1/test0")


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first", FIRST, CONTENTS, seed=1)
    twins = make(tmp_path / "twins", {**SECOND, 9: "disc"}, {"train": ["triangle"]}, seed=2)
    for parts in ([first, twins], [twins, first]):
        with pytest.raises(DataError, match="two classes of one name"):
            JoinedData.join(parts)


def test_the_least_areas_must_agree(tmp_path: Path) -> None:
    first = make(tmp_path / "first", FIRST, CONTENTS, seed=1)
    second = make(tmp_path / "second", SECOND, OTHERS, seed=2, area=0.02)
    with pytest.raises(DataError, match=r"min_area_fraction differs: \{'first': 0\.01, 'second': 0\.02\}"):
        JoinedData.join([first, second])


def test_more_classes_than_mask_values_are_refused(tmp_path: Path) -> None:
    names = {c: f"thing {c}" for c in range(1, 254)} | {254: "square"}
    full = make(tmp_path / "full", names, {"train": ["square"]}, seed=1)
    same = make(tmp_path / "same", {7: "square"}, {"train": ["square"]}, seed=2)
    assert len(JoinedData.join([full, same]).classes) == 254
    with pytest.raises(DataError, match="more than 254 classes; a mask has no value left"):
        JoinedData.join([full, make(tmp_path / "second", SECOND, OTHERS, seed=3)])


def test_images_are_bounded_in_each_data_set(parts: list[LabelledFolder]) -> None:
    config = dataclasses.replace(CONFIG, folds=(), views=ViewsConfig(images=2))
    sources = Sources.find(JoinedData.join(parts), config)
    assert sources.parts == (0, 0, 1, 1)
    assert [name.partition("/")[0] for name in sources.names] == ["0", "0", "1", "1"]
    whole = Sources.find(JoinedData.join(parts), dataclasses.replace(config, views=ViewsConfig()))
    assert whole.parts == (0, 0, 0, 1, 1, 1, 1)


def test_views_of_joined_data_sets_are_trained_on(parts: list[LabelledFolder], tmp_path: Path) -> None:
    joined = JoinedData.join(parts)
    config = dataclasses.replace(CONFIG, folds=(), views=ViewsConfig(crops=1, pasted=4))
    banks = build_banks(Sources.find(joined, config), config, [encoder()], tmp_path / "cache", progress=False)
    masks, sources = (banks.images[WHOLE].arrays[name] for name in ("mask", "source"))
    for mask, source in zip(masks[::3], sources[::3], strict=True):
        assert set(np.unique(mask)) == set(np.unique(joined.mask(joined.split("train")[source])))
    settings = {"cache": tmp_path / "cache", "tensorboard": False, "progress": False}
    train(joined, tmp_path / "run", config, [encoder()], stop_after=2, **settings)
    assert (tmp_path / "run" / CHECKPOINT).exists()


def test_the_command_trains_on_several_folders_with_named_classes(
    parts: list[LabelledFolder], tmp_path: Path, families: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    families(
        fake=lambda variant, **options: FakeBackbone((8,) * 4, (8, 8, 16, 16), (48, 48)),
        reading=lambda variant, **options: ReadingBackbone(),
    )
    decoder = {**TINY, "timesteps": 50, "steps": 3, "ensemble": 2, "priors": {"grid": 6}}
    settings = {"decoder": decoder, "backbones": ["fake"], "steps": 2, "views": {"crops": 1, "pasted": 3}}
    settings["episodes"] = {"text": 1.0, "text_and_supports": 0.0}
    (tmp_path / "base.json").write_text(json.dumps(settings))
    options = ["--config", str(tmp_path / "base.json"), "--device", "cpu", "--quiet", "--batch-size", "2"]
    options += ["--no-tensorboard", "--text-backbone", "reading"]
    folders = [str(part.root) for part in parts]
    assert cli.main(["train", *folders, "-o", str(tmp_path / "run"), *options]) == 0
    written = TrainConfig.from_json((tmp_path / "run" / "config.json").read_text())
    assert written.text_backbone == "reading"
    similar = list((tmp_path / "run" / "cache").rglob("similar.npy"))
    assert sorted(np.load(path).shape[:2] for path in similar) == [(3, 3), (7, 3), (21, 3)]  # three named classes
    (tmp_path / "first" / "images" / "train0.png").write_bytes(parts[1].image_path("test0").read_bytes())
    capsys.readouterr()
    assert cli.main(["train", *folders, "-o", str(tmp_path / "other"), *options]) == cli.FAILED
    assert "tests on the same image" in capsys.readouterr().err
