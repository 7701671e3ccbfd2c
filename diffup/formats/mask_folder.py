"""Supports from a folder of images and a folder of masks."""

from __future__ import annotations

import os
from pathlib import Path

from diffup.annotation import Annotation
from diffup.errors import FormatError
from diffup.formats.shots import Shots, check_shots, check_size, class_mask, gather, upright_size
from diffup.images import ImageLike, is_image_name


def read_mask_folder(
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    label: int | None = None,
    shots: int | None = None,
) -> Shots:
    """Supports of one class: every mask with the image of the same name, but for the ending.

    Args:
        images: folder of images; those without a mask are left out.
        masks: folder of masks, two-valued (`diffup.masks.read_mask` says how they are understood) or, with `label`,
            index masks, such as those of PASCAL VOC.
        label: the class in index masks.
        shots: how many supports, the first by name; all by default.

    Returns:
        Paths and masks. Masks that mark nothing, or not the label, are passed over.

    Raises:
        FormatError: a folder is missing, a mask has no image, several, or one of another size, cannot be read, or has
            several labels and `label` is not given; or there are fewer supports than `shots`.
    """
    check_shots(shots)
    pictures = _by_stem(Path(images), "images")
    found: list[tuple[ImageLike, Annotation]] = []
    for stem, paths in sorted(_by_stem(Path(masks), "masks").items()):
        if shots is not None and len(found) == shots:
            break
        for mask_path, where in ((path, str(path)) for path in paths):
            candidates = pictures.get(stem, [])
            if len(candidates) != 1 or len(paths) != 1:
                raise FormatError(
                    f"{where}: expected one mask and one image of the name {stem!r}, got {len(paths)} and "
                    f"{len(candidates)} in {os.fspath(images)}"
                )
            mask = class_mask(mask_path, label, where)
            if mask is not None:
                check_size((mask.mask.shape[0], mask.mask.shape[1]), upright_size(candidates[0], where), where)
                found.append((candidates[0], mask))
    if shots is not None and 0 < len(found) < shots:
        raise FormatError(f"{os.fspath(masks)}: {len(found)} masks mark the class, shots={shots} were asked for")
    return gather(found, f"{os.fspath(masks)}: no mask marks {'anything' if label is None else f'the label {label}'}")


def _by_stem(folder: Path, argument: str) -> dict[str, list[Path]]:
    """Image files of a folder by their name without the ending."""
    if not folder.is_dir():
        raise FormatError(f"{argument}: there is no folder {str(folder)!r}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_image_name(path) and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found
