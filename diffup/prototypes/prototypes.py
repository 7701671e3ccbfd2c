"""What support images and names contribute, computed once, saved, and used on any number of queries."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffup.backbones import Backbone
from diffup.decoder.config import DecoderConfig
from diffup.errors import AnnotationError, ConfigError, PrototypesError
from diffup.inputs.annotations import AnnotationLike, Support, pair_supports
from diffup.inputs.images import ImageLike
from diffup.priors.condition import SupportFeatures
from diffup.priors.support import change_support, encode_supports, join_views, plain_views, pool_support
from diffup.prototypes.file import FORMAT, VERSION, feature_tensors, read_facts, read_features, read_text_prompt
from diffup.prototypes.kept_supports import KeptSupport, pack, unpack
from diffup.text.prompts import Words, read_words
from diffup.text.space import TextSpace
from diffup.text.templates import Templates
from diffup.utils.files import checked_ending, named_in_utf8, replacing


class PrototypeEncoder(Protocol):
    """What prototypes are made with: an encoder, its text space, and the decoder's priors. A `DiffUp` is one."""

    @property
    def backbone(self) -> Backbone:
        """The encoder of images."""
        ...

    @property
    def text_space(self) -> TextSpace:
        """The encoder of text prompts, loaded when it is first needed."""
        ...

    @property
    def config(self) -> DecoderConfig:
        """The decoder's config, which says how priors are made."""
        ...


