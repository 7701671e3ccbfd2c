"""Training: rendering, banks, episodes, steps, and runs that are killed and gone on with."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import TINY, FakeBackbone, make_folder, random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffup.backbones import Backbone
from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError, DataError, TrainingError
from diffup.priors.config import PriorConfig
from diffup.priors.views import ONE_SHOT_VIEWS
from diffup.training import bank as bank_module
from diffup.training import trainer as trainer_module
from diffup.training.augment import move
from diffup.training.config import EpisodesConfig, PerturbConfig, TrainConfig, ViewsConfig
from diffup.training.episodes import GROUPS, PASTED, WHOLE, Episodes, EpisodeSampler
from diffup.training.perturb import perturb
from diffup.training.trainer import CHECKPOINT, DECODER, LOG, Banks, Trainer, build_banks, train

DECODER_CONFIG = DecoderConfig(**TINY, timesteps=50, steps=3, ensemble=2, priors=PriorConfig(grid=6))
CONFIG = TrainConfig(
    decoder=DECODER_CONFIG,
    views=ViewsConfig(crops=1, pasted=6),
    episodes=EpisodesConfig(max_shots=3),
    backbones=("fake",),
    folds=(0,),
    steps=6,
    batch_size=2,
    warmup=2,
    learning_rate=3e-3,
    bf16=False,
)


def encoder(width: int = 8) -> FakeBackbone:
    return FakeBackbone((width,) * 4, strides=(8, 8, 16, 16), input_size=(48, 48))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(shapes: Path, cache: Path) -> Callable[..., Path]:
    """`train` on the folder of shapes, its features cached over all tests."""

    def call(out: Path, config: TrainConfig = CONFIG, **options: object) -> Path:
        settings = {"cache": cache, "checkpoint_every": 2, "progress": False}
        backbones = options.pop("backbones", [encoder()])
        return train(shapes, out, config, backbones, **(settings | options))

    return call


def banks_of(data: Path, cache: Path, config: TrainConfig = CONFIG, backgrounds: Path | None = None) -> Banks:
    folder = LabelledFolder.open(data)
    held_out = {c for fold in config.folds for c in folder.fold(fold)}
    classes = [c for c in folder.classes if c not in held_out]
    return build_banks(folder, classes, config, [encoder()], cache, backgrounds, progress=False)


def sampler_of(
    banks: Banks, config: EpisodesConfig = CONFIG.episodes, classes: tuple[int, ...] = (1, 2)
) -> EpisodeSampler:
    return EpisodeSampler(banks.images, classes, config, min_area_fraction=0.01, ignore=255)


@pytest.fixture(scope="module")
def banks(shapes: Path, cache: Path) -> Banks:
    return banks_of(shapes, cache)


def trainer_of(banks: Banks, config: TrainConfig = CONFIG, **options: object) -> Trainer:
    return Trainer(config, sampler_of(banks, config.episodes), banks, torch.device("cpu"), identity="{}", **options)


def state(out: Path) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser moments of a run."""
    return load_file(out / CHECKPOINT)


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and len(a) > 10
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


# --- views -----------------------------------------------------------------------------------------------------------


def dominant(image: np.ndarray, where: np.ndarray) -> int:
    """The class whose colour the marked pixels (3, H, W)[:, where] have."""
    return int(image[:, where].mean(axis=1).argmax()) + 1


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
            assert found.shape == expected[level].shape
            assert (found - expected[level]).abs().mean() < 0.1


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


class Interrupt(BaseException):
    """Stands for a kill."""


