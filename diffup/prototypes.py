"""What the support images contribute, computed once, saved, and used on any number of queries."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffup.annotation import AnnotationLike, Support, pair_supports
from diffup.errors import PrototypesError
from diffup.files import replacing
from diffup.images import ImageLike
from diffup.kept import KeptSupport, pack, unpack
from diffup.priors.condition import EDGE_SIDE, SupportFeatures
from diffup.priors.config import LEVELS
from diffup.support import change_support, join_views, plain_views, pool_support

if TYPE_CHECKING:
    from diffup.model import DiffUp

FORMAT = "diffup-prototypes"
VERSION = 1
"""Of the file; raise it when an older diffup could not read a newer file."""

_HALF_ERROR = 1e-3  # of a level's largest value; a level that loses more in float16 is saved in float32


@dataclass(frozen=True, eq=False)
class Prototypes:
    """One class, as the support images taught it.

    Made by `DiffUp.prototypes`; `DiffUp.segment` takes it in the place of support images, and gives the same result.

    What is kept are the support's features, pooled to the grids that priors are computed on, not their mean alone: the
    priors also compare position by position. A single shot is kept as its five views (UAPF), several as they are.

    Attributes:
        name: of the class.
        features: of the support, a batch of one: levels (1, V, C_l, h_l, w_l) float32, V views.
        shots: number of support images.
        backbone: name of the encoder.
        fingerprint: of the encoder.
        input_size: of the encoder, (height, width) in pixels.
        grid: of the priors (`PriorConfig.grid`).
        threshold: probability above which a pixel is marked, in (0, 1); None for the decoder's.
        kept: the support images, or none.

    Raises:
        PrototypesError: a name that is empty or not printable, or a threshold out of range.
    """

    name: str
    features: SupportFeatures
    shots: int
    backbone: str
    fingerprint: str
    input_size: tuple[int, int]
    grid: int
    threshold: float | None = None
    kept: tuple[KeptSupport, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise PrototypesError(f"name={self.name!r}: give the class a name of printable characters, such as 'dog'")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise PrototypesError(f"threshold={self.threshold}: it must lie between 0 and 1, or be None")

    def __repr__(self) -> str:
        shots = f"{self.shots} shot{'s' if self.shots > 1 else ''}"
        return f"Prototypes({self.name!r}, {shots}, {self.backbone}{', images kept' if self.kept else ''})"

    def check(self, model: DiffUp) -> None:
        """Raise `PrototypesError` unless these were made with the model's encoder, input size and grid."""
        ours = (self.fingerprint, self.input_size, self.grid)
        backbone = model.backbone
        if ours == (backbone.fingerprint, tuple(backbone.input_size), model.config.priors.grid):
            return
        remedy = "rebuild them: prototypes.rebuild(model)" if self.kept else _NO_IMAGES
        raise PrototypesError(
            f"prototypes {self.name!r} were made with {_describe(self.backbone, *ours)}; the model has "
            f"{_describe(backbone.name, backbone.fingerprint, backbone.input_size, model.config.priors.grid)}. "
            f"Features of different encoders do not compare; {remedy}"
        )

    def add(
        self,
        model: DiffUp,
        support: ImageLike | Sequence[ImageLike],
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
    ) -> Prototypes:
        """The same class with more shots; nothing that is here is computed again.

        The result is that of all the images given at once: a single shot, which is kept as five views, contributes
        its unchanged view alone as soon as it is one of several. (After `load` the features that were there have the
        precision of the file.)

        Args:
            model: with the encoder that these were made with.
            support: see `DiffUp.segment`.
            annotation: see `DiffUp.segment`.

        Returns:
            New prototypes, which keep the new images if these keep theirs.

        Raises:
            PrototypesError: the model has another encoder, input size or grid.
            ImageError: see `DiffUp.segment`.
            AnnotationError: see `DiffUp.segment`.
        """
        self.check(model)
        supports = pair_supports(support, annotation)
        old = change_support(self.features, lambda tensor: tensor[:, : self.shots])  # the unchanged view comes first
        new = pool_support(model.encode_supports(supports, plain_views(len(supports))), model.config.priors.grids)
        return dataclasses.replace(
            self,
            features=join_views([old, new]),
            shots=self.shots + len(supports),
            kept=(*self.kept, *map(KeptSupport.of, supports)) if self.kept else (),
        )

    def rebuild(self, model: DiffUp) -> Prototypes:
        """The same class for another encoder, from the kept images.

        Args:
            model: with any encoder.

        Raises:
            PrototypesError: no images were kept, or they are damaged.
        """
        if not self.kept:
            raise PrototypesError(f"prototypes {self.name!r} keep no images, so they cannot be rebuilt; {_NO_IMAGES}")
        supports = [item.support(f"kept[{index}]") for index, item in enumerate(self.kept)]
        return dataclasses.replace(teach(model, supports, self.name, self.threshold), kept=self.kept)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Features are written in float16, but for a level that would lose more than a thousandth of its largest value.

        Args:
            path: a file name that ends in .safetensors; an older file is replaced.

        Returns:
            The path.

        Raises:
            PrototypesError: another file ending.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise PrototypesError(f"path: expected a file name ending in .safetensors, got {str(path)!r}")
        features = change_support(self.features, lambda tensor: tensor[0].cpu())
        regions = torch.stack([features.foreground, features.background], dim=1)
        tensors = {f"level.{index}": _compact(level) for index, level in enumerate(features.levels)}
        tensors |= {"regions": _compact(regions), "valid": features.valid.to(torch.uint8), **pack(self.kept)}
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _BULK}
        facts |= {"version": VERSION, "kept": len(self.kept)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={FORMAT: json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prototypes:
        """Read a file of `save`.

        Args:
            path: the file.

        Raises:
            PrototypesError: the file is missing, damaged, of another kind or of a newer diffup.
        """
        path = Path(path)
        if not path.is_file():
            raise PrototypesError(f"there is no file {str(path)!r}; `diffup teach` and Prototypes.save make one")
        try:
            with safe_open(path, framework="pt") as file:
                facts = _read_facts(file.metadata(), path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            kept = unpack(tensors, facts.pop("kept"))
            facts["input_size"] = (int(facts["input_size"][0]), int(facts["input_size"][1]))
            return cls(features=_read_features(tensors, facts["shots"]), kept=kept, **facts)
        except PrototypesError:
            raise
        except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            raise PrototypesError(
                f"{path} is damaged or no file of prototypes ({type(error).__name__}: {error}); make it again"
            ) from error


def teach(
    model: DiffUp, supports: Sequence[Support], name: str, threshold: float | None = None, keep_images: bool = False
) -> Prototypes:
    """Compute what annotated images contribute; see `DiffUp.prototypes`.

    Args:
        model: whose encoder and priors they are for.
        supports: of `diffup.annotation.pair_supports`.
        name: of the class.
        threshold: of the class.
        keep_images: keep the images.

    Raises:
        PrototypesError: see `Prototypes`.
    """
    prototypes = Prototypes(
        name=name,
        features=pool_support(model.encode_supports(supports), model.config.priors.grids),
        shots=len(supports),
        backbone=model.backbone.name,
        fingerprint=model.backbone.fingerprint,
        input_size=(model.backbone.input_size[0], model.backbone.input_size[1]),
        grid=model.config.priors.grid,
        threshold=threshold,
    )
    return dataclasses.replace(prototypes, kept=tuple(map(KeptSupport.of, supports))) if keep_images else prototypes


def check_classes(given: object, model: DiffUp) -> list[Prototypes]:
    """The classes of one or several prototypes, which must fit the model and each other.

    Raises:
        PrototypesError: see `distinct_classes`, or one was made with another encoder.
    """
    classes = distinct_classes(given)
    for item in classes:
        item.check(model)
    return classes


def distinct_classes(given: object) -> list[Prototypes]:
    """The classes of one or several prototypes, which must fit each other.

    Raises:
        PrototypesError: none is given, something else is among them, more than 255, or two of one name.
    """
    classes: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if not classes or not all(isinstance(item, Prototypes) for item in classes):
        kinds = ", ".join(sorted({type(item).__name__ for item in classes})) or "an empty list"
        raise PrototypesError(
            f"prototypes: expected Prototypes or a list of them, got {kinds}; make them with model.prototypes(support, "
            "annotation), or read them with Prototypes.load(path)"
        )
    names = [item.name for item in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PrototypesError(
            f"prototypes: {', '.join(map(repr, twice))} is there more than once; shots of one class are added with "
            "prototypes.add(model, support, annotation), other classes have other names"
        )
    if len(names) > MAX_CLASSES:
        raise PrototypesError(f"prototypes: {len(names)} classes do not fit into a label map; give up to {MAX_CLASSES}")
    return classes


MAX_CLASSES = 255

_BULK = ("features", "kept")
_NO_IMAGES = (
    "build them from the support images: model.prototypes(support, annotation). With keep_images=True they keep the "
    "images and follow a change of the encoder by prototypes.rebuild(model)"
)


def _describe(name: str, fingerprint: str, input_size: Sequence[int], grid: int) -> str:
    return f"{name} ({fingerprint}, {input_size[0]} x {input_size[1]} px, grid {grid})"


def _compact(tensor: Tensor) -> Tensor:
    """Float16 where that loses little, float32 otherwise."""
    half = tensor.half()
    lost = (half.float() - tensor).abs().max()
    return half.contiguous() if lost <= _HALF_ERROR * tensor.abs().max() else tensor.contiguous()


def _read_facts(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    """The metadata of a file of prototypes, as arguments."""
    if FORMAT not in (metadata or {}):
        raise PrototypesError(f"{path} holds no prototypes; `diffup teach` and Prototypes.save write them")
    facts = json.loads((metadata or {})[FORMAT])
    version = facts.pop("version")
    if version > VERSION:
        raise PrototypesError(
            f"{path} has version {version} of the format, this diffup reads up to {VERSION}: upgrade diffup, or make "
            "the prototypes again"
        )
    return dict(facts)


def _read_features(tensors: dict[str, Tensor], shots: int) -> SupportFeatures:
    """The support features of a file, checked.

    Raises:
        ValueError: shapes that do not fit each other, or values that are not finite.
        KeyError: a tensor is missing.
    """
    levels = [tensors[f"level.{index}"].float() for index in range(LEVELS)]
    regions, valid = tensors["regions"].float(), tensors["valid"].bool()
    views = len(valid)
    if regions.shape != (views, 2, EDGE_SIDE, EDGE_SIDE) or not 1 <= shots <= views or not bool(valid.any()):
        raise ValueError(f"{views} views of {shots} shots with regions {tuple(regions.shape)}")
    for name, tensor in (*((f"level.{index}", level) for index, level in enumerate(levels)), ("regions", regions)):
        if tensor.ndim != 4 or len(tensor) != views or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} for {views} views, or not finite")
    return SupportFeatures(
        tuple(level[None] for level in levels), regions[None, :, 0], regions[None, :, 1], valid[None]
    )
