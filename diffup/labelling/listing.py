"""Listing of a folder of photos: images, images that cannot be used, and skipped files, with the reasons."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diffup.errors import DataError
from diffup.inputs.images import is_image_name

HIDDEN = "hidden"
OTHER = "no image by its ending"
NOT_UTF8 = "its name is not UTF-8, which no label file can hold; rename it"
_NAMED = 10  # maximum number of names in a message; the rest are counted


@dataclass(frozen=True)
class Listing:
    """The images in a folder and its subfolders. All names are relative to it, with forward slashes.

    Attributes:
        images: sorted names of the images.
        failed: reasons why images cannot be used, whatever their content, by name.
        left_out: reasons why files and folders (with a trailing slash) were skipped, by name.
        folders: names of the folders that were searched, by resolved path.
    """

    images: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    folders: dict[Path, str] = field(default_factory=dict)


def list_images(folder: Path) -> Listing:
    """List the images of a folder and its subfolders by their file endings.

    Links to folders are followed, but each folder is searched only once, even if links form a circle. Names that begin
    with a dot are skipped.

    Args:
        folder: path of the folder.

    Raises:
        DataError: the folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"folder: there is no folder {str(folder)!r}")
    listing, waiting, links = Listing(), [""], list[str]()
    while waiting or links:
        # Links come last, so that a folder has its own name rather than that of a link to it.
        name = waiting.pop() if waiting else links.pop(0)
        reason = _look_through(folder, name, listing, waiting, links)
        if reason is not None:
            listing.left_out[f"{printable(name)}/"] = reason
    return _checked(listing, str(folder))


def list_names(names: Iterable[str], folder: str) -> Listing:
    """List the images among the files of an object store.

    Args:
        names: names of all files below the folder, relative to it.
        folder: URL of the folder, for the error message.

    Raises:
        DataError: there is no image among them.
    """
    listing = Listing()
    for name in names:
        parts = name.split("/")
        hidden = next((index for index, part in enumerate(parts) if part.startswith(".")), None)
        if hidden is not None:
            within = hidden < len(parts) - 1
            listing.left_out[printable("/".join(parts[: hidden + 1])) + "/" * within] = HIDDEN
        elif not is_image_name(name):
            listing.left_out[printable(name)] = OTHER
        elif (problem := _problem_of(name)) is not None:
            listing.failed[printable(name)] = problem
        else:
            listing.images.append(name)
    return _checked(listing, folder)


def _problem_of(name: str) -> str | None:
    """Why no label file may be named after an object, whose name, unlike a file's, may hold anything."""
    if printable(name) != name:
        return NOT_UTF8
    if "\0" in name:
        return "its name has a null character, which no file's may have; rename it"
    if ".." in name.split("\\"):  # Windows would leave the folder
        return r"its name has the folder ..\, which leads out of the folder of the results; rename it"
    return None


def _checked(listing: Listing, folder: str) -> Listing:
    """Sort the images of a listing.

    Raises:
        DataError: there are none.
    """
    if not listing.images:
        nothing = [f" It has {said}." for said in (summary(listing.failed), summary(listing.left_out)) if said]
        raise DataError(
            f"folder: {folder} holds no image (.jpg, .png and all other endings of the formats that Pillow reads) in "
            f"it and its subfolders.{''.join(nothing)}"
        )
    listing.images.sort()
    return listing


def summary(reasons: dict[str, str]) -> str:
    """Summarise reasons in one line: for each reason the number of names, and the first of them.

    Args:
        reasons: reasons by name; the summary of none is empty.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in sorted(reasons.items()):
        groups.setdefault(reason, []).append(name)
    said = []
    for reason, names in groups.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        said.append(f"{len(names)} ({reason}): {', '.join(names[:_NAMED])}{more}")
    return "; ".join(said)


def printable(name: str) -> str:
    r"""Return a file name as valid Unicode; bytes that are not become `\udcNN`.

    Args:
        name: name of a file, which may hold surrogate escapes.
    """
    return name.encode("utf-8", "backslashreplace").decode()


def _look_through(folder: Path, name: str, listing: Listing, waiting: list[str], links: list[str]) -> str | None:
    """Classify the entries of one folder; return the reason if the folder is skipped, else None.

    Args:
        folder: root folder of the listing.
        name: name of the folder to search, relative to `folder`.
        listing: listing to which the entries are added.
        waiting: names of subfolders still to be searched, to which new ones are added.
        links: names of links to folders still to be searched, to which new ones are added.
    """
    try:
        real = (folder / name).resolve(strict=True)
        if real in listing.folders:
            return f"the same folder as {printable(listing.folders[real]) or folder}"
        if name and folder.resolve().is_relative_to(real):
            return f"a link to {real}, which holds this folder"
        entries = sorted(os.scandir(real), key=lambda entry: entry.name)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        return f"cannot be opened ({_short(error)})"
    listing.folders[real] = name
    for entry in entries:
        path = f"{name}/{entry.name}" if name else entry.name
        is_folder, problem = _kind(entry)
        if entry.name.startswith("."):
            listing.left_out[printable(path) + "/" * is_folder] = HIDDEN
        elif is_folder:
            (links if entry.is_symlink() else waiting).append(path)
        elif not is_image_name(entry.name):
            listing.left_out[printable(path)] = problem if problem and entry.is_symlink() else OTHER
        elif problem is None and printable(path) != path:
            listing.failed[printable(path)] = NOT_UTF8
        elif problem is not None:
            listing.failed[printable(path)] = problem
        else:
            listing.images.append(path)
    return None


def _kind(entry: os.DirEntry[str]) -> tuple[bool, str | None]:
    """Whether an entry is a folder or a link to one, and the reason why it cannot be used, if it is already known."""
    try:
        if entry.is_dir():
            return True, None
        if entry.is_file():
            return False, None
        if entry.is_symlink():
            return False, f"a link to {printable(os.fspath(Path(entry.path).readlink()))}, which is not there"
        return False, "neither a file nor a folder"
    except OSError as error:
        return False, f"cannot be opened ({_short(error)})"


def _short(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
