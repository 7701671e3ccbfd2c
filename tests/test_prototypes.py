"""`Prototypes`: the result of the images themselves, adding shots, files, rebuilding, and every documented error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, shape_image, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scene import QUERY, assert_equal
from torch import Tensor

from diffup import Box, DiffUp, Mask, Points, Prototypes, Scribble
from diffup.errors import AnnotationError, FormatError, ImageError, PrototypesError
from diffup.inputs.annotations import pair_supports
from diffup.priors.config import PriorConfig
from diffup.prototypes import check_classes
from diffup.prototypes.file import FORMAT
from diffup.prototypes.kept_supports import KeptSupport

IMAGES, MASKS = zip(*(shape_image((1,), (80, 64 + 8 * seed), seed=seed) for seed in range(4)), strict=True)
MASKS = [labels == 1 for labels in MASKS]
WIDE = FakeBackbone((32,) * 4, (8, 8, 16, 16), (64, 64), seed=1)


class OneByOne(FakeBackbone):
    """Encodes image by image, so that features do not change with the batch that an image comes in, to the bit."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        each = [super(OneByOne, self).pyramid(image[None]) for image in images]
        return [torch.cat(levels) for levels in zip(*each, strict=True)]


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(OneByOne())


@pytest.fixture(scope="module")
def dog(model: DiffUp) -> Prototypes:
    return model.prototypes(IMAGES[0], MASKS[0], name="dog")


def assert_same_features(a: Prototypes, b: Prototypes) -> None:
    assert (a.shots, a.name) == (b.shots, b.name)
    for ours, theirs in zip(a.features.levels, b.features.levels, strict=True):
        assert torch.equal(ours, theirs)
    for name in ("foreground", "background", "valid"):
        assert torch.equal(getattr(a.features, name), getattr(b.features, name)), name


# --- in the place of images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_prototypes_give_what_the_images_give_bit_for_bit(model: DiffUp, shots: int) -> None:
    images, masks = list(IMAGES[:shots]), [MASKS[0], Box(5, 5, 40, 40), None, Points([(30, 40)])][:shots]
    prototypes = model.prototypes(images, masks, name="shape")
    assert prototypes.shots == shots and "shape" in repr(prototypes)
    for seed in (0, 3):
        assert_equal(model.segment(QUERY, prototypes, seed=seed), model.segment(QUERY, images, masks, seed=seed))


def test_the_support_is_not_encoded_again(model: DiffUp, dog: Prototypes) -> None:
    before = model.backbone.calls
    model.segment(QUERY, dog)
    assert model.backbone.calls == before + 1


def test_features_are_pooled_to_the_priors_grid(model: DiffUp, dog: Prototypes) -> None:
    assert [tuple(level.shape[3:]) for level in dog.features.levels] == [(4, 4), (4, 4), (6, 6), (3, 3)]


def test_a_class_may_have_a_threshold(model: DiffUp, dog: Prototypes) -> None:
    own = model.prototypes(IMAGES[0], MASKS[0], name="dog", threshold=0.3)
    assert model.segment(QUERY, own).threshold == 0.3
    assert model.segment(QUERY, own, threshold=0.6).threshold == 0.6
    assert model.segment(QUERY, dog).threshold == model.config.threshold


def test_a_threshold_may_be_any_number(model: DiffUp, tmp_path: Path) -> None:
    own = model.prototypes(IMAGES[0], MASKS[0], threshold=np.float32(0.25))
    assert Prototypes.load(own.save(tmp_path / "own.safetensors")).threshold == 0.25
    for wrong in ("0.5", 1.0, float("nan"), True):
        with pytest.raises(PrototypesError, match="threshold="):
            model.prototypes(IMAGES[0], MASKS[0], threshold=wrong)


def test_annotations_are_not_for_prototypes(model: DiffUp, dog: Prototypes) -> None:
    for support in (dog, [dog]):
        with pytest.raises(AnnotationError, match="prototypes have theirs inside"):
            model.segment(QUERY, support, MASKS[0])
        with pytest.raises(AnnotationError, match="text: prototypes have theirs inside"):
            model.segment(QUERY, support, text="dog")  # though this encoder reads no text


