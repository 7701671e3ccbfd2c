"""Checks of paths on the command line, made before anything is loaded; errors suggest what to type instead."""

from __future__ import annotations

from pathlib import Path

from diffup.errors import ConfigError
from diffup.utils.storage import as_url, is_url, is_web, was_url
from diffup.utils.suggestions import neighbour_of

_FILE_ENDINGS = (
    *(".bmp", ".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".jsonl", ".md", ".npy", ".npz", ".onnx", ".pdf"),
    *(".png", ".pt", ".pt2", ".pth", ".safetensors", ".tif", ".tiff", ".txt", ".webp", ".yaml", ".yml", ".zip"),
)


def path_or_url(text: str) -> Path | str:
    """Read an argument that may be a URL, of which `pathlib` would make one slash of two.

    Args:
        text: the argument.
    """
    return text if is_url(text) else Path(text)


def readable_file(path: str | Path, option: str, folder: str = "give a file") -> None:
    """Check that a path is an existing file; a URL is checked when it is read.

    Args:
        path: path or URL as the user gave it.
        option: name of the option, such as `--support`.
        folder: advice in the error message if the path is a folder.

    Raises:
        ConfigError: there is no such file, or the URL is a web address.
    """
    if not is_url(path) or is_web(str(path)):
        existing_file(path, option, folder)


def existing_file(path: str | Path, option: str, folder: str = "give a file") -> None:
    """Check that a path is an existing file.

    Args:
        path: path as the user gave it.
        option: name of the option, such as `--mask`.
        folder: advice in the error message if the path is a folder.

    Raises:
        ConfigError: there is no such file; the message suggests a file with a similar name in the same folder.
    """
    text, path = str(path), Path(path)
    if path.is_dir():
        raise ConfigError(f"{option}: {text!r} is a folder; {folder}")
    if not path.exists():
        raise ConfigError(f"{option}: there is no file {text!r}{_instead(text, path, folder)}")


def existing_folder(path: str | Path, option: str, file: str = "give a folder") -> None:
    """Check that a path is an existing folder.

    Args:
        path: path as the user gave it.
        option: name of the option, such as `--initial`.
        file: advice in the error message if the path is a file.

    Raises:
        ConfigError: there is no such folder; the message suggests a folder with a similar name.
    """
    text, path = str(path), Path(path)
    if path.is_file():
        raise ConfigError(f"{option}: {text!r} is a file; {file}")
    if not path.is_dir():
        raise ConfigError(f"{option}: there is no folder {text!r}{_instead(text, path, file)}")


def output_folder(path: Path, option: str = "--output") -> None:
    """Check the path of a folder for results.

    Args:
        path: path of the folder, which need not exist.
        option: name of the option.

    Raises:
        ConfigError: the path is a file, lies within a file, or has the ending of a file.
    """
    if path.is_dir():
        return
    _check_is_no_url(path, option)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ConfigError(f"{option}: {str(part)!r} is a file; give a folder for the results, which may be new")
    if path.suffix.lower() in _FILE_ENDINGS:
        raise ConfigError(
            f"{option}: {str(path)!r} is named like a file, but the results are several, in a folder; give a folder, "
            f"such as {str(path.with_suffix(''))!r}"
        )


def output_file(path: Path, ending: str, option: str = "--output") -> None:
    """Check the path of a file to write.

    Args:
        path: path of the file.
        ending: required ending of its name, such as ".safetensors".
        option: name of the option.

    Raises:
        ConfigError: the path is a folder, lies within a file, or has another ending.
    """
    _check_is_no_url(path, option)
    if path.suffix != ending:
        instead = str(path.with_suffix(ending)) if path.name else f"NAME{ending}"
        raise ConfigError(f"{option}: expected a file name ending in {ending}, got {str(path)!r}; give {instead!r}")
    if path.is_dir():
        raise ConfigError(f"{option}: {str(path)!r} is a folder; give a file name in it, or another")
    output_folder(path.parent, option)


def _check_is_no_url(path: Path, option: str) -> None:
    if was_url(path):
        raise ConfigError(
            f"{option}: {as_url(path)!r} is a URL, and only `diffup label` writes to URLs; give a path on the disk"
        )


def _instead(text: str, path: Path, pattern: str) -> str:
    """Advice in the error message for a path that does not exist."""
    if was_url(text):
        return ". URLs are not fetched here: download the file and give its path"
    if any(letter in text for letter in "*?["):
        return f", and a pattern is not looked up; {pattern}"
    if text.startswith("~"):
        return ". The shell did not put your home folder in the place of ~: write the path in full, without quotes"
    missing = next((parent for parent in reversed(path.parents) if not parent.exists()), None)
    if missing is not None:
        return f": there is no folder {str(missing)!r}{neighbour_of(missing)}"
    near = neighbour_of(path)
    return near if near != "." else f". The folder {str(path.parent.resolve())!r} holds nothing of that name"
