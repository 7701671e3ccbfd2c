"""Training losses (eq. 21)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from fakes import noise
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.losses import Losses, bce_dice, decoder_loss, present
from diffup.decoder.quality import mask_iou

WEIGHTS = {"error_weight": 0.5, "iou_weight": 0.25}
MSE = DecoderConfig(prediction="epsilon", loss="mse", **WEIGHTS)
BCE = DecoderConfig(prediction="x0", loss="bce_dice", **WEIGHTS)


@dataclass(frozen=True)
class Batch:
    """What `decoder_loss` takes: a random answer for three queries, judged once."""

    output: Tensor
    error: Tensor
    iou: Tensor
    x: Tensor
    mask: Tensor
    target: Tensor
    valid: Tensor

    def losses(self, config: DecoderConfig) -> Losses:
        judged = [(self.x, self.error, self.iou)]
        return decoder_loss(self.output, judged, self.mask, self.target, self.valid, config)


def batch(**changes: Tensor) -> Batch:
    shape = (3, 1, 8, 8)
    output, error, mask, x, target = (noise(*shape, seed=seed) for seed in range(5))
    valid = torch.ones(shape)
    valid[0, :, :3] = 0
    valid[1, :, 5] = 0.5
    iou = torch.tensor([0.1, 0.5, 0.9])
    return replace(Batch(output, error, iou, x, mask.sign(), target, valid), **changes)


def test_every_part_is_its_definition() -> None:
    b = batch()
    losses, count = b.losses(MSE), b.valid.sum()
    assert torch.allclose(losses.diffusion, ((b.output - b.target) ** 2 * b.valid).sum() / count)
    assert torch.allclose(losses.error, ((b.error - (b.mask - b.x)) ** 2 * b.valid).sum() / count)
    overlap = [((b.x[n] > 0) & (b.mask[n] > 0)).sum() / ((b.x[n] > 0) | (b.mask[n] > 0)).sum() for n in range(3)]
    assert torch.allclose(losses.iou, ((b.iou - torch.stack(overlap)) ** 2).mean())
    expected = losses.diffusion + 0.5 * losses.error + 0.25 * losses.iou
    assert torch.allclose(losses.total, expected) and losses.adversarial is None


def test_judgements_are_averaged() -> None:
    b = batch()
    once, right = b.losses(MSE), (b.x, b.mask - b.x, mask_iou(b.x, b.mask))
    judged = [right, (b.x, b.error, b.iou)]
    twice = decoder_loss(b.output, judged, b.mask, b.target, b.valid, MSE)
    assert torch.allclose(twice.error, once.error / 2) and torch.allclose(twice.iou, once.iou / 2)
    assert torch.equal(twice.diffusion, once.diffusion)


def test_a_query_without_the_class_has_no_iou_to_learn() -> None:
    mask = batch().mask.clone()
    mask[1] = -1
    b = batch(mask=mask, iou=torch.tensor([0.1, 0.5, 0.9], requires_grad=True))
    losses = b.losses(MSE)
    true = mask_iou(b.x, mask)
    assert torch.allclose(losses.iou, ((b.iou[0] - true[0]) ** 2 + (b.iou[2] - true[2]) ** 2) / 2)
    losses.total.backward()
    assert b.iou.grad is not None and (b.iou.grad != 0).tolist() == [True, False, True]
    assert torch.allclose(losses.error, ((b.error - (mask - b.x)) ** 2 * b.valid).sum() / b.valid.sum())


def test_a_batch_without_the_class_has_no_iou_loss() -> None:
    losses = batch(mask=torch.full((3, 1, 8, 8), -1.0)).losses(BCE)
    assert float(losses.iou) == 0 and losses.total.isfinite()


def test_a_sliver_of_the_class_is_the_class() -> None:
    mask = torch.full((2, 1, 8, 8), -1.0)
    mask[1, 0, 3, 4] = -0.99  # of a position's pixels one in two hundred
    assert present(mask).tolist() == [False, True]


@pytest.mark.parametrize("config", [MSE, BCE], ids=["mse", "bce_dice"])
def test_ignored_pixels_weigh_nothing_in_the_maps(config: DecoderConfig) -> None:
    b = batch()
    before, hidden = b.losses(config), b.valid == 0
    changed = {"output": b.output + 7 * hidden, "error": b.error - 3 * hidden, "target": b.target + 5 * hidden}
    after = batch(mask=torch.where(hidden, -b.mask, b.mask), **changed).losses(config)
    assert torch.allclose(before.diffusion, after.diffusion, atol=1e-6)
    assert torch.allclose(before.error, after.error, atol=1e-6)


def test_nothing_valid_is_no_loss() -> None:
    losses = batch(valid=torch.zeros(3, 1, 8, 8)).losses(MSE)
    assert float(losses.diffusion) == 0 and float(losses.error) == 0


def test_a_perfect_answer_costs_nothing() -> None:
    b = batch()
    mask = b.mask.clone()
    mask[1] = -1
    sure = {"mask": mask, "error": mask - b.x, "iou": mask_iou(b.x, mask)}
    assert float(batch(**sure, output=b.target).losses(MSE).total) == pytest.approx(0, abs=1e-10)
    assert float(batch(**sure, output=40 * mask).losses(BCE).total) == pytest.approx(0, abs=1e-5)


def test_bce_dice_is_its_definition() -> None:
    logits, target = noise(2, 1, 4, 4), (noise(2, 1, 4, 4, seed=1) > 0).float()
    p = logits.sigmoid()
    entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    dice = [1 - (2 * (p[b] * target[b]).sum() + 1) / (p[b].sum() + target[b].sum() + 1) for b in range(2)]
    result = bce_dice(logits, target, torch.ones_like(target))
    assert torch.allclose(result, entropy + torch.stack(dice).mean(), atol=1e-6)


def test_dice_weighs_a_small_object_as_much_as_a_large_one() -> None:
    target = torch.zeros(2, 1, 32, 32)
    target[0, :, :2, :2], target[1, :, :28, :28] = 1, 1
    missed = torch.full_like(target, -20.0)
    valid = torch.ones_like(target)
    small, large = (bce_dice(missed[b : b + 1], target[b : b + 1], valid[b : b + 1]) for b in range(2))
    missing = [20 * float(target[b].mean()) for b in range(2)]
    assert float(small) - missing[0] == pytest.approx(1 - 1 / 5, abs=1e-3)
    assert float(large) - missing[1] == pytest.approx(1, abs=0.01)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.full((1, 1, 4, 4), 1e4).requires_grad_()
    loss = bce_dice(logits, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    loss.backward()
    assert math.isfinite(loss.item()) and logits.grad is not None and logits.grad.isfinite().all()


def test_half_precision_answers_are_scored_in_full() -> None:
    b = batch()
    low = {name: getattr(b, name).bfloat16() for name in ("output", "error", "iou")}
    for config in (MSE, BCE):
        losses = batch(**low).losses(config)
        assert losses.total.dtype == torch.float32
        assert torch.allclose(losses.total, b.losses(config).total, rtol=0.02)


def test_mask_iou() -> None:
    a = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0], [1.0, 0.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    b = torch.tensor([[0.5, -0.1, 0.2, -1.0], [-0.3, -1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, -1.0], [0.2, 1.0, 1.0, 1.0]])
    iou = mask_iou(a.view(4, 1, 2, 2), b.view(4, 1, 2, 2))
    assert iou.dtype == torch.float32
    assert torch.allclose(iou, torch.tensor([1 / 3, 1.0, 0.0, 1.0]))
