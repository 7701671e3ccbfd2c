"""Data sets of torchvision and Hugging Face as supports, opened by their own packages; samples of FiftyOne."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_array
from shots import pixels, usable
from torch.utils.data import Subset
from torchvision.datasets import OxfordIIITPet, SBDataset, VOCSegmentation
from torchvision.transforms import ToTensor

from diffup import Box
from diffup.errors import FormatError
from diffup.formats import read_fiftyone, read_huggingface, read_torchvision, write_label_png

HEIGHT, WIDTH = 40, 60
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def photo(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def labels(*classes: int, edge: int = 255) -> np.ndarray:
    """Squares of classes side by side, each with an edge that is left open."""
    made = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for index, label in enumerate(classes):
        made[8:24, 4 + 20 * index : 20 + 20 * index] = edge
        made[10:22, 6 + 20 * index : 18 + 20 * index] = label
    return made


CLASSES = [(12,), (8, 12), (15,), (12, 15, 8)]  # dog; cat and dog; person; dog, person and cat


def same(image: Any, seed: int) -> bool:
    return bool((np.asarray(image) == np.asarray(photo(seed))).all())


def save_exactly(image: Image.Image, path: Path) -> None:
    """A PNG file, whatever the name says: torchvision asks for .jpg, and Pillow looks at the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    base = root / "VOCdevkit" / "VOC2012"
    for index, classes in enumerate(CLASSES):
        save_exactly(photo(index), base / "JPEGImages" / f"{index}.jpg")
        write_label_png(base / "SegmentationClass" / f"{index}.png", labels(*classes))
    splits = base / "ImageSets" / "Segmentation"
    splits.mkdir(parents=True)
    (splits / "train.txt").write_text("0\n1\n2\n3\n")
    return root


@pytest.mark.parametrize("label", ["dog", 12])
def test_voc(voc: Path, label: int | str) -> None:
    shots = usable(read_torchvision(VOCSegmentation(voc, image_set="train"), label))
    assert [same(image, seed) for image, seed in zip(shots.support, (0, 1, 3), strict=True)] == [True] * 3
    for annotation, seed in zip(shots.annotation, (0, 1, 3), strict=True):
        np.testing.assert_array_equal(pixels(annotation), labels(*CLASSES[seed]) == 12)
    assert [int(pixels(annotation).sum()) for annotation in shots.annotation] == [144] * 3  # without the open edges


class Counting(VOCSegmentation):
    """It notes which images are read."""

    read: list[int]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read.append(index)
        return super().__getitem__(index)


def test_no_more_is_read_than_was_asked_for(voc: Path) -> None:
    data = Counting(voc, image_set="train")
    data.read = []
    shots = read_torchvision(data, "person", shots=1)
    assert len(shots.support) == 1 and same(shots.support[0], 2) and data.read == [0, 1, 2]
    with pytest.raises(FormatError, match="shots=3 were asked for, and 2 can be read"):
        read_torchvision(data, "person", shots=3)


def test_sbd(tmp_path: Path) -> None:
    (tmp_path / "cls").mkdir()
    for index, classes in enumerate(CLASSES):
        save_exactly(photo(index), tmp_path / "img" / f"{index}.jpg")
        truth = labels(*classes, edge=0)
        boundaries = np.empty((20, 1), dtype=object)
        for number in range(20):
            boundaries[number, 0] = csc_array(truth == number + 1)
        savemat(tmp_path / "cls" / f"{index}.mat", {"GTcls": {"Segmentation": truth, "Boundaries": boundaries}})
    (tmp_path / "val.txt").write_text("0\n1\n2\n3\n")
    shots = usable(read_torchvision(SBDataset(tmp_path, image_set="val", mode="segmentation"), "cat"))
    assert [same(image, seed) for image, seed in zip(shots.support, (1, 3), strict=True)] == [True] * 2
    for annotation, seed in zip(shots.annotation, (1, 3), strict=True):
        np.testing.assert_array_equal(pixels(annotation), labels(*CLASSES[seed]) == 8)
    with pytest.raises(FormatError, match=r"dataset\[0\]: expected labels \(H, W\), got"):
        read_torchvision(SBDataset(tmp_path, image_set="val", mode="boundaries"), "cat")


