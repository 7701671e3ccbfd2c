"""Average the weights of decoders fine-tuned from the same decoder, which generalises better than each of them.

python -m diffup.training.average runs/b/decoder runs/c/decoder -o runs/mean
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError, DiffUpError


def average_decoders(decoders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Average the weights of several decoders and save the result as a new decoder.

    Averaging is useful only for decoders of the same training run, or trained further from the same weights.

    Args:
        decoders: folders of two or more decoders of the same architecture; the config is that of the first.
        out: folder of the new decoder, created if needed.

    Returns:
        The folder of the new decoder.

    Raises:
        ConfigError: fewer than two folders are given, or their architectures or priors differ.
        WeightsError: a folder is missing or damaged.
    """
    if len(decoders) < 2:
        raise ConfigError(f"decoders: {len(decoders)} given; a mean needs two or more")
    loaded = [load_decoder(folder) for folder in decoders]
    first = loaded[0]
    for folder, decoder in zip(decoders, loaded, strict=True):
        if not first.config.same_network(decoder.config):
            raise ConfigError(f"decoders: {str(folder)!r} has another architecture or other priors than the first")
    states = [decoder.state_dict() for decoder in loaded]
    mean = {name: torch.stack([state[name].float() for state in states]).mean(dim=0) for name in states[0]}
    save_decoder(out, mean, first.config)
    return Path(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m diffup.training.average` and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoders", metavar="DECODER", nargs="+", help="folder of a decoder")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True)
    args = parser.parse_args(arguments)
    try:
        average_decoders(args.decoders, args.output)
    except (DiffUpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2  # as `diffup` does
    return 0


if __name__ == "__main__":
    sys.exit(main())