def test_a_bank_that_was_killed_while_filling_goes_on(
    shapes: Path, tmp_path: Path, banks: Banks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_module, "_CHUNK", 12)
    dying = encoder()
    whole, computed = dying.pyramid, []

    def pyramid(images: Tensor) -> list[Tensor]:
        if sum(computed) > 30 and not hasattr(dying, "died"):
            dying.died = True
            raise Interrupt
        computed.append(len(images))
        return whole(images)

    monkeypatch.setattr(dying, "pyramid", pyramid)
    folder = LabelledFolder.open(shapes)
    arguments = (folder, [1, 2], CONFIG, [dying], tmp_path, None, False)
    with pytest.raises(Interrupt):
        build_banks(*arguments)
    resumed = build_banks(*arguments)
    entries = sum(len(resumed.features[0][group].arrays["level0"]) for group in GROUPS)
    assert sum(computed) < entries + 24  # what was filled is not computed again
    for group in GROUPS:
        for ours, theirs in ((resumed.images, banks.images), (resumed.features[0], banks.features[0])):
            for name, array in ours[group].arrays.items():
                assert np.array_equal(array, theirs[group].arrays[name]), (group, name)


def test_a_filled_bank_is_not_computed_again(shapes: Path, banks: Banks, cache: Path) -> None:
    idle = encoder()
    build_banks(LabelledFolder.open(shapes), [1, 2], CONFIG, [idle], cache, None, progress=False)
    assert idle.calls == 0


def bank_folders(data: Path, cache: Path, config: TrainConfig = CONFIG) -> set[str]:
    banks = banks_of(data, cache, config)
    groups = [*banks.images.values(), *banks.features[0].values()]
    return {bank.folder.name for bank in groups}


def test_a_changed_setting_or_file_makes_a_new_bank(tmp_path: Path) -> None:
    data, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    before = bank_folders(data, cache)
    assert bank_folders(data, cache) == before
    finer = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER_CONFIG, priors=PriorConfig(grid=5)))
    assert len(bank_folders(data, cache, finer) - before) == 3  # the features of all groups
    jittered = dataclasses.replace(CONFIG, views=dataclasses.replace(CONFIG.views, jitter=0.1))
    assert len(bank_folders(data, cache, jittered) - before) == 4  # images and features of crops and pasted ones
    os.utime(data / "images" / "train0.png", (1, 1))
    assert not bank_folders(data, cache) & before


def test_a_changed_mask_makes_a_new_bank(tmp_path: Path) -> None:
    data, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    before = banks_of(data, cache).images[WHOLE].arrays["mask"][0].copy()
    mask = np.asarray(Image.open(data / "masks" / "train0.png")).copy()
    mask[:] = 2
    Image.fromarray(mask).save(data / "masks" / "train0.png")
    after = banks_of(data, cache).images[WHOLE].arrays["mask"][0]
    assert (before == 1).any() and (after == 2).all()


# --- episodes --------------------------------------------------------------------------------------------------------


def told_by_source(banks: Banks) -> dict[str, SimpleNamespace]:
    """Banks of features that hold nothing but the number of the image that an entry shows."""
    told = {}
    for group, bank in banks.images.items():
        sources = np.array(bank.arrays["source"], dtype=np.float32)[:, None, None, None]
        told[group] = SimpleNamespace(arrays={f"level{level}": sources for level in range(4)})
    return told


def draws(sampler: EpisodeSampler, features: dict, count: int = 40) -> Iterator[Episodes]:
    for step in range(count):
        yield sampler.draw(0, step, 4, features, torch.device("cpu"))


