"""Names of label files, and texts that hold any name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diffup.errors import FormatError
from diffup.labelling.files import names_of, yaml_string
from diffup.labelling.summaries import _coco, _yolo_data
from diffup.labelling.table import quality_table
from diffup.utils.files import write_text

yaml = pytest.importorskip("yaml")

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ODD = (
    "😀 dog",
    "👨‍👩‍👧",
    'say "hi"',
    "a: b # c",
    "yes",
    "no",
    "null",
    "~",
    "1",
    "1e3",
    "0x1f",
    "- a",
    "a\\n",
    "\x00",
    "\x07",
)
ODD += (
    "\x7f",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ufffe",
    "a\r\nb\tc",
    " padded ",
    "",
    "=1+1",
    "@x",
    "a;b",
    "a,b",
    "犬",
    "é",
    "!!python/x",
)


@given(st.lists(TEXT, max_size=4))
@example(list(ODD))
def test_yaml_holds_any_name(names: list[str]) -> None:
    text = _yolo_data(names)
    assert text.isascii()
    assert (yaml.safe_load(text)["names"] or {}) == dict(enumerate(names))
    for loader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        assert (yaml.load(text, loader)["names"] or {}) == dict(enumerate(names))


@given(TEXT)
def test_a_yaml_string_is_one_line(text: str) -> None:
    assert len(yaml_string(text).splitlines()) == 1


@pytest.mark.parametrize("name", ["\ud83d", "dog \udce9"])
def test_halves_of_characters_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="half a character"):
        _yolo_data([name])
    with pytest.raises(FormatError, match=r"a\.csv.*half a character"):
        write_text(tmp_path / "a.csv", name)
    assert not list(tmp_path.iterdir())


def entry(image: str, names: list[str]) -> dict[str, object]:
    figures = {"presence": 0.75, "present": True, "quality": 0.5, "score": 0.25, "area_fraction": 0.5}
    classes = [{"name": name, **figures} for name in names]
    return {"image": image, "classes": classes, "width": 1, "height": 1, "coco": []}


CSV_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@given(CSV_TEXT, st.lists(CSV_TEXT, min_size=1, max_size=3, unique=True))
@example('a,"b"\n.png', ['x;"y"', "=cmd", "a,b", "\r", "\u2028"])
def test_the_table_holds_any_name(image: str, names: list[str]) -> None:
    with io.StringIO(quality_table([entry(image, names)], names), newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == image and row["error"] == ""
    assert next(csv.reader(io.StringIO(row["found"], newline=""), delimiter=";")) == names
    assert [row[f"quality {name}"] for name in names] == ["0.5000"] * len(names) and row["doubt"] == "0.7500"


@given(TEXT, TEXT)
@example("é😀\n.png", "😀")
def test_coco_holds_any_name(image: str, name: str) -> None:
    text = _coco([entry(image, [name])], [name])
    document = json.loads(text.encode("utf-8"))
    assert document["images"][0]["file_name"] == image and document["categories"][0]["name"] == name


def test_names_of_files() -> None:
    assert names_of(["a.jpg", "b.png", "sub/a.png"], {}) == {"a.jpg": "a", "b.png": "b", "sub/a.png": "sub/a"}
    assert names_of(["a.jpg", "a.png"], {}) == {"a.jpg": "a.jpg", "a.png": "a.png"}
    # What has a name keeps it.
    assert names_of(["a.jpg", "a.png"], {"a.jpg": "a"}) == {"a.jpg": "a", "a.png": "a.png"}
    assert names_of(["a.png"], {"a.jpg": "a"}) == {"a.png": "a.png"}
    # A whole name may be another's without its ending, and a folder's.
    assert names_of(["a.jpg", "a.jpg.bmp", "a.png"], {}) == {
        "a.jpg": "a.jpg",
        "a.jpg.bmp": "a.jpg.bmp",
        "a.png": "a.png",
    }
    assert names_of(["x.jpg", "x.png/y.jpg"], {}) == {"x.jpg": "x.jpg", "x.png/y.jpg": "x.png/y"}


NAMES = st.from_regex(r"[aA](\.(jpg|JPG|png|txt)){0,2}(/[aAéé](\.jpg|\.png){1,2})?", fullmatch=True)


@given(st.sets(NAMES.map(lambda name: f"{name}.bmp") | NAMES, max_size=8))
def test_no_two_images_share_a_file(images: set[str]) -> None:
    import unicodedata

    folders = {str(parent) for image in images for parent in Path(image).parents}
    images = images - folders  # no disk holds a file and a folder of one name
    names = names_of(images, {})
    keys = [unicodedata.normalize("NFC", name).casefold() for name in names.values()]
    assert len(set(keys)) == len(images) == len(names)
    taken = {unicodedata.normalize("NFC", str(p)).casefold() for name in names.values() for p in Path(name).parents}
    assert not [key for key in keys for ending in (".png", ".jpg", ".txt") if f"{key}{ending}" in taken]
    assert names == names_of(sorted(images, reverse=True), {})
