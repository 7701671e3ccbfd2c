"""Whether the query shows the class at all, and how good a mask is: presence, expected IoU, calibrated quality."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from fakes import noise, random_condition, random_decoder, random_episode, tiny_config
from torch import Tensor

from diffup.decoder.quality import calibrated_quality, expected_iou, marked_share, quality_estimates
from diffup.decoder.sampling import draw_noise, sample_ensemble
from diffup.inference import trust
from diffup.priors.condition import build_condition, prior_maps
from diffup.priors.config import PriorConfig
from diffup.priors.features import Members, SupportFeatures
from diffup.priors.presence import (
    BOTH_SHARE,
    SHOTS_POWER,
    MatchedQuery,
    MatchedSupport,
    support_evidence,
    text_evidence,
)

SYSTEMS = ("diffusion", "one_step", "gan", "prior")
VIEWS = ("foreground", "background", "valid", "annotated")
IMAGES = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_presence_is_the_weighted_evidence_whatever_the_ensemble(system: str) -> None:
    steps = 2 if system == "diffusion" else 1
    factors = (2.0, -1.0, 0.5, 3.0, -0.25)
    config = tiny_config(system=system, steps=steps, presence_calibration=factors)
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors, 3)
    expected = torch.sigmoid(condition.evidence @ torch.tensor(factors))
    for count, seed in ((1, 0), (4, 1)):
        noise = draw_noise(condition, count, torch.Generator().manual_seed(seed))
        samples = sample_ensemble(decoder, condition, noise, steps)
        assert torch.allclose(trust(samples, condition.evidence, 0.5, config).presence, expected, atol=1e-6)


# --- evidence --------------------------------------------------------------------------------------------------------


def test_the_evidence_of_supports_is_its_definition() -> None:
    query, views = noise(2, 6, 3, 4), noise(2, 3, 6, 2, 5, seed=1)
    foreground, valid = noise(2, 3, 10, seed=2).abs(), torch.tensor([[True, True, False], [True, False, False]])
    found = support_evidence(MatchedQuery.of(query), MatchedSupport.of(views, foreground, valid, 3))
    for row in range(2):
        for column, centred in enumerate((True, False)):
            means = []
            for view in range(int(valid[row].sum())):
                ours, theirs = query[row].flatten(1), views[row, view].flatten(1)
                if centred:
                    ours, theirs = ours - ours.mean(dim=1, keepdim=True), theirs - theirs.mean(dim=1, keepdim=True)
                cosines = torch.cosine_similarity(theirs[:, :, None], ours[:, None, :], dim=0)
                best, weights = cosines.max(dim=1).values, foreground[row, view]
                means.append(float((best * weights).sum() / weights.sum()))
            assert float(found[row, column]) == pytest.approx(sum(means) / len(means), abs=1e-5)


def test_the_evidence_of_a_photo_that_is_the_support_is_1() -> None:
    features, foreground = noise(1, 6, 4, 4), torch.ones(1, 1, 16)
    matched = MatchedSupport.of(features[:, None], foreground, torch.ones(1, 1, dtype=torch.bool), 1)
    found = support_evidence(MatchedQuery.of(features), matched)
    assert torch.allclose(found, torch.ones(1, 2), atol=1e-5)


def test_the_evidence_of_text_is_the_greatest_of_the_mean_over_the_prompts() -> None:
    maps = torch.tensor([[[[0.1, 0.5]], [[0.3, -0.3]]], [[[-1.0, -0.5]], [[-0.25, -1.5]]]])
    assert text_evidence(maps).tolist() == pytest.approx([0.2, -0.625])


def evidence(
    query: list[Tensor], support: SupportFeatures | None, text: Tensor | None = None, members: Members = ()
) -> Tensor:
    levels, config = [query[-1]] * 4, PriorConfig(grid=8)
    maps = prior_maps(levels, None if support is None else only_last(support), IMAGES, config, False, text, members)
    return maps.evidence


def only_last(support: SupportFeatures) -> SupportFeatures:
    """The last level in place of all."""
    return dataclasses.replace(support, levels=support.levels[-1:] * 4)


def test_each_source_has_its_own_values() -> None:
    query, support, _ = random_episode(shots=2)
    text = noise(2, 3, 4, 4)
    by_support, by_text = evidence(query, support), evidence(query, None, text=text)
    assert by_support[:, 2].tolist() == pytest.approx([2**SHOTS_POWER] * 2)
    assert (by_support[:, 3:] == 0).all() and (by_support[:, :2] != 0).all()
    assert (by_text[:, :3] == 0).all() and (by_text[:, 4] == 1).all()
    assert torch.equal(by_text[:, 3], text_evidence(text))
    both = BOTH_SHARE * (by_support + by_text)
    assert torch.allclose(evidence(query, support, text=text), both), "each counts less beside the other"


def test_the_more_supports_the_surer_is_the_same_similarity() -> None:
    query, support, _ = random_episode(shots=1)
    once = evidence(query, support)
    views = dataclasses.replace(support, **{name: getattr(support, name).repeat_interleave(4, dim=1) for name in VIEWS})
    four = dataclasses.replace(views, levels=tuple(level.repeat_interleave(4, dim=1) for level in support.levels))
    assert torch.allclose(evidence(query, four), once, atol=1e-5), "views of a single support are no further supports"
    assert torch.allclose(evidence(query, dataclasses.replace(four, shots=4)), 4**SHOTS_POWER * once, atol=1e-5)


def test_the_evidence_does_not_depend_on_the_encoder() -> None:
    """Features rotated or padded, of any scale, and supports in another order give the same."""
    query, support, _ = random_episode(shots=3)
    expected = evidence(query, support)
    width = query[-1].shape[1]
    rotation = torch.linalg.qr(noise(width, width, seed=9))[0]
    turned = [torch.einsum("dc,bchw->bdhw", rotation, level) for level in query[-1:]]
    views = torch.einsum("dc,bkchw->bkdhw", rotation, support.levels[-1])
    assert torch.allclose(evidence(turned, replace_last(support, views)), expected, atol=1e-5)
    padded = [torch.nn.functional.pad(query[-1], (0, 0, 0, 0, 0, 7))]
    views = torch.nn.functional.pad(support.levels[-1], (0, 0, 0, 0, 0, 7))
    assert torch.allclose(evidence(padded, replace_last(support, views)), expected, atol=1e-5)
    large = replace_last(support, support.levels[-1] * 1e30)
    assert torch.allclose(evidence([query[-1] * 1e30], large), expected, atol=1e-5)
    order = [2, 0, 1]
    shuffled = dataclasses.replace(
        support,
        levels=tuple(level[:, order] for level in support.levels),
        **{name: getattr(support, name)[:, order] for name in VIEWS},
    )
    assert torch.allclose(evidence(query, shuffled), expected, atol=1e-5)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3, "queries differ"


def replace_last(support: SupportFeatures, views: Tensor) -> SupportFeatures:
    return dataclasses.replace(support, levels=(*support.levels[:-1], views))


def test_members_of_a_joint_backbone_are_averaged() -> None:
    query, support, _ = random_episode()
    width = query[-1].shape[1]
    joint = evidence(query, support, members=((10, width - 10),) * 4)
    parts = (slice(0, 10), slice(10, None))
    each = [evidence([query[-1][:, part]], replace_last(support, support.levels[-1][:, :, part])) for part in parts]
    assert torch.allclose(joint, torch.stack(each).mean(dim=0), atol=1e-5)


def test_the_condition_has_the_evidence_of_its_queries() -> None:
    query, support, images = random_episode()
    condition = build_condition(query, support, images, tiny_config().priors)
    assert torch.allclose(condition.evidence, evidence(query, support), atol=1e-5)
    assert torch.equal(condition.repeat(2).evidence, condition.evidence.repeat(2, 1))
    assert torch.equal(condition.rows(slice(1, 2)).evidence, condition.evidence[1:])
    assert torch.equal(type(condition).cat([condition, condition]).evidence, condition.repeat(2).evidence)


# --- quality ---------------------------------------------------------------------------------------------------------


def test_the_expected_iou_by_hand() -> None:
    probability = torch.tensor([[[0.9, 0.6], [0.3, 0.0]], [[0.2, 0.1], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])
    # Marked 0.9 and 0.6: 1.5 in 2 + 0.3; nothing marked; certain.
    assert expected_iou(probability, 0.5).tolist() == pytest.approx([1.5 / 2.3, 0.0, 1.0])
    # A threshold of each: 0.9 alone is marked in 1 + 0.9; 0.2 and 0.1 in 2; certain.
    each = torch.tensor([0.7, 0.05, 0.5])
    assert expected_iou(probability, each).tolist() == pytest.approx([0.9 / 1.9, 0.3 / 2.0, 1.0])
    assert expected_iou(torch.full((1, 1, 2, 2), 0.5), 0.5).tolist() == [0.0]  # above the threshold, not at it


def test_the_expected_iou_is_what_is_found_on_average() -> None:
    """Ratio of the expected intersection and union: masks drawn from the probabilities come close on many pixels."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(1, 64, 64, generator=generator)
    marked = probability[0] > 0.4
    found = []
    for _ in range(20):
        true = torch.rand(64, 64, generator=generator) < probability[0]
        found.append(float((true & marked).sum() / (true | marked).sum()))
    # The deviation of an IoU of 4096 pixels is below 0.5 / sqrt(2700 pixels of the union), of the mean of 20 below
    # 0.0022; five times that.
    assert float(expected_iou(probability, 0.4)) == pytest.approx(sum(found) / 20, abs=0.011)