# --- adding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "added"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_adding_gives_the_prototypes_of_all_images(model: DiffUp, first: int, added: int) -> None:
    count = first + added
    some = model.prototypes(list(IMAGES[:first]), MASKS[:first], name="dog", threshold=0.4)
    before = model.backbone.encoded
    more = some.add(model, list(IMAGES[first:count]), MASKS[first:count])
    assert model.backbone.encoded == before + added  # the new ones alone
    everything = model.prototypes(list(IMAGES[:count]), MASKS[:count], name="dog")
    assert_same_features(more, everything)
    assert more.threshold == 0.4 and some.shots == first
    assert_equal(model.segment(QUERY, more, threshold=0.5), model.segment(QUERY, everything, threshold=0.5))


def test_adding_a_single_image_without_a_list_and_one_after_the_other(model: DiffUp, dog: Prototypes) -> None:
    one_by_one = dog.add(model, IMAGES[1], MASKS[1]).add(model, IMAGES[2])
    everything = model.prototypes(list(IMAGES[:3]), [MASKS[0], MASKS[1], None], name="dog")
    assert_same_features(one_by_one, everything)


def test_adding_after_loading_keeps_the_old_in_the_files_precision(
    model: DiffUp, dog: Prototypes, tmp_path: Path
) -> None:
    loaded = Prototypes.load(dog.save(tmp_path / "dog.safetensors"))
    everything = model.prototypes(list(IMAGES[:2]), MASKS[:2], name="dog")
    assert_same_regions_within_half(loaded.add(model, IMAGES[1], MASKS[1]), everything)


