"""The command line, in-process, with small fake encoders and a small random decoder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import (
    TINY,
    FakeBackbone,
    make_folder,
    random_decoder,
    save_photo,
    save_tiny_decoder,
)
from PIL import Image
from safetensors.torch import load_file

from diffup import Box, DiffUp, Points, Scribble, __version__, cli
from diffup.backbones.named import split_backbone
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def built(families: Callable[..., None]) -> list[dict[str, object]]:
    """The options that encoders of the family `fake` were built with."""
    calls: list[dict[str, object]] = []

    def build(variant: str | None, *, input_size: int = 64, checkpoint_path: str | None = None) -> FakeBackbone:
        """Random Fourier features of mean colours."""
        calls.append({"variant": variant, "input_size": input_size, "checkpoint_path": checkpoint_path})
        seed = 0 if variant is None else sum(map(ord, variant))
        return FakeBackbone(input_size=(input_size, input_size), seed=seed)

    families(fake=build)
    return calls


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"), backbone="fake")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a query, three support images of 96 x 80 pixels, and masks."""
    for index, name in enumerate(("query", "a", "b", "c")):
        save_photo(tmp_path, name, seed=index)
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(tmp_path / "small_mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segment(decoder: Path, *options: str, output: str = "out") -> int:
    return cli.main(["segment", "query.png", *options, "--decoder", str(decoder), "--device", "cpu", "-o", output])


def test_segment_writes_its_results(photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(decoder, "--support", "a.png", "--mask", "a_mask.png") == 0
    names = ["mask.png", "overlay.png", "overview.png", "result.json"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    result = DiffUp(load_decoder(decoder), device="cpu").segment("query.png", "a.png", "a_mask.png")
    assert (np.asarray(Image.open("out/mask.png")) == result.mask * 255).all()
    assert (np.asarray(Image.open("out/overlay.png")) == np.asarray(result.overlay())).all()
    assert (np.asarray(Image.open("out/overview.png")) == np.asarray(result.overview())).all() and result.supports
    facts = json.loads(Path("out/result.json").read_text())
    assert result.summary().items() <= facts.items()
    assert facts["support"] == [
        {"image": "a.png", "kind": "mask", "values": ["a_mask.png"], "negative": [], "opposed": False}
    ]
    assert facts["settings"]["steps"] == 3 and facts["settings"]["ensemble"] == 2
    assert facts["settings"]["backbone_fingerprint"] == FakeBackbone(input_size=(64, 64)).fingerprint
    assert facts["versions"]["diffup"] == __version__
    printed = capsys.readouterr().out
    assert f"presence {result.presence:.2f}, quality {result.quality:.2f}" in printed
    assert facts["settings"]["min_presence"] == 0.0
    assert all(str(Path("out", name)) in printed for name in names)


def test_segment_pairs_annotations_with_the_support_before_them(photos: Path, decoder: Path) -> None:
    boxes = ["--support", "a.png", "--box", "5,5,40,40", "--box", "50,10,90,70"]
    points = ["--support", "b.png", "c.png", "--points", "10,10 20,30"]
    strokes = ["--support", "a.png", "--scribble", "30,40 60,70", "--scribble", "5,5"]
    image = ["--support", "b.png", "--scribble", "b_mask.png"]
    assert segment(decoder, *boxes, *points, *strokes, *image) == 0
    expected = DiffUp(load_decoder(decoder), device="cpu").segment(
        "query.png",
        ["a.png", "b.png", "c.png", "a.png", "b.png"],
        [
            Box([(5, 5, 40, 40), (50, 10, 90, 70)]),
            None,
            Points([(10, 10), (20, 30)]),
            Scribble([[(30, 40), (60, 70)], [(5, 5)]]),
            Scribble("b_mask.png"),
        ],
    )
    assert (np.asarray(Image.open("out/mask.png")) == expected.mask * 255).all()
    assert json.loads(Path("out/result.json").read_text())["quality"] == expected.quality


def test_segment_takes_negatives_of_supports_and_corrections_of_the_query(
    photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supports = ["--support", "a.png", "--points", "20,30", "--not-points", "60,60 70,60", "--support", "b.png"]
    boxes = ["--box", "10,10,60,60", "--not-box", "40,40,60,60"]
    marks = ["--click", "20,30 40,30", "--not-stroke", "5,5 5,40", "--area", "30,30,50,50", "--not-click", "60,40"]
    assert segment(decoder, *supports, *boxes, *marks, "--min-presence", "0") == 0
    expected = DiffUp(load_decoder(decoder), device="cpu").segment(
        "query.png",
        ["a.png", "b.png"],
        [
            Points([(20, 30)], negative=[(60, 60), (70, 60)]),
            Box(10, 10, 60, 60, negative=(40, 40, 60, 60)),
        ],
        correction=[
            Points([(20, 30), (40, 30)]),
            Scribble(negative=[(5, 5), (5, 40)]),
            Box(30, 30, 50, 50),
            Points(negative=[(60, 40)]),
        ],
        min_presence=0,
    )
    assert (np.asarray(Image.open("out/mask.png")) == expected.mask * 255).all()
    facts = json.loads(Path("out/result.json").read_text())
    assert facts["corrections"][3] == {"option": "--not-click", "value": "60,40"}
    assert "; in the photo: yes; 4 corrections; " in capsys.readouterr().out
    assert facts["support"][0]["negative"] == ["60,60 70,60"]


def test_segment_options_reach_encoder_and_sampler(
    photos: Path, decoder: Path, built: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = ["--steps", "2", "--ensemble", "1", "--threshold", "0.4", "--seed", "7", "--trace", "--quiet"]
    Path("w.pt").touch()
    encoder = ["--backbone", "fake:wide", "--backbone-weights", "w.pt", "--input-size", "96"]
    assert segment(decoder, "--support", "a.png", *sampling, *encoder) == 0
    assert built == [{"variant": "wide", "input_size": 96, "checkpoint_path": "w.pt"}]
    settings = json.loads(Path("out/result.json").read_text())["settings"]
    expected = {"steps": 2, "ensemble": 1, "threshold": 0.4, "seed": 7, "input_size": [96, 96], "device": "cpu"}
    assert expected.items() <= settings.items()
    assert Image.open("out/trace.png").width > 0
    assert capsys.readouterr() == ("", "")


def test_segment_refines_unless_told_otherwise(photos: Path, decoder: Path) -> None:
    model = DiffUp(load_decoder(decoder), device="cpu")
    for options, refine in (([], True), (["--refine"], True), (["--no-refine"], False)):
        assert segment(decoder, "--support", "a.png", "--mask", "a_mask.png", *options) == 0
        expected = model.segment("query.png", "a.png", "a_mask.png", refine=refine)
        assert (np.asarray(Image.open("out/mask.png")) == expected.mask * 255).all()
        assert json.loads(Path("out/result.json").read_text())["settings"]["refine"] is refine
    assert (expected.mask != model.segment("query.png", "a.png", "a_mask.png").mask).any()


def test_segment_marks_nothing_below_the_minimum_presence(
    photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--support", "a.png", "--mask", "a_mask.png", "--threshold", "0.05"]
    for least, present in ((None, True), ("0", True), ("1", False)):
        assert segment(decoder, *command, *(() if least is None else ("--min-presence", least))) == 0
        assert np.asarray(Image.open("out/mask.png")).any() == present
        facts = json.loads(Path("out/result.json").read_text())
        assert facts["present"] is present and facts["settings"]["min_presence"] == float(least or 0)
        assert 0 < facts["presence"] < 1 and ("(absent)" in capsys.readouterr().out) == (not present)


def test_segment_seed(photos: Path, decoder: Path) -> None:
    for output, seed in (("one", "1"), ("again", "1"), ("two", "2")):
        assert segment(decoder, "--support", "a.png", "--seed", seed, output=output) == 0
    one, again, two = (json.loads(Path(name, "result.json").read_text()) for name in ("one", "again", "two"))
    assert one["quality"] == again["quality"] != two["quality"]
    assert Path("one/mask.png").read_bytes() == Path("again/mask.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--support"),
        (["--support", "missing.png"], "--support: there is no file 'missing.png'"),
        (["--support", "a.png", "broken.png"], "--support: 'broken.png' cannot be read"),
        (["--support", "a.png", "--mask", "missing.png"], "there is no file 'missing.png'"),
        (
            ["--support", "a.png", "--mask", "small_mask.png"],
            "--mask of a.png: the mask 'small_mask.png' is 10 x 10",
        ),
        (["--support", "a.png", "--mask", "a_mask.png", "--mask", "b_mask.png"], "2 masks"),
        (["--support", "a.png", "--box", "1,2,3"], "--box: expected x0,y0,x1,y1"),
        (["--support", "a.png", "--box", "1,2,3,x"], "--box: expected x0,y0,x1,y1"),
        (["--support", "a.png", "--box", "30,2,3,40"], "inverted or empty"),
        (["--support", "a.png", "--box", "0,0,97,80"], "leaves its image"),
        (["--support", "a.png", "--points", "10 20"], "--points: expected x,y"),
        (["--support", "a.png", "--points", ""], "--points: expected x,y"),
        (["--support", "a.png", "--not-points", "5,5"], "--not-points: a.png has no --points that marks the class"),
        (["--support", "a.png", "--click", "5,5", "--not-click", "5"], "--not-click: expected x,y"),
        (["--support", "a.png", "--click", "5,5", "--not-area", "1,2,3"], "--not-area: expected x0,y0,x1,y1"),
        (["--support", "a.png", "--click", "5,5", "--not-click", "5000,5"], "--not-click: point 0 is (5000, 5)"),
        (["--support", "a.png", "--points", "96,2"], "outside of its image"),
        (["--support", "a.png", "--scribble", "1,2 3"], "--scribble: expected x,y"),
        (["--support", "a.png", "--scribble", "strokes.png"], "there is no file 'strokes.png'"),
        (["--support", "a.png", "--steps", "0"], "steps=0"),
        (["--support", "a.png", "--ensemble", "0"], "ensemble=0"),
        (["--support", "a.png", "--threshold", "1"], "threshold=1.0"),
        (["--support", "a.png", "--min-presence", "1.5"], "min_presence=1.5: it must be 0 to 1"),
        (["--support", "a.png", "--min-presence", "nan"], "min_presence=nan: it must be 0 to 1"),
        (["--support", "a.png", "--backbone", "fakes"], "did you mean 'fake'"),
        (["--support", "a.png", "--decoder", "nowhere"], "'nowhere' is no folder"),
        (["--support", "a.png", "--device", "abacus"], "device='abacus'"),
        (["--support", "a.png", "--output", "a.png"], "a.png"),
    ],
)
def test_segment_errors(
    options: list[str], message: str, photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = ["--decoder", str(decoder), "--output", "out"]
    assert cli.main(["segment", "query.png", *defaults, *options]) == cli.FAILED
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("diffup: error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not Path("out/result.json").exists()


def test_segment_does_not_overwrite_its_input(photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a_mask.png").rename("mask.png")
    before = Path("mask.png").read_bytes()
    assert segment(decoder, "--support", "a.png", "--mask", "mask.png", output=".") == cli.FAILED
    assert "would overwrite mask.png" in capsys.readouterr().err
    assert Path("mask.png").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "1,2,3,4", "--support", "a.png"], "there is none"),
        (["--support", "a.png", "--box", "1,2,3,4", "--points", "5,6"], "one kind"),
        (["--support", "a.png", "--points", "5,5", "--not-box", "1,2,3,4"], "one kind"),
        (["--support", "a.png", "--seed", "-1"], "0 or more"),
        (["--support", "a.png", "--seed", "x"], "invalid number value"),
        (["--supp", "a.png"], "there is no option --supp; did you mean --support?"),
    ],
)
def test_usage_errors(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["segment", "query.png", "-o", "out", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def export(*regions: tuple[str, str, str, dict[str, object]], more: bool = False) -> None:
    """Write a task of Label Studio: regions (image, label, type, value) of one image; `more` adds it to the file."""
    results = [{"type": kind, "value": {**value, kind: [label]}} for _, label, kind, value in regions]
    tasks = json.loads(Path("export.json").read_text()) if more else []
    tasks.append({"data": {"image": f"/data/local-files/?d={regions[0][0]}"}, "annotations": [{"result": results}]})
    Path("export.json").write_text(json.dumps(tasks))


def test_teach_from_the_file_of_a_labelling_tool(
    photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = {"x": 25, "y": 25, "width": 50, "height": 50}
    export(("a.png", "dog", "rectanglelabels", box))
    export(("b.png", "dog", "keypointlabels", {"x": 50, "y": 50}), more=True)
    export(("gone.png", "dog", "rectanglelabels", box), more=True)
    teach = ["teach", "--from", "export.json", "--decoder", str(decoder), "--device", "cpu"]
    assert cli.main([*teach, "--label", "dog", "-o", "d.safetensors"]) == cli.FAILED
    assert "export.json: [2].data.image: '/data/local-files/?d=gone.png' is no file" in capsys.readouterr().err
    assert not Path("d.safetensors").exists()

    assert cli.main([*teach, "--label", "dog", "--skip-faulty", "-o", "d.safetensors"]) == 0
    printed = capsys.readouterr()
    assert "Prototypes('dog', 2 shots" in printed.out
    assert printed.err.startswith("diffup: skipped: export.json: [2].data.image: ")
    model = DiffUp(load_decoder(decoder), device="cpu")
    expected = model.prototypes(["a.png", "b.png"], [Box(24, 20, 72, 60), Points([(47.5, 39.5)])], name="dog")
    expected.save("expected.safetensors")
    assert Path("d.safetensors").read_bytes() == Path("expected.safetensors").read_bytes()

    # Besides other supports, under another name, one kind or the first shots alone, and added to a class
    options = ["--kind", "points", "--support", "c.png", "--mask", "c_mask.png", "--name", "hound", "--label", "dog"]
    assert cli.main([*teach, *options, "-o", "e.safetensors"]) == 0
    model.prototypes(["c.png", "b.png"], ["c_mask.png", Points([(47.5, 39.5)])], name="hound").save(
        "expected.safetensors"
    )
    assert Path("e.safetensors").read_bytes() == Path("expected.safetensors").read_bytes()
    assert cli.main([*teach, "--add", "d.safetensors", "--shots", "1", "-o", "f.safetensors"]) == 0
    assert "Prototypes('dog', 3 shots" in capsys.readouterr().out


def test_errors_name_the_photo_of_a_labelling_tool(
    photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(("c.jpg", "dog", "rectanglelabels", {"x": 25, "y": 25, "width": 50, "height": 50}))
    Image.open("c.png").save("c.jpg")
    content = Path("c.jpg").read_bytes()
    Path("c.jpg").write_bytes(content[: len(content) // 2])  # its header tells its size all the same
    options = ["--support", "a.png", "--from", "export.json", "--label", "dog", "--decoder", str(decoder)]
    assert cli.main(["teach", *options, "--device", "cpu", "-o", "d.safetensors"]) == cli.FAILED
    assert capsys.readouterr().err.startswith("diffup: error: --from: 'c.jpg' cannot be decoded")


MISTAKES = [
    ("segment query.png --support a.png -o notes.txt", "--output: 'notes.txt' is a file; give a folder"),
    ("segment query.png --support a.png -o notes.txt/out", "--output: 'notes.txt' is a file; give a folder"),
    ("segment query.png --support a.png -o result.png", "named like a file, but the results are several"),
    ("segment photos --support a.png -o out", "'photos' is a folder; for the photos of a folder, teach the class once"),
    ("segment photos --support a.png -o out", "diffup label FOLDER --prototypes NAME.safetensors"),
    ("segment photos/*.png --support a.png -o out", "a pattern is not looked up; for the photos of a folder"),
    ("segment quary.png --support a.png -o out", "QUERY: there is no file 'quary.png'; did you mean 'query.png'?"),
    ("segment query.jpg --support a.png -o out", "did you mean 'query.png'?"),
    ("segment Query.PNG --support a.png -o out", "did you mean 'query.png'?"),
    ("segment nowhere/query.png --support a.png -o out", "there is no folder 'nowhere'"),
    ("segment https://a.org/b.jpg --support a.png -o out", "URLs are not fetched"),
    ("segment query.png --support photos -o out", "--support: 'photos' is a folder; give its images by name"),
    ("segment query.png --support a.png --mask a_maks.png -o out", "--mask: there is no file 'a_maks.png'; did you"),
    ("segment query.png --support a.png --box 0,0,500,9 -o out", "--box of a.png: box 0 is (0, 0, 500, 9)"),
    ("segment query.png --support a.png --backbone-weights w.pt -o out", "--backbone-weights: there is no file"),
    ("segment query.png --support a.png --device gpu -o out", "device='gpu' cannot be used; did you mean 'cuda'?"),
    ("segment query.png --text dog -o out", "reads no names; add --text-backbone conse:efficientnet_lite2"),
    ("segment query.png --support a.png -o out --backbone efficientnet_lite2", "mean 'bundled:efficientnet_lite2'?"),
    ("teach --support a.png --name dog -o dog.pt", "--output: expected a file name ending in .safetensors"),
    ("teach --support a.png --name dog -o folder.safetensors", "'folder.safetensors' is a folder"),
    (
        "teach --support a.png --add dogs.safetensors -o d.safetensors",
        "--add: there is no file 'dogs.safetensors'; did",
    ),
    ("teach --support a.png --add big.safetensors -o d.safetensors", "Give what they were made with: --input-size 96"),
    (
        "teach --label dog --support a.png -o d.safetensors",
        "--label: it belongs to the file of a labelling tool; add --",
    ),
    ("teach --skip-faulty --text a -o d.safetensors", "--skip-faulty: it belongs to the file of a labelling tool"),
    (
        "teach --from exprot.json --label x -o d.safetensors",
        "--from: there is no file 'exprot.json'; did you mean 'exp",
    ),
    ("teach --from photos --label x -o d.safetensors", "'photos' is a folder; give its files: --from FOLDER/*.json"),
    (
        "teach --from export.json --label x --images photoz -o d.safetensors",
        "there is no folder 'photoz'; did you mean",
    ),
    ("teach --from export.json -o d.safetensors", "give either --name, for a new class, or --add FILE"),
    ("teach --from export.json --label x --images photos -o d.safetensors", "?d=a.png' is no file in 'photos'"),
    ("teach --from export.json --label x --images photos -o d.safetensors", "the folder of the images with --images,"),
    ("teach --from export.json --label y -o d.safetensors", "with the label 'y'. The labels are 'two', 'x'"),
    ("teach --from export.json --label two -o d.safetensors", "Choose with --kind mask, box, scribble or points"),
    (
        "teach --from export.json --label x --kind scribble -o d.safetensors",
        "--kind 'scribble': export.json is of Label",
    ),
    ("teach --from export.json --label x --kind star -o d.safetensors", "--kind 'star': expected mask, box, scribble"),
    ("teach --from export.json --label x --shots 3 -o d.safetensors", "--shots 3 were asked for, and 1 can be read"),
    ("teach --from notes.txt --label x -o d.safetensors", "expected a file of COCO, LabelMe, Label Studio, CVAT"),
    ("label photos --prototypes big.safetensors -o out", "the prototypes of big.safetensors were made with fake"),
    ("label photos --prototypes dog.safetensors dog2.safetensors -o out", "diffup teach --add dog.safetensors"),
    (
        "label query.png --prototypes dog.safetensors -o out",
        "'query.png' is a file; for a single photo: diffup segment",
    ),
    ("label photo --prototypes dog.safetensors -o out", "there is no folder 'photo'; did you mean 'photos'?"),
    ("label photos --prototypes dog.safetensors -o notes.txt", "--output: 'notes.txt' is a file"),
    ("train photoz -o out", "DATA: there is no folder 'photoz'; did you mean 'photos'?"),
    ("train photos -o out --config note.json", "--config: there is no file 'note.json'; did you mean 'notes.txt'?"),
    ("train photos -o notes.txt", "--output: 'notes.txt' is a file"),
    ("evaluate photos -o notes.txt", "--output: 'notes.txt' is a file"),
    ("evaluate photos -o out --dataset pascal", "did you mean 'pascal5i'"),
    ("export -o notes.txt", "--output: 'notes.txt' is a file"),
    ("push photoz user/repo", "FOLDER: there is no folder 'photoz'; did you mean 'photos'?"),
    ("push photos user/repo --card crad.md", "--card: there is no file 'crad.md'"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistakes_are_answered_with_what_to_type(
    line: str, message: str, photos: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("photos", "folder.safetensors"):
        Path(folder).mkdir()
    Path("photos/query.png").write_bytes(Path("query.png").read_bytes())
    Path("notes.txt").write_text("notes")
    for name, size in (("dog", 64), ("dog2", 64), ("big", 96)):
        if f"{name}.safetensors" in line or "dogs" in line:
            model = DiffUp(load_decoder(decoder), FakeBackbone(input_size=(size, size)), device="cpu")
            model.prototypes("a.png", Box(5, 5, 40, 40), name="dog").save(f"{name}.safetensors")
    if "export" in line or "exprot" in line:
        box, point = {"x": 10, "y": 10, "width": 50, "height": 50}, {"x": 10, "y": 10}
        export(("a.png", "x", "rectanglelabels", box))
        export(("b.png", "two", "rectanglelabels", box), ("b.png", "two", "keypointlabels", point), more=True)
    before = sorted(path.name for path in photos.rglob("*"))
    words = line.split()
    chosen = ["--decoder", str(decoder)] if words[0] in ("segment", "teach", "label", "evaluate") else []
    device = ["--device", "cpu"] if words[0] in ("segment", "teach", "label") and "--device" not in words else []
    assert cli.main([*words, *chosen, *device]) == cli.FAILED
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == "" and ".prototypes(" not in printed.err and "Errno" not in printed.err
    assert sorted(path.name for path in photos.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("segmnt query.png", "there is no command 'segmnt'; did you mean segment?"),
        ("query.png", "a command comes first, such as: diffup segment query.png"),
        ("help", "there is no command 'help'; there are segment, teach"),
        ("--versoin", "there is no option --versoin; did you mean --version?"),
        ("segment query.png --suport a.png --mask m.png -o out", "no option --suport; did you mean --support?"),
        ("segment query.png --support a.png --output-dir out", "no option --output-dir; did you mean --output?"),
        ("segment query.png --support a.png --input_size=9 -o out", "did you mean --input-size?"),
        ("segment query.png --support a.png -output out", "there is no option -output; did you mean --output?"),
        ("segment --support a.png query.png -o out", "required: QUERY; it comes first"),
        ("segment query.png --mask m.png --support a.png -o out", "write --support IMG --mask ..."),
        ("segment query.png a.png b.png --support a.png -o out", "for the photos of a folder: diffup label FOLDER"),
        ("segment my photo.png --support a.png -o out", 'a name with spaces needs quotes: "my photo.png"'),
        ("segment query.png --support a.png --box 1 2 3 4 -o out", "coordinates are joined by commas"),
        ("segment query.png --support a.png --points 1,2 3,4 -o out", 'one text in quotes: "1,2 3,4"'),
        ("label a.png b.png --prototypes d -o out", "give the folder itself"),
        ("train data -o out --dataset foldr", "did you mean 'folder'?"),
        ("backbones bundled", "diffup backbones --check NAME"),
    ],
)
def test_misspelled_command_lines(line: str, message: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my photo.png").touch()
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_interruption(
    photos: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiffUp, "segment", interrupt)
    assert segment(decoder, "--support", "a.png") == 130
    assert capsys.readouterr().err == "diffup: interrupted\n"


COMMANDS = (
    "segment",
    "teach",
    "label",
    "train",
    "evaluate",
    "upgrade-report",
    "export",
    "push",
    "demo",
    "serve",
    "backbones",
)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--help"])
    assert stopped.value.code == 0
    assert ("examples:" in capsys.readouterr().out) == bool(command)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"diffup {__version__}\n"


def test_parser_imports_nothing_heavy() -> None:
    """The module itself, under an empty package: what `diffup/__init__.py` brings in is not its business."""
    script = f"""
import sys, types
package = types.ModuleType("diffup")
package.__path__, package.__version__ = [{str(ROOT / "diffup")!r}], "0"
sys.modules["diffup"] = package
sys.modules.update(dict.fromkeys(("torch", "numpy", "PIL")))  # importing one of them fails
from diffup.cli import build_parser
build_parser().format_help()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backbones"]) == 0
    printed = capsys.readouterr().out
    assert "fake  (runtime, installed)\n    Random Fourier features of mean colours.\n" in printed
    assert "bundled:efficientnet_lite0" in printed


def test_backbones_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backbones", "--json"]) == 0
    families = {family["family"]: family for family in json.loads(capsys.readouterr().out)}
    assert {"bundled", "timm", "open_clip", "transformers", "fake"} == set(families)
    assert families["fake"]["origin"] == "runtime"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("labelled") / "data")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A config file of a run that takes seconds."""
    path = tmp_path / "train.json"
    decoder = {**TINY, "timesteps": 50, "steps": 3, "ensemble": 2, "backbone": "fake", "priors": {"grid": 8}}
    views = {"crops": 1, "pasted": 3}
    path.write_text(
        json.dumps({"decoder": decoder, "views": views, "backbones": ["fake"], "steps": 4, "batch_size": 2})
    )
    return path


def train(data: Path, run: Path, settings: Path, *options: str) -> int:
    return cli.main(
        ["train", str(data), "-o", str(run), "--config", str(settings), "--device", "cpu", "--quiet", *options]
    )


def test_train_and_resume(data: Path, settings: Path, tmp_path: Path, photos: Path) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    options = ["--fold", "0", "--steps", "3", "--seed", "5", *cache]
    assert train(data, tmp_path / "whole", settings, *options) == 0
    assert train(data, tmp_path / "parts", settings, *options, "--stop-after", "1") == 0
    partial = load_file(tmp_path / "parts" / "decoder" / "model.safetensors")
    assert train(data, tmp_path / "parts", settings, *options) == 0
    whole, parts = (load_file(tmp_path / run / "decoder" / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], partial[name]) for name in whole)
    resolved = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert (resolved["folds"], resolved["steps"], resolved["seed"], resolved["batch_size"]) == ([0], 3, 5, 2)
    assert segment(tmp_path / "parts" / "decoder", "--support", "a.png", "--mask", "a_mask.png") == 0


def test_train_says_where_the_decoder_is(
    data: Path, settings: Path, tmp_path: Path, built: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backbone", "fake:a=weights.pt", "--backbone", "fake:b", "--steps", "1", "--batch-size", "1"]
    arguments = ["train", str(data), "-o", str(tmp_path / "run"), "--config", str(settings), "--device", "cpu"]
    assert cli.main([*arguments, *options]) == 0
    assert [(call["variant"], call["checkpoint_path"]) for call in built] == [("a", "weights.pt"), ("b", None)]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["backbones"] == ["fake:a", "fake:b"]
    assert f"decoder: {tmp_path / 'run' / 'decoder'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("fake", "fake", {}),
        ("fake:a=w.pt", "fake:a", {"checkpoint_path": "w.pt"}),
        ("fake:a@96", "fake:a", {"input_size": 96}),
        ("fake=me@home/w.pt@96", "fake", {"checkpoint_path": "me@home/w.pt", "input_size": 96}),
        ("fake=me@home", "fake", {"checkpoint_path": "me@home"}),
    ],
)
def test_an_encoder_may_name_its_weights_and_its_input_size(text: str, name: str, options: dict[str, object]) -> None:
    assert split_backbone(text) == (name, options)


def test_each_training_encoder_has_its_input_size(
    data: Path, settings: Path, tmp_path: Path, built: list[dict[str, object]]
) -> None:
    options = ["--backbone", "fake:a@96", "--backbone", "fake:b", "--input-size", "32", "--stop-after", "1"]
    arguments = ["train", str(data), "-o", str(tmp_path / "run"), "--config", str(settings), "--device", "cpu"]
    assert cli.main([*arguments, *options]) == 0
    assert [(call["variant"], call["input_size"]) for call in built] == [("a", 96), ("b", 32)]


def test_train_from_a_decoder(data: Path, settings: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_json(settings.read_text()).decoder
    save_decoder(tmp_path / "initial", random_decoder(config).state_dict(), config)
    text = json.loads(settings.read_text()) | {"steps": 1, "batch_size": 1, "learning_rate": 1e-12, "weight_decay": 0}
    settings.write_text(json.dumps(text))
    assert train(data, tmp_path / "run", settings, "--initial", str(tmp_path / "initial"), "--in-memory") == 0
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("initial", "run/decoder"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_train_refuses_another_config_in_the_same_folder(
    data: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    assert train(data, tmp_path / "run", settings, *cache, "--stop-after", "1") == 0
    before = (tmp_path / "run" / "config.json").read_text()
    assert train(data, tmp_path / "run", settings, *cache, "--seed", "9") == cli.FAILED
    assert "seed: 0 there, 9 here" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps=0"),
        (["--fold", "7"], "fold=7"),
        (["--backbone", "fake="], "NAME[=CHECKPOINT][@PIXELS]"),
        (["--backbone", "fake:a@64", "--backbone", "fake:a@96"], "fake:a is given twice"),
        (["--seed", str(2**32)], f"seed={2**32}"),
        (["--backbone", "unheard-of"], "unknown backbone family"),
        (["--backgrounds", "."], "backgrounds="),
        (["--config", "missing.json"], "missing.json"),
        (["--initial", "nowhere"], "nowhere"),
    ],
)
def test_train_errors(
    options: list[str],
    message: str,
    data: Path,
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(data, tmp_path / "run", settings, *options) == cli.FAILED
    printed = capsys.readouterr()
    assert printed.err.startswith("diffup: error: ")
    assert message in printed.err


def test_train_on_a_folder_without_the_layout(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, tmp_path / "run", settings) == cli.FAILED
    assert "splits.json" in capsys.readouterr().err
