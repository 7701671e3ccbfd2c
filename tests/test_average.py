"""The mean of the weights of decoders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from fakes import random_decoder, tiny_config

from diffup.cli import FAILED
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError
from diffup.training.average import average_decoders, main


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        decoder = random_decoder(tiny_config())
        with torch.no_grad():
            for value in decoder.parameters():
                value.add_(torch.randn_like(value))
        found.append(tmp_path / str(seed))
        save_decoder(found[-1], decoder.state_dict(), decoder.config)
    return found


def test_weights_are_the_mean(folders: list[Path], tmp_path: Path) -> None:
    a, b = (load_decoder(folder).state_dict() for folder in folders)
    mean = load_decoder(average_decoders(folders, tmp_path / "mean")).state_dict()
    assert any(not torch.equal(a[name], b[name]) for name in a)
    for name, value in mean.items():
        assert torch.allclose(value, (a[name] + b[name]) / 2)


def test_the_command_writes_the_same(folders: list[Path], tmp_path: Path) -> None:
    expected = load_decoder(average_decoders(folders, tmp_path / "a")).state_dict()
    assert main([*map(str, folders), "-o", str(tmp_path / "b")]) == 0
    found = load_decoder(tmp_path / "b").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_one_decoder_or_another_network_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 given"):
        average_decoders(folders[:1], tmp_path / "mean")
    wider = random_decoder(dataclasses.replace(tiny_config(), condition_hidden=16))
    save_decoder(tmp_path / "wider", wider.state_dict(), wider.config)
    with pytest.raises(ConfigError, match=r"wider.* has another architecture"):
        average_decoders([folders[0], tmp_path / "wider"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_missing_folder_is_one_message(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folders[0]), str(tmp_path / "none"), "-o", str(tmp_path / "mean")]) == FAILED
    assert "none" in capsys.readouterr().err
