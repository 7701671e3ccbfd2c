"""The error for an encoder's files that are neither on this machine nor can be downloaded."""

from __future__ import annotations

from diffup.errors import WeightsError


def missing_files(name: str, what: str, remedy: str, error: Exception) -> WeightsError:
    """Make the error for files that could not be downloaded from the Hugging Face hub or another server.

    The frameworks read the hub's cache first and respect its offline mode; the message names both, because they usually
    explain why an encoder loads on one machine and not on another.

    Args:
        name: name of the backbone.
        what: missing files, e.g. `"the weights 'timm/resnet50.tv_in1k'"`.
        remedy: sentence that says what to download, and how to give its path.
        error: reason of the failure.
    """
    from huggingface_hub import constants

    lines = str(error).strip().splitlines()
    reason = lines[0].rstrip(". ") if lines else type(error).__name__
    offline = "; offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return WeightsError(
        f"backbone '{name}' needs {what}, and getting that failed: {reason}{offline}. The cache is "
        f"{constants.HF_HUB_CACHE} (HF_HUB_CACHE or HF_HOME name another). {remedy}"
    )
