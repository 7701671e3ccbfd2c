"""Supports from a folder of images and a folder of masks."""

from __future__ import annotations

import os
from pathlib import Path

from diffup.errors import FormatError
from diffup.formats.supports import Gathering, OnError, Shots, check_shots, check_size, class_mask, upright_size
from diffup.inputs.recorded import Names, is_image_name, without_ending


def read_mask_folder(
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    label: int | None = None,
    shots: int | None = None,
    on_error: OnError = "raise",
) -> Shots:
    """Supports of one class: every mask with the image of the same name, but for the ending.

    Args:
        images: folder of images; those without a mask are left out.
        masks: folder of masks, two-valued (`diffup.inputs.masks.read_mask` says how they are understood) or, with `label`,
            index masks, such as those of PASCAL VOC.
        label: the class in index masks.
        shots: how many supports, the first by name; all by default.
        on_error: "raise" the error of a faulty mask, or "skip": pass it over.

    Returns:
        Paths and masks; `skipped` has what was passed over. Masks that mark nothing, or not the label, are passed over
        without being faulty. Names fit that Windows and macOS take for the same: NFC and NFD, capitals.

    Raises:
        FormatError: a folder is missing, a mask has no image, several, or one of another size, cannot be read, or has
            several labels and `label` is not given; or there are fewer supports than `shots`.
    """
    check_shots(shots)
    pictures, found = _by_stem(Path(images), "images"), Gathering(on_error)
    stems, own = Names(pictures), _by_stem(Path(masks), "masks")
    for stem, paths in sorted(own.items()):
        if len(found) == shots:
            break
        with found.record(str(paths[0])):
            candidates = [path for name in stems.like(stem) for path in pictures[name]]
            if len(candidates) != 1 or len(paths) != 1:
                raise FormatError(
                    f"{paths[0]}: expected one mask and one image of the name {stem!r}, got {len(paths)} and "
                    f"{len(candidates)} in {os.fspath(images)}"
                )
            mask = class_mask(paths[0], label, str(paths[0]))
            if mask is not None:
                size = upright_size(candidates[0], str(paths[0]))
                check_size((mask.mask.shape[0], mask.mask.shape[1]), size, str(paths[0]))
                found.add(candidates[0], mask)
    marked = "anything" if label is None else f"the label {label}"
    return found.shots(f"{os.fspath(masks)}: no mask marks {marked}", shots)


def _by_stem(folder: Path, argument: str) -> dict[str, list[Path]]:
    """Image files of a folder by their name without the ending."""
    if not folder.is_dir():
        raise FormatError(f"{argument}: there is no folder {str(folder)!r}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_image_name(path.name):
            found.setdefault(without_ending(path.name), []).append(path)
    return found
