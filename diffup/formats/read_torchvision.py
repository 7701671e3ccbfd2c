"""Reading supports from torchvision's segmentation data sets."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image

from diffup.data.pascal5i import CLASSES
from diffup.errors import FormatError
from diffup.formats.supports import (
    Gathering,
    OnError,
    SupportSet,
    check_shots,
    check_size,
    class_mask,
    read_index,
    upright_size,
)
from diffup.inputs.images import describe


def read_torchvision(
    dataset: Any, label: int | str | None = None, *, shots: int | None = None, on_error: OnError = "raise"
) -> SupportSet:
    """Read supports from a data set of torchvision: `VOCSegmentation`, `SBDataset` or `OxfordIIITPet`.

    Any other data set of pairs of an image and a mask will do, such as a `torch.utils.data.Subset`: index masks if the
    class is given as a number, else two-valued ones. The data set must have been opened without transforms. Pixels that
    it leaves open, the edges of objects (255 in VOC, 3 in Pets), count as background.

    Args:
        dataset: the data set. `SBDataset` needs `mode="segmentation"`, `OxfordIIITPet` `target_types="segmentation"`;
            for a breed it is `("category", "segmentation")`, for all cats or dogs `("binary-category",
            "segmentation")`.
        label: class in the masks as a number, or its name in VOC and SBD (`diffup.data.pascal5i.CLASSES`). For Pets the
            name of a breed, "Cat" or "Dog" as the data set spells it; None for every pet. None also for two-valued
            masks of another data set, in any form that `diffup.inputs.masks.read_mask` takes.
        shots: number of supports K, the first of the data set; all by default. The images after them are not read.
        on_error: "raise" the error of a faulty entry, or "skip" the entry.

    Returns:
        Support images and masks, all in memory; `skipped` lists the faulty entries. Images without the class are
        ignored.

    Raises:
        FormatError: the data set has other targets, no class of the name, or fewer than `shots` images of it; or a mask
            has another size than its image. The message names the entry.
    """
    check_shots(shots)
    found = Gathering(on_error)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise FormatError(
            f"dataset: expected a data set of torchvision, or a list of pairs of an image and its index mask, got "
            f"{describe(dataset)}"
        )
    kinds = {kind.__name__ for kind in type(dataset).__mro__}
    pets = "OxfordIIITPet" in kinds
    wanted = _pet(dataset, label) if pets else None
    named = bool({"VOCSegmentation", "SBDataset"} & kinds)
    value = 1 if pets else _pixel_value(label, named)
    for index in range(len(dataset)):
        if len(found) == shots:
            break
        where = f"dataset[{index}]"
        with found.record(where):
            image, target = _pair(dataset[index], where)
            if pets:
                types = dataset._target_types
                targets = dict(zip(types, target if len(types) > 1 else [target], strict=True))
                if wanted is not None and targets.get(wanted[0]) != wanted[1]:
                    continue
                target = targets["segmentation"]
            mask = class_mask(target, value, where)
            if mask is not None:
                check_size((mask.mask.shape[0], mask.mask.shape[1]), upright_size(image, where), where)
                found.add(image, mask)
            elif index == 0 and value is not None and not pets:
                found.without(_values(target, where, named))
    return found.shots(f"label={label!r}: no image has it", shots)


def _pixel_value(label: int | str | None, named: bool) -> int | None:
    """The class in the masks, None in two-valued ones; `named` says whether they have VOC's classes."""
    if label is None and not named:
        return None
    value = next((number for number, name in CLASSES.items() if name == label), label) if named else label
    if isinstance(value, bool) or not isinstance(value, Integral):
        names = f", or one of {', '.join(CLASSES.values())}" if named else ""
        raise FormatError(f"label={label!r}: give the class in the masks as a number{names}")
    return int(value)


def _values(target: Any, where: str, named: bool) -> str:
    """What is said of a mask without the class; `named` says whether the masks have VOC's classes."""
    values = np.unique(read_index(target, where)).tolist()
    hint = "; for two-valued masks leave label= out" if len(values) <= 2 and not named else ""
    return f"The mask of {where} has the values {', '.join(map(str, values))}{hint}"


def _pet(dataset: Any, label: int | str | None) -> tuple[str, int] | None:
    """The type of target that tells a breed or an animal, and its number there; None for every pet."""
    if "segmentation" not in dataset._target_types:
        raise FormatError('dataset: there are no masks; open the data set with target_types="segmentation"')
    if label is None:
        return None
    for kind, names in (("category", dataset.classes), ("binary-category", dataset.bin_classes)):
        if label in names:
            if kind not in dataset._target_types:
                raise FormatError(f"label={label!r}: open the data set with target_types={(kind, 'segmentation')}")
            return kind, names.index(label)
    known = ", ".join([*dataset.bin_classes, *dataset.classes])
    raise FormatError(f"label={label!r}: expected one of {known}, or None for every pet")


def _pair(entry: Any, where: str) -> tuple[Image.Image, Any]:
    """The image and the target of an entry."""
    if not isinstance(entry, Sequence) or len(entry) != 2:
        raise FormatError(f"{where}: expected an image and its mask, got {describe(entry)}")
    image, target = entry
    if not isinstance(image, Image.Image):
        raise FormatError(f"{where}: expected a PIL image, got {describe(image)}; open the data set without transforms")
    return image, target
