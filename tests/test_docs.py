"""The README and the docs say what is true: snippets, commands, names, links, pictures; and the site builds."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub as loopback
import pytest
from huggingface_hub import constants
from pages import DOCS, PAGES, ROOT, Snippet, blocks, make, name_of, snippets
from PIL import Image

import diffup
from diffup import DiffUp, cli, labelling
from diffup.decoder.config import DecoderConfig
from diffup.evaluation.evaluate import Evaluator
from diffup.priors.config import PriorConfig
from diffup.result import Segmentation
from diffup.training.config import TrainConfig

ELSEWHERE = {"cluster.md"}
"""Pages whose snippets another test module runs, in a setting of its own."""

WITH_PYTHON = [page for page in DOCS if page.name not in ELSEWHERE and blocks(page, "python")]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the docs push and fetch goes to a server on the loopback, whatever page it is."""
    with loopback.serve() as server:
        loopback.use(server, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        (tmp_path / "token").write_text("of-the-loopback")
        yield


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_snippets_run(page: Path, photos: Path, tiny_release: None, fake_encoders: None, hub: None) -> None:
    """The Python of a page, from top to bottom, in a folder with the files that it names."""
    names: dict[str, object] = {}
    for snippet in snippets(page, "python"):
        if any(importlib.util.find_spec(package) is None for package in snippet.packages):
            continue
        for file in snippet.files:
            make(file, photos)
        run(snippet, page, names)


def run(snippet: Snippet, page: Path, names: dict[str, object]) -> None:
    tree = ast.parse(snippet.code, str(page))
    ast.increment_lineno(tree, snippet.line - 1)  # a traceback names the line of the page
    exec(compile(tree, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_snippet_escapes_the_tests(page: Path) -> None:
    """Sessions (`>>>`) are not run, so none are written."""
    assert not blocks(page, "pycon")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_are_understood(page: Path) -> None:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", "").splitlines()]
    commands = [line for line in lines if line.startswith("diffup ")]
    for line in commands:
        args = cli.build_parser().parse_args(shlex.split(line, comments=True)[1:])
        assert callable(args.command)
    for script in (part for line in lines for part in shlex.split(line, comments=True) if part.endswith(".py")):
        assert (ROOT / script).is_file(), f"{page.name} runs {script}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_exist(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"(?:diffup|\.)\[(\w+)\]", page.read_text(encoding="utf-8")):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{page.name} names the extra {extra}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_json_is_valid_and_settings_are_settings(page: Path) -> None:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for block in blocks(page, "json"):
        content = json.loads(block)
        if set(content) & fields and "images" not in content:  # a split file has images
            assert TrainConfig.from_json(block) != TrainConfig()


# --- names and links -------------------------------------------------------------------------------------------------

CLASSES = {c.__name__: c for c in (DecoderConfig, DiffUp, Evaluator, PriorConfig, Segmentation, TrainConfig)}
"""Classes that the pages name without their module."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_things_exist(page: Path) -> None:
    """Every dotted name in backquotes that starts with the package's is a module, or something in one."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`(diffup(?:\.\w+)+)", text):
        assert resolves(name), f"{page.name} names {name}, which does not exist"
    for owner, name in re.findall(r"`([A-Z]\w+)\.([a-z]\w*)", text):
        if owner in CLASSES:
            assert has(CLASSES[owner], name), f"{page.name} names {owner}.{name}, which does not exist"


def resolves(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not has(found, part):
                return False
            found = getattr(found, part, None)
        return True
    return False


def has(owner: object, name: str) -> bool:
    return hasattr(owner, name) or name in getattr(owner, "__dataclass_fields__", {})


@pytest.mark.parametrize("page", REFERENCE, ids=name_of)
def test_the_reference_names_what_exists(page: Path) -> None:
    named = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert [name for name in named if not resolves(name)] == []


def test_the_reference_has_every_public_name() -> None:
    named = {name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)}
    for package in (diffup, labelling):
        for name in package.__all__:
            module = getattr(package, name).__module__
            assert named & {module, f"{module}.{name}"}, f"docs/reference lacks {module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# --- pictures and the site -------------------------------------------------------------------------------------------


def test_pictures_are_made_by_the_script(tmp_path: Path, tiny_release: None, fake_encoders: None) -> None:
    """The script makes every picture that the pages show, but for the web page's, and no other lies around."""
    pytest.importorskip("skimage")
    shown = {
        name
        for page in DOCS
        if page.name != "demo.md"
        for name in re.findall(r"\]\((?:\.\./)?images/([^)]+)\)", page.read_text())
    }
    script = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    names = script["draw"](tmp_path, DiffUp.from_pretrained(backbone=script["ENCODERS"][0]))
    made = {name: Image.open(tmp_path / name).size for name in names}
    pictures = ROOT / "docs" / "images"
    kept = {path.name: Image.open(path).size for path in pictures.glob("*.jpg")}
    assert shown == set(made) == set(kept)
    assert made == kept  # of the same scenes and panels
    limits = {"borders.jpg": 400_000, "demo.webp": 1_500_000}
    assert all(path.stat().st_size < limits.get(path.name, 200_000) for path in pictures.iterdir())


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("zensical", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip('the site needs pip install ".[docs]"')
    for name in ("mkdocs.yml", "CHANGELOG.md"):  # the site is written beside its source, links followed
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("configs", "docs", "diffup"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe:" not in done.stdout + done.stderr  # a docstring names an argument that is not there
    reference = (tmp_path / "site" / "reference" / "model" / "index.html").read_text(encoding="utf-8")
    assert "push_to_hub" in reference


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} == listed
