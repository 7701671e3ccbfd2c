"""`DiffUp`: an encoder, the priors and the decoder put together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diffup.annotation import AnnotationLike, Support, pair_supports
from diffup.backbones import Backbone, check_pyramid, load_backbone
from diffup.decoder.base import Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion, check_steps
from diffup.decoder.sampling import Samples, draw_noise, sample
from diffup.decoder.weights import fetch_decoder, load_decoder, save_decoder
from diffup.errors import BackboneError, ConfigError
from diffup.images import ImageLike, read_image, resize_image
from diffup.priors.condition import EDGE_SIDE, Condition, SupportFeatures, build_condition
from diffup.priors.views import warp
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
        backbone: name (`family[:variant]`) or object of the encoder; by default the one that the decoder names.
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
        backbone: str | Backbone | None = None,
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
        backbone: str | Backbone | None = None,
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
            ConfigError: the config has unknown or contradictory fields, or is of a newer format.
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

    def push_to_hub(
        self,
        repo: str,
        *,
        card: str | os.PathLike[str] | None = None,
        scores: str | os.PathLike[str] | None = None,
        training: str | os.PathLike[str] | None = None,
        licence: str | None = None,
        notes: str | None = None,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        token: str | bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Upload the decoder, and only the decoder, with a model card to the Hugging Face hub.

        Args:
            repo: `"user/repo"`, made if needed.
            card: a model card of your own; otherwise one is written from the next four.
            scores: the `scores.json` of `diffup evaluate`, made with this decoder.
            training: the `config.json` of the training run.
            licence: identifier in lower case, such as `apache-2.0`.
            notes: Markdown of your own, such as where the data come from.
            private: of a repository that is made: only its owner sees it.
            revision: branch, made if needed; the main one by default.
            message: of the commit.
            token: the hub client's; what it is logged in with by default.
            dtype: precision of the weights file; `torch.float16` halves it.

        Returns:
            Address of the commit.

        Raises:
            ConfigError: an argument is wrong, or a file is of another decoder; nothing was sent.
            HubError: the hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses.
        """
        from diffup.hub import upload, write_repository

        made_from: dict[str, Any] = {
            "card": card,
            "scores": scores,
            "training": training,
            "licence": licence,
            "notes": notes,
        }
        with tempfile.TemporaryDirectory() as folder:
            write_repository(folder, self.decoder, repo, dtype=dtype, **made_from)
            return upload(folder, repo, private=private, revision=revision, message=message, token=token)

    def upgrade(self, backbone: str | Backbone, **options: Any) -> DiffUp:
        """The same decoder, its weights shared, behind another encoder. Nothing is trained.

        Args:
            backbone: name or object of the encoder.
            **options: of the encoder's family, such as `checkpoint_path` or `input_size`.

        Raises:
            BackboneError: the encoder cannot be found or does not take the options, or the decoder reads low-level
                features (DiffUp+LFE, paper Table 9) and so is tied to the encoder that it was trained with.
        """
        if self.config.low_level_channels:
            raise BackboneError(f"upgrade to {backbone if isinstance(backbone, str) else backbone.name!r}: {self._tie}")
        return DiffUp(self.decoder, load_backbone(backbone, **options), self.device)

    def segment(
        self,
        query: ImageLike,
        support: ImageLike | Sequence[ImageLike],
        annotation: AnnotationLike | Sequence[AnnotationLike] = None,
        *,
        steps: int | None = None,
        ensemble: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        trace: bool = False,
        progress: bool = False,
    ) -> Segmentation:
        """Mark the support's class in the query image.

        Args:
            query: path, PIL image, numpy array (H, W, 3) uint8 or torch tensor (3, H, W).
            support: one or more images that show the class.
            annotation: where it is in each: `Mask`, `Box`, `Scribble`, `Points`, something that reads as a mask, or
                None for an image without any.
            steps: DDIM steps, 1 to 250; more are slower. By default the config's.
            ensemble: samples that are averaged. By default the config's.
            threshold: probability above which a pixel is marked, in (0, 1). By default the config's.
            seed: seed of the sampling noise; the same seed gives the same result.
            generator: used instead of the seed.
            trace: keep the noisy masks of the first sample.
            progress: show a progress bar.

        Returns:
            Mask, probability, uncertainty and quality at the query's own size.

        Raises:
            ImageError: an image cannot be read.
            AnnotationError: an annotation does not fit its image; the message says which.
            ConfigError: steps, ensemble or threshold is out of range.
        """
        steps, ensemble, threshold = self.sampling_options(steps, ensemble, threshold)
        image = read_image(query, argument="query")
        supports = self.encode_supports(pair_supports(support, annotation))
        condition = self.condition(image, supports)
        if generator is None:
            generator = torch.Generator().manual_seed(seed)
        noise = draw_noise(condition, ensemble, generator)
        with tqdm(total=steps, desc="sampling", disable=not progress) as bar:
            samples = sample(
                self.decoder, self.diffusion, condition, noise, steps, trace, on_step=lambda: bar.update(1)
            )
        return to_segmentation(image, condition, samples, threshold, self.backbone.name)

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features of images at the encoder's input size.

        Args:
            images: (3, H, W) in [0, 1] each, of any sizes.

        Returns:
            Four levels (N, C_l, h_l, w_l), on the model's device.

        Raises:
            BackboneError: the encoder breaks the protocol.
        """
        resized = torch.stack([resize_image(image, self.backbone.input_size) for image in images])
        # Channels-last convolutions are about a third faster on a CPU.
        resized = resized.to(self.device, memory_format=torch.channels_last)
        parts = [self._pyramid(resized[i : i + _BATCH]) for i in range(0, len(resized), _BATCH)]
        return [torch.cat(levels) for levels in zip(*parts, strict=True)]

    def encode_supports(self, supports: Sequence[Support]) -> SupportFeatures:
        """The support side of an episode; a single support comes as its five views (UAPF).

        Args:
            supports: of `diffup.annotation.pair_supports`.

        Returns:
            A batch of one.
        """
        plan = plan_views(len(supports))
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
        low_level = bool(self.config.low_level_channels)
        return build_condition(self.encode([query]), supports, small, self.config.priors, low_level)

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        return check_pyramid(self.backbone.pyramid(images), self.backbone.name, len(images))

    def sampling_options(
        self, steps: int | None, ensemble: int | None, threshold: float | None
    ) -> tuple[int, int, float]:
        """Steps, ensemble and threshold, the config's where None.

        Raises:
            ConfigError: one is out of range.
        """
        steps = self.config.steps if steps is None else steps
        ensemble = self.config.ensemble if ensemble is None else ensemble
        threshold = self.config.threshold if threshold is None else threshold
        check_steps(self.config, steps)
        if ensemble < 1:
            raise ConfigError(f"ensemble={ensemble}: it must be 1 or more")
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold={threshold}: it must lie between 0 and 1")
        return steps, ensemble, threshold


def to_segmentation(
    image: Tensor, condition: Condition, samples: Samples, threshold: float, backbone: str
) -> Segmentation:
    """Bring the samples of one query to its own size.

    Args:
        image: (3, H, W) in [0, 1], the query.
        condition: its condition, a batch of one.
        samples: its samples, a batch of one.
        threshold: probability above which a pixel is marked.
        backbone: name of the encoder.
    """
    probability = samples.probability[0]
    maps = torch.stack(
        [
            probability.mean(dim=0),
            probability.var(dim=0, correction=0),
            samples.error[0].clamp(-2, 2),
            condition.prior[0, 0] * 0.5 + 0.5,
        ]
    )
    mean, variance, error, prior = enlarge(maps, (image.shape[1], image.shape[2])).numpy()
    return Segmentation(
        image=(image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy(),
        mask=mean > threshold,
        probability=mean,
        variance=variance,
        quality=float(samples.iou[0]),
        error_map=error,
        prior=prior,
        threshold=threshold,
        backbone=backbone,
        trace=None if samples.trace is None else samples.trace[0].cpu().numpy(),
        trace_timesteps=() if samples.trace is None else (*samples.timesteps, -1),
    )


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring decoder maps to an image's size: (N, 64, 64) -> (N, H, W) on the CPU, bilinear."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=True)[0].cpu()


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
