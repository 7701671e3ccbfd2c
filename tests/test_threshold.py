"""The threshold of each mask: what it maximises, what it does not depend on, and that everybody applies the same."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, shape_image, tiny_config, tiny_model
from torch import Tensor

from diffup.decoder.config import DecoderConfig
from diffup.decoder.quality import expected_iou
from diffup.decoder.sampling import Ensemble
from diffup.decoder.threshold import CANDIDATES, shifted, threshold_logit
from diffup.errors import ConfigError


def levels(*pairs: tuple[float, int]) -> Tensor:
    """A map (1, 64, 64) of so many positions of each probability; 0 elsewhere."""
    flat = torch.zeros(64 * 64)
    start = 0
    for probability, count in pairs:
        flat[start : start + count] = probability
        start += count
    return flat.view(1, 64, 64)


def blobs(count: int, seed: int = 0) -> Tensor:
    """Smooth maps (count, 64, 64) of various contrast."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 1, 6, 6, generator=generator)
    offsets = torch.linspace(-2.5, 0, count)[:, None, None]
    return torch.sigmoid(3 * torch.nn.functional.interpolate(small, (64, 64), mode="bicubic")[:, 0] + offsets)


def photos() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A query, a support and its mask."""
    support, labels = shape_image((1,), seed=4)
    return shape_image((1, 2), seed=3)[0], support, labels == 1


def test_what_the_probabilities_promise_decides() -> None:
    # The upper level alone promises 600 / (800 + 1000 - 600) = 0.50, both 800 / 2000 = 0.40.
    upper = torch.sigmoid(threshold_logit(levels((0.6, 1000), (0.2, 1000)), 1.0))
    assert 0.2 < float(upper) < 0.6
    # Here it is 600 / 1500 = 0.40 against 1100 / 2000 = 0.55.
    both = torch.sigmoid(threshold_logit(levels((0.6, 1000), (0.5, 1000)), 1.0))
    assert float(both) < 0.5


def test_no_threshold_promises_more() -> None:
    maps = blobs(12)
    chosen = expected_iou(maps, torch.sigmoid(threshold_logit(maps, 1.0)))
    for threshold in torch.sigmoid(torch.linspace(*CANDIDATES)).tolist():
        assert (expected_iou(maps, threshold) <= chosen + 0.01).all()


def test_a_fainter_map_has_a_lower_threshold_and_a_higher_temperature_lowers_it() -> None:
    maps = blobs(12)
    faint = shifted(maps, torch.full((12,), -1.0))
    assert (threshold_logit(faint, 1.5) < threshold_logit(maps, 1.5)).all()
    assert (threshold_logit(faint, 2.0) < threshold_logit(faint, 1.0)).all()


def test_nothing_is_marked_where_nothing_is_likely() -> None:
    maps = levels((0.02, 1500))
    assert not (maps > torch.sigmoid(threshold_logit(maps, 2.0))).any()


def test_masks_do_not_depend_on_each_other_and_shifts_can_be_undone() -> None:
    maps = blobs(5)
    together = threshold_logit(maps, 2.0)
    assert torch.equal(together, torch.cat([threshold_logit(item[None], 2.0) for item in maps]))
    assert torch.allclose(shifted(shifted(maps, together), -together), maps, atol=1e-5)
    bounds = shifted(torch.tensor([0.0, 1.0]), torch.tensor([3.0, -3.0]))
    assert torch.allclose(bounds, torch.tensor([0.0, 1.0]), atol=1e-4)


def test_results_have_each_masks_threshold_at_one_half() -> None:
    query, support, mask = photos()
    model, plain = (
        tiny_model(FakeBackbone(input_size=(64, 64)), temperature=temperature, threshold=0.4)
        for temperature in (1.5, 0.0)
    )
    shown, raw = (item.segment(query, support, mask, refine=False) for item in (model, plain))
    own = threshold_logit(torch.from_numpy(raw.maps[:1]), 1.5)
    assert abs(float(own)) > 0.05 and shown.threshold == 0.4
    expected = shifted(torch.from_numpy(raw.maps[:1]), -own)
    assert np.allclose(shown.maps[0], expected[0], atol=1e-5)
    assert np.array_equal(shown.maps[0] > 0.5, raw.maps[0] > float(torch.sigmoid(own)))
    # The quality is that of the same mask, whose raw probabilities it is told from.
    same = float(torch.sigmoid(own + torch.logit(torch.tensor(0.4))))
    assert shown.quality == pytest.approx(
        plain.segment(query, support, mask, refine=False, threshold=same).quality, abs=1e-4
    )
    stricter = model.segment(query, support, mask, refine=False, threshold=0.6)
    assert (stricter.mask <= shown.mask).all() and stricter.mask.sum() < shown.mask.sum()


def test_thresholds_before_the_shift_divide_the_mean_alike() -> None:
    maps = blobs(2)
    zeros = torch.zeros_like(maps)
    samples = Ensemble(maps, zeros, zeros, torch.zeros(2), None, (), shift=torch.tensor([1.5, -0.5]))
    for thresholds in (0.3, torch.tensor([0.3, 0.7])):
        before = samples.before_shift(thresholds)[:, None, None]
        each = torch.as_tensor(thresholds).expand(2)[:, None, None]
        assert torch.equal(samples.mean > before, samples.probability > each)
    plain = dataclasses.replace(samples, shift=None)
    assert torch.equal(plain.probability, maps) and torch.equal(plain.before_shift(0.3), torch.full((2,), 0.3))


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), 1e-6, 1e8])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature="):
        tiny_config(temperature=temperature)


def test_the_prior_has_one_threshold_for_all_masks() -> None:
    assert DecoderConfig().temperature > 0 and DecoderConfig(system="prior").temperature == 0


def test_the_expected_error_is_that_of_the_same_mask_without_a_shift() -> None:
    query, support, mask = photos()
    model, plain = (
        tiny_model(FakeBackbone(input_size=(64, 64)), temperature=temperature) for temperature in (1.5, 0.0)
    )
    shown, raw = (item.segment(query, support, mask, refine=False, min_presence=0) for item in (model, plain))
    own = float(torch.sigmoid(threshold_logit(torch.from_numpy(raw.maps[:1]), 1.5)))
    same = dataclasses.replace(raw, threshold=own)
    assert np.abs(shown.maps[2] - raw.maps[2]).max() > 1e-3, "an error of another probability"
    small = [dataclasses.replace(item, image=np.zeros((64, 64, 3), np.uint8)) for item in (shown, same)]
    assert np.allclose(*(item.expected_error for item in small), atol=1e-3)


def test_zero_and_one_stay_whatever_the_shift() -> None:
    ends = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(shifted(ends, torch.tensor([3.0, -3.0])), ends)


def test_a_common_threshold_of_a_decoder_that_was_read_stays() -> None:
    fields = json.loads(DecoderConfig().to_json()) | {"format_version": 5}
    for name in ("threshold", "temperature", "quality_normalisation"):
        del fields[name]
    found = DecoderConfig.from_json(json.dumps(fields))
    assert (found.threshold, found.temperature, found.quality_normalisation) == (0.3, 0.0, True)
