"""Record a session of the web page: `python docs/recording.py` writes docs/images/demo.webp.

The session is a list of steps, each with the picture of a state of the page and the time for which it is shown, so that
the recording does not depend on how fast the machine is. The photos come with scikit-image. It needs Chromium and the
extra `dev`. `made_with.json` records the decoder, as for the other pictures (`docs/pictures.py`).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.filters import threshold_otsu

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "docs")]

import browsers  # noqa: E402
from pictures import ENCODERS, record  # noqa: E402

from diffup import DiffUp  # noqa: E402
from diffup.data.base import Target  # noqa: E402
from diffup.decoder.weights import decoder_hash  # noqa: E402
from diffup.demo.encoders import Encoders  # noqa: E402
from diffup.demo.scenes import coins  # noqa: E402
from diffup.demo.serve import running  # noqa: E402
from diffup.evaluation.clicks import next_click  # noqa: E402

NAME = "demo.webp"
WINDOW, WIDTH, CAPTION = (1280, 840), 960, 34
"""Size of the window, and width of the recording and height of its captions, in pixels."""

STROKE = [(0.27, 0.58), (0.35, 0.48), (0.44, 0.37), (0.57, 0.44), (0.71, 0.51)]
"""The way of the mouse over the coin, as fractions of the image."""

_POINTER = [(0, 0), (0, 16), (4, 12), (7, 18), (10, 17), (7, 11), (12, 11)]

_FILES = "(display) => { document.querySelector('#files-part').style.display = display; }"


class Recorder:
    """The pictures of a session.

    Args:
        page: page of the browser.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.times: list[int] = []
        self.mouse: tuple[float, float] | None = None

    def show(self, caption: str, seconds: float) -> None:
        """Take a picture of the page as it is.

        Args:
            caption: what is done.
            seconds: how long it is shown.
        """
        self.page.wait_for_function("[...document.images].every((image) => image.complete)")
        shot = Image.open(io.BytesIO(self.page.screenshot(animations="disabled", caret="hide"))).convert("RGB")
        if self.mouse is not None:
            corners = [(self.mouse[0] + x, self.mouse[1] + y) for x, y in _POINTER]
            ImageDraw.Draw(shot).polygon(corners, "black", "white")
        height = round(WINDOW[1] * WIDTH / WINDOW[0])
        frame = Image.new("RGB", (WIDTH, height + CAPTION), (32, 36, 42))
        frame.paste(shot.resize((WIDTH, height), Image.Resampling.LANCZOS))
        middle = (WIDTH / 2, height + CAPTION / 2)
        ImageDraw.Draw(frame).text(middle, caption, "white", ImageFont.load_default(17), anchor="mm")
        self.frames.append(frame)
        self.times.append(round(1000 * seconds))

    def over(self, canvas: str, x: float, y: float) -> tuple[float, float]:
        """Move the pointer to a place of a canvas' picture, in fractions, and return where in the window it is."""
        self.mouse = browsers.place(self.page, canvas, x, y)
        self.page.mouse.move(*self.mouse)
        return self.mouse

    def at(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        box = self.page.locator(selector).first.bounding_box()
        self.mouse = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.mouse.move(*self.mouse)

    def save(self, path: Path) -> None:
        """Write the recording."""
        first, *rest = self.frames
        first.save(path, save_all=True, append_images=rest, duration=self.times, loop=0, quality=60, method=6)


def play(recorder: Recorder, folder: Path) -> None:
    """Play the session.

    Args:
        recorder: takes the pictures.
        folder: path of a folder with the files `coin.png` and those of the scene's photos.
    """
    page, scene = recorder.page, coins()
    recorder.show("diffup demo", 1.5)
    browsers.load_image(page, folder / "coin.png")
    page.fill("#name :is(input, textarea)", "coin")
    recorder.show("Load an image of the object, and name it", 2)
    page.click("#editor [data-tool=scribble]")
    recorder.at("#editor [data-tool=scribble]")
    recorder.show("Choose a tool: points, box, scribble, outline, brush", 1.5)
    recorder.over("#editor", *STROKE[0])
    page.mouse.down()
    for place in STROKE[1:]:
        recorder.over("#editor", *place)
        recorder.show("Draw a stroke over the coin", 0.5)
    page.mouse.up()
    recorder.at("#add")
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 1)
    recorder.show("Add it as an example", 1.5)
    browsers.add_photos(page, *(folder / name for name in scene.photos))
    recorder.at("#add-photos")
    recorder.show("Add photos, as many as you like", 2)
    recorder.at("#find")
    page.click("#find")
    page.wait_for_selector("#progress progress")
    recorder.show("Find", 1)
    page.wait_for_selector("#progress:has-text('Done: 3')")
    page.wait_for_selector("#find:not([disabled])")
    recorder.show("The most doubtful photo comes first: there is no coin in it", 3)
    recorder.at("#result [data-do=none]")
    page.click("#result [data-do=none]")
    browsers.answered(page)
    recorder.show("None here (X)", 2)
    recorder.mouse = None
    for number in (2, 3):
        browsers.press(page, "ArrowRight", f"{number} of 3")
        browsers.answered(page)
        recorder.show("The next photo (right arrow)", 1.5)
    page.evaluate(_FILES, "none")  # they are read below, and shown at the end
    clicks(recorder)
    browsers.press(page, "e", "example")
    browsers.count(page, "#examples .thumbnail-item", 2)
    recorder.mouse = None
    recorder.show("Use it as an example (E)", 2.5)
    page.keyboard.press("f")
    page.wait_for_selector("#progress:has-text('Done: 1')")
    page.wait_for_selector("#find:not([disabled])")
    recorder.show("Find again (F): the other photo, with two examples", 3)
    page.evaluate(_FILES, "")
    page.click("#make")
    page.wait_for_selector("#files a[href]")
    page.locator("#files").scroll_into_view_if_needed()
    recorder.show("Masks, COCO JSON and prototypes to take along", 3)


