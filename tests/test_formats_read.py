"""Supports from other programs' files and records are what `segment` takes, or the error names file and field."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import save_mask, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from shots import pixels, usable

from diffup import Box, Points, Scribble
from diffup.errors import FormatError
from diffup.formats import (
    coco_annotations,
    coco_document,
    read_coco,
    read_fiftyone,
    read_huggingface,
    read_labelme,
    read_mask_folder,
    write_label_png,
)

pytest.importorskip("pycocotools")
pytest.importorskip("skimage")

HEIGHT, WIDTH = 40, 50


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def block(top: int = 5, bottom: int = 20, left: int = 10, right: int = 30) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def ring() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - 20, y - 20)
    return (distance < 15) & (distance > 6)


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


# COCO


def coco_content(masks: list[list[np.ndarray]], encoding: str = "rle") -> dict[str, Any]:
    """One image a list; its first mask is a cat's, all others dogs'."""
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, len(masks) + 1)]
    annotations = []
    for number, one in enumerate(masks, start=1):
        annotations += coco_annotations(one, number, ([17] + [18] * len(one))[: len(one)], encoding=encoding)
    categories = [
        {"id": 17, "name": "cat", "supercategory": "animal"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 3, "name": "car"},
    ]
    return coco_document(images, annotations, categories)


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a COCO file beside its three images."""
    for number in (1, 2, 3):
        photo(number).save(tmp_path / f"{number}.png")

    def write(change: Callable[[dict[str, Any]], object] = lambda content: None, encoding: str = "rle") -> Path:
        empty = np.zeros_like(block())
        content = coco_content([[block(), ring()], [empty, ring(), block()], [block(1, 39, 1, 49)]], encoding)
        change(content)
        return write_json(tmp_path / "instances.json", content)

    return write


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_coco_supports_are_the_masks_that_were_written(coco: Callable[..., Path], encoding: str) -> None:
    path = coco(encoding=encoding)
    dogs = usable(read_coco(path, path.parent, "dog"))
    assert dogs.support == [path.parent / "1.png", path.parent / "2.png"]
    np.testing.assert_array_equal(pixels(dogs.annotation[0]), ring())
    np.testing.assert_array_equal(pixels(dogs.annotation[1]), ring() | block())
    cats = usable(read_coco(path, path.parent, "cat", shots=1))
    np.testing.assert_array_equal(pixels(cats.annotation[0]), block())
    animals = read_coco(path, path.parent, "animal")
    assert len(animals.support) == 3
    np.testing.assert_array_equal(pixels(animals.annotation[0]), ring() | block())


def test_coco_boxes_and_plain_run_lengths(coco: Callable[..., Path]) -> None:
    path = coco()
    boxes = usable(read_coco(path, path.parent, "dog", boxes=True))
    assert boxes.annotation[1] == Box([(6, 6, 35, 35), (10, 5, 30, 20)])

    def plain(content: dict[str, Any]) -> None:
        runs = np.diff(np.flatnonzero(np.diff(np.pad(block().T.ravel().astype(int), 1, constant_values=2))))
        content["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs.tolist()}

    np.testing.assert_array_equal(pixels(read_coco(coco(plain), path.parent, "cat").annotation[0]), block())
    without = coco(lambda content: [entry.pop("segmentation") for entry in content["annotations"]])
    assert read_coco(without, path.parent, "cat", shots=1).annotation == [Box(10, 5, 30, 20)]


def test_coco_shots_can_be_drawn(coco: Callable[..., Path]) -> None:
    path = coco()
    draws = {tuple(read_coco(path, path.parent, "animal", shots=2, seed=seed).support) for seed in range(8)}
    assert len(draws) > 2 and all(len(set(draw)) == 2 for draw in draws)
    again = read_coco(path, path.parent, "animal", shots=2, seed=3)
    assert again.support == read_coco(path, path.parent, "animal", shots=2, seed=3).support


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("annotations"), r"instances.json\.annotations: expected list, got nothing"),
        (lambda c: c["categories"][1].pop("name"), r"categories\[1\]\.name: expected str"),
        (lambda c: c["annotations"][1].pop("image_id"), r"annotations\[1\]\.image_id: expected int or str"),
        (lambda c: c["annotations"][1].update(image_id=99), r"annotations\[1\]\.image_id: no image has this id"),
        (lambda c: c["images"][0].update(width=9), r"images\[0\]: the record says 9 x 40 .* has 50 x 40"),
        (lambda c: c["images"][0].update(width=40, height=50), "turned by its EXIF orientation"),
        (lambda c: c["images"][0].update(file_name="gone.png"), r"images\[0\]\.file_name: .*gone.png"),
        (lambda c: c["annotations"][1].update(segmentation=[[1, 2]]), r"annotations\[1\]\.segmentation\[0\]"),
        (lambda c: c["annotations"][1].update(segmentation=None, bbox=[1, 2]), r"annotations\[1\]\.bbox"),
        (lambda c: c["annotations"][1].update(segmentation=None, bbox=[1, 2, 90, 3]), "leaves the image of 50 x 40"),
        (lambda c: c["annotations"][2].update(segmentation=None), "some of its objects have masks, some none"),
    ],
)
def test_faulty_coco_files(coco: Callable[..., Path], change: Any, match: str) -> None:
    path = coco(change)
    with pytest.raises(FormatError, match=match):
        read_coco(path, path.parent, "dog")


