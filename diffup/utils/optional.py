"""Optional packages, imported when a function needs them."""

from __future__ import annotations

import importlib
from typing import Any

from diffup.errors import MissingPackageError


def need(module: str, purpose: str, extra: str = "formats") -> Any:
    """Import an optional module.

    Args:
        module: dotted name, such as `pycocotools.mask`.
        purpose: what needs the module; the error message starts with it.
        extra: name of the extra of diffup that installs the module.

    Raises:
        MissingPackageError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("skimage", "scikit-image")
        raise MissingPackageError(f'{purpose} needs {package}: pip install "diffup[{extra}]"') from error
