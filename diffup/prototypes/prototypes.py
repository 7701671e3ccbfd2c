"""`Prototypes`: the support features and text embeddings of one class, computed once and saved to a file."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffup.backbones import Backbone
from diffup.decoder.config import DecoderConfig
from diffup.errors import AnnotationError, ConfigError, ImageError, PrototypesError, StorageError
from diffup.inputs.annotations import AnnotationLike, Support, pair_supports
from diffup.inputs.images import ImageLike
from diffup.priors.config import PriorConfig
from diffup.priors.features import Members, SupportFeatures
from diffup.priors.prepared import PreparedSupport, prepare_support
from diffup.priors.support import change_support, encode_supports, join_views, plain_views, pool_support
from diffup.prototypes.file import (
    FORMAT,
    VERSION,
    VERSION_OF_NEGATIVES,
    feature_tensors,
    read_facts,
    read_features,
    read_text_prompt,
)
from diffup.prototypes.kept_supports import KeptSupport, pack, unpack
from diffup.text.prompts import TextPrompt, embed_text_prompts
from diffup.text.space import TextSpace
from diffup.text.templates import Templates
from diffup.utils.files import checked_ending, named_in_utf8, replacing
from diffup.utils.storage import is_url, local_copy, without_password


class PrototypeEncoder(Protocol):
    """What prototypes are computed with: an encoder, a text space, and the decoder's priors. A `DiffUp` is one."""

    @property
    def backbone(self) -> Backbone:
        """The image encoder."""
        ...

    @property
    def text_space(self) -> TextSpace:
        """The encoder of text prompts, loaded on first access."""
        ...

    @property
    def config(self) -> DecoderConfig:
        """Config of the decoder, which says how priors are computed."""
        ...


