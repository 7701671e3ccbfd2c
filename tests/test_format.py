"""The version of a decoder folder's format: what is written, older files, newer ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from fakes import random_decoder, tiny_config

from diffup.decoder import format as decoder_format
from diffup.decoder.format import FORMAT, KEY, MIGRATIONS, read_config, write_config
from diffup.decoder.weights import CONFIG, load_decoder, save_decoder
from diffup.errors import ConfigError


def of_0_1_0(**changes: object) -> dict[str, object]:
    """The fields of a config as 0.1.0 wrote them: without a version and without what came later."""
    config = dataclasses.replace(tiny_config(), prior_skip=False)
    config = dataclasses.replace(
        config, priors=dataclasses.replace(config.priors, saliency=False, calibration=False), **changes
    )
    fields = json.loads(config.to_json())
    for name in ("prior_skip", "system", "low_level_channels", "low_level_width", "low_level_encoder"):
        del fields[name]
    del fields["priors"]["saliency"], fields["priors"]["calibration"]
    return fields


def test_the_version_is_written_and_what_is_written_is_read() -> None:
    config = tiny_config()
    text = write_config(config)
    assert json.loads(text)[KEY] == FORMAT
    assert read_config(text, "it") == config


def test_a_decoder_of_0_1_0_loads_as_what_it_was(tmp_path: Path) -> None:
    fields = of_0_1_0()
    config = read_config(json.dumps(fields), "it")
    assert (
        not config.prior_skip
        and not config.priors.saliency
        and not config.priors.calibration
        and config.system == "diffusion"
    )
    decoder = random_decoder(config)
    save_decoder(tmp_path, decoder.state_dict(), config)
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    loaded = load_decoder(tmp_path)
    assert loaded.config == config
    assert all(torch.equal(value, decoder.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_later_files_without_a_version_keep_what_they_say() -> None:
    config = tiny_config(system="one_step")
    assert config.prior_skip and config.priors.saliency
    assert read_config(config.to_json(), "it") == config


def test_every_earlier_version_has_a_way_to_the_next_one() -> None:
    assert sorted(MIGRATIONS) == list(range(1, FORMAT))


def test_migrations_are_walked_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(fields: dict[str, object]) -> dict[str, object]:
        return {("ensemble" if name == "draws" else name): value for name, value in fields.items()}

    monkeypatch.setattr(decoder_format, "FORMAT", 3)
    monkeypatch.setitem(MIGRATIONS, 2, rename)
    fields = of_0_1_0()
    fields["draws"] = fields.pop("ensemble")
    assert read_config(json.dumps(fields), "it").ensemble == tiny_config().ensemble
    with pytest.raises(ConfigError, match="draws"):  # of version 3 already
        read_config(json.dumps({KEY: 3, **fields}), "it")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (json.dumps({KEY: FORMAT + 1, "new": 1}), rf"it is of format {FORMAT + 1}.*formats up to {FORMAT}.*--upgrade"),
        (json.dumps({KEY: "2"}), f"{KEY} must be a whole number"),
        (json.dumps({KEY: True}), f"{KEY} must be a whole number"),
        (json.dumps({KEY: 0}), f"{KEY} must be a whole number"),
        ("[1]", "must be a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"priors": 3}', "priors"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_config(text, "it")