def test_the_marked_share_by_hand() -> None:
    maps = torch.tensor([[[0.1, 0.6], [0.5, 0.9]], [[0.3, 0.3], [0.3, 0.2]]])
    assert marked_share(maps, 0.5).tolist() == [0.5, 0.0], "above the threshold, not at it"
    assert marked_share(maps, torch.tensor([0.05, 0.25])).tolist() == [1.0, 0.75]


def test_the_quality_is_a_weighted_sum_by_hand() -> None:
    """The first query has supports, the second text."""
    maps = torch.zeros(2, 2, 2)
    maps[0, 0], maps[1] = 0.8, torch.tensor([[0.25, 0], [0, 0]])
    estimates = quality_estimates(maps, torch.tensor([0.5, 0.9]), torch.tensor([0.5, 0.2]))
    evidence = torch.tensor([[0.2, 0.4, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.6, 1.0]])

    def quality(*calibration: float) -> list[float]:
        return calibrated_quality(estimates, evidence, calibration).tolist()

    assert quality(1, 0, 0, 0, 0, 0, 0, 0, 0) == pytest.approx([0.8, 0.25])
    assert quality(0, 1, 0, 0, 0, 0, 0, 0, 0) == pytest.approx([0.5, 0.9])
    assert quality(0, 0, 1, 0, 0, 0, 0, 0, 0) == pytest.approx([1 / 3, 1 / 5]), "odds of 1/2 and 1/4"
    assert quality(0, 0, 0, 1, 0, 0, 0, 0, 0) == pytest.approx([0.5, 0.2])
    # Logits log 4 and 0, log 1/3 and log 9; half the first, twice the second, and 1 or 2.
    found = quality(0.5, 2, 0, 0, 5, -1, 0.4, 5, -1)
    odds = [2 * math.e, 81 * math.e**2 / math.sqrt(3)]
    assert found == pytest.approx([value / (1 + value) for value in odds], rel=1e-5)
    blank = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    ends = calibrated_quality(
        quality_estimates(blank, torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])),
        torch.zeros(2, 5),
        (1.0, 1.0, 1.0, *[0.0] * 6),
    )
    assert ends.isfinite().all() and ends.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
