"""Images, masks and annotations of every kind and wrongness: a sound result, or an error of the library's own."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, tiny_model
from fuzzing import ANYTHING, SIZES, arrays, files, outcome, pil_images, tensors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffup import Box, DiffUp, Mask, Points, Scribble
from diffup.errors import AnnotationError, DiffUpError, ImageError
from diffup.inputs.annotations import parse_annotation, rasterise
from diffup.inputs.images import read_image, upright_size
from diffup.inputs.masks import read_mask

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and numpy's, about what is damaged

IMAGES = st.one_of(pil_images(), arrays(), tensors(), ANYTHING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(FakeBackbone(input_size=(32, 32)), steps=1)


def check_image(source: object) -> None:
    image = outcome(lambda: read_image(source))
    if image is not None:
        assert image.ndim == 3 and image.shape[0] == 3 and image.dtype.is_floating_point and image.numel() > 0
        assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1


def check_mask(source: object) -> None:
    mask = outcome(lambda: read_mask(source))
    if mask is not None:
        assert mask.ndim == 2 and mask.numel() > 0
        assert mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1


def check_size(source: Path | bytes) -> None:
    """What is read has the size that `upright_size` tells; what has none cannot be read."""
    size = outcome(lambda: upright_size(source, "image"))
    image = outcome(lambda: read_image(source))
    assert image is None or size == tuple(image.shape[1:])


@given(IMAGES)
def test_images_in_memory(source: object) -> None:
    check_image(source)


@given(IMAGES)
def test_masks_in_memory(source: object) -> None:
    check_mask(source)


@given(files())
def test_files(folder: Path, content: bytes) -> None:
    path = folder / "image"
    path.write_bytes(content)
    check_image(path)
    check_mask(path)
    check_size(path)
    check_size(content)


@st.composite
def label_maps(draw: st.DrawFn) -> np.ndarray:
    """Labels of one to four classes, each a rectangle of its own, far from the others."""
    labels = np.zeros((64, 64), np.uint8)
    for number in range(draw(st.integers(1, 4))):
        y, x = draw(st.integers(2, 12)) + 32 * (number // 2), draw(st.integers(2, 12)) + 32 * (number % 2)
        labels[y : y + draw(st.integers(8, 16)), x : x + draw(st.integers(8, 16))] = number + 1
    return labels


@st.composite
def masks_of_labels(draw: st.DrawFn, labels: np.ndarray) -> object:
    """A label map in one of the forms that programs write, all of which keep its classes apart."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    classes = int(labels.max())
    colours = rng.permutation([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])[:classes].astype(np.uint8)
    rgb = np.vstack([np.zeros((1, 3), np.uint8), colours])[labels]
    alpha = np.minimum(labels, 1) * np.uint8(draw(st.sampled_from([255, 255, 128])))
    form = draw(st.sampled_from(["indices", "grey", "colours", "cut out", "palette", "clear", "JPEG"]))
    if form in ("indices", "grey"):
        return labels if form == "indices" else labels * np.uint8(255 // classes)
    buffer = io.BytesIO()
    if form == "JPEG":
        grey = labels * np.uint8(255 // classes)
        Image.fromarray(grey).save(buffer, format="JPEG", quality=draw(st.integers(75, 100)))
    elif form in ("palette", "clear"):
        image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        image.putpalette([0, 0, 0, *colours.flatten().tolist()])
        image.save(buffer, format="PNG", **({"transparency": 0} if form == "clear" else {}))
    else:
        pixels = rgb if form == "colours" else np.dstack([rgb, alpha])
        if draw(st.booleans()):
            return pixels
        Image.fromarray(pixels).save(buffer, format=draw(st.sampled_from(["PNG", "TIFF"])))
    return buffer.getvalue()


@given(st.data())
def test_masks_of_one_class_are_read_and_of_several_refused(data: st.DataObject) -> None:
    labels = data.draw(label_maps())
    source = data.draw(masks_of_labels(labels))
    if labels.max() == 1:
        assert np.array_equal(read_mask(source).numpy(), labels > 0)
        return
    with pytest.raises(AnnotationError, match=r"pixels\)|black and white"):
        read_mask(source)


FRACTIONS = st.floats(0, 1).filter(lambda number: 0.001 < number < 0.999)


@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=2, max_size=5, unique=True), SIZES)
def test_fractions_are_refused_and_their_pixels_read(
    positions: list[tuple[float, float]], size: tuple[int, int]
) -> None:
    width, height = size
    pixels = np.array(positions) * (width, height)
    corners = np.array([np.min(positions, axis=0), np.max(positions, axis=0)])
    for make in (partial(Points, positions), partial(Scribble, positions), partial(Box, corners.flatten())):
        with pytest.raises(AnnotationError, match="multiply x by the image's width"):
            make()
    if pixels.max() > 1.01:
        for annotation in (Points(pixels), Scribble(pixels)):
            assert rasterise(annotation, (height, width)).foreground.any()
    box = (corners * (width, height)).flatten()
    if box.max() > 1.01 and (box[2:] > box[:2]).all():
        assert rasterise(Box(box), (height, width)).foreground.any()


