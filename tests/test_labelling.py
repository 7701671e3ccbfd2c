"""`label_folder`, `diffup teach` and `diffup label`: what is written, kills, resuming, and every documented error."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, random_decoder, shape_image, tiny_config
from PIL import Image

from diffup import DiffUp, LabelMap, Prototypes, cli
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError, DataError, MissingPackageError
from diffup.journal import Journal
from diffup.labelling import FORMATS, RECORD, LabelPlan, find_images, label_folder, quality_table

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = LabelPlan(formats=FORMATS)
NAMES = ("red square", "disc: green")


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return DiffUp(random_decoder(tiny_config(steps=1)), FakeBackbone(), "cpu")


@pytest.fixture(scope="module")
def classes(model: DiffUp) -> list[Prototypes]:
    made = []
    for index, name in enumerate(NAMES, start=1):
        image, labels = shape_image((index,), seed=index)
        made.append(model.prototypes(image, labels == index, name=name))
    return made


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
    assert all(path.exists() for path in report.files) and len(report.files) == 5
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


def test_yolo(whole: Path, expected: dict[str, LabelMap]) -> None:
    from diffup.formats import yolo_lines

    for image, result in expected.items():
        lines = (whole / "yolo" / "labels" / image).with_suffix(".txt").read_text().splitlines()
        assert lines == yolo_lines(result.labels, range(2))
    assert (whole / "yolo" / "data.yaml").read_text() == 'names:\n  0: "red square"\n  1: "disc: green"\n'


def test_the_table_of_quality_begins_with_the_worst(whole: Path, expected: dict[str, LabelMap]) -> None:
    rows = list(csv.DictReader((whole / "quality.csv").open(encoding="utf-8")))
    assert sorted(row["image"] for row in rows) == IMAGES
    assert rows[0]["image"] == "more/broken.png" and "cannot be read" in rows[0]["error"] and not rows[0]["quality"]
    for row in rows[1:]:
        result = expected[row["image"]]
        found = [name for index, name in enumerate(NAMES, start=1) if (result.labels == index).any()]
        assert row["found"].split(";") == (found or [""]) and not row["error"]
        lowest = f"{min(result.quality[name] for name in found):.4f}" if found else ""
        assert row["quality"] == lowest
        for index, name in enumerate(NAMES, start=1):
            assert row[f"quality {name}"] == f"{result.quality[name]:.4f}"
            assert row[f"area {name}"] == f"{(result.labels == index).mean():.4f}"
    assert [row["quality"] for row in rows] == sorted(row["quality"] for row in rows)


def test_the_order_of_the_table() -> None:
    def entry(image: str, *figures: tuple[float, float]) -> dict[str, object]:
        classes = [
            {"name": name, "quality": quality, "area_fraction": area}
            for name, (quality, area) in zip("ab", figures, strict=True)
        ]
        return {"image": image, "classes": classes}

    entries = [
        entry("good", (0.9, 0.1), (0.1, 0.0)),  # what was not found does not count
        entry("bad", (0.9, 0.1), (0.2, 0.3)),
        entry("nothing", (0.9, 0.0), (0.9, 0.0)),
        {"image": "broken", "error": "it is broken"},
    ]
    lines = quality_table(entries, "ab").splitlines()
    assert lines[0] == "image,quality,found,error,quality a,area a,quality b,area b"
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["broken", "", "", "it is broken"],
        ["nothing", "", "", ""],
        ["bad", "0.2000", "a;b", ""],
        ["good", "0.9000", "a", ""],
    ]


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
        (classes, LabelPlan(formats=("png",)), "formats"),
        (classes[:1], EVERYTHING, "classes"),
        ([other, classes[1]], EVERYTHING, "prototypes"),
    ]
    before = contents(whole)
    for chosen, plan, message in cases:
        with pytest.raises(DataError, match=message):
            label_folder(model, photos, chosen, whole, plan)
    assert contents(whole) == before


def test_a_damaged_record_is_said_so(model: DiffUp, classes: list[Prototypes], photos: Path, tmp_path: Path) -> None:
    label_folder(model, photos, classes, tmp_path)
    lines = (tmp_path / RECORD).read_bytes().splitlines(keepends=True)
    (tmp_path / RECORD).write_bytes(b"".join([lines[0], b"{]\n", *lines[2:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        label_folder(model, photos, classes, tmp_path)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_folders_that_do_not_do(model: DiffUp, classes: list[Prototypes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        label_folder(model, tmp_path / "none", classes, tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        label_folder(model, tmp_path / "in", classes, tmp_path / "out")
    for name in ("a.png", "A.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / name)
    with pytest.raises(DataError, match="would have the same file names"):
        label_folder(model, tmp_path / "in", classes, tmp_path / "out")
    (tmp_path / "in" / "A.jpg").unlink()
    for inside in (tmp_path / "in", tmp_path / "in" / "out"):
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
    with pytest.raises(MissingPackageError, match=r"diffup\[formats\]"):
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
    config = tiny_config(backbone="fake", steps=1)
    save_decoder(tmp_path / "decoder", random_decoder(config).state_dict(), config)
    for index, name in enumerate(("a", "b"), start=1):
        image, labels = shape_image((1,), seed=index)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        Image.fromarray(labels * np.uint8(255)).save(tmp_path / f"{name}_mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ("--decoder", "decoder", "--device", "cpu")
TEACH = ("teach", *MODEL, "--name", "square", "-o", "square.safetensors")
A, B = ("--support", "a.png", "--mask", "a_mask.png"), ("--support", "b.png", "--mask", "b_mask.png")


def test_teach(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TEACH, *A, "--class-threshold", "0.4", "--keep-images"]) == 0
    assert "square.safetensors: Prototypes('square', 1 shot" in capsys.readouterr().out
    made = Prototypes.load("square.safetensors")
    assert made.threshold == 0.4 and len(made.kept) == 1
    assert cli.main(["teach", *MODEL, "--add", "square.safetensors", *B, "-o", "more.safetensors", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    more = Prototypes.load("more.safetensors")
    assert (more.name, more.shots, more.threshold, len(more.kept)) == ("square", 2, 0.4, 2)
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
    assert cli.main(command) == 0
    assert "0 labelled, 6 on record, 1 could not be read" in capsys.readouterr().out
    assert contents(Path("out")) == before


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
    assert "build them from the support images" in capsys.readouterr().err
    assert not Path("out").exists()
