"""Files of Label Studio, LabelMe and CVAT: what is written is what their own readers read, and comes back as it was."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from shots import pixels, usable

from diffup import Box, Points, Scribble
from diffup.errors import FormatError
from diffup.formats import (
    SupportSet,
    coco_annotations,
    coco_document,
    label_studio_prediction,
    label_studio_task,
    labelme_document,
    local_file_url,
    read_cvat,
    read_label_studio,
    read_labelme,
    read_supports,
    recognise_format,
)
from diffup.formats.brush import decode_brush, encode_brush

pytest.importorskip("pycocotools")
pytest.importorskip("skimage")

HEIGHT, WIDTH = 40, 60
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
SQUARE = (ROWS >= 10) & (ROWS < 20) & (COLUMNS >= 12) & (COLUMNS < 24)
RING = (np.hypot(COLUMNS - 30, ROWS - 18) < 9) & (np.hypot(COLUMNS - 30, ROWS - 18) > 4)
NAMES = ("dog", "Küche 猫 🐈 <&\"'>")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return path


# --- Label Studio's run lengths --------------------------------------------------------------------------------------

BAND = np.zeros((20, 30), dtype=bool)
BAND[3:17] = True
LARGE = np.zeros((150, 150), dtype=bool)
LARGE[140:] = True

# What label_studio_sdk.converter.brush makes (label-studio-sdk 2.1.2; the tests do not install it, since it asks for an
# older NumPy): `mask2rle` of the mask times 255.
BRUSHES = [
    (np.array([[0, 1, 1], [1, 0, 0]], dtype=bool), [0, 0, 0, 24, 57, 27, 252, 96, 22, 255, 231, 0, 0]),
    (BAND, [0, 0, 9, 96, 57, 27, 255, 1, 103, 0, 224, 209, 255, 252, 5, 156, 0]),
    (LARGE, [0, 1, 95, 144, 57, 27, 255, 255, 255, 0, 233, 3, 224, 28, 93, 191, 252]),
]


@pytest.mark.parametrize(("mask", "rle"), BRUSHES, ids=["checks", "band", "large"])
def test_brushes_are_the_bytes_of_label_studio(mask: np.ndarray, rle: list[int]) -> None:
    assert encode_brush(mask) == rle
    np.testing.assert_array_equal(decode_brush(rle, mask.shape), mask)


def test_brushes_of_other_programs() -> None:
    """Values that differ from channel to channel, opacity 1 for 255, and blocks of values that are not repeated."""
    smooth = "AAAAGDkb+AAAA8IAAEgA4AAAUACQAOAAAZAA2ADgAAH+ASAA4AAA/gFoAOAAAQA="  # opacity 0 40 200 / 255 127 128
    found = decode_brush(list(base64.b64decode(smooth)), (2, 3))
    np.testing.assert_array_equal(found, [[False, False, True], [True, False, True]])
    ones = decode_brush([0, 0, 0, 24, 57, 27, 252, 96, 22, 192, 103, 0, 0], (2, 3))
    np.testing.assert_array_equal(ones, [[False, True, True], [True, False, False]])
    literal = [0, 0, 0, 12, 57, 27, 249, 112, 16, 32, 60, 128, 144, 128, 113, 72, 255, 192]  # opacity 200 20 255
    np.testing.assert_array_equal(decode_brush(literal, (1, 3)), [[True, False, True]])


MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(MASKS | st.builds(lambda mask, y, x: np.kron(mask, np.ones((y, x), bool)), MASKS, *[st.integers(1, 12)] * 2))
def test_brushes_come_back(mask: np.ndarray) -> None:
    rle = encode_brush(mask)
    assert all(0 <= value < 256 for value in rle) and json.loads(json.dumps(rle)) == rle
    np.testing.assert_array_equal(decode_brush(rle, mask.shape), mask)


GOOD = BRUSHES[0][1]


@pytest.mark.parametrize(
    ("rle", "match"),
    [
        ("abc", "it: expected a list of bytes, got"),
        ([1, "2"], "it: expected bytes from 0 to 255"),
        ([256], "it: expected bytes from 0 to 255"),
        ([], "it: the runs are cut off"),
        (GOOD[:-4], "it: the runs are cut off"),
        ([0, 0, 0, 20, *GOOD[4:]], "it: run lengths of 20 values, expected 24 for an image of 3 x 2 pixels"),
        ([255] * 4 + GOOD[4:], "it: run lengths of 4294967295 values"),
        ([*GOOD[:4], 121, *GOOD[5:]], "it: values of 16 bits, expected 8"),
        ([*GOOD[:6], 255, 255, 255, 255, 255], "it: the runs are longer than the image"),
    ],
)
def test_damaged_brushes(rle: object, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        decode_brush(rle, (2, 3), "it")


# --- what is written -------------------------------------------------------------------------------------------------


def test_predictions_for_label_studio(photo: Path) -> None:
    labels = np.where(RING, 2, SQUARE).astype(np.uint8)
    prediction = label_studio_prediction(labels, [*NAMES, "none"], scores=[0.75, 0.5, 0.1], model_version="m")
    assert prediction["score"] == 0.5 and prediction["model_version"] == "m"
    assert [region["score"] for region in prediction["result"]] == [0.75, 0.5]
    assert len({region["id"] for region in prediction["result"]}) == 2
    for region, name, mask in zip(prediction["result"], NAMES, (SQUARE & ~RING, RING), strict=True):
        assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "label", "image")
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (WIDTH, HEIGHT, 0)
        assert region["value"]["format"] == "rle" and region["value"]["brushlabels"] == [name]
        np.testing.assert_array_equal(decode_brush(region["value"]["rle"], mask.shape), mask)
    task = label_studio_task(local_file_url("photos/Küche a.png"), prediction)
    assert task["data"] == {"image": "/data/local-files/?d=photos/K%C3%BCche%20a.png"}
    assert label_studio_prediction([SQUARE & False], ["x"], scores=[0.5]) == {"model_version": "diffup", "result": []}
    with pytest.raises(FormatError, match="scores: got 1 for 2 names"):
        label_studio_prediction(labels, NAMES, scores=[0.5])


def test_a_submitted_prediction_comes_back(photo: Path) -> None:
    prediction = label_studio_prediction([SQUARE, RING], NAMES)
    task = label_studio_task(local_file_url("photos/a.png"), prediction)
    path = photo.with_name("export.json")
    path.write_text(json.dumps([task]))
    with pytest.raises(FormatError, match=r"\[0\] has no annotation that a person has submitted"):
        read_label_studio(path, "dog")
    path.write_text(json.dumps([{**task, "annotations": [{"result": prediction["result"]}]}]))
    for name, mask in zip(NAMES, (SQUARE, RING), strict=True):
        shots = usable(read_label_studio(path, name))
        assert shots.support == [photo]
        np.testing.assert_array_equal(pixels(shots.annotation[0]), mask)


@pytest.mark.parametrize("name", [*NAMES, "=1", "عربى", "a\tb\nc", " "])
def test_labelme_files_come_back(photo: Path, name: str) -> None:
    document = labelme_document(np.where(RING, 2, SQUARE).astype(np.uint8), ["other", name], "sub/../a.png")
    assert (document["imageHeight"], document["imageWidth"], document["imageData"]) == (HEIGHT, WIDTH, None)
    assert [(shape["label"], shape["shape_type"]) for shape in document["shapes"]] == [
        ("other", "polygon"),
        (name, "polygon"),  # with its hole
    ]
    photo.with_name("sub").mkdir()
    path = photo.with_name("a.json")
    path.write_text(json.dumps(document))
    shots = usable(read_labelme(path, name))
    assert [support.samefile(photo) for support in shots.support] == [True]
    np.testing.assert_array_equal(pixels(shots.annotation[0]), RING)
    with pytest.raises(FormatError, match="names: expected at least one"):
        labelme_document([], [], "a.png")


# --- Label Studio's export -------------------------------------------------------------------------------------------


def region(kind: str, label: str = "x", **value: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"type": kind, "from_name": "label", "to_name": "image", **size, "value": {**value, kind: [label]}}


def percent(*points: tuple[float, float]) -> list[list[float]]:
    return [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in points]


def frame(x: float, y: float, width: float, height: float, rotation: float = 0) -> dict[str, float]:
    (left, top), (across, down) = percent((x, y), (width, height))
    return {"x": left, "y": top, "width": across, "height": down, "rotation": rotation}


def task(*regions: dict[str, Any], image: str = "/data/upload/1/0123abcd-a.png", **fields: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 1, "result": list(regions)}], **fields}


def label_studio(photo: Path, *tasks: Any, label: str = "x", **options: Any) -> SupportSet:
    path = photo.with_name("export.json")
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return usable(read_label_studio(path, label, **options))


CORNERS = ((12, 10), (24, 10), (24, 20), (12, 20))


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([region("brushlabels", format="rle", rle=encode_brush(RING))], RING),
        ([region("polygonlabels", points=percent(*CORNERS), closed=True)], SQUARE),
        ([region("rectanglelabels", **frame(12, 20, 10, 12, -90))], SQUARE),  # from the lower left, turned left
        ([region("labels", **frame(24, 10, 10, 12, 90))], SQUARE),
        (
            [region("ellipselabels", x=50, y=50, radiusX=10, radiusY=20, rotation=0)],
            ((COLUMNS + 0.5 - 30) / 6) ** 2 + ((ROWS + 0.5 - 20) / 8) ** 2 <= 1,
        ),
        (
            [region("ellipselabels", x=50, y=50, radiusX=10, radiusY=20, rotation=90)],
            ((COLUMNS + 0.5 - 30) / 8) ** 2 + ((ROWS + 0.5 - 20) / 6) ** 2 <= 1 + 1e-9,
        ),
        (
            [
                region("polygonlabels", points=percent(*CORNERS)),
                region("brushlabels", format="rle", rle=encode_brush(RING)),
                region("brushlabels", "y", format="rle", rle=encode_brush(~RING)),
                {"type": "choices", "value": {"choices": ["x"]}},
                {"type": "rectangle", "value": frame(0, 0, 9, 9)},  # without a label
                {"type": "relation", "from_id": "a", "to_id": "b"},
            ],
            RING | SQUARE,
        ),
    ],
    ids=["brush", "polygon", "turned", "labels", "ellipse", "turned ellipse", "several"],
)
def test_label_studio_masks(photo: Path, regions: list[dict[str, Any]], expected: np.ndarray) -> None:
    shots = label_studio(photo, task(*regions))
    assert shots.support == [photo]
    np.testing.assert_array_equal(pixels(shots.annotation[0]), expected)


def test_label_studio_boxes_and_keypoints(photo: Path) -> None:
    boxes = label_studio(photo, task(region("rectanglelabels", **frame(12, 10, 12, 10))))
    (box,) = boxes.annotation
    assert isinstance(box, Box)
    np.testing.assert_allclose(box.boxes, [(12, 10, 24, 20)], rtol=1e-12)
    clicks = [region("keypointlabels", x=x, y=y, width=0.5) for x, y in percent((12.5, 10.5), (0, 40))]
    (points,) = label_studio(photo, task(*clicks)).annotation
    assert isinstance(points, Points)
    np.testing.assert_allclose(points.points, [(12, 10), (0, 39.5)], atol=1e-12)


def test_the_annotation_that_counts(photo: Path) -> None:
    def annotation(mask: np.ndarray, **fields: Any) -> dict[str, Any]:
        return {"result": [region("brushlabels", format="rle", rle=encode_brush(mask))], **fields}

    old, new = "2026-01-01T09:00:00.000000Z", "2026-02-01T08:00:00.000000Z"
    for expected, made in [
        (RING, [annotation(SQUARE), annotation(RING)]),
        (RING, [annotation(RING, updated_at=new), annotation(SQUARE, updated_at=old)]),
        (RING, [annotation(RING, ground_truth=True, updated_at=old), annotation(SQUARE, updated_at=new)]),
        (RING, [annotation(RING), annotation(SQUARE, was_cancelled=True)]),
    ]:
        shots = label_studio(photo, task(annotations=made, predictions=[annotation(SQUARE)]))
        np.testing.assert_array_equal(pixels(shots.annotation[0]), expected)
    shots = label_studio(photo, {"data": {"image": "a.png"}, "completions": [annotation(RING)]})
    np.testing.assert_array_equal(pixels(shots.annotation[0]), RING)


BOX = region("rectanglelabels", **frame(12, 10, 12, 10))


@pytest.mark.parametrize(
    "recorded",
    [
        "/data/upload/1/0123abcd-a.png",
        "/data/upload/0123abcd-a.png?x",
        "http://localhost:8080/data/upload/3/sub/0123abcd-a.png",
        "/data/local-files/?d=photos/a.png",
        "/data/local-files/?d=C%3A%5Cphotos%5Ca.png",
        "s3://bucket/photos/a.png",
        "https://example.org/photos/a.png?token=1",
        "a.png",
    ],
)
def test_images_of_label_studio(photo: Path, recorded: str) -> None:
    if recorded.startswith("/data/upload/0"):
        with pytest.raises(FormatError, match="is no file in"):
            label_studio(photo, task(BOX, image=recorded))
        return
    assert label_studio(photo, task(BOX, image=recorded)).support == [photo]
    there = photo.parent / "images"
    there.mkdir()
    photo = photo.rename(there / "a.png")
    assert label_studio(photo.parent.with_name("x"), task(BOX, image=recorded)).support == [photo]
    elsewhere = photo.parent / "elsewhere"
    elsewhere.mkdir()
    photo = photo.rename(elsewhere / "a.png")
    shots = label_studio(there.parent / "x", task(BOX, image=recorded), images=elsewhere)
    assert shots.support == [photo]


def test_uploads_under_their_new_name_and_embedded_images(photo: Path) -> None:
    uploaded = photo.rename(photo.with_name("0123abcd-a.png"))
    assert label_studio(photo, task(BOX)).support == [uploaded]
    embedded = task(BOX, image=f"data:image/png;base64,{base64.b64encode(uploaded.read_bytes()).decode()}")
    (support,) = label_studio(photo, embedded).support
    assert isinstance(support, Image.Image) and support.size == (WIDTH, HEIGHT)
    other = {**task(BOX), "data": {"photo": "/data/local-files/?d=0123abcd-a.png", "text": "a.b", "number": 3}}
    assert label_studio(photo, other).support == [uploaded]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (3, r"\[0\]: expected an object with the field 'data'"),
        ({"image": "a.png", "label": []}, r"\[0\]\.data: missing; export the tasks as JSON, not as JSON-MIN"),
        (task(BOX, data=None), r"\[0\]\.data: expected dict"),
        (task(BOX, data={"a": "b.png", "c": "d.png"}), r"\[0\]\.data: expected one path of an image"),
        (task(BOX, annotations=5), r"\[0\]\.annotations: expected list"),
        (task(BOX, annotations=[{}]), r"annotations\[0\]\.result: expected list, got nothing"),
        (task(5), r"annotations\[0\]\.result\[0\]: expected an object"),  # type: ignore[arg-type]
        (task(BOX, image="b.png"), r"\[0\]\.data\.image: 'b.png' is no file in"),
        (task(BOX, image="https://e.org/b.png"), "is a URL, and URLs are not fetched; download the image to"),
        (task({**BOX, "original_width": 61}), r"result\[0\]: the record says 61 x 40 pixels"),
        (task({**BOX, "image_rotation": 90}), "image_rotation: the image is turned by 90 degrees there"),
        (task(region("rectanglelabels", **frame(12, 10, 90, 10))), "leaves the image of 60 x 40"),
        (task(region("rectanglelabels", x=1, y="a", width=1, height=1)), r"value\.y: expected a number"),
        (task(region("rectanglelabels", x=1, y=True, width=1, height=1)), r"value\.y: expected a finite number"),
        (task(region("keypointlabels", x=1, y=101)), r"value: leave the image"),
        (task(region("ellipselabels", x=1, y=1, radiusX=0, radiusY=1)), "the radii of an ellipse are above 0"),
        (task(region("polygonlabels", points=[[1, 2, 3]])), r"value\.points: expected \[\[x, y\]"),
        (task(region("polygonlabels", points=[[1, 2], [3, 4]])), "at least three finite vertices"),
        (task(region("brushlabels", rle=[1])), r"value\.rle: the runs are cut off"),
        (task(BOX, {**BOX, "to_name": "second"}), r"\[0\]: its regions are in several images"),
        (task(BOX, {**BOX, "item_index": 1}), r"\[0\]: its regions are in several images"),
        (task(region("vectorlabels", vertices=[])), "regions of the type 'vectorlabels' cannot be read"),
        (
            task(BOX, region("keypointlabels", x=1, y=1)),
            r"one kind of annotation, got boxes and points\. Choose with shape_types=",
        ),
        (task(region("brushlabels", "y", rle=[1])), r"no task has a region with the label 'x'\. The labels are 'y'"),
    ],
)
def test_faulty_exports_of_label_studio(photo: Path, content: Any, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        label_studio(photo, content)


def test_label_studio_options(photo: Path) -> None:
    both = task(BOX, region("keypointlabels", x=50, y=50))
    (points,) = label_studio(photo, both, shape_types=["keypoint"]).annotation
    assert points == Points([(29.5, 19.5)])
    with pytest.raises(FormatError, match="no task has a region with the label 'x' and the type brush"):
        label_studio(photo, both, shape_types=["brush"])
    with pytest.raises(FormatError, match="shape_types: star unknown; there are brush, polygon"):
        label_studio(photo, both, shape_types=["star"])
    with pytest.raises(FormatError, match="list an image once"):
        label_studio(photo, task(BOX), task(BOX, image="a.png"))


# --- CVAT's export ---------------------------------------------------------------------------------------------------

# `cvat_sdk.masks.encode_mask` (cvat-sdk 2.80) of RING: runs along the rows of its bounding box, then the box
RING_RUNS = (
    *(4, 9, 7, 11, 5, 13, 3, 15, 1, 8, 1, 14, 5, 11, 7, 10, 7, 9, 9, 9, 7, 10, 7, 11, 5, 14, 1, 8, 1, 15, 3, 13, 5, 11),
    *(7, 9, 4),
)
RING_BOX = {"left": 22, "top": 10, "width": 17, "height": 17}


def element(tag: str, label: str = "x", **fields: Any) -> str:
    shown = "".join(f" {name}={quoteattr(str(value))}" for name, value in {"label": label, **fields}.items())
    return f'<{tag}{shown} occluded="0" source="manual" z_order="0"><attribute name="a">1</attribute></{tag}>'


def mask_element(**fields: Any) -> str:
    return element("mask", **({"rle": ", ".join(map(str, RING_RUNS)), **RING_BOX} | fields))


def image(*shapes: str, name: str = "a.png", width: object = WIDTH, height: object = HEIGHT) -> str:
    return f'<image id="0" name={quoteattr(name)} width="{width}" height="{height}">{"".join(shapes)}</image>'


def xml(*images: str, head: str = '<?xml version="1.0" encoding="utf-8"?>') -> str:
    meta = "<meta><task><labels><label><name>x</name></label></labels></task></meta>"
    return f"{head}\n<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"


def cvat(photo: Path, text: str, label: str = "x", encoding: str = "utf-8", **options: Any) -> SupportSet:
    path = photo.with_name("annotations.xml")
    path.write_bytes(text.encode(encoding))
    return usable(read_cvat(path, label, **options))


POLYGON = element("polygon", points="12.00,10.00;24.00,10.00;24.00,20.00;12.00,20.00")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([mask_element()], RING),
        ([POLYGON], SQUARE),
        ([element("box", xtl=13, ytl=9, xbr=23, ybr=21, rotation="90.00")], SQUARE),
        (
            [element("ellipse", cx="30.00", cy="20.00", rx="6.00", ry="8.00")],
            ((COLUMNS + 0.5 - 30) / 6) ** 2 + ((ROWS + 0.5 - 20) / 8) ** 2 <= 1,
        ),
        ([POLYGON, mask_element(), element("polygon", "y", points="1,1;9,1;9,9"), element("tag")], RING | SQUARE),
    ],
    ids=["mask", "polygon", "turned box", "ellipse", "several"],
)
def test_cvat_masks(photo: Path, shapes: list[str], expected: np.ndarray) -> None:
    shots = cvat(photo, xml(image(name="b.png"), image(*shapes)))
    assert shots.support == [photo]
    np.testing.assert_array_equal(pixels(shots.annotation[0]), expected)


def test_cvat_boxes_polylines_and_points(photo: Path) -> None:
    two = (
        element("box", xtl="12.00", ytl="10.50", xbr="24.00", ybr="20.00"),
        element("box", xtl=-1, ytl=1, xbr=5, ybr=5),
    )
    assert cvat(photo, xml(image(*two))).annotation == [Box([(12, 10.5, 24, 20), (0, 1, 5, 5)])]
    points = element("points", points="12.50,10.50;0.00,40.00"), element("points", points="3.5,3.5")
    assert cvat(photo, xml(image(*points))).annotation == [Points([(12, 10), (0, 39.5), (3, 3)])]
    (scribble,) = cvat(photo, xml(image(element("polyline", points="1.5,1.5;60,40")))).annotation
    assert isinstance(scribble, Scribble) and isinstance(scribble.strokes, tuple)
    np.testing.assert_array_equal(scribble.strokes[0], [(1, 1), (59, 39)])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", NAMES)
def test_names_in_cvat_files(photo: Path, name: str, encoding: str) -> None:
    there = photo.parent / "images" / "sub"
    there.mkdir(parents=True)
    photo = photo.rename(there / "Küche 猫 &.png")
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    text = xml(image(mask_element(label=name), name="sub/Küche 猫 &.png"), head=head)
    path = there.parents[1] / "x.png"
    assert cvat(path, text, name, encoding).support == [photo]
    assert cvat(path, text, name, encoding, images=there).support == [photo]


LAUGHS = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotations><image name="&b;"/></annotations>"""
OTHER_FILE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>
<annotations><image name="&e;"/></annotations>"""


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (LAUGHS, "declares a document type"),
        (OTHER_FILE, "declares a document type"),
        ('<!DOCTYPE annotations SYSTEM "http://e.org/a.dtd"><annotations/>', "declares a document type"),
        ("<annotations><image name='&e;'/></annotations>", "cannot be read as XML"),
        ("<annotations>", "cannot be read as XML"),
        ("", "cannot be read as XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotations/>', "cannot be read as XML"),
        ("<annotation><object/></annotation>", "expected <annotations> as CVAT writes it, got <annotation>"),
        (
            "<annotations><track id='0' label='x'/></annotations>",
            "'CVAT for video'; export it as 'CVAT for images 1.1'",
        ),
        ("PK\x03\x04", "a ZIP archive; unpack it"),
        (xml(image()), "no image has a shape with the label 'x'"),
        (xml(image(element("polygon", "y", points="1,1;9,1;9,9"))), "The labels are 'y'"),
        (xml(image(POLYGON, name="gone.png")), r"image\[0\]\.name: 'gone.png' is no file"),
        (xml(image(POLYGON, width=61)), r"image\[0\]: the record says 61 x 40"),
        (xml(image(POLYGON, width="w")), r"image\[0\]\.width: expected int"),
        (xml("<image><box label='x'/></image>"), r"image\[0\]\.name: expected str, got nothing"),
        (xml(image(POLYGON), image(POLYGON)), r"image\[1\]\.name: .* is the file of .*image\[0\] too"),
        (xml(image(element("polygon", points="1,1;2"))), r"polygon\[0\]\.points: expected x,y;x,y"),
        (xml(image(element("polygon", points=""))), r"polygon\[0\]\.points: expected x,y;x,y"),
        (xml(image(element("polygon"))), r"polygon\[0\]\.points: expected str, got nothing"),
        (xml(image(element("polygon", points="0,0;.5,0;.5,.9"))), "these are fractions of the image"),
        (xml(image(element("points", points="61,1"))), "leave the image"),
        (xml(image(element("box", xtl=1, ytl=1, xbr=9))), r"box\[0\]\.ybr: expected str, got nothing"),
        (xml(image(element("box", xtl=1, ytl=1, xbr=90, ybr=9))), r"box\[0\]: the box .* leaves the image"),
        (xml(image(element("box", xtl=1, ytl=1, xbr=9, ybr="nan"))), r"box\[0\]\.ybr: expected a finite number"),
        (xml(image(element("cuboid", xtl1=1))), "a cuboid cannot be read"),
        (xml(image(mask_element(rle="4, 9"))), r"mask\[0\]\.rle: the runs do not add up to 17 x 17 pixels"),
        (xml(image(mask_element(rle="-1, 290"))), "the runs do not add up"),
        (xml(image(mask_element(rle="4, x"))), r"mask\[0\]\.rle: expected int"),
        (xml(image(mask_element(left=44))), r"mask\[0\]: leaves the image"),
        (xml(image(mask_element(width=10**9, height=10**9, rle=f"0,{10**18}"))), "expected int|leaves the image"),
        (xml(image(POLYGON, element("points", points="5,5"))), r"got masks and points\. Choose with shape_types="),
    ],
)
def test_faulty_cvat_files(photo: Path, text: str, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        cvat(photo, text)


def test_cvat_options(photo: Path) -> None:
    text = xml(image(POLYGON, element("points", points="5,5")))
    assert cvat(photo, text, shape_types=["points"]).annotation == [Points([(4.5, 4.5)])]
    with pytest.raises(FormatError, match="shape_types: cuboid unknown"):
        cvat(photo, text, shape_types=["cuboid"])
    with pytest.raises(FormatError, match=r"gone\.xml: cannot be read"):
        read_cvat(photo.with_name("gone.xml"), "x")


# --- faulty records, and the first K ---------------------------------------------------------------------------------


@pytest.fixture
def three(photo: Path) -> dict[str, Callable[..., SupportSet]]:
    """Both readers on three images, the second of which is faulty."""
    for name in "bc":
        Image.open(photo).save(photo.with_name(f"{name}.png"))
    tasks = [task(BOX, image=f"{name}.png") for name in "abc"]
    tasks[1]["annotations"][0]["result"][0] = {**BOX, "original_height": 41}
    photo.with_name("e.json").write_text(json.dumps(tasks))
    images = [image(POLYGON, name=f"{name}.png", height=HEIGHT + (name == "b")) for name in "abc"]
    photo.with_name("e.xml").write_text(xml(*images))
    return {
        "[1]": lambda **options: read_label_studio(photo.with_name("e.json"), "x", **options),
        "image[1]": lambda **options: read_cvat(photo.with_name("e.xml"), "x", **options),
    }


@pytest.mark.parametrize("record", ["[1]", "image[1]"])
def test_faulty_records_are_raised_or_skipped(three: dict[str, Callable[..., SupportSet]], record: str) -> None:
    read = three[record]
    with pytest.raises(FormatError, match="the record says 60 x 41") as raised:
        read()
    with pytest.warns(UserWarning, match="1 faulty records were passed over"):
        shots = read(on_error="skip")
    assert [Path(str(path)).name for path in shots.support] == ["a.png", "c.png"]
    ((name, reason),) = shots.skipped
    assert name.endswith(record) and reason == str(raised.value)
    assert [Path(str(path)).name for path in read(shots=1).support] == ["a.png"]
    with pytest.warns(UserWarning, match="passed over"):
        assert len(read(on_error="skip", shots=2).support) == 2
    with pytest.raises(FormatError, match="shots=3 were asked for, and 2 can be read"):
        read(on_error="skip", shots=3)
    with pytest.raises(FormatError, match="shots: expected at least 1"):
        read(shots=0)


# --- any of the formats ----------------------------------------------------------------------------------------------


@pytest.fixture
def exports(photo: Path) -> dict[str, Path]:
    """A file of each format with the mask RING of the label x, and its box but in LabelMe's a point."""
    entries = coco_annotations([RING], 1, [1])
    document = coco_document([{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}], entries, ["x"])
    point = {"label": "x", "shape_type": "point", "points": [[5.5, 5.5]]}
    labelme = labelme_document([RING], ["x"], "a.png")
    labelme["shapes"].append(point)
    brush = region("brushlabels", format="rle", rle=encode_brush(RING))
    texts = {
        "COCO": json.dumps(document),
        "LabelMe": json.dumps(labelme),
        "Label Studio": json.dumps([task(brush, region("rectanglelabels", **frame(15, 10, 15, 10)))]),
        "CVAT": "\ufeff \n" + xml(image(mask_element(), element("box", xtl=22, ytl=10, xbr=39, ybr=27)), head=""),
    }
    paths = {name: photo.with_name(f"{name}.txt") for name in texts}  # the ending tells nothing
    for name, text in texts.items():
        paths[name].write_text(text, encoding="utf-8")
    return paths


