"""Reading images: every form, the same pixels; every fault, an error that says what is wrong."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, PngImagePlugin
from skimage import data

from diffup.errors import ImageError
from diffup.inputs.images import read_image, resize_image, shrink_image, to_pil, upright_size


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return data.astronaut()[40:140, 150:280]  # (100, 130, 3), not square


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)


def _png_header(width: int, height: int) -> bytes:
    """A PNG file that states its size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data_chunk = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + chunk + data_chunk


def test_all_forms_of_one_photo_agree(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    expected = _channels_first(photo)
    channels_first = photo.transpose(2, 0, 1).copy()
    forms = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        photo,
        photo[::-1][::-1],  # negative strides on the way
        photo / 255,
        (photo / 255).astype(">f4"),
        photo.astype(np.uint16) * 257,
        (photo.astype(np.uint16) * 257).astype(">u2"),
        torch.from_numpy(channels_first),
        torch.from_numpy(channels_first) / 255,
        torch.from_numpy(channels_first.astype(np.uint16) * 257),
        (torch.from_numpy(channels_first) / 255).double().requires_grad_(),
    ]
    for form in forms:
        image = read_image(form)
        assert image.shape == (3, 100, 130) and image.dtype == torch.float32 and not image.requires_grad
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def test_the_result_shares_no_memory_with_its_source() -> None:
    source = torch.rand(3, 5, 6)
    kept = source.clone()
    read_image(source).zero_()
    assert torch.equal(source, kept)
    array = np.random.default_rng(0).random((5, 6, 3), dtype=np.float32)
    kept_array = array.copy()
    read_image(array).zero_()
    np.testing.assert_array_equal(array, kept_array)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1)])
def test_grey_arrays_are_repeated_over_the_channels(shape: tuple[int, ...]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image = read_image(grey)
    assert image.shape == (3, 7, 9)
    for channel in image:
        torch.testing.assert_close(channel, torch.from_numpy(grey.reshape(7, 9) / np.float32(255)))
    first = torch.from_numpy(grey.reshape(7, 9))
    assert torch.equal(read_image(first), image) and torch.equal(read_image(first[None]), image)


def test_exif_orientation_is_applied(photo: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    path = tmp_path / "turned.png"
    Image.fromarray(photo).save(path, exif=exif)
    expected = _channels_first(np.rot90(photo, -1).copy())
    torch.testing.assert_close(read_image(path), expected)
    with Image.open(path) as image:
        torch.testing.assert_close(read_image(image), expected)
        assert image.size == (130, 100), "the caller's image must stay as it is"


def test_transparent_pixels_are_white_and_half_transparent_ones_half(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)  # black
    rgba[0, :, 3] = 255
    rgba[1, 0, 3] = 51
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.8, 1.0, 1.0]]).expand(3, -1, -1)
    path = tmp_path / "alpha.png"
    Image.fromarray(rgba).save(path)
    for form in (path, rgba, rgba / 255, torch.from_numpy(rgba).permute(2, 0, 1), Image.fromarray(rgba).convert("LA")):
        torch.testing.assert_close(read_image(form), expected)


def test_palette_images_are_read_by_colour_and_their_transparent_colour_is_white(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 0]], dtype=np.uint8)).convert("L")
    palette = Image.frombytes("P", (2, 2), palette.tobytes())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque, transparent = tmp_path / "opaque.png", tmp_path / "transparent.png"
    palette.save(opaque)
    palette.save(transparent, transparency=2)
    colours = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].permute(2, 0, 1)
    assert torch.equal(read_image(opaque), colours)
    colours[:, 1, 0] = 1.0
    assert torch.equal(read_image(transparent), colours)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 257, 32768], [65535, 1, 65000]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 3 2 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(path)
    expected = torch.from_numpy(grey.astype(np.float32) / 65535).expand(3, -1, -1)
    torch.testing.assert_close(read_image(path), expected)