def test_episodes_are_a_function_of_seed_and_step(banks: Banks) -> None:
    sampler, device = sampler_of(banks), torch.device("cpu")
    first = sampler.draw(3, 7, 4, banks.features[0], device)
    again = sampler_of(banks).draw(3, 7, 4, banks.features[0], device)
    for name in ("images", "mask", "valid"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert all(torch.equal(a, b) for a, b in zip(first.support.levels, again.support.levels, strict=True))
    assert torch.equal(first.support.foreground, again.support.foreground)
    assert any(
        not torch.equal(first.images, sampler.draw(seed, step, 4, banks.features[0], device).images)
        for seed, step in ((3, 8), (4, 7))
    )


def test_shapes_and_ranges_of_episodes(banks: Banks) -> None:
    shots = set()
    for episodes in draws(sampler_of(banks), banks.features[0]):
        views = episodes.support.valid.shape[1]
        shots.add(views)
        assert episodes.images.shape == (4, 3, 128, 128) and 0 <= episodes.images.min() <= episodes.images.max() <= 1
        assert episodes.mask.shape == episodes.valid.shape == (4, 1, 64, 64)
        assert episodes.mask.min() >= -1 and episodes.mask.max() <= 1
        assert (episodes.mask > 0).flatten(1).any(dim=1).all()  # the class is there
        assert 0 <= episodes.valid.min() <= episodes.valid.max() <= 1
        assert [tuple(level.shape) for level in episodes.query] == [(4, 8, 6, 6)] * 2 + [(4, 8, 3, 3)] * 2
        assert [tuple(level.shape) for level in episodes.support.levels] == [
            (4, views, *level.shape[1:]) for level in episodes.query
        ]
        assert episodes.support.foreground.shape == episodes.support.background.shape == (4, views, 128, 128)
        assert episodes.support.valid[:, 0].all()
    assert shots == {5, 2, 3}  # one shot comes as five views


def test_held_out_classes_are_never_the_target(banks: Banks) -> None:
    sampler = sampler_of(banks)
    assert sampler.classes == [1, 2]
    found = set()
    for episodes in draws(sampler, banks.features[0]):
        for image, mask in zip(episodes.images, episodes.mask, strict=True):
            where = torch.nn.functional.interpolate(mask[None], (128, 128))[0, 0].numpy() > 0.9
            found.add(dominant(image.numpy(), where))
    assert found == {1, 2}


def test_ignored_pixels_are_neither_target_nor_valid_nor_background(banks: Banks) -> None:
    config = EpisodesConfig(mask=1.0, box=0, scribble=0, points=0, none=0, cropped=0, pasted=0)
    for episodes in draws(sampler_of(banks, config), banks.features[0], 5):
        assert not episodes.valid[:, :, 0].any() and episodes.valid[:, :, 4:].all()  # the strip along the top
        assert (episodes.mask[:, :, 0] == -1).all()
        assert not episodes.support.background[:, 0, :2].any() and episodes.support.background[:, 0, 60:].any()


@pytest.mark.parametrize("same_image", [0.0, 1.0])
def test_the_query_is_of_the_supports_image_only_where_that_is_wanted(banks: Banks, same_image: float) -> None:
    config = EpisodesConfig(max_shots=3, same_image=same_image, pasted=0)
    for episodes in draws(sampler_of(banks, config), told_by_source(banks)):
        query, supports = episodes.query[0][:, 0, 0, 0], episodes.support.levels[0][:, :, 0, 0, 0]
        assert ((query[:, None] == supports).all(dim=1) == bool(same_image)).all()
        if not same_image:
            assert not (query[:, None] == supports).any()


def test_supports_differ_where_there_are_enough(banks: Banks) -> None:
    config = EpisodesConfig(max_shots=3, same_image=0.0)
    for episodes in draws(sampler_of(banks, config), told_by_source(banks)):
        supports = episodes.support.levels[0][:, :, 0, 0, 0]
        if supports.shape[1] < 5:
            assert all(len(row.unique()) == len(row) for row in supports)


def test_the_annotation_kinds_come_in_their_shares(banks: Banks) -> None:
    config = EpisodesConfig(max_shots=1, mask=0.5, box=0, scribble=0, points=0, none=0.5)
    everything = [
        bool((row[0] == 1).all())
        for episodes in draws(sampler_of(banks, config), banks.features[0], 30)
        for row in episodes.support.foreground
    ]
    assert 0.3 < np.mean(everything) < 0.7
    for kind, marks in (("box", True), ("scribble", False), ("points", False), ("mask", True), ("none", False)):
        shares = dict.fromkeys(("mask", "box", "scribble", "points", "none"), 0.0) | {kind: 1.0}
        episodes = sampler_of(banks, EpisodesConfig(**shares)).draw(0, 0, 2, banks.features[0], torch.device("cpu"))
        assert bool(episodes.support.background.any()) is marks, kind


def test_a_class_needs_two_images(banks: Banks) -> None:
    with pytest.raises(TrainingError, match="two images"):
        EpisodeSampler(banks.images, [1, 2], CONFIG.episodes, min_area_fraction=0.99, ignore=255)


# --- perturbation ----------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 1), st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_perturbed_priors_keep_their_shape_and_range(
    gamma: float, noise: float, swap: float, batch: int, channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fused = [torch.rand(batch, channels, side, side, generator=generator) for side in (9, 6, 6, 2)]
    result = perturb(fused, PerturbConfig(gamma, noise, swap), generator)
    for before, after in zip(fused, result, strict=True):
        assert after.shape == before.shape
        assert after.isfinite().all() and after.min() >= 0 and after.max() <= 1


def test_no_perturbation_changes_nothing() -> None:
    fused = [torch.rand(2, 3, side, side) for side in (8, 4, 4, 2)]
    result = perturb(fused, PerturbConfig(0, 0, 0), torch.Generator())
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(fused, result, strict=True))