def test_coco_requests_that_cannot_be_met(coco: Callable[..., Path], tmp_path: Path) -> None:
    path = coco()
    for match, options in [
        ("category='bird': the file has car, cat, dog", {"category": "bird"}),
        ("no image shows the category 'car'", {"category": "car"}),
        ("2 images show the category 'dog', shots=3", {"category": "dog", "shots": 3}),
        ("shots: expected at least 1", {"category": "dog", "shots": 0}),
    ]:
        with pytest.raises(FormatError, match=match):
            read_coco(path, path.parent, **options)  # type: ignore[arg-type]
    for content in ("{", "[]", "[" * 100_000):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(FormatError, match=r"broken\.json"):
            read_coco(tmp_path / "broken.json", tmp_path, "dog")
    with pytest.raises(FormatError, match=r"gone\.json: cannot be read"):
        read_coco(tmp_path / "gone.json", tmp_path, "dog")


# LabelMe


def labelme(tmp_path: Path, *shapes: tuple[str, Any], label: str = "dog", **fields: object) -> Path:
    photo().save(tmp_path / "photo.png")
    content = {
        "version": "5.5.0",
        "shapes": [
            {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}}
            for kind, points in shapes
        ],
        "imagePath": "photo.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    } | fields
    return write_json(tmp_path / "photo.json", content)


SQUARE = [[10, 5], [30, 5], [30, 20], [10, 20]]


def test_labelme_polygons_and_circles_are_masks(tmp_path: Path) -> None:
    path = labelme(tmp_path, ("polygon", SQUARE), ("polygon", [[40, 30], [45, 30], [45, 38], [40, 38]]))
    shots = usable(read_labelme(path, "dog"))
    assert shots.support == [tmp_path / "photo.png"]
    np.testing.assert_array_equal(pixels(shots.annotation[0]), block() | block(30, 38, 40, 45))
    disc = pixels(read_labelme(labelme(tmp_path, ("circle", [[20.5, 20.5], [20.5, 30.5]])), "dog").annotation[0])
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    np.testing.assert_array_equal(disc, np.hypot(x - 20, y - 20) <= 10)


def test_labelme_rectangles_strokes_and_points(tmp_path: Path) -> None:
    boxes = usable(read_labelme(labelme(tmp_path, ("rectangle", [[30, 20], [10, 5]])), "dog"))
    assert boxes.annotation == [Box(10, 5, 30, 20)]
    points = usable(read_labelme(labelme(tmp_path, ("point", [[10.5, 5.5]]), ("point", [[0, 0]])), "dog"))
    assert points.annotation == [Points([(10, 5), (0, 0)])]
    strokes = usable(
        read_labelme(labelme(tmp_path, ("linestrip", [[3, 4], [9, 4], [50, 40]]), ("line", [[1, 1], [5, 5]])), "dog")
    )
    scribble = strokes.annotation[0]
    assert isinstance(scribble, Scribble) and isinstance(scribble.strokes, tuple)
    np.testing.assert_array_equal(scribble.strokes[0], [(2.5, 3.5), (8.5, 3.5), (49, 39)])
    np.testing.assert_array_equal(scribble.strokes[1], [(0.5, 0.5), (4.5, 4.5)])


