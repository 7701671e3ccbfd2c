"""The decoder's config: everything that its weights depend on, and the defaults of sampling."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from diffup import __version__
from diffup.decoder.quality import ESTIMATES
from diffup.errors import ConfigError
from diffup.priors.config import LEVELS, LOW_LEVEL_GRID, PriorConfig
from diffup.priors.presence import EVIDENCE

Prediction = Literal["epsilon", "x0", "v"]
Loss = Literal["mse", "bce_dice"]
Shift = Literal["none", "prior", "quadratic"]
System = Literal["diffusion", "one_step", "gan", "prior"]

MAX_ENSEMBLE = 1000
"""Greatest number of samples of a query."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 100.0
"""Limits of `DecoderConfig.temperature`; beyond them all probabilities are 0 and 1, or 1/2."""

PRESENCE_CALIBRATION = (7.92, 10.67, -4.87, 13.4, -2.26)
"""Factors of `Condition.evidence` (`diffup.priors.presence.EVIDENCE`), fitted to the bundled encoders."""

FORMAT = 6
"""Version of a decoder folder's `config.json`. A new one is due whenever a file that is read as before would mean
another decoder: a field renamed, removed, or with a default that is not what files without it meant."""

FORMAT_KEY = "format_version"
"""Where the file says so."""


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of UQDD (paper section III-D). The defaults are the released decoder's; `paper()` gives the paper's.

    Args:
        priors: config of the priors that condition the decoder.
        channels: channels of the U-Net at 64, 32, 16 and 8 px, multiples of 8.
        condition_hidden: hidden channels of the SCM convolutions.
        quality_hidden: channels of the quality branch, a multiple of 8.
        error_modulation: whether the predicted error map modulates the blocks (DQM; Table 6).
        iou_modulation: whether the predicted IoU modulates the blocks (DQM; Table 6).
        quality_normalisation: whether that modulation normalises the features, as the paper's does (AdaIN, eq. 16),
            which takes out of them how much there is to mark (docs/results.md, ablations).
        prior_skip: whether an `x0` prediction starts from the mean prior times a learned gain, so that the network
            learns the difference to the prior. Predictions of noise or v, which do not look like a mask, never do.
        timesteps: number T of diffusion steps.
        beta_start: first beta before scaling by 1000 / T.
        beta_end: last beta before scaling by 1000 / T.
        shift: offset of the forward process by the prior (eq. 13): k_t = 0, 1 - sqrt(abar_t), or
            sqrt(abar_t) (1 - sqrt(abar_t)).
        signal_scale: amplitude of the mask relative to unit noise, in (0, 1]; 1 is the paper's [-1, 1]. A mask is so
            redundant that at 1 most noise levels still show it, and the decoder learns nothing from the priors.
        prediction: target of the network: the noise (`epsilon`), the mask (`x0`) or `v`; the loss `bce_dice` needs
            `x0`.
        loss: `mse` on the prediction, or `bce_dice`, binary cross-entropy plus Dice on the x0 estimate.
        error_weight: weight of the error map's loss (eq. 21).
        iou_weight: weight of the IoU's loss (eq. 21).
        presence_calibration: factors of the evidence (`Condition.evidence`), whose sum is the logit of the presence, by
            default those of the released decoder: evidence comes from the encoder alone.
        quality_calibration: factors of the logits of the mask's expected IoU and of the predicted IoU, of the logarithm
            of its area, of the logit of its threshold, and of the evidence; the sum is the logit of the quality
            (`diffup.decoder.quality.calibrated_quality`). Fitted on queries that were not trained on
            (`diffup.evaluation.trust`).
        score_calibration: factor and offset of the quality's logit; the sum is the logit of an IoU above 1/2. Fitted in
            the same way.
        steps: default number of DDIM steps.
        ensemble: default number of samples that are averaged.
        threshold: default probability above which a pixel is marked, in (0, 1).
        temperature: temperature at which each mask's own threshold is chosen (`diffup.decoder.threshold`); the logits
            of its probability are then shifted so that it lies at 1/2. 0 leaves probabilities as they are.
        min_presence: default presence below which a mask is empty, in [0, 1]; 0 never empties a mask.
        backbone: name of the encoder to use if the user names none.
        system: `diffusion` is the paper's; `one_step` the same U-Net without a noisy mask, in a single pass; `gan` the
            StyleGAN2-style generator of Table 8; `prior` the mean prior itself, without training. The last three take
            one step; `one_step` and `prior` are deterministic, so they have a single sample, and `prior` has one
            threshold for all masks.
        low_level_channels: channels that the first feature level of the training encoder is projected to as additional
            condition (DiffUp+LFE, Table 9), which ties the decoder to that encoder; 0 for none.
        low_level_width: channels of that feature level, set by training.
        low_level_encoder: fingerprint of that encoder, set by training.

    Raises:
        ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    priors: PriorConfig = field(default_factory=PriorConfig)
    channels: tuple[int, int, int, int] = (32, 64, 176, 256)
    condition_hidden: int = 32
    quality_hidden: int = 32
    error_modulation: bool = True
    iou_modulation: bool = True
    quality_normalisation: bool = False
    prior_skip: bool = True
    timesteps: int = 250
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    shift: Shift = "quadratic"
    signal_scale: float = 0.5
    prediction: Prediction = "x0"
    loss: Loss = "bce_dice"
    error_weight: float = 0.1
    iou_weight: float = 0.1
    presence_calibration: tuple[float, ...] = PRESENCE_CALIBRATION
    quality_calibration: tuple[float, ...] = (1.0, *(0.0,) * (ESTIMATES - 1 + EVIDENCE))
    score_calibration: tuple[float, float] = (1.0, 0.0)
    steps: int = 1
    ensemble: int = 2
    threshold: float = 0.5
    temperature: float = 2.0
    min_presence: float = 0.0
    backbone: str = "bundled:efficientnet_lite0"
    system: System = "diffusion"
    low_level_channels: int = 0
    low_level_width: int = 0
    low_level_encoder: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        self._check_system()
        self._check_limits()
        if len(self.channels) != LEVELS or any(width < 8 or width % 8 for width in self.channels):
            raise ConfigError(f"channels={self.channels}: give {LEVELS} multiples of 8")
        for name, options in (("shift", Shift), ("prediction", Prediction), ("loss", Loss)):
            if getattr(self, name) not in get_args(options):
                raise ConfigError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(get_args(options))}")
        for name in ("condition_hidden", "quality_hidden", "timesteps", "steps", "ensemble"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 1 or more")
        if self.temperature and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature}: it must be {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, or 0 for one "
                "threshold for all masks"
            )
        for name in ("error_weight", "iou_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 0 or more and finite")
        if self.quality_hidden % 8:
            raise ConfigError(f"quality_hidden={self.quality_hidden}: it must be a multiple of 8")
        if not 0 < self.signal_scale <= 1:
            raise ConfigError(f"signal_scale={self.signal_scale}: it must be above 0 and at most 1")
        if not 0 <= self.min_presence <= 1:
            raise ConfigError(f"min_presence={self.min_presence}: it must lie between 0 and 1")
        for name, count in _CALIBRATIONS.items():
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != count or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"{name}={values}: give {count} finite numbers")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold={self.threshold}: it must lie between 0 and 1")
        if not 0 < self.beta_start < self.beta_end or self.beta_end * 1000 / self.timesteps >= 1:
            raise ConfigError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}, timesteps={self.timesteps}: the betas, "
                "scaled by 1000 / timesteps, must grow and stay below 1"
            )
        if self.steps > self.timesteps:
            raise ConfigError(f"steps={self.steps} is more than timesteps={self.timesteps}")
        if self.loss == "bce_dice" and self.prediction != "x0":
            raise ConfigError(f"loss='bce_dice' needs prediction='x0', not {self.prediction!r}: it compares masks")

    def _check_system(self) -> None:
        if self.system not in get_args(System):
            raise ConfigError(f"system={self.system!r}: choose one of {', '.join(get_args(System))}")
        if self.system != "diffusion":
            if self.steps > 1:
                raise ConfigError(
                    f"steps={self.steps} with system={self.system!r}: such a decoder answers in a single step; give "
                    "steps=1 or leave it out"
                )
            if self.prediction != "x0":
                raise ConfigError(f"system={self.system!r} needs prediction='x0', not {self.prediction!r}: no noise")
        if self.deterministic:
            object.__setattr__(self, "ensemble", 1)
        if self.system == "prior":  # similarities, which promise nothing
            object.__setattr__(self, "temperature", 0.0)
        if self.system == "gan" and self.loss != "bce_dice":
            raise ConfigError(f"system='gan' needs loss='bce_dice', not {self.loss!r}: the generator gives logits")
        for name in ("low_level_channels", "low_level_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: it must be 0 or more")
        if self.low_level_channels and self.system not in ("diffusion", "one_step"):
            raise ConfigError(
                f"low_level_channels={self.low_level_channels} with system={self.system!r}: only the U-Net of "
                "'diffusion' and 'one_step' reads low-level features"
            )

    def _check_limits(self) -> None:
        """Refuse sizes that exceed any memory before anything is built; a config may come from anywhere."""
        sizes = {name: getattr(self, name) for name in _LIMITS}
        sizes |= {f"channels[{index}]": width for index, width in enumerate(self.channels)}
        for name, value in sizes.items():
            limit = _LIMITS.get(name, _MAX_WIDTH)
            if value > limit:
                raise ConfigError(f"{name}={value}: it must be {limit} or less")

    @property
    def deterministic(self) -> bool:
        """Whether the result is independent of the sampling noise."""
        return self.system in ("one_step", "prior")

    @property
    def max_steps(self) -> int:
        """Greatest number of sampling steps: `timesteps` for a diffusion, 1 for every other system."""
        return self.timesteps if self.system == "diffusion" else 1

    @property
    def feature_grids(self) -> tuple[int, ...]:
        """Greatest side, in positions, of each feature level that is used; DiffUp+LFE uses a finer first level."""
        return (LOW_LEVEL_GRID, *self.priors.grids[1:]) if self.low_level_channels else self.priors.grids

    @classmethod
    def paper(cls) -> DecoderConfig:
        """The paper's settings where it states them, and the likely ones elsewhere (docs/how_it_works.md)."""
        priors = PriorConfig(
            kinds=("prototype",),
            centre=False,
            absolute=False,
            self_affinity=False,
            affinity_power=1.0,
            layout="own",
            saliency=False,
            calibration=False,
        )
        return cls(
            priors=priors,
            quality_normalisation=True,
            threshold=0.3,
            temperature=0.0,
            prior_skip=False,
            signal_scale=1.0,
            prediction="epsilon",
            loss="mse",
            steps=50,
            ensemble=5,
        )

    def same_network(self, other: DecoderConfig) -> bool:
        """Whether weights trained with another config can be used with this one (`other_network`)."""
        return not self.other_network(other)

    def other_network(self, other: DecoderConfig) -> tuple[str, ...]:
        """Return the names of the fields for which weights trained with another config cannot be used with this one.

        Args:
            other: config that may differ in `steps`, `ensemble`, `threshold`, `temperature`, `min_presence`,
                `backbone`, the weights of the losses and the calibrations.
        """
        choices = {
            *("steps", "ensemble", "threshold", "temperature", "min_presence", "backbone"),
            *("error_weight", "iou_weight"),
            *_CALIBRATIONS,
        }
        names = [part.name for part in dataclasses.fields(self) if part.name not in choices]
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))

    def to_json(self) -> str:
        """The text of a decoder folder's `config.json`: the version of the format, and the fields by name."""
        return json.dumps({FORMAT_KEY: FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the config") -> DecoderConfig:
        """Read the text of a `config.json`. Fields that it lacks have their defaults.

        Args:
            text: JSON object of fields by name; one without a version is taken to be of the present one.
            source: name of the file in error messages.

        Raises:
            ConfigError: the text is no JSON object, its format is another version, or a field is unknown or of another
                type.
        """
        fields = parse_object(text, source)
        version = fields.pop(FORMAT_KEY, FORMAT)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ConfigError(f"{source}: {FORMAT_KEY} must be a whole number from 1 on, not {version!r}")
        if version in _EARLIER:
            for each in range(version, FORMAT):
                fields = _EARLIER[each](fields)
        elif version != FORMAT:
            remedy = (
                "install a newer version: pip install --upgrade diffup"
                if version > FORMAT
                else "it is of a version before the first release; take another decoder, or train it again"
            )
            raise ConfigError(
                f"{source} is of format {version}, and diffup {__version__} reads format {FORMAT}; {remedy}"
            )
        return from_dict(cls, fields)


ConfigT = typing.TypeVar("ConfigT")

_CALIBRATIONS = {"presence_calibration": EVIDENCE, "quality_calibration": ESTIMATES + EVIDENCE, "score_calibration": 2}
"""Calibrations, and how many numbers each has."""


def _from_format_4(fields: dict[str, Any]) -> dict[str, Any]:
    """The quality had two estimates and an offset."""
    try:
        first, second, offset = fields["quality_calibration"]
    except (KeyError, TypeError, ValueError):
        return fields  # absent, or not of format 4 either, which the checks of the values tell
    return {**fields, "quality_calibration": [first, second, 0.0, 0.0, 0.0, 0.0, offset, 0.0, offset]}


def _from_format_5(fields: dict[str, Any]) -> dict[str, Any]:
    """The modulation by the quality normalised, which only 0.7.0 wrote, and one threshold was that of all masks."""
    return {"quality_normalisation": True, "threshold": 0.3, "temperature": 0.0, **fields}


_EARLIER: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {4: _from_format_4, 5: _from_format_5}
"""For each format that is still read, the function that gives the fields of the next one."""


_LARGEST = 2**63
_MAX_WIDTH = 4096
_LIMITS = {
    "condition_hidden": _MAX_WIDTH,
    "quality_hidden": _MAX_WIDTH,
    "low_level_channels": _MAX_WIDTH,
    "low_level_width": 2**16,
    "timesteps": 100_000,
    "ensemble": MAX_ENSEMBLE,
}


def parse_object(text: str, source: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Args:
        text: the JSON.
        source: name of the text in messages.

    Raises:
        ConfigError: the text is not JSON, or no object.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source} must be a JSON object, not {type(data).__name__}")
    return data


def from_dict(cls: type[ConfigT], data: Any, where: str = "") -> ConfigT:
    """Build a config dataclass from plain JSON data, checking names and types.

    Args:
        cls: dataclass whose fields are scalars, strings, tuples or such dataclasses.
        data: decoded JSON object, fields by name.
        where: dotted path of the object in error messages.

    Raises:
        ConfigError: the data are not an object, or have an unknown field, or a field of another type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where.rstrip('.') or 'the config'} must be a JSON object, not {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = [entry.name for entry in dataclasses.fields(typing.cast(Any, cls))]
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ConfigError(
            f"unknown field{'s' if len(unknown) > 1 else ''} {', '.join(where + name for name in unknown)}; "
            f"{cls.__name__} has {', '.join(names)}"
        )
    return cls(**{name: _convert(hints[name], value, where + name) for name, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, where + ".")
    origin, options = typing.get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        element = options[0]
        return tuple(_convert(element, item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Literal:
        return value  # The dataclass names the choices in its own message.
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ConfigError(f"{where} is too large a number")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