@dataclass(frozen=True, eq=False)
class Prototypes:
    """One class, as support images, its names or both taught it.

    Made by `DiffUp.prototypes`; `DiffUp.segment` takes it in the place of those, and gives the same result.

    What is kept are the support's features, pooled to the grids that priors are computed on, not their mean alone: the
    priors also compare position by position. A single shot is kept as its three views (UAPF), several as they are.

    Attributes:
        name: of the class.
        features: of the support, a batch of one: levels (1, V, C_l, h_l, w_l) float32, V views. None without support
            (zero-shot).
        shots: number of support images.
        backbone: name of the encoder.
        fingerprint: of the encoder.
        input_size: of the encoder, (height, width) in pixels.
        grid: of the priors (`PriorConfig.grid`).
        words: the names, embedded; None without.
        threshold: probability above which a pixel is marked, in (0, 1); None for the decoder's.
        kept: the support images, or none.

    Raises:
        PrototypesError: a name that is empty or not printable, a threshold out of range, or neither support nor names.
    """

    name: str
    features: SupportFeatures | None
    shots: int
    backbone: str
    fingerprint: str
    input_size: tuple[int, int]
    grid: int
    words: Words | None = None
    threshold: float | None = None
    kept: tuple[KeptSupport, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise PrototypesError(f"name={self.name!r}: give the class a name of printable characters, such as 'dog'")
        if self.threshold is not None:
            if isinstance(self.threshold, bool) or not isinstance(self.threshold, Real) or not 0 < self.threshold < 1:
                raise PrototypesError(f"threshold={self.threshold!r}: it must lie between 0 and 1, or be None")
            object.__setattr__(self, "threshold", float(self.threshold))  # numpy's numbers are no JSON
        if self.features is None and self.words is None:
            raise PrototypesError(f"prototypes {self.name!r} have neither support images nor names")

    def __repr__(self) -> str:
        parts = []
        if self.features is not None:
            parts += [f"{self.shots} shot{'s' if self.shots > 1 else ''}", self.backbone]
        if self.words is not None:
            count = len(self.words.sentences)
            parts += [f"{count} sentence{'s' if count > 1 else ''}", self.words.space]
        return f"Prototypes({self.name!r}, {', '.join(parts)}{', images kept' if self.kept else ''})"

    def check(self, model: PrototypeEncoder) -> None:
        """Raise `PrototypesError` unless these were made with the model's encoder, input size, grid and text space.

        Raises:
            BackboneError, MissingPackageError, WeightsError: they hold text, and the model cannot read it.
        """
        if self.words is not None:
            self.words.check(model.text_space, self.name)
        if self._fits(model):
            return
        ours, theirs = _describe(self.backbone, **self._made_with), _describe(model.backbone.name, **_maker(model))
        remedy = "rebuild them: prototypes.rebuild(model)" if self.kept else _NO_IMAGES
        raise PrototypesError(
            f"prototypes {self.name!r} were made with {ours}; the model has {theirs}. Features of different encoders "
            f"do not compare; {remedy}"
        )

    @property
    def _made_with(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "input_size": self.input_size, "grid": self.grid}

    def _fits(self, model: PrototypeEncoder) -> bool:
        """Whether features, if there are any, are of the model's encoder and grid."""
        return self.features is None or self._made_with == _maker(model)

    def add(
        self,
        model: PrototypeEncoder,
        support: ImageLike | Sequence[ImageLike] | None = None,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        text: str | Sequence[str] | None = None,
        templates: Templates | None = None,
    ) -> Prototypes:
        """The same class with more shots, more names or both; nothing that is here is computed again.

        The result is that of all the images given at once: a single shot, which is kept as three views, contributes
        its unchanged view alone as soon as it is one of several. (After `load` the features that were there have the
        precision of the file.)

        Args:
            model: with the encoder that these were made with.
            support: see `DiffUp.segment`.
            annotation: see `DiffUp.segment`.
            text: see `DiffUp.segment`; a sentence that is here already does not come twice.
            templates: see `DiffUp.segment`.

        Returns:
            New prototypes, which keep the new images if these keep theirs.

        Raises:
            PrototypesError: the model has another encoder, input size, grid or text space.
            ImageError, AnnotationError, BackboneError, MissingPackageError, ConfigError: see `DiffUp.segment`.
        """
        self.check(model)
        supports, words = read_shots(model, support, annotation, text, templates)
        if self.words is not None:
            words = self.words if words is None else self.words.join(words)
        if not supports:
            return dataclasses.replace(self, words=words)
        if self.features is None:
            return teach(model, supports, words, self.name, self.threshold)
        old = change_support(self.features, lambda tensor: tensor[:, : self.shots])  # the unchanged view comes first
        new = pool_support(
            encode_supports(model.backbone, supports, plain_views(len(supports))), model.config.priors.grids
        )
        return dataclasses.replace(
            self,
            features=join_views([old, new]),
            words=words,
            shots=self.shots + len(supports),
            kept=(*self.kept, *map(KeptSupport.of, supports)) if self.kept else (),
        )

    def rebuild(self, model: PrototypeEncoder) -> Prototypes:
        """The same class for another encoder, from the kept images, and another text space, from the sentences.

        Args:
            model: with any encoder.

        Raises:
            PrototypesError: the encoder is another and no images were kept, or they are damaged.
            BackboneError, MissingPackageError, WeightsError: these hold text, and the model cannot read it.
        """
        words = None if self.words is None else self.words.rebuild(model.text_space)
        if not self.kept:
            if not self._fits(model):
                raise PrototypesError(
                    f"prototypes {self.name!r} keep no images, so they cannot be rebuilt; {_NO_IMAGES}"
                )
            return dataclasses.replace(self, words=words)
        supports = [item.support(f"kept[{index}]") for index, item in enumerate(self.kept)]
        return dataclasses.replace(teach(model, supports, words, self.name, self.threshold), kept=self.kept)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Features are written in float16, but for a level that would lose more than a thousandth of its largest value.

        Args:
            path: a file name that ends in .safetensors; its folder is made if needed, an older file is replaced.

        Returns:
            The path.

        Raises:
            FormatError: another file ending.
            StorageError: the file cannot be written.
        """
        path = checked_ending(path, ".safetensors")
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _BULK}
        facts |= {"version": VERSION, "kept": len(self.kept), "words": None}
        tensors = pack(self.kept)
        if self.features is not None:
            tensors |= feature_tensors(self.features)
        if self.words is not None:
            tensors["embeddings"] = self.words.embeddings.contiguous()
            facts["words"] = {name: getattr(self.words, name) for name in ("sentences", "space", "fingerprint")}
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
            with named_in_utf8(path) as readable, safe_open(readable, framework="pt") as file:
                facts = read_facts(file.metadata(), path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            kept = unpack(tensors, facts.pop("kept"))
            words = read_text_prompt(tensors, facts.pop("words", None))
            facts["input_size"] = (int(facts["input_size"][0]), int(facts["input_size"][1]))
            features = read_features(tensors, facts["shots"]) if facts["shots"] else None
            return cls(features=features, words=words, kept=kept, **facts)
        except PrototypesError:
            raise
        except (SafetensorError, LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise PrototypesError(
                f"{path} is damaged or no file of prototypes ({type(error).__name__}: {error}); make it again"
            ) from error


def read_shots(
    model: PrototypeEncoder,
    support: ImageLike | Sequence[ImageLike] | None,
    annotation: AnnotationLike | Sequence[AnnotationLike],
    text: str | Sequence[str] | None,
    templates: Templates | None,
) -> tuple[list[Support], Words | None]:
    """What a user gives to tell a class: annotated images, maybe none, and names, maybe none.

    Raises:
        ImageError, AnnotationError, BackboneError, MissingPackageError, ConfigError: see `DiffUp.segment`.
    """
    if support is None and (text is None or annotation is not None):
        problem = "text" if text is None else "the image that annotation= belongs to"
        raise AnnotationError(f"support: there is none. Give {problem}, or images of the class with support=")
    if text is None and templates is not None:
        raise ConfigError("templates: they are what names are put into; give text too")
    words = None if text is None else read_words(model.text_space, text, templates)
    return [] if support is None else list(pair_supports(support, annotation)), words


def teach(
    model: PrototypeEncoder,
    supports: Sequence[Support],
    words: Words | None,
    name: str,
    threshold: float | None = None,
    keep_images: bool = False,
) -> Prototypes:
    """Compute what annotated images and names contribute; see `DiffUp.prototypes`.

    Args:
        model: whose encoder and priors they are for.
        supports: of `diffup.inputs.annotations.pair_supports`; none for zero-shot.
        words: of `DiffUp.encode_text`, if there are any.
        name: of the class.
        threshold: of the class.
        keep_images: keep the images.

    Raises:
        PrototypesError: see `Prototypes`.
    """
    if keep_images and not supports:
        raise PrototypesError("keep_images=True: there are names alone and no support image to keep")
    prototypes = Prototypes(
        name=name,
        features=pool_support(encode_supports(model.backbone, supports), model.config.priors.grids)
        if supports
        else None,
        shots=len(supports),
        backbone=model.backbone.name,
        words=words,
        **_maker(model),
        threshold=threshold,
    )
    return dataclasses.replace(prototypes, kept=tuple(map(KeptSupport.of, supports))) if keep_images else prototypes


def check_classes(given: object, model: PrototypeEncoder) -> list[Prototypes]:
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
    items = list(given) if isinstance(given, list | tuple) else [given]
    classes = [item for item in items if isinstance(item, Prototypes)]
    if not classes or len(classes) < len(items):
        kinds = ", ".join(sorted({type(item).__name__ for item in items})) or "an empty list"
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


def has_words(given: object) -> bool:
    """Whether one of some prototypes, or of whatever else is given, holds text."""
    items = given if isinstance(given, list | tuple) else [given]
    return any(isinstance(item, Prototypes) and item.words is not None for item in items)


MAX_CLASSES = 255

_BULK = ("features", "words", "kept")
_NO_IMAGES = (
    "build them from the support images: model.prototypes(support, annotation). With keep_images=True they keep the "
    "images and follow a change of the encoder by prototypes.rebuild(model)"
)


def _maker(model: PrototypeEncoder) -> dict[str, Any]:
    """What features of supports depend on, besides these."""
    height, width = model.backbone.input_size
    return {
        "fingerprint": model.backbone.fingerprint,
        "input_size": (height, width),
        "grid": model.config.priors.grid,
    }


def _describe(name: str, fingerprint: str, input_size: Sequence[int], grid: int) -> str:
    return f"{name} ({fingerprint}, {input_size[0]} x {input_size[1]} px, grid {grid})"
