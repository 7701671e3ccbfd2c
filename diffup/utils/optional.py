"""Optional packages of the formats, imported when a function needs them."""

from __future__ import annotations

import importlib
from typing import Any

from diffup.errors import MissingPackageError


def need(module: str, purpose: str, extra: str = "formats") -> Any:
    """Import an optional module.

    Args:
        module: dotted name, such as `pycocotools.mask`.
        purpose: what it is for, as the start of the error message.
        extra: the extra of diffup that installs it.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("skimage", "scikit-image")
        raise MissingPackageError(f'{purpose} needs {package}: pip install "diffup[{extra}]"') from error
