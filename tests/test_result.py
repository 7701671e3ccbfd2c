"""What a segmentation says and shows of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffup.commands.segment_results import line_of
from diffup.errors import FormatError, ImageError, MissingPackageError
from diffup.label_map import LabelMap
from diffup.result import Segmentation
from diffup.utils.panels import HEAT, Scale

HEIGHT, WIDTH = 90, 120


@pytest.fixture
def result() -> Segmentation:
    image = data.astronaut()[:HEIGHT, 150 : 150 + WIDTH]
    probability = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    probability[20:60, 30:80] = 0.8
    generator = np.random.default_rng(0)
    return Segmentation(
        image=image,
        maps=np.stack(
            [
                probability,
                np.full((HEIGHT, WIDTH), 0.04, dtype=np.float32),
                np.linspace(-2, 2, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH),
                probability / 2,
            ]
        ),
        quality=0.75,
        threshold=0.5,
        backbone="bundled:efficientnet_lite0",
        presence=0.9,
        min_presence=0.25,
        score=0.625,
        refine=False,
        trace=generator.normal(size=(10, 64, 64)).astype(np.float32),
        trace_timesteps=tuple(range(249, -1, -25)),
    )


def marked(result: Segmentation, mask: np.ndarray) -> Segmentation:
    """The result with another mask."""
    return replace(result, maps=np.concatenate([mask[None] * np.float32(0.8), result.maps[1:]]))


def test_maps_are_enlarged_when_they_are_read(result: Segmentation) -> None:
    maps = np.zeros((4, 9, 12), dtype=np.float32)
    maps[:, 2:6, 3:8] = np.array([0.8, 0.04, -1, 0.4], dtype=np.float32)[:, None, None]
    small = replace(result, maps=maps, trace=None, trace_timesteps=())
    assert set(vars(small)) == {field.name for field in fields(Segmentation)}, "nothing at the image's size yet"
    for name, value in (("probability", 0.8), ("variance", 0.04), ("error_map", -1), ("prior", 0.4)):
        enlarged = getattr(small, name)
        assert enlarged.shape == (HEIGHT, WIDTH) and enlarged.dtype == np.float32
        assert enlarged is getattr(small, name), "once only"
        # Two passes of two taps each: weights, products and a sum are rounded, at most 4 units a pass.
        np.testing.assert_allclose(enlarged[25:55, 35:75], np.float32(value), rtol=8 * 2**-24)
        assert not enlarged[:15].any() and not enlarged[:, 85:].any()
    np.testing.assert_array_equal(small.mask, small.probability > 0.5)
    assert small.mask[25:55, 35:75].all() and small.mask.dtype == bool


def test_the_overlay_tints_the_mask_outlines_it_and_leaves_the_rest(result: Segmentation) -> None:
    pixels = np.asarray(result.overlay(colour=(0, 255, 0), alpha=0.5))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    ring = np.zeros((4, HEIGHT, WIDTH), dtype=bool)  # dark edge, colour, light edge, tint
    for part, margin in zip(ring, (-1, 0, 2, 3), strict=True):
        part[20 + margin : 60 - margin, 30 + margin : 80 - margin] = True
    np.testing.assert_array_equal(pixels[~ring[0]], result.image[~ring[0]])
    assert not pixels[ring[0] & ~ring[1]].any()
    assert (pixels[ring[1] & ~ring[2]] == (0, 255, 0)).all()
    assert (pixels[ring[2] & ~ring[3]] == 255).all()
    expected = result.image[ring[3]] * 0.5 + np.array([0, 127.5, 0])
    assert np.abs(pixels[ring[3]] - expected).max() < 1


def test_an_empty_mask_and_a_full_one_have_no_outline(result: Segmentation) -> None:
    empty = marked(result, np.zeros((HEIGHT, WIDTH), dtype=bool))
    np.testing.assert_array_equal(np.asarray(empty.overlay()), result.image)
    full = marked(result, np.ones((HEIGHT, WIDTH), dtype=bool))
    np.testing.assert_array_equal(np.asarray(full.overlay(alpha=0)), result.image)


def test_the_saved_mask_reads_back(result: Segmentation, tmp_path: Path) -> None:
    path = result.save(tmp_path / "mask.png")
    with Image.open(path) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), result.mask * np.uint8(255))
    assert list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode, "readable by whom any new file is"


def test_saving_replaces_a_file_whole_or_not_at_all(
    result: Segmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result.save(str(tmp_path / "mask.png"))
    before = path.read_bytes()

    def fail_half_way(image: Image.Image, target: Path, **options: Any) -> None:
        Path(target).write_bytes(before[:20])
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(Image.Image, "save", fail_half_way)
        marked(result, ~result.mask).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    marked(result, ~result.mask).save(path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)) > 0, ~result.mask)


def test_masks_are_saved_where_and_as_they_can_be(result: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"ending in \.png, got '.*mask\.jpg'"):
        result.save(tmp_path / "mask.jpg")
    path = result.save(tmp_path / "new" / "folder" / "MASK.PNG")
    with Image.open(path) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), result.mask * np.uint8(255))


def test_the_summary_is_json(result: Segmentation) -> None:
    summary = json.loads(json.dumps(replace(result, quality=np.float32(0.75), presence=np.float32(0.5)).summary()))
    assert summary == {
        "width": WIDTH,
        "height": HEIGHT,
        "area_fraction": pytest.approx(40 * 50 / (HEIGHT * WIDTH)),
        "box": [30, 20, 80, 60],
        "presence": 0.5,
        "present": True,
        "quality": 0.75,
        "score": 0.625,
        "uncertainty": pytest.approx(0.2),
        "threshold": 0.5,
        "backbone": "bundled:efficientnet_lite0",
    }
    assert marked(result, np.zeros_like(result.mask)).summary()["box"] is None


def test_the_overview_shows_supports_mask_and_maps(result: Segmentation) -> None:
    picture = np.asarray(result.overview(height=HEIGHT))
    above, below = picture[:18], picture[18 + HEIGHT :]
    assert picture.shape[1] == 5 * WIDTH + 4 * 4 and len(below) == 16
    panels = [picture[18 : 18 + HEIGHT, i * (WIDTH + 4) : i * (WIDTH + 4) + WIDTH] for i in range(5)]
    np.testing.assert_array_equal(panels[0], np.asarray(result.overlay()))
    assert (panels[1][30, 40] == round(0.4 * 255)).all() and (panels[2][30, 40] == round(0.8 * 255)).all()
    assert (panels[3] == HEAT.stops[-1]).all(), "a constant deviation of 0.2 is the end of its scale"
    assert panels[4][25, 40, 2] > panels[4][25, 40, 0], "too much is blue"
    assert panels[4][-1, -1, 0] > panels[4][-1, -1, 2], "missed is red"
    for row in (above, below):
        assert all((row[:, i * (WIDTH + 4) : i * (WIDTH + 4) + WIDTH] < 128).any() for i in range(5)), "texts"
    given = [np.full((HEIGHT, 50, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40)]
    more = np.asarray(replace(result, supports=tuple(given)).overview(height=HEIGHT))
    assert more.shape == (*picture.shape[:1], 3 * 54 + picture.shape[1], 3)
    for index, support in enumerate(given[:3]):
        np.testing.assert_array_equal(more[18 : 18 + HEIGHT, index * 54 : index * 54 + 50], support)
    np.testing.assert_array_equal(more[:, 3 * 54 :], picture)


def test_the_expected_error_is_of_the_mask(result: Segmentation) -> None:
    """Within the mask nothing can be missed, outside of it nothing can be too much."""
    error = result.expected_error
    assert error.dtype == np.float32 and np.abs(error).max() <= 1
    assert (error[result.mask] <= 0).all() and (error[~result.mask] >= 0).all()
    maps = result.maps.copy()
    maps[2] = 0
    for threshold, odds in ((0.5, 4.0), (0.2, 16.0)):
        right = replace(result, maps=maps, threshold=threshold).expected_error
        np.testing.assert_allclose(right[result.mask], odds / (1 + odds) - 1, rtol=1e-5)
        assert right[~result.mask].max() < 1e-5


def test_the_deviation_fills_its_scale(result: Segmentation) -> None:
    maps = result.maps.copy()
    maps[1], maps[1, :5] = 0.0001, 0.0025
    scale = replace(result, maps=maps).panels(HEIGHT)["deviation"].legend
    assert isinstance(scale, Scale) and (scale.low, scale.high) == (0, 0.05)
    maps[1] = 0
    assert replace(result, maps=maps).panels(HEIGHT)["deviation"].legend.high == 0.01, "no noise is enlarged"


def test_the_outline_grows_with_the_image(result: Segmentation) -> None:
    def large(array: np.ndarray) -> np.ndarray:
        return array.repeat(16, axis=0).repeat(16, axis=1)

    grown = replace(result, image=large(result.image), maps=np.stack([large(map_) for map_ in result.maps]))
    outlined = (np.asarray(grown.overlay(colour=(1, 2, 3), alpha=0)) == (1, 2, 3)).all(axis=2)
    width = 2 * round(0.0025 * 16 * HEIGHT)
    assert width > 1
    rows, columns = np.s_[20 * 16 : 60 * 16], np.s_[30 * 16 : 80 * 16]
    expected = np.zeros_like(grown.mask)
    expected[rows, columns] = True
    expected[20 * 16 + width : 60 * 16 - width, 30 * 16 + width : 80 * 16 - width] = False
    np.testing.assert_array_equal(outlined, expected)
    assert grown.overview(height=HEIGHT).size == result.overview(height=HEIGHT).size


def test_the_trace_picture_runs_from_the_first_state_to_the_last(result: Segmentation) -> None:
    picture = np.asarray(result.trace_picture(count=4, height=64))
    assert picture.shape[1] == 4 * 64 + 3 * 4
    panels = [picture[-64:, i * 68 : i * 68 + 64, 0] for i in range(4)]
    assert result.trace is not None
    for panel, index in zip(panels, (0, 3, 6, 9), strict=True):
        expected = np.rint(((result.trace[index] + 1) / 2).clip(0, 1) * 255)
        np.testing.assert_array_equal(panel, expected)
    assert result.trace_picture(count=50, height=64).width == 10 * 64 + 9 * 4


def test_faulty_requests_for_pictures(result: Segmentation) -> None:
    with pytest.raises(ImageError, match="trace: none was recorded"):
        replace(result, trace=None, trace_timesteps=()).trace_picture()
    for request in (
        lambda: result.trace_picture(count=0),
        lambda: result.overview(height=0),
        lambda: result.overlay(alpha=1.5),
        lambda: result.overlay(colour=(0, 0, 300)),
        lambda: result.overlay(colour=(0, 0)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ImageError, match="expected"):
            request()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros(5, dtype=np.uint8)}, r"image: expected a shape \(H, W, 3\)"),
        ({"image": np.zeros((0, 5, 3), dtype=np.uint8)}, "at least one pixel"),
        ({"maps": np.zeros((4, HEIGHT, WIDTH), dtype=np.uint8)}, "maps: expected .* type float32, got .* uint8"),
        ({"image": np.zeros((HEIGHT, WIDTH), dtype=np.uint8)}, r"image: expected a shape \(H, W, 3\).*\(90, 120\)"),
        ({"image": np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)}, r"image: expected shape \(90, 120, 3\)"),
        ({"image": np.zeros((HEIGHT, WIDTH, 3))}, "image: expected .* type uint8"),
        ({"maps": np.zeros((3, WIDTH, HEIGHT), dtype=np.float32)}, r"maps: .*\(4, 120, 90\).* got \(3, 120, 90\)"),
        ({"maps": np.zeros((WIDTH, HEIGHT), dtype=np.float32)}, r"maps: .*\(4, 'h', 'w'\).* got \(120, 90\)"),
        ({"maps": np.zeros((4, HEIGHT, WIDTH))}, "maps: .* float32, got .* float64"),
        ({"maps": np.full((4, HEIGHT, WIDTH), np.nan, dtype=np.float32)}, "maps: contains NaN"),
        ({"maps": np.zeros((4, 0, WIDTH), dtype=np.float32)}, "maps: .*at least one"),
        ({"trace": np.zeros((10, 64), dtype=np.float32)}, r"trace: expected shape \(10, 'h', 'w'\)"),
        ({"trace_timesteps": (1, 2)}, r"trace: expected shape \(2, 64, 64\)"),
        ({"quality": 1.5}, r"quality: expected a number in \[0, 1\], got 1.5"),
        ({"quality": float("nan")}, "quality"),
        ({"presence": -0.5}, r"presence: expected a number in \[0, 1\], got -0.5"),
        ({"min_presence": 1.5}, r"min_presence: expected a number in \[0, 1\], got 1.5"),
        ({"score": float("nan")}, "score"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(
    result: Segmentation, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        replace(result, **changes)


def test_it_is_short_in_print(result: Segmentation) -> None:
    assert repr(result) == (
        "Segmentation(120 x 90 pixels, 18.5% of them marked, presence 0.90, quality 0.75, bundled:efficientnet_lite0)"
    )
    assert repr(replace(result, presence=0.0)) == (
        "Segmentation(120 x 90 pixels, 0.0% of them marked, presence 0.00 (absent), quality 0.75, "
        "bundled:efficientnet_lite0)"
    )


def test_the_line_of_the_command_says_whether_the_class_is_there(result: Segmentation) -> None:
    items = [replace(result, presence=presence, min_presence=0.25) for presence in (0.8, 0.79, 0.24)]
    assert [item.present_in_words for item in items] == ["yes", "perhaps", "no"]
    assert line_of("a.jpg", items[1], 1.24) == f"a.jpg: {items[1]!r}; in the photo: perhaps; 1.2 s"
    assert line_of("a.jpg", items[1], 1.24, 1).endswith("; in the photo: perhaps; 1 correction; 1.2 s")
    several = LabelMap.of(("square", "disc", "ring"), items)
    assert line_of("a.jpg", several, 1.24, 2) == (
        f"a.jpg: {several!r}; in the photo: square yes, disc perhaps, ring no; 2 corrections; 1.2 s"
    )


def test_the_mask_of_an_absent_class_is_empty(result: Segmentation) -> None:
    at, below = (replace(result, presence=presence) for presence in (0.25, np.nextafter(0.25, 0)))
    assert at.present and not below.present and not replace(result, presence=0.9, min_presence=1.0).present
    np.testing.assert_array_equal(at.mask, result.mask)
    assert below.mask.shape == (HEIGHT, WIDTH) and below.mask.dtype == bool and not below.mask.any()
    np.testing.assert_array_equal(below.probability, result.probability)
    np.testing.assert_array_equal(np.asarray(below.overlay()), result.image)
    summary = below.summary()
    assert (summary["present"], summary["area_fraction"], summary["box"]) == (False, 0.0, None)
    assert replace(below, min_presence=0.0).mask.any(), "0 never empties a mask"


def test_arrays_and_the_mask_as_a_picture(result: Segmentation, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **result.to_numpy())
    with np.load(tmp_path / "all.npz") as arrays:
        assert set(arrays) == {"image", "mask", "probability", "variance", "error_map", "prior"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, getattr(result, name))
    picture = result.to_pil()
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), result.mask * np.uint8(255))


def two_parts(result: Segmentation) -> Segmentation:
    mask = result.mask.copy()
    mask[70:80, 100:110] = True
    return marked(result, mask)


def test_coco_annotations_of_a_result(result: Segmentation) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    (annotation,) = json.loads(json.dumps(result.to_coco(7, 18)))
    assert annotation.pop("score") == 0.625
    np.testing.assert_array_equal(coco.decode(annotation.pop("segmentation")), result.mask)
    assert annotation == {"image_id": 7, "category_id": 18, "area": 2000, "bbox": [30, 20, 50, 40], "iscrowd": 0}
    parts = two_parts(result).to_coco(instances=True, encoding="polygon")
    assert [part["bbox"] for part in parts] == [[30, 20, 50, 40], [100, 70, 10, 10]]
    assert marked(result, np.zeros_like(result.mask)).to_coco() == replace(result, presence=0.0).to_coco() == []


@pytest.mark.filterwarnings("ignore")  # supervision's own, on OpenCV
def test_detections_of_a_result(result: Segmentation) -> None:
    supervision = pytest.importorskip("supervision")
    detections = result.to_supervision(3, "dog")
    assert isinstance(detections, supervision.Detections) and len(detections) == 1
    np.testing.assert_array_equal(detections.xyxy, [[30, 20, 80, 60]])
    np.testing.assert_array_equal(detections.mask, [result.mask])
    assert detections.confidence.tolist() == [0.625] and detections.class_id.tolist() == [3]
    assert detections["class_name"].tolist() == ["dog"]
    parts = two_parts(result).to_supervision(instances=True)
    assert parts.xyxy.tolist() == [[30, 20, 80, 60], [100, 70, 110, 80]]
    assert len(marked(result, np.zeros_like(result.mask)).to_supervision()) == 0
    assert len(replace(result, presence=0.0).to_supervision()) == 0
    shown = supervision.MaskAnnotator().annotate(result.image.copy(), detections)
    assert (shown != result.image).any(axis=2)[result.mask].all()


def test_supervision_is_optional(result: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match='supervision: pip install "supervision>='):
        result.to_supervision()


PEAK = """
import resource, sys
import numpy as np
from fakes import tiny_model
mask = np.zeros((200, 200), dtype=bool)
mask[50:150, 50:150] = True
small = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
model = tiny_model(threshold=0.3)
model.segment(small, small, mask).to_numpy()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
arrays = model.segment(sys.argv[1], small, mask).to_numpy()
assert all(array.shape[:2] == (4000, 6000) for array in arrays.values())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_a_large_photo_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((6000, 4000)).save(tmp_path / "large.jpg")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large.jpg")],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1024, f"{done.stdout} MiB"
