"""Masks in every form that users have them, and the forms that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diffup.errors import AnnotationError
from diffup.masks import bounding_box, read_mask

TRUTH = np.zeros((12, 16), dtype=bool)
TRUTH[2:7, 3:12] = True


def _expected() -> torch.Tensor:
    return torch.from_numpy(TRUTH).float()


@pytest.mark.parametrize(
    "mask",
    [
        TRUTH,
        TRUTH.astype(np.uint8),
        TRUTH * np.uint8(255),
        TRUTH.astype(np.int64) * 7,
        TRUTH.astype(np.int16) * 2 - 1,
        np.where(TRUTH, 2, 1),
        TRUTH.astype(np.float64),
        TRUTH * 255.0,
        TRUTH.astype(np.float16),
        TRUTH.astype(">i4"),
        TRUTH.astype(np.uint16) * 65535,
        TRUTH[..., None],
        np.repeat(TRUTH[..., None], 3, axis=2) * np.uint8(255),
        TRUTH[..., None] * np.array([200, 0, 30], dtype=np.uint8),
        np.asfortranarray(TRUTH),
        torch.from_numpy(TRUTH),
        torch.from_numpy(TRUTH)[None],
        torch.from_numpy(TRUTH).to(torch.bfloat16).requires_grad_(),
        torch.from_numpy(TRUTH).to(torch.uint8).expand(3, -1, -1) * 255,
        Image.fromarray(TRUTH),
        Image.fromarray(TRUTH * np.uint8(255)),
        Image.fromarray(TRUTH.astype(np.float32)),
        Image.fromarray(TRUTH.astype(np.int32)),
        Image.fromarray(TRUTH.astype(np.uint16)),
    ],
    ids=lambda mask: f"{type(mask).__name__}-{getattr(mask, 'dtype', '')}",
)
def test_one_mask_in_many_forms(mask: object) -> None:
    read = read_mask(mask)  # type: ignore[arg-type]
    assert read.dtype == torch.float32
    assert torch.equal(read, _expected())


def test_the_result_shares_no_memory_with_its_source() -> None:
    source = torch.rand(4, 5)
    kept = source.clone()
    read_mask(source).zero_()
    assert torch.equal(source, kept)


def test_soft_masks_are_weights_and_rounding_is_clipped() -> None:
    soft = np.array([[0.0, 0.25], [0.75, 1.00001]])
    torch.testing.assert_close(read_mask(soft), torch.tensor([[0.0, 0.25], [0.75, 1.0]]))
    assert torch.equal(read_mask(np.full((2, 2), 0.5)), torch.full((2, 2), 0.5))


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (1, 1.0), (255, 1.0), (7, 1.0)])
def test_constant_masks(value: int, expected: float) -> None:
    assert torch.equal(read_mask(np.full((3, 4), value)), torch.full((3, 4), expected))


def test_transparency_that_varies_is_the_mask(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 4)).astype(np.uint8)
    colours[..., 3] = TRUTH * 255
    path = tmp_path / "cutout.png"
    Image.fromarray(colours).save(path)
    for form in (path, colours, colours / 255, torch.from_numpy(colours).permute(2, 0, 1), Image.fromarray(colours)):
        assert torch.equal(read_mask(form), _expected())
    colours[..., 3] = TRUTH * 128 + 64
    torch.testing.assert_close(read_mask(colours), (_expected() * 128 + 64) / 255)


def test_constant_transparency_is_no_mask() -> None:
    rgba = np.zeros((12, 16, 4), dtype=np.uint8)
    rgba[TRUTH] = (255, 255, 255, 0)
    for alpha in (0, 128, 255):
        rgba[..., 3] = alpha
        assert torch.equal(read_mask(rgba), _expected())
        assert torch.equal(read_mask(Image.fromarray(rgba)), _expected())


@pytest.mark.parametrize(
    ("palette", "class_index", "rest_index"),
    [
        ([(0, 0, 0), (128, 0, 0), (0, 128, 0)], 2, 0),  # PASCAL's order: the index decides, and so would the colours
        ([(255, 255, 255), (0, 0, 0)], 0, 1),  # as programs that count colours write it: white first
        ([(250, 10, 10), (0, 0, 0)], 0, 1),
        ([(10, 10, 10), (128, 0, 0)], 1, 0),  # no black: the index decides
        ([(128, 0, 0), (10, 10, 10)], 1, 0),
    ],
)
def test_palette_files(tmp_path: Path, palette: list[tuple[int, int, int]], class_index: int, rest_index: int) -> None:
    indices = np.where(TRUTH, class_index, rest_index).astype(np.uint8)
    image = Image.frombytes("P", (16, 12), indices.tobytes())
    image.putpalette([part for colour in palette for part in colour])
    path = tmp_path / "palette.png"
    image.save(path)
    assert torch.equal(read_mask(path), _expected())


def test_a_black_and_white_jpeg_is_cut_and_a_photo_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.jpg"
    large = np.kron(TRUTH, np.ones((11, 11), dtype=bool))  # edges within the 8 x 8 blocks
    Image.fromarray(large * np.uint8(255)).save(path, quality=75)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2, "the file is not two-valued, which is the point"
    assert torch.equal(read_mask(path), torch.from_numpy(large).float())
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    with pytest.raises(AnnotationError, match="only if it is black and white"):
        read_mask(path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.arange(12).reshape(3, 4), r"12 different values \(0, 1, 2, 3, 4, 5, \.\.\.\).*Mask\(labels == 1\)"),
        (np.array([[0, 15, 255]], dtype=np.uint8), r"3 different values \(0, 15, 255\).*labels == 15"),
        (np.array([[0.0, 128.0, 255.0]]), r"values in \[0, 255\]. Divide"),
        (np.array([[0.0, np.nan]]), "NaN or infinity"),
        (torch.tensor([[0.0, float("inf")]]), "NaN or infinity"),
        (np.zeros((3, 0)), "is empty"),
        (np.zeros(5), r"shape \(H, W\)"),
        (np.zeros((2, 12, 16), dtype=bool), r"give one, such as mask\[0\]"),
        (torch.zeros(2, 12, 16), r"give one, such as mask\[0\]"),
        (np.zeros((2, 2), dtype=complex), "type complex128"),
        (np.array([["a"]]), "expected bool"),
        (np.random.default_rng(0).integers(0, 255, (4, 4, 3)), "has several colours"),
        (Image.new("La", (3, 3)), "no conversion to grey"),
        ("no/such/mask.png", "there is no file"),
    ],
)
def test_faults_are_named(mask: object, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        read_mask(mask, "annotation[2]")  # type: ignore[arg-type]
    assert str(caught.value).startswith("annotation[2]: ")


def test_index_mask_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(path)
    with pytest.raises(AnnotationError, match=r"'.*labels\.png' holds 6 different values"):
        read_mask(path)


@given(
    hnp.arrays(
        dtype=st.one_of(hnp.boolean_dtypes(), hnp.scalar_dtypes()),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_array_gives_weights_or_an_annotation_error(array: np.ndarray) -> None:
    try:
        mask = read_mask(array)
    except AnnotationError as error:
        assert str(error).startswith("mask: ")
    else:
        assert mask.shape == array.shape[:2] and mask.dtype == torch.float32
        assert torch.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
@settings(max_examples=100, deadline=None)
def test_bounding_box_equals_brute_force(mask: np.ndarray) -> None:
    marked = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not marked:
        assert bounding_box(mask) is None
    else:
        xs, ys = zip(*marked, strict=True)
        assert bounding_box(mask) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
