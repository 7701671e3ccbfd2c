"""Views and banks: what training caches, and that a cache is never stale."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import Changed, FakeBackbone, make_folder
from PIL import Image
from runs import CONFIG, DECODER_CONFIG, Interrupt, banks_of, dominant, encoder, trainer_of
from torch import Tensor

from diffup.backbones import JointBackbone, members_of
from diffup.data.folder import LabelledFolder
from diffup.errors import BackboneError
from diffup.priors.condition import PriorMaps, prior_maps
from diffup.priors.config import PriorConfig
from diffup.priors.level import pool_to_grid
from diffup.priors.views import ONE_SHOT_VIEWS
from diffup.training import bank as bank_module
from diffup.training import trainer as trainer_module
from diffup.training.config import TrainConfig, ViewsConfig
from diffup.training.prepare import Banks, Sources, build_banks
from diffup.training.sampler import GROUPS, PASTED, WHOLE

# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_image_and_mask_of_every_view_stay_together(banks: Banks, group: str) -> None:
    arrays = banks.images[group].arrays
    checked = 0
    for image, mask in zip(arrays["image"], arrays["mask"], strict=True):
        assert set(np.unique(mask)) <= {0, 1, 2, 3, 255}
        for c in (1, 2, 3):
            if (mask == c).sum() > 300:
                assert dominant(image, mask == c) == c
                checked += 1
    assert checked >= 3


def test_whole_images_come_as_runs_of_the_one_shot_views(banks: Banks, shapes: Path) -> None:
    arrays = banks.images[WHOLE].arrays
    names = LabelledFolder.open(shapes).split("train")
    views = len(ONE_SHOT_VIEWS)
    assert arrays["source"].tolist() == [index for index in range(len(names)) for _ in range(views)]
    assert np.array_equal(arrays["image"][1], arrays["image"][0][..., ::-1])  # the second view is the mirror image
    assert np.array_equal(arrays["mask"][1], arrays["mask"][0][..., ::-1])


def test_features_are_those_of_the_same_views(banks: Banks) -> None:
    """Every bank of features lines up with its bank of images: the encoder sees mean colours only."""
    for group in GROUPS:
        images = torch.from_numpy(np.array(banks.images[group].arrays["image"])).float() / 255
        expected = encoder().pyramid(torch.nn.functional.interpolate(images, (48, 48), mode="bilinear", antialias=True))
        for level in range(4):
            found = torch.from_numpy(np.array(banks.features[0][group].arrays[f"level{level}"])).float()
            pooled = pool_to_grid(expected[level], CONFIG.decoder.feature_grids[level])
            assert found.shape == pooled.shape
            assert (found - pooled).abs().mean() < 0.1


def test_pasted_objects_are_of_training_classes_only(shapes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(90, 140, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(noise).save(photos / "grey.png")
    config = dataclasses.replace(CONFIG, views=ViewsConfig(crops=0, pasted=25))
    seen = {
        folds: set(np.unique(banks_of(shapes, tmp_path, dataclasses.replace(config, folds=folds), photos)
                            .images[PASTED].arrays["mask"]).tolist())
        for folds in ((0,), ())
    }  # fmt: skip
    assert seen == {(0,): {0, 1, 2}, (): {0, 1, 2, 3}}


def test_views_without_crops_and_pasted_images(shapes: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, views=ViewsConfig(crops=0, pasted=0))
    banks = banks_of(shapes, tmp_path, config)
    assert set(banks.images) == {WHOLE}
    trainer_of(banks, config).advance()


# --- banks -----------------------------------------------------------------------------------------------------------


def test_a_bank_that_was_killed_while_filling_goes_on(
    shapes: Path, tmp_path: Path, banks: Banks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_module, "CHUNK", 12)
    dying = encoder()
    whole, computed = dying.pyramid, []

    def pyramid(images: Tensor) -> list[Tensor]:
        if sum(computed) > 30 and not hasattr(dying, "died"):
            dying.died = True
            raise Interrupt
        computed.append(len(images))
        return whole(images)

    monkeypatch.setattr(dying, "pyramid", pyramid)
    arguments = (Sources.find(LabelledFolder.open(shapes), CONFIG), CONFIG, [dying], tmp_path, False)
    with pytest.raises(Interrupt):
        build_banks(*arguments)
    resumed = build_banks(*arguments)
    entries = sum(len(resumed.features[0][group].arrays["level0"]) for group in GROUPS)
    assert sum(computed) < entries + 24  # what was filled is not computed again
    for group in GROUPS:
        for ours, theirs in ((resumed.images, banks.images), (resumed.features[0], banks.features[0])):
            for name, array in ours[group].arrays.items():
                assert np.array_equal(array, theirs[group].arrays[name]), (group, name)


def test_a_filled_bank_is_not_computed_again(shapes: Path, banks: Banks, feature_cache: Path) -> None:
    idle = encoder()
    build_banks(Sources.find(LabelledFolder.open(shapes), CONFIG), CONFIG, [idle], feature_cache, progress=False)
    assert idle.calls == 0


def test_of_two_runs_at_once_one_fills_the_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "CHUNK", 3)
    computed: list[int] = []

    def compute(entries: range) -> dict[str, np.ndarray]:
        computed.extend(entries)
        time.sleep(0.02)
        return {"value": np.array(entries)}

    banks = [bank_module.Bank(tmp_path / "bank", 12) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda bank: bank.fill(compute, "", progress=False), banks))
    assert computed == list(range(12))
    assert all(bank.arrays["value"].tolist() == list(range(12)) for bank in banks)


def test_a_filled_bank_is_only_read(tmp_path: Path) -> None:
    bank_module.Bank(tmp_path / "bank", 2).fill(lambda entries: {"value": np.array(entries)}, "", progress=False)
    (tmp_path / "bank" / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").iterdir()}
    again = bank_module.Bank(tmp_path / "bank", 2)
    again.fill(lambda entries: {}, "", progress=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").iterdir()} == before
    assert not again.arrays["value"].flags.writeable


def test_an_encoder_need_not_know_of_autocast(shapes: Path, tmp_path: Path) -> None:
    """Whose last operation autocast runs in bfloat16."""
    plain = FakeBackbone(input_size=(48, 48))
    plain.pyramid = (
        lambda images: [  # type: ignore[method-assign]
            torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(images, stride), projection[:, :3])
            for projection, stride in zip(plain.projections, plain.strides, strict=True)
        ]
    )
    config = dataclasses.replace(CONFIG, bf16=True)
    build_banks(Sources.find(LabelledFolder.open(shapes), config), config, [plain], tmp_path, progress=False)


def test_features_that_float16_cannot_hold_are_refused(shapes: Path, tmp_path: Path) -> None:
    huge = Changed(encoder(), lambda index, level: level * 1e6)
    with pytest.raises(BackboneError, match=r"beyond 65504.* divide them by a constant"):
        build_banks(Sources.find(LabelledFolder.open(shapes), CONFIG), CONFIG, [huge], tmp_path, progress=False)


def test_priors_of_a_joint_encoder_are_its_members(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = JointBackbone([FakeBackbone(input_size=(48, 48), seed=seed) for seed in (1, 2)])
    banks = build_banks(Sources.find(LabelledFolder.open(shapes), CONFIG), CONFIG, [joint], tmp_path, progress=False)
    seen = []

    def spy(*args: object, **options: object) -> PriorMaps:
        seen.append(args[6])
        return prior_maps(*args, **options)

    monkeypatch.setattr(trainer_module, "prior_maps", spy)
    trainer_of(banks).advance()
    assert seen == [members_of(joint)] and len(seen[0][0]) == 2


def bank_folders(data: Path, cache: Path, config: TrainConfig = CONFIG) -> set[str]:
    banks = banks_of(data, cache, config)
    groups = [*banks.images.values(), *banks.features[0].values()]
    return {bank.folder.name for bank in groups}


def test_a_changed_setting_makes_a_new_bank(tmp_path: Path) -> None:
    data, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    before = bank_folders(data, cache)
    assert bank_folders(data, cache) == before
    finer = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER_CONFIG, priors=PriorConfig(grid=5)))
    assert len(bank_folders(data, cache, finer) - before) == 3  # the features of all groups
    jittered = dataclasses.replace(CONFIG, views=dataclasses.replace(CONFIG.views, jitter=0.1))
    assert len(bank_folders(data, cache, jittered) - before) == 4  # images and features of crops and pasted ones


def test_banks_are_known_by_the_content_of_files(tmp_path: Path) -> None:
    """Files that were touched or copied keep their banks; another picture of the same size and time does not."""
    data, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    photo = data / "images" / "train0.png"

    def save(pixels: np.ndarray) -> None:
        with photo.open("wb") as file:
            Image.fromarray(pixels).save(file, "png")
            file.write(bytes(50_000 - file.tell()))  # readers do not mind what comes after the picture's end
        os.utime(photo, (1, 1))

    pixels = np.array(Image.open(photo))
    save(pixels)
    before, size = bank_folders(data, cache), photo.stat().st_size
    os.utime(photo, (2, 2))
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    assert bank_folders(data, cache) == bank_folders(tmp_path / "copy", cache) == before
    save(255 - pixels)
    assert photo.stat().st_size == size
    assert not bank_folders(data, cache) & before
    negative = banks_of(data, cache).images[WHOLE].arrays["image"][0]
    positive = banks_of(tmp_path / "copy", cache).images[WHOLE].arrays["image"][0]
    assert np.abs(negative.astype(int) + positive - 255).max() <= 1


def test_a_changed_mask_makes_a_new_bank(tmp_path: Path) -> None:
    data, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    before = banks_of(data, cache).images[WHOLE].arrays["mask"][0].copy()
    mask = np.asarray(Image.open(data / "masks" / "train0.png")).copy()
    mask[:] = 2
    Image.fromarray(mask).save(data / "masks" / "train0.png")
    after = banks_of(data, cache).images[WHOLE].arrays["mask"][0]
    assert (before == 1).any() and (after == 2).all()


def test_another_revision_of_the_code_makes_new_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for revision in (1, 2, 3):
        monkeypatch.setattr(bank_module, "REVISION", revision)
        names.add(bank_module.bank_name("whole", {"length": 3}))
    assert len(names) == 3


def test_views_look_as_in_this_revision(banks: Banks) -> None:
    """Where this fails because views are rendered otherwise on purpose: raise `bank.REVISION`, and pin new figures."""
    pinned = {"whole": (110.3, 66.4, 4.4), "crop": (97.2, 63.4, 0.6), "pasted": (109.7, 47.7, 2.2)}
    for group in GROUPS:
        means = [float(np.mean(banks.images[group].arrays[name])) for name in ("image", "edges", "mask")]
        assert means == pytest.approx(pinned[group], abs=0.2)
    assert bank_module.REVISION == 1


def test_a_bounded_bank_is_of_few_images_in_which_no_class_is_missing(shapes: Path, tmp_path: Path) -> None:
    data, chosen = LabelledFolder.open(shapes), set()
    for seed in range(4):
        config = dataclasses.replace(CONFIG, views=ViewsConfig(images=4, crops=1, pasted=2, seed=seed))
        sources = Sources.find(data, config)
        assert sources == Sources.find(data, config)
        assert len(sources.names) == 4 and set(sources.names) < set(data.split("train"))
        shown = {c: set(names) & set(sources.names) for c, names in data.pairs("train", data.classes).items()}
        assert shown.keys() == {1, 2, 3} and all(shown.values()) and set().union(*shown.values()) == set(sources.names)
        assert {c: set(names) for c, names in sources.pairs.items()} == {c: shown[c] for c in (1, 2)}
        most = dataclasses.replace(config, views=dataclasses.replace(config.views, images=7))
        assert Sources.find(data, dataclasses.replace(most, folds=(1,))).names == Sources.find(data, most).names
        chosen.add(sources.names)
    assert len(chosen) > 1
    banks = build_banks(sources, config, [encoder()], tmp_path, progress=False)
    assert [len(banks.images[group].arrays["mask"]) for group in GROUPS] == [4 * len(ONE_SHOT_VIEWS), 4, 2]
    assert len(banks.features[0][WHOLE].arrays["level0"]) == 4 * len(ONE_SHOT_VIEWS)
    everything = Sources.find(data, dataclasses.replace(config, views=ViewsConfig(images=1000)))
    assert everything.names == data.split("train")
