"""`DiffUp`: segmenting, swapping the encoder, saving, and every documented error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fakes import (
    Changed,
    FakeBackbone,
    FakeFrozen,
    pad_channels,
    random_decoder,
    rotate,
    shape_image,
    tiny_config,
    tiny_model,
)
from PIL import Image
from scene import MASK, QUERY, SUPPORT, TRUTH, assert_close, assert_equal
from torch import Tensor, nn

from diffup import Box, DiffUp, Mask, Points, Scribble, Segmentation
from diffup.backbones.encode import encode
from diffup.decoder.quality import expected_iou
from diffup.decoder.weights import CONFIG, WEIGHTS
from diffup.errors import AnnotationError, BackboneError, ConfigError, ImageError, WeightsError
from diffup.inputs.annotations import pair_supports
from diffup.inputs.support_picture import draw_annotation
from diffup.priors.support import encode_supports
from diffup.priors.views import View, warp
from diffup.result import Segmentation as Result
from diffup.result import enlarge

SECOND, SECOND_LABELS = shape_image((3, 1), (64, 90), seed=3)
ROWS, COLUMNS = np.nonzero(MASK)
BOX = Box(COLUMNS.min(), ROWS.min(), COLUMNS.max() + 1, ROWS.max() + 1)
MIDDLE = (float(COLUMNS.mean()), float(ROWS.mean()))

ENCODERS = {
    "cnn": FakeBackbone(),
    "wide cnn": FakeBackbone((32, 32, 64, 64), seed=1),
    "vit": FakeBackbone((20, 20, 20, 20), strides=(12, 12, 12, 12), input_size=(72, 84), seed=2),
    "coarse": FakeBackbone((16, 16, 24, 24), strides=(8, 8, 8, 16), input_size=(64, 64), seed=3),
    "frozen": FakeFrozen(),
}
ANNOTATIONS = {
    "mask": MASK,
    "box": BOX,
    "scribble": Scribble([(MIDDLE[0] - 5, MIDDLE[1]), (MIDDLE[0] + 5, MIDDLE[1])]),
    "points": Points([MIDDLE]),
    "none": None,
}


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(ENCODERS["cnn"])


def assert_sound(result: Segmentation, size: tuple[int, int]) -> None:
    assert isinstance(result, Result) and result.mask.shape == size and result.image.shape == (*size, 3)
    for name, low, high in (("probability", 0, 1), ("variance", 0, 0.25), ("error_map", -2, 2), ("prior", 0, 1)):
        values = getattr(result, name)
        assert values.shape == size and values.min() >= low - 1e-6 and values.max() <= high + 1e-6, name
    assert np.array_equal(result.mask, result.probability > result.threshold)
    expected = float(expected_iou(torch.from_numpy(result.maps[:1]), result.threshold))
    assert result.quality == pytest.approx(np.clip(expected, 1e-3, 1 - 1e-3) if expected else 0.0, abs=1e-6)
    assert 0 < result.presence <= 1 and result.present and result.min_presence == 0.0
    assert result.score == pytest.approx(result.presence * np.clip(result.quality, 1e-3, 1 - 1e-3), abs=1e-6)


# --- segmenting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_every_kind_of_annotation_gives_a_result_of_the_querys_size(model: DiffUp, kind: str) -> None:
    result = model.segment(QUERY, SUPPORT, ANNOTATIONS[kind])
    assert_sound(result, (70, 100))
    assert np.array_equal(result.image, QUERY)
    assert result.backbone == model.backbone.name and result.trace is None


def test_a_result_shows_its_supports_as_they_were_given(model: DiffUp) -> None:
    given = [BOX, ANNOTATIONS["points"]]
    result = model.segment(SECOND, [SUPPORT, SUPPORT], given)
    for picture, annotation in zip(result.supports, given, strict=True):
        np.testing.assert_array_equal(picture, draw_annotation(SUPPORT, annotation))
    plain = model.segment(SECOND, model.prototypes([SUPPORT, SUPPORT], given))
    assert plain.supports == ()
    shown = sum(picture.shape[1] + 4 for picture in result.supports)
    assert result.overview().width == plain.overview().width + shown


def test_kinds_may_be_mixed(model: DiffUp) -> None:
    supports = [SUPPORT, SECOND, SUPPORT, SUPPORT]
    mixed = [BOX, Mask(SECOND_LABELS == 1), None, ANNOTATIONS["scribble"]]
    result = model.segment(QUERY, supports, mixed)
    assert_sound(result, (70, 100))
    order = [2, 0, 3, 1]
    again = model.segment(QUERY, [supports[i] for i in order], [mixed[i] for i in order])
    assert_close(result, again)  # their order does not matter


@pytest.mark.parametrize("name", ENCODERS)
def test_one_decoder_works_behind_every_encoder_and_the_prior_finds_the_class(model: DiffUp, name: str) -> None:
    upgraded = model.upgrade(ENCODERS[name])
    result = upgraded.segment(QUERY, [SUPPORT, SECOND], [MASK, Mask(SECOND_LABELS == 1)])
    assert_sound(result, (70, 100))
    if name != "frozen":  # whose convolutions are random
        assert result.prior[TRUTH == 1].mean() > result.prior[TRUTH == 2].mean() + 0.2
        assert result.prior[TRUTH == 1].mean() > result.prior[TRUTH == 0].mean() + 0.2


@pytest.mark.parametrize("size", [(1, 1), (33, 200), (300, 30)])
def test_queries_of_any_size(model: DiffUp, size: tuple[int, int]) -> None:
    query = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    assert_sound(model.segment(query, SUPPORT, MASK), size)


def test_a_real_photo_in_every_form_gives_one_result(model: DiffUp, tmp_path: Path) -> None:
    coffee = pytest.importorskip("skimage.data").coffee()[::4, ::4].copy()
    box = Box(25, 20, 85, 75)
    expected = model.segment(coffee, coffee, box)
    assert_sound(expected, coffee.shape[:2])
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    forms = [
        str(tmp_path / "coffee.png"),
        tmp_path / "coffee.png",
        Image.fromarray(coffee),
        torch.from_numpy(coffee).permute(2, 0, 1),
        torch.from_numpy(coffee).permute(2, 0, 1).float() / 255,
    ]
    for form in forms:
        assert_equal(model.segment(form, form, box), expected)


@pytest.mark.parametrize(("x", "y"), [(1, 1), (62, 1), (1, 78), (62, 78), (32, 2)])
def test_an_object_at_the_very_border_of_a_single_support(model: DiffUp, x: int, y: int) -> None:
    assert_sound(model.segment(QUERY, SUPPORT, Points([(x, y)], radius=1)), (70, 100))


def test_a_batch_of_many_supports_is_encoded_whole(model: DiffUp) -> None:
    result = model.segment(QUERY, [SUPPORT] * 11, [MASK] * 11)
    assert_sound(result, (70, 100))
    assert_close(result, model.segment(QUERY, [SUPPORT] * 2, [MASK] * 2))  # copies add nothing


def test_options(model: DiffUp) -> None:
    result = model.segment(QUERY, SUPPORT, MASK, steps=5, ensemble=1, threshold=0.3, trace=True)
    assert_sound(result, (70, 100))
    assert result.threshold == 0.3 and not result.variance.any()
    assert result.trace is not None and result.trace.shape == (6, 64, 64)
    assert result.trace_timesteps == (49, 39, 29, 19, 9, -1)
    more = model.segment(QUERY, SUPPORT, MASK, ensemble=3)
    assert more.variance.max() > 0


def test_progress_is_shown_on_demand(model: DiffUp, capsys: pytest.CaptureFixture[str]) -> None:
    model.segment(QUERY, SUPPORT, MASK)
    assert capsys.readouterr().err == ""
    model.segment(QUERY, SUPPORT, MASK, progress=True)
    assert "3/3" in capsys.readouterr().err


# --- randomness ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_result_bit_for_bit(model: DiffUp) -> None:
    first = model.segment(QUERY, SUPPORT, MASK, seed=3)
    torch.rand(7)  # what else is drawn must not matter
    assert_equal(first, model.segment(QUERY, SUPPORT, MASK, seed=3))
    assert_equal(model.segment(QUERY, SUPPORT, MASK), model.segment(QUERY, SUPPORT, MASK, seed=0))
    assert not np.array_equal(first.probability, model.segment(QUERY, SUPPORT, MASK, seed=4).probability)


def test_segmenting_leaves_the_global_generator_alone(model: DiffUp) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.segment(QUERY, SUPPORT, MASK)
    assert torch.equal(torch.rand(3), expected)


def test_a_generator_takes_the_place_of_the_seed(model: DiffUp) -> None:
    generator = torch.Generator().manual_seed(3)
    assert_equal(model.segment(QUERY, SUPPORT, MASK, generator=generator), model.segment(QUERY, SUPPORT, MASK, seed=3))
    second = model.segment(QUERY, SUPPORT, MASK, generator=generator)
    assert not np.array_equal(second.probability, model.segment(QUERY, SUPPORT, MASK, seed=3).probability)


# --- the swap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize(
    "change",
    [
        lambda index, level: rotate(level, seed=index),
        lambda index, level: pad_channels(level, 3 + index),
        lambda index, level: 7 * rotate(pad_channels(level), seed=index),
    ],
    ids=["rotated", "padded", "both, scaled"],
)
def test_features_in_other_coordinates_give_the_same_mask(
    model: DiffUp, change: Callable[[int, Tensor], Tensor], shots: int
) -> None:
    supports, annotations = [SUPPORT, SECOND, SUPPORT][:shots], [MASK, SECOND_LABELS == 1, BOX][:shots]
    expected = model.segment(QUERY, supports, annotations)
    assert_close(model.upgrade(Changed(ENCODERS["cnn"], change)).segment(QUERY, supports, annotations), expected)


def test_upgrading_shares_the_weights_and_leaves_the_original_alone(model: DiffUp) -> None:
    before = model.segment(QUERY, SUPPORT, MASK)
    backbone = model.backbone
    better = model.upgrade(ENCODERS["vit"])
    assert better is not model and better.backbone is ENCODERS["vit"] and model.backbone is backbone
    for ours, theirs in zip(model.decoder.parameters(), better.decoder.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    assert_equal(model.segment(QUERY, SUPPORT, MASK), before)
    assert not np.array_equal(better.segment(QUERY, SUPPORT, MASK).probability, before.probability)


def test_upgrading_by_name_passes_the_options_on(model: DiffUp, families: Callable[..., None]) -> None:
    def build(variant: str | None, input_size: int = 96) -> FakeBackbone:
        """Fakes."""
        assert variant == "wide"
        return FakeBackbone((32,) * 4, input_size=(input_size, input_size))

    families(fake=build)
    better = model.upgrade("fake:wide", input_size=64)
    assert better.backbone.input_size == (64, 64)
    with pytest.raises(BackboneError, match="options"):
        model.upgrade("fake:wide", levels=3)


def test_a_parents_train_cannot_thaw_a_frozen_backbone(model: DiffUp) -> None:
    frozen = FakeFrozen()
    upgraded = model.upgrade(frozen)
    before = upgraded.segment(QUERY, SUPPORT, MASK)
    parent = nn.ModuleDict({"encoder": frozen, "decoder": copy.deepcopy(model.decoder)}).train()
    assert parent["decoder"].training and not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert_equal(upgraded.segment(QUERY, SUPPORT, MASK), before)  # BatchNorm's statistics have not moved


def test_the_decoder_neither_trains_nor_keeps_gradients(model: DiffUp) -> None:
    assert not model.decoder.training
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())


# --- files -----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_the_results_are_identical(model: DiffUp, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {CONFIG, WEIGHTS}
    for source in (tmp_path / "mine", str(tmp_path / "mine")):
        loaded = DiffUp.from_pretrained(source, backbone=ENCODERS["cnn"], device="cpu")
        assert loaded.config == model.config
        assert_equal(loaded.segment(QUERY, SUPPORT, MASK), model.segment(QUERY, SUPPORT, MASK))


def test_the_encoder_that_the_config_names_is_used_unless_another_is_given(
    tmp_path: Path, families: Callable[..., None]
) -> None:
    families(fake=lambda variant: FakeBackbone())
    named = DiffUp(random_decoder(tiny_config(backbone="fake:a")))
    named.save_pretrained(tmp_path)
    assert DiffUp.from_pretrained(tmp_path).backbone.name == FakeBackbone().name
    assert DiffUp.from_pretrained(tmp_path, backbone=ENCODERS["vit"]).backbone is ENCODERS["vit"]


def test_the_repr_says_what_it_is(model: DiffUp) -> None:
    assert model.backbone.name in repr(model) and "cpu" in repr(model) and "M parameters" in repr(model)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps=0: choose 1 to 50"),
        ({"steps": 51}, "steps=51: choose 1 to 50"),
        ({"ensemble": 0}, "ensemble=0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(model: DiffUp, options: dict[str, float], named: str) -> None:
    calls = model.backbone.calls
    with pytest.raises(ConfigError, match=named):
        model.segment(QUERY, SUPPORT, MASK, **options)
    assert model.backbone.calls == calls


def test_bad_images_and_annotations_are_named(model: DiffUp, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="query"):
        model.segment(tmp_path / "none.png", SUPPORT, MASK)
    with pytest.raises(ImageError, match=r"support\[1\]"):
        model.segment(QUERY, [SUPPORT, "none.png"], [MASK, None])
    with pytest.raises(AnnotationError, match=r"annotation\[1\]"):
        model.segment(QUERY, [SUPPORT, SECOND], [MASK, MASK])
    with pytest.raises(AnnotationError, match="empty list"):
        model.segment(QUERY, [], [])
    with pytest.raises(AnnotationError, match="got 1 for 2"):
        model.segment(QUERY, [SUPPORT, SECOND], [MASK])
    with pytest.raises(AnnotationError, match="marks no pixel"):
        model.segment(QUERY, SUPPORT, np.zeros_like(MASK))


@pytest.mark.parametrize("device", ["tpu-or-so", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{device}' cannot be used"):
        DiffUp(random_decoder(tiny_config()), ENCODERS["cnn"], device)


def test_a_missing_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no folder"):
        DiffUp.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=CONFIG):
        DiffUp.from_pretrained(tmp_path / "empty")


def test_an_encoder_that_is_none_is_refused(model: DiffUp) -> None:
    with pytest.raises(BackboneError, match="unknown backbone family 'no-such'"):
        model.upgrade("no-such:thing")
    with pytest.raises(BackboneError, match="lacks"):
        model.upgrade(object())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda index, level: level * torch.nan, "NaN"),
        (lambda index, level: level.double(), "float32"),
        (lambda index, level: level[0], "4 dimensions"),
        (lambda index, level: level[:1].repeat(9, 1, 1, 1), "batch size"),
    ],
)
def test_an_encoder_that_breaks_the_protocol_is_caught(
    model: DiffUp, change: Callable[[int, Tensor], Tensor], named: str
) -> None:
    with pytest.raises(BackboneError, match=named):
        model.upgrade(Changed(ENCODERS["cnn"], change)).segment(QUERY, SUPPORT, MASK)


# --- its parts -------------------------------------------------------------------------------------------------------


def test_encode_gives_four_levels_whatever_the_images_sizes(model: DiffUp) -> None:
    levels = encode(model.backbone, [torch.rand(3, 20, 30), torch.rand(3, 96, 96), torch.rand(3, 200, 10)])
    assert [tuple(level.shape) for level in levels] == [(3, 8, 24, 24), (3, 12, 12, 12), (3, 16, 6, 6), (3, 24, 3, 3)]


def test_a_single_support_is_encoded_once_and_has_three_views(model: DiffUp) -> None:
    supports = encode_supports(model.backbone, pair_supports(SUPPORT, MASK))
    assert supports.foreground.shape == (1, 3, 128, 128) and supports.levels[0].shape[:2] == (1, 3)
    once = encode(model.backbone, [pair_supports(SUPPORT, MASK)[0].image])
    for level, views in zip(once, supports.levels, strict=True):
        plain, mirrored, closer = views[0]
        assert torch.equal(plain, level[0]) and torch.equal(mirrored, level[0].flip(-1))
        assert torch.equal(closer, warp(level, View(scale=1.25))[0])
    several = encode_supports(model.backbone, pair_supports([SUPPORT, SECOND], [MASK, None]))
    assert several.foreground.shape == (1, 2, 128, 128)


def test_enlarging_keeps_range_and_place() -> None:
    maps = torch.zeros(1, 64, 64)
    maps[0, 16:32, 32:48] = 1
    large = enlarge(maps, (128, 192))
    assert large.shape == (1, 128, 192) and large.min() >= 0 and large.max() <= 1
    assert large[0, 34:62, 100:140].min() == 1 and not large[0, :30].any() and not large[0, :, :93].any()


# --- what the caller gives stays the caller's ------------------------------------------------------------------------


def test_the_callers_decoder_stays_as_it_is() -> None:
    decoder = random_decoder(tiny_config()).train()
    weights = {name: value.clone() for name, value in decoder.state_dict().items()}
    model = DiffUp(decoder, FakeBackbone(), "cpu")
    before = model.segment(QUERY, SUPPORT, MASK)
    assert decoder.training and all(parameter.requires_grad for parameter in decoder.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in decoder.state_dict().items())
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    assert_equal(model.segment(QUERY, SUPPORT, MASK), before)
    assert model.upgrade(FakeBackbone(seed=1)).decoder is model.decoder


class Elsewhere(FakeBackbone):
    """Begins on another device than the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("meta")


def test_an_encoder_on_another_device_is_copied_and_stays_there() -> None:
    given = Elsewhere()
    for model in (
        tiny_model(given),
        tiny_model().upgrade(given),
    ):
        assert model.backbone.device.type == "cpu" and given.device.type == "meta"
    here = FakeBackbone()
    assert tiny_model(here).backbone is here


def test_from_pretrained_takes_the_encoders_options_as_upgrade_does(tmp_path: Path) -> None:
    tiny_model(backbone="timm:test_resnet").save_pretrained(tmp_path)
    torch.manual_seed(0)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    options = {"checkpoint_path": file, "input_size": 64}
    model = DiffUp.from_pretrained(tmp_path, device="cpu", **options)
    named = DiffUp.from_pretrained(tmp_path, backbone="timm:test_resnet", device="cpu", **options)
    upgraded = named.upgrade("timm:test_resnet", **options)
    assert model.backbone.input_size == (64, 64)
    assert model.backbone.fingerprint == named.backbone.fingerprint == upgraded.backbone.fingerprint
    with pytest.raises(BackboneError, match="options apply to backbone names only"):
        DiffUp.from_pretrained(tmp_path, backbone=FakeBackbone(), device="cpu", input_size=64)
