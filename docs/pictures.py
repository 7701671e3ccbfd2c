"""Draw the pictures of the documentation: `python docs/pictures.py` writes docs/images.

The photos come with scikit-image and the weights with the package: nothing is downloaded. The screenshots of the web
page need Chromium. `made_with.json`, beside the pictures, records the decoder of each; `python docs/pictures.py
--check` compares it with the package's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "examples")]

from quickstart import Scene, coins, motorcycle, person, score  # noqa: E402
from scenes import OUTLINES, Outlined, eye, face, letters, wheels  # noqa: E402

from diffup import DiffUp, Points  # noqa: E402
from diffup.decoder.weights import decoder_hash, load_decoder  # noqa: E402
from diffup.inputs.annotations import Annotation  # noqa: E402
from diffup.inputs.support_picture import draw_annotation  # noqa: E402
from diffup.model import RELEASED  # noqa: E402
from diffup.utils.files import write_text  # noqa: E402
from diffup.utils.panels import Panel, stack, strip  # noqa: E402
from diffup.utils.pictures import RED, tint  # noqa: E402

ENCODERS = ("bundled:efficientnet_lite2", "bundled:efficientnet_lite0", "bundled:efficientnet_lite1")
HEIGHT, LARGE = 190, 400
QUALITY = {"front": 58, "borders": 54}
"""Quality of the JPEG files of large pictures; the others have 85."""

RECORD = "made_with.json"
WIDTH, LABEL, GAP, PAIR_GAP = 1440, 34, 6, 20
"""Sizes in the pictures of rows of equal width, in pixels; they are displayed at half their width."""


def grid(rows: list[list[Panel]]) -> Image.Image:
    """Arrange titled panels in rows."""
    return stack([strip(row, HEIGHT) for row in rows])


def given(scene: Scene, annotation: Annotation | None, label: str) -> Panel:
    """Draw the support with its annotation."""
    return Panel(label, draw_annotation(scene.support, annotation, LARGE))


def answer(model: DiffUp, scene: Scene, annotation: Annotation | None, label: str) -> Panel:
    """Segment the query and draw the mask on it."""
    result = model.segment(scene.query, support=scene.support, annotation=annotation)
    iou = score(result, scene.truth)
    return Panel(label if scene.truth is None else f"{label}: IoU {iou}", np.asarray(result.overlay()))


def annotations(model: DiffUp) -> Image.Image:
    """Draw results with four kinds of annotation: support astronaut in colour, query cameraman in grey."""
    scene = person()
    kinds: dict[str, Annotation | None] = {
        **scene.annotations,
        "points": Points([(225, 100), (220, 380)]),
        "none": None,
    }
    above = [given(scene, annotation, kind) for kind, annotation in kinds.items()]
    return grid([above, [answer(model, scene, annotation, kind) for kind, annotation in kinds.items()]])


def encoders(models: list[DiffUp]) -> Image.Image:
    """Draw results of the same decoder with three encoders: support one coin, query the others."""
    scene = coins()
    row = [given(scene, scene.annotations["mask"], "support")]
    return grid([row + [answer(m, scene, scene.annotations["mask"], m.backbone.name.split("_")[-1]) for m in models]])


def result_maps(model: DiffUp) -> Image.Image:
    """Draw all maps of one result."""
    scene = person()
    return model.segment(scene.query, support=scene.support, annotation=scene.annotations["box"]).overview(HEIGHT)


def failures(model: DiffUp) -> Image.Image:
    """Draw failures, each with its support."""
    bare = person()
    bare.annotations = {}
    panels = []
    for label, scene in (("thin strokes", letters()), ("no annotation", bare)):
        annotation = next(iter(scene.annotations.values()), None)
        panels += [given(scene, annotation, "support"), answer(model, scene, annotation, label)]
    return grid([panels[:2], panels[2:]])


def borders(model: DiffUp) -> Image.Image:
    """Draw outlines of masks as the decoder gives them, and refined: twelve tasks, two in a row."""
    tasks = [outlines(model, name, task) for name, task in OUTLINES.items()]
    return stack([_justified([*left, *right]) for left, right in zip(tasks[::2], tasks[1::2], strict=True)])


def outlines(model: DiffUp, name: str, task: Outlined) -> list[Panel]:
    """Draw the outline of a mask on a part of the query, without refinement and with it."""
    scene, panels = task.scene(), []
    result = model.segment(scene.query, support=scene.support, annotation=scene.annotations[task.annotation])
    for title, shown in ((name, replace(result, refine=False)), (task.outcome, result)):
        iou = "" if scene.truth is None else f", IoU {score(shown, scene.truth)}"
        part, mask = (Image.fromarray(array).crop(task.part) for array in (shown.image, shown.mask))
        size = round(LARGE * part.width / part.height), LARGE
        pixels = np.asarray(part.resize(size, Image.Resampling.LANCZOS))
        panels.append(Panel(title + iou, tint(pixels, np.asarray(mask.resize(size)), RED, 0)))
    return panels


def front(model: DiffUp) -> Image.Image:
    """Draw the first picture: results from one annotated image, five successes and a failure that is named.

    Each support is annotated by a box, shown in green. The masks in red are those of the released decoder with the
    package's encoder and default options.

    All photos come with scikit-image. The coins are cut from one photo, the cat's eyes from two halves of another, and
    the motorcycle and its wheels are in the two images of a stereo pair, of which one is mirrored. A true mask and so
    an IoU exists for the coins and for the man.
    """
    rows = []
    for names in (("coin", "motorcycle"), ("face", "person"), ("wheel", "eye")):
        row = []
        for name in names:
            scene = FRONT[name]()
            result = model.segment(scene.query, scene.support, scene.annotations["box"])
            found = "found" if name != "motorcycle" else "failure"
            iou = "" if scene.truth is None else f", IoU {score(result, scene.truth)}"
            row.append(given(scene, scene.annotations["box"], f"given: {name}"))
            row.append(Panel(found + iou, np.asarray(result.overlay())))
        rows.append(_justified(row))
    return stack(rows)


FRONT = {"coin": coins, "motorcycle": motorcycle, "face": face, "person": person, "wheel": wheels, "eye": eye}


def _justified(panels: list[Panel]) -> Image.Image:
    """Arrange labelled panels of one height over the full width; every second gap, between tasks, is wider."""
    gaps = [PAIR_GAP if i % 2 else GAP for i in range(len(panels) - 1)]
    aspects = [picture.shape[1] / picture.shape[0] for picture in (panel.pixels for panel in panels)]
    height = round((WIDTH - sum(gaps)) / sum(aspects))
    row = Image.new("RGB", (WIDTH, LABEL + height + GAP), "white")
    draw, font, left = ImageDraw.Draw(row), ImageFont.load_default(26), 0
    for panel, aspect, gap in zip(panels, aspects, [*gaps, 0], strict=True):
        size = round(height * aspect), height
        row.paste(Image.fromarray(panel.pixels).resize(size, Image.Resampling.LANCZOS), (left, LABEL))
        draw.text((left, 2), panel.title, "#b00020" if panel.title.startswith("failure") else "black", font)
        left += size[0] + gap
    return row


def draw(folder: Path, model: DiffUp) -> list[str]:
    """Draw all pictures but the screenshots, in a folder that exists; the names of the files."""
    models = [model, *(model.upgrade(name) for name in ENCODERS[1:])]
    pictures = {
        "front": lambda: front(model),
        "annotations": lambda: annotations(model),
        "encoders": lambda: encoders(models),
        "result": lambda: result_maps(model),
        "borders": lambda: borders(model),
        "failures": lambda: failures(model),
    }
    for name, make in pictures.items():
        path = folder / f"{name}.jpg"
        make().convert("RGB").save(path, quality=QUALITY.get(name, 85), optimize=True)
        print(path)
    return [f"{name}.jpg" for name in pictures]


def screenshots(folder: Path) -> list[str]:
    """Take the screenshots of the web page, as the test in the browser does; the names of the files."""
    test = "tests/test_demo_browser.py::test_a_phone_needs_no_long_way"
    names = ["demo_desktop.png", "demo_phone.png"]
    with tempfile.TemporaryDirectory() as taken:
        environment = {**os.environ, "DIFFUP_SCREENSHOTS": taken}
        subprocess.run([sys.executable, "-m", "pytest", "-q", test], cwd=ROOT, env=environment, check=True)
        missing = [name for name in names if not (Path(taken) / name).exists()]
        if missing:
            raise SystemExit(f"{', '.join(missing)}: not made, for want of Chromium or of the extra dev")
        for name in names:  # 64 colours: a third of the size, and hardly a visible difference
            Image.open(Path(taken) / name).convert("RGB").quantize(64).save(folder / name, optimize=True)
    return names


def record(folder: Path, names: list[str], decoder: str) -> None:
    """Record the decoder of pictures, and hashes by which these are recognised; other pictures keep their record."""
    path = folder / RECORD
    made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    made |= {name: {"decoder": decoder, "sha256": digest(folder / name)} for name in names}
    there = {name: made[name] for name in sorted(made) if (folder / name).exists()}
    write_text(path, json.dumps(there, indent=2) + "\n")


def outdated(folder: Path, decoder: str) -> list[str]:
    """Names of the pictures in a folder that are not recorded as made with a decoder, and of recorded ones not there.

    Args:
        folder: folder of the pictures and their record.
        decoder: hash of the decoder (`decoder_hash`).
    """
    made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    there = {path.name for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".webp")}
    current = {
        name for name in there & set(made) if made[name] == {"decoder": decoder, "sha256": digest(folder / name)}
    }
    return sorted((there | set(made)) - current)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder for the pictures")
    parser.add_argument("--check", action="store_true", help="make nothing, and fail if a picture is of other weights")
    args = parser.parse_args(argv)
    if args.check:
        old = outdated(args.output, decoder_hash(load_decoder(RELEASED)))
        remedy = "run docs/pictures.py, and docs/recording.py for demo.webp"
        raise SystemExit(f"not of the released decoder: {', '.join(old)}; {remedy}" if old else 0)
    args.output.mkdir(parents=True, exist_ok=True)
    model = DiffUp.from_pretrained(backbone=ENCODERS[0])
    record(args.output, draw(args.output, model) + screenshots(args.output), decoder_hash(model.decoder))


if __name__ == "__main__":
    main()