@pytest.mark.parametrize("name", ["COCO", "LabelMe", "Label Studio", "CVAT"])
def test_formats_are_recognised_by_their_content(exports: dict[str, Path], name: str, photo: Path) -> None:
    assert recognise_format(exports[name]) == name
    shots = usable(read_supports(exports[name], "x", kind="mask"))
    assert [support.samefile(photo) for support in shots.support] == [True]
    np.testing.assert_array_equal(pixels(shots.annotation[0]), RING)
    other = "points" if name == "LabelMe" else "box"
    expected = {
        "COCO": Box(22, 10, 39, 27),
        "LabelMe": Points([(5, 5)]),
        "Label Studio": Box(15, 10, 30, 20),
        "CVAT": Box(22, 10, 39, 27),
    }
    assert read_supports([exports[name]], "x", kind=other, shots=1, images=photo.parent).annotation == [expected[name]]
    if name != "COCO":
        with pytest.raises(FormatError, match=r"one kind of annotation, got masks and (boxes|points)"):
            read_supports(exports[name], "x")
    with pytest.raises(FormatError, match="kind='star': expected mask, box, scribble, points"):
        read_supports(exports[name], "x", kind="star")  # type: ignore[arg-type]


def test_kinds_that_a_format_has_not(exports: dict[str, Path], photo: Path) -> None:
    for name in ("COCO", "Label Studio"):
        with pytest.raises(FormatError, match=f"kind='scribble': .* is of {name}, which has mask, "):
            read_supports(exports[name], "x", kind="scribble")
    document = json.loads(exports["COCO"].read_text())
    del document["annotations"][0]["segmentation"]
    exports["COCO"].write_text(json.dumps(document))
    assert read_supports(exports["COCO"], "x").annotation == [Box(22, 10, 39, 27)]
    with pytest.raises(FormatError, match=r"kind='mask': .* has boxes alone"):
        read_supports(exports["COCO"], "x", kind="mask")


