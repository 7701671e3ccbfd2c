"""Sampling options: what the caller asks for, checked against the decoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from numbers import Real
from typing import TypedDict

import torch
from torch import Tensor

from diffup.decoder.config import MAX_ENSEMBLE, DecoderConfig
from diffup.decoder.diffusion import check_steps
from diffup.errors import ConfigError
from diffup.priors.condition import SIZES
from diffup.refine import REFINE
from diffup.utils.options import seeded, whole_number
from diffup.utils.suggestions import did_you_mean


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions`, for functions that take them as keyword arguments too."""

    steps: int | None
    ensemble: int | None
    threshold: float | None
    min_presence: float | None
    seed: int
    generator: torch.Generator | None
    refine: bool | None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How masks are sampled. Functions that take this object take its fields as keyword arguments too.

    Attributes:
        steps: number of DDIM steps, 1 to 250; more are slower. The decoder's own number if None.
        ensemble: number of samples that are averaged, 1 to 1000. The decoder's own number if None.
        threshold: probability above which a pixel is marked, in (0, 1). If None, the threshold of the prototypes, or
            else the decoder's own.
        min_presence: presence below which the class counts as absent and its mask is empty, 0 to 1; 0 never empties a
            mask. The decoder's own if None.
        seed: seed of the starting noise, a whole number of 64 bits; the same seed gives the same result.
        generator: source of the starting noise instead of the seed.
        refine: whether masks and probabilities are refined to the outlines of the query (`diffup.refine`); the
            library's default (`diffup.refine.REFINE`) if None.
    """

    steps: int | None = None
    ensemble: int | None = None
    threshold: float | None = None
    min_presence: float | None = None
    seed: int = 0
    generator: torch.Generator | None = None
    refine: bool | None = None

    def resolve(self, config: DecoderConfig) -> Sampling:
        """Fill missing options in from the decoder's config, and check them.

        Args:
            config: config of the decoder to sample.

        Raises:
            ConfigError: a value is out of range or of the wrong type.
        """
        steps = whole_number("steps", config.steps if self.steps is None else self.steps)
        ensemble = whole_number("ensemble", config.ensemble if self.ensemble is None else self.ensemble)
        check_steps(config, steps)
        if not 1 <= ensemble <= MAX_ENSEMBLE:
            raise ConfigError(f"ensemble={ensemble}: it must be 1 to {MAX_ENSEMBLE}")
        threshold = None if self.threshold is None else checked_threshold(self.threshold)
        min_presence = checked_min_presence(config.min_presence if self.min_presence is None else self.min_presence)
        if not isinstance(self.generator, torch.Generator | None):
            raise ConfigError(f"generator={self.generator!r}: expected a torch.Generator; for a number give seed=")
        generator = seeded(self.seed) if self.generator is None else self.generator
        if not isinstance(self.refine, bool | None):
            raise ConfigError(f"refine={self.refine!r}: it must be True or False, or None for the default")
        refine = REFINE if self.refine is None else self.refine
        return Sampling(steps, ensemble, threshold, config.threshold, min_presence, generator, refine)


@dataclass(frozen=True)
class Sampling:
    """Sampling options of one decoder, complete and checked.

    Attributes:
        steps: number of DDIM steps.
        ensemble: number of samples that are averaged.
        override: threshold for all classes that the caller gave, in (0, 1), or None.
        default: the decoder's own threshold, in (0, 1).
        min_presence: presence below which a mask is empty, in [0, 1].
        generator: source of the starting noise.
        refine: whether masks and probabilities are refined to the outlines of the query.
    """

    steps: int
    ensemble: int
    override: float | None
    default: float
    min_presence: float
    generator: torch.Generator
    refine: bool

    def threshold(self, own: float | None = None) -> float:
        """The threshold of a class: the caller's, else that of the class's prototypes, else the decoder's.

        Args:
            own: threshold of the class's prototypes, in (0, 1), or None.
        """
        return next(value for value in (self.override, own, self.default) if value is not None)

    @functools.cached_property
    def noise(self) -> Tensor:
        """Starting noise of every query: (ensemble, 64, 64), standard normal.

        It is drawn once, on the generator's device, so that the same seed gives the same result on every device.
        """
        shape = (self.ensemble, SIZES[0], SIZES[0])
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


def checked_threshold(value: object) -> float:
    """Return a threshold after checking that it lies between 0 and 1.

    Args:
        value: probability above which a pixel is marked.

    Raises:
        ConfigError: it is no number, or out of range.
    """
    threshold = _number("threshold", value)
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold={value}: it must lie between 0 and 1")
    return threshold


def checked_min_presence(value: object) -> float:
    """Return a minimum presence after checking that it is 0 to 1.

    Args:
        value: presence below which a mask is empty.

    Raises:
        ConfigError: it is no number, or out of range.
    """
    presence = _number("min_presence", value)
    if not 0 <= presence <= 1:
        raise ConfigError(f"min_presence={value}: it must be 0 to 1")
    return presence


def _number(name: str, value: object) -> float:
    """Check that an option is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name}={value!r}: it must be a number")
    return float(value)


def refuse_generator(options: SamplingOptions) -> None:
    """Refuse a generator where results are written and resumed: only a seed can be recorded.

    Args:
        options: sampling options of the run.

    Raises:
        ConfigError: the options have a generator.
    """
    if options.generator is not None:
        raise ConfigError("generator: results that are put on record need a seed; give seed= instead")


def sampling_options(options: SamplingOptions | None, keywords: SamplingKeywords) -> SamplingOptions:
    """Merge sampling options that were given as an object and as keyword arguments; keyword arguments win.

    Args:
        options: options object, or None.
        keywords: fields of `SamplingOptions` by name.

    Raises:
        ConfigError: `options` is something else than `SamplingOptions`.
        TypeError: a keyword is not a field of `SamplingOptions`.
    """
    if not isinstance(options, SamplingOptions | None):
        raise ConfigError(f"options={options!r}: expected SamplingOptions(steps=..., ensemble=..., ...)")
    for name in keywords:
        if name not in SamplingKeywords.__annotations__:
            raise TypeError(
                f"unexpected keyword argument {name!r}{did_you_mean(name, SamplingKeywords.__annotations__)}"
            )
    return replace(SamplingOptions() if options is None else options, **keywords)
