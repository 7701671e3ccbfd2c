"""`DiffUp`, the few-shot segmentation model: a frozen encoder, the priors and the decoder."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from tqdm import tqdm

from diffup.backbones import Backbone, load_backbone
from diffup.correct import Correction, check_correction
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.options import Sampling, SamplingKeywords, SamplingOptions, sampling_options
from diffup.decoder.weights import fetch_decoder, load_decoder, save_decoder
from diffup.errors import AnnotationError, BackboneError
from diffup.inference import Query, decode, decoder_rounds, read_query
from diffup.inputs.annotations import AnnotationLike
from diffup.inputs.images import ImageLike
from diffup.inputs.support_picture import draw_support
from diffup.label_map import LabelMap, to_result
from diffup.prototypes import (
    Prototypes,
    check_classes,
    has_text,
    read_negatives,
    read_supports,
    teach,
    with_negatives,
)
from diffup.result import Segmentation
from diffup.stream import Outcome, check_stream, stream
from diffup.text.load import find_text_space
from diffup.text.space import TextSpace
from diffup.text.templates import Templates, resolve_names
from diffup.utils.options import placed, resolve_device

if TYPE_CHECKING:
    from typing_extensions import Unpack

RELEASED = Path(__file__).parent / "weights" / "default"
"""Folder of the decoder that comes with the package."""


class DiffUp:
    """Few-shot segmentation with an exchangeable encoder.

    The decoder is the only trained part and is independent of the encoder; `upgrade` uses the same decoder with another
    encoder.

    Args:
        decoder: a trained decoder. The model uses a frozen copy, so later changes to it have no effect.
        backbone: name (`family[:variant]`) or object of the encoder, or a list of encoders whose features are fused; by
            default the encoder named in the decoder's config. An object on another device is copied, not moved.
        device: torch device of the model, such as `"cpu"` or `"cuda"`; by default CUDA if it is available.
        text_backbone: name or object of the encoder that embeds text prompts, as `diffup.text.load_text_space` takes
            it, loaded with the first prompt; by default the encoder's own text tower, if it has one.

    Raises:
        BackboneError: the encoder cannot be found or breaks the protocol, or is not the one whose low-level features a
            DiffUp+LFE decoder was trained with.
        ConfigError: the device is not available.

    Examples:
        >>> model = DiffUp.from_pretrained()
        >>> result = model.segment("query.jpg", support="dog.jpg", annotation="dog_mask.png")
        >>> result.overlay().save("out.png")
    """

    def __init__(
        self,
        decoder: Decoder,
        backbone: str | Backbone | Sequence[str | Backbone] | None = None,
        device: str | torch.device | None = None,
        text_backbone: str | TextSpace | None = None,
    ) -> None:
        self.device = resolve_device(device)
        own = copy.deepcopy(decoder).eval().requires_grad_(False)  # the caller's decoder stays unchanged
        self.decoder = own.to(self.device).to(memory_format=torch.channels_last)
        self.backbone = _load(decoder.config.backbone if backbone is None else backbone, self.device)
        self.text_backbone = text_backbone
        if self.config.low_level_channels and self.backbone.fingerprint != self.config.low_level_encoder:
            raise BackboneError(f"backbone={self.backbone.name!r} ({self.backbone.fingerprint}): {self._tie}")

    @property
    def _tie(self) -> str:
        """Part of an error message: why a DiffUp+LFE decoder works with its own encoder only."""
        return (
            f"this decoder reads the low-level features of {self.config.backbone} ({self.config.low_level_encoder}; "
            f"low_level_channels={self.config.low_level_channels}, DiffUp+LFE) and so works behind that encoder alone, "
            "with the same weights, input size and precision. To change the encoder, take or train a decoder with "
            "low_level_channels=0"
        )

    @property
    def config(self) -> DecoderConfig:
        """Config of the decoder."""
        return self.decoder.config

    @functools.cached_property
    def text_space(self) -> TextSpace:
        """The encoder that embeds text prompts, loaded on first access.

        Raises:
            BackboneError: neither the encoder nor `text_backbone` can embed text.
            MissingPackageError: a package that the text encoder needs is not installed.
            WeightsError: the weights of the text encoder cannot be loaded.
        """
        space = find_text_space(self.backbone, self.text_backbone)
        named = self.text_backbone is None or isinstance(self.text_backbone, str)
        return space.to(self.device) if named else placed(space, self.device)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.decoder.parameters())
        return f"DiffUp(backbone={self.backbone.name!r}, decoder of {parameters / 1e6:.1f} M parameters, {self.device})"

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        backbone: str | Backbone | Sequence[str | Backbone] | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        text_backbone: str | TextSpace | None = None,
        **options: Any,
    ) -> DiffUp:
        """Load a model: a trained decoder with an encoder.

        Args:
            source: folder that `save_pretrained` or training wrote, or name of a repository on the Hugging Face hub,
                `"user/repo"`; by default the decoder that comes with the package (no download).
            backbone: name or object of the encoder, or a list of encoders whose features are fused; by default the
                encoder named in the decoder's config.
            device: torch device of the model; by default CUDA if it is available.
            revision: branch, tag or commit of the hub repository.
            text_backbone: name or object of the encoder that embeds text prompts; by default the encoder's own text
                tower, if it has one.
            **options: options for building the encoder, such as `checkpoint_path` or `input_size`.

        Raises:
            WeightsError: there is no such folder or repository, or its files are damaged.
            ConfigError: the config has unknown or contradictory fields or a newer format, or the device is not
                available.
            BackboneError: the encoder cannot be found or does not accept the options.
        """
        folder = RELEASED if source is None else fetch_decoder(source, revision)
        decoder = load_decoder(folder)
        device = resolve_device(device)
        encoder = _load(decoder.config.backbone if backbone is None else backbone, device, **options)
        return cls(decoder, encoder, device, text_backbone)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Save the decoder, without the encoder, to a folder: `config.json` and `model.safetensors`.

        Args:
            folder: path of the folder, created if needed.
            dtype: precision of the saved weights; `torch.float16` halves the file size.

        Raises:
            StorageError: a file cannot be written.
        """
        save_decoder(folder, self.decoder.state_dict(), self.config, dtype)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the decoder, without the encoder, and a model card to the Hugging Face hub.

        Args:
            repo: name of the repository, `"user/repo"`, created if needed.
            **options: keyword arguments of `diffup.publish.hub.push`: sources of the model card (`scores`, `training`,
                `licence`, `notes`) or a finished `card`, and `private`, `revision`, `message`, `token`, `dtype`.

        Returns:
            URL of the commit.

        Raises:
            ConfigError: an argument is invalid, or a file belongs to another decoder; nothing was uploaded.
            HubError: the hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses.
        """
        from diffup.publish.hub import push

        return push(self.decoder, repo, **options)

    def upgrade(self, backbone: str | Backbone | Sequence[str | Backbone], **options: Any) -> DiffUp:
        """Use the same decoder with another encoder. Nothing is trained, and the decoder's weights are shared.

        Args:
            backbone: name or object of the encoder, or a list of encoders whose features are fused.
            **options: options for building the encoder, such as `checkpoint_path` or `input_size`.

        Returns:
            A new model; this one is unchanged.

        Raises:
            BackboneError: the encoder cannot be found or does not accept the options, or the decoder reads low-level
                features (DiffUp+LFE, paper Table 9) and works only with the encoder that it was trained with.
        """
        if self.config.low_level_channels:
            raise BackboneError(f"upgrade to {getattr(backbone, 'name', backbone)!r}: {self._tie}")
        upgraded = copy.copy(self)
        upgraded.backbone = _load(backbone, self.device, **options)
        vars(upgraded).pop("text_space", None)  # the previous encoder's, if it was loaded
        return upgraded

    def prototypes(
        self,
        support: ImageLike | Sequence[ImageLike] | None = None,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        text: str | Sequence[str] | None = None,
        templates: Templates | None = None,
        negatives: ImageLike | Sequence[ImageLike] | None = None,
        negative_annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        name: str | None = None,
        threshold: float | None = None,
        keep_images: bool = False,
    ) -> Prototypes:
        """Compute the prototypes of a class from support images, text prompts or both, for any number of queries.

        Args:
            support: one or more images that show the class, in the forms that `segment` takes; None for zero-shot.
            annotation: annotation of each support image: `Mask`, `Box`, `Scribble`, `Points`, an image or array that
                reads as a mask, or None.
            text: name of the class, or a list of synonyms.
            templates: sentences with `{}` where the name goes: a list, one sentence, or `"clip7"` or `"clip80"`; by
                default `"a photo of a {}."`.
            negatives: one or more images of what looks like the class and is not, such as dogs for wolves. A pixel that
                is more likely that than the class is not marked.
            negative_annotation: annotation of each negative image: where that is; None for its salient part.
            name: name of the class in results, different for each class; by default the first of `text`, or else
                `"object"`.
            threshold: probability in (0, 1) above which a pixel is in the mask of this class; by default the decoder's.
            keep_images: whether to store images and annotations in the prototypes and their file, so that
                `Prototypes.rebuild` can recompute them for another encoder.

        Raises:
            ImageError: an image cannot be read.
            AnnotationError: an annotation does not fit its image, or there is neither support nor text.
            BackboneError: text is given, and neither the encoder nor `text_backbone` can embed it.
            MissingPackageError: a package that the text encoder needs is not installed.
            ConfigError: the templates are invalid.
            PrototypesError: the name is empty or not printable, the threshold is out of range, or `keep_images` is set
                without a support image.
        """
        supports, words = read_supports(self, support, annotation, text, templates)
        if name is None:
            name = "object" if text is None else resolve_names(text)[0]
        opposed = read_negatives(negatives, negative_annotation)
        return with_negatives(teach(self, supports, words, name, threshold, keep_images), self, opposed)

    @overload
    def segment(
        self,
        query: ImageLike,
        support: Sequence[Prototypes],
        *,
        options: SamplingOptions | None = None,
        trace: bool = False,
        progress: bool = False,
        **sampling: Unpack[SamplingKeywords],
    ) -> LabelMap: ...

    @overload
    def segment(
        self,
        query: ImageLike,
        support: ImageLike | Sequence[ImageLike] | Prototypes | None = None,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        text: str | Sequence[str] | None = None,
        templates: Templates | None = None,
        correction: Correction | Sequence[Correction] = (),
        options: SamplingOptions | None = None,
        trace: bool = False,
        progress: bool = False,
        **sampling: Unpack[SamplingKeywords],
    ) -> Segmentation: ...

    def segment(
        self,
        query: ImageLike,
        support: ImageLike | Sequence[ImageLike] | Prototypes | Sequence[Prototypes] | None = None,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        text: str | Sequence[str] | None = None,
        templates: Templates | None = None,
        correction: Correction | Sequence[Correction] = (),
        options: SamplingOptions | None = None,
        trace: bool = False,
        progress: bool = False,
        **sampling: Unpack[SamplingKeywords],
    ) -> Segmentation | LabelMap:
        """Segment one class in the query image, given by supports, text or both, or several classes by prototypes.

        Args:
            query: the image to segment: path, URL that fsspec opens (`s3://bucket/a.jpg`), bytes of an image file, PIL
                image, numpy array (H, W, 3) uint8 or torch tensor (3, H, W). Supports and masks may be URLs, too.
            support: one or more images that show the class; or its `Prototypes`; or a list of `Prototypes`, one for
                each class; None for zero-shot segmentation with `text`.
            annotation: annotation of each support image: `Mask`, `Box`, `Scribble`, `Points`, an image or array that
                reads as a mask, or None for an image that is not annotated.
            text: name of the class, such as `"a red bus"`, or a list of synonyms; with or without supports.
            templates: sentences with `{}` where the name goes: a list, one sentence, or `"clip7"` or `"clip80"`; by
                default `"a photo of a {}."`. Each sentence is a view of the query (UAPF).
            correction: what is marked on the query itself, in turn: `Points`, `Scribble` or `Box`, or a list of them,
                positive, negative or both (`Segmentation.correct`). For one class only.
            options: sampling options.
            trace: whether to record the noisy masks of the first sample.
            progress: whether to show a progress bar.
            **sampling: fields of `SamplingOptions` (`steps`, `ensemble`, `threshold`, `min_presence`, `seed`,
                `generator`, `refine`), which override those of `options`.

        Returns:
            The mask, probability and variance at the query's own size, presence and quality; for a list of prototypes a
            label map of all classes.

        Raises:
            ImageError: an image cannot be read.
            AnnotationError: an annotation does not fit its image, or there is neither support nor text.
            PrototypesError: prototypes do not fit the model or each other.
            BackboneError: text is given, and neither the encoder nor `text_backbone` can embed it.
            MissingPackageError: a package that the text encoder or the file system of a URL needs is not installed.
            ConfigError: a sampling option is out of range, or the templates are invalid.
        """
        chosen = sampling_options(options, sampling).resolve(self.config)
        several = isinstance(support, list | tuple) and any(isinstance(item, Prototypes) for item in support)
        learnt = several or isinstance(support, Prototypes)
        for argument, value in (("annotation", annotation), ("text", text), ("templates", templates)):
            if learnt and value is not None:
                raise AnnotationError(f"{argument}: prototypes have theirs inside; make them with it")
        marks = cast("list[Correction]", list(correction) if isinstance(correction, list | tuple) else [correction])
        if several and marks:
            raise AnnotationError("correction: of which class? Correct one of the label map: result.correct(name, ...)")
        image = self._query_reader(text is not None or has_text(support))(query, "query")
        for index, item in enumerate(marks):
            check_correction(item, image.size, f"correction[{index}]")
        if learnt:
            classes = check_classes(support, self)
        else:
            images = cast("ImageLike | Sequence[ImageLike] | None", support)
            supports, prompt = read_supports(self, images, annotation, text, templates)
            classes = [teach(self, supports, prompt, "object")]
        ensemble = 1 if self.config.deterministic else chosen.ensemble
        decoded = len(classes) + sum(item.negative is not None for item in classes)
        rounds = chosen.steps * decoder_rounds(1, decoded, ensemble, self.device)
        with tqdm(total=rounds, desc="sampling", disable=not progress) as bar:
            (found,) = self._decode([image], classes, chosen, trace, keep_levels=True, on_step=lambda: bar.update(1))
        if learnt:
            result = to_result(found, [item.name for item in classes] if several else None)
        else:
            result = dataclasses.replace(found[0], supports=tuple(map(draw_support, supports)))
        return result.correct(*marks) if marks and isinstance(result, Segmentation) else result

    def segment_many(
        self,
        queries: Iterable[ImageLike],
        prototypes: Prototypes | Sequence[Prototypes],
        *,
        batch_size: int = 8,
        workers: int = 4,
        on_error: Literal["record", "raise"] = "record",
        options: SamplingOptions | None = None,
        progress: bool = False,
        **sampling: Unpack[SamplingKeywords],
    ) -> Iterator[Outcome]:
        """Segment one or several classes in many images; the results come one by one, in the order of the images.

        Each result equals that of `segment` with the same seed, up to the rounding of batched arithmetic. Images are
        read ahead in threads; at most `2 * batch_size + workers` of them are in memory at a time.

        Args:
            queries: iterable of the images to segment, in the forms that `segment` takes.
            prototypes: prototypes of one class, or a list with the prototypes of several.
            batch_size: number of images encoded and decoded together.
            workers: number of threads that read images.
            on_error: what to do if an image cannot be read: `"record"` yields a `Failure` in its place and continues,
                `"raise"` raises `ImageError`.
            options: sampling options; the starting noise is the same for every image.
            progress: whether to show a progress bar.
            **sampling: fields of `SamplingOptions` (`steps`, `ensemble`, `threshold`, `min_presence`, `seed`,
                `generator`, `refine`), which override those of `options`.

        Returns:
            An iterator over the results: for each query a `Segmentation`, or a `LabelMap` if `prototypes` is a list, or
            a `Failure`.

        Raises:
            PrototypesError: prototypes do not fit the model or each other.
            ConfigError: an option is out of range, or `queries` is a single image.
            ImageError: an image cannot be read and `on_error="raise"`; raised by the iterator.
            MissingPackageError: the package of a URL's file system is not installed; raised by the iterator.
        """
        check_stream(queries, batch_size, workers, on_error)
        chosen = sampling_options(options, sampling).resolve(self.config)
        classes = check_classes(prototypes, self)
        names = None if isinstance(prototypes, Prototypes) else [item.name for item in classes]
        results = stream(
            queries,
            read=self._query_reader(has_text(prototypes)),
            decode=lambda batch: self._decode(batch, classes, chosen),
            finish=lambda found: to_result(found, names),
            batch_size=batch_size,
            workers=workers,
            record=on_error == "record",
        )
        total = len(queries) if isinstance(queries, Sized) else None
        return iter(tqdm(results, desc="images", total=total, disable=not progress))

    def _query_reader(self, has_text: bool) -> Callable[[ImageLike, str], Query]:
        """Return the function that reads a query for this model, given the image and its name in error messages."""
        text_space = self.text_space if has_text else None
        return lambda source, argument: read_query(source, argument, self.backbone, text_space)

    def _decode(
        self,
        queries: Sequence[Query],
        classes: Sequence[Prototypes],
        sampling: Sampling,
        trace: bool = False,
        keep_levels: bool = False,
        on_step: Callable[[], object] | None = None,
    ) -> list[list[Segmentation]]:
        """Call `diffup.inference.decode` with this model's encoder and decoder, and its text space if it is needed."""
        return decode(
            queries,
            classes,
            sampling,
            backbone=self.backbone,
            decoder=self.decoder,
            text_space=self.text_space if has_text(classes) else None,
            trace=trace,
            keep_levels=keep_levels,
            on_step=on_step,
        )


def _load(backbone: str | Backbone | Sequence[str | Backbone], device: torch.device, **options: Any) -> Backbone:
    """Load an encoder onto a device; an object that the caller gave is copied there, not moved."""
    loaded = load_backbone(backbone, **options)
    return loaded.to(device) if isinstance(backbone, str) else placed(loaded, device)
