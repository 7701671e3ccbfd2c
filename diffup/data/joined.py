"""Several data sets as one for training: classes are joined by name, and every photo is used once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diffup.data.base import Target, TrainingData, target_of
from diffup.data.open import fold_numbers
from diffup.errors import DataError

_LARGEST_ID = 255


@dataclass(frozen=True, eq=False)
class JoinedData:
    """Training data of several data sets.

    Class ids and the ignored value are those of the first data set; classes that it lacks get the next free ids. An
    image is named by the number of its data set and its name there, such as `1/000123`.

    Attributes:
        parts: the data sets.
        classes: class names by id.
        ids: for each data set, the joined id of each of its own.
        dropped: names, such as `1/000123`, of images that an earlier data set holds too.
    """

    parts: tuple[TrainingData, ...]
    classes: dict[int, str]
    ids: tuple[dict[int, int], ...]
    dropped: frozenset[str]

    @classmethod
    def join(cls, parts: Sequence[TrainingData]) -> JoinedData:
        """Join data sets.

        Args:
            parts: two or more data sets.

        Raises:
            DataError: the data sets contradict each other (a class in different folds, a photo that one trains on in
                another's test split, different `min_area_fraction`), or there are more classes than mask values.
        """
        classes = dict(parts[0].classes)
        for part in parts[1:]:
            for name in part.classes.values():
                if name not in classes.values():
                    classes[_free_id(classes, parts[0].ignore)] = name
        by_name = {name: c for c, name in classes.items()}
        if len(by_name) < len(classes) or any(len(set(p.classes.values())) < len(p.classes) for p in parts):
            raise DataError("a data set has two classes of one name; data sets are joined by the names of classes")
        ids = tuple({c: by_name[name] for c, name in part.classes.items()} for part in parts)
        fractions = {part.name: part.min_area_fraction for part in parts}
        if len(set(fractions.values())) > 1:
            raise DataError(f"min_area_fraction differs: {fractions}; data sets that are joined need the same")
        joined = cls(tuple(parts), classes, ids, _dropped(parts))
        joined._check_folds()
        return joined

    def _check_folds(self) -> None:
        """Check that no class is in different folds of two data sets."""
        found: dict[int, tuple[int, str]] = {}
        for part, ids in zip(self.parts, self.ids, strict=True):
            for fold in fold_numbers(part):
                for c in part.fold(fold):
                    other, where = found.setdefault(ids[c], (fold, part.name))
                    if other != fold:
                        raise DataError(
                            f"class {self.classes[ids[c]]!r} is in fold {other} of {where} and in fold {fold} of "
                            f"{part.name}; a fold must hold out the same classes in all data sets"
                        )

    @property
    def name(self) -> str:
        """Names of the data sets, joined by a plus sign."""
        return "+".join(part.name for part in self.parts)

    @property
    def ignore(self) -> int:
        """Mask value of pixels that count neither as object nor as background."""
        return self.parts[0].ignore

    @property
    def min_area_fraction(self) -> float:
        """Least fraction of a training crop, in [0, 1], that a class covers as query or support."""
        return self.parts[0].min_area_fraction

    def fold(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes that are held out in a fold of any of the data sets.

        Raises:
            DataError: no data set has such a fold.
        """
        having = [(part, ids) for part, ids in zip(self.parts, self.ids, strict=True) if fold in fold_numbers(part)]
        if not having:
            raise DataError(f"fold={fold}: none of {self.name} has it")
        return tuple(sorted({ids[c] for part, ids in having for c in part.fold(fold)}))

    def split(self, name: str) -> tuple[str, ...]:
        """Image names of a split, data set by data set, without images that an earlier data set holds too.

        Raises:
            DataError: a data set has no such split.
        """
        names = (f"{index}/{image}" for index, part in enumerate(self.parts) for image in part.split(name))
        return tuple(image for image in names if image not in self.dropped)

    def part(self, name: str) -> int:
        """Number of the data set that an image is of."""
        return int(name.partition("/")[0])

    def image(self, name: str) -> Tensor:
        """Read an image by name as (3, H, W) float32 in [0, 1]."""
        part, own = self._own(name)
        return part.image(own)

    def mask(self, name: str) -> npt.NDArray[np.uint8]:
        """Read the class-index mask of an image with the joined ids, (H, W) uint8."""
        part, own = self._own(name)
        table = np.zeros(256, dtype=np.uint8)
        for c, joined in self.ids[self.part(name)].items():
            table[c] = joined
        table[part.ignore] = self.ignore
        return table[part.mask(own)]

    def target(self, name: str, class_id: int) -> Target:
        """Read the ground truth of one class in an image."""
        return target_of(self.mask(name), class_id, self.ignore)

    def pairs(self, split: str, classes: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Names of the images of a split that show enough of a class, by joined id; only classes with any."""
        found: dict[int, list[str]] = {}
        for index, (part, ids) in enumerate(zip(self.parts, self.ids, strict=True)):
            own = [c for c, joined in ids.items() if joined in classes]
            for c, names in part.pairs(split, own).items():
                found.setdefault(ids[c], []).extend(f"{index}/{name}" for name in names)
        kept = {c: tuple(name for name in found[c] if name not in self.dropped) for c in sorted(found)}
        return {c: names for c, names in kept.items() if names}

    def files(self, names: Iterable[str]) -> list[Path]:
        """Paths of the files that these images and their masks are read from."""
        chosen: list[list[str]] = [[] for _ in self.parts]
        for name in names:
            chosen[self.part(name)].append(name.partition("/")[2])
        return [path for part, own in zip(self.parts, chosen, strict=True) if own for path in part.files(own)]

    def _own(self, name: str) -> tuple[TrainingData, str]:
        return self.parts[self.part(name)], name.partition("/")[2]


def join_data(parts: Sequence[TrainingData]) -> TrainingData:
    """Return a single data set as it is, and several joined.

    Args:
        parts: one or more data sets.

    Raises:
        DataError: the data sets contradict each other (`JoinedData.join`).
    """
    return parts[0] if len(parts) == 1 else JoinedData.join(parts)


def _free_id(taken: Collection[int], ignore: int) -> int:
    for c in range(1, _LARGEST_ID + 1):
        if c not in taken and c != ignore:
            return c
    raise DataError(f"the data sets have more than {len(taken)} classes; a mask has no value left for another")


def _dropped(parts: Sequence[TrainingData]) -> frozenset[str]:
    """Training images that an earlier data set holds too.

    Raises:
        DataError: a data set trains on an image that another one tests on.
    """
    trained, tested = ([_files(part, split) for part in parts] for split in ("train", "test"))
    keys = _keys({path for files in (*trained, *tested) for path in files.values()})
    tests: dict[object, dict[int, str]] = {}
    for index, files in enumerate(tested):
        for name, path in files.items():
            tests.setdefault(keys[path], {})[index] = name
    seen: set[object] = set()
    dropped = set()
    for index, files in enumerate(trained):
        for name, path in files.items():
            where = tests.get(keys[path], {})
            other = next((number for number in where if number != index), None)
            if other is not None:
                raise DataError(
                    f"{parts[index].name} trains on {name!r}, and {parts[other].name} tests on the same image, "
                    f"{where[other]!r}; what was trained on cannot be tested on. Take it out of one of the lists"
                )
            if keys[path] in seen:
                dropped.add(f"{index}/{name}")
        seen.update(keys[path] for path in files.values())
    return frozenset(dropped)


def _keys(paths: Collection[Path]) -> dict[Path, object]:
    """A key of each file that is equal for files of the same content; only files of one size are read."""
    sizes = {path: path.stat().st_size for path in paths}
    number = Counter(sizes.values())
    return {
        path: hashlib.blake2b(path.read_bytes()).digest() if number[size] > 1 else path for path, size in sizes.items()
    }


def _files(part: TrainingData, split: str) -> dict[str, Path]:
    """Image files of a split, by name; none if the data set has no such split."""
    try:
        names = part.split(split)
    except DataError:
        return {}
    return {name: part.files([name])[0] for name in names}