def test_perturbation_follows_its_generator_and_bends_in_order() -> None:
    fused = [torch.rand(2, 3, side, side) for side in (8, 4, 4, 2)]

    def bend(seed: int, config: PerturbConfig) -> list[Tensor]:
        return perturb(fused, config, torch.Generator().manual_seed(seed))

    config = PerturbConfig(0.5, 0.2, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(bend(1, config), bend(1, config), strict=True))
    assert not torch.equal(bend(1, config)[0], bend(2, config)[0])
    bent = bend(1, PerturbConfig(0.5, 0, 0))
    for before, after in zip(fused, bent, strict=True):  # an exponent keeps the order of a map's values
        assert torch.equal(before.flatten(2).argsort(dim=2), after.flatten(2).argsort(dim=2))
        assert not torch.allclose(before, after, atol=1e-3)


def moved(config: PerturbConfig, seed: int = 0) -> tuple[list[Tensor], Episodes, Episodes]:
    """Episodes of a bright square, whose priors, images and edges all show the square, moved."""
    square = torch.full((6, 1, 64, 64), -1.0)
    square[:, :, 16:36, 8:28] = 1
    shown = torch.nn.functional.interpolate(square * 0.5 + 0.5, (128, 128))
    images = shown.expand(-1, 3, -1, -1)
    before = Episodes([], None, images, images[:, :2], square, torch.ones_like(square))  # type: ignore[arg-type]
    fused, after = move([shown] * 4, before, config, torch.Generator().manual_seed(seed))
    return fused, before, after


def test_moved_episodes_stay_together() -> None:
    fused, before, after = moved(PerturbConfig())
    half = [torch.nn.functional.avg_pool2d(m, 2) for m in (*fused, after.images[:, :1], after.edges[:, 1:])]
    for maps in half:
        assert (maps - (after.mask * 0.5 + 0.5)).abs().mean() < 0.01
    assert not torch.allclose(after.mask, before.mask)
    areas = (after.mask > 0).sum(dim=(1, 2, 3)) / (before.mask > 0).sum(dim=(1, 2, 3))
    assert areas.max() / areas.min() > 1.2 and areas.min() > 0.25
    again = moved(PerturbConfig())[2]
    assert torch.equal(again.mask, after.mask) and not torch.equal(moved(PerturbConfig(), seed=1)[2].mask, after.mask)


def test_moves_that_are_off_leave_mirrors_only() -> None:
    _, before, after = moved(PerturbConfig(zoom=0, turn=0, shift=0))
    mirrored = 0
    for old, new in zip(before.mask, after.mask, strict=True):
        same, mirror = (torch.allclose(new, image, atol=1e-5) for image in (old, old.flip(-1)))
        assert same or mirror
        mirrored += mirror
    assert 0 < mirrored < len(before.mask)


