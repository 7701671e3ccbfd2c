"""Training episodes, and the random changes of their priors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import CONFIG, STILL, dominant, sampler_of
from torch import Tensor

from diffup.errors import TrainingError
from diffup.priors import PriorConfig
from diffup.training.augment import move
from diffup.training.config import EpisodesConfig, PerturbConfig
from diffup.training.perturb import perturb
from diffup.training.prepare import Banks
from diffup.training.sampler import Episodes, EpisodeSampler

# --- episodes --------------------------------------------------------------------------------------------------------


def told_by_source(banks: Banks) -> dict[str, SimpleNamespace]:
    """Banks of features that hold nothing but the number of the image that an entry shows."""
    told = {}
    for group, bank in banks.images.items():
        sources = np.array(bank.arrays["source"], dtype=np.float32)[:, None, None, None]
        told[group] = SimpleNamespace(arrays={f"level{level}": sources for level in range(4)})
    return told


SHOWN = dataclasses.replace(CONFIG.episodes, absent=0.0)
"""Every query shows the class."""


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
    for episodes in draws(sampler_of(banks, SHOWN), banks.features[0]):
        views = episodes.support.valid.shape[1]
        shots.add(views)
        assert episodes.images.shape == (4, 3, 128, 128) and 0 <= episodes.images.min() <= episodes.images.max() <= 1
        assert episodes.mask.shape == episodes.valid.shape == (4, 1, 64, 64)
        assert episodes.mask.min() >= -1 and episodes.mask.max() <= 1
        assert (episodes.mask > 0).flatten(1).any(dim=1).all()  # the class is there
        assert 0 <= episodes.valid.min() <= episodes.valid.max() <= 1
        assert [tuple(level.shape) for level in episodes.query] == [(4, 8, 3, 3)] * 4
        assert [tuple(level.shape) for level in episodes.support.levels] == [
            (4, views, *level.shape[1:]) for level in episodes.query
        ]
        assert episodes.support.foreground.shape == episodes.support.background.shape == (4, views, 128, 128)
        assert episodes.support.valid[:, 0].all()
    assert shots == {2, 3}  # one shot comes as three views


def test_held_out_classes_are_never_the_target(banks: Banks) -> None:
    sampler = sampler_of(banks, SHOWN)
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
    config = EpisodesConfig(max_shots=3, same_image=same_image, pasted=0, absent=0)
    for episodes in draws(sampler_of(banks, config), told_by_source(banks)):
        query, supports = episodes.query[0][:, 0, 0, 0], episodes.support.levels[0][:, :, 0, 0, 0]
        assert ((query[:, None] == supports).all(dim=1) == bool(same_image)).all()
        if not same_image:
            assert not (query[:, None] == supports).any()


def test_supports_differ_where_there_are_enough(banks: Banks) -> None:
    config = EpisodesConfig(max_shots=2, same_image=0.0)
    for episodes in draws(sampler_of(banks, config), told_by_source(banks)):
        supports = episodes.support.levels[0][:, :, 0, 0, 0]
        if supports.shape[1] == 2:  # three are the views of one
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


shares = st.floats(0, 1)
PRIORS = PriorConfig()
MEANS = slice(0, len(PRIORS.kinds))
VARIANCES = slice(len(PRIORS.kinds), 2 * len(PRIORS.kinds))
SALIENCY = PRIORS.prior_channels - 1
ABSOLUTE = slice(SALIENCY - len(PRIORS.kinds), SALIENCY)
CALIBRATED = SALIENCY - len(PRIORS.kinds) - 1


def bent(fused: list[Tensor], seed: int = 0, **changes: float) -> list[Tensor]:
    """Priors after a single kind of change."""
    return perturb(fused, dataclasses.replace(STILL, **changes), PRIORS, torch.Generator().manual_seed(seed))


def random_priors(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(batch, PRIORS.prior_channels, side, side, generator=generator) for side in (8, 4, 4, 2)]


@given(
    st.builds(
        PerturbConfig, gamma=shares, noise=st.floats(0, 0.5), swap_levels=shares, misplace=shares, flatten=shares
    ),
    st.sampled_from(
        [
            PRIORS,
            PriorConfig(kinds=("match",), saliency=False),
            PriorConfig(calibration=False, extra_priors=0),
            PriorConfig(absolute=False),
        ]
    ),
    st.integers(1, 3),
    st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_perturbed_priors_keep_their_shape_and_range(
    config: PerturbConfig, priors: PriorConfig, batch: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = priors.prior_channels
    fused = [torch.rand(batch, channels, side, side, generator=generator) for side in (9, 6, 6, 2)]
    result = perturb(fused, config, priors, generator)
    for before, after in zip(fused, result, strict=True):
        assert after.shape == before.shape
        assert after.isfinite().all() and after.min() >= 0 and after.max() <= 1


def test_no_perturbation_changes_nothing() -> None:
    fused = random_priors()
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(fused, bent(fused), strict=True))


def test_perturbation_follows_its_generator_and_bends_in_order() -> None:
    fused = random_priors()
    everything = {"gamma": 0.5, "noise": 0.2, "swap_levels": 0.3, "misplace": 0.5, "flatten": 0.4}
    again, other = bent(fused, 1, **everything), bent(fused, 2, **everything)
    assert all(torch.equal(a, b) for a, b in zip(bent(fused, 1, **everything), again, strict=True))
    assert not torch.equal(again[0], other[0])
    for before, after in zip(fused, bent(fused, 1, gamma=0.5), strict=True):  # an exponent keeps the order of values
        assert torch.equal(before.flatten(2).argsort(dim=2), after.flatten(2).argsort(dim=2))
        assert not torch.allclose(before, after, atol=1e-3)


def test_flattened_maps_keep_their_order_and_lose_contrast() -> None:
    black_and_white = [(level > 0.5) * 0.98 + level * 0.02 for level in random_priors(20)]
    before, after = black_and_white[0], bent(black_and_white, flatten=0.4)[0]
    for kept in (VARIANCES, slice(CALIBRATED, SALIENCY)):
        assert torch.allclose(after[:, kept], before[:, kept], atol=2e-6)
    for changed in (MEANS, slice(SALIENCY, None)):
        first, second = before[:, changed].flatten(2), after[:, changed].flatten(2)
        assert torch.equal(first.argsort(dim=2), second.argsort(dim=2))
        contrast = second.amax(dim=2) - second.amin(dim=2)
        assert contrast.min() >= 0.55 and contrast.max() <= 1 and contrast.std() > 0.05
        assert (second.std(dim=2) < first.std(dim=2)).all()


def test_absolute_priors_keep_most_of_their_scale() -> None:
    """A fifth of the deviations that other maps have; the bounds are five standard deviations of those of 400 draws."""
    half = [torch.full((400, PRIORS.prior_channels, side, side), 0.5) for side in (8, 4, 4, 2)]
    others = [c for c in range(PRIORS.prior_channels) if c not in range(*ABSOLUTE.indices(SALIENCY))]
    for level in bent(half, gamma=0.35):
        exponents = torch.log(-torch.log2(level[:, :, 0, 0]))  # 0.5 ** exponent
        assert float(exponents[:, ABSOLUTE].std()) == pytest.approx(0.2 * 0.35, rel=5 / (2 * 400 * 3) ** 0.5)
        assert float(exponents[:, others].std()) == pytest.approx(0.35, rel=5 / (2 * 400 * len(others)) ** 0.5)
    for level in bent(half, noise=0.05):
        deviations = (level - 0.5).square().mean(dim=(0, 2, 3)).sqrt()
        assert float(deviations[ABSOLUTE].mean() / deviations[others].mean()) == pytest.approx(0.2, rel=0.2)


def test_misplaced_priors_look_alike_elsewhere() -> None:
    fused = random_priors(40)
    result = bent(fused, misplace=0.4)
    same = [torch.isclose(a, b, atol=2e-6).flatten(2).all(dim=2) for a, b in zip(fused, result, strict=True)]
    for level, kept in enumerate(same):
        assert (kept[:, :SALIENCY] == kept[:, :1]).all()  # all of a level's priors together
        assert 5 < kept[:, 0].sum() < 35 if level < 2 else kept[:, :SALIENCY].all()
    assert 5 < same[3][:, SALIENCY].sum() < 35 and torch.equal(same[2][:, SALIENCY], same[3][:, SALIENCY])
    assert not torch.equal(same[0][:, 0], same[1][:, 0])
    for before, after in zip(fused, result, strict=True):
        histograms = [maps.flatten(2).sort(dim=2).values for maps in (before, after)]
        assert torch.allclose(*histograms, atol=2e-6)


def test_the_last_two_levels_trade_places() -> None:
    values = (0.1, 0.2, 0.3, 0.4)
    fused = [
        torch.full((40, PRIORS.prior_channels, side, side), value)
        for side, value in zip((8, 4, 4, 2), values, strict=True)
    ]
    result = bent(fused, swap_levels=0.5)
    assert torch.equal(result[0], fused[0]) and torch.equal(result[1], fused[1])
    third, fourth = (level.mean(dim=(1, 2, 3)) for level in result[2:])
    swapped = third > 0.35
    assert 10 < swapped.sum() < 30
    assert torch.allclose(third[swapped], torch.tensor(0.4)) and torch.allclose(third[~swapped], torch.tensor(0.3))
    assert torch.allclose(third + fourth, torch.tensor(0.7))


def moved(config: PerturbConfig, seed: int = 0) -> tuple[Episodes, Episodes]:
    """Episodes of a bright square, whose features, text similarities, images and edges all show the square, moved."""
    square = torch.full((6, 1, 64, 64), -1.0)
    square[:, :, 16:36, 8:28] = 1
    shown = torch.nn.functional.interpolate(square * 0.5 + 0.5, (128, 128))
    images = shown.expand(-1, 3, -1, -1)
    before = Episodes([shown] * 4, None, shown, images, images[:, :2], square, torch.ones_like(square))
    return before, move(before, config, torch.Generator().manual_seed(seed))


def test_moved_episodes_stay_together() -> None:
    before, after = moved(PerturbConfig())
    shown = [*after.query, after.text, after.images[:, :1], after.edges[:, 1:]]
    for half in (torch.nn.functional.avg_pool2d(maps, 2) for maps in shown):
        assert (half - (after.mask * 0.5 + 0.5)).abs().mean() < 0.01
    assert not torch.allclose(after.mask, before.mask)
    areas = (after.mask > 0).sum(dim=(1, 2, 3)) / (before.mask > 0).sum(dim=(1, 2, 3))
    assert areas.max() / areas.min() > 1.2 and areas.min() > 0.25
    again = moved(PerturbConfig())[1]
    assert torch.equal(again.mask, after.mask) and not torch.equal(moved(PerturbConfig(), seed=1)[1].mask, after.mask)


def test_a_query_without_the_class_is_moved_too() -> None:
    """Nothing can be moved out of sight; its features go with its image."""
    generator = torch.Generator().manual_seed(0)
    images, empty = torch.rand(6, 3, 128, 128, generator=generator), torch.full((6, 1, 64, 64), -1.0)
    before = Episodes([images], None, None, images, images[:, :2], empty, torch.ones_like(empty))
    after = move(before, PerturbConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(after.mask, empty) and after.text is None and after.support is None
    assert torch.equal(after.query[0], after.images) and torch.equal(after.edges, after.images[:, :2])
    for old, new in zip(images, after.images, strict=True):
        assert not torch.allclose(old, new, atol=0.05) and not torch.allclose(old.flip(-1), new, atol=0.05)


def test_moves_that_are_off_leave_mirrors_only() -> None:
    before, after = moved(PerturbConfig(zoom=0, turn=0, shift=0))
    mirrored = 0
    for old, new in zip(before.mask, after.mask, strict=True):
        same, mirror = (torch.allclose(new, image, atol=1e-5) for image in (old, old.flip(-1)))
        assert same or mirror
        mirrored += mirror
    assert 0 < mirrored < len(before.mask)


def test_an_object_is_not_moved_out_of_sight() -> None:
    for seed in range(10):
        before, after = moved(PerturbConfig(zoom=0, turn=0, shift=3.0), seed)
        assert ((after.mask > 0).sum(dim=(1, 2, 3)) >= 0.25 * (before.mask > 0).sum(dim=(1, 2, 3))).all()