def test_float_and_cmyk_and_bilevel_files(photo: np.ndarray, tmp_path: Path) -> None:
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "float.tif"
    Image.fromarray(grey).save(path)
    torch.testing.assert_close(read_image(path)[0], torch.from_numpy(grey))
    path = tmp_path / "cmyk.tif"
    Image.fromarray(photo).convert("CMYK").save(path)
    torch.testing.assert_close(read_image(path), _channels_first(photo), atol=0.01, rtol=0)
    path = tmp_path / "bilevel.png"
    Image.fromarray(grey > 0.5).save(path)
    assert torch.equal(read_image(path)[1], torch.from_numpy(grey > 0.5).float())


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    path = tmp_path / "animation.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert torch.equal(read_image(path), torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 3, 4))


def test_rounding_errors_outside_of_the_range_are_clipped() -> None:
    image = read_image(np.full((2, 2), 1.00001, dtype=np.float32))
    assert image.max() == 1.0


@pytest.mark.parametrize("size", [(8191, 8193), (30000, 30000)])
def test_the_size_is_checked_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(_png_header(*size))
    if size == (8191, 8193):  # within the limit: it is decoded, and found empty
        with pytest.raises(ImageError, match="cannot be"):
            read_image(path)
        path.write_bytes(_png_header(8200, 8200))
    with pytest.raises(ImageError, match=r"query: '.*huge\.png'.*(67108864 \(max_pixels\)|Pillow's own limit)"):
        read_image(path, "query")


def test_the_limit_can_be_chosen_and_holds_for_arrays() -> None:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    assert read_image(image, max_pixels=600).shape == (3, 20, 30)
    for form in (image, Image.fromarray(image), torch.zeros(3, 20, 30)):
        with pytest.raises(ImageError, match="30 x 20 = 600 pixels, more than the limit of 599"):
            read_image(form, max_pixels=599)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 5, 3), dtype=bool), "If it is a mask, give it as annotation"),
        (np.zeros((4, 5, 3), dtype=np.int64), r"shape \(4, 5, 3\) and type int64"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), "type int32"),
        (torch.zeros(3, 4, 5, dtype=torch.bool), "give it as annotation"),
        (np.zeros((4, 5, 3), dtype=complex), "type complex128"),
        (np.full((4, 5, 3), np.nan), "NaN or infinity"),
        (np.full((4, 5, 3), 1e300), "NaN or infinity"),
        (torch.full((3, 4, 5), float("inf")), "NaN or infinity"),
        (np.full((4, 5, 3), 255.0), r"values in \[255, 255\]. Divide by 255"),
        (np.full((4, 5, 3), -0.5), r"values in \[-0.5, -0.5\]"),
        (np.zeros((0, 5, 3)), "is empty"),
        (torch.zeros(3, 4, 0), "is empty"),
        (np.zeros(5), r"\(H, W\) or \(H, W, C\)"),
        (np.zeros(()), r"\(H, W\) or \(H, W, C\)"),
        (np.zeros((4, 5, 2)), "C = 1, 3 or 4"),
        (np.zeros((3, 40, 50), dtype=np.uint8), r"use \.transpose\(1, 2, 0\)"),
        (torch.zeros(40, 50, 3), r"\(C, H, W\).*use \.permute\(2, 0, 1\)"),
        (np.zeros((2, 4, 5, 3)), "For several images give a list"),
        ("no/such/file.png", r"there is no file 'no/such/file\.png'"),
        ("", "there is no file ''"),
        (".", "there is no file"),
        ("x" * 5000, "query"),
        ("bad\0name", "query"),
        ("https://example.org/dog.jpg", "URLs are not fetched"),
        (None, r"got None \(NoneType\)"),
        (bytearray(b"bytes"), "expected a path"),
        (b"bytes", "5 bytes cannot be read as an image"),
        (b"", "0 bytes cannot be read as an image"),
        (_png_header(9000, 9000), "9000 x 9000"),
        ([1, 2], r"got \[1, 2\] \(list\)"),
        (Image.new("I", (4, 4)), "32-bit integers"),
        (Image.new("La", (4, 4)), "no conversion to RGB"),
        (Image.new("RGB", (0, 4)), "is empty"),
    ],
)
def test_faults_are_named(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(source, "query")  # type: ignore[arg-type]
    assert str(caught.value).startswith("query: ")


def test_damaged_files_are_named(photo: np.ndarray, tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif", "tif"):
        path = tmp_path / f"photo.{suffix}"
        Image.fromarray(photo).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=rf"support\[1\].*photo\.{suffix}"):
            read_image(path, "support[1]")
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(ImageError, match="UnidentifiedImageError"):
        read_image(text)
    closed = tmp_path / "closed.png"
    Image.fromarray(photo).save(closed)
    with Image.open(closed) as image:
        pass
    with pytest.raises(ImageError, match="already closed"):
        read_image(image)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_give_an_image_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    suffix = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM", "WEBP"]))
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path, format=suffix)
    content = bytearray(path.read_bytes())
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)))):
        content[position] = value
    path.write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_image(path, max_pixels=100_000)
        except ImageError:
            return
    assert image.ndim == 3 and image.shape[0] == 3 and image.min() >= 0 and image.max() <= 1