def test_an_object_is_not_moved_out_of_sight() -> None:
    for seed in range(10):
        _, before, after = moved(PerturbConfig(zoom=0, turn=0, shift=3.0), seed)
        assert ((after.mask > 0).sum(dim=(1, 2, 3)) >= 0.25 * (before.mask > 0).sum(dim=(1, 2, 3))).all()


def test_swapped_levels_show_another_levels_priors() -> None:
    fused = [torch.full((3, 2, side, side), value) for side, value in ((8, 0.1), (4, 0.2), (4, 0.3), (2, 0.4))]
    shown = set()
    for seed in range(20):
        for level in perturb(fused, PerturbConfig(0, 0, 1), torch.Generator().manual_seed(seed)):
            assert level.std() < 1e-5
            shown.add((level.shape[-1], round(float(level[0, 0, 0, 0]), 1)))
    assert len({value for side, value in shown if side == 8}) == 4


# --- steps -----------------------------------------------------------------------------------------------------------


class OneEpisode:
    """A sampler that always draws the same batch."""

    def __init__(self, sampler: EpisodeSampler) -> None:
        self.sampler = sampler

    def draw(self, seed: int, step: int, *rest: object) -> Episodes:
        return self.sampler.draw(0, 0, *rest)


@pytest.mark.parametrize(
    "decoder",
    [
        DECODER_CONFIG,
        dataclasses.replace(DECODER_CONFIG, prediction="epsilon", loss="mse", signal_scale=1.0),
    ],
    ids=["x0 bce_dice", "epsilon mse"],
)
def test_one_episode_is_learned_by_heart(banks: Banks, decoder: DecoderConfig) -> None:
    steps = 25
    config = dataclasses.replace(
        CONFIG, decoder=decoder, perturb=PerturbConfig(0, 0, 0), steps=steps, batch_size=4, learning_rate=1e-2, warmup=5
    )
    trainer = trainer_of(banks, config)
    trainer.sampler = OneEpisode(trainer.sampler)
    losses = [trainer.advance() for _ in range(steps)]
    total = [float(loss.total.detach()) for loss in losses]
    assert np.mean(total[-6:]) < 0.5 * np.mean(total[:4])
    error = [float(loss.error.detach()) for loss in losses]
    assert np.mean(error[-6:]) < np.mean(error[:4])


