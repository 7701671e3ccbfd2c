"""What depends on the query alone is computed once for all classes, and what depends on a class once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, random_decoder, random_episode, shape_image, tiny_config

from diffup import DiffUp, Mask, Prototypes, inference
from diffup.priors import level, prepared
from diffup.priors import text as priors_text
from diffup.priors.condition import assemble, class_maps
from diffup.priors.config import PriorConfig
from diffup.priors.features import SupportFeatures
from diffup.priors.prepared import calibrated_contrast, level_priors, prepare_query, prepare_support


@pytest.fixture
def model() -> DiffUp:
    return DiffUp(random_decoder(tiny_config()), FakeBackbone(input_size=(64, 64)), "cpu")


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[int]]:
    """Counts the calls of a module's function: returns a list that grows by one with each."""

    def watch(module: Any, name: str) -> list[int]:
        calls: list[int] = []
        original = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            calls.append(1)
            return original(*args, **options)

        monkeypatch.setattr(module, name, counted)
        return calls

    return watch


def classes(model: DiffUp, annotated: bool = True) -> list[Prototypes]:
    """Three classes with one, two and one supports."""
    found = []
    for index, shots in enumerate((1, 2, 1)):
        images = [shape_image((1, 2), seed=10 * index + shot) for shot in range(shots)]
        masks = [Mask(labels == 1 + index % 2) if annotated else None for _, labels in images]
        found.append(model.prototypes([image for image, _ in images], masks, name=f"class {index}"))
    return found


def test_the_query_is_prepared_once_for_all_classes(model: DiffUp, count: Callable[[Any, str], list[int]]) -> None:
    known, query = classes(model), shape_image((1, 2), seed=5)[0]
    for item in known:
        model.segment(query, item)  # the classes are prepared
    names = ("affinity_of", "salient_map", "edge_maps", "query_affinity")
    calls = {name: count(prepared, name) for name in names}
    label_map = model.segment(query, known)
    assert {name: len(found) for name, found in calls.items()} == {
        "affinity_of": 4,
        "salient_map": 4,
        "edge_maps": 1,
        "query_affinity": 1,
    }
    for item in known:
        alone = model.segment(query, item)
        np.testing.assert_allclose(label_map[item.name].maps, alone.maps, atol=1e-5)
        assert label_map[item.name].presence == pytest.approx(alone.presence, abs=1e-5)


def test_a_class_is_prepared_once_for_all_queries(model: DiffUp, count: Callable[[Any, str], list[int]]) -> None:
    (first, *_), bare = classes(model), classes(model, annotated=False)[1]
    queries = [shape_image((1, 2), seed=seed)[0] for seed in (5, 6, 7)]
    made, marked = count(prepared, "annotation_at_level"), count(level, "salient_map")
    together = [model.segment(query, [first, bare]) for query in queries]
    positions = [features.shape[-1] for features in bare.features.levels]  # type: ignore[union-attr]
    coarse = sum(side > prepared.MATCH_GRID for side in positions)
    assert len(made) == 2 * (4 + coarse)
    assert len(marked) == 4 + coarse  # saliency marks the class where no annotation does
    again = []
    for query in queries:
        fresh = [classes(model)[0], classes(model, annotated=False)[1]]
        again.append(model.segment(query, fresh))
    for one, other in zip(together, again, strict=True):
        for a, b in zip(one.results, other.results, strict=True):
            np.testing.assert_array_equal(a.maps, b.maps)


def test_what_is_kept_for_the_next_query_follows_config_and_is_not_stored(model: DiffUp) -> None:
    item, device = classes(model)[0], torch.device("cpu")
    priors = model.config.priors
    kept = item.prepared(priors, (), device)
    assert kept is not None and item.prepared(priors, (), device) is kept
    other = item.prepared(PriorConfig(grid=4), (), device)
    assert other is not kept and other is not None
    assert other.levels[3][0].positions.shape[1] <= kept.levels[3][0].positions.shape[1]
    copied = pickle.loads(pickle.dumps(item))
    assert "_prepared" not in vars(copied) and "_prepared" in vars(item)
    assert torch.equal(copied.features.levels[0], item.features.levels[0])


def test_text_affinities_are_computed_once(model: DiffUp, count: Callable[[Any, str], list[int]]) -> None:
    levels = [torch.randn(2, c, s, s) for c, s in zip((8, 12, 16, 24), (16, 8, 4, 2), strict=True)]
    similar = torch.rand(2, 3, 8, 8)
    calls = count(priors_text, "affinity")
    affinities = inference.query_text_affinities(levels, model.backbone, model.config)
    assert len(calls) == 1
    shared = priors_text.text_maps(similar, levels[-1], (), affinities)
    assert len(calls) == 1
    assert torch.equal(shared, priors_text.text_maps(similar, levels[-1]))


@pytest.mark.parametrize("metric", ["cosine", "l1"])
def test_the_calibrated_contrast_takes_the_scores_of_the_contrast_prior(
    metric: str, count: Callable[[Any, str], list[int]]
) -> None:
    query, support, images = random_episode()
    options: dict[str, Any] = {} if metric == "cosine" else {"metric": metric, "conversion": "exponential"}
    config = PriorConfig(grid=8, **options)
    others = PriorConfig(grid=8, kinds=("prototype", "match"), **options)
    ready, known = prepare_query(query, images, config), prepare_support(support, config)
    calls = count(prepared, "compare")
    for part, side in zip(ready.levels, known.levels, strict=True):
        _, similar = level_priors(part[0], side[0], config)
        before = len(calls)
        shared = calibrated_contrast(part[0], side[0], similar, known.valid, config)
        assert len(calls) == before
        _, few = level_priors(part[0], side[0], others)
        own = calibrated_contrast(part[0], side[0], few, known.valid, others)
        assert torch.allclose(shared, own, atol=1e-6)


def test_one_preparation_of_many_episodes_is_that_of_each() -> None:
    query, support, images = random_episode(batch=2)
    config = PriorConfig(grid=8)
    ready = prepare_query(query, images, config)
    together = assemble(class_maps(ready, prepare_support(support, config), config), config)
    one = SupportFeatures(
        tuple(features[:1] for features in support.levels),
        support.foreground[:1],
        support.background[:1],
        support.valid[:1],
        support.annotated[:1],
        support.shots,
    )
    shared = prepare_support(one, config).each(lambda tensor: tensor.expand(2, *tensor.shape[1:]))
    alone = assemble(class_maps(ready, shared, config), config)
    for a, b in zip(together.levels, alone.levels, strict=True):
        assert torch.allclose(a[:1], b[:1], atol=1e-6)
        assert not torch.allclose(a[1:], b[1:], atol=1e-3), "the second query had its own support"
