"""The version of a decoder folder's format: what is written, what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import random_decoder, tiny_config

from diffup.decoder.config import FORMAT, FORMAT_KEY, DecoderConfig
from diffup.decoder.weights import CONFIG, load_decoder, save_decoder
from diffup.errors import ConfigError


def test_the_version_is_written_and_what_is_written_is_read() -> None:
    config = tiny_config()
    text = config.to_json()
    assert json.loads(text)[FORMAT_KEY] == FORMAT
    assert DecoderConfig.from_json(text) == config


def test_a_file_without_a_version_is_of_the_present_one() -> None:
    config = tiny_config(system="one_step")
    fields = json.loads(config.to_json())
    del fields[FORMAT_KEY]
    assert DecoderConfig.from_json(json.dumps(fields)) == config


def test_the_quality_of_format_4_is_read_as_it_was_meant() -> None:
    """It had factors of the two estimates and an offset, which counted with supports and with text."""
    fields = json.loads(tiny_config().to_json()) | {FORMAT_KEY: 4, "quality_calibration": [0.5, 2.0, -1.0]}
    found = DecoderConfig.from_json(json.dumps(fields))
    assert found == tiny_config(quality_calibration=(0.5, 2.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, -1.0))
    del fields["quality_calibration"]
    assert DecoderConfig.from_json(json.dumps(fields)) == tiny_config()
    with pytest.raises(ConfigError, match=r"quality_calibration=\(1\.0, 0\.0\): give 9"):
        DecoderConfig.from_json(json.dumps(fields | {"quality_calibration": [1, 0]}))


@pytest.mark.parametrize("version", [4, 5])
def test_decoders_of_formats_4_and_5_are_as_they_were(version: int) -> None:
    fields = json.loads(tiny_config().to_json()) | {FORMAT_KEY: version}
    if version == 4:
        fields["quality_calibration"] = [1.0, 0.0, 0.0]
    del fields["quality_normalisation"], fields["temperature"]
    assert DecoderConfig.from_json(json.dumps(fields)) == tiny_config(quality_normalisation=True, temperature=0.0)
    said = json.dumps(fields | {"quality_normalisation": False})
    assert DecoderConfig.from_json(said) == tiny_config(temperature=0.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            json.dumps({FORMAT_KEY: FORMAT + 1, "new": 1}),
            rf"it is of format {FORMAT + 1}.*reads format {FORMAT};.*--upgrade",
        ),
        (json.dumps({FORMAT_KEY: 1}), r"it is of format 1.*before the first release.*train it again"),
        (json.dumps({FORMAT_KEY: "2"}), f"{FORMAT_KEY} must be a whole number"),
        (json.dumps({FORMAT_KEY: True}), f"{FORMAT_KEY} must be a whole number"),
        (json.dumps({FORMAT_KEY: 0}), f"{FORMAT_KEY} must be a whole number"),
        ("[1]", "must be a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"priors": 3}', "priors"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DecoderConfig.from_json(text, "it")


def test_a_decoder_folder_without_a_version_is_refused(tmp_path: Path) -> None:
    decoder = random_decoder(tiny_config())
    save_decoder(tmp_path, decoder.state_dict(), decoder.config)
    fields = json.loads((tmp_path / CONFIG).read_text())
    del fields[FORMAT_KEY]
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"does not say its format_version.*train it again"):
        load_decoder(tmp_path)