def test_labelme_masks_and_embedded_images(tmp_path: Path) -> None:
    path = labelme(tmp_path, ("mask", [[10, 5], [29, 19]]))
    content = json.loads(path.read_text())
    crop = ring()[5:20, 10:30]
    content["shapes"][0]["mask"] = base64.b64encode(png_bytes(Image.fromarray(crop))).decode()
    content["imageData"] = base64.b64encode(png_bytes(photo(5))).decode()
    shots = usable(read_labelme(write_json(path, content), "dog"))
    np.testing.assert_array_equal(np.asarray(shots.support[0]), np.asarray(photo(5)))
    np.testing.assert_array_equal(pixels(shots.annotation[0]), ring() & block())


def test_labelme_files_without_the_label_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = labelme(tmp_path / "other", ("polygon", SQUARE), label="cat")
    path = labelme(tmp_path, ("polygon", SQUARE), imagePath="..\\photos\\photo.png")
    (tmp_path.parent / "photos").mkdir(exist_ok=True)
    photo().save(tmp_path.parent / "photos" / "photo.png")
    assert len(read_labelme([other, path], "dog").support) == 1
    with pytest.raises(FormatError, match="label='bird': none of 2 files"):
        read_labelme([other, path], "bird")


def test_labelme_kinds_are_not_mixed_in_one_image(tmp_path: Path) -> None:
    path = labelme(tmp_path, ("polygon", SQUARE), ("rectangle", [[1, 1], [5, 5]]))
    with pytest.raises(FormatError, match=r"one kind of annotation, got masks and boxes\. Choose with shape_types="):
        read_labelme(path, "dog")
    assert read_labelme(path, "dog", shape_types=["rectangle"]).annotation == [Box(1, 1, 5, 5)]
    with pytest.raises(FormatError, match="shape_types: star unknown"):
        read_labelme(path, "dog", shape_types=["star"])


HUGE = base64.b64encode(
    png_bytes(Image.new("1", (1, 1))).replace((1).to_bytes(4, "big") * 2, (60_000).to_bytes(4, "big") * 2)
).decode()


