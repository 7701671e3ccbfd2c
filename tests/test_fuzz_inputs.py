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
from fakes import FakeBackbone, random_decoder, tiny_config
from fuzzing import ANYTHING, SIZES, arrays, files, outcome, pil_images, tensors
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffup import Box, DiffUp, Mask, Points, Scribble
from diffup.annotation import parse_annotation, rasterise
from diffup.errors import DiffUpError, ImageError
from diffup.images import read_image
from diffup.masks import read_mask

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and numpy's, about what is damaged

IMAGES = st.one_of(pil_images(), arrays(), tensors(), ANYTHING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return DiffUp(random_decoder(tiny_config(steps=1)), FakeBackbone(input_size=(32, 32)), "cpu")


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
            Points([(width / 2, height / 2)]),
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
        assert result.overview(32).width <= 5 * (8 * 32 + 4)
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
