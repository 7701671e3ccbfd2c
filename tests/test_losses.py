"""Training losses (eq. 21)."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import noise
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.losses import bce_dice, decoder_loss
from diffup.decoder.quality import mask_iou
from diffup.decoder.unet import Denoised

MSE = DecoderConfig(prediction="epsilon", loss="mse", error_weight=0.5, iou_weight=0.25)
BCE = DecoderConfig(prediction="x0", loss="bce_dice", error_weight=0.5, iou_weight=0.25)


def batch(seed: int = 0) -> tuple[Denoised, Tensor, Tensor, Tensor, Tensor]:
    """What `decoder_loss` takes: a random answer, x, mask, target, valid."""
    shape = (3, 1, 8, 8)
    denoised = Denoised(noise(*shape, seed=seed), noise(*shape, seed=seed + 1), torch.tensor([0.1, 0.5, 0.9]))
    mask = noise(*shape, seed=seed + 2).sign()
    valid = torch.ones(shape)
    valid[0, :, :3] = 0
    valid[1, :, 5] = 0.5
    return denoised, noise(*shape, seed=seed + 3), mask, noise(*shape, seed=seed + 4), valid


def test_every_part_is_its_definition() -> None:
    denoised, x, mask, target, valid = batch()
    losses = decoder_loss(denoised, x, mask, target, valid, MSE)
    count = valid.sum()
    assert torch.allclose(losses.diffusion, ((denoised.output - target) ** 2 * valid).sum() / count)
    assert torch.allclose(losses.error, ((denoised.error - (mask - x)) ** 2 * valid).sum() / count)
    overlap = [((x[b] > 0) & (mask[b] > 0)).sum() / ((x[b] > 0) | (mask[b] > 0)).sum() for b in range(3)]
    assert torch.allclose(losses.iou, ((denoised.iou - torch.stack(overlap)) ** 2).mean())
    assert torch.allclose(losses.total, losses.diffusion + 0.5 * losses.error + 0.25 * losses.iou)


@pytest.mark.parametrize("config", [MSE, BCE], ids=["mse", "bce_dice"])
def test_ignored_pixels_weigh_nothing_in_the_maps(config: DecoderConfig) -> None:
    denoised, x, mask, target, valid = batch()
    before = decoder_loss(denoised, x, mask, target, valid, config)
    hidden = valid == 0
    other = Denoised(denoised.output + 7 * hidden, denoised.error - 3 * hidden, denoised.iou)
    after = decoder_loss(other, x, torch.where(hidden, -mask, mask), target + 5 * hidden, valid, config)
    assert torch.allclose(before.diffusion, after.diffusion, atol=1e-6)
    assert torch.allclose(before.error, after.error, atol=1e-6)


def test_nothing_valid_is_no_loss() -> None:
    denoised, x, mask, target, valid = batch()
    losses = decoder_loss(denoised, x, mask, target, torch.zeros_like(valid), MSE)
    assert float(losses.diffusion) == 0 and float(losses.error) == 0


def test_a_perfect_answer_costs_nothing() -> None:
    _, x, mask, target, valid = batch()
    perfect = Denoised(target, mask - x, mask_iou(x, mask))
    assert float(decoder_loss(perfect, x, mask, target, valid, MSE).total) == pytest.approx(0, abs=1e-10)
    sure = Denoised(40 * mask, mask - x, mask_iou(x, mask))
    assert float(decoder_loss(sure, x, mask, target, valid, BCE).total) == pytest.approx(0, abs=1e-5)


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
    entropy = [20 * float(target[b].mean()) for b in range(2)]
    assert float(small) - entropy[0] == pytest.approx(1 - 1 / 5, abs=1e-3)
    assert float(large) - entropy[1] == pytest.approx(1, abs=0.01)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.full((1, 1, 4, 4), 1e4).requires_grad_()
    loss = bce_dice(logits, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    loss.backward()
    assert math.isfinite(loss.item()) and logits.grad is not None and logits.grad.isfinite().all()


def test_half_precision_answers_are_scored_in_full() -> None:
    denoised, x, mask, target, valid = batch()
    low = Denoised(denoised.output.bfloat16(), denoised.error.bfloat16(), denoised.iou.bfloat16())
    for config in (MSE, BCE):
        losses = decoder_loss(low, x, mask, target, valid, config)
        assert losses.total.dtype == torch.float32
        assert torch.allclose(losses.total, decoder_loss(denoised, x, mask, target, valid, config).total, rtol=0.02)


def test_mask_iou() -> None:
    a = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0], [1.0, 0.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    b = torch.tensor([[0.5, -0.1, 0.2, -1.0], [-0.3, -1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, -1.0], [0.2, 1.0, 1.0, 1.0]])
    iou = mask_iou(a.view(4, 1, 2, 2), b.view(4, 1, 2, 2))
    assert iou.dtype == torch.float32
    assert torch.allclose(iou, torch.tensor([1 / 3, 1.0, 0.0, 1.0]))
