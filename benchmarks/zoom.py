"""What the second look (`segment(..., zoom=True)`) gains, by the object's share of the image.

python benchmarks/zoom.py DATA --decoder runs/b/decoder --fold 1 --episodes 150 -o zoom.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from diffup import DiffUp, Mask
from diffup.data.folder import LabelledFolder
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.meter import Meter
from diffup.utils.files import write_text

GROUPS = {"all": (0.0, 1.0), "below 5 %": (0.0, 0.05), "5 to 20 %": (0.05, 0.2), "above 20 %": (0.2, 1.0)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="labelled folder")
    parser.add_argument("--decoder", help="folder of a decoder that has not seen the fold; default: the released one")
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--split", default="train", help="image split; default: train")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file of the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = DiffUp.from_pretrained(args.decoder), LabelledFolder.open(args.data)
    episodes = draw_episodes(data, args.split, data.fold(args.fold), 1, args.episodes, args.seed)
    meters = {name: [Meter(sorted({e.class_id for e in episodes})) for _ in range(2)] for name in GROUPS}
    seen: dict[str, set[int]] = {name: set() for name in GROUPS}
    counts, seconds = dict.fromkeys(GROUPS, 0), [0.0, 0.0]
    for episode in tqdm(episodes, disable=not sys.stderr.isatty()):
        target = data.mask(episode.query)
        mask, ignore = target == episode.class_id, target == data.ignore
        support = data.image_path(episode.supports[0])
        annotation = Mask(data.mask(episode.supports[0]) == episode.class_id)
        names = [name for name, (low, high) in GROUPS.items() if low <= mask.mean() < high]
        for name in names:
            counts[name] += 1
            seen[name].add(episode.class_id)
        for index, zoom in enumerate((False, True)):
            start = time.perf_counter()
            result = model.segment(data.image_path(episode.query), support, annotation, zoom=zoom)
            seconds[index] += time.perf_counter() - start
            for name in names:
                meters[name][index].update(episode.class_id, result.mask, mask, ignore)
    figures = {}
    for name, pair in meters.items():
        if not counts[name]:
            continue
        scores = [[meter.class_iou()[c] for c in sorted(seen[name])] for meter in pair]
        means = [sum(values) / len(values) for values in scores]
        figures[name] = {"episodes": counts[name], "once": means[0], "zoom": means[1]}
        print(f"{name:12} {counts[name]:4} episodes  mIoU {means[0]:5.1f}, with zoom {means[1]:5.1f}")
    print(f"seconds an episode: {seconds[0] / len(episodes):.2f}, with zoom {seconds[1] / len(episodes):.2f}")
    write_text(args.output, json.dumps({"figures": figures, "seconds": seconds}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
