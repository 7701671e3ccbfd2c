"""Paths on the command line, checked before anything is loaded, with what to type instead."""

from __future__ import annotations

from pathlib import Path

from diffup.errors import ConfigError
from diffup.utils.suggestions import neighbour_of

_FILE_ENDINGS = (
    *(".bmp", ".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".jsonl", ".md", ".npy", ".npz", ".onnx", ".pdf"),
    *(".png", ".pt", ".pt2", ".pth", ".safetensors", ".tif", ".tiff", ".txt", ".webp", ".yaml", ".yml", ".zip"),
)


def existing_file(path: str | Path, option: str, folder: str = "give a file") -> None:
    """Refuse a path that is no file.

    Args:
        path: as it was given.
        option: what it was given for, such as `--mask`.
        folder: what to do where the path is a folder.

    Raises:
        ConfigError: there is none; the message names one of a similar name in the same folder.
    """
    text, path = str(path), Path(path)
    if path.is_dir():
        raise ConfigError(f"{option}: {text!r} is a folder; {folder}")
    if not path.exists():
        raise ConfigError(f"{option}: there is no file {text!r}{_instead(text, path, folder)}")


def existing_folder(path: str | Path, option: str, file: str = "give a folder") -> None:
    """Refuse a path that is no folder.

    Args:
        path: as it was given.
        option: what it was given for.
        file: what to do where the path is a file.

    Raises:
        ConfigError: there is none; the message names one of a similar name.
    """
    text, path = str(path), Path(path)
    if path.is_file():
        raise ConfigError(f"{option}: {text!r} is a file; {file}")
    if not path.is_dir():
        raise ConfigError(f"{option}: there is no folder {text!r}{_instead(text, path, file)}")


def output_folder(path: Path, option: str = "--output") -> None:
    """Refuse a path that is a file, lies within one, or is named like one.

    Args:
        path: the folder for the results, which may be new.
        option: what it was given for.

    Raises:
        ConfigError: it is.
    """
    if path.is_dir():
        return
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ConfigError(f"{option}: {str(part)!r} is a file; give a folder for the results, which may be new")
    if path.suffix.lower() in _FILE_ENDINGS:
        raise ConfigError(
            f"{option}: {str(path)!r} is named like a file, but the results are several, in a folder; give a folder, "
            f"such as {str(path.with_suffix(''))!r}"
        )


def output_file(path: Path, ending: str, option: str = "--output") -> None:
    """Refuse a path that is a folder, lies within a file, or ends otherwise.

    Args:
        path: the file to write.
        ending: of its name.
        option: what it was given for.

    Raises:
        ConfigError: it is.
    """
    if path.suffix != ending:
        instead = str(path.with_suffix(ending)) if path.name else f"NAME{ending}"
        raise ConfigError(f"{option}: expected a file name ending in {ending}, got {str(path)!r}; give {instead!r}")
    if path.is_dir():
        raise ConfigError(f"{option}: {str(path)!r} is a folder; give a file name in it, or another")
    output_folder(path.parent, option)


def _instead(text: str, path: Path, pattern: str) -> str:
    """What to do about a path that does not exist."""
    if text.startswith(("http:", "https:")):
        return ". URLs are not fetched: download the file and give its path"
    if any(letter in text for letter in "*?["):
        return f", and a pattern is not looked up; {pattern}"
    if text.startswith("~"):
        return ". The shell did not put your home folder in the place of ~: write the path in full, without quotes"
    missing = next((parent for parent in reversed(path.parents) if not parent.exists()), None)
    if missing is not None:
        return f": there is no folder {str(missing)!r}{neighbour_of(missing)}"
    near = neighbour_of(path)
    return near if near != "." else f". The folder {str(path.parent.resolve())!r} holds nothing of that name"