def test_the_learning_rate_warms_up_and_decays(banks: Banks) -> None:
    trainer = trainer_of(banks, dataclasses.replace(CONFIG, steps=6, warmup=2, learning_rate=0.1))
    rates = []
    for _ in range(6):
        trainer.advance()
        rates.append(trainer.optimiser.param_groups[0]["lr"])
    cosine = [0.05 * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    assert rates == pytest.approx([0.05, 0.1, *cosine])


def test_the_average_follows_the_weights(banks: Banks) -> None:
    at_once = trainer_of(banks, dataclasses.replace(CONFIG, ema=0.0))
    slowly = trainer_of(banks, dataclasses.replace(CONFIG, ema=0.999))
    start = {name: value.clone() for name, value in slowly.averaged.items()}
    for _ in range(2):
        at_once.advance()
        slowly.advance()
    name = "head.1.weight"
    weights = at_once.model.state_dict()
    assert torch.equal(weights[name], slowly.model.state_dict()[name])
    assert torch.equal(at_once.averaged[name], weights[name])
    moved, whole = (slowly.averaged[name] - start[name]).norm(), (weights[name] - start[name]).norm()
    assert 0 < moved < whole


def test_every_backbone_has_its_turn(shapes: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, backbones=("a", "b"), views=ViewsConfig(crops=0, pasted=0))
    folder = LabelledFolder.open(shapes)
    banks = build_banks(folder, [1, 2], config, [encoder(8), encoder(12)], tmp_path, None, progress=False)
    trainer = trainer_of(banks, config)
    drawn = []
    draw = trainer.sampler.draw

    def spy(seed: int, step: int, batch_size: int, features: dict, device: torch.device) -> Episodes:
        drawn.append(features[WHOLE].arrays["level0"].shape[1])
        return draw(seed, step, batch_size, features, device)

    trainer.sampler.draw = spy
    for _ in range(4):
        trainer.advance()
    assert drawn == [8, 12, 8, 12]


def test_a_loss_that_is_no_number_stops_the_run(banks: Banks) -> None:
    trainer = trainer_of(banks)
    with torch.no_grad():
        trainer.model.head[1].bias.fill_(torch.nan)
    before = {name: value.clone() for name, value in trainer.averaged.items()}
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        trainer.advance()
    assert trainer.step == 0 and all(torch.equal(before[name], trainer.averaged[name]) for name in before)


def test_bfloat16_trains(banks: Banks) -> None:
    trainer = trainer_of(banks, dataclasses.replace(CONFIG, bf16=True))
    assert trainer.advance().total.isfinite()
    assert all(value.dtype == torch.float32 for value in trainer.model.state_dict().values())


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_writes_a_checkpoint_a_log_and_a_decoder(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run(tmp_path)
    assert folder == tmp_path / DECODER
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [2, 4, 6]
    decoder = load_decoder(folder)
    assert decoder.config == CONFIG.decoder
    averaged = {key[9:]: value for key, value in state(tmp_path).items() if key.startswith("averaged/")}
    assert_identical(dict(decoder.state_dict()), averaged)
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished is left


def test_stopped_and_gone_on_with_the_weights_are_the_same_bit_for_bit(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    run(tmp_path / "straight")
    for steps in (1, 3, None):
        run(tmp_path / "pieces", stop_after=steps)
    assert_identical(state(tmp_path / "straight"), state(tmp_path / "pieces"))
    again = run(tmp_path / "pieces")  # a run that is done stays as it is
    assert_identical(state(tmp_path / "straight"), state(tmp_path / "pieces"))
    assert load_decoder(again).config == CONFIG.decoder


def test_another_seed_gives_other_weights(run: Callable[..., Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / str(seed), dataclasses.replace(CONFIG, seed=seed), stop_after=1)
    a, b = state(tmp_path / "0"), state(tmp_path / "1")
    assert not torch.equal(a["model/stem.weight"], b["model/stem.weight"])


def test_features_in_memory_give_the_same_weights(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path / "mapped", stop_after=2)
    run(tmp_path / "loaded", stop_after=2, in_memory=True)
    assert_identical(state(tmp_path / "mapped"), state(tmp_path / "loaded"))


def test_checkpoints_do_not_change_the_run(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path / "often", checkpoint_every=1)
    run(tmp_path / "once", checkpoint_every=100)
    assert_identical(state(tmp_path / "often"), state(tmp_path / "once"))


def test_killed_between_checkpoint_and_decoder_the_decoder_is_not_left_behind(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_decoder(run(tmp_path / "straight")).state_dict()

    def die(*_: object) -> None:
        raise Interrupt

    for name in ("save_decoder", "save_checkpoint"):
        out = tmp_path / name
        run(out, stop_after=4)
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, name, die)
            with pytest.raises(Interrupt):
                run(out, checkpoint_every=6)
        assert_identical(dict(load_decoder(run(out)).state_dict()), dict(expected))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import test_training as t
from pathlib import Path
from diffup.training import bank, checkpoint, trainer
torch.set_num_threads(1)
bank._CHUNK = 10
encoder, out, cache, moment = t.encoder(), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
plain_pyramid, plain_save, count = encoder.pyramid, checkpoint.save_file, [0]

def pyramid(images):
    count[0] += 1
    if moment == "bank" and count[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain_pyramid(images)

def save_file(tensors, path, metadata):
    plain_save(tensors, path, metadata=metadata)
    if moment == "checkpoint" and metadata["step"] == "4":
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

encoder.pyramid, checkpoint.save_file = pyramid, save_file
trainer.train(sys.argv[2], out, t.CONFIG, [encoder], cache=cache, checkpoint_every=2, progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_killed_at_any_moment_and_gone_on_with_the_weights_are_the_same(
    shapes: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    here = Path(__file__).parent
    out, cache = tmp_path / "killed", tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    for moment in ("bank", "checkpoint"):
        command = [sys.executable, "-c", KILLED, str(here), str(shapes), str(out), str(cache), moment]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert (out / CHECKPOINT).exists() == (moment == "checkpoint")
    assert list(out.glob(".checkpoint-*"))  # half a checkpoint lies beside the whole one of step 2
    run(out, cache=cache)
    run(tmp_path / "straight")
    assert_identical(state(tmp_path / "straight"), state(out))


def test_a_run_starts_from_a_decoder_that_is_given(run: Callable[..., Path], tmp_path: Path) -> None:
    decoder = random_decoder(DECODER_CONFIG, seed=4)
    save_decoder(tmp_path / "initial", decoder.state_dict(), DECODER_CONFIG)
    config = dataclasses.replace(CONFIG, learning_rate=1e-12, weight_decay=0.0)
    trained = load_decoder(run(tmp_path / "run", config, initial=tmp_path / "initial", stop_after=1))
    for name, value in decoder.state_dict().items():
        assert torch.allclose(trained.state_dict()[name], value, atol=1e-8)
    with pytest.raises(TrainingError, match="initial"):  # its checkpoint is another run's
        run(tmp_path / "run", config, stop_after=1)


def test_a_decoder_of_another_architecture_is_no_start(run: Callable[..., Path], tmp_path: Path) -> None:
    other = dataclasses.replace(DECODER_CONFIG, channels=(8, 8, 8, 8))
    save_decoder(tmp_path / "initial", random_decoder(other).state_dict(), other)
    with pytest.raises(ConfigError, match="initial"):
        run(tmp_path / "run", initial=tmp_path / "initial")


# --- errors of a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: 0.003 there, 0.001 here"),
        ({"decoder": dataclasses.replace(DECODER_CONFIG, shift="none")}, r"decoder\.shift: quadratic there, none here"),
        ({"steps": 7}, "steps: 6 there, 7 here"),
    ],
)
def test_a_run_under_another_config_is_not_gone_on_with(
    run: Callable[..., Path], tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    run(tmp_path, stop_after=1)
    before = state(tmp_path)
    with pytest.raises(TrainingError, match=named):
        run(tmp_path, dataclasses.replace(CONFIG, **changes))
    assert_identical(before, state(tmp_path))


def test_a_run_with_another_encoder_is_not_gone_on_with(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match="backbones"):
        run(tmp_path, backbones=[encoder(12)])


def test_a_damaged_checkpoint_is_said_so(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path, stop_after=1)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match="cannot be read"):
        run(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        run(tmp_path)


def test_what_does_not_fit_is_refused_before_any_work(run: Callable[..., Path], shapes: Path, tmp_path: Path) -> None:
    idle: list[Backbone] = [encoder(), encoder()]
    with pytest.raises(ConfigError, match="backbones: 2 encoders given for the 1"):
        run(tmp_path, backbones=idle)
    for option in ("checkpoint_every", "stop_after"):
        with pytest.raises(ConfigError, match=f"{option}=0"):
            run(tmp_path, **{option: 0})
    with pytest.raises(DataError, match="fold=7"):
        run(tmp_path, dataclasses.replace(CONFIG, folds=(7,)))
    with pytest.raises(DataError, match=r"splits\.json"):
        train(tmp_path, tmp_path / "out", CONFIG, [encoder()], progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"backgrounds=.*empty"):
        run(tmp_path, cache=tmp_path / "fresh", backgrounds=tmp_path / "empty")
    assert not any(backbone.calls for backbone in idle)


def test_a_folder_without_anything_to_train_on_is_said_so(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    splits = json.loads((data / "splits.json").read_text())
    (data / "splits.json").write_text(json.dumps(splits | {"min_area_fraction": 0.99}))
    with pytest.raises(TrainingError, match="two images"):
        train(data, tmp_path / "out", CONFIG, [encoder()], progress=False)


# --- the config ------------------------------------------------------------------------------------------------------

train_configs = st.builds(
    TrainConfig,
    views=st.builds(ViewsConfig, crops=st.integers(0, 9), crop_scale=st.floats(0.01, 1), jitter=st.floats(0, 0.99)),
    episodes=st.builds(EpisodesConfig, max_shots=st.integers(1, 9), mixed=st.floats(0, 1), pasted=st.floats(0, 0.6)),
    perturb=st.builds(PerturbConfig, gamma=st.floats(0, 2), swap_levels=st.floats(0, 1)),
    backbones=st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3).map(tuple),
    folds=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    steps=st.integers(1, 10**6),
    learning_rate=st.floats(1e-6, 1),
    bf16=st.booleans(),
    seed=st.integers(0, 2**31),
)


@given(train_configs)
@settings(max_examples=40, deadline=None)
def test_the_config_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not valid JSON"),
        ('{"step": 5}', "unknown field step"),
        ('{"steps": "5"}', "steps must be of type int"),
        ('{"folds": ["0"]}', r"folds\[0\] must be of type int"),
        ('{"decoder": {"chanels": []}}', r"unknown field decoder\.chanels"),
        ('{"decoder": {"priors": {"grid": 1.5}}}', r"decoder\.priors\.grid must be of type int"),
        ('{"backbones": "timm:resnet50"}', "backbones must be a list"),
        ('{"learning_rate": NaN}', "learning_rate"),
    ],
)
def test_broken_configs_are_refused_by_the_name_of_the_field(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig.from_json(text)


@pytest.mark.parametrize(
    ("make", "fields", "named"),
    [
        (TrainConfig, {"backbones": ()}, "backbones is empty"),
        (TrainConfig, {"steps": 0}, "steps=0"),
        (TrainConfig, {"batch_size": 0}, "batch_size=0"),
        (TrainConfig, {"learning_rate": 0.0}, "learning_rate=0.0"),
        (TrainConfig, {"gradient_norm": 0.0}, "gradient_norm=0.0"),
        (TrainConfig, {"warmup": -1}, "warmup=-1"),
        (TrainConfig, {"weight_decay": -0.1}, "weight_decay=-0.1"),
        (TrainConfig, {"noisy_steps": -1.0}, "noisy_steps=-1.0"),
        (TrainConfig, {"ema": 1.0}, "ema=1.0"),
        (TrainConfig, {"self_aligned": 1.5}, "self_aligned=1.5"),
        (TrainConfig, {"seed": -1}, "seed=-1"),
        (ViewsConfig, {"crops": -1}, "crops=-1"),
        (ViewsConfig, {"pasted": -1}, "pasted=-1"),
        (ViewsConfig, {"crop_scale": 0.0}, "crop_scale=0.0"),
        (ViewsConfig, {"jitter": 1.0}, "jitter=1.0"),
        (EpisodesConfig, {"max_shots": 0}, "max_shots=0"),
        (EpisodesConfig, {"mask": 0.9}, "sum to 1"),
        (EpisodesConfig, {"mask": 0.75, "none": -0.15}, "sum to 1"),
        (EpisodesConfig, {"mixed": 1.1}, "mixed=1.1"),
        (EpisodesConfig, {"pasted": 0.7, "cropped": 0.7}, "more than all queries"),
        (PerturbConfig, {"gamma": -1.0}, "gamma"),
        (PerturbConfig, {"swap_levels": 2.0}, "swap_levels"),
    ],
)
def test_values_out_of_range_are_refused(make: type, fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**fields)
