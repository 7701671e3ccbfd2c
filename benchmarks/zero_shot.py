"""Zero-shot segmentation of a labelled folder: every class in every image that shows it, from its name alone.

Three figures, mIoU in percent: `raw`, the cosine to the name minus that to the vocabulary, and `prior`, the fused mean
prior, each at its best of 19 thresholds, chosen with the true masks; `decoder`, at the decoder's own threshold. Classes
without a name in ImageNet are reported separately.

    python benchmarks/zero_shot.py DATA --images 120 --backbone bundled:efficientnet_lite2 -o zero_shot.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffup.data.folder import LabelledFolder
from diffup.evaluation.episodes import Episode
from diffup.evaluation.evaluate import Evaluator
from diffup.evaluation.meter import Meter
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore, Overlap, overlaps, summarise
from diffup.model import DiffUp
from diffup.priors.normalisation import normalise
from diffup.priors.text import text_similarity
from diffup.result import enlarge
from diffup.text.name_bank import read_bank
from diffup.text.prompts import embed_text_prompts
from diffup.utils.files import write_text


def main() -> None:
    args = _arguments()
    data = LabelledFolder.open(args.data)
    model = DiffUp.from_pretrained(
        args.decoder, backbone=args.backbone, device=args.device, text_backbone=args.text_backbone
    )
    episodes = pairs(data, args.split, args.images)
    evaluator = Evaluator(model, data, templates=args.templates)
    raw = [raw_overlaps(evaluator, episode) for episode in tqdm(episodes, desc="raw", disable=not sys.stderr.isatty())]
    scores = [score for batch in evaluator.score(episodes, "text") for score in batch]
    classes = {episode.class_id for episode in episodes}
    inside = {c for c in classes if in_imagenet(data.classes[c])}
    rows = {"all": classes, "in ImageNet's list": inside, "outside of it": classes - inside}
    table = {name: figures(raw, scores, chosen) for name, chosen in rows.items() if chosen}
    print(f"{'classes':20} {'':>3} {'pairs':>6} {'raw':>6} {'prior':>6} {'decoder':>8} {'best':>6}")
    for name, row in table.items():
        print(
            f"{name:20} {row['classes']:3} {row['pairs']:6} {row['raw']:6.1f} {row['prior']:6.1f} "
            f"{row['decoder']:8.1f} {row['decoder_best']:6.1f}"
        )
    facts = {"outside": sorted(data.classes[c] for c in classes - inside), "table": table, "options": vars(args)}
    if args.output:
        write_text(args.output, json.dumps(facts, indent=2, default=str) + "\n")


def pairs(data: LabelledFolder, split: str, images: int | None) -> list[Episode]:
    """List an episode without supports for every class of every image that shows it well, image by image."""
    names = data.split(split)[:images]
    shown = data.pairs(split, data.classes)
    return [Episode(c, name, ()) for name in names for c, found in shown.items() if name in found]


def raw_overlaps(evaluator: Evaluator, episode: Episode) -> tuple[Overlap, ...]:
    """Compute overlaps of the mean similarity map over templates, scaled to [0, 1], at each of `THRESHOLDS`."""
    model, data = evaluator.model, evaluator.data
    embeddings = embed_text_prompts(model.text_space, data.classes[episode.class_id], evaluator.templates).embeddings
    similar = text_similarity(evaluator.text_features(episode.query), embeddings, model.text_space.vocabulary_mean())
    maps = normalise(similar.flatten(2)).view(similar.shape).mean(dim=1)
    target = data.target(episode.query, episode.class_id)
    return overlaps(enlarge(maps, (target.mask.shape[0], target.mask.shape[1]))[0].numpy(), target, THRESHOLDS)


def figures(raw: list[tuple[Overlap, ...]], scores: list[EpisodeScore], classes: Collection[int]) -> dict[str, Any]:
    """Compute the figures of a set of classes."""
    kept = [(found, score) for found, score in zip(raw, scores, strict=True) if score.class_id in classes]
    meters = {threshold: Meter(sorted(classes)) for threshold in THRESHOLDS}
    for found, score in kept:
        for meter, overlap in zip(meters.values(), found, strict=True):
            meter.add(score.class_id, *overlap, score.pixels)
    raw_miou = {threshold: meter.miou() for threshold, meter in meters.items()}
    best = max(raw_miou, key=lambda t: raw_miou[t])
    found = summarise([score for _, score in kept], classes)
    return {
        "classes": len(classes),
        "pairs": len(kept),
        "raw": raw_miou[best],
        "raw_threshold": best,
        "prior": found.best_prior,
        "prior_threshold": found.best_prior_threshold,
        "decoder": found.miou,
        "decoder_best": found.miou_by_threshold[found.best_threshold],
        "decoder_best_threshold": found.best_threshold,
    }


def in_imagenet(name: str) -> bool:
    """Whether one of ImageNet's 1000 classes has this name, or is a kind of it by its last word (school bus, bus)."""
    lemmas = {lemma.strip().lower() for text in read_bank()[0] for lemma in text.split(":")[0].split(",")}
    return any(lemma == name or lemma.endswith(f" {name}") for lemma in lemmas)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, help="labelled folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, metavar="N", help="number of images, the first N; default: all")
    parser.add_argument("--decoder", metavar="FOLDER", help="folder of the decoder; default: the package's")
    parser.add_argument("--backbone", metavar="NAME", help="name of the encoder; default: the decoder's")
    parser.add_argument("--text-backbone", metavar="NAME", default="conse:efficientnet_lite2")
    parser.add_argument("--templates", metavar="NAME", help="clip7, clip80 or a sentence with {}")
    parser.add_argument("--device")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
