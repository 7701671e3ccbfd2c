"""How masks are sampled: one object, keyword arguments, numbers of other libraries, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tiny_config, tiny_model
from scene import MASK, QUERY, SUPPORT

from diffup.decoder.options import SamplingOptions, sampling_options
from diffup.errors import ConfigError
from diffup.refine import REFINE
from diffup.result import Segmentation


def test_numbers_of_numpy_are_numbers() -> None:
    options = SamplingOptions(steps=np.int64(2), ensemble=np.uint8(3), threshold=np.float32(0.5), seed=np.int32(7))
    found = options.resolve(tiny_config())
    assert (found.steps, found.ensemble, found.threshold()) == (2, 3, 0.5)
    plain = SamplingOptions(steps=2, ensemble=3, threshold=0.5, seed=7).resolve(tiny_config())
    assert torch.equal(found.noise, plain.noise)


def test_keyword_arguments_count_more_than_the_object() -> None:
    found = sampling_options(SamplingOptions(steps=3, seed=1), {"steps": 2})
    assert found == SamplingOptions(steps=2, seed=1)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"steps": 2.0}, "steps=2.0: it must be a whole number"),
        ({"ensemble": True}, "ensemble=True: it must be a whole number"),
        ({"threshold": "0.5"}, "threshold='0.5': it must be a number"),
        ({"threshold": 1}, "threshold=1: it must lie between 0 and 1"),
        ({"min_presence": "0.5"}, "min_presence='0.5': it must be a number"),
        ({"min_presence": True}, "min_presence=True: it must be a number"),
        ({"min_presence": -0.1}, "min_presence=-0.1: it must be 0 to 1"),
        ({"min_presence": 1.1}, "min_presence=1.1: it must be 0 to 1"),
        ({"min_presence": float("nan")}, "min_presence=nan: it must be 0 to 1"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"refine": "no"}, "refine='no': it must be True or False"),
        ({"generator": np.random.default_rng(0)}, "expected a torch.Generator"),
    ],
)
def test_what_is_no_option_is_refused(options: dict[str, Any], refused: str) -> None:
    with pytest.raises(ConfigError, match=refused):
        SamplingOptions(**options).resolve(tiny_config())


def test_refinement_has_one_default_and_can_be_switched_off() -> None:
    assert SamplingOptions().resolve(tiny_config()).refine is REFINE
    model = tiny_model()
    prototypes = model.prototypes(SUPPORT, MASK)
    for refine in (True, False):
        one = model.segment(QUERY, prototypes, refine=refine)
        several = model.segment(QUERY, [prototypes], refine=refine)
        [many] = model.segment_many([QUERY], prototypes, refine=refine)
        assert isinstance(many, Segmentation)
        assert one.refine is several.results[0].refine is many.refine is refine
        assert np.array_equal(several.labels == 1, one.mask)
        assert np.array_equal(one.mask, many.mask)
    assert np.array_equal(model.segment(QUERY, prototypes).mask, model.segment(QUERY, prototypes, refine=REFINE).mask)


def test_a_class_below_the_minimum_presence_is_not_marked() -> None:
    config = tiny_config(min_presence=0.25)
    assert SamplingOptions().resolve(config).min_presence == 0.25
    assert SamplingOptions(min_presence=np.float64(0.5)).resolve(config).min_presence == 0.5
    assert SamplingOptions(min_presence=0).resolve(config).min_presence == 0, "0 is not None"
    model = tiny_model(min_presence=1.0)
    prototypes = model.prototypes(SUPPORT, MASK, threshold=0.01)
    for least, present in ((None, False), (0.0, True)):
        options = SamplingOptions(min_presence=least)
        one = model.segment(QUERY, prototypes, options=options)
        several = model.segment(QUERY, [prototypes], options=options)
        [many] = model.segment_many([QUERY], prototypes, options=options)
        assert isinstance(many, Segmentation)
        assert 0 < one.presence < 1 and one.min_presence == (0.0 if present else 1.0)
        assert one.present is several.results[0].present is many.present is present
        assert one.mask.any() == (several.labels == 1).any() == many.mask.any() == present


def test_names_and_objects_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="'step'; did you mean 'steps'"):
        tiny_model().segment(QUERY, SUPPORT, MASK, step=1)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="expected SamplingOptions"):
        tiny_model().segment(QUERY, SUPPORT, MASK, options={"steps": 1})  # type: ignore[call-overload]


def test_a_pickled_result_leaves_the_enlarged_maps_behind() -> None:
    result = tiny_model().segment(QUERY, SUPPORT, MASK)
    before = len(pickle.dumps(result))
    mask = result.mask
    assert len(pickle.dumps(result)) == before
    assert np.array_equal(pickle.loads(pickle.dumps(result)).mask, mask)
