"""Decoders on the Hugging Face hub: a folder with weights, config and model card, uploaded and fetched by its client.

The client's own settings hold: `HF_TOKEN` or `hf auth login` for who you are, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from diffup.decoder.base import Decoder
from diffup.decoder.weights import CONFIG, HUB_NAME, WEIGHTS, save_decoder
from diffup.errors import ConfigError, HubError
from diffup.publish.model_card import model_card
from diffup.utils.files import write_text

CARD, TRAINING, SCORES = "README.md", "training.json", "scores.json"

_Result = TypeVar("_Result")


def write_repository(
    folder: str | os.PathLike[str],
    decoder: Decoder,
    repo: str,
    *,
    card: str | os.PathLike[str] | None = None,
    scores: str | os.PathLike[str] | None = None,
    training: str | os.PathLike[str] | None = None,
    licence: str | None = None,
    notes: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write what a repository of a decoder holds: weights, config, card, and the files that the card is made from.

    Args:
        folder: made if needed.
        decoder: the decoder.
        repo: `"user/repo"`.
        card: a model card of your own, taken as it is; one is written otherwise.
        scores: see `diffup.publish.model_card.model_card`.
        training: likewise.
        licence: likewise.
        notes: likewise.
        dtype: precision of the weights file; `torch.float16` halves it.

    Raises:
        ConfigError: the name is none of a repository, both a card and what one is made from are given, or see
            `diffup.publish.model_card.model_card`.
    """
    check_repository(repo)
    folder = Path(folder)
    if card is None:
        text = model_card(decoder, repo, scores=scores, training=training, licence=licence, notes=notes, dtype=dtype)
    else:
        if any(given is not None for given in (scores, training, licence, notes)):
            raise ConfigError(
                f"card={str(card)!r}: a card of your own is taken as it is; leave scores, training, licence and notes"
            )
        if not Path(card).is_file():
            raise ConfigError(f"card={str(card)!r}: there is no such file")
        text = Path(card).read_text(encoding="utf-8")
    save_decoder(folder, decoder.state_dict(), decoder.config, dtype)
    write_text(folder / CARD, text)
    for source, name in ((training, TRAINING), (scores, SCORES)):
        if source is not None:
            shutil.copyfile(source, folder / name)
    return folder


def upload(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a folder of `write_repository` in one commit; the repository and the branch are made if needed.

    Args:
        folder: of `write_repository`.
        repo: `"user/repo"`.
        private: of a repository that is made: only its owner sees it; as the owner's default is, otherwise.
        revision: branch; the main one by default.
        message: of the commit.
        token: the hub client's; what it is logged in with by default.

    Returns:
        Address of the commit.

    Raises:
        HubError: the hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="diffup")

    def send() -> str:
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: as the owner's default is
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo,
            folder_path=Path(folder),
            revision=revision,
            commit_message=message or "Upload decoder",
            allow_patterns=[CONFIG, WEIGHTS, CARD, TRAINING, SCORES],
        ).commit_url

    return reaching(send, f"push to {repo!r}")


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ConfigError: it is not `"user/repo"`.
    """
    if not HUB_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a hub repository; give 'user/repo'")


def reaching(call: Callable[[], _Result], what: str) -> _Result:
    """The result of calls to the hub, whose client raises many kinds of errors, as one kind.

    Raises:
        HubError: any of them.
    """
    try:
        return call()
    except Exception as error:  # HTTP, offline mode, names, tokens, disk
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise HubError(
            f"{what}: the hub could not be reached or refused ({type(error).__name__}: {first}); check the name, the "
            "connection, and that you are logged in with the right to write (hf auth login)"
        ) from error
