"""Upload of decoders to the Hugging Face hub: weights, config and model card, sent by `huggingface_hub`.

The settings of `huggingface_hub` apply: `HF_TOKEN` or `hf auth login` to log in, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from diffup.decoder.base import Decoder
from diffup.decoder.weights import CONFIG, HUB_NAME, WEIGHTS, save_decoder
from diffup.errors import ConfigError, HubError
from diffup.publish.model_card import CardSources, model_card
from diffup.utils.files import write_text

CARD, TRAINING, SCORES = "README.md", "training.json", "scores.json"

_Result = TypeVar("_Result")


def push(
    decoder: Decoder,
    repo: str,
    *,
    scores: str | os.PathLike[str] | None = None,
    training: str | os.PathLike[str] | None = None,
    licence: str | None = None,
    notes: str | None = None,
    card: str | os.PathLike[str] | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Upload a decoder, without the encoder, and a model card to the Hugging Face hub.

    Args:
        decoder: the decoder to upload.
        repo: name of the repository, `"user/repo"`, created if needed.
        scores: path of the `scores.json` that `diffup evaluate` wrote for this decoder, for the card.
        training: path of the training run's `config.json`, for the card.
        licence: licence identifier in lower case, such as `apache-2.0`, for the card.
        notes: Markdown text for the end of the card, such as the origin of the training data.
        card: path of a finished model card; by default the card is generated.
        private: whether a new repository is visible only to its owner; by default the owner's setting applies.
        revision: name of the branch, created if needed; by default the main branch.
        message: commit message.
        token: access token; by default that of the logged-in user.
        dtype: precision of the weights file; `torch.float16` halves its size.

    Returns:
        URL of the commit.

    Raises:
        ConfigError: an argument is invalid, or a file belongs to another decoder; nothing was uploaded.
        HubError: the hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_repository(folder, decoder, repo, CardSources(scores, training, licence, notes), card, dtype)
        return upload(folder, repo, private=private, revision=revision, message=message, token=token)


def write_repository(
    folder: str | os.PathLike[str],
    decoder: Decoder,
    repo: str,
    sources: CardSources | None = None,
    card: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the files of a decoder's repository: weights, config, model card, and the sources of the card.

    Args:
        folder: path of the folder, created if needed.
        decoder: the decoder to publish.
        repo: name of the repository, `"user/repo"`.
        sources: files and texts from which the model card is generated.
        card: path of a finished model card; by default the card is generated.
        dtype: precision of the weights file; `torch.float16` halves its size.

    Returns:
        The path of the folder.

    Raises:
        ConfigError: `repo` is no repository name, both a card and sources are given, the licence is no identifier, or a
            file cannot be read or belongs to another decoder.
    """
    check_repository(repo)
    folder = Path(folder)
    sources = CardSources() if sources is None else sources
    if card is None:
        text = model_card(decoder, repo, sources, dtype)
    else:
        if sources != CardSources():
            raise ConfigError(
                f"card={str(card)!r}: a card of your own is taken as it is; leave scores, training, licence and notes"
            )
        if not Path(card).is_file():
            raise ConfigError(f"card={str(card)!r}: there is no such file")
        text = Path(card).read_text(encoding="utf-8")
    save_decoder(folder, decoder.state_dict(), decoder.config, dtype)
    write_text(folder / CARD, text)
    for source, name in ((sources.training, TRAINING), (sources.scores, SCORES)):
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
    """Upload a decoder's repository in one commit; the repository and the branch are created if needed.

    Args:
        folder: path of the folder that `write_repository` wrote.
        repo: name of the repository, `"user/repo"`.
        private: whether a new repository is visible only to its owner; by default the owner's setting applies.
        revision: name of the branch; by default the main branch.
        message: commit message.
        token: access token; by default that of the logged-in user.

    Returns:
        URL of the commit.

    Raises:
        HubError: the hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="diffup")

    def send() -> str:
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: the owner's default
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo,
            folder_path=Path(folder),
            revision=revision,
            commit_message=message or "Upload decoder",
            allow_patterns=[CONFIG, WEIGHTS, CARD, TRAINING, SCORES],
        ).commit_url

    return hub_errors(send, f"push to {repo!r}")


def check_repository(name: str) -> None:
    """Check the name of a hub repository.

    Args:
        name: name of the repository.

    Raises:
        ConfigError: the name is not of the form `"user/repo"`.
    """
    if not HUB_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a hub repository; give 'user/repo'")


def hub_errors(call: Callable[[], _Result], what: str) -> _Result:
    """Call a function that uses the hub, and raise any of its many kinds of errors as `HubError`.

    Args:
        call: function that uses the hub.
        what: name of the operation for the error message, such as "push to 'user/repo'".

    Raises:
        HubError: the function raised an exception.
    """
    try:
        return call()
    except Exception as error:  # HTTP, offline mode, names, tokens, disk
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise HubError(
            f"{what}: the hub could not be reached or refused ({type(error).__name__}: {first}); check the name, the "
            "connection, and that you are logged in with the right to write (hf auth login)"
        ) from error
