"""Optional packages, imported when a function needs them."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
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
        raise MissingPackageError(f"{purpose} needs {package}: {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra.

    It names them instead of the extra, and so works wherever diffup itself came from.

    Args:
        extra: name of the extra of diffup.
    """
    try:
        requirements = [item.partition(";") for item in metadata.requires("diffup") or ()]
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return f'pip install ".[{extra}]"'
    packages = [name.strip() for name, _, marker in requirements if re.search(f"extra == ['\"]{extra}['\"]", marker)]
    return " ".join(["pip install", *(f'"{package}"' for package in packages)])