@dataclass(frozen=True, eq=False)
class Prototypes:
    """The prototypes of one class: features of its support images, embeddings of its text prompts, or both.

    `DiffUp.prototypes` computes them. `DiffUp.segment` accepts them in place of support images and text, and gives the
    same result.

    Support features are pooled to the grids of the priors, not averaged over the image, because priors also compare
    position by position. A single support is stored as its three views (UAPF), several supports as one view each.

    Attributes:
        name: name of the class.
        features: features of V views of the supports, a batch of one: levels (1, V, C_l, h_l, w_l) float32. None
            without support (zero-shot).
        shots: K, number of support images.
        backbone: name of the encoder.
        fingerprint: fingerprint of the encoder's weights and settings.
        input_size: (height, width) in pixels at which the encoder sees images.
        grid: side of the grid on which priors are computed (`PriorConfig.grid`).
        text_prompt: text prompts and their embeddings; None without text.
        threshold: probability in (0, 1) above which a pixel is in the mask; None for the decoder's own.
        kept_supports: the stored support images; empty if they are not stored.
        negative: prototypes of what looks like the class and is not; None without any.

    Raises:
        PrototypesError: the name is empty or not printable, the threshold is out of range, or there is neither support
            nor text.
    """

    name: str
    features: SupportFeatures | None
    shots: int
    backbone: str
    fingerprint: str
    input_size: tuple[int, int]
    grid: int
    text_prompt: TextPrompt | None = None
    threshold: float | None = None
    kept_supports: tuple[KeptSupport, ...] = ()
    negative: Prototypes | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise PrototypesError(f"name={self.name!r}: give the class a name of printable characters, such as 'dog'")
        if self.threshold is not None:
            if isinstance(self.threshold, bool) or not isinstance(self.threshold, Real) or not 0 < self.threshold < 1:
                raise PrototypesError(f"threshold={self.threshold!r}: it must lie between 0 and 1, or be None")
            object.__setattr__(self, "threshold", float(self.threshold))  # numpy's numbers cannot be written as JSON
        if self.features is None and self.text_prompt is None:
            raise PrototypesError(f"prototypes {self.name!r} have neither support images nor names")

    def __repr__(self) -> str:
        parts = []
        if self.features is not None:
            parts += [f"{self.shots} shot{'s' if self.shots > 1 else ''}", self.backbone]
        if self.text_prompt is not None:
            count = len(self.text_prompt.sentences)
            parts += [f"{count} sentence{'s' if count > 1 else ''}", self.text_prompt.space]
        if self.negative is not None:
            parts.append(f"{self.negative.shots} negative")
        return f"Prototypes({self.name!r}, {', '.join(parts)}{', images kept' if self.kept_supports else ''})"

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, without what `prepared` keeps, which can be computed again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def prepared(self, config: PriorConfig, members: Members, device: torch.device) -> PreparedSupport | None:
        """Everything in the priors that does not depend on the query; it is computed once and kept for the next query.

        Args:
            config: config of the priors.
            members: for each level, channels of each member of a joint backbone; empty for a single encoder.
            device: device of the result.

        Returns:
            A batch of one; None without support images.
        """
        if self.features is None:
            return None
        key = (config, members, device)
        kept: tuple[Any, PreparedSupport] | None = vars(self).get(_PREPARED)
        if kept is None or kept[0] != key:
            features = change_support(self.features, lambda tensor: tensor.to(device))
            kept = (key, prepare_support(features, config, members))
            vars(self)[_PREPARED] = kept
        return kept[1]

    def check(self, model: PrototypeEncoder) -> None:
        """Check that class and negatives were made with a model's encoder, input size, prior grid and text space.

        Args:
            model: the model to use them with.

        Raises:
            PrototypesError: they were made with another encoder, input size, prior grid or text space.
            BackboneError, MissingPackageError, WeightsError: the prototypes hold text, and the model's text encoder is
                missing or cannot be loaded.
        """
        if self.text_prompt is not None:
            self.text_prompt.check(model.text_space, self.name)
        if not self._fits(model):
            ours, theirs = _describe(self.backbone, **self._made_with), _describe(model.backbone.name, **_maker(model))
            remedy = "rebuild them: prototypes.rebuild(model)" if self.kept_supports else _NO_IMAGES
            raise PrototypesError(
                f"prototypes {self.name!r} were made with {ours}; the model has {theirs}. Features of different "
                f"encoders do not compare; {remedy}"
            )
        if self.negative is not None:
            self.negative.check(model)

    @property
    def _made_with(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "input_size": self.input_size, "grid": self.grid}

    def _fits(self, model: PrototypeEncoder) -> bool:
        """Whether the features, if there are any, were made with the model's encoder and prior grid."""
        return self.features is None or self._made_with == _maker(model)

    def add(
        self,
        model: PrototypeEncoder,
        support: ImageLike | Sequence[ImageLike] | None = None,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        text: str | Sequence[str] | None = None,
        templates: Templates | None = None,
        negatives: ImageLike | Sequence[ImageLike] | None = None,
        negative_annotation: AnnotationLike | Sequence[AnnotationLike] = None,
    ) -> Prototypes:
        """Add support images, text prompts or negatives to the class; nothing is computed again.

        The result equals that of all images given at once. A single support, stored as three views, contributes only
        its unchanged view as soon as it is one of several. (After `load`, earlier features have the precision of the
        file.)

        Args:
            model: a model with the encoder that these prototypes were made with.
            support: one or more images that show the class, in the forms that `DiffUp.segment` takes.
            annotation: annotation of each support image, in the forms that `DiffUp.segment` takes.
            text: name of the class, or a list of synonyms; prompts that are already present are not added twice.
            templates: sentences with `{}` where the name goes: a list, one sentence, or `"clip7"` or `"clip80"`; by
                default `"a photo of a {}."`.
            negatives: one or more images of what looks like the class and is not.
            negative_annotation: annotation of each negative image: where that is; None for its salient part.

        Returns:
            New prototypes; they store the new images if these store theirs.

        Raises:
            PrototypesError: the model has another encoder, input size, prior grid or text space.
            ImageError: an image cannot be read.
            AnnotationError: an annotation does not fit its image, or there is neither support nor text.
            BackboneError: text is given, and the model has no text encoder.
            MissingPackageError: a package that the text encoder needs is not installed.
            ConfigError: the templates are invalid.
        """
        self.check(model)
        opposed = with_negatives(self, model, read_negatives(negatives, negative_annotation))
        if support is None and text is None and negatives is not None and annotation is None:
            return opposed
        return opposed._with_supports(model, *read_supports(model, support, annotation, text, templates))

    def _with_supports(
        self, model: PrototypeEncoder, supports: Sequence[Support], text_prompt: TextPrompt | None
    ) -> Prototypes:
        if self.text_prompt is not None:
            text_prompt = self.text_prompt if text_prompt is None else self.text_prompt.join(text_prompt)
        if not supports:
            return dataclasses.replace(self, text_prompt=text_prompt)
        if self.features is None:
            return dataclasses.replace(
                teach(model, supports, text_prompt, self.name, self.threshold), negative=self.negative
            )
        old = change_support(self.features, lambda tensor: tensor[:, : self.shots])  # the unchanged view comes first
        new = pool_support(
            encode_supports(model.backbone, supports, plain_views(len(supports))), model.config.priors.grids
        )
        return dataclasses.replace(
            self,
            features=join_views([old, new]),
            text_prompt=text_prompt,
            shots=self.shots + len(supports),
            kept_supports=(*self.kept_supports, *map(KeptSupport.of, supports)) if self.kept_supports else (),
        )

    def rebuild(self, model: PrototypeEncoder) -> Prototypes:
        """Recompute the prototypes for another encoder, from the stored images, and text space, from the prompts.

        Args:
            model: a model with any encoder.

        Returns:
            New prototypes, with the same stored images.

        Raises:
            PrototypesError: the encoder differs and no images are stored, or they are damaged.
            BackboneError, MissingPackageError, WeightsError: the prototypes hold text, and the model's text encoder is
                missing or cannot be loaded.
        """
        text_prompt = None if self.text_prompt is None else self.text_prompt.rebuild(model.text_space)
        negative = None if self.negative is None else self.negative.rebuild(model)
        if not self.kept_supports:
            if not self._fits(model):
                raise PrototypesError(
                    f"prototypes {self.name!r} keep no images, so they cannot be rebuilt; {_NO_IMAGES}"
                )
            return dataclasses.replace(self, text_prompt=text_prompt, negative=negative)
        supports = [item.support(f"kept[{index}]") for index, item in enumerate(self.kept_supports)]
        return dataclasses.replace(
            teach(model, supports, text_prompt, self.name, self.threshold),
            kept_supports=self.kept_supports,
            negative=negative,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the prototypes to a safetensors file. A partial file is never left.

        Features are stored in float16, except levels that would lose more than a thousandth of their largest value.

        Args:
            path: path of the file, ending in .safetensors; its folder is created if needed, an older file is replaced.

        Returns:
            The path of the file.

        Raises:
            FormatError: the path has another ending.
            StorageError: the file cannot be written.
        """
        path = checked_ending(path, ".safetensors")
        facts, tensors = self._packed()
        if self.negative is not None:
            facts["negative"], more = self.negative._packed()
            tensors |= {f"{_NEGATIVE}{name}": tensor for name, tensor in more.items()}
        facts["version"] = VERSION if self.negative is None else VERSION_OF_NEGATIVES
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={FORMAT: json.dumps(facts)})
        return path

    def _packed(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The JSON fields and the tensors of the file, without the negatives and the version."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _BULK}
        facts |= {"kept": len(self.kept_supports), "words": None}
        tensors = pack(self.kept_supports)
        if self.features is not None:
            tensors |= feature_tensors(self.features)
        if self.text_prompt is not None:
            tensors["embeddings"] = self.text_prompt.embeddings.contiguous()
            facts["words"] = {name: getattr(self.text_prompt, name) for name in ("sentences", "space", "fingerprint")}
        return facts, tensors

    @classmethod
    def _unpacked(cls, facts: dict[str, Any], tensors: dict[str, Tensor], negative: Prototypes | None) -> Prototypes:
        kept_supports = unpack(tensors, facts.pop("kept"))
        text_prompt = read_text_prompt(tensors, facts.pop("words", None))
        facts["input_size"] = (int(facts["input_size"][0]), int(facts["input_size"][1]))
        features = read_features(tensors, facts["shots"]) if facts["shots"] else None
        return cls(features=features, text_prompt=text_prompt, kept_supports=kept_supports, negative=negative, **facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prototypes:
        """Load prototypes from a file that `save` wrote.

        Args:
            path: path of the safetensors file, or a URL that fsspec opens (`s3://bucket/dog.safetensors`).

        Raises:
            PrototypesError: the file is missing, damaged, of another kind, or written by a newer diffup.
            MissingPackageError: the package of the URL's file system is not installed.
        """
        if not isinstance(path, str) or not is_url(path):
            return cls._load(Path(path), os.fspath(path))
        try:
            with local_copy(path) as copy:
                return cls._load(copy, without_password(path))
        except StorageError as error:
            raise PrototypesError(str(error)) from error

    @classmethod
    def _load(cls, path: Path, shown: str) -> Prototypes:
        """Load prototypes from a local file, which error messages call `shown`."""
        if not path.is_file():
            raise PrototypesError(f"there is no file {shown!r}; `diffup teach` and Prototypes.save make one")
        try:
            with named_in_utf8(path) as readable, safe_open(readable, framework="pt") as file:
                facts = read_facts(file.metadata(), shown)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            others, negative = facts.pop("negative", None), None
            if others is not None:
                named = {name.removeprefix(_NEGATIVE): t for name, t in tensors.items() if name.startswith(_NEGATIVE)}
                negative = cls._unpacked(others, named, None)
            return cls._unpacked(facts, tensors, negative)
        except PrototypesError:
            raise
        except (SafetensorError, LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise PrototypesError(
                f"{shown} is damaged or no file of prototypes ({type(error).__name__}: {error}); make it again"
            ) from error


def read_supports(
    model: PrototypeEncoder,
    support: ImageLike | Sequence[ImageLike] | None,
    annotation: AnnotationLike | Sequence[AnnotationLike],
    text: str | Sequence[str] | None,
    templates: Templates | None,
) -> tuple[list[Support], TextPrompt | None]:
    """Read the support images of a class with their annotations, and embed its text prompts.

    Args:
        model: the model whose text space embeds the prompts.
        support: one or more images that show the class; None for zero-shot.
        annotation: annotation of each support image.
        text: name of the class, or a list of synonyms; None without text.
        templates: sentences with `{}` where the name goes; None for `"a photo of a {}."`.

    Returns:
        The supports, none for zero-shot, and the embedded text prompts, None without text.

    Raises:
        ImageError: an image cannot be read.
        AnnotationError: an annotation does not fit its image, or there is neither support nor text.
        BackboneError: text is given, and the model has no text encoder.
        MissingPackageError: a package that the text encoder needs is not installed.
        ConfigError: the templates are invalid.
    """
    if support is None and (text is None or annotation is not None):
        problem = "text" if text is None else "the image that annotation= belongs to"
        raise AnnotationError(f"support: there is none. Give {problem}, or images of the class with support=")
    if text is None and templates is not None:
        raise ConfigError("templates: they are what names are put into; give text too")
    text_prompt = None if text is None else embed_text_prompts(model.text_space, text, templates)
    return [] if support is None else list(pair_supports(support, annotation)), text_prompt


def teach(
    model: PrototypeEncoder,
    supports: Sequence[Support],
    text_prompt: TextPrompt | None,
    name: str,
    threshold: float | None = None,
    keep_images: bool = False,
) -> Prototypes:
    """Compute the prototypes of a class from supports and text prompts that have been read.

    Args:
        model: the model whose encoder and prior grid are used.
        supports: support images with their annotated regions; empty for zero-shot.
        text_prompt: embedded text prompts; None without text.
        name: name of the class.
        threshold: probability in (0, 1) above which a pixel is in the mask; None for the decoder's own.
        keep_images: whether to store the support images in the prototypes.

    Raises:
        PrototypesError: the name is empty or not printable, the threshold is out of range, there is neither support nor
            text, or `keep_images` is set without a support image.
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
        text_prompt=text_prompt,
        **_maker(model),
        threshold=threshold,
    )
    return (
        dataclasses.replace(prototypes, kept_supports=tuple(map(KeptSupport.of, supports)))
        if keep_images
        else prototypes
    )


