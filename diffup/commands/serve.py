"""`diffup serve`: a server for labelling tools, which learns from what people save."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from diffup.commands.arguments import add_command, add_decoding, add_listening, add_model, load_model, several
from diffup.commands.paths import existing_file, existing_folder, output_folder
from diffup.commands.prototypes import check_prototypes, load_classes
from diffup.errors import ConfigError

EXAMPLES = """examples:
  diffup serve shots --files photos
  diffup serve shots --label-studio http://localhost:8080 --api-key-file key.txt
  diffup serve shots --files photos --prototypes dog.safetensors cat.safetensors
  diffup serve shots --files photos --host 0.0.0.0 --token-file token.txt

Label Studio is connected in Settings, Model, with the address that is printed. What people save there becomes shots, in
the folder SHOTS, and predictions improve. X-AnyLabeling takes the same address.

It listens on this machine alone unless --host says otherwise. It reads images below --files and from the Label Studio
that --label-studio names, and from nowhere else. docs/labelling_tools.md has each step. Ctrl-C ends it."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    summary = "propose masks in a labelling tool and learn from what is saved (pip install '.[serve]' in a checkout)"
    parser = add_command(commands, "serve", run, summary, EXAMPLES)
    parser.add_argument("folder", metavar="SHOTS", type=Path, help="folder that keeps the shots, created if needed")
    add_listening(parser, port=9090)
    parser.add_argument(
        "--token-file", metavar="FILE", type=Path, help="file with the token that requests must bring; see --host"
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--files",
        metavar="FOLDER",
        default=[],
        help="folders that images may be read from, such as the document root of Label Studio's local files",
        **several(Path),
    )
    images.add_argument("--label-studio", metavar="URL", help="address of the Label Studio to fetch images from")
    images.add_argument("--api-key-file", metavar="FILE", type=Path, help="file with an access token of Label Studio")
    parser.add_argument(
        "--prototypes", metavar="FILE", default=[], help="prototype files of classes that are known", **several(Path)
    )
    add_model(parser)
    add_decoding(parser)


def run(args: argparse.Namespace) -> None:
    """Serve until it is interrupted."""
    from diffup.utils.optional import need

    need("starlette", "the server", extra="serve")  # before the model is loaded
    need("uvicorn", "the server", extra="serve")
    from diffup.decoder.options import SamplingOptions
    from diffup.serve.app import Guard
    from diffup.serve.host import LabelStudioHost
    from diffup.serve.learner import Learner
    from diffup.serve.photos import Photos
    from diffup.serve.run import check_token, serve
    from diffup.serve.shots import ShotFolder
    from diffup.serve.tools import tools_app
    from diffup.utils.files import sole_writer
    from diffup.utils.serving import check_listening

    output_folder(args.folder, "SHOTS")
    token, key = _secret(args.token_file, "--token-file"), _secret(args.api_key_file, "--api-key-file")
    check_token(args.host, token)
    check_listening(args.port, args.max_upload)
    if args.label_studio is None and key is not None:
        raise ConfigError("--api-key-file: say whose key it is with --label-studio URL")
    for folder in args.files:
        existing_folder(folder, "--files")
    photos = Photos(
        args.files, None if args.label_studio is None else LabelStudioHost(args.label_studio, key), args.max_upload
    )
    classes = load_classes(args.prototypes)
    print("diffup: loading the model ...", flush=True)
    model = load_model(args)
    for path, item in classes.items():
        check_prototypes(item, path, "--prototypes", model)
    names = ("steps", "ensemble", "threshold", "min_presence", "seed", "refine")
    options = SamplingOptions(**{name: getattr(args, name) for name in names})
    logging.basicConfig(format="diffup: %(message)s")
    with sole_writer(args.folder / "shots", "diffup serve"):
        learner = Learner(model, ShotFolder(args.folder), list(classes.values()), options)
        app = tools_app(learner, photos, Guard(token, args.max_upload))
        serve(app, args.host, args.port, lambda address: _ready(address, learner))


def _ready(address: str, learner: Any) -> None:
    print(f"diffup: {learner.folder.version}; connect the labelling tool to {address}; Ctrl-C ends it", flush=True)


def _secret(path: Path | None, option: str) -> str | None:
    """The text of a file that holds a secret, which would be seen by others on the command line."""
    if path is None:
        return None
    existing_file(path, option)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{option}: {str(path)!r} is no text file") from error
    if not text or len(text.split()) > 1:
        raise ConfigError(f"{option}: {str(path)!r} holds no token; write it on one line, without spaces")
    return text
