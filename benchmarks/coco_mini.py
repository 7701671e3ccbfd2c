"""Run `diffup evaluate`, or score the training-free baseline.

The baseline (`--anchor`) is the contrast prior with affinity, last two levels averaged, at the best of 19 thresholds
for each fold, an upper bound chosen with the true masks: the column `prior`.

    python benchmarks/coco_mini.py DATA --decoder runs/fold0/decoder --fold 0 --episodes 400 -o scores
    python benchmarks/coco_mini.py DATA --anchor -o anchor
"""

from __future__ import annotations

import argparse
import sys

from diffup.cli import FAILED
from diffup.commands import evaluate
from diffup.decoder.build import build_decoder
from diffup.decoder.config import DecoderConfig
from diffup.errors import DiffUpError
from diffup.priors import PriorConfig

ANCHOR = DecoderConfig(priors=PriorConfig(kinds=("contrast",)), system="prior")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    evaluate.add_arguments(parser)
    parser.add_argument("--anchor", action="store_true", help="score the training-free baseline instead")
    args = parser.parse_args()
    try:
        if args.anchor:
            evaluate.score(args, build_decoder(ANCHOR), "anchor")
        else:
            evaluate.run(args)
    except (DiffUpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
