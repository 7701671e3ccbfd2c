"""Reading supports from a folder of images and a folder of masks."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path

from diffup.errors import FormatError
from diffup.formats.supports import (
    Gathering,
    OnError,
    SupportSet,
    check_shots,
    check_size,
    class_mask,
    path_text,
    upright_size,
)
from diffup.inputs.images import is_image_name
from diffup.inputs.recorded import Names, without_ending


def read_mask_folder(
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    label: int | None = None,
    shots: int | None = None,
    on_error: OnError = "raise",
) -> SupportSet:
    """Read supports of one class: every mask with the image of the same name, whatever the suffix.

    Names match if Windows and macOS treat them as the same (NFC and NFD, upper and lower case).

    Args:
        images: folder of images; images without a mask are ignored.
        masks: folder of masks: two-valued ones, in any form that `diffup.inputs.masks.read_mask` takes, or, with
            `label`, index masks such as those of PASCAL VOC.
        label: pixel value of the class in index masks; None for two-valued masks.
        shots: number of supports K, the first by name; all by default.
        on_error: "raise" the error of a faulty mask, or "skip" the mask.

    Returns:
        Paths of the support images, and masks; `skipped` lists the faulty masks. Masks without a marked pixel, or
        without the label, are ignored and not faulty.

    Raises:
        FormatError: a folder is missing; the label is no number; a mask has no image, several, or one of another size,
            cannot be read, or has several labels and `label` is None; or there are fewer supports than `shots`.
    """
    check_shots(shots)
    if isinstance(label, bool) or not isinstance(label, Integral | None):
        raise FormatError(f"label={label!r}: the classes of index masks are numbers; give one, or None without classes")
    pictures, own, found = _by_stem(images, "images"), _by_stem(masks, "masks"), Gathering(on_error)
    stems = Names(pictures)
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


def _by_stem(place: str | os.PathLike[str], argument: str) -> dict[str, list[Path]]:
    """Image files of a folder, by their names without suffix."""
    folder = Path(path_text(place, argument))
    if not folder.is_dir():
        raise FormatError(f"{argument}: there is no folder {str(folder)!r}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_image_name(path.name) and not path.name.startswith("."):
            found.setdefault(without_ending(path.name), []).append(path)
    return found
