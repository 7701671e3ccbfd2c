"""Configs, weights, checkpoints and records of every wrongness: read as they should be, or an error of our own."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from fakes import random_decoder, tiny_config
from fuzzing import ANYTHING, outcome
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffup.backbones.checkpoint import read_weights
from diffup.decoder.config import DecoderConfig
from diffup.decoder.weights import CONFIG, WEIGHTS, load_decoder, save_decoder
from diffup.errors import ConfigError, DiffUpError
from diffup.evaluation.record import EpisodeRecord
from diffup.training.checkpoint import load_checkpoint, save_checkpoint
from diffup.training.config import TrainConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 64),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, whole: dict[str, object]) -> dict[str, object]:
    """A JSON object with some of its fields, at any depth, replaced, removed or unknown."""
    fields = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place = fields
        while True:
            name = draw(st.sampled_from([*place, "unknown", ""]))
            if not isinstance(place.get(name), dict) or not place[name] or draw(st.booleans()):
                break
            place = place[name]
        action = draw(st.sampled_from(["replace", "remove", "number", "choice"]))
        if action == "remove":
            place.pop(name, None)
        elif action == "number":
            place[name] = draw(
                st.sampled_from([0, -1, 1, 7, 8, 10**6, 10**20, 10**400, 0.5, float("nan"), float("inf")])
            )
        elif action == "choice":
            place[name] = draw(st.sampled_from(["gan", "prior", "one_step", "epsilon", "mse", "l1", "own", ["match"]]))
        else:
            place[name] = draw(JSON)
    return fields


DECODER, TRAIN = json.loads(tiny_config().to_json()), json.loads(TrainConfig().to_json())


@given(changed(DECODER))
def test_decoder_configs(fields: dict[str, object]) -> None:
    config = outcome(lambda: DecoderConfig.from_json(json.dumps(fields)))
    if config is not None:
        assert DecoderConfig.from_json(config.to_json()) == config


@given(changed(TRAIN))
def test_training_configs(fields: dict[str, object]) -> None:
    config = outcome(lambda: TrainConfig.from_json(json.dumps(fields)))
    if config is not None:
        assert TrainConfig.from_json(config.to_json()) == config


@given(JSON | st.text(max_size=30) | st.sampled_from(["", "[" * 100_000, "{" * 50, "9" * 10_000, '{"a":' * 9_999]))
def test_any_json(value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    for config in (DecoderConfig, TrainConfig):
        outcome(lambda config=config: config.from_json(text))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder folder, and a training checkpoint beside it."""
    folder = tmp_path_factory.mktemp("good")
    config = tiny_config()
    state = random_decoder(config).state_dict()
    save_decoder(folder, state, config)
    save_checkpoint(folder / "checkpoint", {"model": dict(state)}, 3, '{"a": 1}')
    return folder


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file cut off, with changed bytes or with another header."""
    damage = draw(st.sampled_from(["cut", "bytes", "header", "length", "rubbish"]))
    if damage == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if damage == "rubbish":
        return draw(st.binary(max_size=200))
    length = struct.unpack("<Q", content[:8])[0]
    if damage == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + content[8:]
    if damage == "header":
        header = json.loads(content[8 : 8 + length])
        name = draw(st.sampled_from(sorted(header)))
        header[draw(st.sampled_from([name, "other", ""]))] = draw(
            st.sampled_from([{"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}, header[name], {}, 5])
        )
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(st.integers(0, min(len(changed), 4000) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@given(st.data())
def test_damaged_weights(good: Path, data: st.DataObject) -> None:
    folder = good / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text((good / CONFIG).read_text())
    (folder / WEIGHTS).write_bytes(data.draw(damaged((good / WEIGHTS).read_bytes())))
    decoder = outcome(lambda: load_decoder(folder))
    if decoder is not None:
        assert all(value.isfinite().all() for value in decoder.state_dict().values())
    outcome(lambda: read_weights(folder / WEIGHTS, "test"))
    (folder / "weights.pt").write_bytes((folder / WEIGHTS).read_bytes())
    outcome(lambda: read_weights(folder / "weights.pt", "test"))


TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64]


@given(st.data())
def test_weights_of_other_keys_shapes_and_types(good: Path, data: st.DataObject) -> None:
    tensors = load_file(good / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    change = data.draw(st.sampled_from(["missing", "renamed", "shape", "type", "nan", "inf", "empty", "same"]))
    if change == "renamed":
        tensors[data.draw(st.text(max_size=5))] = value
    elif change == "shape":
        tensors[name] = value[None]
    elif change == "type":
        tensors[name] = value.to(data.draw(st.sampled_from(TYPES)))
    elif change in ("nan", "inf"):
        tensors[name] = torch.full_like(value, float(change))
    elif change == "empty":
        tensors[name] = value.flatten()[:0]
    elif change == "same":
        tensors[name] = value
    folder = good / "changed"
    save_decoder(folder, {}, tiny_config())
    save_file(tensors, folder / WEIGHTS)
    decoder = outcome(lambda: load_decoder(folder))
    if decoder is None:
        assert change != "same"
    else:
        assert change in ("same", "type")
        assert all(v.isfinite().all() and v.dtype == torch.float32 for v in decoder.state_dict().values())


@given(st.data())
def test_damaged_checkpoints(good: Path, data: st.DataObject) -> None:
    path = good / "damaged_checkpoint"
    path.write_bytes(data.draw(damaged((good / "checkpoint").read_bytes())))
    outcome(lambda: load_checkpoint(path, '{"a": 1}'))


@given(
    step=st.text(max_size=4), config=st.text(max_size=6) | st.sampled_from(["[]", "5", '{"a": 1}', "{" * 9_999, "null"])
)
def test_checkpoints_of_other_facts(good: Path, step: str, config: str) -> None:
    path = good / "facts_checkpoint"
    save_file({"model/a": torch.zeros(1)}, path, metadata={"step": step, "config": config})
    outcome(lambda: load_checkpoint(path, '{"a": 1}'))


@given(st.lists(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=20) | st.just(b"[" * 99_999), max_size=3))
def test_records(good: Path, lines: list[bytes]) -> None:
    path = good / "record.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    outcome(lambda: EpisodeRecord(path))


@given(changed({"setting": "a", "episode": "b", "index": 1, "class": 1, "pixels": 1, "mask": [1, 1], "quality": 0.5}))
def test_record_lines(good: Path, line: dict[str, object]) -> None:
    path = good / "line.jsonl"
    path.write_text(json.dumps({**line, "decoder": [[0, 0]] * 19, "prior": [[0, 0]] * 19}) + "\n")
    outcome(lambda: EpisodeRecord(path))


@given(ANYTHING)
def test_names_of_decoders(value: object) -> None:
    from diffup.decoder.weights import fetch_decoder

    if not isinstance(value, str) or "/" not in value:
        outcome(lambda: fetch_decoder(value))


def test_sizes_that_no_memory_holds_are_refused_at_once() -> None:
    for fields in ({"channels": [8, 8, 8, 2**30]}, {"timesteps": 2**40}, {"priors": {"extra_priors": 2**30}}):
        with pytest.raises(ConfigError, match=r"or less|must be 0 to"):
            DecoderConfig.from_json(json.dumps(fields))
    assert issubclass(ConfigError, DiffUpError)
