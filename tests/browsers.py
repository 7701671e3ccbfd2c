"""What the tests of the web page in headless Chromium build on. They wait for states of the page, never for a time."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


@contextlib.contextmanager
def browsing(address: str, folder: Path, size: tuple[int, int] = (1280, 800), touch: bool = False) -> Iterator[Any]:
    """The page in a browser; nothing may be asked of any other host, and no script may fail."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            folder / "profile",
            executable_path=CHROMIUM,
            args=FLAGS,
            viewport={"width": size[0], "height": size[1]},
            has_touch=touch,
        )
        page = browser.pages[0]
        page.set_default_timeout(PATIENCE)
        foreign: list[str] = []
        failed: list[str] = []
        own = (address, address.replace("http", "ws", 1), "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#editor .hint:not(:empty)")  # the script of the canvases has run
        yield page
        browser.close()
        assert not foreign and not failed


def load_scene(page: Any, name: str) -> None:
    """Press the button of a scene, and wait until its photo is there."""
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_selector("#editor img:not([hidden])")
    page.wait_for_selector("#result img:not([hidden])")
    page.wait_for_selector("#examples .thumbnail-item")


def add_photos(page: Any, *paths: Path) -> None:
    """Add photos, and wait until the list has them."""
    before = page.locator("#photos .thumbnail-item").count()
    page.locator("#finding input[type=file]").set_input_files(list(paths))
    count(page, "#photos .thumbnail-item", before + len(paths))


def load_image(page: Any, path: Path) -> None:
    """Load the image of an example."""
    before = page.locator("#editor img").get_attribute("src") or ""
    page.locator("#naming input[type=file]").set_input_files(path)
    changed(page, "#editor img", before)


def find(page: Any) -> None:
    """Press 'Find', and wait until all is done."""
    page.click("#find")
    page.wait_for_selector("#progress:has-text('Done:'), #progress:has-text('up to date')")
    page.wait_for_selector("#find:not([disabled]):has-text('Find')")
    page.wait_for_selector("#result .frame.ready")


def count(page: Any, selector: str, number: int) -> None:
    """Wait until there are so many elements."""
    page.wait_for_function(
        "([selector, number]) => document.querySelectorAll(selector).length === number", arg=[selector, number]
    )


def changed(page: Any, selector: str, before: str | None) -> None:
    """Wait until an image has another source, and is displayed."""
    page.wait_for_function(
        """([selector, before]) => {
            const image = document.querySelector(selector);
            return image && image.src && image.getAttribute("src") !== before && image.complete && image.naturalWidth;
        }""",
        arg=[selector, before],
    )


def place(page: Any, canvas: str, x: float, y: float) -> tuple[float, float]:
    """Where in the window a place of a canvas' picture is; x and y are fractions of the picture."""
    page.locator(f"{canvas} img").scroll_into_view_if_needed()
    page.wait_for_function("(selector) => document.querySelector(selector).complete", arg=f"{canvas} img")
    box = page.locator(f"{canvas} img").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page: Any, canvas: str, path: list[tuple[float, float]], button: str = "left") -> None:
    """Draw along a path in fractions of the picture."""
    places = [place(page, canvas, x, y) for x, y in path]
    page.mouse.move(*places[0])
    page.mouse.down(button=button)
    for at in places[1:]:
        page.mouse.move(*at, steps=12)
    page.mouse.up(button=button)


def correct(page: Any, x: float, y: float, *, button: str = "left", shift: bool = False) -> None:
    """Click on the result, and wait for the corrected one."""
    at = place(page, "#result", x, y)
    if shift:
        page.keyboard.down("Shift")
    page.mouse.click(*at, button=button)
    if shift:
        page.keyboard.up("Shift")
    answered(page)


def answered(page: Any) -> None:
    """Wait until all that was done at the result is shown."""
    page.wait_for_selector("#result .frame:not(.busy)")
    page.wait_for_function("document.querySelector('#result img').complete")


def press(page: Any, key: str, title: str) -> None:
    """Press a key, and wait until the title of the result has this text."""
    page.keyboard.press(key)
    titled(page, title)


def titled(page: Any, title: str) -> None:
    """Wait until the title of the result has this text."""
    page.wait_for_selector(f"#result .title:has-text('{title}')")


def captions(page: Any) -> list[str]:
    """What is written at the photos in the list."""
    return [text.strip() for text in page.locator("#photos .thumbnail-item").all_inner_texts()]


def told(page: Any, text: str) -> None:
    """Wait for a message and close it."""
    page.wait_for_selector(f".toast-body:has-text('{text}')")
    for close in page.locator(".toast-close").all():
        close.click()
    page.wait_for_selector(f".toast-body:has-text('{text}')", state="detached")


def files(page: Any, address: str) -> dict[str, bytes]:
    """Make the files, and their contents: those of the archive by their names in it."""
    page.evaluate("() => document.querySelectorAll('#files a[href]').forEach((link) => (link.dataset.old = '1'))")
    page.click("#make")
    page.wait_for_selector("#files a[href]:not([data-old])", state="attached")
    page.wait_for_selector("#make:not([disabled])")
    found = {}
    for link in page.locator("#files a[href]").all():
        href = link.get_attribute("href")
        assert href.startswith(address)
        with urlopen(href) as answer:
            found[href.rsplit("/", 1)[-1]] = answer.read()
            assert "default-src 'self'" in answer.headers["content-security-policy"]
    with zipfile.ZipFile(io.BytesIO(found.pop("diffup.zip"))) as archive:
        return found | {name: archive.read(name) for name in archive.namelist()}


def labels(found: dict[str, bytes], stem: str) -> np.ndarray:
    """The label map of a photo."""
    return np.asarray(Image.open(io.BytesIO(found[f"labels/{stem}.png"])))


def uploads() -> Path:
    """Folder of the page's files while it is served."""
    return Path(os.environ["GRADIO_TEMP_DIR"])


def wait_until_seen(page: Any, selector: str) -> None:
    """Wait until the whole element is in the window."""
    page.wait_for_function(
        """(selector) => {
            const box = document.querySelector(selector)?.getBoundingClientRect();
            return box && box.height > 0 && box.top >= 0 && box.bottom <= window.innerHeight;
        }""",
        arg=selector,
    )


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum())
