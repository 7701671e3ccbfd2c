"""Nothing between features and probability is made on the CPU or waits for it: run on torch's `meta` device.

Tensors there have shapes and no values, so an operation that mixes devices or reads a value fails. Checks of values
(`torch.compiler.is_exporting` turns them off) and edges, which grow until nothing changes, are left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import random_decoder, random_episode, tiny_config

from diffup.decoder.sampling import sample_ensemble
from diffup.priors.condition import assemble, class_maps
from diffup.priors.prepared import prepare_query, prepare_support

META = torch.device("meta")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"self_affinity": False},
        {"affinity": False, "centre": False},
        {"calibration": False, "absolute": False},
        {"layout": "own"},
    ],
    ids=str,
)
def test_a_query_stays_on_its_device(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    config = dataclasses.replace(config, priors=dataclasses.replace(config.priors, **changes))
    query, support, images = random_episode()
    prepared = prepare_support(support, config.priors).each(lambda tensor: tensor.to(META))
    edges = torch.empty(len(images), 2, *images.shape[2:], device=META)
    decoder = random_decoder(config).to(META)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)

    queries = prepare_query([level.to(META) for level in query], images.to(META), config.priors, edges=edges)
    condition = assemble(class_maps(queries, prepared, config.priors), config.priors)
    found = sample_ensemble(decoder, condition, torch.empty(len(images), 2, 64, 64, device=META), 3)

    tensors = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert all(tensor.device == META for tensor in tensors)


def test_mixed_devices_fail_there(monkeypatch: pytest.MonkeyPatch) -> None:
    query, support, images = random_episode()
    config = tiny_config().priors
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    prepared = prepare_support(support, config)  # on the CPU
    edges = torch.empty(len(images), 2, *images.shape[2:], device=META)
    queries = prepare_query([level.to(META) for level in query], images.to(META), config, edges=edges)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        assemble(class_maps(queries, prepared, config), config)
