"""`diffup upgrade-report`: the matrix, the page, errors."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, build_fake, save_tiny_decoder, tiny_config, tiny_model
from PIL import Image

from diffup import DiffUp, cli
from diffup.backbones.registry import temporary_backbones
from diffup.data.folder import LabelledFolder
from diffup.decoder.diffusion import Diffusion
from diffup.evaluation import figures
from diffup.evaluation.charts import histogram
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator

VOID = {"meta", "img", "br", "link", "input", "hr"}
SVG_CLOSED = {"rect", "line"}


class Page(HTMLParser):
    """Checks that every element is closed where it must be, and collects what is in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_CLOSED
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(autouse=True, scope="module")
def encoders() -> object:
    with temporary_backbones(fake=build_fake):
        yield


def saved(folder: Path, seed: int, **changes: object) -> Path:
    return save_tiny_decoder(folder, seed, **{"backbone": "fake", "steps": 2, "ensemble": 1} | changes)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("decoders")
    return [saved(root / "a", 0), saved(root / "b", 1)]


def report(data: Path, out: Path, *options: str) -> int:
    given = ["upgrade-report", str(data), "-o", str(out), "--device", "cpu", "--fold", "1", "--episodes", "3"]
    return cli.main([*given, *options])


@pytest.fixture(scope="module")
def out(shapes: Path, decoders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    train = ["--train", f"fake:a={decoders[0]}", f"fake:bb={decoders[1]}"]
    assert report(shapes, folder, *train, "--test", "fake:a", "fake:bb", "fake:<ccc>", "--quiet") == 0
    return folder


def test_the_matrix(out: Path, shapes: Path, decoders: list[Path]) -> None:
    content = json.loads((out / "upgrade.json").read_text())
    cells = {(cell["trained"], cell["tested"]): cell for cell in content["cells"]}
    tested = ("fake:a", "fake:bb", "fake:<ccc>")
    assert set(cells) == {(a, b) for a in tested[:2] for b in tested}
    folder, episodes, page = LabelledFolder.open(shapes), None, (out / "report.html").read_text()
    for trained, path in zip(tested, decoders, strict=False):
        own = cells[trained, trained]
        assert own["retention"] == 1 and own["gain"] == 0 and own["gain_interval"] == [0, 0]
        for name in tested:
            cell = cells[trained, name]
            assert cell["gain"] == pytest.approx(cell["miou"] - own["miou"])
            for figure, (low, high) in (("miou", cell["miou_interval"]), ("gain", cell["gain_interval"])):
                assert low <= cell[figure] <= high
            assert cell["rows"][0]["intervals"]["miou"] == cell["miou_interval"], "one fold, one seed"
            assert f"[{cell['miou_interval'][0]:.1f}, {cell['miou_interval'][1]:.1f}]" in page
            if name in tested[:2]:
                assert cell["retention"] == pytest.approx(cell["miou"] / cells[name, name]["miou"])
            else:
                assert cell["retention"] is None, "no decoder was trained with it"
            backbone = FakeBackbone(input_size=(64, 64), seed=len(name.partition(":")[2]))
            model = DiffUp.from_pretrained(path, backbone=backbone, device="cpu")
            episodes = draw_episodes(folder, "test", [1, 2], 1, 3, seed=0)
            assert cell["miou"] == Evaluator(model, folder).run(episodes).miou
    histograms = content["prior_iou"]["histograms"]
    assert set(histograms) == set(tested)
    assert all(sum(entry["counts"]) == 3 and 0 <= entry["mean"] <= 1 for entry in histograms.values())


def test_the_page_stands_alone(out: Path) -> None:
    text = (out / "report.html").read_text()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert not page.all("script") and not page.all("link") and "url(" not in text and "http" not in text
    for name in ("fake:a", "fake:bb", "fake:<ccc>"):
        assert page.text.count(name) >= 3, "in the table, the settings and the pictures"
    assert len(page.all("svg")) == 3 and all(chart["aria-label"] for chart in page.all("svg"))
    images = page.all("img")
    assert len(images) == 5 + 3 + 3, "scenarios (there is one support only), encoders, noise levels"
    for image in images:
        assert image["alt"] and image["src"].startswith("data:image/png;base64,")
        picture = Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert (picture.width, picture.height) == (int(image["width"]), int(image["height"]))
        assert np.asarray(picture).std() > 5
    cells = [cell for cell in page.all("td") if "cell" in (cell.get("class") or "")]
    assert len(cells) == 6 and sum("own" in cell["class"] for cell in cells) == 2


def test_it_shares_the_record_of_evaluate(
    out: Path, shapes: Path, decoders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (out / "episodes.jsonl").read_bytes()
    monkeypatch.setattr(FakeBackbone, "pyramid", None)  # nothing is scored
    options = ["--backbone", "fake:bb", "--fold", "1", "--episodes", "3", "--device", "cpu", "--quiet"]
    assert cli.main(["evaluate", str(shapes), "--decoder", str(decoders[0]), "-o", str(out), *options]) == 0
    [row] = json.loads((out / "scores.json").read_text())["rows"]
    cells = json.loads((out / "upgrade.json").read_text())["cells"]
    assert [row["miou"]] == [c["miou"] for c in cells if (c["trained"], c["tested"]) == ("fake:a", "fake:bb")]
    assert (out / "episodes.jsonl").read_bytes() == before


def test_decoders_without_noise_have_no_error_maps(shapes: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "one", 0, system="one_step", steps=1)
    arguments = ["--train", f"fake:a={folder}", "--test", "fake:bb", "--quiet"]
    assert report(shapes, tmp_path / "out", *arguments) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "A decoder of system 'one_step' sees no noisy mask." in page.text
    assert "retention n/a" in page.text and "gain n/a" in page.text
    assert len(page.all("img")) == 5 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "fake:a"], "--train: expected NAME=FOLDER, got 'fake:a'"),
        (["--train", "=x"], "--train: expected NAME=FOLDER"),
        (["--train", "fake:a=x", "fake:a=y"], "--train: fake:a is given twice, x and y"),
        (["--train", "fake:a=nowhere"], "'nowhere' is no folder"),
        (["--test", "fake:a", "fake:a=x"], "--test: fake:a is given twice"),
        (["--test", "fake="], "--test: expected NAME[=CHECKPOINT][@PIXELS]"),
        (["--test", "fakes"], "did you mean 'fake'"),
        (["--fold", "9"], "fold=9"),
        (["--dataset", "voc"], "dataset='voc'"),
        (["--annotation", "sketch"], "annotation='sketch'"),
        (["--steps", "99"], "steps=99"),
        (["--fold", "9", "--test", "fakes"], "fold=9"),
    ],
)
def test_errors(
    options: list[str],
    message: str,
    shapes: Path,
    decoders: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"--train": [f"fake:a={decoders[0]}"], "--test": ["fake:a"]}
    given.pop(options[0], None)
    rest = [part for option, values in given.items() for part in (option, *values)]
    assert report(shapes, tmp_path / "out", *rest, *options) == cli.FAILED
    printed = capsys.readouterr()
    assert printed.err.startswith("diffup: error: ") and message in printed.err
    assert not (tmp_path / "out").exists()


