"""COCO-20i: the 80 classes of COCO in four interleaved folds of twenty (the split that BAM calls FWB).

Class ids are 1-based, in COCO's order; HSNet's published lists and streams count them from 0 (id - 1). The other split
in use, 20 contiguous classes per fold (PANet), is not supported. The test images are those of val2014, even if the
image files are those of the release of 2017, which holds the same photos under other names.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from diffup.data.base import (
    Areas,
    FoldedMasks,
    FoldLists,
    by_class,
    check_layout,
    check_listed_once,
    check_mask_size,
    check_values,
    class_areas,
    fold_classes,
    pairs_of,
    read_index_mask,
)
from diffup.errors import DataError, FormatError, MissingPackageError
from diffup.formats.checks import MarksNothing
from diffup.formats.coco import decode_segmentation
from diffup.inputs.recorded import Pictures, read_json
from diffup.utils.files import replacing, write_text
from diffup.utils.optional import install_command

LAYOUT = """COCO-20i looks like this:
  ROOT/train2014/COCO_train2014_*.jpg, ROOT/val2014/COCO_val2014_*.jpg     the photos, with year=2014
  ROOT/train2017/*.jpg, ROOT/val2017/*.jpg                                 the photos, with year=2017
  ROOT/annotations/instances_train2014.json, instances_val2014.json        of 2014 with either year
  MASKS/val2014/COCO_val2014_*.png, MASKS/train2014/...                    class-index masks; those that are missing
                                                                           are rendered. MASKS is ROOT/masks by default
and, optional, a folder of HSNet's lists (its data/splits/coco/val):
  LISTS/fold0.pkl .. fold3.pkl (or .json)                                  {class id 0..79: [val2014/NAME.jpg, ...]}"""

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
CLASSES = dict(enumerate(_NAMES.split(","), start=1))
"""Class names by id."""

FOLDS = {fold: tuple(range(fold + 1, 81, 4)) for fold in range(4)}
"""Class ids by fold of COCO-20i."""

_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # category ids of COCO that no object has
CATEGORIES = dict(zip((c for c in range(1, 91) if c not in _UNUSED), CLASSES, strict=True))
"""Class ids by category id of COCO's JSON."""

_SPLITS = {"train": "train2014", "test": "val2014"}


@dataclass(frozen=True)
class Coco20i(FoldedMasks):
    """COCO-20i. Names of images are `val2014/COCO_val2014_000000000042.jpg`, as in HSNet's lists, for either release.

    Args:
        root: folder of the data set.
        year: release of the image files.
        list_folder: folder of lists in HSNet's format; with None, lists are made from the masks.
        mask_folder: folder that masks are read from, and written to when they are rendered.
    """

    root: Path
    year: Literal[2014, 2017]
    list_folder: Path | None
    mask_folder: Path
    _areas: dict[str, Areas] = field(default_factory=dict, init=False, repr=False, compare=False)
    _files: dict[str, Pictures] = field(default_factory=dict, init=False, repr=False, compare=False)
    _annotations: dict[str, _Annotations] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        year: Literal[2014, 2017] = 2014,
        lists: str | os.PathLike[str] | None = None,
        masks: str | os.PathLike[str] | None = None,
    ) -> Coco20i:
        """Open the data set and check its layout. Masks are rendered when they are needed, or all at once by `prepare`.

        Args:
            root: folder of the data set.
            year: release of the image files, 2014 or 2017.
            lists: folder of HSNet's lists `fold0.pkl` .. `fold3.pkl`, or the same as JSON. By default all (image,
                class) pairs of val2014 in which a class covers 2048 pixels, images by name.
            masks: folder of masks; `ROOT/masks` by default. Give HSNet's own (its `annotations`) to score against
                exactly those.

        Raises:
            DataError: a file or folder is missing.
        """
        root = Path(root)
        if year not in (2014, 2017):
            raise DataError(f"year={year!r}: expected 2014 or 2017; {LAYOUT}")
        check_layout(root, (f"val{year}",) if year == 2014 else (f"train{year}", f"val{year}"), LAYOUT)
        if masks is None:
            check_layout(root, ("annotations/instances_val2014.json",), LAYOUT)
        elif not Path(masks).is_dir():
            raise DataError(f"{masks} is missing; {LAYOUT}")
        if lists is not None:
            for fold in FOLDS:
                _list_file(Path(lists), fold)
        mask_folder = root / "masks" if masks is None else Path(masks)
        return cls(root, year, None if lists is None else Path(lists), mask_folder)

    @property
    def name(self) -> str:
        """Name of the data set, for tables."""
        return "coco20i"

    @property
    def classes(self) -> dict[int, str]:
        """Class names by id."""
        return CLASSES

    def fold(self, fold: int) -> tuple[int, ...]:
        """Class ids of a fold.

        Raises:
            DataError: there is no such fold.
        """
        return fold_classes(FOLDS, fold, self.name)

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of "train" (train2014) or "test" (val2014), sorted.

        Raises:
            DataError: there is no such split, or its annotations are missing.
        """
        return tuple(sorted(self._annotations_of(_folder_of(name)).images))

    def image_path(self, name: str) -> Path:
        """Path of an image.

        Raises:
            DataError: with `year=2017`, neither folder holds the image, or its name does not end in an image id.
        """
        if self.year == 2014:
            return self._photo(name) or self.root / name
        number = Path(name).stem.rpartition("_")[2]
        for folder in ("train2017", "val2017"):
            path = self._photo(f"{folder}/{number}.jpg")
            if path is not None:
                return path
        raise DataError(f"{name}: neither train2017 nor val2017 of {self.root} holds {number}.jpg; {LAYOUT}")

    def _photo(self, name: str) -> Path | None:
        folder, _, file = name.rpartition("/")
        files = self._files.setdefault(folder, Pictures(self.root / folder, (".jpg", ".jpeg", ".png")))
        return files.search(file, name, DataError)

    def mask_path(self, name: str) -> Path:
        """Path of the mask of an image, which may not have been rendered yet."""
        return self.mask_folder / Path(name).with_suffix(".png")

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """Read the class-index mask of an image, (H, W) uint8; a missing one is rendered and saved as PNG.

        Polygons are filled by pycocotools, in file order, later ones over earlier ones; crowd regions are background.

        Raises:
            DataError: the annotations are missing or damaged, or the mask has another size than its image.
            MissingPackageError: the mask must be rendered and pycocotools is not installed.
        """
        mask = self._rendered(name)
        check_mask_size(mask.shape, self.mask_path(name), self.image_path(name), name)
        return mask

    def _rendered(self, name: str) -> npt.NDArray[np.uint8]:
        """Read or render the mask without comparing its size with the image's file."""
        path = self.mask_path(name)
        if not path.exists():
            regions, size = self._objects(name)
            labels = _paint(((CATEGORIES[category], region) for category, region in regions), size, name)
            with replacing(path) as temporary:
                Image.fromarray(labels.astype(np.uint8)).save(temporary)
        mask = read_index_mask(path)
        check_values(mask, path, CLASSES, self.ignore)
        return mask

    def instances(self, name: str, class_id: int) -> npt.NDArray[np.int32]:
        """Instances of a class in an image, (H, W) int32: 0 for none, else the number of the object in file order.

        Raises:
            DataError: the annotations are missing or damaged.
            MissingPackageError: pycocotools is not installed.
        """
        regions, size = self._objects(name)
        own = (region for category, region in regions if CATEGORIES[category] == class_id)
        return _paint(enumerate(own, start=1), size, name)

    def prepare(self, split: str, progress: bool = False) -> None:
        """Render the missing masks of a split, count the pixels of each class, and save the counts beside the masks.

        Args:
            split: "train" or "test".
            progress: whether to show a progress bar; the 40504 test images take minutes.

        Raises:
            DataError: the annotations are missing or damaged.
            MissingPackageError: masks must be rendered and pycocotools is not installed.
        """
        names = self.split(split)
        areas = class_areas(tqdm(names, desc=f"masks of {_folder_of(split)}", disable=not progress), self._rendered)
        self._areas[split] = {name: pixels for name, pixels in areas.items() if pixels}
        write_text(self._areas_path(split), json.dumps(self._areas[split]))

    def areas(self, split: str) -> Areas:
        """Pixel counts of each class in the images of a split that show any; calls `prepare` if they are not saved yet.

        Raises:
            DataError: the annotations are missing or damaged, or the saved counts are damaged.
            MissingPackageError: masks must be rendered and pycocotools is not installed.
        """
        path = self._areas_path(split)
        if split not in self._areas and not path.exists():
            self.prepare(split)
        if split not in self._areas:
            try:
                kept = read_json(path, DataError)
                self._areas[split] = {n: {int(c): int(k) for c, k in pixels.items()} for n, pixels in kept.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is damaged ({error!r}); delete it to have it made again") from error
        return self._areas[split]

    def lists(self, fold: int) -> FoldLists:
        """Lists from which HSNet's protocol draws a fold: its own if they were given, else the test images' pairs.

        Raises:
            DataError: there is no such fold, or a list cannot be read.
        """
        if self.list_folder is not None:
            return read_coco_list(_list_file(self.list_folder, fold), fold)
        classes = self.fold(fold)
        return FoldLists(by_class(pairs_of(self.areas("test"), classes), classes))

    def _areas_path(self, split: str) -> Path:
        return self.mask_folder / f"areas_{_folder_of(split)}.json"

    def _annotations_of(self, folder: str) -> _Annotations:
        if folder not in self._annotations:
            self._annotations[folder] = _Annotations.read(self.root / "annotations" / f"instances_{folder}.json")
        return self._annotations[folder]

    def _objects(self, name: str) -> tuple[list[tuple[int, Any]], tuple[int, int]]:
        """(category id, segmentation) of the objects of an image in file order, and its (height, width)."""
        folder = name.partition("/")[0]
        if folder not in _SPLITS.values():
            raise DataError(f"{name}: names of images look like val2014/COCO_val2014_000000000042.jpg")
        annotations = self._annotations_of(folder)
        if name not in annotations.images:
            raise DataError(f"{name} is not an image of {annotations.path}")
        number, size = annotations.images[name]
        return annotations.objects.get(number, []), size


@dataclass(frozen=True)
class _Annotations:
    """An instances file: (id, (height, width)) by image name, (category id, segmentation) by image id, no crowds."""

    path: Path
    images: dict[str, tuple[int, tuple[int, int]]]
    objects: dict[int, list[tuple[int, Any]]]

    @classmethod
    def read(cls, path: Path) -> _Annotations:
        if not path.exists():
            raise DataError(f"{path} is missing; {LAYOUT}")
        folder = path.stem.rpartition("_")[2]
        objects: dict[int, list[tuple[int, Any]]] = {}
        try:
            content = read_json(path, DataError)
            images = {
                _slashes(f"{folder}/{image['file_name']}"): (
                    int(image["id"]),
                    (int(image["height"]), int(image["width"])),
                )
                for image in content["images"]
            }
            check_listed_once((str(image["file_name"]) for image in content["images"]), f"{path}: images")
            for one in content["annotations"]:
                if not one.get("iscrowd", 0):
                    objects.setdefault(int(one["image_id"]), []).append((int(one["category_id"]), one["segmentation"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, DataError) else repr(error)
            raise DataError(f"{path} is not an instances json of COCO ({reason})") from error
        strangers = {category for regions in objects.values() for category, _ in regions} - set(CATEGORIES)
        if strangers:
            raise DataError(f"{path} has objects of categories {sorted(strangers)}, which COCO does not have")
        return cls(path, images, objects)


def _folder_of(split: str) -> str:
    if split not in _SPLITS:
        raise DataError(f"split={split!r}: coco20i has {', '.join(_SPLITS)}")
    return _SPLITS[split]


def _paint(regions: Iterable[tuple[int, Any]], size: tuple[int, int], name: str) -> npt.NDArray[np.int32]:
    """Paint (value, segmentation) pairs into an (H, W) image, later ones over earlier ones."""
    labels = np.zeros(size, dtype=np.int32)
    for value, region in regions:
        try:
            labels[_region(region, size)] = value
        except FormatError as error:
            raise DataError(f"{name}: an object's segmentation cannot be rendered ({error})") from error
        except MissingPackageError as error:
            raise MissingPackageError(f"rendering COCO masks needs pycocotools: {install_command('eval')}") from error
    return labels


def _region(region: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The (H, W) bool mask of an object; empty for polygons without area."""
    try:
        return decode_segmentation(region, size)
    except MarksNothing:
        return np.zeros(size, dtype=bool)


def _slashes(name: str) -> str:
    """An image's name with forward slashes; tools on Windows write backslashes."""
    return name.replace("\\", "/")


# --- HSNet's lists ---------------------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads only dicts, lists, strings and numbers, which need no import; any other name in a pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and lists are plain dicts, lists, strings and numbers")


def _list_file(folder: Path, fold: int) -> Path:
    fold_classes(FOLDS, fold, "coco20i")
    for suffix in (".pkl", ".json"):
        if (folder / f"fold{fold}{suffix}").is_file():
            return folder / f"fold{fold}{suffix}"
    raise DataError(f"{folder / f'fold{fold}.pkl'} is missing, and so is .json; {LAYOUT}")


def read_coco_list(path: str | os.PathLike[str], fold: int) -> FoldLists:
    """Read one of HSNet's lists of test images: a pickle, or the same as JSON, of {0-based class id: [image, ...]}.

    A pickle may hold only dicts, lists, strings and numbers, because a pickle from elsewhere can run code.

    Args:
        path: the file, `.pkl` or `.json`.
        fold: number of the fold that the list belongs to, 0 to 3.

    Raises:
        DataError: the file is missing or damaged, holds other objects, or its classes are not those of the fold.
    """
    path, classes = Path(path), fold_classes(FOLDS, fold, "coco20i")
    if not path.is_file():
        raise DataError(f"{path} is missing; {LAYOUT}")
    try:
        if path.suffix == ".json":
            content = read_json(path, DataError)
        else:
            with path.open("rb") as file:
                content = _PlainUnpickler(file).load()
        found = {int(key) + 1: images for key, images in content.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} cannot be read as a list ({error}); {LAYOUT}") from error
    if set(found) != set(classes):
        raise DataError(
            f"{path} holds classes {sorted(c - 1 for c in found)} (counted from 0), and fold {fold} has "
            f"{[c - 1 for c in classes]}; is it the list of another fold, or a training list?"
        )
    for c, images in found.items():
        if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
            raise DataError(f"{path}: class {c - 1} is no list of image names; {LAYOUT}")
    return FoldLists({c: tuple(_slashes(image) for image in found[c]) for c in classes})
