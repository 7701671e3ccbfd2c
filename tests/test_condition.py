"""The `Condition`: the same for every encoder, annotation and number of shots (the paper's central claim, exactly)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from fakes import FakeBackbone, pad_channels, random_affinity, random_condition, random_episode, rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor

from diffup.errors import ConfigError
from diffup.inputs.annotations import Box, Mask, Points, Scribble, pair_supports
from diffup.inputs.images import resize_image
from diffup.priors.affinity import HEADS, KEY_SIDE
from diffup.priors.condition import (
    SIZES,
    Condition,
    SupportFeatures,
    absolute_priors,
    build_condition,
    fused_priors,
    mean_prior,
)
from diffup.priors.config import PRIOR_KINDS, PriorConfig
from diffup.priors.features import possible_share
from diffup.priors.level import annotation_at_level, pool_to_grid
from diffup.priors.similarity import resize_weights
from diffup.priors.support import plan_views, support_features, view_regions
from diffup.priors.views import warp

CONFIGS = {
    "default": PriorConfig(grid=8),
    "paper": PriorConfig(kinds=("prototype",), centre=False, affinity_power=1.0, layout="own", grid=8),
    "plain": PriorConfig(affinity=False, self_affinity=False, extra_priors=0, edges=False, layout="own", grid=8),
    "match first": PriorConfig(kinds=("match", "contrast"), extra_priors=1, grid=8),
}

CONTRAST = 2 * len(PRIOR_KINDS) + PriorConfig().extra_priors
"""Channel of a level's priors that holds the calibrated contrast, by default."""


def tensors(condition: Condition) -> list[Tensor]:
    return [*condition.levels, condition.prior, condition.image, *condition.affinity]


def assert_shape(condition: Condition, config: PriorConfig, batch: int) -> None:
    assert [tuple(level.shape) for level in condition.levels] == [
        (batch, config.condition_channels, side, side) for side in SIZES
    ]
    assert condition.prior.shape == (batch, 1, 64, 64) and condition.image.shape == (batch, 3, 64, 64)
    heads = HEADS if config.self_affinity else {}
    assert [tuple(affinity.shape) for affinity in condition.affinity] == [
        (batch, len(h), side**2, KEY_SIDE**2) for side, h in heads.items()
    ]
    for tensor in tensors(condition):
        assert tensor.isfinite().all()
        assert tensor.min() >= -1 - 1e-6 and tensor.max() <= 1 + 1e-6


def chosen(support: SupportFeatures, which: list[int] | Tensor) -> SupportFeatures:
    """Some of the supports, or all in another order."""
    return SupportFeatures(
        tuple(level[:, which] for level in support.levels),
        support.foreground[:, which],
        support.background[:, which],
        support.valid[:, which],
        support.annotated[:, which],
        len(which),
    )


def assert_same(a: Condition, b: Condition, atol: float = 1e-5) -> None:
    for one, other in zip(tensors(a), tensors(b), strict=True):
        assert torch.allclose(one, other, atol=atol), float((one - other).abs().max())


def through(change: Callable[[Tensor], Tensor], query: Sequence[Tensor], support: SupportFeatures) -> tuple:
    levels = tuple(change(level) for level in support.levels)
    return [change(level) for level in query], replace(support, levels=levels)


widths = st.lists(st.integers(1, 9), min_size=4, max_size=4)
sides = st.lists(st.integers(1, 12), min_size=4, max_size=4).map(lambda values: sorted(values, reverse=True))
configs = st.builds(
    PriorConfig,
    kinds=st.lists(st.sampled_from(PRIOR_KINDS), min_size=1, unique=True).map(tuple),
    centre=st.booleans(),
    affinity=st.booleans(),
    affinity_power=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    normalisation=st.sampled_from(["minmax", "rank", "affine"]),
    extra_priors=st.integers(0, 4),
    layout=st.sampled_from(["own", "all"]),
    saliency=st.booleans(),
    calibration=st.booleans(),
    absolute=st.booleans(),
    self_affinity=st.booleans(),
    edges=st.booleans(),
    grid=st.integers(1, 9),
)


