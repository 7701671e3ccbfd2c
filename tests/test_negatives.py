"""Negatives of a class: what looks like it and is not takes its pixels, in every way of using prototypes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, shape_image, tiny_model
from PIL import Image
from safetensors import safe_open
from scene import MASK, QUERY, SUPPORT, assert_close, assert_equal

from diffup import DiffUp, Mask, Prototypes, Segmentation, cli
from diffup.decoder.weights import save_decoder
from diffup.errors import AnnotationError, ImageError
from diffup.inference import NEGATIVE_SHARE, opposed
from diffup.prototypes.file import FORMAT

OTHER, OTHER_LABELS = shape_image((2,), (80, 64), seed=5)
OTHER_MASK = OTHER_LABELS == 2
UNREFINED: dict[str, Any] = {"refine": False, "min_presence": 0}


@pytest.fixture
def model() -> DiffUp:
    return tiny_model(FakeBackbone())


@pytest.fixture
def taught(model: DiffUp) -> Prototypes:
    return model.prototypes(SUPPORT, MASK, negatives=OTHER, negative_annotation=OTHER_MASK, name="disc")


def result_of(probability: list[float], threshold: float, presence: float) -> Segmentation:
    maps = np.zeros((4, 1, len(probability)), dtype=np.float32)
    maps[0, 0] = probability
    image = np.zeros((2, 4, 3), dtype=np.uint8)
    return Segmentation(image, maps, 0.5, threshold, "fake", presence=presence, score=presence / 2, refine=False)


def odds(probability: Any) -> Any:
    return probability / (1 - probability)


def test_a_class_loses_a_share_of_the_odds_by_which_its_negatives_exceed_their_threshold(taught: Prototypes) -> None:
    own, other = result_of([0.6, 0.6, 0.3], 0.5, 0.8), result_of([0.9, 0.01, 0.6], 0.25, 0.9)
    (found,) = opposed([own, other], [taught])
    leads = [(odds(p) / odds(0.25)) ** NEGATIVE_SHARE for p in (0.9, 0.25, 0.6)]
    expected = [odds(p) / lead for p, lead in zip((0.6, 0.6, 0.3), leads, strict=True)]
    assert found.maps[0, 0] == pytest.approx([value / (1 + value) for value in expected], rel=1e-4)
    assert odds(found.presence) == pytest.approx(odds(0.8) ** 2 / odds(0.9), rel=1e-4)
    assert found.score == pytest.approx(found.presence / 2)
    assert np.array_equal(found.maps[1:], own.maps[1:])
    weaker = opposed([own, result_of([0.1, 0.2, 0.25], 0.25, 0.3)], [taught])[0]
    assert np.array_equal(weaker.maps, own.maps)
    assert weaker.presence == own.presence


def test_classes_without_negatives_are_as_they_were(taught: Prototypes) -> None:
    plain = replace(taught, negative=None)
    a, b, other = (result_of([p], 0.5, 0.5) for p in (0.6, 0.7, 0.9))
    first, second = opposed([a, b, other], [plain, taught])
    assert first is a
    assert second.maps[0, 0, 0] < 0.5


def test_a_class_stays_where_it_exceeds_its_threshold_by_more_than_the_share(taught: Prototypes) -> None:
    generator = np.random.default_rng(0)
    own, other = (result_of(generator.uniform(0.01, 0.99, 50).tolist(), 0.4, 0.5) for _ in range(2))
    (found,) = opposed([own, other], [taught])
    mine, theirs = (odds(result.maps[0]) / odds(0.4) for result in (own, other))
    assert np.array_equal(found.maps[0] > 0.4, (mine > 1) & (mine > theirs**NEGATIVE_SHARE))
    assert ((mine > 1) & (mine < theirs**NEGATIVE_SHARE)).any()


def test_what_is_left_of_no_pixel_has_no_quality(taught: Prototypes) -> None:
    """An empty mask, whose presence its negatives do not change, is not to be trusted."""
    own, other = result_of([0.6, 0.4], 0.5, 0.8), result_of([0.99, 0.99], 0.5, 0.3)
    (found,) = opposed([own, other], [taught])
    assert own.mask.any() and not found.mask.any()
    assert (found.presence, found.quality, found.score) == (own.presence, 0.0, 0.0)


def test_negatives_are_a_class_of_the_same_query(model: DiffUp, taught: Prototypes) -> None:
    classes = [replace(taught, negative=None), model.prototypes(OTHER, OTHER_MASK, name="not disc")]
    (expected,) = opposed(model.segment(QUERY, classes, **UNREFINED).results, [taught])
    assert_close(model.segment(QUERY, taught, **UNREFINED), expected)


def test_streams_and_label_maps_know_of_negatives(model: DiffUp, taught: Prototypes) -> None:
    alone = model.segment(QUERY, taught, **UNREFINED)
    (streamed,) = model.segment_many([QUERY], taught, **UNREFINED)
    assert isinstance(streamed, Segmentation)
    assert_close(streamed, alone)
    other = model.prototypes(OTHER, OTHER_MASK, name="square")
    assert_close(model.segment(QUERY, [other, taught], **UNREFINED)["disc"], alone)


def test_negatives_are_saved_added_and_rebuilt(model: DiffUp, taught: Prototypes, tmp_path: Path) -> None:
    loaded = Prototypes.load(taught.save(tmp_path / "disc.safetensors"))
    assert loaded.negative is not None
    assert loaded.negative.shots == 1
    assert repr(loaded) == repr(taught)
    assert "1 negative" in repr(taught)
    half = model.segment(QUERY, loaded, **UNREFINED)
    assert np.abs(half.probability - model.segment(QUERY, taught, **UNREFINED).probability).max() < 0.05

    later = replace(taught, negative=None).add(model, negatives=OTHER, negative_annotation=OTHER_MASK)
    assert_equal(model.segment(QUERY, later, **UNREFINED), model.segment(QUERY, taught, **UNREFINED))
    more = taught.add(model, negatives=[SUPPORT], negative_annotation=[Mask(~MASK)])
    assert more.negative is not None
    assert more.negative.shots == 2
    assert more.shots == 1
    both = taught.add(model, SUPPORT, MASK)
    assert both.negative is taught.negative

    kept = model.prototypes(SUPPORT, MASK, negatives=OTHER, name="disc", keep_images=True)
    again = Prototypes.load(kept.save(tmp_path / "kept.safetensors")).rebuild(tiny_model(FakeBackbone(seed=1)))
    assert again.negative is not None
    assert again.negative.fingerprint == again.fingerprint != kept.fingerprint


def test_files_without_negatives_stay_readable_for_older_versions(taught: Prototypes, tmp_path: Path) -> None:
    versions = []
    for prototypes in (replace(taught, negative=None), taught):
        with safe_open(prototypes.save(tmp_path / "any.safetensors"), framework="pt") as file:
            versions.append('"version": 1' in file.metadata()[FORMAT])
    assert versions == [True, False]


def test_the_mask_of_a_result_is_a_shot(model: DiffUp, taught: Prototypes) -> None:
    result = model.segment(QUERY, taught, min_presence=0)
    more = taught.add(model, QUERY, result.mask)
    assert more.shots == 2
    assert more.features is not None
    assert torch.equal(more.features.annotated, torch.ones(1, 2, dtype=torch.bool))


def test_a_wrong_negative_is_named(model: DiffUp, taught: Prototypes) -> None:
    with pytest.raises(ImageError, match=r"^negatives\[1\]"):
        taught.add(model, negatives=[OTHER, "none.jpg"])
    with pytest.raises(AnnotationError, match=r"^negative_annotation"):
        model.prototypes(SUPPORT, MASK, negatives=OTHER, negative_annotation=MASK[:5])
    with pytest.raises(AnnotationError, match="negative_annotation: there is no image"):
        model.prototypes(SUPPORT, MASK, negative_annotation=MASK)


def test_teach_not(
    model: DiffUp,
    taught: Prototypes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, a_mask, b, b_mask = (str(tmp_path / f"{name}.png") for name in ("a", "a_mask", "b", "b_mask"))
    for path, pixels in ((a, SUPPORT), (a_mask, MASK), (b, OTHER), (b_mask, OTHER_MASK)):
        Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint8) * 255).save(path)
    save_decoder(tmp_path / "decoder", model.decoder.state_dict(), model.config)
    shared = ["--decoder", str(tmp_path / "decoder"), "--device", "cpu", "--quiet"]
    out = str(tmp_path / "out.safetensors")
    assert cli.main(["teach", "--support", a, "--mask", a_mask, "--name", "disc", "-o", out, *shared]) == 0
    assert Prototypes.load(out).negative is None
    assert cli.main(["teach", "--add", out, "--not", b, "--mask", b_mask, "-o", out, *shared]) == 0
    negative = Prototypes.load(out).negative
    assert negative is not None
    assert taught.negative is not None
    assert taught.negative.features is not None
    assert negative.features is not None
    assert torch.equal(negative.features.foreground > 0.5, taught.negative.features.foreground > 0.5)
    assert cli.main(["teach", "--not", b, "--name", "disc", "-o", out, *shared]) == cli.FAILED
    assert "--support IMG" in capsys.readouterr().err
    wrong = ["teach", "--add", out, "--not", b, "--box", "0,0,999,9", "-o", out, *shared]
    assert cli.main(wrong) == cli.FAILED
    assert f"--box of {b}" in capsys.readouterr().err
