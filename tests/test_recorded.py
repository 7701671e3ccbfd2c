"""Texts and paths as other systems' programs recorded them mean the file that is there, or are refused."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from diffup.errors import DataError, FormatError
from diffup.inputs.images import image_suffixes, is_image_name
from diffup.inputs.recorded import Files, Names, read_json, read_text, without_ending

NFC, NFD = unicodedata.normalize("NFC", "Küche é.png"), unicodedata.normalize("NFD", "Küche é.png")


def tree(root: Path, *names: str) -> Files:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Files(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_are_read_in_the_encoding_that_they_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps({"é": "猫🐈"}, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "a.json") == {"é": "猫🐈"}
    assert read_text(tmp_path / "a.json") == '{"é": "猫🐈"}'
    (tmp_path / "be.txt").write_bytes(b"\xfe\xff" + "é".encode("utf-16-be"))
    assert read_text(tmp_path / "be.txt") == "é"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"a": "é"}'.encode("cp1252"), r"a\.json: cannot be read as text .* Save it as UTF-8"),
        (b"\xff\xfe\x00", r"a\.json: cannot be read as text"),
        (b"{", r"a\.json: cannot be read as JSON"),
        (b"[1]", r"a\.json: expected a JSON object"),
        (b"[" * 100_000, r"a\.json: cannot be read as JSON"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FormatError, match=match):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=match):
        read_json(tmp_path / "a.json", DataError)
    with pytest.raises(FormatError, match=r"gone\.json: cannot be read"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("recorded", "there"),
    [
        ("img/a.png", "img/a.png"),
        ("img\\a.png", "img/a.png"),
        (".\\img\\a.png", "img/a.png"),
        ("C:\\data\\img\\a.png", "img/a.png"),
        ("c:/data/img/a.png", "img/a.png"),
        ("\\\\server\\share\\img\\a.png", "img/a.png"),
        ("/home/me/set/img/a.png", "img/a.png"),
        ("file:///home/me/set/img/a.png", "img/a.png"),
        ("file:///C:/data/img/a.png", "img/a.png"),
        ("file://server/share/img/a.png", "img/a.png"),
        ("s3://bucket/set/img/a.png", "img/a.png"),
        ("https://host/img/a.png?sign=1", "img/a.png"),
        ("/data/local-files/?d=img/a.png", "img/a.png"),
        ("/data/local-files/?d=img%5Ca.png", "img/a.png"),
        ("..\\..\\media\\upload\\4\\a.png", "a.png"),
        ("images/a.png", "a.png"),
        ("img/A.PNG", "img/a.png"),
        ("a.JPG", "a.jpg"),
        ("a.jpg", "a.JPG"),
        ("IMG\\A.Jpg", "img/a.jpg"),
        (NFC, NFD),
        (NFD, NFC),
        (f"C:\\{NFD}".upper(), NFC),
        (f"img\\{NFC}", f"img/{NFD}"),
        (NFC, NFC),
        ("K%C3%BCche%20%C3%A9.png", NFD),
        ("a%20b.png", "a%20b.png"),
        ("img\\a.png", "img\\a.png"),
        ("猫/🐈.png", "猫/🐈.png"),
        ("a:b.png", "a:b.png"),
    ],
)
def test_recorded_paths_mean_the_file_that_is_there(tmp_path: Path, recorded: str, there: str) -> None:
    files = tree(tmp_path, there)
    assert files.find(recorded, "it") == tmp_path / there


def test_a_file_elsewhere_is_taken_where_the_path_is_its_own(tmp_path: Path) -> None:
    files = tree(tmp_path / "set", "b.png")
    (tmp_path / "a b.png").touch()
    for own in (str(tmp_path / "a b.png"), (tmp_path / "a b.png").as_uri(), "../a b.png", "..\\a b.png"):
        assert files.find(own, "it").samefile(tmp_path / "a b.png")
    with pytest.raises(FormatError, match="is a URL, and URLs are not fetched"):  # its path is not this machine's
        files.find("s3:/" + str(tmp_path / "a b.png"), "it")


@pytest.mark.parametrize(
    ("recorded", "there"),
    [
        ("a.png", ["a.PNG", "a.Png"]),
        ("A.png", ["a.PNG", "a.Png"]),
        ("D:\\x\\img\\a.png", ["img/a.png", "a.png"]),
        ("IMG/a.png", ["img/a.png", "Img/a.png"]),
    ],
)
def test_where_two_files_fit_none_is_chosen(tmp_path: Path, recorded: str, there: list[str]) -> None:
    with pytest.raises(FormatError, match=r"it: .* may be .*[aA]\.(png|PNG|Png) or .*[aA]\.(png|PNG|Png)"):
        tree(tmp_path, *there).find(recorded, "it")


def test_the_stricter_likeness_decides(tmp_path: Path) -> None:
    files = tree(tmp_path, NFC, NFD, "a.PNG", "A.PNG", "img/b.png", "b.png")
    assert files.find(NFC, "it").name == NFC and files.find(NFD, "it").name == NFD
    assert files.find("a.png", "it").name == "a.PNG" and files.find("A.png", "it").name == "A.PNG"
    assert files.find("img\\b.png", "it") == tmp_path / "img/b.png", "the whole path is there"


@pytest.mark.parametrize(
    "recorded", ["gone.png", "", ".", "/", "a\0.png", "\ud800.png", "x" * 5000, "img", "..", "C:\\"]
)
def test_what_is_not_there_is_refused(tmp_path: Path, recorded: str) -> None:
    with pytest.raises(DataError, match=r"it: .* is no file in"):
        tree(tmp_path, "img/a.png").find(recorded, "it", DataError)


def test_likeness_and_endings() -> None:
    names = Names(["Ä.png", "b.jpg", "B.jpg"])
    assert names.like("ä.PNG") == ["Ä.png"] and names.like("b.jpg") == ["b.jpg"] and names.like("c") == []
    assert sorted(names.like("b.JPG")) == ["b.jpg"]
    assert {".jpg", ".jfif", ".avif", ".tiff", ".jp2", ".ppm"} < image_suffixes() and ".mpg" not in image_suffixes()
    assert is_image_name("a.JPEG") and not is_image_name("a.json")
    assert [without_ending(n) for n in ("x/a.JPG", "img.2024", "a.jpg.png")] == ["x/a", "img.2024", "a.jpg"]
