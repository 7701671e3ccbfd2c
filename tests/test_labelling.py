"""`label_folder`, `diffup teach` and `diffup label`: what is written, kills, resuming, and every documented error."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from fakes import (
    FakeBackbone,
    save_photo,
    save_tiny_decoder,
    shape_image,
    tiny_model,
)
from PIL import Image

from diffup import DiffUp, LabelMap, Prototypes, cli
from diffup.decoder.weights import load_decoder
from diffup.errors import ConfigError, DataError, MissingPackageError, StorageError
from diffup.labelling.files import path_from
from diffup.labelling.folder import RECORD, find_images, label_folder
from diffup.labelling.plan import FORMATS, LabelPlan
from diffup.labelling.table import quality_table
from diffup.utils.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = LabelPlan(formats=FORMATS)
NAMES = ("red square", "disc: green")


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(steps=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images in two folders, one of them broken, and things that are none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more" / ".hidden").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(shape_image((1, 2), (50, 60 + index), seed=index)[0]).save(folder / f"{index}.jpg")
        Image.fromarray(shape_image((2,), (40, 50), seed=index)[0]).save(folder / "more" / f"{index}.PNG")
    (folder / "more" / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    for hidden in (folder / ".hidden.png", folder / "more" / ".hidden" / "a.png"):
        Image.new("RGB", (9, 9)).save(hidden)
    return folder


IMAGES = ["0.jpg", "1.jpg", "2.jpg", "more/0.PNG", "more/1.PNG", "more/2.PNG", "more/broken.png"]
GOOD = IMAGES[:-1]


@pytest.fixture(scope="module")
def whole(model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an undisturbed run; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    report = label_folder(model, photos, classes, out, EVERYTHING, batch_size=4, workers=2)
    assert (report.labelled, report.known, list(report.failed)) == (6, 0, ["more/broken.png"])
    assert all(path.exists() for path in report.files) and len(report.files) == len(FORMATS) == 7
    return out


@pytest.fixture(scope="module")
def expected(model: DiffUp, classes: list[Prototypes], photos: Path) -> dict[str, LabelMap]:
    results = model.segment_many([photos / image for image in GOOD], classes, batch_size=4)
    return dict(zip(GOOD, results, strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_images_of_a_folder(photos: Path) -> None:
    assert find_images(photos) == IMAGES


def test_label_maps(whole: Path, expected: dict[str, LabelMap]) -> None:
    for image, result in expected.items():
        with Image.open((whole / "labels" / image).with_suffix(".png")) as written:
            assert written.mode == "P" and (np.asarray(written) == result.labels).all()
    assert any(result.labels.any() for result in expected.values())


def test_overlays(whole: Path, expected: dict[str, LabelMap]) -> None:
    for image, result in expected.items():
        with Image.open((whole / "overlays" / image).with_suffix(".jpg")) as written:
            assert written.size == result.overlay().size


def test_coco_is_valid_for_pycocotools(whole: Path, photos: Path, expected: dict[str, LabelMap]) -> None:
    coco = pytest.importorskip("pycocotools.coco").COCO(whole / "annotations.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
    images = {image["file_name"]: image for image in coco.loadImgs(coco.getImgIds())}
    assert list(images) == GOOD
    for name, result in expected.items():
        image = images[name]
        assert (image["height"], image["width"]) == result.labels.shape
        found = np.zeros_like(result.labels)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            found[coco.annToMask(annotation) > 0] = annotation["category_id"]
        assert (found == result.labels).all()


@pytest.mark.parametrize("instances", [False, True])
def test_coco_polygons(model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path: Path, instances: bool) -> None:
    plan = LabelPlan(formats=("coco",), encoding="polygon", instances=instances)
    label_folder(model, photos, classes, tmp_path, plan)
    document = json.loads((tmp_path / "annotations.json").read_text())
    assert document["annotations"] and {entry["id"] for entry in document["images"]} == set(range(1, 7))
    assert all(isinstance(annotation["segmentation"], list) for annotation in document["annotations"])
    per_class = {(entry["image_id"], entry["category_id"]) for entry in document["annotations"]}
    assert (len(document["annotations"]) > len(per_class)) == instances
    assert {path.name for path in tmp_path.iterdir()} == {RECORD, "annotations.json"}


@pytest.mark.parametrize("overlap", [False, True])
def test_separate_objects(
    model: DiffUp,
    classes: list[Prototypes],
    photos: Path,
    tmp_path: Path,
    expected: dict[str, LabelMap],
    overlap: bool,
) -> None:
    plan = LabelPlan(formats=("coco", "yolo"), instances=True, overlap=overlap)
    label_folder(model, photos, classes, tmp_path, plan)
    document = json.loads((tmp_path / "annotations.json").read_text())
    for entry in document["images"]:
        result = expected[entry["file_name"]]
        objects = list(result.instances(overlap, smallest=0))
        written = [found for found in document["annotations"] if found["image_id"] == entry["id"]]
        assert [found["category_id"] for found in written] == [label for label, _ in objects]
        assert [found["area"] for found in written] == [item.area for _, item in objects]
        assert [found["score"] for found in written] == pytest.approx(
            [item.score for _, item in objects], abs=6e-5
        )  # in four digits
        lines = (tmp_path / "yolo" / "labels" / entry["file_name"]).with_suffix(".txt").read_text().splitlines()
        assert [int(line.split()[0]) + 1 for line in lines] == [label for label, _ in result.instances(smallest=0)]


def test_yolo(whole: Path, expected: dict[str, LabelMap]) -> None:
    from diffup.formats import yolo_lines

    for image, result in expected.items():
        lines = (whole / "yolo" / "labels" / image).with_suffix(".txt").read_text().splitlines()
        assert lines == yolo_lines(result.labels, range(2))
    text = 'train: images\nval: images\nnames:\n  0: "red square"\n  1: "disc: green"\n'
    assert (whole / "yolo" / "data.yaml").read_text() == text


def test_labelme_opens_the_photos(whole: Path, photos: Path, expected: dict[str, LabelMap]) -> None:
    from diffup.formats import read_labelme

    for image, result in expected.items():
        path = (whole / "labelme" / image).with_suffix(".json")
        document = json.loads(path.read_text())
        assert (path.parent / document["imagePath"]).samefile(photos / image) and document["imageData"] is None
        assert "\\" not in document["imagePath"] and not Path(document["imagePath"]).is_absolute()
        labels = {shape["label"] for shape in document["shapes"]}
        assert labels == {NAMES[label - 1] for label in np.unique(result.labels) if label}
        for name in labels:
            (mask,) = read_labelme(path, name).annotation
            np.testing.assert_array_equal(mask.mask.numpy() > 0.5, result.labels == NAMES.index(name) + 1)


def test_tasks_of_label_studio(whole: Path, photos: Path, expected: dict[str, LabelMap], tmp_path: Path) -> None:
    from diffup.formats import read_label_studio

    tasks = json.loads((whole / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={photos.name}/{name}" for name in GOOD]
    for task, result in zip(tasks, expected.values(), strict=True):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == f"diffup {result.results[0].backbone}"
        found = [name for index, name in enumerate(NAMES, start=1) if (result.labels == index).any()]
        assert [region["value"]["brushlabels"] for region in prediction["result"]] == [[name] for name in found]
        least = min((result.score[name] for name in found), default=None)
        assert prediction.get("score") == (None if least is None else pytest.approx(least, abs=6e-5))  # in four digits
    submitted = [{**task, "annotations": task["predictions"]} for task in tasks]  # as a person submits them
    (tmp_path / "export.json").write_text(json.dumps(submitted))
    shots = read_label_studio(tmp_path / "export.json", NAMES[1], images=photos)
    shown = [image for image, result in expected.items() if (result.labels == 2).any()]
    assert shots.support == [photos / image for image in shown] and shown
    for image, mask in zip(shown, shots.annotation, strict=True):
        np.testing.assert_array_equal(mask.mask.numpy() > 0.5, expected[image].labels == 2)


def test_photos_behind_links_are_found_from_the_label_files(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "photos").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    (tmp_path / "disk" / "deep" / "photos" / "more").symlink_to(tmp_path / "far")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for photo in (tmp_path / "link" / "photos" / "a.png", tmp_path / "link" / "photos" / "more" / "b.png"):
        photo.touch()
        for folder in (tmp_path / "out" / "labelme", tmp_path / "labelme" / "sub", tmp_path):
            folder.mkdir(parents=True, exist_ok=True)
            assert (folder / path_from(folder, photo)).samefile(photo)


def test_the_table_begins_with_the_most_doubtful(whole: Path, expected: dict[str, LabelMap]) -> None:
    rows = list(csv.DictReader((whole / "quality.csv").open(encoding="utf-8")))
    assert sorted(row["image"] for row in rows) == IMAGES
    assert rows[0]["image"] == "more/broken.png" and "cannot be read" in rows[0]["error"] and not rows[0]["doubt"]
    assert not any(rows[0][f"state {name}"] for name in NAMES)
    for row in rows[1:]:
        result = expected[row["image"]]
        found = [name for index, name in enumerate(NAMES, start=1) if (result.labels == index).any()]
        assert row["found"].split(";") == (found or [""]) and not row["error"]
        doubts = [1 - result.score[name] if name in found else result.presence[name] for name in NAMES]
        assert row["doubt"] == f"{max(doubts):.4f}"
        for index, name in enumerate(NAMES, start=1):
            assert row[f"state {name}"] == ("marked" if name in found else "empty")
            for figure in ("presence", "quality", "score"):
                assert row[f"{figure} {name}"] == f"{getattr(result, figure)[name]:.4f}"
            assert row[f"area {name}"] == f"{(result.labels == index).mean():.4f}"
    doubts = [float(row["doubt"]) for row in rows[1:]]
    assert doubts == sorted(doubts, reverse=True) and doubts[0] > doubts[-1]


def test_the_order_of_the_table() -> None:
    def entry(image: str, *figures: tuple[float, float, float]) -> dict[str, object]:
        keys, classes = ("presence", "score", "area_fraction"), []
        for name, values in zip("ab", figures, strict=True):
            named = dict(zip(keys, values, strict=True))
            facts = {"present": values[0] >= 0.25, "overruled": values[0] == 0.5}
            classes.append({"name": name, **facts, "quality": 0.5, **named})
        return {"image": image, "classes": classes}

    entries = [
        entry("sure", (1.0, 0.9, 0.1), (0.0, 0.0, 0.0)),  # the score of what is not marked does not count
        entry("b is wrong", (1.0, 0.9, 0.1), (0.75, 0.25, 0.5)),
        entry("b may be there", (1.0, 0.9, 0.1), (0.2, 0.9, 0.0)),
        entry("no pixel", (0.75, 0.5, 0.0), (0.2, 0.5, 0.0)),
        entry("as wrong", (0.5, 0.25, 0.1), (0.0, 0.9, 0.0)),
        entry("nothing", (0.0625, 0.5, 0.0), (0.03125, 0.5, 0.0)),
        entry("left to b", (0.5, 0.25, 0.0), (1.0, 0.9, 0.3)),
        {"image": "broken", "error": "it is broken"},
    ]
    heads, *lines = csv.reader(quality_table(entries, "ab").splitlines())
    each = ("state", "presence", "quality", "score", "area")
    assert heads == ["image", "doubt", "found", "error", *(f"{what} {name}" for name in "ab" for what in each)]
    assert [line[:4] for line in lines] == [
        ["broken", "", "", "it is broken"],
        ["as wrong", "0.7500", "a", ""],  # as doubtful as the next two, in the order of their names
        ["b is wrong", "0.7500", "a;b", ""],
        ["no pixel", "0.7500", "", ""],
        ["left to b", "0.2500", "b", ""],
        ["b may be there", "0.2000", "a", ""],
        ["sure", "0.1000", "a", ""],
        ["nothing", "0.0625", "", ""],
    ]
    assert [(line[4], line[9]) for line in lines] == [
        ("", ""),
        ("marked", "absent"),
        ("marked", "marked"),
        ("empty", "absent"),
        ("overruled", "marked"),
        ("marked", "absent"),
        ("marked", "absent"),
        ("absent", "absent"),
    ]
    assert lines[0][4:] == [""] * 10
    assert lines[2][4:9] == ["marked", "1.0000", "0.5000", "0.9000", "0.1000"]
    assert lines[2][9:] == ["marked", "0.7500", "0.5000", "0.2500", "0.5000"]


def test_classes_below_the_minimum_presence_are_not_marked(
    model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path: Path
) -> None:
    plan = LabelPlan(formats=("png", "coco", "csv"), min_presence=1.0)
    label_folder(model, photos, classes, tmp_path, plan)
    assert json.loads((tmp_path / "annotations.json").read_text())["annotations"] == []
    for path in (tmp_path / "labels").rglob("*.png"):
        assert not np.asarray(Image.open(path)).any()
    rows = list(csv.DictReader((tmp_path / "quality.csv").open(encoding="utf-8")))
    assert len(rows) == 7
    for row in rows[1:]:
        assert {row[f"state {name}"] for name in NAMES} == {"absent"} and not row["found"]
        assert row["doubt"] == max(row[f"presence {name}"] for name in NAMES)


def own_of(out: Path, image: str) -> list[Path]:
    return [(out / "own" / folder / image).with_suffix(".png") for folder in ("1_red_square", "2_disc_green")]


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_own_masks_may_overlap(
    model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path: Path, encoding: Literal["rle", "polygon"]
) -> None:
    pytest.importorskip("pycocotools")
    from diffup.formats import decode_segmentation

    plan = LabelPlan(formats=("png", "coco"), overlap=True, threshold=0.05, encoding=encoding)
    report = label_folder(model, photos, classes, tmp_path, plan, batch_size=4)
    assert report.files == (tmp_path / "labels", tmp_path / "annotations.json", tmp_path / "own")
    results = model.segment_many([photos / image for image in GOOD], classes, batch_size=4, threshold=0.05)
    document = json.loads((tmp_path / "annotations.json").read_text())
    ids, overlapping = {image["file_name"]: image["id"] for image in document["images"]}, 0
    for image, result in zip(GOOD, results, strict=True):
        overlapping += int(result.masks.all(axis=0).sum())
        with Image.open((tmp_path / "labels" / image).with_suffix(".png")) as labels:
            assert (np.asarray(labels) == result.labels).all()
        found = {
            entry["category_id"]: decode_segmentation(entry["segmentation"], result.labels.shape)
            for entry in document["annotations"]
            if entry["image_id"] == ids[image]
        }
        for number, (path, mask) in enumerate(zip(own_of(tmp_path, image), result.masks, strict=True), start=1):
            with Image.open(path) as written:
                assert written.mode == "L" and (np.asarray(written) == mask * 255).all()
            assert np.array_equal(found.get(number, np.zeros_like(mask)), mask)
    assert overlapping and {path.name for path in (tmp_path / "own").iterdir()} == {"1_red_square", "2_disc_green"}


def test_own_masks_follow_the_folder(model: DiffUp, classes: list[Prototypes], tmp_path: Path) -> None:
    folder, out, plan = tmp_path / "in", tmp_path / "out", LabelPlan(formats=("png",), overlap=True)
    for seed, name in enumerate(("a.png", "b.png")):
        picture(folder / name, seed)
    own_of(out, "a.png")[1].parent.mkdir(parents=True)
    own_of(out, "a.png")[1].write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.png would be replaced"):
        label_folder(model, folder, classes, out, plan)
    own_of(out, "a.png")[1].unlink()
    label_folder(model, folder, classes, out, plan, batch_size=1)
    before = contents(out)
    own_of(out, "b.png")[0].unlink()
    (folder / "a.png").unlink()
    report = label_folder(model, folder, classes, out, plan, batch_size=1)
    assert (report.labelled, report.known, report.gone) == (1, 0, ("a.png",))
    assert not any(path.exists() for path in own_of(out, "a.png"))
    kept = {name: content for name, content in contents(out).items() if name != RECORD}
    assert kept == {name: content for name, content in before.items() if Path(name).name == "b.png"}


# --- killed and resumed ----------------------------------------------------------------------------------------------


def killed_at_the_write(
    number: int, model: DiffUp, photos: Path, classes: list[Prototypes], out: Path, batch_size: int = 4
) -> bool:
    """Label in a process of its own that is killed in the middle of that write; whether it was."""
    child = os.fork()
    if not child:
        plain, count = os.fsync, 0

        def fsync(file: int) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            plain(file)

        os.fsync = fsync
        torch.set_num_threads(
            torch.get_num_threads()
        )  # the pool is made anew in a fork: now, not by two readers at once
        try:
            label_folder(model, photos, classes, out, EVERYTHING, batch_size=batch_size, workers=2)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [1, 4, 12, 28])
def test_killed_anywhere_and_resumed_the_files_are_the_same(
    number: int, model: DiffUp, classes: list[Prototypes], photos: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert killed_at_the_write(number, model, photos, classes, out)
    for path in out.rglob("*"):  # nothing half-written under a name of its own
        if path.is_file() and not path.name.startswith(".") and path.name != RECORD:
            assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes()
    report = label_folder(model, photos, classes, out, EVERYTHING, batch_size=4)
    assert report.labelled + report.known == 6
    assert contents(out) == contents(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_over_and_over(
    model: DiffUp, classes: list[Prototypes], photos: Path, whole: Path, tmp_path: Path
) -> None:
    kills = 0
    while killed_at_the_write(13, model, photos, classes, tmp_path / "out"):
        kills += 1
        assert kills < 10
    assert kills >= 2 and contents(tmp_path / "out") == contents(whole)


def test_nothing_is_done_again(
    model: DiffUp, classes: list[Prototypes], photos: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    label_folder(model, photos, classes, out, EVERYTHING, batch_size=4)
    for path in (out / "labels").rglob("*.png"):
        path.write_bytes(b"edited by hand")
    report = label_folder(model, photos, classes, out, EVERYTHING, batch_size=4)
    assert (report.labelled, report.known, list(report.failed)) == (0, 6, ["more/broken.png"])
    assert all(path.read_bytes() == b"edited by hand" for path in (out / "labels").rglob("*.png"))
    assert (out / RECORD).read_bytes() == (whole / RECORD).read_bytes()


def test_new_images_and_mended_ones_are_labelled(model: DiffUp, classes: list[Prototypes], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(shape_image((1,), seed=1)[0]).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no image")
    assert label_folder(model, folder, classes, out).failed.keys() == {"c.png"}
    for name in ("a", "c"):
        Image.fromarray(shape_image((1,), seed=2)[0]).save(folder / f"{name}.png")
    report = label_folder(model, folder, classes, out)
    assert (report.labelled, report.known, report.failed) == (2, 1, {})
    rows = list(csv.DictReader((out / "quality.csv").open(encoding="utf-8")))
    assert sorted(row["image"] for row in rows) == ["a.png", "b.png", "c.png"] and not any(r["error"] for r in rows)
    assert report.files == (out / "labels", out / "quality.csv")


def test_other_settings_are_refused(
    model: DiffUp, classes: list[Prototypes], photos: Path, whole: Path, tmp_path: Path
) -> None:
    image, labels = shape_image((1,), seed=9)
    other = model.prototypes(image, labels == 1, name=NAMES[0])
    cases = [
        (classes, LabelPlan(formats=FORMATS, threshold=0.3), "thresholds"),
        (classes, LabelPlan(formats=FORMATS, seed=5), "seed: 0 there, 5 here"),
        (classes, LabelPlan(formats=FORMATS, refine=False), "refine: True there, False here"),
        (classes, LabelPlan(formats=FORMATS, min_presence=0.5), r"min_presence: 0\.0 there, 0\.5 here"),
        (classes, LabelPlan(formats=FORMATS, overlap=True), "overlap: False there, True here"),
        (classes, LabelPlan(formats=("png",)), "formats"),
        (classes[:1], EVERYTHING, "classes"),
        ([other, classes[1]], EVERYTHING, "prototypes"),
        ([classes[0].add(model, negatives=image), classes[1]], EVERYTHING, "prototypes"),
    ]
    before = contents(whole)
    for chosen, plan, message in cases:
        with pytest.raises(DataError, match=message):
            label_folder(model, photos, chosen, whole, plan)
    assert contents(whole) == before


def test_runs_with_the_presence_of_before_are_refused(
    model: DiffUp, classes: list[Prototypes], photos: Path, whole: Path, tmp_path: Path
) -> None:
    """Revision 2: the presence did not know the number of supports, and a negative weighed twice as much."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    settings, *lines = (out / RECORD).read_text(encoding="utf-8").splitlines(keepends=True)
    facts = json.loads(settings)
    facts["settings"]["revision"] = 2
    (out / RECORD).write_text("".join([json.dumps(facts) + "\n", *lines]), encoding="utf-8")
    with pytest.raises(DataError, match="revision: 2 there"):
        label_folder(model, photos, classes, out, EVERYTHING)