PETS = [("Abyssinian_1", 1, 1), ("Birman_2", 2, 1), ("beagle_3", 3, 2), ("Birman_4", 2, 1)]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    base = root / "oxford-iiit-pet"
    for index, (name, _, _) in enumerate(PETS):
        save_exactly(photo(index), base / "images" / f"{name}.jpg")
        save_exactly(Image.fromarray(trimap(index)), base / "annotations" / "trimaps" / f"{name}.png")
    lines = [f"{name} {breed} {animal} 1\n" for name, breed, animal in PETS]
    (base / "annotations" / "trainval.txt").write_text("".join(lines))
    return root


def trimap(index: int) -> np.ndarray:
    """1 the pet, 2 the background, 3 the edge."""
    made = np.full((HEIGHT, WIDTH), 2, dtype=np.uint8)
    made[5:25, 10 + index : 40] = 3
    made[7:23, 12 + index : 38] = 1
    return made


@pytest.mark.parametrize(
    ("label", "types", "expected"),
    [
        (None, "segmentation", [0, 1, 2, 3]),
        (None, ("category", "segmentation"), [0, 1, 2, 3]),
        ("Birman", ("category", "segmentation"), [1, 3]),
        ("Birman", ("segmentation", "binary-category", "category"), [1, 3]),
        ("Beagle", ("category", "segmentation"), [2]),
        ("Cat", ("binary-category", "segmentation"), [0, 1, 3]),
        ("Dog", ("category", "binary-category", "segmentation"), [2]),
    ],
)
def test_pets(pets: Path, label: str | None, types: str | tuple[str, ...], expected: list[int]) -> None:
    shots = usable(read_torchvision(OxfordIIITPet(pets, target_types=types), label))
    assert [same(image, seed) for image, seed in zip(shots.support, expected, strict=True)] == [True] * len(expected)
    for annotation, seed in zip(shots.annotation, expected, strict=True):
        np.testing.assert_array_equal(pixels(annotation), trimap(seed) == 1)


def test_other_data_sets_of_images_and_masks(voc: Path) -> None:
    subset = Subset(VOCSegmentation(voc, image_set="train"), [3, 2])
    shots = read_torchvision(subset, 15)
    assert [same(image, seed) for image, seed in zip(shots.support, (3, 2), strict=True)] == [True] * 2
    pairs = [(photo(0), labels(1)), (photo(1), labels(2))]
    (annotation,) = read_torchvision(pairs, 2).annotation
    np.testing.assert_array_equal(pixels(annotation), labels(2) == 2)


@pytest.mark.parametrize("white", [True, 1, 255])
def test_two_valued_masks(white: int) -> None:
    white_at = labels(1, edge=1) == 1
    mask = Image.fromarray(white_at if white is True else white_at * np.uint8(white))
    assert mask.mode == ("1" if white is True else "L")
    (annotation,) = read_torchvision([(photo(0), mask), (photo(1), Image.new("1", (WIDTH, HEIGHT)))]).annotation
    np.testing.assert_array_equal(pixels(annotation), white_at)
    (annotation,) = read_torchvision([(photo(0), mask)], int(white)).annotation
    np.testing.assert_array_equal(pixels(annotation), white_at)


def test_data_sets_that_cannot_be_read(voc: Path, pets: Path) -> None:
    def open_voc(**options: Any) -> VOCSegmentation:
        return VOCSegmentation(voc, image_set="train", **options)

    masks = OxfordIIITPet(pets, target_types="segmentation")
    for data, label, match in [
        (open_voc(), "bus", "label='bus': no image has it"),
        (open_voc(), "puppy", "label='puppy': give the class in the masks as a number, or one of aeroplane"),
        (open_voc(), None, "label=None: give the class"),
        (open_voc(transform=ToTensor()), 12, r"dataset\[0\]: expected a PIL image, .* without transforms"),
        (open_voc(target_transform=ToTensor()), 12, r"dataset\[0\]: "),
        (Subset(open_voc(), [0]), "dog", "label='dog': give the class in the masks as a number$"),
        (
            [(photo(0), Image.fromarray(labels(1) > 0))],
            255,
            r"has the values 0, 1; for two-valued masks leave label= out",
        ),
        ([(photo(0), labels(1, 2))], None, r"dataset\[0\]: .* Or give label="),
        (open_voc(), "bus", r"The mask of dataset\[0\] has the values 0, 12, 255$"),
        ([photo(0)], 1, r"dataset\[0\]: expected an image and its mask"),
        ([(photo(0), labels(1)[:30])], 1, r"dataset\[0\]: the record says 60 x 30 pixels"),
        (OxfordIIITPet(pets), None, "there are no masks; open the data set with target_types="),
        (
            OxfordIIITPet(pets, target_types="segmentation"),
            "Cat",
            r"target_types=\('binary-category', 'segmentation'\)",
        ),
        (masks, "Beagle", r"target_types=\('category', 'segmentation'\)"),
        (
            OxfordIIITPet(pets, target_types="segmentation"),
            "cat",
            "one of Cat, Dog, Abyssinian, Birman, Beagle, or None",
        ),
    ]:
        with pytest.raises(FormatError, match=match):
            read_torchvision(data, label)