@given(st.integers(8, 16), st.integers(0, 99), st.sampled_from(["array", "tensor", "PNG", "TIFF"]))
def test_white_of_any_depth(bits: int, seed: int, form: str) -> None:
    white = 2**bits - 1
    pixels = np.random.default_rng(seed).integers(0, white + 1, (7, 9)).astype(np.uint16)
    pixels[3, 4] = white
    source: object = torch.from_numpy(pixels.astype(np.int32)).to(torch.uint16) if form == "tensor" else pixels
    if form in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=form)
        source = buffer.getvalue()
    expected = torch.from_numpy(pixels.astype(np.float32) / white).expand(3, -1, -1)
    torch.testing.assert_close(read_image(source, white=white), expected)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(read_image(source).max(), torch.tensor(white / 65535))
    assert len(caught) == (bits <= 14)


BOXES = st.lists(st.floats(-10, 80) | st.integers(-5, 70), min_size=3, max_size=5)
POSITIONS = st.lists(st.tuples(st.floats(-2, 70), st.floats(-2, 70)), max_size=5)
LENGTHS = st.one_of(st.none(), st.floats(), st.integers(), st.floats(0.01, 30), ANYTHING)


@st.composite
def annotations(draw: st.DrawFn) -> object:
    """A call that makes an annotation, right or wrong."""
    kind = draw(st.sampled_from([Mask, Box, Scribble, Points, parse_annotation]))
    if kind is Box:
        return partial(Box, draw(BOXES | st.lists(BOXES, max_size=3) | IMAGES))
    if kind in (Scribble, Points):
        return partial(kind, draw(POSITIONS | st.lists(POSITIONS, max_size=3) | IMAGES), draw(LENGTHS))
    return partial(kind, draw(IMAGES))


@given(annotations(), SIZES)
def test_annotations(make: object, size: tuple[int, int]) -> None:
    annotation = outcome(make)
    if annotation is None:
        return
    assert repr(annotation)
    size = size[::-1]
    if isinstance(annotation, Mask) and len(size) % 2 == 0:
        size = tuple(annotation.mask.shape)
    regions = outcome(lambda: rasterise(annotation, size))
    if regions is not None:
        for weights in (regions.foreground, regions.background):
            assert tuple(weights.shape) == size and weights.isfinite().all()
            assert weights.min() >= 0 and weights.max() <= 1
        assert regions.foreground.any()


@st.composite
def episodes(draw: st.DrawFn) -> tuple[object, list[object], list[object]]:
    """A query, supports and what annotates them, mostly right."""
    query = draw(st.one_of(pil_images(), arrays()))
    count = draw(st.integers(0, 3))
    supports: list[object] = []
    annotated: list[object] = []
    for _ in range(count):
        width, height = draw(SIZES)
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        supports.append(draw(st.sampled_from([rng.integers(0, 256, (height, width, 3)).astype(np.uint8)]) | IMAGES))
        right = [
            None,
            Mask(rng.random((height, width)) > 0.5),
            Box(0, 0, width, height),
            Points([(width // 2, height // 2)]),
            Scribble([(0, 0), (width - 1, height - 1)]),
        ]
        annotated.append(draw(st.sampled_from(right) | ANYTHING))
    return query, supports, annotated if draw(st.booleans()) else annotated[:-1]


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(-1, 3) | ANYTHING,
        "ensemble": st.integers(-1, 3) | ANYTHING,
        "threshold": st.floats(0, 1) | ANYTHING,
        "seed": st.integers() | ANYTHING,
        "trace": st.booleans(),
    },
)


@given(episodes(), OPTIONS)
def test_segment(model: DiffUp, episode: tuple[object, list[object], list[object]], options: dict[str, object]) -> None:
    if isinstance(options.get("ensemble"), int):
        options["ensemble"] = min(options["ensemble"], 3)
    if isinstance(options.get("steps"), int) and 0 < options["steps"] <= 50:
        options["steps"] = min(options["steps"], 3)
    query, supports, annotated = episode
    result = outcome(lambda: model.segment(query, supports, annotated, **options))
    if result is not None:
        assert result.probability.shape == result.mask.shape == read_image(query).shape[1:]
        assert np.isfinite(result.probability).all()
        assert result.overview(32).width <= (3 + 5) * (8 * 32 + 4)
        assert result.overlay().size == result.mask.shape[::-1]


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that states any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (2**26 + 1, 1)])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    with warnings.catch_warnings(), pytest.raises(ImageError, match=r"limit|larger|cannot be read"):
        warnings.simplefilter("ignore")
        read_image(path)
    with pytest.raises(DiffUpError):
        Mask(path)


def test_programs_that_draw_are_not_run(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="EPS")
    path = tmp_path / "photo.png"  # Pillow goes by the content, and would start Ghostscript
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ImageError, match="EPS"):
        read_image(path)
