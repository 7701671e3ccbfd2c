"""The mean of the weights of decoders: of runs that went on from the same one it generalises better than either.

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
    """Write the mean of the weights of several decoders.

    It makes sense only for decoders that one training run led to or that went on from the same weights.

    Args:
        decoders: two or more decoder folders of one architecture; the first gives the config.
        out: folder of the new decoder, made if needed.

    Returns:
        The folder.

    Raises:
        ConfigError: there are fewer than two, or their architectures or priors differ.
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
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoders", metavar="DECODER", nargs="+", help="decoder folder")
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
