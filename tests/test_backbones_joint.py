"""Several encoders at once: one more set of views each (UAPF over shots times backbones)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import FakeBackbone, random_episode
from torch import Tensor

from diffup.backbones import JointBackbone, load_backbone, members_of
from diffup.errors import BackboneError
from diffup.priors.condition import Members, SupportFeatures, fused_priors
from diffup.priors.config import PriorConfig

CONFIG = PriorConfig(grid=8)


def joined(
    a: tuple[list[Tensor], SupportFeatures], b: tuple[list[Tensor], SupportFeatures]
) -> tuple[list[Tensor], SupportFeatures, Members]:
    """Two encoders' features of the same images, side by side as `JointBackbone` puts them."""
    query = [torch.cat(pair, dim=1) for pair in zip(a[0], b[0], strict=True)]
    levels = tuple(torch.cat(pair, dim=2) for pair in zip(a[1].levels, b[1].levels, strict=True))
    members = tuple((one.shape[1], other.shape[1]) for one, other in zip(a[0], b[0], strict=True))
    return query, replace(a[1], levels=levels), members


@pytest.mark.parametrize("shots", [1, 3])
def test_mean_and_variance_are_those_of_all_views_of_all_members(shots: int) -> None:
    (query, support, _), (other_query, other, _) = (
        random_episode(widths=widths, shots=shots, seed=seed)
        for seed, widths in enumerate([(5, 6, 7, 8), (4, 4, 9, 3)])
    )
    other = replace(other, foreground=support.foreground, background=support.background, valid=support.valid)
    single = [fused_priors(query, support, CONFIG), fused_priors(other_query, other, CONFIG)]
    query, support, members = joined((query, support), (other_query, other))
    both = fused_priors(query, support, CONFIG, members=members)
    kinds = len(CONFIG.kinds)
    for one, two, fused in zip(*single, both, strict=True):
        assert fused.shape == one.shape
        means = torch.stack([one[:, :kinds], two[:, :kinds]])
        assert torch.allclose(fused[:, :kinds], means.mean(dim=0), atol=1e-5)
        within = torch.stack([one[:, kinds : 2 * kinds], two[:, kinds : 2 * kinds]]).mean(dim=0)
        between = means.var(dim=0, correction=0) * 4
        assert torch.allclose(fused[:, kinds : 2 * kinds], within + between, atol=1e-5)
        assert torch.allclose(fused[:, -2:], (one[:, -2:] + two[:, -2:]) / 2, atol=1e-5)


def test_an_encoder_joined_to_itself_changes_nothing() -> None:
    query, support, _ = random_episode()
    twice, supports, members = joined((query, support), (query, support))
    double = fused_priors(twice, supports, CONFIG, members=members)
    for one, two in zip(fused_priors(query, support, CONFIG), double, strict=True):
        # The nearest view repeats where it is its own twin, so extra priors may differ.
        kept = [index for index in range(one.shape[1]) if not 6 <= index < 8]
        assert torch.allclose(one[:, kept], two[:, kept], atol=1e-5)


def test_members_see_the_image_at_their_own_size() -> None:
    joint = JointBackbone(
        [FakeBackbone((3, 4, 5, 6), input_size=(64, 64)), FakeBackbone((5, 6, 7, 8), input_size=(32, 32))]
    )
    assert joint.input_size == (64, 64)
    levels = joint.pyramid(torch.rand(2, 3, 64, 64))
    assert [level.shape[1] for level in levels] == [sum(widths) for widths in joint.widths]
    alone = joint.members[0].pyramid(torch.rand(2, 3, 64, 64))
    assert [level.shape[-2:] for level in levels] == [level.shape[-2:] for level in alone]
    assert members_of(joint) == joint.widths and members_of(joint.members[0]) == ()
    assert joint.to("cpu").fingerprint == joint.fingerprint != JointBackbone(joint.members[::-1]).fingerprint


def test_joint_backbones_load_by_name_and_as_lists() -> None:
    a, b = FakeBackbone(), FakeBackbone((3, 4, 5, 6))
    assert load_backbone([a, b]).name == f"{a.name} + {b.name}"
    with pytest.raises(BackboneError, match="two or more"):
        load_backbone([a])
    with pytest.raises(BackboneError, match="nowhere"):
        load_backbone("bundled:efficientnet_lite0 + nowhere:x")
