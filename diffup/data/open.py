"""Opening data sets by name, as the command line does."""

from __future__ import annotations

import os
from typing import Any

from diffup.data.base import Dataset
from diffup.data.coco20i import FOLDS as COCO_FOLDS
from diffup.data.coco20i import Coco20i
from diffup.data.folder import LabelledFolder
from diffup.data.fss1000 import FSS1000
from diffup.data.pascal5i import Pascal5i
from diffup.errors import ConfigError
from diffup.utils.suggestions import did_you_mean

DATASETS = ("folder", "pascal5i", "coco_to_pascal", "coco20i", "fss1000")
"""Names that `open_dataset` takes; `coco_to_pascal` is PASCAL in folds that decoders trained on COCO-20i never saw."""


def open_dataset(
    name: str,
    root: str | os.PathLike[str],
    *,
    lists: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    year: int | None = None,
) -> Dataset:
    """Open a data set by name.

    Args:
        name: one of `DATASETS`.
        root: folder of the data set.
        lists: path of HSNet's lists: a folder for PASCAL-5i and COCO-20i, a file of categories for FSS-1000.
        masks: folder of masks, for COCO-20i only.
        year: release of the image files, 2014 (default) or 2017, for COCO-20i only.

    Raises:
        ConfigError: the name is unknown, or the data set has no such option.
        DataError: the folder does not have the data set's layout.
    """
    takes = {"pascal5i": ("lists",), "coco_to_pascal": ("lists",), "coco20i": ("lists", "masks", "year")}
    takes["fss1000"] = ("lists",)
    if name not in DATASETS:
        raise ConfigError(f"dataset={name!r}: expected one of {', '.join(DATASETS)}{did_you_mean(name, DATASETS)}")
    given: dict[str, Any] = {"lists": lists, "masks": masks, "year": year}
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        if option not in takes.get(name, ()):
            raise ConfigError(f"{option}={str(given[option])!r}: the data set {name!r} has no such option")
    if name == "folder":
        return LabelledFolder.open(root)
    if name == "coco20i":
        return Coco20i.open(root, **given)
    if name == "fss1000":
        return FSS1000.open(root, categories=lists)
    return Pascal5i.open(root, lists=lists, from_coco=name == "coco_to_pascal")


def fold_numbers(data: Dataset) -> tuple[int, ...]:
    """Numbers of the folds of a data set that `open_dataset` opened."""
    if isinstance(data, LabelledFolder | Pascal5i):
        return tuple(data.folds)
    return tuple(COCO_FOLDS) if isinstance(data, Coco20i) else (0,)