def assert_same_regions_within_half(a: Prototypes, b: Prototypes) -> None:
    for ours, theirs in zip(a.features.levels, b.features.levels, strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-3
    assert (a.features.foreground - b.features.foreground).abs().max() < 1e-3


def test_bad_shots_are_refused(model: DiffUp, dog: Prototypes) -> None:
    with pytest.raises(ImageError, match="support"):
        dog.add(model, "none.png")
    with pytest.raises(AnnotationError, match="marks no pixel"):
        dog.add(model, IMAGES[1], np.zeros_like(MASKS[1]))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_saved_and_loaded(model: DiffUp, tmp_path: Path, keep: bool) -> None:
    made = model.prototypes(list(IMAGES[:2]), MASKS[:2], name="ein Hünd", threshold=0.4, keep_images=keep)
    path = made.save(tmp_path / "dog.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["dog.safetensors"]
    assert all(tensor.dtype in (torch.float16, torch.uint8) for tensor in load_file(path).values())
    loaded = Prototypes.load(path)
    for field in dataclasses.fields(Prototypes):
        if field.name != "features":
            assert getattr(loaded, field.name) == getattr(made, field.name), field.name
    assert all(level.dtype == torch.float32 for level in loaded.features.levels)
    again = Prototypes.load(loaded.save(tmp_path / "again.safetensors"))
    assert_same_features(again, loaded)  # nothing is lost a second time
    a, b = model.segment(QUERY, loaded), model.segment(QUERY, made)
    assert np.abs(a.probability - b.probability).max() < 0.02  # of a random decoder


@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 99))
def test_features_of_any_scale_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, exponent: int, seed: int
) -> None:
    """Float16 ends at 65504 and at 6e-8; what it cannot hold is saved in float32."""
    model = tiny_model()
    made = model.prototypes(IMAGES[seed % 4], MASKS[seed % 4])
    levels = tuple(level * 2.0**exponent for level in made.features.levels)
    scaled = dataclasses.replace(made, features=dataclasses.replace(made.features, levels=levels))
    path = scaled.save(tmp_path_factory.mktemp("scaled") / "x.safetensors")
    for ours, theirs in zip(Prototypes.load(path).features.levels, levels, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_another_ending_is_refused(dog: Prototypes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"ending in \.safetensors"):
        dog.save(tmp_path / "dog.pt")
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(dog: Prototypes, tmp_path: Path) -> None:
    with pytest.raises(PrototypesError, match="there is no file"):
        Prototypes.load(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no safetensors")
    with pytest.raises(PrototypesError, match="damaged"):
        Prototypes.load(broken)
    save_file({"a": torch.zeros(1)}, broken)
    with pytest.raises(PrototypesError, match="holds no prototypes"):
        Prototypes.load(broken)
    whole = dog.save(tmp_path / "dog.safetensors").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrototypesError, match="damaged"):
        Prototypes.load(broken)


def rewrite(path: Path, tensors: dict[str, object], **facts: object) -> None:
    """Change tensors and facts of a file of prototypes; None takes a tensor away."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()[FORMAT])
    changed = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(changed, path, metadata={FORMAT: json.dumps(known | facts)})


@pytest.mark.parametrize("shots", [1, 3])
def test_files_of_before_the_flag_tell_annotated_supports_by_their_whole_image(
    model: DiffUp, shots: int, tmp_path: Path
) -> None:
    close = [np.pad(np.ones((len(mask) - 10, mask.shape[1] - 10), dtype=bool), 5) for mask in MASKS]
    for marks in ([close[0], None, Box(5, 5, 40, 40)][:shots], [None, close[1], None][:shots]):
        made = model.prototypes(list(IMAGES[:shots]), marks, name="dog", keep_images=True)
        path = made.save(tmp_path / "dog.safetensors")
        assert torch.equal(Prototypes.load(path).features.annotated, made.features.annotated)
        rewrite(path, {"annotated": None} | {f"kept.{index}.annotated": None for index in range(shots)})
        old = Prototypes.load(path)
        assert torch.equal(old.features.annotated, made.features.annotated)
        assert torch.equal(old.rebuild(model).features.annotated, made.features.annotated)
        assert made.features.annotated[0].tolist() == [a is not None for a in marks] * (3 if shots == 1 else 1)


@pytest.mark.parametrize(
    ("tensors", "facts", "message"),
    [
        ({}, {"version": 3}, "upgrade diffup"),
        ({"level.2": None}, {}, r"level\.2"),
        ({"regions": torch.zeros(5, 2, 64, 64)}, {}, "regions"),
        ({"level.0": torch.full((5, 8, 4, 4), torch.nan)}, {}, "not finite"),
        ({"level.0": torch.zeros(4, 8, 4, 4)}, {}, "level.0"),
        ({"valid": torch.zeros(5, dtype=torch.uint8)}, {}, "views"),
        ({}, {"shots": 9}, "shots"),
        ({}, {"shots": 2}, "3 views of 2 shots"),
        ({}, {"shots": 1.0}, "3 views of 1.0 shots"),
        ({}, {"kept": 1}, "kept"),
        ({}, {"colour": "red"}, "colour"),
        ({}, {"name": ""}, "name"),
        ({}, {"input_size": 5}, "damaged"),
        ({}, {"input_size": [float("inf"), 1]}, "damaged"),
    ],
)
def test_files_that_do_not_agree_with_themselves(
    dog: Prototypes, tmp_path: Path, tensors: dict[str, object], facts: dict[str, object], message: str
) -> None:
    path = dog.save(tmp_path / "dog.safetensors")
    rewrite(path, tensors, **facts)
    with pytest.raises(PrototypesError, match=message):
        Prototypes.load(path)


@pytest.mark.parametrize("facts", ["3", '"x"', "[]", "[" * 100_000, "{"])
def test_facts_that_are_none(dog: Prototypes, tmp_path: Path, facts: str) -> None:
    path = dog.save(tmp_path / "dog.safetensors")
    save_file(load_file(path), path, {"diffup-prototypes": facts})
    with pytest.raises(PrototypesError, match="damaged"):
        Prototypes.load(path)


# --- another encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        FakeBackbone((32,) * 4, (8, 8, 16, 16), (64, 64), seed=1),  # another encoder
        FakeBackbone(seed=5),  # other weights
        FakeBackbone(input_size=(64, 64)),
    ],
)
def test_another_encoder_is_refused(model: DiffUp, dog: Prototypes, other: FakeBackbone) -> None:
    upgraded = model.upgrade(other)
    calls = [
        lambda: upgraded.segment(QUERY, dog),
        lambda: upgraded.segment(QUERY, [dog]),
        lambda: upgraded.segment_many([QUERY], dog),
        lambda: dog.add(upgraded, IMAGES[1], MASKS[1]),
    ]
    for call in calls:
        with pytest.raises(PrototypesError, match=r"'dog' were made with .* build them from the support images"):
            call()


def test_another_grid_is_refused(dog: Prototypes) -> None:
    finer = tiny_model(priors=PriorConfig(grid=16))
    with pytest.raises(PrototypesError, match="grid 8"):
        finer.segment(QUERY, dog)


@pytest.mark.parametrize("shots", [1, 2])
def test_kept_images_follow_a_change_of_the_encoder(model: DiffUp, tmp_path: Path, shots: int) -> None:
    annotations = [Scribble([(20, 30), (40, 50)]), None][:shots]
    kept = model.prototypes(list(IMAGES[:shots]), annotations, name="dog", threshold=0.3, keep_images=True)
    loaded = Prototypes.load(kept.save(tmp_path / "dog.safetensors"))
    upgraded = model.upgrade(WIDE)
    with pytest.raises(PrototypesError, match=r"prototypes\.rebuild\(model\)"):
        upgraded.segment(QUERY, loaded)
    rebuilt = loaded.rebuild(upgraded)
    assert (
        rebuilt.backbone == WIDE.name and rebuilt.kept_supports == kept.kept_supports and "images kept" in repr(rebuilt)
    )
    expected = upgraded.prototypes(list(IMAGES[:shots]), annotations, name="dog", threshold=0.3)
    assert_same_features(rebuilt, expected)
    assert_equal(upgraded.segment(QUERY, rebuilt), upgraded.segment(QUERY, expected))


def test_shots_added_to_kept_images_are_kept(model: DiffUp) -> None:
    kept = model.prototypes(IMAGES[0], MASKS[0], keep_images=True).add(model, IMAGES[1], MASKS[1])
    assert len(kept.kept_supports) == 2
    upgraded = model.upgrade(WIDE)
    assert_same_features(kept.rebuild(upgraded), upgraded.prototypes(list(IMAGES[:2]), MASKS[:2]))


def test_without_kept_images_there_is_nothing_to_rebuild_from(model: DiffUp, dog: Prototypes) -> None:
    with pytest.raises(PrototypesError, match="keep no images"):
        dog.rebuild(model.upgrade(WIDE))
    assert_same_features(dog.rebuild(model), dog)  # nothing to do


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99), kind=st.sampled_from("mbn"))
def test_kept_supports_come_back_exactly(height: int, width: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = rng.random((height, width)) > 0.5
    mask[0, 0] = True
    annotation = {"m": Mask(mask), "b": Box(0, 0, width, height), "n": None}[kind]
    (support,) = pair_supports(image, annotation)
    again = KeptSupport.of(support).support("kept[0]")
    assert torch.equal(again.image, support.image)
    assert torch.equal(again.regions.foreground, support.regions.foreground)
    assert torch.equal(again.regions.background, support.regions.background)


def test_damaged_kept_images_are_said_so(model: DiffUp, tmp_path: Path) -> None:
    kept = model.prototypes(list(IMAGES[:2]), MASKS[:2], keep_images=True)
    path = kept.save(tmp_path / "kept.safetensors")
    rewrite(path, {"kept.1.photo": torch.zeros(50, dtype=torch.uint8)})
    with pytest.raises(PrototypesError, match=r"kept\[1\] is damaged"):
        Prototypes.load(path).rebuild(model)
    other = model.prototypes(IMAGES[1], MASKS[1], keep_images=True).kept_supports[0].photo
    rewrite(path, {"kept.1.photo": torch.frombuffer(bytearray(other[:-60]), dtype=torch.uint8)})
    with pytest.raises(PrototypesError, match=r"kept\[1\] is damaged"):
        Prototypes.load(path).rebuild(model)
    rewrite(path, {"kept.0.photo": torch.frombuffer(bytearray(other), dtype=torch.uint8)})
    with pytest.raises(PrototypesError, match=r"kept\[0\] is damaged.*sizes"):
        Prototypes.load(path).rebuild(model)


# --- names, thresholds and lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "  ", "a\nb", 5])
def test_names(model: DiffUp, name: object) -> None:
    with pytest.raises(PrototypesError, match="name="):
        model.prototypes(IMAGES[0], MASKS[0], name=name)


def test_a_class_without_a_name_is_an_object(model: DiffUp) -> None:
    assert model.prototypes(IMAGES[0], MASKS[0]).name == "object"


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_thresholds(model: DiffUp, threshold: float) -> None:
    with pytest.raises(PrototypesError, match="threshold="):
        model.prototypes(IMAGES[0], MASKS[0], threshold=threshold)


def test_lists_of_classes(model: DiffUp, dog: Prototypes) -> None:
    cases = [
        ([], "got an empty list"),
        ([dog, QUERY], "got Prototypes, ndarray"),
        ("dog.safetensors", "got str"),
        ([dog, dog], "'dog' is there more than once"),
        ([dataclasses.replace(dog, name=f"dog {i}") for i in range(256)], "256 classes"),
    ]
    for given_classes, message in cases:
        with pytest.raises(PrototypesError, match=message):
            check_classes(given_classes, model)
    with pytest.raises(PrototypesError, match="got Prototypes, ndarray"):
        model.segment(QUERY, [dog, IMAGES[0]])
