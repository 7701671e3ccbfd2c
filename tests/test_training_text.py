"""Training with classes given by name: banks of similarities, runs with a text space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeTextSpace, images
from runs import CONFIG, assert_identical, banks_of, state, trainer_of
from torch import Tensor

from diffup.errors import ConfigError, TrainingError
from diffup.inputs.images import resize_image
from diffup.priors.text import text_similarity
from diffup.priors.views import ONE_SHOT_VIEWS, warp
from diffup.training import trainer as trainer_module
from diffup.training.bank import text_bank
from diffup.training.render import Rendered
from diffup.training.sampler import GROUPS, WHOLE

NAMED = dataclasses.replace(
    CONFIG,
    text_backbone="fake:text",
    episodes=dataclasses.replace(CONFIG.episodes, text=0.4, text_and_supports=0.3),
)


class Counting(FakeTextSpace):
    """A text space with a vocabulary, which counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def dense(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().dense(images)

    def vocabulary_mean(self) -> Tensor:
        return torch.tensor([0.1, -0.2, 0.3])


def test_a_text_bank_holds_the_similarities_of_every_view_to_every_name(tmp_path: Path) -> None:
    space, photos = Counting(), images((60, 70), batch=3)
    names = space.embed(["a red square", "a green disc"])

    def render(index: int) -> Rendered:
        return Rendered(photos[index], np.zeros((60, 70), np.uint8), index)

    bank = text_bank(tmp_path / "bank", 3, render, ONE_SHOT_VIEWS, space, names, progress=False)
    similar = bank.arrays["similar"]
    assert similar.shape == (3 * len(ONE_SHOT_VIEWS), 2, 12, 12) and similar.dtype == np.float16
    for entry in range(len(similar)):
        view = ONE_SHOT_VIEWS[entry % len(ONE_SHOT_VIEWS)]
        image = warp(resize_image(photos[entry // len(ONE_SHOT_VIEWS)], (48, 48))[None], view)
        expected = text_similarity(FakeTextSpace().dense(image), names, space.vocabulary_mean())[0]
        assert np.array_equal(similar[entry], expected.half().numpy())
    seen = space.seen
    again = text_bank(tmp_path / "bank", 3, render, ONE_SHOT_VIEWS, space, names, progress=False)
    assert space.seen == seen == len(similar) and np.array_equal(again.arrays["similar"], similar)


def test_banks_are_of_the_training_classes_in_their_order(shapes: Path, feature_cache: Path) -> None:
    space = FakeTextSpace()
    banks = banks_of(shapes, feature_cache, NAMED, text_space=space)
    assert set(banks.text) == set(GROUPS)
    assert space.texts == ["a photo of a square.", "a photo of a disc."]
    for group in GROUPS:
        assert banks.text[group].arrays["similar"].shape == (banks.images[group].length, 2, 12, 12)
    similar, masks = banks.text[WHOLE].arrays["similar"], banks.images[WHOLE].arrays["mask"]
    for entry in range(0, len(masks), len(ONE_SHOT_VIEWS)):
        for column, c in enumerate((1, 2)):
            inside = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks[entry] == c).float()[None], 12)[0]
            if (inside == 1).any():  # the name of what is shown is the more similar one
                own, other = (similar[entry, k][inside.numpy() == 1].mean() for k in (column, 1 - column))
                assert own > other + 0.1
    assert banks_of(shapes, feature_cache, CONFIG).text == {}


def test_other_names_or_another_text_space_make_new_banks(shapes: Path, tmp_path: Path) -> None:
    def folders(space: FakeTextSpace, folds: tuple[int, ...] = (0,)) -> set[str]:
        banks = banks_of(shapes, tmp_path, dataclasses.replace(NAMED, folds=folds), text_space=space)
        return {bank.folder.name for bank in banks.text.values()}

    before = folders(FakeTextSpace())
    assert folders(FakeTextSpace()) == before
    assert not folders(FakeTextSpace((64, 64))) & before
    assert not folders(FakeTextSpace(), folds=(1,)) & before


def test_steps_see_names_supports_and_both(shapes: Path, feature_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    banks = banks_of(shapes, feature_cache, NAMED, text_space=FakeTextSpace())
    trainer, seen = trainer_of(banks, NAMED), set()
    plain = trainer_module.prior_maps

    def spy(query: object, support: object, images: object, priors: object, low: bool, text: object, *rest, **options):
        seen.add((support is not None, text is not None))
        return plain(query, support, images, priors, low, text, *rest, **options)

    monkeypatch.setattr(trainer_module, "prior_maps", spy)
    for _ in range(12):
        assert trainer.advance().total.isfinite()
    assert seen == {(True, False), (False, True), (True, True)}


def test_a_run_with_names_is_stopped_and_gone_on_with(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path / "straight", NAMED, text_space=FakeTextSpace())
    for steps in (3, None):
        run(tmp_path / "pieces", NAMED, text_space=FakeTextSpace(), stop_after=steps)
    assert_identical(state(tmp_path / "straight"), state(tmp_path / "pieces"))
    run(tmp_path / "plain")
    one, other = (state(tmp_path / name)["model/head.1.weight"] for name in ("straight", "plain"))
    assert not torch.equal(one, other)


def test_a_text_space_and_its_name_go_together(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_space: the config names 'fake:text'; give that one"):
        run(tmp_path / "run", NAMED)
    with pytest.raises(ConfigError, match="text_space: the config names 'none'"):
        run(tmp_path / "run", text_space=FakeTextSpace())
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", NAMED, text_space=FakeTextSpace(), stop_after=1)
    with pytest.raises(TrainingError, match="text_backbone"):  # its checkpoint is of another text space
        run(tmp_path / "run", NAMED, text_space=FakeTextSpace((64, 64)), stop_after=2)


def test_the_estimate_counts_the_similarities(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"cache": tmp_path / "own", "progress": True, "text_space": FakeTextSpace(), "stop_after": 1}
    run(tmp_path / "run", NAMED, **options)
    told = capsys.readouterr().err
    size = sum(file.stat().st_size for file in (tmp_path / "own").rglob("*.npy")) / 1e9
    assert float(told.split("about ")[1].split(" GB")[0]) == pytest.approx(size, rel=0.1)
