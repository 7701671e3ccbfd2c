"""`DiffUp`: an encoder, the priors and the decoder put together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from tqdm import tqdm

from diffup.annotation import AnnotationLike, Support, pair_supports
from diffup.backbones import Backbone, check_pyramid, load_backbone, members_of
from diffup.bulk import Outcome, check_stream, stream
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.weights import fetch_decoder, load_decoder, save_decoder
from diffup.errors import AnnotationError, BackboneError, ConfigError
from diffup.images import ImageLike, resize_image
from diffup.inference import decode, decoder_batches, read_query, sampling_options, starting_noise
from diffup.label_map import LabelMap, to_result
from diffup.priors.condition import EDGE_SIDE, Condition, SupportFeatures, build_condition
from diffup.priors.views import View, warp
from diffup.prototypes import Prototypes, check_classes, teach
from diffup.result import Segmentation
from diffup.support import plan_views, support_features, view_regions

RELEASED = Path(__file__).parent / "weights" / "default"
"""The decoder that comes with the package."""

_BATCH = 8


class DiffUp:
    """Few-shot segmentation with an exchangeable encoder.

    The decoder is the only trained part and knows nothing of the encoder; `upgrade` puts the same decoder behind
    another one.

    Args:
        decoder: a trained decoder.
        backbone: name (`family[:variant]`) or object of the encoder, or several of them to be fused; by default the one
            that the decoder names.
        device: `"cpu"`, `"cuda"`, ...; by default CUDA where there is one.

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
    ) -> None:
        self.device = resolve_device(device)
        self.decoder = decoder.eval().requires_grad_(False).to(self.device)
        self.backbone = load_backbone(decoder.config.backbone if backbone is None else backbone).to(self.device)
        self.diffusion = Diffusion(decoder.config)
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
    ) -> DiffUp:
        """Load a trained decoder.

        Args:
            source: nothing for the decoder that comes with the package (no download), a folder that `save_pretrained`
                or training wrote, or a repository on the Hugging Face hub, `"user/repo"`.
            backbone: the encoder instead of the one that the config names.
            device: see `DiffUp`.
            revision: branch, tag or commit of a hub repository.

        Raises:
            WeightsError: there is no such folder or repository, or its files are damaged.
            ConfigError: the config has unknown or contradictory fields.
            BackboneError: the encoder cannot be found.
        """
        folder = RELEASED if source is None else fetch_decoder(source, revision)
        return cls(load_decoder(folder), backbone, device)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write the decoder, and only the decoder, to a folder: `config.json` and `model.safetensors`.

        Args:
            folder: made if needed.
            dtype: precision of the file; `torch.float16` halves it.
        """
        save_decoder(folder, self.decoder.state_dict(), self.config, dtype)

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
        return DiffUp(self.decoder, load_backbone(backbone, **options), self.device)

    def prototypes(
        self,
        support: ImageLike | Sequence[ImageLike],
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        name: str = "object",
        threshold: float | None = None,
        keep_images: bool = False,
    ) -> Prototypes:
        """Learn a class from support images once, to use it on any number of queries.

        Args:
            support: one or more images that show the class, see `segment`.
            annotation: where it is in each, see `segment`.
            name: of the class; several classes need different names.
            threshold: probability above which a pixel is marked, for this class; the decoder's if None.
            keep_images: keep images and annotations inside, and in the file, so that `Prototypes.rebuild` can follow a
                change of the encoder.

        Raises:
            ImageError: see `segment`.
            AnnotationError: see `segment`.
            PrototypesError: the name is empty or not printable, or the threshold is out of range.
        """
        return teach(self, pair_supports(support, annotation), name, threshold, keep_images)

    @overload
    def segment(
        self,
        query: ImageLike,
        support: Sequence[Prototypes],
        annotation: None = None,
        *,
        steps: int | None = None,
        ensemble: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        trace: bool = False,
        progress: bool = False,
    ) -> LabelMap: ...

    @overload
    def segment(
        self,
        query: ImageLike,
        support: ImageLike | Sequence[ImageLike] | Prototypes,
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        steps: int | None = None,
        ensemble: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        trace: bool = False,
        progress: bool = False,
    ) -> Segmentation: ...

    def segment(
        self,
        query: ImageLike,
        support: ImageLike | Sequence[ImageLike] | Prototypes | Sequence[Prototypes],
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        steps: int | None = None,
        ensemble: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        trace: bool = False,
        progress: bool = False,
    ) -> Segmentation | LabelMap:
        """Mark the support's class, or several classes, in the query image.

        Args:
            query: path, PIL image, numpy array (H, W, 3) uint8 or torch tensor (3, H, W).
            support: one or more images that show the class; or the `Prototypes` that were made of them; or a list of
                `Prototypes`, one for each of several classes.
            annotation: where it is in each image: `Mask`, `Box`, `Scribble`, `Points`, something that reads as a mask,
                or None for an image without any.
            steps: DDIM steps, 1 to 250; more are slower. By default the config's.
            ensemble: samples that are averaged. By default the config's.
            threshold: probability above which a pixel is marked, in (0, 1). By default that of the prototypes, or else
                the config's.
            seed: seed of the sampling noise; the same seed gives the same result.
            generator: used instead of the seed.
            trace: keep the noisy masks of the first sample.
            progress: show a progress bar.

        Returns:
            Mask, probability, uncertainty and quality at the query's own size; for a list of prototypes a label map.

        Raises:
            ImageError: an image cannot be read.
            AnnotationError: an annotation does not fit its image; the message says which.
            PrototypesError: prototypes do not fit the model or each other.
            ConfigError: steps, ensemble or threshold is out of range.
        """
        steps, ensemble, _ = self.sampling_options(steps, ensemble, threshold)
        image = read_query(query, self.backbone.input_size)
        several = isinstance(support, list | tuple) and any(isinstance(item, Prototypes) for item in support)
        if several or isinstance(support, Prototypes):
            if annotation is not None:
                raise AnnotationError("annotation: it belongs to support images; prototypes have theirs inside")
            classes = check_classes(support, self)
        else:
            images = cast("ImageLike | Sequence[ImageLike]", support)
            classes = [self.prototypes(images, annotation)]
        noise = starting_noise(ensemble, torch.Generator().manual_seed(seed) if generator is None else generator)
        rounds = steps * len(decoder_batches(1, len(classes)))
        with tqdm(total=rounds, desc="sampling", disable=not progress) as bar:
            decoded = decode(self, [image], classes, threshold, noise, steps, trace, on_step=lambda: bar.update(1))
        return to_result(image.pixels, decoded[0], [item.name for item in classes] if several else None)

    def segment_many(
        self,
        queries: Iterable[ImageLike],
        prototypes: Prototypes | Sequence[Prototypes],
        *,
        batch_size: int = 8,
        workers: int = 4,
        on_error: Literal["record", "raise"] = "record",
        steps: int | None = None,
        ensemble: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        progress: bool = False,
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
            steps: see `segment`.
            ensemble: see `segment`.
            threshold: see `segment`.
            seed: see `segment`; the same noise for every image.
            progress: show a progress bar.

        Returns:
            An iterator: for every query a `Segmentation`, for a list of prototypes a `LabelMap`, or a `Failure`.

        Raises:
            PrototypesError: prototypes do not fit the model or each other.
            ConfigError: an option is out of range, or the queries are a single image.
            ImageError: from the iterator, with `on_error="raise"`: an image cannot be read.
        """
        check_stream(queries, batch_size, workers, on_error)
        steps, ensemble, _ = self.sampling_options(steps, ensemble, threshold)
        classes = check_classes(prototypes, self)
        names = None if isinstance(prototypes, Prototypes) else [item.name for item in classes]
        noise = starting_noise(ensemble, torch.Generator().manual_seed(seed))
        results = stream(
            queries,
            read=lambda source, argument: read_query(source, self.backbone.input_size, argument),
            decode=lambda batch: decode(self, batch, classes, threshold, noise, steps),
            finish=lambda query, decoded: to_result(query.pixels, decoded, names),
            batch_size=batch_size,
            workers=workers,
            record=on_error == "record",
        )
        total = len(queries) if isinstance(queries, Sized) else None
        return iter(tqdm(results, desc="images", total=total, disable=not progress))

    def encode(self, images: Sequence[Tensor], batch_size: int = _BATCH) -> list[Tensor]:
        """Features of images at the encoder's input size.

        Args:
            images: (3, H, W) in [0, 1] each, of any sizes.
            batch_size: images that are encoded together, at most.

        Returns:
            Four levels (N, C_l, h_l, w_l), on the model's device.

        Raises:
            BackboneError: the encoder breaks the protocol.
        """
        resized = torch.stack([resize_image(image, self.backbone.input_size) for image in images])
        # Channels-last convolutions are about a third faster on a CPU.
        resized = resized.to(self.device, memory_format=torch.channels_last)
        parts = [self._pyramid(resized[i : i + batch_size]) for i in range(0, len(resized), batch_size)]
        return [torch.cat(levels) for levels in zip(*parts, strict=True)]

    def encode_supports(
        self, supports: Sequence[Support], plan: Sequence[tuple[int, View]] | None = None
    ) -> SupportFeatures:
        """The support side of an episode; a single support comes as its five views (UAPF).

        Args:
            supports: of `diffup.annotation.pair_supports`.
            plan: other views than those of `diffup.support.plan_views`.

        Returns:
            A batch of one.
        """
        plan = plan_views(len(supports)) if plan is None else plan
        resized = [resize_image(support.image, self.backbone.input_size) for support in supports]
        levels = self.encode([warp(resized[index][None], view)[0] for index, view in plan])
        return support_features(levels, view_regions(supports, plan).to(self.device))

    def condition(self, query: Tensor, supports: SupportFeatures) -> Condition:
        """The decoder's condition for a query.

        Args:
            query: (3, H, W) in [0, 1].
            supports: of `encode_supports`, a batch of one.

        Returns:
            A batch of one.
        """
        small = resize_image(query, (EDGE_SIDE, EDGE_SIDE))[None].to(self.device)
        return self.conditions(self.encode([query]), supports, small)

    def conditions(self, levels: Sequence[Tensor], supports: SupportFeatures, small: Tensor) -> Condition:
        """The decoder's condition for encoded queries.

        Args:
            levels: four tensors (B, C_l, h_l, w_l) of `encode`.
            supports: a batch of B.
            small: (B, 3, 128, 128) in [0, 1], the queries.
        """
        supports = replace(supports, members=members_of(self.backbone))
        return build_condition(levels, supports, small, self.config.priors, bool(self.config.low_level_channels))

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        return check_pyramid(self.backbone.pyramid(images), self.backbone.name, len(images))

    def sampling_options(
        self, steps: int | None, ensemble: int | None, threshold: float | None
    ) -> tuple[int, int, float]:
        """Steps, ensemble and threshold, the config's where None.

        Raises:
            ConfigError: one is out of range.
        """
        return sampling_options(self.config, steps, ensemble, threshold)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to use: the one named, or CUDA where there is one.

    Raises:
        ConfigError: it is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={str(device)!r} cannot be used: {error}") from error
    return chosen