def test_faulty_entries_are_skipped() -> None:
    pairs = [(photo(0), labels(1)), (photo(1), labels(1)[:30]), (photo(2), labels(1))]
    with pytest.warns(UserWarning, match="1 faulty records were passed over"):
        shots = read_torchvision(pairs, 1, on_error="skip")
    assert len(shots.support) == 2 and [skip.record for skip in shots.skipped] == ["dataset[1]"]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def mask_rows() -> Iterator[dict[str, Any]]:
    for index, classes in enumerate(CLASSES):
        yield {"image": photo(index), "annotation": Image.fromarray(labels(*classes))}


def test_a_hugging_face_data_set_with_masks() -> None:
    features = Features({"image": datasets.Image(), "annotation": datasets.Image()})
    data = Dataset.from_list(list(mask_rows()), features=features)
    for given in (
        data,
        data.select(range(4)),
        data.to_iterable_dataset(),
        data.cast_column("image", datasets.Image(decode=False)),
    ):
        shots = usable(read_huggingface(given, 12, shots=2))
        assert [int(pixels(annotation).sum()) for annotation in shots.annotation] == [144, 144]
        np.testing.assert_array_equal(pixels(shots.annotation[1]), labels(8, 12) == 12)
    assert len(read_huggingface(data, 15).support) == 2
    with pytest.raises(FormatError, match="shots=3 were asked for, and 2 can be read"):
        read_huggingface(data, 15, shots=3)


def test_rows_after_the_last_shot_are_not_read() -> None:
    read: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for index, row in enumerate(mask_rows()):
            read.append(index)
            yield row

    assert len(read_huggingface(rows(), 8, shots=1).support) == 1
    assert read == [0, 1, 2]  # the third is asked for and left alone


NAMES = ClassLabel(names=["cat", "dog"])
BOX = Sequence(Value("float32"), length=4)


@pytest.mark.parametrize(
    ("objects", "name", "listed"),
    [
        ({"bbox": Sequence(BOX), "category": Sequence(NAMES)}, "category", False),
        (Sequence({"bbox": BOX, "label": NAMES}), "label", False),
        ([{"bbox": BOX, "category_id": NAMES}], "category_id", True),
    ],
)
def test_class_names_of_a_hugging_face_data_set(objects: Any, name: str, listed: bool) -> None:
    boxes, numbers = [[10, 5, 20, 15], [1, 1, 4, 4]], [1, 0]
    column: Any = {"bbox": boxes, name: numbers}
    if listed:
        column = [{"bbox": box, name: number} for box, number in zip(boxes, numbers, strict=True)]
    data = Dataset.from_list(
        [{"image": photo(0), "objects": column}], features=Features({"image": datasets.Image(), "objects": objects})
    )
    for given in (data, data.to_iterable_dataset()):
        assert read_huggingface(given, "dog").annotation == [Box(10, 5, 30, 20)]
        assert read_huggingface(given, 0).annotation == [Box(1, 1, 5, 5)]
        with pytest.raises(FormatError, match="label='horse': no row has it"):
            read_huggingface(given, "horse")


# --- FiftyOne --------------------------------------------------------------------------------------------------------