_anything = hnp.arrays(
    dtype=st.one_of(hnp.scalar_dtypes(), hnp.floating_dtypes(), hnp.unsigned_integer_dtypes()),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(_anything)
@settings(max_examples=150, deadline=None)
def test_any_array_gives_an_image_or_an_image_error(array: np.ndarray) -> None:
    try:
        image = read_image(array)
    except ImageError as error:
        assert str(error).startswith("image: ")
    else:
        assert image.shape == (3, *array.shape[:2])
        assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1


def test_resizing_keeps_the_range_and_the_mean_and_returns_equal_sizes_unchanged(photo: np.ndarray) -> None:
    image = read_image(photo)
    small = resize_image(image, (25, 26))
    assert small.shape == (3, 25, 26) and small.min() >= 0 and small.max() <= 1
    torch.testing.assert_close(small.mean(), image.mean(), atol=2e-3, rtol=0)
    assert torch.equal(resize_image(image, (100, 130)), image)
    checkerboard = (torch.arange(64)[:, None] + torch.arange(64)[None]).remainder(2).float().expand(3, -1, -1)
    shrunk = resize_image(checkerboard, (16, 16))
    assert (shrunk - 0.5).abs().max() < 0.05, "without antialiasing a fine pattern turns into noise"


def test_shrinking_keeps_the_sides_in_proportion_and_enlarges_nothing(photo: np.ndarray) -> None:
    image = read_image(photo)  # 100 x 130
    assert torch.equal(shrink_image(image, 65), resize_image(image, (50, 65)))
    assert torch.equal(shrink_image(image, 130), image) and torch.equal(shrink_image(image, 1000), image)
    assert shrink_image(image[:, :1], 10).shape == (3, 1, 10)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).map(lambda shape: (*shape, 3))))
@settings(max_examples=30, deadline=None)
def test_to_pil_inverts_read_image(pixels: np.ndarray) -> None:
    picture = to_pil(read_image(pixels))
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), pixels)


# --- the upright size -------------------------------------------------------------------------------------------------

Image.init()
# Without programs, formats that Pillow does not read back, and floats without a white.
WRITTEN = sorted(set(Image.SAVE) - {"EPS", "PDF", "PALM", "WMF", "HDF5", "GRIB", "BUFR", "SPIDER"})
STORED = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)


def _encoded(file_format: str, **options: object) -> bytes | None:
    """A file of 24 x 16 stored pixels; None where Pillow has no such encoder here."""
    for mode in ("RGB", "P", "1"):
        buffer = io.BytesIO()
        try:
            Image.fromarray(STORED).convert(mode).save(buffer, format=file_format, **options)
        except (OSError, ValueError, KeyError):
            continue
        return buffer.getvalue()
    return None


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", WRITTEN)
def test_the_upright_size_is_that_of_the_image_that_is_read(file_format: str, orientation: int, tmp_path: Path) -> None:
    content = _encoded(file_format, exif=_turned(orientation)) or _encoded(file_format)
    if content is None:
        pytest.skip(f"Pillow writes no {file_format} here")
    path = tmp_path / "photo"
    path.write_bytes(content)
    size = tuple(read_image(path).shape[1:])
    assert upright_size(path, "photo") == upright_size(str(path), "photo") == upright_size(content, "photo") == size
    with Image.open(path) as image:
        assert upright_size(image, "photo") == size, "not decoded yet"
        image.load()
        assert upright_size(image, "photo") == size == tuple(read_image(image).shape[1:]), "decoded"
    if file_format in ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF"):  # which keep the orientation
        assert size == ((24, 16) if orientation > 4 else (16, 24))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_an_orientation_in_xmp_counts_the_same(file_format: str, orientation: int) -> None:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'
    options: dict[str, object] = {"xmp": xmp.encode()}
    if file_format == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)  # type: ignore[attr-defined]
    elif file_format == "TIFF":
        options = {"tiffinfo": {700: xmp.encode()}}
    content = _encoded(file_format, **options)
    assert content is not None
    assert upright_size(content, "photo") == tuple(read_image(content).shape[1:])


