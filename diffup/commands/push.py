"""`diffup push`: uploads a decoder and a model card to the Hugging Face hub."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from diffup.commands.arguments import add_command
from diffup.commands.paths import existing_file, existing_folder, output_folder

EXAMPLES = """examples:
  diffup push runs/all/decoder user/repo --training runs/all/config.json --scores scores/scores.json --licence mit
  diffup push runs/all/decoder user/repo --dry-run repository
  diffup push runs/all/decoder user/repo --card card.md --private --revision trial

The hub client's own settings hold: HF_TOKEN or hf auth login, HF_ENDPOINT, HF_HUB_OFFLINE."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "push", run, "upload a decoder to the Hugging Face hub", EXAMPLES)
    parser.add_argument("decoder", metavar="FOLDER", type=Path, help="folder of the decoder")
    parser.add_argument("repo", metavar="USER/REPO", help="name of the repository, created if needed")
    card = parser.add_argument_group("model card")
    card.add_argument("--card", metavar="FILE", type=Path, help="finished model card; default: generated")
    card.add_argument("--scores", metavar="FILE", type=Path, help="scores.json that diffup evaluate wrote for it")
    card.add_argument("--training", metavar="FILE", type=Path, help="config.json of the training run")
    card.add_argument("--licence", metavar="NAME", help="licence, such as apache-2.0; default: not stated")
    card.add_argument("--notes", metavar="FILE", type=Path, help="Markdown file for the end of the card")
    parser.add_argument("--private", action="store_true", help="make a new repository visible to its owner only")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, created if needed; default: main branch")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument("--half", action="store_true", help="store the weights in float16, half the size")
    parser.add_argument(
        "--dry-run", metavar="OUT", type=Path, help="write the repository to this folder, upload nothing"
    )


def run(args: argparse.Namespace) -> None:
    """Write the repository's folder and upload it."""
    existing_folder(args.decoder, "FOLDER", "give the folder of a decoder, such as runs/all/decoder")
    for option in ("card", "scores", "training", "notes"):
        if getattr(args, option) is not None:
            existing_file(getattr(args, option), f"--{option}")
    if args.dry_run is not None:
        output_folder(args.dry_run, "--dry-run")
    import torch

    from diffup.decoder.weights import load_decoder
    from diffup.publish.hub import upload, write_repository
    from diffup.publish.model_card import CardSources

    decoder = load_decoder(args.decoder)
    notes = None if args.notes is None else args.notes.read_text(encoding="utf-8")
    sources = CardSources(args.scores, args.training, args.licence, notes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = temporary if args.dry_run is None else args.dry_run
        write_repository(folder, decoder, args.repo, sources, args.card, torch.float16 if args.half else torch.float32)
        if args.dry_run is not None:
            print(f"repository: {folder}")
            return
        print(upload(folder, args.repo, private=args.private, revision=args.revision, message=args.message))
