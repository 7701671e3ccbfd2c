"""`configs/`: every file is a config, and the paper's is the paper's decoder trained plainly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diffup.decoder.config import DecoderConfig
from diffup.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PAPER = CONFIGS / "paper.json"

FILES = sorted(CONFIGS.glob("table*/*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_is_read_alone_and_after_the_papers(file: Path) -> None:
    """A field that does not exist or does not fit the others is refused."""
    assert TrainConfig.from_files([file]).backbones and TrainConfig.from_files([PAPER, file]).backbones


def test_the_papers_settings_are_its_decoder_trained_plainly() -> None:
    paper = TrainConfig.from_files([PAPER])
    assert paper.decoder == dataclasses.replace(DecoderConfig.paper(), backbone="timm:resnet50_clip.openai")
    assert not any(dataclasses.astuple(paper.perturb)) and paper.views.pasted == 0
    assert paper.weight_decay == paper.noisy_steps == paper.self_aligned == paper.episodes.absent == 0
    assert not paper.text_backbone


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_after_the_papers_settings_every_row_lacks_the_librarys_own_inputs(file: Path) -> None:
    priors = TrainConfig.from_files([PAPER, file]).decoder.priors
    assert not (priors.absolute or priors.self_affinity or priors.saliency or priors.calibration or priors.centre)
