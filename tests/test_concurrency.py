"""One model in several threads and processes gives what it gives alone."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import kernels
import numpy as np
import pytest
import torch
from fakes import FakeFrozen, shape_image, tiny_model

from diffup import Box, DiffUp, Segmentation

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES = range(16)


def encoder() -> FakeFrozen:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FakeFrozen()


def build() -> DiffUp:
    return tiny_model(encoder())


def segment(model: DiffUp, seed: int) -> Segmentation:
    query, _ = shape_image((1,), seed=seed)
    support, labels = shape_image((1, 2), seed=100 + seed)
    return model.segment(query, [support, query], [labels == 1, Box(5, 5, 40, 40)], seed=seed, trace=True)


def in_a_process(seed: int) -> np.ndarray:
    torch.set_num_threads(1)
    return segment(build(), seed).probability


@pytest.fixture(scope="module")
def alone() -> list[Segmentation]:
    model = build()
    return [segment(model, seed) for seed in QUERIES]


def test_eight_threads_share_one_model(alone: list[Segmentation]) -> None:
    model = build()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: segment(model, seed), [*QUERIES, *QUERIES]))
    for result, expected in zip(together, alone * 2, strict=True):
        assert (result.probability == expected.probability).all()
        assert (result.trace == expected.trace).all() and result.quality == expected.quality


def test_threads_may_upgrade_and_save_what_others_use(alone: list[Segmentation], tmp_path: object) -> None:
    model, other = build(), encoder()

    def work(seed: int) -> Segmentation:
        if seed % 4 == 0:
            model.save_pretrained(tmp_path)
        return segment(model.upgrade(other) if seed % 2 else model, seed)

    with ThreadPoolExecutor(8) as pool:
        for result, expected in zip(pool.map(work, QUERIES), alone, strict=True):
            assert (result.probability == expected.probability).all()
    saved = DiffUp.from_pretrained(tmp_path, backbone=other, device="cpu")
    assert (segment(saved, 0).probability == alone[0].probability).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(method: str, alone: list[Segmentation]) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    with ProcessPoolExecutor(2, multiprocessing.get_context(method), kernels.choose) as pool:
        for probability, expected in zip(pool.map(in_a_process, range(4), timeout=500), alone[:4], strict=True):
            assert (probability == expected.probability).all()