@given(widths, sides, st.integers(1, 5), configs, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_shape_depends_on_the_config_alone(
    widths: list[int], sides: list[int], shots: int, config: PriorConfig, seed: int
) -> None:
    episode = random_episode(widths, sides, shots, seed=seed)
    assert_shape(build_condition(*episode, config), config, batch=2)


@given(st.sampled_from(["l2_unit", "l2", "l1"]), st.sampled_from(["exponential", "reciprocal"]))
@settings(max_examples=6, deadline=None)
def test_every_metric_of_table_7_gives_a_condition(metric: str, conversion: str) -> None:
    config = PriorConfig(metric=metric, conversion=conversion, grid=8)
    assert_shape(build_condition(*random_episode(), config), config, batch=2)


def test_non_square_features_are_welcome() -> None:
    query, support, images = random_episode()
    wide = [torch.cat([level, level.flip(-1)], dim=-1) for level in query]
    tall = replace(support, levels=tuple(torch.cat([level, level], dim=-2) for level in support.levels))
    for config in CONFIGS.values():
        assert_shape(build_condition(wide, tall, images, config), config, batch=2)


@pytest.mark.parametrize("shots", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_rotation_of_feature_space_changes_nothing(name: str, shots: int) -> None:
    query, support, images = random_episode(shots=shots, batch=4)
    turned = through(rotate, query, support)
    assert not torch.allclose(turned[0][0], query[0], atol=0.1)
    assert_same(build_condition(query, support, images, CONFIGS[name]), build_condition(*turned, images, CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_channels_of_zeros_change_nothing(name: str) -> None:
    query, support, images = random_episode()
    padded = through(pad_channels, query, support)
    assert_same(build_condition(query, support, images, CONFIGS[name]), build_condition(*padded, images, CONFIGS[name]))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_scale_of_the_features_changes_nothing(scale: float) -> None:
    query, support, images = random_episode()
    scaled = through(lambda level: level * scale, query, support)
    config = CONFIGS["default"]
    assert_same(build_condition(query, support, images, config), build_condition(*scaled, images, config))


@given(st.integers(2, 4).flatmap(lambda shots: st.permutations(range(shots))), st.sampled_from(sorted(CONFIGS)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_supports_does_not_matter(order: list[int], name: str) -> None:
    query, support, images = random_episode(shots=len(order))
    shuffled = chosen(support, order)
    assert_same(
        build_condition(query, support, images, CONFIGS[name]), build_condition(query, shuffled, images, CONFIGS[name])
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_supports_give_one_supports_priors_and_no_variance(name: str) -> None:
    config = CONFIGS[name]
    query, support, _ = random_episode(shots=1)
    tripled = SupportFeatures(
        tuple(level.expand(-1, 3, -1, -1, -1) for level in support.levels),
        *(
            part.expand(-1, 3, *part.shape[2:])
            for part in (support.foreground, support.background, support.valid, support.annotated)
        ),
        shots=1,
    )
    kinds = len(config.kinds)
    for one, three in zip(fused_priors(query, support, config), fused_priors(query, tripled, config), strict=True):
        assert torch.allclose(one, three, atol=1e-6)
        assert three[:, kinds : 2 * kinds].max() < 1e-9
        for extra in range(config.extra_priors):
            assert torch.allclose(three[:, 2 * kinds + extra], three[:, 0], atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_episodes_padded_to_more_shots_are_the_same(name: str) -> None:
    query, support, images = random_episode(shots=3)
    padding = [torch.zeros_like(part[:, :1]) for part in (*support.levels, support.foreground)]
    padded = SupportFeatures(
        tuple(torch.cat([level, zeros], dim=1) for level, zeros in zip(support.levels, padding[:4], strict=True)),
        torch.cat([support.foreground, padding[4]], dim=1),
        torch.cat([support.background, padding[4]], dim=1),
        torch.tensor([[True, True, True, False]] * 2),
        torch.ones(2, 4, dtype=torch.bool),
        support.shots,
    )
    assert_same(
        build_condition(query, support, images, CONFIGS[name]), build_condition(query, padded, images, CONFIGS[name])
    )


def test_episodes_of_a_batch_do_not_see_each_other() -> None:
    query, support, images = random_episode(batch=3)
    config = CONFIGS["default"]
    together = build_condition(query, support, images, config)
    for index in range(3):
        one = slice(index, index + 1)
        alone = SupportFeatures(
            tuple(level[one] for level in support.levels),
            support.foreground[one],
            support.background[one],
            support.valid[one],
            support.annotated[one],
            support.shots,
        )
        condition = build_condition([level[one] for level in query], alone, images[one], config)
        for tensor, whole in zip(tensors(condition), tensors(together), strict=True):
            assert torch.allclose(tensor, whole[one], atol=1e-5)


def test_own_layout_gives_each_level_its_own_backbone_level_and_all_gives_every_level_all() -> None:
    query, support, images = random_episode()
    own, every = replace(CONFIGS["default"], layout="own"), CONFIGS["default"]
    before, before_all = build_condition(query, support, images, own), build_condition(query, support, images, every)
    query[2] = torch.randn(query[2].shape, generator=torch.Generator().manual_seed(9))
    after, after_all = build_condition(query, support, images, own), build_condition(query, support, images, every)
    changed = [not torch.equal(a, b) for a, b in zip(before.levels, after.levels, strict=True)]
    assert changed == [False, False, True, False]
    channels = own.prior_channels
    for a, b in zip(before_all.levels, after_all.levels, strict=True):
        differing = [not torch.equal(a[:, i], b[:, i]) for i in range(a.shape[1])]
        third = range(2 * channels, 3 * channels)
        assert {i for i, different in enumerate(differing) if different} <= set(third) and any(differing)
    for index in range(4):  # a level's own priors are the same in both layouts
        block = before_all.levels[index][:, index * channels : (index + 1) * channels]
        assert torch.equal(block, before.levels[index][:, :channels])


def test_the_prior_is_the_mean_of_kinds_over_the_last_two_levels() -> None:
    levels = [torch.rand(1, 8, side, side) for side in (16, 8, 8, 8)]
    expected = (levels[2][:, :3].mean(dim=1) + levels[3][:, :3].mean(dim=1)) / 2
    assert torch.allclose(mean_prior(levels, 8, kinds=3)[:, 0], expected, atol=1e-6)


def test_edge_channels_follow_the_priors_and_can_be_left_out() -> None:
    query, support, images = random_episode()
    config = replace(CONFIGS["default"], calibration=False)
    with_edges = build_condition(query, support, images, config)
    without = build_condition(query, support, images, replace(config, edges=False))
    for a, b in zip(with_edges.levels, without.levels, strict=True):
        assert torch.equal(a[:, :-2], b)
        assert a[:, -2:].std() > 0
    other = build_condition(query, support, torch.rand(images.shape), config)
    for a, b in zip(with_edges.levels, other.levels, strict=True):
        assert torch.equal(a[:, :-2], b[:, :-2]) and not torch.equal(a[:, -2:], b[:, -2:])


def planted_episode() -> tuple[list[Tensor], SupportFeatures]:
    """Features in which the class, and a distractor that the support shows too, are unmistakable."""
    generator = torch.Generator().manual_seed(3)
    ground, thing, other = torch.randn(3, 16, generator=generator)
    labels = torch.zeros(2, 16, 16, dtype=torch.long)  # query, support
    labels[0, 2:8, 9:15], labels[0, 10:14, 2:6] = 1, 2
    labels[1, 4:12, 1:7], labels[1, 9:15, 10:15] = 1, 2
    features = torch.stack([ground, thing, other])[labels].permute(0, 3, 1, 2)
    features = features + 0.1 * torch.randn(features.shape, generator=generator)
    levels = [features, *(torch.nn.functional.avg_pool2d(features, k) for k in (2, 2, 4))]
    foreground = torch.nn.functional.interpolate((labels[1:] == 1).float()[None], (128, 128))
    yes = torch.ones(1, 1, dtype=torch.bool)
    support = SupportFeatures(tuple(level[1:, None] for level in levels), foreground, 1 - foreground, yes, yes, 1)
    return [level[:1] for level in levels], support


@pytest.mark.parametrize("kind", PRIOR_KINDS)
@pytest.mark.parametrize("affinity", [True, False])
def test_every_kind_of_prior_finds_the_class(kind: str, affinity: bool) -> None:
    query, support = planted_episode()
    prior = fused_priors(query, support, PriorConfig(kinds=(kind,), affinity=affinity, grid=32))[0][0, 0]
    inside, distractor = prior[2:8, 9:15], prior[10:14, 2:6]
    assert inside.mean() > 0.8 and distractor.mean() < 0.5
    assert inside.min() > max(prior[:, :8].max(), prior[10:].max())


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_without_a_mask_the_prior_is_finite_and_says_something(kind: str) -> None:
    query, support = planted_episode()
    everything = replace(
        support,
        foreground=torch.ones_like(support.foreground),
        background=torch.zeros_like(support.background),
        annotated=torch.zeros_like(support.annotated),
    )
    for config in (PriorConfig(kinds=(kind,), grid=16), PriorConfig(kinds=(kind,), affinity=False, grid=16)):
        for level in fused_priors(query, everything, config):
            assert level.isfinite().all()
            assert level[0, 0].max() - level[0, 0].min() > 0.9
    condition = build_condition(query, everything, torch.rand(1, 3, 128, 128), PriorConfig(grid=16))
    assert_shape(condition, PriorConfig(grid=16), batch=1)
    assert condition.prior.std() > 0.05


def test_without_a_mask_what_stands_out_of_the_support_is_found() -> None:
    query, support = planted_episode()
    features = [level.clone() for level in query]
    # A support whose only thing is the class: the distractor is painted over with ground.
    views = tuple(level.clone() for level in support.levels)
    for level in views:
        side = level.shape[-1]
        ground = level[..., :1, :1].clone()
        level[..., round(side * 0.55) :, round(side * 0.6) :] = ground
    bare = replace(
        support,
        levels=views,
        foreground=torch.ones_like(support.foreground),
        background=torch.zeros_like(support.background),
        annotated=torch.zeros_like(support.annotated),
    )
    prior = fused_priors(features, bare, PriorConfig(grid=32))[0][0, 0]
    assert prior[2:8, 9:15].mean() > prior[10:14, 2:6].mean() + 0.2
    assert prior[2:8, 9:15].mean() > 0.8


def test_the_last_map_of_a_level_is_what_stands_out_of_the_query() -> None:
    query, support = planted_episode()
    salient = fused_priors(query, support, PriorConfig(grid=32))[0][0, -1]
    assert min(salient[2:8, 9:15].mean(), salient[10:14, 2:6].mean()) > 0.7 > 0.4 > salient[:, :2].mean()
    assert PriorConfig(saliency=False).condition_channels == PriorConfig().condition_channels - 4


def test_the_calibrated_contrast_is_on_the_supports_own_scale() -> None:
    query, support = planted_episode()
    config = PriorConfig(affinity=False, grid=32)
    own = [level[:, 0] for level in support.levels]
    foreground = resize_weights(support.foreground[:, 0], (16, 16)).flatten(1)
    map_of_itself = fused_priors(own, support, config)[0][:, CONTRAST].flatten(1)
    # Means over foreground and background are what the scale is made of; only what lies beyond it is cut off.
    assert float((map_of_itself * foreground).sum() / foreground.sum()) == pytest.approx(2 / 3, abs=0.01)
    assert float((map_of_itself * (1 - foreground)).sum() / (1 - foreground).sum()) == pytest.approx(1 / 3, abs=0.02)
    shown = fused_priors(query, support, PriorConfig(grid=32))[0][0]
    assert shown[CONTRAST, 2:8, 9:15].mean() > 0.55 > 0.45 > shown[CONTRAST, :2].mean()


def test_the_calibrated_contrast_sees_that_the_class_is_absent() -> None:
    query, support = planted_episode()
    empty = [level.clone() for level in query]
    for level in empty:
        level[:] = level[..., :1, :1]
        level += 0.1 * torch.randn(level.shape, generator=torch.Generator().manual_seed(0))
    shown = fused_priors(empty, support, PriorConfig(grid=32))[0][0]
    assert shown[0].max() > 0.99  # the other priors are stretched
    assert shown[CONTRAST].max() < 0.5


def test_the_share_that_may_be_the_class() -> None:
    _, support, _ = random_episode(batch=2, shots=2)
    background = torch.zeros(2, 2, 128, 128)
    background[0, 0, 16:] = 1  # an eighth may be the class
    background[0, 1] = 1
    valid = torch.tensor([[True, False], [True, True]])
    share = possible_share(replace(support, background=background, valid=valid))
    assert share.tolist() == pytest.approx([1 + math.log10(1 / 8) / 3, 1.0])
    background[0, 0] = 1
    assert float(possible_share(replace(support, background=background, valid=valid))[0]) == 0


def test_pooling_to_a_grid_never_enlarges() -> None:
    features = torch.rand(2, 3, 20, 5)
    assert pool_to_grid(features, 8).shape == (2, 3, 8, 5)
    assert pool_to_grid(features, 24) is features
    assert torch.allclose(pool_to_grid(features, 10)[..., 0, 0], features[:, :, :2, 0].mean(dim=2))


def test_repeat_keeps_members_together() -> None:
    condition = build_condition(*random_episode(batch=2), CONFIGS["default"])
    repeated = condition.repeat(3)
    shared = len(condition.affinity)
    for one, many in zip(tensors(condition)[:-shared], tensors(repeated)[:-shared], strict=True):
        assert torch.equal(many, torch.cat([one, one, one]))
    assert all(one is many for one, many in zip(condition.affinity, repeated.affinity, strict=True))  # not copied


def spelled_out(condition: Condition) -> Condition:
    """The same condition with the affinities of every row written out."""
    rows = len(condition.prior)
    return replace(condition, affinity=tuple(a[torch.arange(rows) % len(a)] for a in condition.affinity))


def classes_of(queries: int, classes: int) -> Condition:
    """The condition of some queries for several classes, as inference makes it: queries within classes."""
    affinity = random_affinity(queries)
    parts = [replace(random_condition(CONFIGS["default"], queries, seed=c), affinity=affinity) for c in range(classes)]
    return Condition.cat(parts)


def test_classes_and_samples_of_the_same_queries_share_their_affinities() -> None:
    condition = classes_of(queries=3, classes=2)
    assert len(condition.prior) == 6 and all(len(a) == 3 for a in condition.affinity)
    samples = condition.repeat(2)
    assert len(samples.prior) == 12 and all(len(a) == 3 for a in samples.affinity)
    whole = spelled_out(samples)
    for row in range(12):
        assert all(torch.equal(a[row], b[row % 3]) for a, b in zip(whole.affinity, condition.affinity, strict=True))


@pytest.mark.parametrize("start", range(6))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_a_slice_keeps_rows_and_affinities_matched(start: int, count: int) -> None:
    condition = classes_of(queries=3, classes=2)
    rows = slice(start, start + count)
    some = condition.rows(rows)
    assert all(len(some.prior) % len(a) == 0 for a in some.affinity)
    for part, whole in zip(tensors(spelled_out(some)), tensors(spelled_out(condition)), strict=True):
        assert torch.equal(part, whole[rows])
    for part, whole in zip(tensors(condition.first(count)), tensors(condition.rows(slice(0, count))), strict=True):
        assert torch.equal(part, whole)


def test_what_is_put_together_keeps_the_affinities_of_its_parts() -> None:
    """Parts of several queries and classes, with affinities of their own, of different numbers of rows."""
    parts = [classes_of(queries=2, classes=2), random_condition(CONFIGS["default"], 1, seed=5)]
    parts += [parts[0].rows(slice(1, 4)), classes_of(queries=3, classes=2)]
    together = Condition.cat(parts)
    for index, tensor in enumerate(tensors(spelled_out(together))):
        assert torch.equal(tensor, torch.cat([tensors(spelled_out(part))[index] for part in parts]))


# --- absolute priors -------------------------------------------------------------------------------------------------


def test_an_absolute_prior_is_half_for_a_similarity_of_zero_and_ignores_padding() -> None:
    similar = torch.tensor([[[[0.0, 1.0, -1.0, 0.4]], [[0.0, 1.0, -1.0, -0.2]], [[9.0, -9.0, 9.0, 9.0]]]])
    valid = torch.tensor([[True, True, False]])
    expected = torch.tensor([[[0.5, 1.0, 0.0, 0.55]]])  # means 0, 1, -1 and 0.1 over the two valid views
    assert torch.allclose(absolute_priors(similar, valid), expected)
    assert torch.equal(absolute_priors(similar[:, 2:], valid[:, :1]), torch.tensor([[[1.0, 0.0, 1.0, 1.0]]]))
    nothing = absolute_priors(similar, torch.zeros(1, 3))
    assert torch.equal(nothing, torch.full((1, 1, 4), 0.5))


def test_absolute_priors_are_the_similarities_to_the_prototypes() -> None:
    """Means over the views of the cosine of eq. 10, before it is stretched, by their definition."""
    config = PriorConfig(kinds=("prototype",), centre=False, affinity=False, self_affinity=False, grid=32)
    query, support, _ = random_episode(shots=2)
    fused = fused_priors(query, support, config)
    channel = config.prior_channels - 2  # the last is the saliency
    for level in range(4):
        side = support.levels[level].shape[-1]
        views = support.levels[level].flatten(0, 1)
        weights = resize_weights(support.foreground.flatten(0, 1), (side, side))
        prototypes = torch.stack([(v * w).sum(dim=(1, 2)) / w.sum() for v, w in zip(views, weights, strict=True)])
        cosines = torch.cosine_similarity(query[level][:, None], prototypes.view(2, 2, -1, 1, 1), dim=2)
        assert torch.allclose(fused[level][:, channel], cosines.mean(dim=1) * 0.5 + 0.5, atol=1e-5)


def test_only_absolute_priors_see_that_the_class_is_absent() -> None:
    query, support = planted_episode()
    empty = [level.clone() for level in query]
    for level in empty:
        level[:] = level[..., :1, :1]
        level += 0.1 * torch.randn(level.shape, generator=torch.Generator().manual_seed(0))
    config = PriorConfig(grid=32, calibration=False, layout="own")
    with_class, without = (fused_priors(shown, support, config)[3][0] for shown in (query, empty))
    absolute = config.absolute_maps
    assert without[0].max() > 0.99  # stretched
    assert (with_class[absolute].amax(dim=(1, 2)) > without[absolute].amax(dim=(1, 2)) + 0.1).all()


@pytest.mark.parametrize("kinds", [("match",), PRIOR_KINDS])
@pytest.mark.parametrize("calibration", [True, False])
def test_the_absolute_maps_are_before_the_saliency(kinds: tuple[str, ...], calibration: bool) -> None:
    config = PriorConfig(kinds=kinds, calibration=calibration)
    last = config.prior_channels - 1
    assert config.absolute_maps == slice(last - len(kinds), last)
    without = replace(config, absolute=False).absolute_maps
    assert without.start == without.stop == last - len(kinds)


def test_absolute_priors_of_a_joint_encoder_are_the_mean_of_its_members() -> None:
    config = PriorConfig(grid=8)
    episodes = [random_episode(seed=seed) for seed in (0, 1)]
    support = replace(
        episodes[0][1],
        levels=tuple(torch.cat(pair, dim=2) for pair in zip(*(e[1].levels for e in episodes), strict=True)),
    )
    query = [torch.cat(pair, dim=1) for pair in zip(*(e[0] for e in episodes), strict=True)]
    members = tuple((width, width) for width in (8, 12, 16, 24))
    joint = fused_priors(query, support, config, members=members)
    alone = [fused_priors(e[0], e[1], config) for e in episodes]
    absolute = slice(config.prior_channels - 1 - len(PRIOR_KINDS), config.prior_channels - 1)
    for level in range(4):
        mean = (alone[0][level][:, absolute] + alone[1][level][:, absolute]) / 2
        assert torch.allclose(joint[level][:, absolute], mean, atol=1e-5)


# --- the support side ------------------------------------------------------------------------------------------------

IMAGE = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(70, 90, dtype=torch.bool)
MASK[20:50, 30:60] = True
ANNOTATIONS = {
    "mask": Mask(MASK),
    "box": Box(30, 20, 60, 50),
    "scribble": Scribble([(35, 25), (50, 40)]),
    "points": Points([(40, 30)]),
    "none": None,
}


def support_side(annotations: Sequence[object]) -> SupportFeatures:
    supports = pair_supports([IMAGE] * len(annotations), list(annotations))
    plan = plan_views(len(supports))
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(len(plan), 6, side, side, generator=generator) for side in (12, 6, 3, 2)]
    return support_features(levels, supports, plan)


def test_a_single_support_comes_as_three_views_and_more_as_they_are() -> None:
    assert [index for index, _ in plan_views(1)] == [0] * 3
    assert [index for index, _ in plan_views(3)] == [0, 1, 2]
    assert len({view for _, view in plan_views(3)}) == 1


@given(st.lists(st.sampled_from(sorted(ANNOTATIONS)), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_any_annotations_give_the_same_shape(names: list[str]) -> None:
    support = support_side([ANNOTATIONS[name] for name in names])
    query, _, images = random_episode(widths=(6, 6, 6, 6), batch=1)
    config = CONFIGS["default"]
    assert_shape(build_condition(query, support, images, config), config, batch=1)


def test_regions_are_the_annotation_on_the_128_px_square() -> None:
    regions = view_regions(pair_supports([IMAGE, IMAGE], [Mask(MASK), None]), plan_views(2))
    assert regions.shape == (2, 2, 128, 128)
    assert torch.allclose(regions[0].sum(dim=0), torch.ones(128, 128), atol=1e-5)
    assert float(regions[0, 0].mean()) == pytest.approx(float(MASK.float().mean()), abs=0.03)
    assert torch.equal(regions[1, 0], torch.ones(128, 128)) and not regions[1, 1].any()


@pytest.mark.parametrize("corner", [(2, 2), (87, 67), (2, 67)])
def test_a_view_that_loses_sight_of_the_object_does_not_count(corner: tuple[int, int]) -> None:
    support = support_side([Points([corner], radius=2)])
    assert support.valid[0, 0] and not support.valid.all()
    query, _, images = random_episode(widths=(6, 6, 6, 6), batch=1)
    config = CONFIGS["default"]
    condition = build_condition(query, support, images, config)
    assert_shape(condition, config, batch=1)
    only = chosen(support, support.valid[0])
    assert_same(condition, build_condition(query, only, images, config))


def test_a_mask_that_fills_a_closer_look_is_a_mask_in_every_view() -> None:
    photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1).float() / 255
    height, width = photo.shape[1:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 14 : height - height // 14, width // 14 : width - width // 14] = True  # 85 % of either side
    encoder, plan = FakeBackbone(), plan_views(1)
    small = resize_image(photo, encoder.input_size)[None]
    levels = encoder.pyramid(torch.cat([warp(small, view) for _, view in plan]))
    masked, bare = (support_features(levels, pair_supports(photo, given), plan) for given in (Mask(mask), None))
    assert masked.annotated.all() and not bare.annotated.any()
    assert masked.foreground[0, 2].min() > 0.999, "the closer look shows the mask alone"
    config = CONFIGS["default"]
    foreground, background = annotation_at_level(
        levels[2][None], masked.foreground, masked.background, masked.annotated, config
    )
    assert foreground[0, 2].min() > 0.999 and background[0, 2].max() < 1e-3
    salient, _ = annotation_at_level(levels[2][None], bare.foreground, bare.background, bare.annotated, config)
    assert salient[0, 2].min() < 0.1
    query = [level[:1].flip(-1) for level in levels]
    closer = [replace(side, valid=torch.tensor([[False, False, True]])) for side in (masked, bare)]
    priors = [fused_priors(query, side, config)[2][:, 0] for side in closer]
    assert (priors[0] - priors[1]).abs().mean() > 0.05, "the mask, not what stands out"


# --- the config ------------------------------------------------------------------------------------------------------


@given(configs)
@settings(max_examples=30, deadline=None)
def test_channel_counts_follow_from_the_config(config: PriorConfig) -> None:
    kinds = (3 if config.absolute else 2) * len(config.kinds)
    assert config.prior_channels == kinds + config.extra_priors + config.calibration + config.saliency
    levels = 4 if config.layout == "all" else 1
    assert config.condition_channels == levels * config.prior_channels + 2 * config.edges + config.calibration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kinds", ()),
        ("kinds", ("prototype", "prototype")),
        ("kinds", ("prototype", "text")),
        ("metric", "l3"),
        ("metric", "l2"),  # contradicts the conversion
        ("conversion", "square"),
        ("normalisation", "softmax"),
        ("layout", "both"),
        ("affinity_power", 0.0),
        ("affinity_power", float("nan")),
        ("extra_priors", -1),
        ("grid", 0),
    ],
)
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}="):
        PriorConfig(**{field: value})