def clicks(recorder: Recorder) -> None:
    """Correct the photo that is shown by two clicks, each in the middle of the largest error."""
    page, photos = recorder.page, coins().photos
    name = page.inner_text("#result .title").split(": ")[1].split(" ·")[0]
    grey = photos[name][..., 0]
    truth = ndimage.binary_fill_holes(ndimage.binary_closing(grey > threshold_otsu(grey), iterations=2))
    for _ in range(2):
        found = browsers.labels(browsers.files(page, page.url), f"{list(photos).index(name) + 1}_{Path(name).stem}")
        click = next_click(found > 0, Target(truth, np.zeros_like(truth)))
        if click is None:
            return
        (x, y), more = (click.points or click.negative)[0], bool(click.points)
        at = (x + 0.5) / truth.shape[1], (y + 0.5) / truth.shape[0]
        page.mouse.click(*recorder.over("#result", *at), button="left" if more else "right")
        browsers.answered(page)
        recorder.show("Click: more of it" if more else "Right-click: not this", 2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder for the recording")
    folder = parser.parse_args(argv).output
    model = DiffUp.from_pretrained(backbone=ENCODERS[0], device="cpu")
    scene = coins()
    with tempfile.TemporaryDirectory() as files, running(Encoders(model), port=0) as address:
        assert scene.examples[0].image is not None
        for name, image in {"coin.png": scene.examples[0].image, **scene.photos}.items():
            Image.fromarray(image).save(Path(files) / name)
        with browsers.browsing(address, Path(files), WINDOW) as page:
            recorder = Recorder(page)
            play(recorder, Path(files))
    recorder.save(folder / NAME)
    record(folder, [NAME], decoder_hash(model.decoder))
    size = (folder / NAME).stat().st_size
    print(f"{folder / NAME}: {len(recorder.frames)} pictures, {sum(recorder.times) / 1000:.0f} s, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
