"""What the modules that test training share: a small config, banks, samplers and trainers of the folder of shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fakes import TINY, FakeBackbone
from safetensors.torch import load_file
from torch import Tensor

from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.priors.config import PriorConfig
from diffup.text import TextSpace
from diffup.training.config import EpisodesConfig, PerturbConfig, TrainConfig, ViewsConfig
from diffup.training.prepare import Banks, Sources, build_banks
from diffup.training.processes import Processes
from diffup.training.sampler import EpisodeSampler
from diffup.training.trainer import CHECKPOINT, Trainer

DECODER_CONFIG = DecoderConfig(**TINY, timesteps=50, steps=1, ensemble=2, priors=PriorConfig(grid=6))
CONFIG = TrainConfig(
    decoder=DECODER_CONFIG,
    views=ViewsConfig(crops=1, pasted=6),
    episodes=EpisodesConfig(max_shots=3),
    backbones=("fake",),
    folds=(0,),
    steps=6,
    batch_size=2,
    warmup=2,
    learning_rate=3e-3,
    bf16=False,
)
STILL = PerturbConfig(gamma=0, noise=0, swap_levels=0, misplace=0, flatten=0)
"""Episodes are moved, their priors are left as they are."""


def encoder(width: int = 8) -> FakeBackbone:
    return FakeBackbone((width,) * 4, strides=(8, 8, 16, 16), input_size=(48, 48))


def banks_of(
    data: Path,
    cache: Path,
    config: TrainConfig = CONFIG,
    backgrounds: Path | None = None,
    text_space: TextSpace | None = None,
) -> Banks:
    sources = Sources.find(LabelledFolder.open(data), config, backgrounds)
    return build_banks(sources, config, [encoder()], cache, progress=False, text_space=text_space)


def sampler_of(
    banks: Banks, config: EpisodesConfig = CONFIG.episodes, classes: tuple[int, ...] = (1, 2)
) -> EpisodeSampler:
    return EpisodeSampler(banks.images, classes, config, min_area_fraction=0.01, ignore=255)


def trainer_of(
    banks: Banks, config: TrainConfig = CONFIG, processes: Processes | None = None, **options: object
) -> Trainer:
    alone = Processes(torch.device("cpu"))
    return Trainer(config, sampler_of(banks, config.episodes), banks, processes or alone, identity="{}", **options)


def state(out: Path) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser moments of a run."""
    return load_file(out / CHECKPOINT)


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and len(a) > 10
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def dominant(image: np.ndarray, where: np.ndarray) -> int:
    """The class whose colour the marked pixels (3, H, W)[:, where] have."""
    return int(image[:, where].mean(axis=1).argmax()) + 1


class Interrupt(BaseException):
    """Stands for a kill."""
