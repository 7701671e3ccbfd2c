"""What to say when the files of an encoder are neither here nor to be had."""

from __future__ import annotations

from diffup.errors import WeightsError


def missing_files(name: str, what: str, remedy: str, error: Exception) -> WeightsError:
    """The error for files that the Hugging Face hub, or another server, did not give.

    The frameworks look into the hub's cache first and respect its offline mode; the message names both, because an
    encoder that loads on one machine and not on another is mostly a matter of these two.

    Args:
        name: The backbone.
        what: What it needs, e.g. `"the weights 'timm/resnet50.tv_in1k'"`.
        remedy: What to download where, and how to point to it; a sentence.
        error: Why it failed.
    """
    from huggingface_hub import constants

    lines = str(error).strip().splitlines()
    reason = lines[0].rstrip(". ") if lines else type(error).__name__
    offline = "; offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return WeightsError(
        f"backbone '{name}' needs {what}, and getting that failed: {reason}{offline}. The cache is "
        f"{constants.HF_HUB_CACHE} (HF_HUB_CACHE or HF_HOME name another). {remedy}"
    )