def read_negatives(
    negatives: ImageLike | Sequence[ImageLike] | None,
    annotation: AnnotationLike | Sequence[AnnotationLike],
) -> list[Support]:
    """Read images of what looks like a class and is not, with their annotations.

    Args:
        negatives: one or more images; None without any.
        annotation: annotation of each image.

    Raises:
        ImageError: an image cannot be read; the message names it, such as `negatives[1]`.
        AnnotationError: an annotation does not fit its image, or there is no image.
    """
    if negatives is None:
        if annotation is not None:
            raise AnnotationError("negative_annotation: there is no image that it belongs to; give negatives=")
        return []
    try:
        return list(pair_supports(negatives, annotation))
    except (AnnotationError, ImageError) as error:
        message = re.sub("^annotation", "negative_annotation", re.sub("^support", "negatives", str(error)))
        raise type(error)(message) from error


def with_negatives(prototypes: Prototypes, model: PrototypeEncoder, supports: Sequence[Support]) -> Prototypes:
    """Add negatives to prototypes.

    Args:
        prototypes: the prototypes of a class.
        model: the model that they were made with.
        supports: images of what looks like the class and is not, annotated.
    """
    if not supports:
        return prototypes
    if prototypes.negative is not None:
        negative = prototypes.negative._with_supports(model, supports, None)
    else:
        negative = teach(model, supports, None, f"not {prototypes.name}", None, bool(prototypes.kept_supports))
    return dataclasses.replace(prototypes, negative=negative)


_BULK = ("features", "text_prompt", "kept_supports", "negative")
_NEGATIVE = "negative."  # prefix of the negatives' tensors in the file
_PREPARED = "_prepared"  # where `Prototypes.prepared` keeps its last result
_NO_IMAGES = (
    "build them from the support images: model.prototypes(support, annotation). With keep_images=True they keep the "
    "images and follow a change of the encoder by prototypes.rebuild(model)"
)


def _maker(model: PrototypeEncoder) -> dict[str, Any]:
    """Everything that support features depend on besides the supports: encoder, input size, prior grid."""
    height, width = model.backbone.input_size
    return {
        "fingerprint": model.backbone.fingerprint,
        "input_size": (height, width),
        "grid": model.config.priors.grid,
    }


def _describe(name: str, fingerprint: str, input_size: Sequence[int], grid: int) -> str:
    return f"{name} ({fingerprint}, {input_size[0]} x {input_size[1]} px, grid {grid})"
