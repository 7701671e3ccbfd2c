"""`DiffUp`: an encoder, the priors and the decoder put together."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from tqdm import tqdm

from diffup.backbones import Backbone, load_backbone
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.options import Sampling, SamplingKeywords, SamplingOptions, sampling_options
from diffup.decoder.weights import fetch_decoder, load_decoder, save_decoder
from diffup.errors import AnnotationError, BackboneError
from diffup.inference import Query, decode, decoder_rounds, read_query
from diffup.inputs.annotations import AnnotationLike
from diffup.inputs.images import ImageLike
from diffup.label_map import LabelMap, to_result
from diffup.prototypes import Prototypes, check_classes, has_words, read_shots, teach
from diffup.result import Segmentation
from diffup.stream import Outcome, check_stream, stream
from diffup.text.load import find_text_space
from diffup.text.space import TextSpace
from diffup.text.templates import Templates, resolve_names
from diffup.utils.options import placed, resolve_device

if TYPE_CHECKING:
    from typing_extensions import Unpack

RELEASED = Path(__file__).parent / "weights" / "default"
"""The decoder that comes with the package."""


class DiffUp:
    """Few-shot segmentation with an exchangeable encoder.

    The decoder is the only trained part and knows nothing of the encoder; `upgrade` puts the same decoder behind
    another one.

    Args:
        decoder: a trained decoder. A frozen copy of it is used, so what becomes of it later has no effect.
        backbone: name (`family[:variant]`) or object of the encoder, or several of them to be fused; by default the one
            that the decoder names. An object on another device is copied there, and stays where it is.
        device: `"cpu"`, `"cuda"`, ...; by default CUDA where there is one.
        text_backbone: name or object of the encoder that reads texts (`diffup.text.load_text_space`), loaded with the
            first text; by default the encoder's own text tower, if it has one.

    Raises:
        BackboneError: the encoder cannot be found or breaks the protocol, or is not the one whose low-level features a
            DiffUp+LFE decoder was trained on.
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
        own = copy.deepcopy(decoder).eval().requires_grad_(False)  # the caller's goes on as it is
        self.decoder = own.to(self.device).to(memory_format=torch.channels_last)
        self.backbone = _load(decoder.config.backbone if backbone is None else backbone, self.device)
        self.text_backbone = text_backbone
        if self.config.low_level_channels and self.backbone.fingerprint != self.config.low_level_encoder:
            raise BackboneError(f"backbone={self.backbone.name!r} ({self.backbone.fingerprint}): {self._tie}")

    @property
    def _tie(self) -> str:
        """Why a DiffUp+LFE decoder stays with its encoder."""
        return (
            f"this decoder reads the low-level features of {self.config.backbone} ({self.config.low_level_encoder}; "
            f"low_level_channels={self.config.low_level_channels}, DiffUp+LFE) and so works behind that encoder alone, "
            "with the same weights, input size and precision. To change the encoder, take or train a decoder with "
            "low_level_channels=0"
        )

    @property
    def config(self) -> DecoderConfig:
        """The decoder's config."""
        return self.decoder.config

    @functools.cached_property
    def text_space(self) -> TextSpace:
        """The encoder that reads texts, loaded when it is first needed.

        Raises:
            BackboneError: neither the encoder nor `text_backbone` reads texts.
            MissingPackageError, WeightsError: what reads texts cannot be loaded.
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
        """Load a trained decoder.

        Args:
            source: nothing for the decoder that comes with the package (no download), a folder that `save_pretrained`
                or training wrote, or a repository on the Hugging Face hub, `"user/repo"`.
            backbone: the encoder instead of the one that the config names.
            device: see `DiffUp`.
            revision: branch, tag or commit of a hub repository.
            text_backbone: see `DiffUp`.
            **options: of the encoder's family, such as `checkpoint_path` or `input_size`, as `upgrade` takes them; of
                the encoder that the config names where `backbone` names none.

        Raises:
            WeightsError: there is no such folder or repository, or its files are damaged.
            ConfigError: the config has unknown or contradictory fields, or is of a newer format.
            BackboneError: the encoder cannot be found or does not take the options.
        """
        folder = RELEASED if source is None else fetch_decoder(source, revision)
        decoder = load_decoder(folder)
        device = resolve_device(device)
        encoder = _load(decoder.config.backbone if backbone is None else backbone, device, **options)
        return cls(decoder, encoder, device, text_backbone)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write the decoder, and only the decoder, to a folder: `config.json` and `model.safetensors`.

        Args:
            folder: made if needed.
            dtype: precision of the file; `torch.float16` halves it.
        """
        save_decoder(folder, self.decoder.state_dict(), self.config, dtype)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the decoder, and only the decoder, with a model card to the Hugging Face hub.

        Args:
            repo: name of the repository, `"user/repo"`, made if needed.
            **options: keyword arguments of `diffup.publish.hub.push`: sources of the card (`scores`, `training`,
                `licence`, `notes`) or a `card` of your own, `private`, `revision`, `message`, `token`, `dtype`.

        Returns:
            Address of the commit.

        Raises:
            ConfigError: an argument is wrong, or a file belongs to another decoder; nothing was sent.
            HubError: the hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses.
        """
        from diffup.publish.hub import push

        return push(self.decoder, repo, **options)

    def upgrade(self, backbone: str | Backbone | Sequence[str | Backbone], **options: Any) -> DiffUp:
        """The same decoder, its weights shared, behind another encoder. Nothing is trained.

        Args:
            backbone: name or object of the encoder.
            **options: of the encoder's family, such as `checkpoint_path` or `input_size`.

        Raises:
            BackboneError: the encoder cannot be found or does not take the options, or the decoder reads low-level
                features (DiffUp+LFE, paper Table 9) and so is tied to the encoder that it was trained with.
        """
        if self.config.low_level_channels:
            raise BackboneError(f"upgrade to {getattr(backbone, 'name', backbone)!r}: {self._tie}")
        upgraded = copy.copy(self)
        upgraded.backbone = _load(backbone, self.device, **options)
        vars(upgraded).pop("text_space", None)  # the last encoder's, if it was needed
        return upgraded

    def prototypes(
        self,
        support: ImageLike | Sequence[ImageLike] | None = None,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        text: str | Sequence[str] | None = None,
        templates: Templates | None = None,
        name: str | None = None,
        threshold: float | None = None,
        keep_images: bool = False,
    ) -> Prototypes:
        """Learn a class from support images, its name or both, once, to use it on any number of queries.

        Args:
            support: one or more images that show the class, see `segment`.
            annotation: where it is in each, see `segment`.
            text: names of the class, see `segment`.
            templates: see `segment`.
            name: what results call the class; several classes need different ones. By default the first of `text`, or
                else `"object"`.
            threshold: probability above which a pixel is marked, for this class; the decoder's if None.
            keep_images: keep images and annotations inside, and in the file, so that `Prototypes.rebuild` can follow a
                change of the encoder.

        Raises:
            ImageError, AnnotationError, BackboneError, MissingPackageError, ConfigError: see `segment`.
            PrototypesError: the name is empty or not printable, the threshold is out of range, or `keep_images` is set
                and there is no image.
        """
        supports, words = read_shots(self, support, annotation, text, templates)
        if name is None:
            name = "object" if text is None else resolve_names(text)[0]
        return teach(self, supports, words, name, threshold, keep_images)

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
        options: SamplingOptions | None = None,
        trace: bool = False,
        progress: bool = False,
        **sampling: Unpack[SamplingKeywords],
    ) -> Segmentation | LabelMap:
        """Mark a class, which supports, a name or both tell, or several classes in the query image.

        Args:
            query: path, PIL image, numpy array (H, W, 3) uint8 or torch tensor (3, H, W).
            support: one or more images that show the class; or `Prototypes` of it; or a list of `Prototypes`, one for
                each of several classes; none for zero-shot, with `text` alone.
            annotation: where it is in each image: `Mask`, `Box`, `Scribble`, `Points`, something that reads as a mask,
                or None for an image without any.
            text: name of the class, such as `"a red bus"`, or several that mean the same; alone or besides supports.
            templates: sentences that names are put into, each of them one more view of the query (UAPF): a list, one
                sentence, or `"clip7"` or `"clip80"`; by default `"a photo of a {}."`.
            options: how masks are sampled.
            trace: keep the noisy masks of the first sample.
            progress: show a progress bar.
            **sampling: fields of `SamplingOptions` (`steps`, `ensemble`, `threshold`, `seed`, `generator`), which count
                more than those of `options`.

        Returns:
            Mask, probability, uncertainty and quality at the query's own size; for a list of prototypes a label map.

        Raises:
            ImageError: an image cannot be read.
            AnnotationError: an annotation does not fit its image (the message says which), or there is neither support
                nor text.
            PrototypesError: prototypes do not fit the model or each other.
            BackboneError: text is given and neither the encoder nor `text_backbone` reads it.
            MissingPackageError: a package that reads text is not installed.
            ConfigError: steps, ensemble, threshold or templates cannot be used.
        """
        chosen = sampling_options(options, sampling).resolve(self.config)
        several = isinstance(support, list | tuple) and any(isinstance(item, Prototypes) for item in support)
        learnt = several or isinstance(support, Prototypes)
        for argument, value in (("annotation", annotation), ("text", text), ("templates", templates)):
            if learnt and value is not None:
                raise AnnotationError(f"{argument}: prototypes have theirs inside; make them with it")
        image = self._query_reader(text is not None or has_words(support))(query, "query")
        if learnt:
            classes = check_classes(support, self)
        else:
            images = cast("ImageLike | Sequence[ImageLike] | None", support)
            classes = [self.prototypes(images, annotation, text=text, templates=templates, name="object")]
        ensemble = 1 if self.config.deterministic else chosen.ensemble
        rounds = chosen.steps * decoder_rounds(1, len(classes), ensemble, self.device)
        with tqdm(total=rounds, desc="sampling", disable=not progress) as bar:
            (found,) = self._decode([image], classes, chosen, trace, on_step=lambda: bar.update(1))
        return to_result(found, [item.name for item in classes] if several else None)

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
        """Mark one or several classes in many images, and give the results one after the other, in their order.

        Each result is that of `segment` with the same seed, up to the rounding of batched arithmetic. Images are read
        ahead in threads; no more than `2 * batch_size + workers` are held at a time.

        Args:
            queries: images as `segment` takes them, in a list or anything else that can be iterated.
            prototypes: of one class, or a list of those of several.
            batch_size: images that are encoded and decoded together.
            workers: threads that read images.
            on_error: what to do with an image that cannot be read: `record` gives a `Failure` in its place and goes
                on, `raise` raises.
            options: how masks are sampled; the starting noise is the same for every image.
            progress: show a progress bar.
            **sampling: fields of `SamplingOptions`, as for `segment`.

        Returns:
            An iterator: for every query a `Segmentation`, for a list of prototypes a `LabelMap`, or a `Failure`.

        Raises:
            PrototypesError: prototypes do not fit the model or each other.
            ConfigError: an option is out of range, or the queries are a single image.
            ImageError: from the iterator, with `on_error="raise"`: an image cannot be read.
        """
        check_stream(queries, batch_size, workers, on_error)
        chosen = sampling_options(options, sampling).resolve(self.config)
        classes = check_classes(prototypes, self)
        names = None if isinstance(prototypes, Prototypes) else [item.name for item in classes]
        results = stream(
            queries,
            read=self._query_reader(has_words(prototypes)),
            decode=lambda batch: self._decode(batch, classes, chosen),
            finish=lambda found: to_result(found, names),
            batch_size=batch_size,
            workers=workers,
            record=on_error == "record",
        )
        total = len(queries) if isinstance(queries, Sized) else None
        return iter(tqdm(results, desc="images", total=total, disable=not progress))

    def _query_reader(self, has_text: bool) -> Callable[[ImageLike, str], Query]:
        """A function of an image and its name in messages that makes it ready for this model."""
        text_space = self.text_space if has_text else None
        return lambda source, argument: read_query(source, argument, self.backbone, text_space)

    def _decode(
        self,
        queries: Sequence[Query],
        classes: Sequence[Prototypes],
        sampling: Sampling,
        trace: bool = False,
        on_step: Callable[[], object] | None = None,
    ) -> list[list[Segmentation]]:
        """`diffup.inference.decode` with this model's encoder, decoder and, where a class has text, text space."""
        return decode(
            queries,
            classes,
            sampling,
            backbone=self.backbone,
            decoder=self.decoder,
            text_space=self.text_space if has_words(classes) else None,
            trace=trace,
            on_step=on_step,
        )


def _load(backbone: str | Backbone | Sequence[str | Backbone], device: torch.device, **options: Any) -> Backbone:
    """An encoder on a device; one that the caller holds stays where it is."""
    loaded = load_backbone(backbone, **options)
    return loaded.to(device) if isinstance(backbone, str) else placed(loaded, device)
