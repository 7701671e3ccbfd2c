"""Use one decoder with any encoders: score and time of each on eighteen coins, with one other coin as support.

    python examples/swap_encoders.py bundled:efficientnet_lite0 bundled:efficientnet_lite1 bundled:efficientnet_lite2

The last line is an encoder with random weights, which shows what colours and edges alone give.
"""

from __future__ import annotations

import argparse
import time

import torch
from quickstart import coins, score

from diffup import DiffUp, load_backbone
from diffup.backbones.encode import encode
from diffup.inputs.images import read_image

ENCODERS = ("bundled:efficientnet_lite0", "bundled:efficientnet_lite1", "bundled:efficientnet_lite2")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", default=ENCODERS, help="names of encoders, listed by diffup backbones")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    encoders = {name: load_backbone(name) for name in args.encoders}
    encoders["random weights"] = load_backbone(ENCODERS[0], pretrained=False)
    scene = coins()
    model = DiffUp.from_pretrained()
    print(f"{'encoder':28} {'channels of its levels':>22} {'IoU':>5} {'time':>7}")
    for name, encoder in encoders.items():
        swapped = model.upgrade(encoder)  # the decoder's weights are shared, nothing is trained
        channels = "/".join(str(level.shape[1]) for level in encode(swapped.backbone, [read_image(scene.query)]))
        start = time.perf_counter()
        result = swapped.segment(scene.query, support=scene.support, annotation=scene.annotations["mask"])
        seconds = time.perf_counter() - start
        print(f"{name:28} {channels:>22} {score(result, scene.truth):>5} {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