@pytest.mark.parametrize(
    ("shapes", "fields", "match"),
    [
        ([("star", SQUARE)], {}, r"photo.json: shapes\[0\]\.shape_type: 'star' unknown"),
        ([("polygon", SQUARE[:2])], {}, r"shapes\[0\]\.points: a polygon has 3 or more, got 2"),
        ([("circle", SQUARE)], {}, r"shapes\[0\]\.points: a circle has 2, got 4"),
        ([("polygon", [[1, 2, 3]] * 3)], {}, r"shapes\[0\]\.points: expected"),
        ([("polygon", [[1, "x"]] * 3)], {}, r"shapes\[0\]\.points: expected"),
        ([("polygon", "abc")], {}, r"shapes\[0\]\.points: expected list"),
        ([("rectangle", [[1, 1], [90, 5]])], {}, r"shapes\[0\]\.points: the box .* leaves the image of 50 x 40"),
        ([("point", [[51, 1]])], {}, r"shapes\[0\]\.points: leave the image"),
        ([("mask", [[1, 1], [5, 5]])], {}, r"shapes\[0\]\.mask: expected str, got nothing"),
        ([("polygon", [[1, 1], [1, 1], [1, 1]])], {}, "the masks mark no pixel"),
        ([("polygon", SQUARE)], {"imagePath": "gone.png"}, "imagePath: .*gone.png"),
        ([("polygon", SQUARE)], {"imageWidth": 51}, "the record says 51 x 40 pixels"),
        ([("polygon", SQUARE)], {"imageData": "!!"}, "imageData: not base64"),
        ([("polygon", SQUARE)], {"imageData": "AAAA"}, "imageData: the embedded image cannot be read"),
        ([("polygon", SQUARE)], {"imageData": HUGE}, "imageData: "),
        ([("polygon", SQUARE)], {"shapes": None}, r"photo.json\.shapes: expected list"),
    ],
)
def test_faulty_labelme_files(tmp_path: Path, shapes: Any, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(FormatError, match=match):
        read_labelme(labelme(tmp_path, *shapes, **fields), "dog")


# A folder of masks


def test_mask_folders(tmp_path: Path) -> None:
    images, masks, labels = tmp_path / "images", tmp_path / "masks", tmp_path / "labels"
    images.mkdir()
    for index in range(3):
        photo(index).save(images / f"{index}.jpg")
        save_mask(masks / f"{index}.png", block() if index else np.zeros_like(block()))
        write_label_png(labels / f"{index}.png", block() + 2 * ring() * (index > 1))
    photo(9).save(images / "unlabelled.jpg")
    shots = usable(read_mask_folder(images, masks))
    assert [path.name for path in shots.support] == ["1.jpg", "2.jpg"]
    np.testing.assert_array_equal(pixels(shots.annotation[1]), block())
    chosen = usable(read_mask_folder(images, labels, label=2))
    assert chosen.support == [images / "2.jpg"]
    np.testing.assert_array_equal(pixels(chosen.annotation[0]), ring() & ~block())
    assert len(read_mask_folder(images, labels, label=1, shots=2).support) == 2
    for match, options in [
        ("shots=5 were asked for", {"masks": labels, "label": 1, "shots": 5}),
        ("no mask marks the label 7", {"masks": labels, "label": 7}),
        (r"2\.png.*label=, the class", {"masks": labels}),
        ("masks: there is no folder", {"masks": tmp_path / "gone"}),
    ]:
        with pytest.raises(FormatError, match=match):
            read_mask_folder(images, **options)  # type: ignore[arg-type]
    photo(0).resize((9, 9)).save(images / "1.jpg")
    with pytest.raises(FormatError, match=r"1\.png: the record says 50 x 40 .* has 9 x 9"):
        read_mask_folder(images, masks)
    (images / "1.jpg").unlink()
    with pytest.raises(FormatError, match=r"1\.png: expected one mask and one image of the name '1', got 1 and 0"):
        read_mask_folder(images, masks)


@given(mask=hnp.arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trips(tmp_path: Path, mask: np.ndarray) -> None:
    """Any mask that is written is read again, by every way."""
    height, width = mask.shape
    image = Image.new("RGB", (width, height))
    image.save(tmp_path / "a.png")
    save_mask(tmp_path / "masks" / "a.png", mask)
    write_label_png(tmp_path / "labels" / "a.png", mask * np.uint8(3))
    found = [read_mask_folder(tmp_path, tmp_path / "masks"), read_mask_folder(tmp_path, tmp_path / "labels", label=3)]
    for encoding in ("rle", "polygon"):
        record = {"id": 1, "file_name": "a.png", "width": width, "height": height}
        document = coco_document([record], coco_annotations([mask], 1, [1], encoding=encoding), ["dog"])
        found.append(read_coco(write_json(tmp_path / f"{encoding}.json", document), tmp_path, "dog"))
    found.append(read_huggingface({"image": image, "mask": Image.fromarray(mask)}))
    sample = {"filepath": str(tmp_path / "a.png"), "ground_truth": {"mask": mask.astype(np.uint8)}}
    found.append(read_fiftyone(sample, 1))
    detection = {"label": "dog", "bounding_box": [0, 0, 1, 1], "mask": mask}
    found.append(read_fiftyone(sample | {"ground_truth": {"detections": [detection]}}, "dog"))
    for shots in found:
        np.testing.assert_array_equal(pixels(shots.annotation[0]), mask)


# FiftyOne and Hugging Face


def sample(tmp_path: Path, *detections: dict[str, Any], **labels: object) -> dict[str, Any]:
    photo().save(tmp_path / "photo.png")
    content = labels or {"detections": list(detections)}
    return {"filepath": str(tmp_path / "photo.png"), "ground_truth": content, "id": "66"}


RELATIVE = [10 / WIDTH, 5 / HEIGHT, 20 / WIDTH, 15 / HEIGHT]
"""The box of `block()` as FiftyOne counts."""


def test_fiftyone_instance_masks_are_placed_in_their_boxes(tmp_path: Path) -> None:
    crop = ring()[5:20, 10:30]
    stored = io.BytesIO()
    np.save(stored, crop)
    packed = zlib.compress(stored.getvalue())
    text = base64.b64encode(packed).decode()
    save_mask(tmp_path / "crop.png", crop)
    forms = [{"mask": crop}, {"mask": crop.tolist()}, {"mask": packed}, {"mask": text}]
    forms += [{"mask": {"$binary": {"base64": text}}}, {"mask_path": str(tmp_path / "crop.png")}]
    for form in forms:
        record = sample(
            tmp_path,
            {"label": "dog", "bounding_box": RELATIVE, **form},
            {"label": "cat", "bounding_box": [0, 0, 1, 1], "mask": np.ones((2, 2), dtype=bool)},
        )
        np.testing.assert_array_equal(pixels(usable(read_fiftyone(record, "dog")).annotation[0]), ring() & block())
    small = {"label": "dog", "bounding_box": RELATIVE, "mask": np.array([[1, 0]])}
    np.testing.assert_array_equal(pixels(read_fiftyone(sample(tmp_path, small), "dog").annotation[0]), block(right=20))


def test_fiftyone_boxes_and_segmentations(tmp_path: Path) -> None:
    boxes = sample(tmp_path, {"label": "dog", "bounding_box": RELATIVE})
    assert read_fiftyone([boxes, sample(tmp_path)], "dog").annotation == [Box(10, 5, 30, 20)]
    record = sample(tmp_path, mask=ring() * np.uint8(4))
    np.testing.assert_array_equal(pixels(usable(read_fiftyone(record, 4)).annotation[0]), ring())
    write_label_png(tmp_path / "labels.png", block() * 2)
    record = sample(tmp_path, mask_path=str(tmp_path / "labels.png"))
    np.testing.assert_array_equal(pixels(read_fiftyone(record, 2).annotation[0]), block())


def test_faulty_fiftyone_samples(tmp_path: Path) -> None:
    dog = {"label": "dog", "bounding_box": RELATIVE}
    bomb = zlib.compress(bytes(2**29 + 100), 1)
    for record, label, match in [
        (sample(tmp_path, dog), "cat", "label='cat': no sample has it"),
        (sample(tmp_path, dog) | {"filepath": "gone.png"}, "dog", r"samples\[0\]\.filepath: 'gone.png'"),
        ({"ground_truth": {}}, "dog", r"samples\[0\]\.filepath: expected str"),
        (sample(tmp_path, dog) | {"ground_truth": None}, "dog", r"samples\[0\]\.ground_truth"),
        (sample(tmp_path, other=1), "dog", r"expected detections or the mask of a segmentation, got \['other'\]"),
        (sample(tmp_path, mask=ring() * 1), "dog", "whose classes are numbers"),
        (sample(tmp_path, dog, {**dog, "mask": ring()}), "dog", "got masks and boxes"),
        (sample(tmp_path, dog | {"bounding_box": [0, 0, 2, 1]}), "dog", r"detections\[0\]\.bounding_box: the box"),
        (sample(tmp_path, dog | {"bounding_box": [0, 1]}), "dog", r"detections\[0\]\.bounding_box: expected four"),
        (sample(tmp_path, dog | {"mask": b"xx"}), "dog", r"detections\[0\]\.mask: no compressed array"),
        (sample(tmp_path, dog | {"mask": bomb}), "dog", r"detections\[0\]\.mask: larger than"),
        (sample(tmp_path, dog | {"mask": np.zeros((2, 2, 2))}), "dog", r"detections\[0\]\.mask: expected labels"),
    ]:
        with pytest.raises(FormatError, match=match):
            read_fiftyone(record, label)


def test_huggingface_rows_with_masks() -> None:
    index = (block() + 2 * ring()).astype(np.uint8) % 3
    rows = [
        {"image": photo(), "segmentation": Image.fromarray(index), "label": 3},
        {"image": np.asarray(photo(1)), "segmentation": index, "label": np.int64(3)},
        {
            "image": {"bytes": png_bytes(photo(2)), "path": None},
            "segmentation": {"bytes": png_bytes(Image.fromarray(index))},
        },
        {"image": photo(), "segmentation": np.zeros_like(index)},
    ]
    shots = usable(read_huggingface(rows, 2))
    assert len(shots.support) == 3
    for annotation in shots.annotation:
        np.testing.assert_array_equal(pixels(annotation), index == 2)
    two = usable(read_huggingface({"image": photo(), "label": Image.fromarray(ring())}))
    np.testing.assert_array_equal(pixels(two.annotation[0]), ring())


def test_huggingface_rows_with_boxes() -> None:
    objects = {"bbox": [[10, 5, 20, 15], [1, 1, 4, 4]], "category": [7, 8]}
    listed = [{"bbox": [10, 5, 30, 20], "label": "dog"}]
    assert usable(read_huggingface({"image": photo(), "objects": objects}, 7)).annotation == [Box(10, 5, 30, 20)]
    both = Box([(10, 5, 30, 20), (1, 1, 5, 5)])
    assert read_huggingface({"image": photo(), "objects": objects}).annotation == [both]
    row = {"pixels": np.asarray(photo()), "things": listed}
    shots = read_huggingface(row, "dog", column="things", image_column="pixels", box_format="xyxy")
    assert shots.annotation == [Box(10, 5, 30, 20)]


def test_faulty_huggingface_rows() -> None:
    mask = Image.fromarray(ring())
    objects = {"bbox": [[10, 5, 45, 20]], "category": [7]}
    for row, options, match in [
        ({"mask": mask}, {}, r"rows\[0\]\.image: expected an image"),
        ({"image": photo()}, {}, r"rows\[0\]: expected one of the columns .* Name it with column="),
        ({"image": photo(), "mask": mask, "objects": objects}, {}, "got mask and objects. Name it"),
        ({"image": photo(), "mask": None}, {"column": "mask"}, r"rows\[0\]\.mask: expected a mask or objects"),
        ({"image": photo(), "objects": objects}, {}, "leaves the image .* is it the other one"),
        ({"image": photo(), "objects": objects}, {"box_format": "cxcywh"}, "box_format='cxcywh'"),
        ({"image": photo(), "objects": objects}, {"label": 8, "box_format": "xyxy"}, "label=8: no row has it"),
        ({"image": photo(), "objects": {"bbox": [[1, 1, 2, 2]]}}, {"label": 8}, r"objects\[0\]: expected the class"),
        ({"image": photo(), "objects": {"bbox": [[1, 1, 2]]}}, {}, r"objects\[0\]\.bbox: expected four"),
        (
            {"image": photo(), "mask": mask},
            {"label": "dog"},
            r"the classes of the masks in rows\[0\]\.mask are numbers",
        ),
        ({"image": photo(), "mask": photo()}, {"label": 1}, r"rows\[0\]\.mask: expected an index mask"),
        ({"image": photo(), "mask": photo()}, {}, r"rows\[0\]\.mask: .* several colours"),
        ({"image": photo(), "mask": {"bytes": b"no"}}, {}, r"rows\[0\]\.mask: the embedded image"),
    ]:
        with pytest.raises(FormatError, match=match):
            read_huggingface(row, **options)


def test_the_model_takes_what_the_readers_give(coco: Callable[..., Path]) -> None:
    path = coco()
    model = tiny_model()
    result = model.segment(photo(), *read_coco(path, path.parent, "dog"))
    assert result.mask.shape == (HEIGHT, WIDTH)
    record = model.segment(photo(), **read_huggingface({"image": photo(1), "mask": Image.fromarray(ring())})._asdict())
    assert record.mask.shape == (HEIGHT, WIDTH)
