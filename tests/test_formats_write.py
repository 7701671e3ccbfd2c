"""What is written is what other programs read: PNG, COCO through pycocotools, YOLO."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from diffup.errors import FormatError, MissingPackageError
from diffup.formats import (
    coco_annotations,
    coco_document,
    connected_components,
    decode_segmentation,
    encode_rle,
    polygons,
    voc_palette,
    write_label_png,
    yolo_lines,
)
from diffup.utils.optional import need

pytest.importorskip("pycocotools")
pytest.importorskip("skimage")

MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def ring(size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """A ring, a dot within its hole, and a separate block with two holes."""
    y, x = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(x - 15, y - 18)
    mask = (distance < 13) & (distance > 6)
    mask[18, 15] = True
    mask[5:30, 33:47] = True
    mask[8:12, 36:40] = mask[16:25, 38:44] = False
    return mask


def labels() -> np.ndarray:
    array = np.zeros((40, 50), dtype=np.uint8)
    array[ring()] = 1
    array[30:40, 0:20] = 3
    return array


def test_label_maps_read_back_with_their_palette(tmp_path: Path) -> None:
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (9, 8, 7)]
    path = write_label_png(tmp_path / "labels.png", labels(), palette)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels())
        assert image.convert("RGB").getpixel((0, 35)) == (9, 8, 7)
    assert list(tmp_path.iterdir()) == [path]


def test_the_default_palette_is_that_of_pascal_voc(tmp_path: Path) -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: voc_palette()[label] for label in known} == known
    assert len(set(voc_palette())) == 256
    full = np.arange(256, dtype=np.int64).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(Image.open(write_label_png(tmp_path / "all.png", full))), full)


def test_pngs_that_cannot_be_written(tmp_path: Path) -> None:
    for fault, match in [
        (lambda: write_label_png(tmp_path / "a.jpg", labels()), r"path: expected a file name ending in \.png"),
        (lambda: write_label_png(tmp_path / "a.png", labels().astype(float)), "labels: expected integers"),
        (lambda: write_label_png(tmp_path / "a.png", labels().astype(int) - 1), "labels: .* got -1"),
        (lambda: write_label_png(tmp_path / "a.png", labels().astype(int) * 100), "labels: 300 does not fit"),
        (lambda: write_label_png(tmp_path / "a.png", labels(), [(0, 0, 0)]), "palette: label 3 has no colour"),
        (lambda: write_label_png(tmp_path / "a.png", labels(), [(0, 0, 300)] * 4), "palette: .* got 0 to 300"),
        (lambda: write_label_png(tmp_path / "a.png", labels(), [(0, 0)] * 4), "palette: expected"),
    ]:
        with pytest.raises(FormatError, match=match):
            fault()
    assert not list(tmp_path.iterdir())


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_run_lengths_and_polygons_are_exact(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_segmentation(encode_rle(mask), mask.shape), mask)
    flat = [polygon.ravel().tolist() for polygon in polygons(mask)]
    assert len(flat) == len(list(connected_components(mask)))
    if flat:
        np.testing.assert_array_equal(decode_segmentation(flat, mask.shape), mask)


@given(MASKS)
@settings(max_examples=30, deadline=None)
def test_components_part_the_mask(mask: np.ndarray) -> None:
    parts = list(connected_components(mask))
    np.testing.assert_array_equal(np.sum(parts, axis=0) if parts else np.zeros_like(mask), mask.astype(int))
    sizes = [int(part.sum()) for part in parts]
    assert sizes == sorted(sizes, reverse=True) and all(sizes)


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    assert len(polygons(np.eye(2, dtype=bool))) == len(list(connected_components(np.eye(2, dtype=bool)))) == 2


def test_straight_edges_take_few_vertices() -> None:
    block = np.zeros((30, 40), dtype=bool)
    block[5:25, 10:30] = True
    assert len(polygons(block)[0]) == 8  # corners are cut by half a pixel
    y, x = np.mgrid[:200, :200]
    disc = np.hypot(x - 100, y - 100) < 80
    exact, rough = polygons(disc)[0], polygons(disc, tolerance=1.5)[0]
    assert len(rough) < 0.2 * len(exact)
    again = decode_segmentation([rough.ravel().tolist()], disc.shape)
    assert (again & disc).sum() / (again | disc).sum() > 0.97


def test_a_tolerance_does_not_lose_small_parts() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[3, 3] = mask[10:14, 10:12] = True
    assert [len(polygon) >= 3 for polygon in polygons(mask, tolerance=10)] == [True, True]


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
@pytest.mark.parametrize("instances", [False, True])
def test_pycocotools_loads_the_document(tmp_path: Path, encoding: str, instances: bool) -> None:
    from pycocotools.coco import COCO

    annotations = coco_annotations(
        labels(), 7, [10, 20, 30], encoding=encoding, instances=instances, scores=[0.5, 0.6, 0.7]
    )
    assert len(annotations) == (4 if instances else 2), "label 2 does not occur; label 1 has three parts"
    document = coco_document(
        [{"id": 7, "file_name": "a.jpg", "width": 50, "height": 40}],
        annotations,
        [{"id": 10, "name": "ring"}, {"id": 20, "name": "none"}, {"id": 30, "name": "block"}],
    )
    (tmp_path / "instances.json").write_text(json.dumps(document))
    coco = COCO(str(tmp_path / "instances.json"))
    assert coco.loadCats(coco.getCatIds()) == document["categories"]
    for label, category in ((1, 10), (3, 30)):
        loaded = coco.loadAnns(coco.getAnnIds(imgIds=[7], catIds=[category]))
        union = np.sum([coco.annToMask(annotation) for annotation in loaded], axis=0)
        np.testing.assert_array_equal(union, labels() == label)  # IoU 1 with either encoding
        for annotation in loaded:
            part = coco.annToMask(annotation) > 0
            x, y, width, height = annotation["bbox"]
            assert part[y : y + height, x : x + width].sum() == part.sum() == annotation["area"]
            assert part[y].any() and part[:, x].any() and part[y + height - 1].any() and part[:, x + width - 1].any()
            assert annotation["score"] == {10: 0.5, 30: 0.7}[category]
    assert coco.getCatIds(["none"]) == [20] and not coco.getAnnIds(catIds=[20])


def test_detections_can_be_scored_by_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    masks = [ring(), labels() == 3]
    truth = coco_document(
        [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 40}],
        coco_annotations(masks, 1, [1, 2], encoding="polygon"),
        ["ring", "block"],
    )
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "truth.json"))
    found = coco.loadRes(json.loads(json.dumps(coco_annotations(masks, 1, [1, 2], scores=[0.9, 0.8]))))
    scores = COCOeval(coco, found, "segm")
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_masks_may_overlap_and_be_empty() -> None:
    full, empty = np.ones((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool)
    annotations = coco_annotations([full, empty, full], 1, [5, 6, 7])
    assert [annotation["category_id"] for annotation in annotations] == [5, 7]
    assert annotations == coco_annotations(np.stack([full, empty, full]), 1, [5, 6, 7])
    assert coco_annotations(np.zeros((4, 6), dtype=int), 1, []) == []


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (lambda: coco_annotations(labels(), 1, [1, 2]), r"category_ids: got 2, but masks holds the label 3"),
        (lambda: coco_annotations([ring()], 1, [1, 2]), "category_ids: got 2 for 1 masks"),
        (lambda: coco_annotations(ring(), 1, [1]), "masks: expected a label map .* or a list of masks"),
        (lambda: coco_annotations([labels()], 1, [1]), r"masks\[0\]: expected a bool array"),
        (lambda: coco_annotations([ring(), ring()[1:]], 1, [1, 2]), "masks: the masks of one image have one size"),
        (lambda: coco_annotations([ring()], 1, [1], encoding="mask"), "encoding='mask': expected rle or polygon"),
        (lambda: coco_annotations([ring()], 1, [1], tolerance=2.0), "tolerance=2.0: run lengths are exact"),
        (lambda: coco_annotations([ring()], 1, [1], encoding="polygon", tolerance=-1), "tolerance"),
        (lambda: coco_annotations([ring()], 1, [1], scores=[]), "scores: got 0 for 1"),
        (lambda: coco_document([{"id": 1}], [], []), r"images\[0\]: file_name, width, height missing"),
        (lambda: coco_document([], [], [{"id": 1, "name": "a"}] * 2), r"categories\[1\].id: 1 occurs twice"),
        (lambda: coco_document([], [{"image_id": 3, "category_id": 1}], ["a"]), r"annotations\[0\].image_id: 3"),
        (lambda: decode_segmentation([], (4, 4)), "segmentation: an empty list"),
        (lambda: decode_segmentation([[1, 2, 3, 4]], (4, 4)), r"segmentation\[0\]: expected at least three"),
        (lambda: decode_segmentation([[0, 0, 4, 0, 4, 1e9]], (4, 4)), r"segmentation\[0\]: a vertex lies far"),
        (lambda: decode_segmentation([["a"] * 6], (4, 4)), r"segmentation\[0\]: expected numbers"),
        (lambda: decode_segmentation({"size": [4, 5], "counts": [20]}, (4, 4)), r"segmentation.size"),
        (lambda: decode_segmentation({"size": [4, 4], "counts": [20]}, (4, 4)), r"segmentation.counts: the runs"),
        (lambda: decode_segmentation({"size": [4, 4], "counts": 5}, (4, 4)), r"segmentation.counts"),
        (lambda: decode_segmentation("nothing", (4, 4)), "segmentation: expected polygons"),
    ],
)
def test_faulty_coco(fault: object, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        fault()  # type: ignore[operator]


def parse(line: str, size: tuple[int, int]) -> tuple[int, np.ndarray]:
    """A YOLO line's class, and its polygon's mask by pycocotools' rule."""
    number, *values = line.split()
    points = np.array(values, dtype=float).reshape(-1, 2)
    assert (points >= 0).all() and (points <= 1).all()
    return int(number), decode_segmentation([(points * size[::-1]).ravel().tolist()], size)


