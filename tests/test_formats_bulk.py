"""Whole files of other tools: harmless differences are read as they are meant, faulty records can be passed over."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import save_mask
from PIL import Image
from shots import pixels

from diffup import Box
from diffup.errors import FormatError
from diffup.formats import (
    SupportSet,
    coco_annotations,
    coco_document,
    decode_segmentation,
    encode_rle,
    read_coco,
    read_fiftyone,
    read_huggingface,
    read_labelme,
    read_mask_folder,
)

pytest.importorskip("pycocotools")
pytest.importorskip("skimage")

HEIGHT, WIDTH = 40, 60
GOOD = {"segmentation": [[10, 10, 20, 10, 20, 20, 10, 20]], "bbox": [10, 10, 10, 10]}
SQUARE = np.zeros((HEIGHT, WIDTH), dtype=bool)
SQUARE[10:20, 10:20] = True


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def coco(photo: Path, *annotations: dict[str, Any], image: dict[str, Any] | None = None, **options: Any) -> SupportSet:
    record = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} | (image or {})
    entries = [{"id": i, "image_id": 1, "category_id": 1} | one for i, one in enumerate(annotations)]
    content = {"images": [record], "categories": [{"id": 1, "name": "x"}], "annotations": entries}
    (photo.parent / "c.json").write_text(json.dumps(content))
    return read_coco(photo.parent / "c.json", photo.parent, "x", **options)


# run lengths


def test_run_lengths_that_end_early_are_refused_however_they_are_written() -> None:
    y, x = np.mgrid[:40, :60]
    size, mask = (40, 60), np.hypot(x - 30, y - 20) < 14
    counts = encode_rle(mask)["counts"]
    for form in (str, str.encode):
        np.testing.assert_array_equal(decode_segmentation({"size": [40, 60], "counts": form(counts)}, size), mask)
        for length in range(len(counts)):
            with pytest.raises(FormatError, match=r"segmentation\.counts: the (compressed )?runs"):
                decode_segmentation({"size": [40, 60], "counts": form(counts[:length])}, size)


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        ({"size": [4, 5], "counts": [10, 9]}, r"add up to 4 x 5 pixels \(19 in all\)"),
        ({"size": [4, 5], "counts": [10, 11]}, r"\(21 in all\)"),
        ({"size": [4, 5], "counts": [25, -5]}, r"\(one is -5\)"),
        ({"size": [4, 5], "counts": []}, r"\(0 in all\)"),
        ({"size": [4, 5], "counts": [2**64, 20]}, "whole numbers of pixels"),
        ({"size": [4, 5], "counts": [10.5, 9.5]}, "whole numbers of pixels"),
        ({"size": [4, 5], "counts": [float("nan")]}, "whole numbers of pixels"),
        ({"size": [4, 5], "counts": ["10", True]}, "whole numbers of pixels"),
        ({"size": [4, 5], "counts": "d0d1é"}, "character 4 is damaged"),
        ({"size": [4, 5], "counts": "\x00"}, "character 0 is damaged"),
        ({"size": [4, 5], "counts": "P" * 40}, "damaged"),
        ({"size": [4, 5], "counts": "P"}, "cut off within a number"),
        ({"size": [4, 5], "counts": None}, "expected a list of runs"),
        ({"size": [5, 4], "counts": [20]}, r"not the other way round"),
        ({"size": 5, "counts": [20]}, r"segmentation\.size"),
        ({"size": None, "counts": [20]}, r"segmentation\.size"),
        ({"counts": [20]}, "expected run lengths"),
    ],
)
def test_damaged_run_lengths(segmentation: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        decode_segmentation(segmentation, (4, 5))


def test_runs_of_programs_that_compute_with_floats() -> None:
    mask = decode_segmentation({"size": [4.0, 5.0], "counts": [8.0, 4.0, 8.0]}, (4, 5))
    np.testing.assert_array_equal(mask, np.arange(5) == np.full((4, 1), 2))


# harmless differences


def test_coco_objects_without_area_are_nothing_beside_others(photo: Path) -> None:
    flat = {**GOOD, "bbox": [1, 1, 5, 0]}
    assert coco(photo, GOOD, flat, boxes=True).annotation == [Box(10, 10, 20, 20)]
    assert coco(photo, {"bbox": [0, 0, 0, 0], "segmentation": []}, GOOD, boxes=True).annotation == [Box(10, 10, 20, 20)]
    for extra in ([[1, 1, 5, 5]], [[1, 1]], [[]]):
        shots = coco(photo, {**GOOD, "segmentation": [*GOOD["segmentation"], *extra]})
        np.testing.assert_array_equal(pixels(shots.annotation[0]), SQUARE)
        shots = coco(photo, GOOD, {**GOOD, "segmentation": extra})
        np.testing.assert_array_equal(pixels(shots.annotation[0]), SQUARE)
    with pytest.raises(FormatError, match=r"annotations\[0\]\.bbox: the box from \(1, 1, 6, 1\) .* is empty"):
        coco(photo, flat, boxes=True)


def test_boxes_that_leave_the_image_a_little_are_cut(photo: Path) -> None:
    assert coco(photo, {"bbox": [-4, 2, 12, 10]}).annotation == [Box(0, 2, 8, 12)]
    assert coco(photo, {"bbox": ["50", "30", "14.0", "14"]}).annotation == [Box(50, 30, 60, 40)]
    with pytest.raises(FormatError, match="leaves the image of 60 x 40"):
        coco(photo, {"bbox": [-5, 2, 12, 10]})
    Image.new("RGB", (1000, 10)).save(photo)
    image = {"width": 1000, "height": 10}
    assert coco(photo, {"bbox": [-20, 2, 30, 5]}, image=image).annotation == [Box(0, 2, 10, 7)]


@pytest.mark.parametrize(
    "image",
    [
        {"id": 1.0, "width": 60.0, "height": 40.0},
        {"id": "1", "width": "60", "height": "40"},
        {"width": None},
        {"width": None, "height": None},
        {"width": 0, "height": 0},
        {"width": -1, "height": -1},
    ],
)
@pytest.mark.parametrize("number", [1, 1.0, "1", "1.0"])
def test_numbers_of_other_writers(photo: Path, image: dict[str, Any], number: object) -> None:
    shots = coco(photo, {**GOOD, "image_id": number, "category_id": number}, image=image)
    np.testing.assert_array_equal(pixels(shots.annotation[0]), SQUARE)
    with pytest.raises(FormatError, match=r"images\[0\]\.width: expected int, got 60\.5"):
        coco(photo, GOOD, image={"width": 60.5})


def test_roboflow_s_root_category_and_flat_polygons(photo: Path) -> None:
    content = {
        "images": [{"id": 0, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, "extra": {"name": "b.png"}}],
        "categories": [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 1, "name": "x", "supercategory": "animals"},
        ],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": GOOD["segmentation"][0]}],
    }
    (photo.parent / "r.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(pixels(read_coco(photo.parent / "r.json", photo.parent, "x").annotation[0]), SQUARE)


CORNERS = [[10, 10], [20, 10], [20, 20], [10, 20]]


def labelme(folder: Path, *shapes: dict[str, Any], name: str = "l.json", **fields: Any) -> Path:
    content = {"imagePath": "a.png", "imageData": None, "shapes": [{"label": "x", **shape} for shape in shapes]}
    (folder / name).write_text(json.dumps(content | fields))
    return folder / name


def test_labelme_dialects(photo: Path) -> None:
    extra = {
        "score": 0.9,
        "difficult": False,
        "attributes": {},
        "kie_linking": [],
        "description": None,
        "direction": 1.5,
    }
    four = labelme(
        photo.parent, {"shape_type": "rectangle", "points": CORNERS, **extra}, imageHeight=40.0, imageWidth=60
    )
    assert read_labelme(four, "x").annotation == [Box(10, 10, 20, 20)]
    for kind in ("polygon", "rotation", "quadrilateral"):
        path = labelme(photo.parent, {"shape_type": kind, "points": CORNERS, **extra}, imageHeight=-1, imageWidth=-1)
        np.testing.assert_array_equal(pixels(read_labelme(path, "x").annotation[0]), SQUARE)
    polygon = {"shape_type": "polygon", "points": CORNERS}
    path = labelme(
        photo.parent, polygon, {**polygon, "points": CORNERS[:2]}, {**polygon, "points": []}, {"label": None}
    )
    np.testing.assert_array_equal(pixels(read_labelme(path, "x").annotation[0]), SQUARE)
    path = labelme(photo.parent, {"shape_type": "rectangle", "points": [[-4, 2], [8, 2], [8, 12], [-4, 12]]})
    assert read_labelme(path, "x").annotation == [Box(0, 2, 8, 12)]
    path = labelme(photo.parent, {"shape_type": "rectangle", "points": [[15, 5], [25, 15], [15, 25], [5, 15]]})
    with pytest.raises(FormatError, match=r"shapes\[0\]\.points: they are no corners of an upright rectangle"):
        read_labelme(path, "x")
    path = labelme(photo.parent, polygon, imageData="")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b'"a.png"', b'"C:\\\\data\\\\A.PNG"'))
    assert read_labelme(path, "x").support == [photo]


def test_records_without_the_class_are_passed_over(photo: Path) -> None:
    box = {"label": "x", "bounding_box": [0.25, 0.25, 0.5, 0.5]}
    samples = [{"filepath": str(photo), "gt": gt} for gt in ({"detections": [box, {"label": None}]}, None)]
    samples += [{"filepath": str(photo), "gt": {"detections": None}}, {"filepath": str(photo)}]
    shots = read_fiftyone(samples, "x", "gt")
    assert shots.annotation == [Box(15, 10, 45, 30)] and shots.skipped == ()
    with pytest.raises(FormatError, match=r"no sample has it in the field 'ground'. samples\[0\]\.ground is not there"):
        read_fiftyone(samples, "x", "ground")
    image = Image.open(photo)
    rows = [{"image": image, "mask": None}, {"image": image, "mask": Image.fromarray(SQUARE)}]
    np.testing.assert_array_equal(pixels(read_huggingface(rows).annotation[0]), SQUARE)
    rows = [{"image": image, "objects": None}, {"image": image, "objects": {"bbox": [[1, 1, 5, 0], [10, 10, 10, 10]]}}]
    assert read_huggingface(rows).annotation == [Box(10, 10, 20, 20)]
    with pytest.raises(FormatError, match=r"rows\[0\]\.objects: expected rows of pixels"):
        read_huggingface({"image": image, "objects": [None, []]})
    with pytest.raises(FormatError, match=r"rows\[0\]\.msk: there is no such column; the row has image, objects"):
        read_huggingface(rows, column="msk")
    with pytest.raises(FormatError, match=r"rows\[0\]\.objects: every object has one value of each field"):
        read_huggingface({"image": image, "objects": {"bbox": [[1, 1, 5, 5]], "category": [1, 2]}}, 1)


# other units


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]])
def test_fractions_where_pixels_are_meant(photo: Path, box: list[float]) -> None:
    x, y, w, h = box
    corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
    polygon = {"segmentation": [[value for corner in corners for value in corner]]}
    for read in (
        lambda: coco(photo, {"bbox": box}),
        lambda: coco(photo, polygon),
        lambda: read_huggingface({"image": Image.open(photo), "objects": {"bbox": [box]}}),
        lambda: read_labelme(labelme(photo.parent, {"shape_type": "rectangle", "points": corners}), "x"),
        lambda: read_labelme(labelme(photo.parent, {"shape_type": "polygon", "points": corners}), "x"),
        lambda: read_labelme(labelme(photo.parent, {"shape_type": "points", "points": corners}), "x"),
        lambda: read_labelme(labelme(photo.parent, {"shape_type": "linestrip", "points": corners}), "x"),
    ):
        with pytest.raises(FormatError, match=r"these are fractions of the image, .* width \(60\) .* height \(40\)"):
            read()


def test_pixels_where_fractions_are_meant_and_what_is_small(photo: Path) -> None:
    sample = {"filepath": str(photo), "gt": {"detections": [{"label": "x", "bounding_box": [10, 5, 20, 15]}]}}
    with pytest.raises(FormatError, match=r"bounding_box: .* fractions of the image, and these look like pixels"):
        read_fiftyone(sample, "x", "gt")
    first = np.zeros_like(SQUARE)
    first[0, 0] = True
    for encoding in ("rle", "polygon"):  # one pixel is an object as well
        entry = coco_annotations([first], 1, [1], encoding=encoding)[0]
        np.testing.assert_array_equal(pixels(coco(photo, entry).annotation[0]), first)


# passing over


@pytest.fixture
def readers(tmp_path: Path) -> dict[str, Callable[..., SupportSet]]:
    """Every reader on three records, the second of which is faulty."""
    for name in ("images/0.png", "images/1.png", "images/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
        save_mask(tmp_path / "masks" / Path(name).name, SQUARE if "1" not in name else SQUARE[1:])
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH + (i == 1), "height": HEIGHT} for i in range(3)]
    entries = [{"id": i, "image_id": i, "category_id": 1, **GOOD} for i in range(3)]
    content = {"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": entries}
    (tmp_path / "c.json").write_text(json.dumps(content))
    shape = {"shape_type": "polygon", "points": CORNERS}
    files = [labelme(tmp_path, shape, name=f"{i}.json", imagePath=f"images/{i * 4 % 6}.png") for i in range(3)]
    files[1].write_text("{")
    boxes = [[0.1, 0.1, 0.5, 0.5], [0, 0], [0.1, 0.1, 0.5, 0.5]]
    samples = [
        {
            "filepath": tmp_path / f"images/{i}.png",
            "ground_truth": {"detections": [{"label": "x", "bounding_box": box}]},
        }
        for i, box in enumerate(boxes)
    ]
    rows = [{"image": str(tmp_path / f"images/{i}.png"), "mask": SQUARE[i == 1 :]} for i in range(3)]
    return {
        "images[1]": lambda **options: read_coco(tmp_path / "c.json", tmp_path / "images", "x", **options),
        "1.json": lambda **options: read_labelme(files, "x", **options),
        "samples[1]": lambda **options: read_fiftyone(samples, "x", **options),
        "rows[1]": lambda **options: read_huggingface(rows, **options),
        "1.png": lambda **options: read_mask_folder(tmp_path / "images", tmp_path / "masks", **options),
    }


@pytest.mark.parametrize("record", ["images[1]", "1.json", "samples[1]", "rows[1]", "1.png"])
def test_a_faulty_record_is_raised_or_passed_over_and_reported(
    readers: dict[str, Callable[..., SupportSet]], record: str
) -> None:
    with pytest.raises(FormatError) as raised:
        readers[record]()
    with pytest.warns(UserWarning, match="1 faulty records were passed over, the first: "):
        shots = readers[record](on_error="skip")
    support, annotation = shots
    assert len(support) == len(annotation) == 2 and len(shots) == 2
    assert [skipped.record.endswith(record) for skipped in shots.skipped] == [True]
    assert shots.skipped[0].reason == str(raised.value)
    with pytest.raises(FormatError, match="on_error='ignore': expected raise or skip"):
        readers[record](on_error="ignore")


def test_shots_are_filled_with_the_next_records(readers: dict[str, Callable[..., SupportSet]]) -> None:
    for record in ("images[1]", "1.png"):
        with pytest.warns(UserWarning, match="passed over"):
            shots = readers[record](on_error="skip", shots=2)
        assert [Path(str(path)).name for path in shots.support] == ["0.png", "2.png"]
        with pytest.raises(FormatError, match=r"shots=3 were asked for, and 2 can be read\. 1 faulty records"):
            readers[record](on_error="skip", shots=3)


def test_nothing_but_faults_is_an_error(photo: Path) -> None:
    with pytest.raises(FormatError, match=r"no image shows the category 'x'\. 1 faulty records .* nan"):
        coco(photo, {"bbox": [float("nan"), 1, 2, 2]}, on_error="skip")


def test_records_that_share_what_is_one_s_own(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    images = [{"id": i, "file_name": name} for i, name in ((1, "a.png"), (2, "x\\a.PNG"))]
    content: dict[str, Any] = {"images": images, "categories": [{"id": 1, "name": "x"}]}
    content["annotations"] = [{"image_id": i, "category_id": 1, **GOOD} for i in (1, 2)]
    for match, change in [
        (r"images\[1\]\.file_name: .* is the file of .*images\[0\] too", {}),
        (r"images\[1\]\.id: 1 is the id of another image", {"images": [images[0], {**images[1], "id": 1.0}]}),
        (
            r"categories\[1\]\.id: 1 is the id of 'x' too",
            {"categories": [*content["categories"], {"id": 1, "name": "y"}]},
        ),
    ]:
        (tmp_path / "c.json").write_text(json.dumps(content | change))
        with pytest.raises(FormatError, match=match):
            read_coco(tmp_path / "c.json", tmp_path, "x")


NAMES = [
    "Küche",
    unicodedata.normalize("NFD", "Küche"),
    "猫 🐈",
    "عربى",  # right to left
    "a#b: c",
    "'q' \"r\"",
    "=1+1",
    "a,b;c",
    "a\tb\nc",
    "%41",
    "-x",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_the_files_that_are_written(tmp_path: Path, name: str) -> None:
    from pycocotools.coco import COCO

    file = f"{name}.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / file)
    images = [{"id": 1, "file_name": file, "width": WIDTH, "height": HEIGHT}]
    for category in (name, f"{name}\ud83d\x00"):  # a class may also hold what no file name can
        document = coco_document(images, coco_annotations([SQUARE], 1, [1]), [category])
        (tmp_path / "c.json").write_text(json.dumps(document), encoding="utf-8")
        assert COCO(str(tmp_path / "c.json")).cats[1]["name"] == category
        assert read_coco(tmp_path / "c.json", tmp_path, category).support == [tmp_path / file]
    save_mask(tmp_path / "masks" / file, SQUARE)
    assert read_mask_folder(tmp_path, tmp_path / "masks").support == [tmp_path / file]


def test_numbers_that_no_float_holds_are_faulty_records(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.png")
    huge = 10**400
    sample = {
        "filepath": tmp_path / "0.png",
        "ground_truth": {"detections": [{"label": "x", "bounding_box": [huge, 0, 1, 1]}]},
    }
    with pytest.raises(FormatError, match="bounding_box"):
        read_fiftyone(sample, "x")
    row = {"image": str(tmp_path / "0.png"), "objects": {"bbox": [[huge, 1, 2, 3]], "category": [1]}}
    with pytest.raises(FormatError, match="bbox"):
        read_huggingface(row, 1)
    shape = {"shape_type": "polygon", "points": [[huge, 1], [5, 5], [5, 1]]}
    with pytest.raises(FormatError, match="points"):
        read_labelme(labelme(tmp_path, shape, imagePath="0.png"), "x")
