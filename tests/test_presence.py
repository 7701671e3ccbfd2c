"""Whether the query shows the class at all, and how good a mask is: presence, expected IoU, calibrated quality."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from fakes import noise, random_condition, random_decoder, random_episode, tiny_config
from torch import Tensor

from diffup.decoder.build import build_decoder
from diffup.decoder.quality import PresenceHead, calibrated_quality, expected_iou
from diffup.decoder.sampling import draw_noise, sample_ensemble
from diffup.priors.condition import build_condition
from diffup.priors.config import PriorConfig

SYSTEMS = ("diffusion", "one_step", "gan", "prior")


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_presence_is_the_calibrated_logit_whatever_the_ensemble(system: str) -> None:
    steps = 2 if system == "diffusion" else 1
    config = tiny_config(system=system, steps=steps, presence_calibration=(2.0, -0.5))
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors, 3)
    with torch.no_grad():
        logit = decoder.presence(condition)
    assert logit.shape == (3,)
    for count, seed in ((1, 0), (4, 1)):
        noise = draw_noise(condition, count, torch.Generator().manual_seed(seed))
        found = sample_ensemble(decoder, condition, noise, steps).presence
        assert torch.allclose(found, torch.sigmoid(2 * logit - 0.5), atol=1e-6)


def test_the_presence_does_not_depend_on_the_order_of_the_supports_or_the_queries() -> None:
    config = tiny_config()
    decoder = random_decoder(config).eval()
    query, support, images = random_episode(shots=3)
    order = [2, 0, 1]
    levels = tuple(level[:, order] for level in support.levels)
    names = ("foreground", "background", "valid", "annotated")
    shuffled = dataclasses.replace(support, levels=levels, **{n: getattr(support, n)[:, order] for n in names})
    one, other = (build_condition(query, side, images, config.priors) for side in (support, shuffled))
    with torch.no_grad():
        found = decoder.presence(one)
        assert torch.allclose(found, decoder.presence(other), atol=1e-4)
        assert torch.allclose(found[1:], decoder.presence(one.rows(slice(1, 2))), atol=1e-5)
    assert float((found[0] - found[1]).abs()) > 1e-3


def test_the_presence_depends_on_one_level_of_the_condition_alone() -> None:
    config = tiny_config()
    decoder, condition = random_decoder(config).eval(), random_condition(config.priors)
    with torch.no_grad():
        before = decoder.presence(condition)
        for level in range(4):
            levels = tuple(-part if index == level else part for index, part in enumerate(condition.levels))
            after = decoder.presence(dataclasses.replace(condition, levels=levels))
            assert torch.equal(before, after) is (level != 2)


def test_the_presence_head_is_its_definition() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = PresenceHead(channels=3)
    level = noise(2, 3, 16, 16)
    maps = level.flatten(2)
    with torch.no_grad():
        pooled = torch.cat([maps.mean(dim=2), maps.max(dim=2).values], dim=1)
        expected = (pooled * head.linear.weight[0]).sum(dim=1) + head.linear.bias
        assert torch.allclose(head(level), expected, atol=1e-6)
        # Nothing is normalised: lower similarities of the same shape are another answer.
        assert not torch.allclose(head(level), head(level * 0.5), atol=1e-4)


# --- the bare prior --------------------------------------------------------------------------------------------------


def bare(**priors: object) -> tuple[object, PriorConfig]:
    config = tiny_config(system="prior", priors=PriorConfig(grid=8, **priors))
    return build_decoder(config), config.priors


def with_absolute(priors: PriorConfig, level: Tensor) -> Tensor:
    """Logits of the bare prior for absolute priors (B, 8, 8) in [0, 1]."""
    condition = random_condition(priors, len(level))
    levels = [part.clone() for part in condition.levels]
    levels[-1][:, priors.absolute_channel] = level * 2 - 1
    decoder = build_decoder(tiny_config(system="prior", priors=priors))
    return decoder.presence(dataclasses.replace(condition, levels=tuple(levels)))


@pytest.mark.parametrize("layout", ["own", "all"])
def test_the_bare_prior_goes_by_its_greatest_absolute_prior(layout: str) -> None:
    level = torch.full((3, 8, 8), 0.2)
    level[0, 3, 5], level[1, 7, 0] = 0.9, 0.5
    found = torch.sigmoid(with_absolute(PriorConfig(grid=8, layout=layout), level))
    assert found.tolist() == pytest.approx([0.9, 0.5, 0.2], abs=1e-5)


def test_the_bare_prior_without_absolute_priors_says_nothing() -> None:
    decoder, priors = bare(absolute=False)
    assert decoder.presence(random_condition(priors, 3)).tolist() == [0.0, 0.0, 0.0]


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


def test_the_quality_is_the_sum_of_logits_by_hand() -> None:
    expected, predicted = torch.tensor([0.8, 0.25]), torch.tensor([0.5, 0.9])
    assert calibrated_quality(expected, predicted, (1.0, 0.0, 0.0)).tolist() == pytest.approx([0.8, 0.25])
    assert calibrated_quality(expected, predicted, (0.0, 1.0, 0.0)).tolist() == pytest.approx([0.5, 0.9])
    # Logits log 4 and 0, log 1/3 and log 9; half the first, twice the second, plus 1.
    odds = [2 * math.e, 81 * math.e / math.sqrt(3)]
    found = calibrated_quality(expected, predicted, (0.5, 2.0, 1.0))
    assert found.tolist() == pytest.approx([value / (1 + value) for value in odds], rel=1e-5)
    ends = calibrated_quality(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), (1.0, 1.0, 0.0))
    assert ends.isfinite().all() and ends.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