def test_yolo_lines_hold_every_part_with_its_holes() -> None:
    lines = yolo_lines(labels(), [4, 5, 0])
    parsed = [parse(line, (40, 50)) for line in lines]
    assert [number for number, _ in parsed] == [4, 4, 4, 0]
    np.testing.assert_array_equal(np.any([mask for number, mask in parsed if number == 4], axis=0), labels() == 1)
    np.testing.assert_array_equal(parsed[-1][1], labels() == 3)
    assert yolo_lines(np.zeros((4, 4), dtype=int), []) == []


def test_a_filling_program_shows_the_holes() -> None:
    """Pillow, whose `polygon` has its own rule at edges, leaves the middle of each hole empty."""
    canvas = Image.new("L", (50, 40))
    for polygon in polygons(ring()):
        ImageDraw.Draw(canvas).polygon([tuple(vertex - 0.5) for vertex in polygon], fill=255)
    pixels = np.asarray(canvas) > 0
    assert not pixels[10, 38] and not pixels[20, 41] and not pixels[14, 15] and pixels[18, 5] and pixels[18, 15]
    assert (pixels & ring()).sum() / (pixels | ring()).sum() > 0.8


def test_importing_the_formats_needs_no_optional_package() -> None:
    code = (
        "import sys, diffup.formats\n"
        "loaded = {'pycocotools', 'skimage', 'scipy', 'supervision'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_package_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(MissingPackageError, match=r'COCO\'s masks needs pycocotools: pip install "pycocotools'):
        encode_rle(ring())
    with pytest.raises(MissingPackageError, match="scikit-image"):
        need("skimage.nothing", "nothing")
