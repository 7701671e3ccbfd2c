"""The pages of the documentation, what is in them, and the files that their snippets name.

A comment above a snippet says which files it needs besides the photos that every page has, or which packages:

    <!-- files: data/mine, photos -->
    <!-- needs: ray, gradio -->

`MAKERS` says how a file of a name is made. A snippet whose packages are not installed is left out.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fakes import FakeBackbone, make_folder, save_tiny_decoder, shape_image
from PIL import Image
from trees import make_coco

from diffup import model
from diffup.data.folder import LabelledFolder
from diffup.decoder.weights import load_decoder
from diffup.evaluation import table
from diffup.evaluation.record import EpisodeRecord
from diffup.evaluation.sweep import Candidate, Plan, sweep

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, *DOCS]

_FENCE = re.compile(
    r"(?P<marks>(?:^<!--(?:(?!-->).)*-->\n)*)^```(?P<language>\w+)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!--\s*(\w+):\s*(.*?)\s*-->")


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    Args:
        code: its text.
        files: that it needs.
        packages: that it needs.
        line: where it starts, counted from 1.
    """

    code: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    line: int


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def snippets(page: Path, language: str) -> list[Snippet]:
    """The fenced blocks of a language, with their marks."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if match["language"] == language:
            marks = dict(_MARK.findall(match["marks"]))
            files, packages = (tuple(filter(None, re.split(r",\s*", marks.get(m, "")))) for m in ("files", "needs"))
            found.append(Snippet(match["code"], files, packages, text.count("\n", 0, match.start("code")) + 1))
    return found


def blocks(page: Path, language: str) -> list[str]:
    """The text of the fenced blocks of a language."""
    return [snippet.code for snippet in snippets(page, language)]


def make_photo(path: Path) -> None:
    """A noisy photo with a red rectangle, or its mask."""
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 240), dtype=np.uint8)
    mask[40:120, 60:150] = 255
    pixels = rng.integers(0, 255, (200, 240, 3)).astype(np.uint8)
    pixels[mask > 0] = (200, 40, 60)
    Image.fromarray(mask if path.suffix == ".png" else pixels).save(path)


def make_labels(path: Path) -> None:
    """An index mask with one class, 2."""
    make_photo(path)
    Image.fromarray(np.asarray(Image.open(path)) // 127).save(path)


def make_photos(path: Path) -> None:
    """A folder of three photos."""
    path.mkdir()
    for index in range(3):
        Image.fromarray(shape_image((1, 2), seed=index)[0]).save(path / f"{index}.jpg")


def make_decoder(path: Path) -> None:
    """A small decoder with random weights."""
    save_tiny_decoder(path)


def make_scores(path: Path) -> None:
    """What `diffup evaluate` writes, of the decoder that `from_pretrained` gives."""
    data = LabelledFolder.open(make_folder(path.parent / "data"))
    candidate = Candidate("released", model.DiffUp(load_decoder(model.RELEASED), FakeBackbone(), "cpu"))
    rows = sweep([candidate], data, Plan(folds=(0,), episodes=2), EpisodeRecord(path.parent / "episodes.jsonl"))
    path.write_text(table.to_json(table.tabulate(rows, data.classes)))
    shutil.rmtree(path.parent / "data")


MAKERS: list[tuple[str, Callable[[Path], object]]] = [
    ("labels.png", make_labels),
    ("*.jpg", make_photo),
    ("*.png", make_photo),
    ("data/*", make_folder),
    ("*/decoder", make_decoder),
    ("*/scores.json", make_scores),
    ("photos", make_photos),
    ("coco", make_coco),
]
"""Pattern of a name, and what makes such a file or folder; the first that fits is taken."""

PHOTOS = ("query.jpg", "dog.jpg", "a.jpg", "b.jpg", "c.jpg", "dog_mask.png", "a.png", "labels.png")
"""Files that every page has."""


def make(name: str, folder: Path) -> None:
    """Make the file or folder of a name, unless it is there."""
    path = folder / name
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    next(maker for pattern, maker in MAKERS if Path(name).match(pattern))(path)
