"""From images, annotations and names to the decoder's `Condition`: the half of `DiffUp` that is not trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffup.backbones import Backbone, check_pyramid, members_of
from diffup.inputs.annotations import Support
from diffup.inputs.images import resize_image
from diffup.priors.condition import EDGE_SIDE, Condition, SupportFeatures, build_condition
from diffup.priors.level import pool_to_grid
from diffup.priors.support import plan_views, support_features
from diffup.priors.text import text_maps, text_similarity
from diffup.priors.views import View, warp
from diffup.text.prompts import Words, read_words, text_space_of
from diffup.text.space import TextSpace
from diffup.text.templates import Templates
from diffup.utils.options import placed

if TYPE_CHECKING:
    from diffup.decoder.config import DecoderConfig

_BATCH = 8


class Conditioner:
    """Encoder, text space and priors.

    Attributes:
        backbone: the encoder.
        text_backbone: name or object of the encoder that reads texts; None for the encoder's own text tower.
        device: where both compute.
    """

    backbone: Backbone
    text_backbone: str | TextSpace | None
    device: torch.device

    @property
    def config(self) -> DecoderConfig:
        """The decoder's config, which says how priors are made."""
        raise NotImplementedError

    def encode(self, images: Sequence[Tensor], batch_size: int = _BATCH) -> list[Tensor]:
        """Features of images at the encoder's input size.

        Args:
            images: (3, H, W) in [0, 1] each, of any sizes.
            batch_size: images that are encoded together, at most; on a CPU no more than there are threads, since more
                push each other out of the caches.

        Returns:
            Four levels (N, C_l, h_l, w_l), on the model's device.

        Raises:
            BackboneError: the encoder breaks the protocol.
        """
        if self.device.type == "cpu":
            batch_size = min(batch_size, torch.get_num_threads())
        resized = torch.stack([resize_image(image, self.backbone.input_size) for image in images])
        # Channels-last convolutions are about a third faster on a CPU.
        resized = resized.to(self.device, memory_format=torch.channels_last)
        parts = [self._pyramid(resized[i : i + batch_size]) for i in range(0, len(resized), batch_size)]
        return [torch.cat(levels) for levels in zip(*parts, strict=True)]

    def encode_supports(
        self, supports: Sequence[Support], plan: Sequence[tuple[int, View]] | None = None
    ) -> SupportFeatures:
        """The support side of an episode; a single support comes as its three views (UAPF).

        Args:
            supports: of `diffup.inputs.annotations.pair_supports`.
            plan: other views than those of `diffup.priors.support.plan_views`.

        Returns:
            A batch of one.
        """
        plan = plan_views(len(supports)) if plan is None else plan
        resized = [resize_image(support.image, self.backbone.input_size) for support in supports]
        levels = self.encode([warp(resized[index][None], view)[0] for index, view in plan])
        return support_features(levels, supports, plan)

    @functools.cached_property
    def text_space(self) -> TextSpace:
        """The encoder that reads texts, loaded when it is first needed.

        Raises:
            BackboneError, MissingPackageError, WeightsError: see `diffup.text.prompts.text_space_of`.
        """
        space = text_space_of(self.backbone, self.text_backbone)
        named = self.text_backbone is None or isinstance(self.text_backbone, str)
        return space.to(self.device) if named else placed(space, self.device)

    def encode_text(self, text: str | Sequence[str], templates: Templates | None = None) -> Words:
        """Embeddings of a class's names in every template.

        Args:
            text: see `segment`.
            templates: see `segment`.

        Raises:
            AnnotationError, BackboneError, ConfigError, MissingPackageError, WeightsError: see `segment`.
        """
        return read_words(self.text_space, text, templates)

    def dense_text_features(self, images: Sequence[Tensor]) -> Tensor:
        """Dense text-space features of images, (3, H, W) in [0, 1] each, of any sizes: (B, C, h, w)."""
        space = self.text_space
        return space.dense(torch.stack([resize_image(image, space.input_size) for image in images]).to(self.device))

    def text_maps(self, levels: Sequence[Tensor], features: Tensor, embeddings: Tensor) -> Tensor:
        """Maps of where a named class is; see `diffup.priors.text.text_maps`.

        Args:
            levels: four tensors (B, C_l, h_l, w_l) of `encode`.
            features: (B, C, h, w) of `dense_text_features`.
            embeddings: (V, C) of `encode_text`.

        Returns:
            (B, V, h, w) in [0, 1].
        """
        similar = text_similarity(features, embeddings.to(self.device), self.text_space.vocabulary_mean())
        members = members_of(self.backbone)
        return text_maps(similar, pool_to_grid(levels[-1], self.config.priors.grid), members[-1] if members else ())

    def condition(self, query: Tensor, supports: SupportFeatures | None, words: Words | None = None) -> Condition:
        """The decoder's condition for a query.

        Args:
            query: (3, H, W) in [0, 1].
            supports: of `encode_supports`, a batch of one; None for zero-shot.
            words: of `encode_text`; None where no name is given.

        Returns:
            A batch of one.
        """
        small = resize_image(query, (EDGE_SIDE, EDGE_SIDE))[None].to(self.device)
        levels = self.encode([query])
        text = None if words is None else self.text_maps(levels, self.dense_text_features([query]), words.embeddings)
        return self.conditions(levels, supports, small, text)

    def conditions(
        self, levels: Sequence[Tensor], supports: SupportFeatures | None, small: Tensor, text: Tensor | None = None
    ) -> Condition:
        """The decoder's condition for encoded queries.

        Args:
            levels: four tensors (B, C_l, h_l, w_l) of `encode`.
            supports: a batch of B; None for zero-shot.
            small: (B, 3, 128, 128) in [0, 1], the queries.
            text: (B, V, h, w) of `text_maps`; None where no name is given.
        """
        low_level = bool(self.config.low_level_channels)
        return build_condition(levels, supports, small, self.config.priors, low_level, text, members_of(self.backbone))

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        return check_pyramid(self.backbone.pyramid(images), self.backbone.name, len(images))