# --- pictures and charts ---------------------------------------------------------------------------------------------


def test_scenarios_keep_class_and_query() -> None:
    stream = [
        Episode(1, "q", ("a", "b")),
        Episode(2, "x", ("y",)),
        Episode(1, "r", ("q", "c")),
        Episode(1, "q", ("a",)),
    ]
    cases = figures.scenarios(stream, 0)
    assert [label for label, _, _ in cases] == [*figures.KINDS, "3 masks"]
    assert all(episode.query == "q" and episode.class_id == 1 for _, episode, _ in cases)
    assert cases[-1][1].supports == ("a", "b", "c") and cases[0][1].supports == ("a",)
    assert len(figures.scenarios(stream[1:2], 0)) == len(figures.KINDS), "one support is all there is"


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_noise_levels_are_of_the_ratio_to_the_mask(scale: float) -> None:
    diffusion = Diffusion(tiny_config(timesteps=250, signal_scale=scale))
    steps = [diffusion.alphas_bar[figures.noise_step(diffusion, ratio)] for ratio in figures.NOISE_RATIOS.values()]
    assert steps == sorted(steps, reverse=True)
    for abar, ratio in zip(steps, figures.NOISE_RATIOS.values(), strict=True):
        assert float(((1 - abar) / abar).sqrt() / scale) == pytest.approx(ratio, rel=0.25)


def test_error_maps_are_of_the_true_mask(shapes: Path) -> None:
    model = tiny_model(FakeBackbone(input_size=(64, 64)), timesteps=250)
    folder = LabelledFolder.open(shapes)
    episode = draw_episodes(folder, "test", [1], 1, 1, seed=0)[0]
    strips = figures.error_strips(model, folder, episode, 0, 0)
    shown = [float(re.search(r"IoU of x_t (\d\.\d\d)", label)[1]) for label, _ in strips]
    assert [label.split()[0] for label, _ in strips] == ["low", "medium", "high"]
    assert shown[0] > shown[1] > shown[2] and shown[0] > 0.6
    again = figures.error_strips(model, folder, episode, 0, 0)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(strips, again, strict=True))
    assert torch.is_grad_enabled()


def test_a_histogram_is_drawn_to_scale() -> None:
    page = Page(histogram([0, 2, 4], "a < b", mark=0.5))
    bars = [float(bar["height"]) for bar in page.all("rect")]
    assert bars[0] == 0 and bars[2] == pytest.approx(2 * bars[1], abs=0.2)
    assert "a < b" in page.text and "mean 0.50" in page.text