class Sample:
    """A sample of FiftyOne: it has a file, gives a dictionary, and can be iterated over as one."""

    def __init__(self, filepath: Path, **fields: Any) -> None:
        self.filepath = str(filepath)
        self._fields = fields

    def __iter__(self) -> Iterator[str]:
        return iter(("filepath", *self._fields))

    def to_dict(self) -> dict[str, Any]:
        return {"filepath": self.filepath, **self._fields}


class Collection(list[Sample]):
    """A data set of FiftyOne: samples, and the names of segmentations' classes."""

    def __init__(self, samples: Iterable[Sample], **targets: Any) -> None:
        super().__init__(samples)
        self.mask_targets = targets.get("by_field", {})
        self.default_mask_targets = targets.get("default", {})

    def to_dict(self) -> dict[str, Any]:
        raise AssertionError("the whole data set is not asked for")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for index, classes in enumerate(CLASSES):
        photo(index).save(tmp_path / f"{index}.png")
        detections = [{"label": f"class {c}", "bounding_box": [0.25, 0.25, 0.5, 0.5]} for c in classes]
        fields = {"found": {"detections": detections}, "truth": {"mask": labels(*classes)}}
        made.append(Sample(tmp_path / f"{index}.png", **fields))
    return made


def test_samples_of_fiftyone(samples: list[Sample]) -> None:
    box = Box(15, 10, 45, 30)
    assert read_fiftyone(samples[0], "class 12", "found").annotation == [box]
    assert read_fiftyone(Collection(samples), "class 12", "found").annotation == [box] * 3
    first = read_fiftyone(iter(samples), "class 15", "found", shots=1)
    assert [Path(path).name for path in first.support] == ["2.png"]
    with pytest.raises(FormatError, match="shots=3 were asked for, and 2 can be read"):
        read_fiftyone(samples, "class 15", "found", shots=3)


def test_names_of_fiftyone_s_segmentations(samples: list[Sample]) -> None:
    names = {8: "cat", 12: "dog", "15": "person", "#ff0000": "nothing"}
    for given, options in [
        (Collection(samples, by_field={"truth": names}, default={12: "other"}), {}),
        (Collection(samples, default=names), {}),
        (samples, {"mask_targets": names}),
        (Collection(samples, default={12: "cat"}), {"mask_targets": names}),
    ]:
        shots = usable(read_fiftyone(given, "dog", "truth", **options))
        assert [int(pixels(annotation).sum()) for annotation in shots.annotation] == [144] * 3
    assert len(read_fiftyone(Collection(samples, default=names), "person", "truth").support) == 2
    assert len(read_fiftyone(Collection(samples, default=names), 15, "truth").support) == 2
    with pytest.raises(FormatError, match=r"label='bird': .* whose classes are numbers; give one, or their names"):
        read_fiftyone(Collection(samples, default=names), "bird", "truth")


@pytest.mark.parametrize("number", [np.uint8(2), np.int64(2)])
def test_numbers_of_numpy_are_classes(tmp_path: Path, number: Any) -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 2:5] = 2
    image, mask = Image.new("RGB", (8, 6)), Image.fromarray(labels)
    image.save(tmp_path / "photo.png")
    sample = {"filepath": str(tmp_path / "photo.png"), "ground_truth": {"mask": labels}}
    for found in (
        read_torchvision([(image, mask)], number),
        read_huggingface([{"image": image, "mask": mask}], number),
        read_fiftyone([sample], number),
    ):
        assert np.argwhere(found.annotation[0].mask.numpy() > 0).tolist() == np.argwhere(labels == 2).tolist()


def test_a_stored_array_whose_header_is_cut_off_is_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.png")
    stored = zlib.compress(b"\x93NUMPY\x01\x00\x10\x00{'descr':'<f8', ")
    box = {"label": "dog", "bounding_box": [0.25, 0, 0.5, 0.5]}
    samples = [
        {"filepath": str(tmp_path / "photo.png"), "ground_truth": {"detections": [one]}}
        for one in (box | {"mask": stored}, box)
    ]
    with pytest.warns(UserWarning, match="1 faulty records"):
        found = read_fiftyone(samples, "dog", on_error="skip")
    assert found.annotation == [Box((2, 0, 6, 3))]
    assert "samples[0].ground_truth.detections[0].mask: no compressed array" in str(found.skipped[0])