@pytest.mark.parametrize(
    "line",
    [
        "{]",
        '{"image": "a.png", "photo": [1, 2], "files": {}, "name": "a"}',
        '{"image": "a.png", "photo": [1, 2, 3]}',
        '{"image": "a.png", "photo": 3, "files": {}}',
        '{"image": ["a"], "photo": null}',
    ],
)
def test_a_damaged_record_is_said_so(
    model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path: Path, line: str
) -> None:
    label_folder(model, photos, classes, tmp_path)
    lines = (tmp_path / RECORD).read_bytes().splitlines(keepends=True)
    (tmp_path / RECORD).write_bytes(b"".join([lines[0], f"{line}\n".encode(), *lines[2:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        label_folder(model, photos, classes, tmp_path)


def test_a_resumed_run_replaces_no_file_of_other_origin(
    model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path: Path
) -> None:
    folder, out, plan = tmp_path / "folder", tmp_path / "out", LabelPlan(formats=("png",))
    shutil.copytree(photos, folder)
    label_folder(model, folder, classes, out, plan)
    image = sorted(folder.rglob("*.png"))[0]
    shutil.copyfile(image, folder / "new.png")
    (out / "labels" / "new.png").write_bytes(b"mine")
    report = label_folder(model, folder, classes, out, plan)
    assert "new.png was not written by this run" in report.failed["new.png"]
    assert (out / "labels" / "new.png").read_bytes() == b"mine"
    (out / "labels" / "new.png").unlink()
    assert label_folder(model, folder, classes, out, plan).labelled == 1


# --- what is in the folder now --------------------------------------------------------------------------------------


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shape_image((1, 2), (50, 60), seed=seed)[0]).save(path)


def found_in(out: Path) -> dict[str, set[str]]:
    """The images that each kind of result tells of, or the names of its files."""
    rows = list(csv.DictReader((out / "quality.csv").open(encoding="utf-8", newline="")))
    document = json.loads((out / "annotations.json").read_text())
    files = {
        name: {
            path.relative_to(out / name).with_suffix("").as_posix()
            for path in (out / name).rglob("*")
            if path.is_file()
        }
        for name in ("labels", "overlays", "yolo/labels", "labelme")
    }
    assert len({frozenset(names) for names in files.values()}) == 1
    return {
        "csv": {row["image"] for row in rows},
        "errors": {row["image"] for row in rows if row["error"]},
        "coco": {image["file_name"] for image in document["images"]},
        "files": files["labels"],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        picture(tmp_path / "in" / name, seed)
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    return tmp_path / "in"


def test_photos_that_were_removed_renamed_or_mended(
    model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path
) -> None:
    # One by one: how a batch is rounded depends on what is in it.
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    label_folder(model, folder, classes, out, EVERYTHING, batch_size=1)
    assert found_in(out) == {
        "csv": {"a.png", "b.png", "sub/c.png", "bad.jpg"},
        "errors": {"bad.jpg"},
        "coco": {"a.png", "b.png", "sub/c.png"},
        "files": {"a", "b", "sub/c"},
    }
    (folder / "a.png").unlink()
    (folder / "bad.jpg").unlink()
    (folder / "b.png").rename(folder / "sub" / "d.png")
    picture(folder / "a.bmp", 7)
    report = label_folder(model, folder, classes, out, EVERYTHING, batch_size=1)
    assert (report.labelled, report.known, report.failed) == (2, 1, {})
    assert (report.gone, report.kept) == (("a.png", "b.png", "bad.jpg"), ())
    assert found_in(out) == {
        "csv": {"a.bmp", "sub/c.png", "sub/d.png"},
        "errors": set(),
        "coco": {"a.bmp", "sub/c.png", "sub/d.png"},
        "files": {"a", "sub/c", "sub/d"},
    }
    label_folder(model, folder, classes, fresh, EVERYTHING, batch_size=1)
    there, anew = contents(out), contents(fresh)
    assert {name for name in there if there[name] != anew.get(name)} == {RECORD} and there.keys() == anew.keys()
    report = label_folder(model, folder, classes, out, EVERYTHING, batch_size=1)
    assert (report.labelled, report.known, report.gone) == (0, 3, ())


@pytest.mark.parametrize("hidden", [False, True])
def test_a_photo_changed_in_place_is_done_again(
    hidden: bool, model: DiffUp, classes: list[Prototypes], tmp_path: Path
) -> None:
    """Also one of the same size whose time of change was set back."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate(("a.bmp", "b.bmp")):
        picture(folder / name, seed)
    label_folder(model, folder, classes, out, EVERYTHING)
    before, facts = contents(out), (folder / "a.bmp").stat()
    picture(folder / "a.bmp", 9)
    assert (folder / "a.bmp").stat().st_size == facts.st_size
    if hidden:
        os.utime(folder / "a.bmp", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    report = label_folder(model, folder, classes, out, EVERYTHING)
    assert (report.labelled, report.known, report.gone) == (1, 1, ())
    after = contents(out)
    label_folder(model, folder, classes, tmp_path / "fresh", EVERYTHING)
    for name, content in contents(tmp_path / "fresh").items():
        assert name == RECORD or after[name] == content
    assert after["labels/a.png"] != before["labels/a.png"] and after["labels/b.png"] == before["labels/b.png"]
    os.utime(folder / "b.bmp")  # touched, not changed
    assert label_folder(model, folder, classes, out, EVERYTHING).known == 2
    (folder / "a.bmp").write_text("broken now")
    report = label_folder(model, folder, classes, out, EVERYTHING)
    assert list(report.failed) == ["a.bmp"] and found_in(out)["files"] == {"b"}


def test_label_files_that_are_missing_are_written_again(
    model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path
) -> None:
    label_folder(model, folder, classes, tmp_path / "out", EVERYTHING)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "yolo" / "labels" / "b.txt").unlink()
    report = label_folder(model, folder, classes, tmp_path / "out", EVERYTHING)
    assert (report.labelled, report.known) == (1, 2)
    after = contents(tmp_path / "out")
    assert {name for name in before if before[name] != after.get(name)} == {RECORD}


def test_what_was_edited_by_hand_stays(model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label_folder(model, folder, classes, out)
    for name in ("a", "b"):
        (out / "labels" / f"{name}.png").write_bytes(b"edited")
    (out / "labels" / "mine.png").write_bytes(b"mine")
    (folder / "a.png").unlink()
    picture(folder / "a.bmp", 7)
    picture(folder / "b.png", 8)
    for _ in range(2):
        report = label_folder(model, folder, classes, out)
        assert report.kept == (out / "labels" / "a.png",) and report.gone == ("a.png",)
        assert "was changed since it was written, and so was the photo" in report.failed["b.png"]
        assert {name: (out / "labels" / f"{name}.png").read_bytes() for name in ("a", "b", "mine")} == {
            "a": b"edited",
            "b": b"edited",
            "mine": b"mine",
        }
        assert (out / "labels" / "a.bmp.png").exists()
    (out / "labels" / "b.png").unlink()
    report = label_folder(model, folder, classes, out)
    assert report.labelled == 1 and list(report.failed) == ["bad.jpg"]
    assert Image.open(out / "labels" / "b.png").size == (60, 50)


def test_photos_of_one_stem_have_files_of_their_own(model: DiffUp, classes: list[Prototypes], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate(("a.png", "A.JPG", "a.bmp", "b.png")):
        picture(folder / name, seed)
    picture(folder / "b.txt" / "c.png", 9)  # a folder called as a label file of b.png
    label_folder(model, folder, classes, out, EVERYTHING)
    assert found_in(out)["files"] == {"a.png", "A.JPG", "a.bmp", "b.png", "b.txt/c"}
    for seed, name in enumerate(("a.png", "A.JPG", "a.bmp")):
        result = model.segment(folder / name, classes)
        written = np.asarray(Image.open(out / "labels" / f"{name}.png"))
        assert (written != result.labels).mean() < 0.01, seed
    picture(folder / "b.jpg", 11)  # those who have a name keep it
    assert label_folder(model, folder, classes, out, EVERYTHING).known == 5
    assert found_in(out)["files"] == {"a.png", "A.JPG", "a.bmp", "b.png", "b.txt/c", "b.jpg"}


def test_links_and_what_is_left_out(model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "far" / "z.png", 5)
    (folder / "linked").symlink_to(tmp_path / "far")
    (folder / "gone.png").symlink_to("/nowhere.png")
    (folder / "notes.txt").touch()
    report = label_folder(model, folder, classes, tmp_path / "out", EVERYTHING)
    assert report.labelled == 4 and sorted(report.failed) == ["bad.jpg", "gone.png"]
    assert report.left_out == {"notes.txt": "no image by its ending"}
    assert found_in(tmp_path / "out")["coco"] == {"a.png", "b.png", "sub/c.png", "linked/z.png"}
    assert found_in(tmp_path / "out")["errors"] == {"bad.jpg", "gone.png"}


def test_names_that_people_choose(model: DiffUp, tmp_path: Path) -> None:
    """Each survives every file, or is one failure on record."""
    folder, out = tmp_path / "in", tmp_path / "out"
    odd = [
        "😀 dog.png",
        'a,b;"c".png',
        "=1+1.png",
        "line\nline\r.png",
        "\u2028\x85.png",
        " # x: y .png",
        "x" * 250 + ".png",  # with .json it is as long as names may be
    ]
    for seed, name in enumerate(odd):
        picture(folder / name, seed)
    beyond = "y" * 252 + ".bw"  # with .png it is longer than names may be
    Image.new("RGB", (20, 20)).save(folder / beyond, format="SGI")
    bytes_ = os.fsencode(folder) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(bytes_)).write_bytes((folder / odd[0]).read_bytes())
        no_text = {"caf\\udce9.png"}
    except OSError:  # a disk that takes UTF-8 alone
        no_text = set()
    image, labels = shape_image((1,), seed=1)
    names = ["😀; dog", 'say "hi", # no: yes']
    made = [model.prototypes(image, labels == 1, name=name, threshold=0.01) for name in names]
    for _ in range(2):
        report = label_folder(model, folder, made, out, EVERYTHING)
        assert set(report.failed) == {beyond, *no_text}
        found = found_in(out)
        assert found["coco"] == set(odd) and found["errors"] == set(report.failed)
        assert found["csv"] == {*odd, *report.failed}
        assert {Path(name).stem for name in odd} == {Path(name).name for name in found["files"]}
    document = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in document["categories"]] == names
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load((out / "yolo" / "data.yaml").read_bytes())["names"] == dict(enumerate(names))
    rows = csv.DictReader((out / "quality.csv").open(encoding="utf-8", newline=""))
    cells = {name for row in rows for cells in csv.reader([row["found"]], delimiter=";") for name in cells}
    assert cells and cells <= set(names)


def test_files_of_another_origin_are_not_replaced(
    model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path
) -> None:
    for name in ("annotations.json", "labels/a.png"):
        out = tmp_path / Path(name).stem
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(DataError, match=rf"{name} would be replaced.*no record\.jsonl"):
            label_folder(model, folder, classes, out, EVERYTHING)
        assert contents(out)[name] == b"mine"
    label_folder(model, folder, classes, out, LabelPlan(formats=("csv",)))  # which replaces none


def test_the_record_of_an_older_version(model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path) -> None:
    """It does not tell what was written, nor of which content: all is done again, and what is gone stays."""
    out = tmp_path / "out"
    label_folder(model, folder, classes, out, EVERYTHING)
    lines = [json.loads(line) for line in (out / RECORD).read_text().splitlines()]
    for line in lines:
        for key in ("photo", "name", "files"):
            line.pop(key, None)
    (out / RECORD).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "a.png").unlink()
    report = label_folder(model, folder, classes, out, EVERYTHING)
    assert (report.labelled, report.known, report.gone) == (2, 0, ("a.png",))
    assert {path.name for path in report.kept} == {"a.png", "a.jpg", "a.txt", "a.json"}
    assert found_in(out)["coco"] == {"b.png", "sub/c.png"}


def test_a_second_writer_is_refused(model: DiffUp, classes: list[Prototypes], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Journal(out / RECORD).alone("diffup label"), pytest.raises(StorageError) as caught:
        label_folder(model, folder, classes, out)
    assert str(caught.value).startswith(f"{out} is being written to by diffup label (process {os.getpid()} on ")
    assert not (out / RECORD).exists()
    assert label_folder(model, folder, classes, out).labelled == 3


# --- refusals --------------------------------------------------------------------------------------------------------


def test_folders_that_do_not_do(model: DiffUp, classes: list[Prototypes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        label_folder(model, tmp_path / "none", classes, tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        label_folder(model, tmp_path / "in", classes, tmp_path / "out")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "far" / "out").mkdir(parents=True)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    for inside in (tmp_path / "in", tmp_path / "in" / "out", tmp_path / "far" / "out"):
        with pytest.raises(ConfigError, match="lies within"):
            label_folder(model, tmp_path / "in", classes, inside)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "plan"),
    [
        ("pycocotools", LabelPlan(("coco",))),
        ("skimage", LabelPlan(("coco",), encoding="polygon")),
        ("skimage", LabelPlan(("coco",), instances=True)),
        ("skimage", LabelPlan(("yolo",))),
        ("skimage", LabelPlan(("labelme",))),
    ],
)
def test_a_missing_package_is_told_before_anything_is_done(
    package: str,
    plan: LabelPlan,
    model: DiffUp,
    classes: list[Prototypes],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("", ".mask", ".measure"):
        monkeypatch.setitem(sys.modules, package + module, None)
    with pytest.raises(MissingPackageError, match='pip install "pycocotools>='):
        label_folder(model, photos, classes, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


def test_plans() -> None:
    assert LabelPlan(formats=("csv", "png", "csv")).formats == ("png", "csv")
    for options in ({"formats": ()}, {"formats": ("png", "jpeg")}, {"encoding": "bitmap"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            LabelPlan(**options)


# --- the journal -----------------------------------------------------------------------------------------------------


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "record.jsonl")
    assert list(journal.read()) == []
    journal.append([{"a": 1}, {"b": "ü\n"}])
    with journal.path.open("ab") as file:
        file.write(b'{"c": 3')
    again = Journal(journal.path)
    assert list(again.read()) == [(1, {"a": 1}), (2, {"b": "ü\n"})]
    again.append([{"d": 4}])
    assert [entry for _, entry in Journal(journal.path).read()] == [{"a": 1}, {"b": "ü\n"}, {"d": 4}]


@pytest.mark.parametrize("line", [b"[1]\n", b"{\n", b"\xff\xfe\n"])
def test_lines_that_are_no_objects(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "record.jsonl").write_bytes(b"{}\n" + line)
    with pytest.raises(DataError, match="line 2 is damaged"):
        list(Journal(tmp_path / "record.jsonl").read())


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(families: Callable[..., None]) -> None:
    def build(variant: str | None, *, input_size: int = 96) -> FakeBackbone:
        return FakeBackbone(input_size=(input_size, input_size))

    families(fake=build)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: None) -> Path:
    """A working folder with a decoder and two support images."""
    save_tiny_decoder(tmp_path / "decoder", backbone="fake", steps=1)
    for index, name in enumerate(("a", "b"), start=1):
        save_photo(tmp_path, name, seed=index)
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ("--decoder", "decoder", "--device", "cpu")
TEACH = ("teach", *MODEL, "--name", "square", "-o", "square.safetensors")
A, B = ("--support", "a.png", "--mask", "a_mask.png"), ("--support", "b.png", "--mask", "b_mask.png")


def test_teach(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TEACH, *A, "--class-threshold", "0.4", "--keep-images"]) == 0
    assert "square.safetensors: Prototypes('square', 1 shot" in capsys.readouterr().out
    made = Prototypes.load("square.safetensors")
    assert made.threshold == 0.4 and len(made.kept_supports) == 1
    assert cli.main(["teach", *MODEL, "--add", "square.safetensors", *B, "-o", "more.safetensors", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    more = Prototypes.load("more.safetensors")
    assert (more.name, more.shots, more.threshold, len(more.kept_supports)) == ("square", 2, 0.4, 2)
    model = DiffUp(load_decoder("decoder"), device="cpu")
    assert np.array_equal(
        model.segment("b.png", made).mask, model.segment("b.png", Prototypes.load("square.safetensors")).mask
    )


def test_label(work: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TEACH, *A, "--quiet"]) == 0
    command = ["label", str(photos), "--prototypes", "square.safetensors", "-o", "out", *MODEL, "--format", "png"]
    command += ["coco", "--format", "yolo", "overlay", "csv", "--batch-size", "4", "--threshold", "0.4", "--seed", "2"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "6 labelled, 0 on record, 1 could not be read" in printed.out
    assert "more/broken.png" in printed.err and len(printed.err.splitlines()) == 1
    for name in ("annotations.json", "quality.csv", "labels", "overlays"):
        assert f"{Path('out', name)}\n" in printed.out and Path("out", name).exists()
    model = DiffUp(load_decoder("decoder"), device="cpu")
    classes = [Prototypes.load("square.safetensors")]
    results = model.segment_many([photos / image for image in GOOD], classes, batch_size=4, threshold=0.4, seed=2)
    for image, result in zip(GOOD, results, strict=True):
        assert (np.asarray(Image.open(Path("out/labels", image).with_suffix(".png"))) == result.labels).all()
    before = contents(Path("out"))
    assert not Path("out/own").exists()
    assert cli.main(command) == 0
    assert "0 labelled, 6 on record, 1 could not be read" in capsys.readouterr().out
    assert contents(Path("out")) == before


def test_label_with_own_masks_of_present_classes(work: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TEACH, *A, "--quiet"]) == 0
    command = ["label", str(photos), "--prototypes", "square.safetensors", *MODEL, "--overlap", "--threshold", "0.05"]
    model = DiffUp(load_decoder("decoder"), device="cpu")
    for least in ("0", "1"):
        assert cli.main([*command, "-o", least, "--min-presence", least, "--batch-size", "4"]) == 0
        assert f"{Path(least, 'own')}\n" in capsys.readouterr().out
        written = [Image.open(Path(least, "own", "1_square", image).with_suffix(".png")) for image in GOOD]
        assert any(np.asarray(mask).any() for mask in written) == (least == "0")
    result = model.segment(photos / GOOD[0], Prototypes.load("square.safetensors"), threshold=0.05)
    with Image.open("0/own/1_square/0.png") as mask:
        assert (np.asarray(mask) != result.mask * 255).mean() < 0.01, "batches round differently"
    assert cli.main([*command, "-o", "0", "--min-presence", "0.5"]) == cli.FAILED
    assert "min_presence: 0.0 there, 0.5 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["teach", "--name", "x", "-o", "x.safetensors"], "--support IMG"),
        (["teach", *A, "--name", "x", "-o", "x.pt"], "ending in .safetensors"),
        (["teach", *A, "-o", "x.safetensors"], "either --name"),
        (["teach", *A, "--name", "x", "--add", "y.safetensors", "-o", "x.safetensors"], "either --name"),
        (["teach", *A, "--add", "y.safetensors", "--keep-images", "-o", "x.safetensors"], "--keep-images"),
        (["teach", *A, "--add", "y.safetensors", "-o", "x.safetensors"], "there is no file 'y.safetensors'"),
        (["teach", *A, "--name", " ", "-o", "x.safetensors"], "name=' '"),
        (["teach", *A, "--name", "x", "--class-threshold", "2", "-o", "x.safetensors"], "threshold=2.0"),
        (["label", ".", "--prototypes", "y.safetensors", "-o", "../out"], "there is no file 'y.safetensors'"),
        (["label", ".", "--prototypes", "x.safetensors", "-o", "../out", "--format", "gif"], "formats=('gif',)"),
        (["label", ".", "--prototypes", "x.safetensors", "-o", "o", "--coco-encoding", "x"], "encoding='x'"),
    ],
)
def test_command_errors(command: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, *MODEL]) == cli.FAILED
    printed = capsys.readouterr()
    assert printed.err.startswith("diffup: error: ") and message in printed.err and not printed.out
    assert not Path("x.safetensors").exists()


def test_prototypes_of_another_encoder(work: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TEACH, *A, "--quiet"]) == 0
    command = ["label", str(photos), "--prototypes", "square.safetensors", "-o", "out", *MODEL, "--input-size", "64"]
    assert cli.main(command) == cli.FAILED
    assert "Give what they were made with: --input-size 96" in capsys.readouterr().err
    assert not Path("out").exists()
