"""Names in prototypes: alone, beside supports, several classes, streams, files, other text spaces, joint encoders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import (
    FakeBackbone,
    FakeTextSpace,
    ReadingBackbone,
    random_decoder,
    random_episode,
    save_tiny_decoder,
    shape_image,
    tiny_config,
    tiny_model,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from scene import MASK, QUERY, SUPPORT, TRUTH, assert_equal
from torch import Tensor

from diffup import DiffUp, LabelMap, Prototypes, cli
from diffup.backbones import JointBackbone
from diffup.errors import AnnotationError, BackboneError, ConfigError, DataError, PrototypesError
from diffup.labelling import LabelPlan, label_folder
from diffup.priors.condition import build_condition, fused_priors
from diffup.priors.config import PriorConfig
from diffup.priors.text import text_maps
from diffup.prototypes import join_prototypes
from diffup.prototypes.file import FORMAT


class Counting(FakeTextSpace):
    """Counts how many images went through."""

    def __init__(self, input_size: tuple[int, int] = (48, 48)) -> None:
        super().__init__(input_size)
        self.batches: list[int] = []

    def dense(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return super().dense(images)


def make_model(space: FakeTextSpace | None = None, backbone: FakeBackbone | None = None, **config: object) -> DiffUp:
    return tiny_model(backbone, text_backbone=space, **config)


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return make_model(Counting())


@pytest.fixture(scope="module")
def square(model: DiffUp) -> Prototypes:
    return model.prototypes(text=["red box", "square"])


@pytest.fixture(scope="module")
def both(model: DiffUp) -> Prototypes:
    return model.prototypes(SUPPORT, MASK, text="square", templates="clip7", name="both")


def sentences(prototypes: Prototypes) -> tuple[str, ...]:
    assert prototypes.text_prompt is not None
    return prototypes.text_prompt.sentences


# --- in the place of names -------------------------------------------------------------------------------------------


def test_names_alone(model: DiffUp, square: Prototypes) -> None:
    assert (square.name, square.features, square.shots) == ("red box", None, 0)
    assert sentences(square) == ("a photo of a red box.", "a photo of a square.")
    assert "2 sentences" in repr(square) and "shot" not in repr(square)
    assert_equal(model.segment(QUERY, square, seed=3), model.segment(QUERY, text=["red box", "square"], seed=3))


def test_a_sentence_counts_once(model: DiffUp) -> None:
    once = model.prototypes(text=["square", "square"], templates=["{}", "{}"])
    assert sentences(once) == ("square",)
    assert sentences(once.add(model, text="square", templates=["{}"])) == ("square",)


def test_names_alone_have_no_images_to_keep(model: DiffUp) -> None:
    with pytest.raises(PrototypesError, match="no support image to keep"):
        model.prototypes(text="square", keep_images=True)


def test_names_beside_supports(model: DiffUp, both: Prototypes) -> None:
    assert both.shots == 1 and len(sentences(both)) == 7
    expected = model.segment(QUERY, SUPPORT, MASK, text="square", templates="clip7")
    assert_equal(model.segment(QUERY, both), expected)
    assert not np.array_equal(expected.prior, model.segment(QUERY, SUPPORT, MASK).prior)


def test_text_is_not_for_prototypes(model: DiffUp, square: Prototypes) -> None:
    for options in ({"text": "disc"}, {"templates": "clip7"}):
        with pytest.raises(AnnotationError, match="prototypes have theirs inside"):
            model.segment(QUERY, square, **options)
    with pytest.raises(ConfigError, match=r"templates.*give text"):
        model.segment(QUERY, SUPPORT, MASK, templates="clip7")
    with pytest.raises(AnnotationError, match="support: there is none"):
        model.prototypes(name="nothing")


# --- several classes and streams -------------------------------------------------------------------------------------


def test_several_names_mark_what_they_name() -> None:
    space = Counting()
    found = make_model(space, system="prior", priors=PriorConfig(grid=16))
    classes = [found.prototypes(text=name, threshold=0.6) for name in ("square", "disc")]
    classes.append(found.prototypes(SUPPORT, MASK, name="shown", threshold=0.99))
    result = found.segment(QUERY, classes)
    assert isinstance(result, LabelMap) and result.names == ("square", "disc", "shown")
    assert space.batches == [1], "a query goes through the text space once, whatever the number of classes"
    for wanted, name in ((1, "square"), (2, "disc")):
        inside, other = np.equal(TRUTH, wanted), (TRUTH > 0) & ~np.equal(TRUTH, wanted)
        assert result[name].prior[inside].mean() > result[name].prior[other].mean() + 0.3
        assert_equal(result[name], found.segment(QUERY, text=name, threshold=0.6))


def test_streams(model: DiffUp, square: Prototypes, both: Prototypes) -> None:
    queries = [shape_image((1, 2), (60, 50 + 10 * seed), seed=seed)[0] for seed in range(3)]
    space = model.text_space
    assert isinstance(space, Counting)
    space.batches.clear()
    results = list(model.segment_many(queries, [square, both], batch_size=2))
    assert space.batches == [2, 1]
    for query, result in zip(queries, results, strict=True):
        assert isinstance(result, LabelMap)
        for prototypes in (square, both):
            alone = model.segment(query, prototypes)
            assert np.abs(result[prototypes.name].prior - alone.prior).max() < 1e-4


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["square", "both"])
def test_saved_and_loaded(model: DiffUp, which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    prototypes: Prototypes = request.getfixturevalue(which)
    loaded = Prototypes.load(prototypes.save(tmp_path / "class.safetensors"))
    assert loaded.text_prompt is not None and prototypes.text_prompt is not None
    assert torch.equal(loaded.text_prompt.embeddings, prototypes.text_prompt.embeddings)
    for name in ("sentences", "space", "fingerprint"):
        assert getattr(loaded.text_prompt, name) == getattr(prototypes.text_prompt, name)
    assert (loaded.name, loaded.shots) == (prototypes.name, prototypes.shots)
    a, b = model.segment(QUERY, loaded), model.segment(QUERY, prototypes)
    assert np.abs(a.prior - b.prior).max() < 2e-2
    if which == "square":
        assert_equal(a, b)


@pytest.mark.parametrize("damage", ["shape", "finite", "missing", "facts", "nothing"])
def test_damaged_files_are_said_so(square: Prototypes, damage: str, tmp_path: Path) -> None:
    path = square.save(tmp_path / "class.safetensors")
    tensors = load_file(path)
    facts = {**json.loads(read_metadata(path)), **({"words": {"sentences": ["a"]}} if damage == "facts" else {})}
    if damage == "shape":
        tensors["embeddings"] = tensors["embeddings"][:1]
    elif damage == "finite":
        tensors["embeddings"][0, 0] = float("nan")
    elif damage == "missing":
        tensors = {"other": torch.zeros(1)}
    elif damage == "nothing":
        facts["words"] = None
    save_file(tensors, path, metadata={FORMAT: json.dumps(facts)})
    with pytest.raises(PrototypesError, match=r"damaged|neither support images nor names"):
        Prototypes.load(path)


def read_metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return str(file.metadata()[FORMAT])


# --- other encoders and text spaces ----------------------------------------------------------------------------------


def test_names_alone_follow_a_change_of_the_encoder(model: DiffUp, square: Prototypes, both: Prototypes) -> None:
    better = model.upgrade(FakeBackbone((32,) * 4, seed=1))
    assert_equal(better.segment(QUERY, square), better.segment(QUERY, text=["red box", "square"]))
    with pytest.raises(PrototypesError, match="Features of different encoders do not compare"):
        better.segment(QUERY, both)


def test_negatives_of_names_alone_are_of_one_encoder(model: DiffUp) -> None:
    square = model.prototypes(text="square", negatives=SUPPORT, negative_annotation=MASK)
    assert model.segment(QUERY, square).mask.shape == TRUTH.shape
    for encoder in (FakeBackbone(seed=1), FakeBackbone((32,) * 4)):
        with pytest.raises(PrototypesError, match="'not square' were made with"):
            model.upgrade(encoder).segment(QUERY, square)


def test_text_of_different_text_spaces_is_not_joined(square: Prototypes) -> None:
    other = make_model(FakeTextSpace((64, 64))).prototypes(text="disc")
    with pytest.raises(PrototypesError, match="'red box' have text of different text spaces"):
        join_prototypes([square, other])


def test_another_text_space_is_refused_and_rebuilt_for(square: Prototypes, both: Prototypes) -> None:
    other = make_model(FakeTextSpace((64, 64)))
    for prototypes in (square, both):
        with pytest.raises(PrototypesError, match=r"fake:text \(fake-text-\(48, 48\)\).*prototypes.rebuild"):
            other.segment(QUERY, prototypes)
        again = prototypes.rebuild(other)
        assert sentences(again) == sentences(prototypes)
        assert other.segment(QUERY, again).mask.shape == TRUTH.shape
    expected = other.segment(QUERY, SUPPORT, MASK, text="square", templates="clip7")
    assert_equal(other.segment(QUERY, both.rebuild(other)), expected)


def test_rebuilding_for_another_encoder_needs_images(model: DiffUp, both: Prototypes) -> None:
    other = make_model(FakeTextSpace((64, 64)), FakeBackbone((32,) * 4, seed=1))
    with pytest.raises(PrototypesError, match="keep no images"):
        both.rebuild(other)
    kept = model.prototypes(SUPPORT, MASK, text="square", keep_images=True).rebuild(other)
    assert kept.kept_supports and sentences(kept) == ("a photo of a square.",)
    assert_equal(other.segment(QUERY, kept), other.segment(QUERY, SUPPORT, MASK, text="square"))


def test_a_model_that_reads_no_text_says_so(square: Prototypes) -> None:
    plain = make_model()
    with pytest.raises(BackboneError, match="cannot read it"):
        plain.segment(QUERY, square)


# --- adding ----------------------------------------------------------------------------------------------------------


def test_adding_names_to_supports_and_supports_to_names(model: DiffUp) -> None:
    expected = model.segment(QUERY, SUPPORT, MASK, text=["square", "red box"])
    shown = model.prototypes(SUPPORT, MASK)
    named = model.prototypes(text="square")
    for prototypes in (
        shown.add(model, text="square").add(model, text="red box"),
        shown.add(model, text=["square", "red box"]),
        named.add(model, SUPPORT, MASK, text="red box"),
        named.add(model, text=["square", "red box"]).add(model, SUPPORT, MASK),
    ):
        assert sentences(prototypes) == ("a photo of a square.", "a photo of a red box.")
        assert prototypes.shots == 1
        assert_equal(model.segment(QUERY, prototypes), expected)
    assert named.name == "square" and named.features is None


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", [True, False])
@pytest.mark.parametrize("layout", ["own", "all"])
def test_zero_shot_has_the_channels_of_a_support(calibration: bool, layout: str) -> None:
    config = PriorConfig(grid=8, calibration=calibration, layout=layout)  # type: ignore[arg-type]
    query, support, images = random_episode()
    shown = build_condition(query, support, images, config)
    named = build_condition(query, None, images, config, text=torch.rand(2, 3, 4, 4))
    assert [level.shape for level in named.levels] == [level.shape for level in shown.levels]
    assert all(level.isfinite().all() and level.abs().amax() <= 1 for level in named.levels)
    if calibration:
        assert all(bool((level[:, -1] == 1).all()) for level in named.levels), "any part of the image may be the class"


def test_the_calibrated_contrast_of_names_spans_background_to_foreground() -> None:
    config = PriorConfig(kinds=("prototype",), grid=8, saliency=False, extra_priors=0)
    query, support, _ = random_episode()
    for level in fused_priors(query, None, config, torch.rand(2, 1, 4, 4)):
        mean, contrast = level[:, 0], level[:, 2]
        assert torch.allclose(contrast, mean / 3 + 1 / 3, atol=1e-6)
    shown, mixed = (fused_priors(query, support, config, text) for text in (None, torch.rand(2, 1, 4, 4)))
    for one, two in zip(shown, mixed, strict=True):
        assert torch.equal(one[:, 2], two[:, 2]), "supports calibrate by themselves"


def twin(widths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple((width, width) for width in widths)


def test_an_encoder_joined_to_itself_changes_no_text_prior() -> None:
    query, _, _ = random_episode()
    double = [torch.cat([level, level], dim=1) for level in query]
    members = twin([level.shape[1] for level in query])
    similar = torch.rand(2, 3, 5, 5)
    assert torch.allclose(text_maps(similar, query[3]), text_maps(similar, double[3], members[3]), atol=1e-6)
    config = PriorConfig(grid=8, extra_priors=0)
    text = torch.rand(2, 3, 4, 4)
    alone = fused_priors(query, None, config, text)
    for one, two in zip(alone, fused_priors(double, None, config, text, members), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_joint_encoders_take_names() -> None:
    joint = DiffUp(
        random_decoder(tiny_config()),
        JointBackbone([FakeBackbone(), FakeBackbone((5, 6, 7, 8))]),
        "cpu",
        FakeTextSpace(),
    )
    for options in ({"text": "square"}, {"support": SUPPORT, "annotation": MASK, "text": "square"}):
        assert np.isfinite(joint.segment(QUERY, **options).probability).all()  # type: ignore[call-overload]

    own = DiffUp(random_decoder(tiny_config()), JointBackbone([FakeBackbone(), ReadingBackbone((5, 6, 7, 8))]), "cpu")
    assert isinstance(own.text_space, FakeTextSpace)


# --- commands and folders --------------------------------------------------------------------------------------------


def test_folders_are_labelled_by_names(model: DiffUp, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(QUERY).save(tmp_path / "photos" / "a.png")
    classes = [model.prototypes(text=name) for name in ("square", "disc")]
    report = label_folder(model, tmp_path / "photos", classes, tmp_path / "out", LabelPlan(formats=("png",)))
    assert report.labelled == 1
    others = [model.prototypes(text="triangle", name="square"), classes[1]]
    with pytest.raises(DataError, match="prototypes"):
        label_folder(model, tmp_path / "photos", others, tmp_path / "out", LabelPlan(formats=("png",)))


def test_teach_by_name(families: Callable[..., None], tmp_path: Path) -> None:
    families(capable=lambda variant, **options: ReadingBackbone())
    save_tiny_decoder(tmp_path / "decoder", backbone="capable")
    file, shared = tmp_path / "square.safetensors", ["--decoder", str(tmp_path / "decoder"), "--quiet"]
    given = ["teach", "--text", "square", "--templates", "clip7", "--name", "square", "-o", str(file), *shared]
    assert cli.main(given) == 0
    assert len(sentences(Prototypes.load(file))) == 7
    assert cli.main(["teach", "--add", str(file), "--text", "red box", "-o", str(file), *shared]) == 0
    assert len(sentences(Prototypes.load(file))) == 8
    Image.fromarray(SUPPORT).save(tmp_path / "a.png")
    assert cli.main(["teach", "--add", str(file), "--support", str(tmp_path / "a.png"), "-o", str(file), *shared]) == 0
    assert Prototypes.load(file).shots == 1
    assert cli.main(["teach", "--name", "x", "-o", str(file), *shared]) != 0
