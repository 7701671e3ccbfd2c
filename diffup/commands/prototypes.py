"""Reading and checking of prototype files for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffup.commands.paths import readable_file
from diffup.errors import PrototypesError

if TYPE_CHECKING:
    from diffup.model import DiffUp
    from diffup.prototypes import Prototypes


def load_prototypes(path: Path | str, option: str) -> Prototypes:
    """Read a prototype file.

    Args:
        path: path or URL of the file.
        option: name of the option that gave it.

    Raises:
        ConfigError: there is no such file.
        PrototypesError: the file holds no prototypes.
    """
    readable_file(path, option, "give a file of `diffup teach`, which ends in .safetensors")
    from diffup.prototypes import Prototypes

    return Prototypes.load(path)


def load_classes(paths: Sequence[Path | str]) -> dict[Path | str, Prototypes]:
    """Read the prototype files of `--prototypes`, one for each class.

    Args:
        paths: paths or URLs of the files.

    Raises:
        ConfigError: a file does not exist.
        PrototypesError: a file holds no prototypes, or two files hold the same class.
    """
    classes = {path: load_prototypes(path, "--prototypes") for path in paths}
    files: dict[str, Path | str] = {}
    for path, item in classes.items():
        other = files.setdefault(item.name, path)
        if other != path:
            raise PrototypesError(
                f"--prototypes: {other} and {path} are both of the class {item.name!r}. Shots of one class go into one "
                f"file: diffup teach --add {other} --support IMG --mask FILE -o {other}; another class needs another "
                "name: diffup teach --name NAME"
            )
    return classes


def check_prototypes(item: Prototypes, path: Path | str, option: str, model: DiffUp) -> None:
    """Check that prototypes were made with the model's encoder and text space.

    Args:
        item: the prototypes.
        path: path of their file.
        option: name of the option that gave the file.
        model: the model.

    Raises:
        PrototypesError: they were made with another encoder or text space; the message names the options to use.
    """
    try:
        item.check(model)
    except PrototypesError as error:
        facts = str(error).partition(". ")[0].removeprefix(f"prototypes {item.name!r} ")
        raise PrototypesError(
            f"{option}: the prototypes of {path} {facts}. Give what they were made with: {_options_of(item, model)}; "
            "or teach the class again with this command's options"
        ) from error


def _options_of(item: Prototypes, model: DiffUp) -> str:
    """Options that give the model the encoder with which the prototypes were made."""
    options = []
    if item.features is not None:
        sizes, other_size = set(item.input_size), tuple(item.input_size) != tuple(model.backbone.input_size)
        if item.backbone != model.backbone.name:
            options.append(f"--backbone {item.backbone}")
        elif item.fingerprint != model.backbone.fingerprint and not other_size:  # it depends on the size too
            options.append("--backbone-weights FILE")
        if other_size and len(sizes) == 1:
            options.append(f"--input-size {sizes.pop()}")
        if item.grid != model.config.priors.grid:
            options.append("--decoder FOLDER")
    if item.text_prompt is not None and item.text_prompt.fingerprint != model.text_space.fingerprint:
        options.append(f"--text-backbone {item.text_prompt.space}")
    return " ".join(options)