def test_tiff_orientation_in_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(STORED).save(path, exif=_turned(6))
    assert upright_size(path, "a") == (24, 16)
    torch.testing.assert_close(read_image(path), _channels_first(np.rot90(STORED, -1).copy()))


def test_the_upright_size_of_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("not an image")
    with pytest.raises(ImageError, match=r"^a: '.*text\.png' cannot be read as an image"):
        upright_size(path, "a")
    with pytest.raises(ImageError, match=r"^a: there is no file"):
        upright_size(tmp_path / "gone.png", "a")
    with pytest.raises(ImageError, match=r"384 pixels, more than the limit of 383"):
        upright_size(_encoded("PNG") or b"", "a", max_pixels=383)


# --- white ------------------------------------------------------------------------------------------------------------


def _sixteen_bit_colours(pixels: np.ndarray) -> bytes:
    """A PNG file of 16-bit colours, which Pillow reads and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_few_bits_in_sixteen_warn_once_and_white_brings_them_to_one(bits: int, tmp_path: Path) -> None:
    white = 2**bits - 1
    pixels = np.linspace(0, white, 300).round().astype(np.uint16).reshape(15, 20)
    path = tmp_path / "deep.png"
    Image.fromarray(pixels).save(path)
    expected = torch.from_numpy(pixels.astype(np.float32) / white).expand(3, -1, -1)
    for source in (path, pixels, torch.from_numpy(pixels.astype(np.int32)).to(torch.uint16), Image.open(path)):
        with pytest.warns(UserWarning, match=f"no value above {white} .*white={white}") as caught:
            read_image(source)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(read_image(source, white=white), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(read_image(read_image(path, white=white)), expected)  # as `segment` does
        read_image(pixels * np.uint16(65535 // white))
        read_image(np.zeros((3, 4), np.uint16))


def test_white_makes_other_integers_and_floats_images() -> None:
    grey = np.array([[0, 500, 1000]])
    expected = torch.tensor([[0, 0.5, 1.0]]).expand(3, -1, -1)
    forms = (grey, grey.astype(np.uint16), grey.astype(np.float64), torch.from_numpy(grey))
    for form in (*forms, Image.fromarray(grey.astype(np.int32))):
        torch.testing.assert_close(read_image(form, white=1000), expected)


@pytest.mark.parametrize(
    ("white", "message"),
    [
        (999, r"white=999, but a numpy array .* has values in \[0, 1000\]"),
        *((white, "expected a positive number") for white in (0, -1, True, "4095", float("nan"), float("inf"))),
    ],
)
def test_faulty_white_is_named(white: object, message: str) -> None:
    with pytest.raises(ImageError, match=f"^query: .*{message}"):
        read_image(np.array([[0, 1000]], np.uint16), "query", white=white)  # type: ignore[arg-type]


def test_colours_of_sixteen_bits_lose_half_of_them_in_pillow() -> None:
    pixels = np.linspace(0, 4095, 180).astype(np.uint16).reshape(6, 10, 3)
    with pytest.warns(UserWarning, match="no value above 4095 .*read it by another library"):
        read_image(_sixteen_bit_colours(pixels))
    with pytest.raises(ImageError, match="Pillow reads the upper 8"):
        read_image(_sixteen_bit_colours(pixels), white=4095)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(_sixteen_bit_colours(pixels * 16))
