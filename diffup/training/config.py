"""Settings of a training run: with the data and the encoders, they determine its result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffup.decoder.config import DecoderConfig, from_dict, parse_object
from diffup.errors import ConfigError
from diffup.priors.similarity import check_metric
from diffup.utils.options import MAX_SEED

MOST_PASTED = 2000
"""Maximum number of pasted images, which large data sets reach."""

PASTED_EACH = 10
"""Number of pasted images per training image of a small data set; more would repeat the same few objects."""

QUICK_STEPS, QUICK_IMAGES = 300, 50


@dataclass(frozen=True)
class ViewsConfig:
    """Settings of the augmented views of the training images, which are rendered and encoded once.

    Args:
        images: maximum number of training images of each data set, drawn by `seed` with the classes in turn; None for
            all. Limit it for large data sets whose features do not fit on the disk.
        crops: number of random crops of each image.
        crop_scale: minimum side of a crop as a share of the image's side, in (0, 1]; the maximum is the whole image.
        jitter: strength of the random changes of brightness, contrast and saturation.
        pasted: number of images with objects of the training classes pasted onto other photos; None for ten per
            training image, 2000 at most.
        seed: random seed of all views.
    """

    images: int | None = None
    crops: int = 4
    crop_scale: float = 0.35
    jitter: float = 0.3
    pasted: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise ConfigError(f"images={self.images}: an episode takes 2 or more; null takes all")
        if self.crops < 0 or (self.pasted or 0) < 0:
            raise ConfigError(f"crops={self.crops}, pasted={self.pasted}: they must be 0 or more")
        if not 0 < self.crop_scale <= 1:
            raise ConfigError(f"crop_scale={self.crop_scale}: it must be above 0 and at most 1")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter={self.jitter}: it must be at least 0 and below 1")

    def pasted_of(self, images: int) -> int:
        """Return the number of pasted images.

        Args:
            images: number of training images.
        """
        return min(MOST_PASTED, PASTED_EACH * images) if self.pasted is None else self.pasted


@dataclass(frozen=True)
class EpisodesConfig:
    """Distribution of the training episodes.

    Args:
        max_shots: maximum K; K is uniform in 1 .. max_shots. A single support is given as the three views of UAPF.
        mask: probability that a support is annotated by its mask.
        box: probability that a support is annotated by a tight box.
        scribble: probability that a support is annotated by a random scribble.
        points: probability that a support is annotated by random points.
        none: probability that a support is not annotated.
        mixed: probability that the annotation kind is drawn for each support of an episode, not once for all.
        same_image: probability that the query is a view of the same image as a support.
        pasted: share of queries that are pasted images, if there are any.
        cropped: share of queries that are crops, if there are any; the other queries are whole images.
        absent: probability that the query does not show the class of its supports.
        near: share of these queries that show one of the classes most similar to it, such as a cat for a dog.
        text: share of the batches whose classes are given by name alone, if the run has a text space.
        text_and_supports: share of the batches whose classes are given by name and by supports, if it has one.
    """

    max_shots: int = 5
    mask: float = 0.5
    box: float = 0.2
    scribble: float = 0.15
    points: float = 0.05
    none: float = 0.1
    mixed: float = 0.3
    same_image: float = 0.1
    pasted: float = 0.35
    cropped: float = 0.4
    absent: float = 0.12
    near: float = 0.5
    text: float = 0.1
    text_and_supports: float = 0.05

    def __post_init__(self) -> None:
        if self.max_shots < 1:
            raise ConfigError(f"max_shots={self.max_shots}: it must be 1 or more")
        if min(self.kinds.values()) < 0 or abs(sum(self.kinds.values()) - 1) > 1e-6:
            raise ConfigError(f"the probabilities of the annotation kinds must sum to 1, not {self.kinds}")
        for name in ("mixed", "same_image", "pasted", "cropped", "absent", "near"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: it is a probability")
        if min(self.text, self.text_and_supports) < 0 or self.text + self.text_and_supports > 1:
            raise ConfigError(
                f"text={self.text}, text_and_supports={self.text_and_supports}: they are shares of all batches"
            )
        if self.pasted + self.cropped > 1:
            raise ConfigError(f"pasted={self.pasted} and cropped={self.cropped} are more than all queries")

    @property
    def kinds(self) -> dict[str, float]:
        """Probability of each annotation kind."""
        return {
            "mask": self.mask,
            "box": self.box,
            "scribble": self.scribble,
            "points": self.points,
            "none": self.none,
        }


@dataclass(frozen=True)
class PerturbConfig:
    """Random changes of the episodes after their priors are computed.

    They keep the decoder from overfitting to the histograms of one encoder and to the training photos. If any of
    `zoom`, `turn` and `shift` is above 0, half of the episodes are mirrored too.

    Args:
        gamma: standard deviation of the log of each map's gamma exponent.
        noise: maximum amplitude of smooth additive noise.
        swap_levels: probability that the last two encoder levels are swapped, because encoders differ in which of them
            is more informative.
        zoom: maximum absolute log of a query's scale factor.
        turn: maximum rotation, in degrees.
        shift: maximum shift beyond the border, as a share of half the image.
        misplace: probability that the priors of each of the first two levels, and the saliency, are moved to a wrong
            place, because they are informative with few encoders only. Set it to 0 with `layout="own"`, where the first
            levels of the U-Net get no other priors.
        flatten: maximum loss of contrast of each map, after equalising its histogram: some encoders give nearly binary
            maps, others low contrast. With 0 only `gamma` changes histograms.
    """

    gamma: float = 0.35
    noise: float = 0.15
    swap_levels: float = 0.5
    zoom: float = 0.4
    turn: float = 15.0
    shift: float = 0.1
    misplace: float = 0.6
    flatten: float = 0.4

    def __post_init__(self) -> None:
        amounts = (self.gamma, self.noise, self.zoom, self.turn, self.shift)
        shares = (self.swap_levels, self.misplace, self.flatten)
        if not all(0 <= amount < math.inf for amount in amounts) or not all(0 <= share <= 1 for share in shares):
            raise ConfigError(
                f"{self}: swap_levels, misplace and flatten must be 0 to 1, the others 0 or more and finite"
            )

    @property
    def moves(self) -> bool:
        """Whether episodes are transformed geometrically."""
        return max(self.zoom, self.turn, self.shift) > 0


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Args:
        decoder: config of the decoder.
        views: settings of the augmented views.
        episodes: distribution of the episodes.
        perturb: random changes of the priors.
        backbones: names of the training encoders; each batch uses one of them, and the first becomes the decoder's
            default.
        text_backbone: name of the text space of text episodes, such as "conse:efficientnet_lite2"; empty for none.
        folds: folds whose classes are held out; empty to train on all classes.
        steps: number of training steps.
        batch_size: number of episodes per step, over all processes.
        learning_rate: peak learning rate, after warm-up and before cosine decay.
        warmup: number of steps of linear warm-up.
        weight_decay: weight decay of AdamW.
        gradient_norm: maximum norm of the gradient; larger gradients are clipped.
        ema: decay of the exponential moving average of the weights; the average is what is saved.
        noisy_steps: exponent b of the distribution of t, whose density is proportional to t^b. With more noise the
            decoder depends more on the priors.
        self_aligned: share of samples whose x_t is made from the decoder's own estimate, as in sampling, instead of the
            true mask (self-aligned denoising; Ji et al., DDP, ICCV 2023).
        bf16: whether to use bfloat16 autocast.
        seed: random seed of the run.
        metrics: pairs of metric and conversion; each batch draws one for its priors (multi-metric training, Table 7).
            If empty, training uses the decoder's own pair, which inference always uses.
        adversarial_weight: weight of the generator's adversarial loss relative to the mask loss (`system="gan"`).
        r1_weight: weight of the discriminator's R1 penalty, 0 for none (`system="gan"`). The default follows
            StyleGAN2-ADA's rule, 0.0002 * 64^2 / batch size.

    Raises:
        ConfigError: a value is out of range, or two values contradict each other.
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    perturb: PerturbConfig = field(default_factory=PerturbConfig)
    backbones: tuple[str, ...] = ("bundled:efficientnet_lite0",)
    text_backbone: str = ""
    folds: tuple[int, ...] = ()
    steps: int = 5000
    batch_size: int = 16
    learning_rate: float = 6e-4
    warmup: int = 200
    weight_decay: float = 0.02
    gradient_norm: float = 1.0
    ema: float = 0.998
    noisy_steps: float = 0.5
    self_aligned: float = 0.6
    bf16: bool = True
    seed: int = 0
    metrics: tuple[tuple[str, str], ...] = ()
    adversarial_weight: float = 0.05
    r1_weight: float = 0.05

    def __post_init__(self) -> None:
        self._check_system()
        object.__setattr__(self, "backbones", tuple(self.backbones))
        object.__setattr__(self, "folds", tuple(sorted(set(self.folds))))
        if not self.backbones:
            raise ConfigError("backbones is empty: name one or more encoders to train with")
        object.__setattr__(self, "decoder", replace(self.decoder, backbone=self.backbones[0]))
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed={self.seed}: it must be 0 to {MAX_SEED}")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 1 or more")
        for name in ("learning_rate", "gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be above 0 and finite")
        for name in ("warmup", "weight_decay", "noisy_steps", "adversarial_weight", "r1_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 0 or more and finite")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema={self.ema}: it must be at least 0 and below 1")
        if not 0 <= self.self_aligned <= 1:
            raise ConfigError(f"self_aligned={self.self_aligned}: it is a share")

    def _check_system(self) -> None:
        if self.decoder.system == "prior":
            raise ConfigError(
                "decoder.system='prior' has nothing to train: DiffUp(build_decoder(DecoderConfig(system='prior'))) "
                "works as it is"
            )
        if self.decoder.low_level_channels and len(self.backbones) > 1:
            raise ConfigError(
                f"backbones={tuple(self.backbones)} with decoder.low_level_channels={self.decoder.low_level_channels}: "
                "low-level features tie a decoder to one encoder; name one"
            )
        object.__setattr__(self, "metrics", tuple(tuple(pair) for pair in self.metrics))
        for pair in self.metrics:
            if len(pair) != 2:
                raise ConfigError(f"metrics: {pair!r} is not a pair of metric and conversion")
            check_metric(*pair)

    def quick(self) -> TrainConfig:
        """Return the config of a trial run of minutes: few steps, images and views, to see that training works."""
        images = min(self.views.images or QUICK_IMAGES, QUICK_IMAGES)
        views = replace(self.views, images=images, crops=1, pasted=2 * images)
        return replace(self, steps=QUICK_STEPS, warmup=min(self.warmup, QUICK_STEPS // 6), views=views)

    def tied_to(self, fingerprint: str, width: int) -> TrainConfig:
        """Return the config with the encoder whose low-level features the decoder reads (DiffUp+LFE).

        Args:
            fingerprint: fingerprint of the encoder.
            width: number of channels of its first feature level.
        """
        return replace(self, decoder=replace(self.decoder, low_level_encoder=fingerprint, low_level_width=width))

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> TrainConfig:
        """Read the config from JSON files; fields of a later file override those of earlier files.

        Args:
            paths: paths of the JSON files.

        Raises:
            ConfigError: a file is no JSON object, or a field is unknown or invalid.
        """
        merged: dict[str, Any] = {}
        for path in paths:
            try:
                fields = json.loads(path.read_text("utf-8", "replace"))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path} is not valid JSON: {error}") from error
            if not isinstance(fields, dict):
                raise ConfigError(f"{path} must be a JSON object, not {type(fields).__name__}")
            merged = _override(merged, fields)
        return from_dict(cls, merged)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read the config from JSON text.

        Args:
            text: JSON object of fields.

        Raises:
            ConfigError: the text is not JSON, or a field is unknown or invalid.
        """
        return from_dict(cls, parse_object(text, "the training config"))


def _override(base: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Merge JSON objects recursively; values of `fields` override those of `base`."""
    joined = dict(base)
    for name, value in fields.items():
        both = isinstance(value, dict) and isinstance(joined.get(name), dict)
        joined[name] = _override(joined[name], value) if both else value
    return joined
