"""Decoder folders with `config.json` and `model.safetensors`, as `save_pretrained` writes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffup.backbones.base import hash_weights
from diffup.decoder.base import Decoder
from diffup.decoder.build import build_decoder
from diffup.decoder.config import FORMAT_KEY, DecoderConfig, parse_object
from diffup.errors import ConfigError, WeightsError
from diffup.utils.files import named_in_utf8, replacing, write_text

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""Pattern of the name of a repository on the Hugging Face hub, `user/repo`."""


def save_decoder(
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    config: DecoderConfig,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a decoder folder; each file replaces an older one only when complete.

    Args:
        folder: folder to write to; it is made if needed.
        weights: state dict of the decoder.
        config: config of the decoder.
        dtype: precision of the file; float16 halves its size.

    Raises:
        StorageError: a file cannot be written.
    """
    folder = Path(folder)
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / CONFIG, config.to_json())


def load_decoder(folder: str | os.PathLike[str]) -> Decoder:
    """Read a decoder of any system from its folder, in float32 and evaluation mode.

    Args:
        folder: folder with `config.json` and `model.safetensors`.

    Raises:
        WeightsError: a file is missing or damaged, or the weights do not belong to the config.
        ConfigError: the config has unknown or contradictory fields, or is of a newer format.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder} has no {name}; a decoder folder holds {CONFIG} and {WEIGHTS}")
    text, source = (folder / CONFIG).read_text(encoding="utf-8", errors="replace"), str(folder / CONFIG)
    if FORMAT_KEY not in parse_object(text, source):  # its defaults may have been others
        raise ConfigError(
            f"{source} does not say its {FORMAT_KEY}: it is of a version before the first release; take another "
            "decoder, or train it again"
        )
    config = DecoderConfig.from_json(text, source)
    try:
        with named_in_utf8(folder / WEIGHTS) as readable:
            tensors = load_file(readable)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / WEIGHTS} is damaged ({error}); copy or train it again") from error
    model = build_decoder(config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [name for name in sorted(expected.keys() | tensors.keys()) if not _fits(name, expected, tensors)]
    if wrong:
        raise WeightsError(
            f"{folder / WEIGHTS} does not belong to its {CONFIG}: {len(wrong)} tensors are missing, unknown or of "
            f"another shape ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})"
        )
    whole = [name for name, value in tensors.items() if not value.is_floating_point()]
    if whole:
        raise WeightsError(f"{folder / WEIGHTS} holds tensors that are not of floats ({', '.join(whole[:3])})")
    tensors = {name: value.float() for name, value in tensors.items()}
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        raise WeightsError(f"{folder / WEIGHTS} holds values that are not finite ({', '.join(broken[:3])})")
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def fetch_decoder(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Find the folder of a decoder, downloading it from the hub if needed.

    Args:
        source: path of a local folder, or name of a hub repository, `"user/repo"`.
        revision: branch, tag or commit of the repository; None is its main branch.

    Returns:
        Path of the local folder.

    Raises:
        WeightsError: there is no such folder or repository, or it cannot be reached.
    """
    if not isinstance(source, str | os.PathLike) or "\0" in str(source):
        raise WeightsError(f"source={source!r}: expected the path of a folder, or a hub repository 'user/repo'")
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if not isinstance(source, str) or not HUB_NAME.fullmatch(name):
        raise WeightsError(
            f"{name!r} is no folder; give a folder with {CONFIG} and {WEIGHTS}, a hub repository 'user/repo', or "
            "nothing for the decoder that comes with the package"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub client raises many kinds: HTTP, offline mode, names, disk
        raise WeightsError(
            f"{name!r} is no folder here, and no such repository could be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); check the name "
            "and the connection, or give the path of a local copy"
        ) from error


def _fits(name: str, expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> bool:
    return name in expected and name in tensors and tensors[name].shape == expected[name]


def decoder_hash(decoder: Decoder) -> str:
    """SHA-256 (hex) of a decoder's weights and config, except its default encoder, steps and ensemble.

    Every run states these three itself, so the hash does not depend on them.

    Args:
        decoder: the decoder.
    """
    neutral = dataclasses.replace(decoder.config, backbone="", steps=1, ensemble=1)
    facts = json.dumps(dataclasses.asdict(neutral), indent=2) + "\n"
    return hashlib.sha256(f"{hash_weights(decoder)} {facts}".encode()).hexdigest()