def test_several_files_are_labelme_s(exports: dict[str, Path], photo: Path) -> None:
    second = photo.with_name("b.json")
    second.write_text(json.dumps(labelme_document([SQUARE], ["x"], "a.png")))
    shots = read_supports([exports["LabelMe"], second], "x", kind="mask")
    np.testing.assert_array_equal(pixels(shots.annotation[1]), SQUARE)
    with pytest.raises(FormatError, match=r"CVAT\.txt: several files are .* LabelMe alone, and this one is of CVAT"):
        read_supports([second, exports["CVAT"]], "x")
    broken = photo.with_name("broken.json")
    broken.write_text("{")
    with pytest.raises(FormatError, match=r"broken\.json: cannot be read as JSON"):
        read_supports([broken, second], "x")
    with pytest.warns(UserWarning, match="1 faulty records"):
        assert len(read_supports([broken, second], "x", on_error="skip").support) == 1
    with pytest.raises(FormatError, match="paths: got an empty list"):
        read_supports([], "x")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{}", "of no known format; expected a file of COCO, LabelMe, Label Studio, CVAT"),
        (b"a,b", "cannot be read as JSON .*; expected a file of COCO"),
        (b"PK\x03\x04", "a ZIP archive; unpack it"),
        (b"\x89PNG", "cannot be read as text"),
    ],
)
def test_files_of_no_known_format(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match=match):
        read_supports(tmp_path / "a", "x")
    with pytest.raises(FormatError, match="cannot be read"):
        recognise_format(tmp_path)
    with pytest.raises(FormatError, match="cannot be read"):
        recognise_format("a\0b")


def test_images_of_labelme_elsewhere(exports: dict[str, Path], photo: Path) -> None:
    folder = photo.parent / "photos"
    folder.mkdir()
    moved = photo.rename(folder / "a.png")
    with pytest.raises(FormatError, match=r"imagePath: 'a\.png' is no file"):
        read_labelme(exports["LabelMe"], "x", shape_types=["polygon"])
    shots = read_labelme(exports["LabelMe"], "x", images=folder, shape_types=["polygon"], shots=1)
    assert shots.support == [moved]
    with pytest.raises(FormatError, match="shots=2 were asked for, and 1 can be read"):
        read_labelme(exports["LabelMe"], "x", images=folder, shape_types=["polygon"], shots=2)
    with pytest.raises(FormatError, match=r"none of 1 files has such a shape\. The labels are 'x'"):
        read_labelme(exports["LabelMe"], "y", images=folder)
