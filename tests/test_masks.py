"""Masks in every form that users have them, and the forms that are refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFilter
from skimage import data

from diffup.errors import AnnotationError
from diffup.inputs.masks import bounding_box, read_mask, seems_inverted

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
        (np.arange(12).reshape(3, 4), r"12 different values: 0 \(1 pixel\), .*and 6 more\..*Mask\(mask == 1\)"),
        (
            np.array([[0, 0, 15, 255, 255]], dtype=np.uint8),
            r"3 different values: 0 \(2 pixels\), 15 \(1 pixel\), 255 \(2 pixels\)\. Which .*mask == 15",
        ),
        (np.array([[0.0, 128.0, 255.0]]), r"3 different values: 0 .*, 128 .*, 255 "),
        (np.array([[0.0, 0.5, 255.0]]), r"values in \[0, 255\], expected .* Divide"),
        (np.array([[-1, 0, 1]]), r"3 different values: -1 "),
        (np.array([[0.0, 1.0, 2.0]]), r"3 different values: 0 .*mask == 1\)`\.$"),
        (torch.tensor([[0.0, 1 / 255, 2 / 255]]), r"no weight above 0.00784.*labels, it seems"),
        (np.array([10, 20, 30, 40]), r"If it is a box, give Box\(10, 20, 30, 40\)"),
        (np.array([10, 20]), r"If it is a click, give Points\(\[\(10, 20\)\]\)"),
        (np.array([[0.0, np.nan]]), "NaN or infinity"),
        (torch.tensor([[0.0, float("inf")]]), "NaN or infinity"),
        (np.zeros((3, 0)), "is empty"),
        (np.zeros(5), r"shape \(H, W\)"),
        (np.zeros((2, 12, 16), dtype=bool), r"give one, such as mask\[0\]"),
        (torch.zeros(2, 12, 16), r"give one, such as mask\[0\]"),
        (np.zeros((2, 2), dtype=complex), "type complex128"),
        (np.array([["a"]]), "expected bool"),
        (np.random.default_rng(0).integers(0, 255, (4, 4, 3)), "has several colours"),
        (
            np.array([[[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 0]]], np.uint8),
            r"has several colours.*: \(0, 0, 0\) \(1 pixel\), \(0, 0, 255\) \(1 pixel\), \(255, 0, 0\) \(2 pixels\)"
            r"\. Which one is the class\? .*colours == \(255, 0, 0\)",
        ),
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


# --- several classes are refused before anything else decides ---------------------------------------------------------

LABELS = np.zeros((40, 60), np.uint8)
LABELS[5:15, 5:15], LABELS[20:35, 30:50] = 1, 2  # 100 and 300 pixels
ONE = (LABELS == 2) * np.uint8(255)
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0]


def _indexed(labels: np.ndarray, palette: list[int], **options: object) -> bytes:
    image = Image.frombytes("P", (labels.shape[1], labels.shape[0]), labels.tobytes())
    image.putpalette(palette)
    return _saved(image, "PNG", **options)


def _saved(image: Image.Image | np.ndarray, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _coloured(labels: np.ndarray, alpha: tuple[int, int, int] = (0, 255, 255)) -> np.ndarray:
    """Red and green over black, RGBA."""
    rgb = np.array(PALETTE, np.uint8).reshape(3, 3)[labels]
    return np.dstack([rgb, np.array(alpha, np.uint8)[labels]])


SEVERAL = {
    "palette": (_indexed(LABELS, PALETTE), r"0 \(2000 pixels\), 1 \(100 pixels\), 2 \(300 pixels\)"),
    "palette, background transparent": (
        _indexed(LABELS, PALETTE, transparency=0),
        r"2 indices: 1 \(100 pixels\), 2 \(300 pixels\)",
    ),
    "palette, classes of one colour, background transparent": (
        _indexed(LABELS, [0, 0, 0, 255, 255, 255, 255, 255, 255], transparency=0),
        r"1 \(100 pixels\), 2 \(300 pixels\)",
    ),
    "palette, a class transparent": (
        _indexed(LABELS, PALETTE, transparency=2),
        r"0 \(2000 pixels\), 1 \(100 pixels\)",
    ),
    "palette, classes of one colour": (
        _indexed(LABELS, [0, 0, 0, 255, 0, 0, 255, 0, 0]),
        r"1 \(100 pixels\), 2 \(300 pixels\)",
    ),
    "palette, a class without colour": (_indexed(LABELS, [0, 0, 0, 0, 0, 0, 255, 0, 0]), r"1 \(100 pixels\)"),
    "RGBA": (
        _saved(_coloured(LABELS), "PNG"),
        r"2 colours: \(0, 255, 0\) \(300 pixels\), \(255, 0, 0\) \(100 pixels\)",
    ),
    "RGBA array": (_coloured(LABELS), r"\(255, 0, 0\) \(100 pixels\)"),
    "RGBA floats": (_coloured(LABELS) / 255, r"\(1.0, 0.0, 0.0\) \(100 pixels\)"),
    "RGBA, uint16": (_coloured(LABELS).astype(np.uint16) * 257, r"\(65535, 0, 0\) \(100 pixels\)"),
    "RGBA, classes of their own alpha": (_coloured(LABELS, (0, 120, 255)), r"\(255, 0, 0\) \(100 pixels\)"),
    "RGBA, opaque": (_coloured(LABELS, (255, 255, 255)), r"\(255, 0, 0\) \(100 pixels\)"),
    "RGB": (_saved(_coloured(LABELS)[..., :3].copy(), "PNG"), r"\(255, 0, 0\) \(100 pixels\)"),
    "LA": (
        _saved(Image.merge("LA", [Image.fromarray(LABELS), Image.fromarray((LABELS > 0) * np.uint8(255))]), "PNG"),
        r"\(1, 1, 1\) \(100 pixels\), \(2, 2, 2\) \(300 pixels\)",
    ),
    "grey, 255 transparent": (
        _saved(np.where(LABELS == 2, 255, LABELS).astype(np.uint8), "PNG", transparency=255),
        r"\(0, 0, 0\) \(2000 pixels\), \(1, 1, 1\) \(100 pixels\)",
    ),
    "16 bits": (_saved(LABELS.astype(np.uint16) * 1000, "PNG"), r"1000 \(100 pixels\), 2000 \(300 pixels\)"),
    "WebP": (_saved(LABELS * 100, "WEBP", lossless=True), "several colours|100 "),
    "JPEG": (
        _saved(LABELS * 100, "JPEG", quality=95),
        r"about 0 \(\d+ pixels\), 100 \(\d+ pixels\), 200 \(\d+ pixels\)",
    ),
    "JPEG of two bright greys": (
        _saved(np.array([0, 200, 255], np.uint8)[LABELS], "JPEG", quality=90),
        r"about 0 \(\d+ pixels\), 198 \(\d+ pixels\), 255 ",
    ),
    "JPEG of labels": (_saved(LABELS, "JPEG", quality=95), "only if it is black and white"),
    "JPEG of dark grey": (_saved((LABELS == 2) * np.uint8(110), "JPEG", quality=95), "about 0 .*, 110 "),
    "JPEG in colours": (_saved(_coloured(LABELS)[..., :3].copy(), "JPEG", quality=95), "is coloured"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_masks_of_several_classes_are_refused_and_the_classes_named(name: str) -> None:
    source, message = SEVERAL[name]
    with pytest.raises(AnnotationError, match=message) as caught:
        read_mask(source)
    assert str(caught.value).startswith("mask: ")


def _alpha_of(mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.dstack([np.full((*mask.shape, 3), colour, np.uint8), mask])


@pytest.mark.parametrize(
    "source",
    [
        _saved(_alpha_of(ONE, (255, 0, 0)), "PNG"),
        _saved(_alpha_of(ONE, (0, 0, 0)), "PNG"),
        _alpha_of(ONE // 2, (9, 9, 9)),  # half transparent all over
        _saved(_coloured(ONE // 255), "PNG"),
        _saved(_coloured(ONE // 255, (255, 255, 255)), "PNG"),
        _indexed(ONE // 255, PALETTE),
        _indexed(ONE // 255, PALETTE, transparency=0),
        _indexed(ONE // 255 * 2, PALETTE, transparency=0),
        _indexed(ONE // 255, [255, 255, 255, 0, 0, 0], transparency=0),  # black on transparent white
        _indexed(1 - ONE // 255, [255, 255, 255, 0, 0, 0]),
        _saved(Image.fromarray(ONE > 0), "PNG"),
        _saved(Image.fromarray(ONE > 0), "PNG", transparency=0),
        _saved(ONE, "PNG", transparency=0),
        _saved(ONE // 255, "PNG"),
        _saved(Image.fromarray(ONE).convert("LA"), "PNG"),
        _saved(Image.merge("LA", [Image.fromarray(ONE * 0 + 7), Image.fromarray(ONE)]), "PNG"),
        _saved(ONE.astype(np.uint16) * 257, "PNG"),
        _saved(ONE, "GIF"),
        _saved(ONE, "BMP"),
        _saved(ONE, "TIFF"),
        _saved(ONE, "WEBP", lossless=True),
        _saved(ONE, "JPEG", quality=95),
        _saved(ONE, "JPEG", quality=75),
        _saved(Image.fromarray(ONE).convert("RGB"), "JPEG", quality=90),
    ],
)
def test_bytes_of_two_valued_masks_are_read_in_whatever_form(source: bytes | np.ndarray) -> None:
    assert torch.equal(read_mask(source), torch.from_numpy(ONE > 0).float())


def test_smooth_edges_of_one_colour_are_weights_and_a_photo_cut_out_is_one_class() -> None:
    soft = np.asarray(Image.fromarray(ONE).filter(ImageFilter.GaussianBlur(2)))
    expected = torch.from_numpy(soft / np.float32(255))
    torch.testing.assert_close(read_mask(_saved(_alpha_of(soft, (0, 200, 0)), "PNG")), expected)
    cut = np.dstack([data.astronaut(), np.zeros((512, 512), np.uint8)])
    cut[100:300, 150:350, 3] = 255
    assert torch.equal(read_mask(_saved(cut, "PNG")), torch.from_numpy(cut[..., 3] / np.float32(255)))


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_jpegs_of_any_black_and_white_shapes_are_cut_and_of_more_greys_refused(quality: int) -> None:
    rng = np.random.default_rng(quality)
    for _ in range(6):
        truth = np.zeros((120, 160), np.uint8)
        for _ in range(3):
            y, x, height, width = *rng.integers(0, 90, 2), *rng.integers(10, 40, 2)
            truth[y : y + height, x : x + width] = 255
        read = read_mask(_saved(truth, "JPEG", quality=quality))
        assert (read.numpy() != (truth > 0)).mean() < 0.01
        truth[40:60, 60:80] = 0  # apart from white, whose rings would hide it
        truth[44:56, 64:76] = rng.integers(90, 140)
        with pytest.raises(AnnotationError, match="only if it is black and white"):
            read_mask(_saved(truth, "JPEG", quality=max(quality, 50)))


def test_a_resized_mask_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "resized.png"
    Image.fromarray(ONE).resize((90, 60), Image.Resampling.BICUBIC).save(path)
    with pytest.raises(AnnotationError, match=r"'.*resized\.png' holds \d+ .*likely been resized .*90 x 60"):
        read_mask(path)
    with pytest.raises(AnnotationError, match=r"the mask '.*resized\.png' is 90 x 60 .* image 60 x 40 .*NEAREST"):
        read_mask(path, size=(40, 60))
    with pytest.raises(AnnotationError, match=r"is 90 x 60 pixels, its image 60 x 90 .* lies on its side"):
        read_mask(path, size=(90, 60))
    with pytest.raises(AnnotationError, match=r"is 90 x 60 pixels, its image 300 x 20 .* of another image"):
        read_mask(path, size=(20, 300))


def test_inverted_masks() -> None:
    mask = torch.from_numpy(LABELS != 2).float()
    assert seems_inverted(mask) and not seems_inverted(1 - mask)
    sky = torch.ones(40, 60)
    sky[20:, :] = 0  # reaches the border: the ground, not an object
    speck = torch.ones(40, 60)
    speck[3:5, 3:5] = 0
    frame = torch.zeros(40, 60)
    frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = 1, 1, 1, 1
    for other in (sky, speck, frame, torch.ones(40, 60), torch.zeros(40, 60)):
        assert not seems_inverted(other)
