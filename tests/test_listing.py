"""What is found in a folder of photos, and that everything else is named with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffup.errors import DataError
from diffup.inputs.images import is_image_name, read_image
from diffup.labelling.listing import HIDDEN, OTHER, list_images, summary


def written_endings() -> list[tuple[str, str]]:
    """Endings of all formats that Pillow writes here and reads again, with the mode of the picture."""
    Image.init()
    found = []
    for ending, file_format in sorted(Image.registered_extensions().items()):
        if file_format in Image.SAVE and file_format not in (
            "PDF",
            "PALM",
            "EPS",
            "WMF",
            "BUFR",
            "GRIB",
            "HDF5",
            "ICNS",
        ):
            found.append((ending, {"MSP": "1", "XBM": "1", "BLP": "P"}.get(file_format, "RGB")))
    return found


@pytest.mark.parametrize(("ending", "mode"), written_endings())
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_every_format_that_is_read_is_found(ending: str, mode: str, case: object, tmp_path: Path) -> None:
    name = f"a{case(ending)}"
    picture = Image.new("RGB", (16, 16), (250, 250, 250)).convert(mode)
    try:
        picture.save(tmp_path / name, format=Image.registered_extensions()[ending])
    except (OSError, ValueError):
        picture.convert("L").save(tmp_path / name, format=Image.registered_extensions()[ending])
    assert read_image(tmp_path / name).shape == (3, 16, 16)
    assert list_images(tmp_path).images == [name]


def test_what_is_not_read_is_not_taken_for_an_image() -> None:
    names = ("a.pdf", "a.mpg", "a.eps", "a.ps", "a.wmf", "a.h5", "a.txt", "a", ".png", "a.png.txt")
    assert not [name for name in names if is_image_name(name)]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.png", "notes.txt", "clip.mpg", "sub/b.JPG", "sub/.c.png", ".git/d.png")
    listing = list_images(folder)
    assert listing.images == ["a.png", "sub/b.JPG"] and listing.failed == {}
    assert listing.left_out == {"notes.txt": OTHER, "clip.mpg": OTHER, "sub/.c.png": HIDDEN, ".git/": HIDDEN}
    assert summary(listing.left_out) == f"2 ({HIDDEN}): .git/, sub/.c.png; 2 ({OTHER}): clip.mpg, notes.txt"
    assert summary({f"{n:02}": "x" for n in range(12)}).endswith("08, 09 and 2 more") and summary({}) == ""


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder, far = touch(tmp_path / "in", "a.png", "own/b.png"), touch(tmp_path / "far", "z.jpg", "deep/y.jpg")
    (folder / "file.png").symlink_to(far / "z.jpg")
    (folder / "linked").symlink_to(far)
    (folder / "again").symlink_to(far / "deep")
    (folder / "also").symlink_to(folder / "own")
    (folder / "self").symlink_to(folder)
    (folder / "own" / "up").symlink_to("..")
    (far / "back").symlink_to(folder / "own")
    (far / "over").symlink_to(tmp_path)
    listing = list_images(folder)
    # What a link shows is found under one name: its own folder's if that lies within, else the first link's.
    assert listing.images == ["a.png", "again/y.jpg", "file.png", "linked/z.jpg", "own/b.png"]
    assert listing.failed == {}
    assert sorted(listing.left_out) == ["also/", "linked/back/", "linked/deep/", "linked/over/", "own/up/", "self/"]
    assert listing.left_out["also/"] == "the same folder as own"
    assert "which holds this folder" in listing.left_out["linked/over/"]


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "gone.jpg").symlink_to("/nowhere.jpg")
    (tmp_path / "round.png").symlink_to("round.png")
    (tmp_path / "folder").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_images(tmp_path)
    assert listing.images == ["a.png"]
    assert listing.failed["gone.jpg"] == "a link to /nowhere.jpg, which is not there"
    assert set(listing.failed) == {"gone.jpg", "round.png", "pipe.png"}
    assert listing.left_out == {"folder": "a link to /nowhere, which is not there"}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    touch(tmp_path, "good.png", 'é\n😀,".png')
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))).touch()
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    listing = list_images(tmp_path)
    assert listing.images == ["good.png", 'é\n😀,".png']
    assert list(listing.failed) == ["caf\\udce9.jpg"] and "rename it" in listing.failed["caf\\udce9.jpg"]


def test_folders_without_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        list_images(tmp_path / "none")
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"holds no image .*It has 1 \(no image by its ending\): notes\.txt"):
        list_images(tmp_path)


def test_a_folder_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = touch(tmp_path, "a.png", "secret/b.png"), os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list_images(folder).left_out == {"secret/": "cannot be opened (Permission denied)"}


def test_backgrounds_and_mask_folders_find_the_same_endings(tmp_path: Path) -> None:
    from diffup.formats import read_mask_folder
    from diffup.training.prepare import list_photos

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.JFIF", format="JPEG")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.GIF")
    shots = read_mask_folder(tmp_path / "images", tmp_path / "masks")
    assert list(shots.support) == [tmp_path / "images" / "a.JFIF"]
    assert list_photos(tmp_path / "images") == (tmp_path / "images" / "a.JFIF",)
