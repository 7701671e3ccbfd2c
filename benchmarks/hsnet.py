"""The peer's row: HSNet (Min et al., Hypercorrelation Squeeze for Few-Shot Segmentation, ICCV 2021) on our features.

Written from the paper's description: cosine correlations of query and masked support features are stacked per pyramid
level, center-pivot 4D convolutions squeeze the support side of each, a top-down pathway mixes the pyramid, and a 2D
decoder turns the mean over the support side into a mask. It uses none of the priors. It is trained with the same cached
features, photos, episodes and minutes of processor time as the rows of `ablations.py`, and scored on the same episodes.

    python benchmarks/hsnet.py DATA [DATA ...] --fold 0 --fold 1 --minutes 8 --episodes 200 -o runs/hsnet
    python benchmarks/hsnet.py DATA --fold 0 --minutes 8 -o runs/ablations --against runs/ablations/full__seed_0/decoder

With `--against`, the JSON row has paired differences from these decoders; their scores are taken from OUT if it is the
folder of `ablations.py`. A run that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ablations import common_arguments
from einops import rearrange
from torch import Tensor, nn

from diffup.backbones import Backbone, load_backbone
from diffup.backbones.base import hash_weights
from diffup.data.base import TrainingData
from diffup.data.folder import LabelledFolder
from diffup.data.joined import join_data
from diffup.decoder.build import build_decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.sampling import Ensemble
from diffup.evaluation.annotations import split_annotation
from diffup.evaluation.bootstrap import difference
from diffup.evaluation.episodes import Episode
from diffup.evaluation.evaluate import Evaluator
from diffup.evaluation.features import FeatureCache
from diffup.evaluation.record import EpisodeRecord
from diffup.evaluation.scores import EpisodeScore
from diffup.evaluation.sweep import Candidate, Plan, Row, draw, score_row, settings_of, sweep
from diffup.model import DiffUp
from diffup.priors.condition import SIZES, Condition
from diffup.priors.config import PriorConfig
from diffup.priors.prepared import PreparedSupport, prepare_support
from diffup.priors.similarity import unit
from diffup.training.augment import move
from diffup.training.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from diffup.training.config import TrainConfig
from diffup.training.prepare import Sources, build_banks
from diffup.training.sampler import WHOLE, Episodes, EpisodeSampler, near_classes
from diffup.utils.files import write_text
from diffup.utils.resize import average_pool


@dataclass(frozen=True)
class PyramidLevel:
    """One level of the pyramid of correlations.

    Args:
        side: side of query and support in positions.
        levels: feature levels (0 to 3) whose correlations are stacked.
        strides: stride of each squeezing convolution on the support side.
    """

    side: int
    levels: tuple[int, ...]
    strides: tuple[int, ...]


PYRAMID = (PyramidLevel(16, (1, 2, 3), (2, 2, 2)), PyramidLevel(8, (2, 3), (2, 2, 1)))
"""Fine to coarse. The cached features have at most 16 or 32 positions a side, where the paper has 50, 25 and 13."""

WIDTHS = (16, 64, 128)
"""Channels after each squeezing convolution; the last are those of the mixing convolutions."""

LEARNING_RATE = 1e-3
EMA = 0.99
"""Decay of the averaged weights that are scored, as in the rows of `ablations.py`; the paper scores the best epoch."""

CHECKPOINT = "checkpoint.safetensors"


class CenterPivotConv4d(nn.Module):
    """A 4D convolution whose kernel is zero except where its query offset or its support offset is zero.

    So it is the sum of two 2D convolutions, one over the query side and one over the support side.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: stride on the support side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.query = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.support = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, s, s, inputs) -> (B, h, w, s / stride, s / stride, outputs)."""
        h, w = x.shape[1:3]
        over_support = self.support(rearrange(x, "b h w s t c -> (b h w) c s t"))
        kept = x[:, :, :, :: self.stride, :: self.stride]
        s, t = kept.shape[3:5]
        over_query = self.query(rearrange(kept, "b h w s t c -> (b s t) c h w"))
        summed: Tensor = rearrange(over_support, "(b h w) c s t -> b h w s t c", h=h, w=w)
        return summed + rearrange(over_query, "(b s t) c h w -> b h w s t c", s=s, t=t)


class Block(nn.Module):
    """A center-pivot convolution, group normalisation and ReLU.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: stride on the support side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = CenterPivotConv4d(inputs, outputs, stride)
        self.norm = nn.GroupNorm(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, s, s, inputs) -> (B, h, w, s / stride, s / stride, outputs)."""
        y = self.convolution(x)
        normed = self.norm(rearrange(y, "b h w s t c -> b c (h w) (s t)"))
        return F.relu(rearrange(normed, "b c (h w) (s t) -> b h w s t c", h=y.shape[1], s=y.shape[3]))


class HSNet(nn.Module):
    """From features of a query and of one support to two logits, background and class, at 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.ModuleList(
            nn.Sequential(
                *(Block(a, b, s) for (a, b), s in zip(pairwise((len(p.levels), *WIDTHS)), p.strides, strict=True))
            )
            for p in PYRAMID
        )
        width = WIDTHS[-1]
        self.mix = nn.ModuleList(nn.Sequential(*(Block(width, width) for _ in range(3))) for _ in PYRAMID[1:])
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU()
        )
        self.out = nn.Sequential(
            nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, 2, 3, padding=1)
        )

    def forward(self, query: Sequence[Tensor], support: Sequence[Tensor], foreground: Tensor) -> Tensor:
        """Segment queries.

        Args:
            query: four tensors (B, C_l, h_l, w_l), features of the queries.
            support: four tensors (B, C_l, h_l, w_l), features of a support each.
            foreground: (B, H, W) in [0, 1], weights of the class in the supports.

        Returns:
            (B, 2, 64, 64), logits.
        """
        with torch.autocast(query[0].device.type, enabled=False), torch.no_grad():
            stacked = [correlations(query, support, foreground, level) for level in PYRAMID]
        squeezed = [squeeze(x) for squeeze, x in zip(self.squeeze, stacked, strict=True)]
        mixed = squeezed[-1]
        for finer, mix in zip(squeezed[-2::-1], self.mix, strict=True):
            mixed = mix(finer + _query_side(mixed, finer.shape[1]))
        h = F.interpolate(self.head(rearrange(mixed, "b h w s t c -> b c h w s t").mean(dim=(4, 5))), scale_factor=2)
        return F.interpolate(self.out(h).float(), SIZES[:1] * 2, mode="bilinear", align_corners=False)


def correlations(
    query: Sequence[Tensor], support: Sequence[Tensor], foreground: Tensor, pyramid: PyramidLevel
) -> Tensor:
    """Cosines of all positions of query and support, negative ones as 0, and 0 outside the support's foreground.

    Args:
        query: four tensors (B, C_l, h_l, w_l), features of the queries.
        support: four tensors (B, C_l, h_l, w_l), features of a support each.
        foreground: (B, H, W) in [0, 1], weights of the class in the supports.
        pyramid: the level of the pyramid; S is its side.

    Returns:
        (B, S, S, S, S, number of levels), query positions before support positions.
    """
    size = (pyramid.side, pyramid.side)
    mask = average_pool(foreground[:, None], size).flatten(2)
    found = []
    for level in pyramid.levels:
        ours, theirs = (unit(average_pool(side[level], size).flatten(2), dim=1) for side in (query, support))
        found.append(torch.bmm(ours.mT, theirs).clamp_min_(0) * mask)
    h, w = size
    return rearrange(torch.stack(found), "c b (h w) (s t) -> b h w s t c", h=h, w=w, s=h, t=w)


def _query_side(x: Tensor, side: int) -> Tensor:
    """Interpolate the query side: (B, h, w, s, s, C) -> (B, side, side, s, s, C)."""
    s, t = x.shape[3:5]
    maps = F.interpolate(rearrange(x, "b h w s t c -> (b s t) c h w"), (side, side), mode="bilinear")
    return rearrange(maps, "(b s t) c h w -> b h w s t c", s=s, t=t)


class Training:
    """The state of a run, which ends when its steps have taken the given processor time.

    Args:
        config: folds, views, episodes, batch size and seed, as in the rows of `ablations.py`.
        data: the training data.
        backbone: the encoder.
        args: options of the command line.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, backbone: Backbone, args: argparse.Namespace) -> None:
        self.config = config
        sources = Sources.find(data, config, args.backgrounds)
        banks = build_banks(sources, config, [backbone], args.cache or args.output / "cache", progress=True)
        self.features = banks.features[0]
        episodes = (sources.classes, config.episodes, data.min_area_fraction, data.ignore)
        near = near_classes(banks.images[WHOLE], self.features[WHOLE].arrays["level3"], sources.classes)
        self.sampler = EpisodeSampler(banks.images, *episodes, sources.parts, sources.labelled, near)
        self.identity = json.dumps(
            {**json.loads(config.to_json()), **sources.identity(), "encoder": backbone.fingerprint}
        )
        torch.manual_seed(config.seed)
        self.network = HSNet().to(memory_format=torch.channels_last)
        self.averaged = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        self.step, self.seconds = 0, 0.0

    def run(self, folder: Path, seconds: float, every: int) -> HSNet:
        """Train, from the last checkpoint if there is one, and return the network with averaged weights.

        Args:
            folder: folder of the checkpoint.
            seconds: processor time of all steps.
            every: number of steps between checkpoints.
        """
        if (folder / CHECKPOINT).exists():
            self._resume(folder / CHECKPOINT)
        losses = []
        while self.seconds < seconds:
            start = time.process_time()
            losses.append(self._advance())
            self.seconds += time.process_time() - start
            if self.step % every == 0 or self.seconds >= seconds:
                print(f"step {self.step}, {self.seconds:.0f} s, mean loss {fmean(losses):.4f}", flush=True)
                losses.clear()
                self._save(folder / CHECKPOINT)
        self.network.load_state_dict(self.averaged)
        return self.network.eval()

    def _advance(self) -> float:
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        device = torch.device("cpu")
        episodes = self.sampler.draw(config.seed, self.step, config.batch_size, self.features, device)
        if config.perturb.moves:
            episodes = move(episodes, config.perturb, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = self.network(episodes.query, *one_view(episodes, generator))
        loss = cross_entropy(logits, episodes)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.averaged[name].lerp_(value, 1 - min(EMA, (1 + self.step) / (10 + self.step)))
        return float(loss.detach())

    def _save(self, path: Path) -> None:
        tensors = {
            "network": self.network.state_dict(),
            "averaged": self.averaged,
            "optimiser": optimiser_tensors(self.optimiser),
            "time": {"seconds": torch.tensor(self.seconds, dtype=torch.float64)},
        }
        save_checkpoint(path, tensors, self.step, self.identity)

    def _resume(self, path: Path) -> None:
        tensors, self.step, _ = load_checkpoint(path, self.identity)
        self.network.load_state_dict(tensors["network"])
        self.averaged = tensors["averaged"]
        restore_optimiser(self.optimiser, tensors["optimiser"])
        self.seconds = float(tensors["time"]["seconds"])


def one_view(episodes: Episodes, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Draw one valid view of the support of each episode, since HSNet trains with a single support.

    Returns:
        Four tensors (B, C_l, h_l, w_l), its features, and (B, H, W), its weights of the class.
    """
    support = episodes.support
    assert support is not None  # there are no text episodes
    view = torch.multinomial(support.valid.float() + 1e-6, 1, generator=generator)[:, 0]
    rows = torch.arange(len(view))
    return [level[rows, view] for level in support.levels], support.foreground[rows, view]


def cross_entropy(logits: Tensor, episodes: Episodes) -> Tensor:
    """Mean cross entropy of two logits (B, 2, 64, 64) over the pixels whose class is known."""
    mask = episodes.mask * 0.5 + 0.5
    each = F.cross_entropy(logits, torch.cat([1 - mask, mask], dim=1), reduction="none")[:, None]
    return (each * episodes.valid).sum() / episodes.valid.sum()


class PeerEvaluator(Evaluator):
    """Scores HSNet as `Evaluator` scores a decoder; all but the mask is that of the training-free prior.

    Args:
        network: the trained network.
        model: the mean prior as a decoder.
        data: the data set.
        cache: cache of image features.
    """

    def __init__(self, network: HSNet, model: DiffUp, data: LabelledFolder, cache: FeatureCache) -> None:
        super().__init__(model, data, cache=cache)
        self.network = network
        self.found: dict[Episode, Tensor] = {}

    def support(self, episode: Episode, annotation: str, generator: np.random.Generator) -> PreparedSupport | None:
        """Segment the query by each view of the supports, and prepare them for the prior."""
        kind, named = split_annotation(annotation)
        if kind is None or named:
            raise SystemExit(f"--annotation {annotation}: HSNet has no text")
        support = self._supports(episode, kind, generator)
        valid = support.valid[0]
        views = [level[0, valid] for level in support.levels]
        query = [level.expand(len(views[0]), -1, -1, -1) for level in self._levels(episode.query)]
        with torch.no_grad():
            logits = self.network(query, views, support.foreground[0, valid])
        self.found[episode] = logits.softmax(dim=1)[:, 1].mean(dim=0)
        return prepare_support(support, self.model.config.priors)

    def compare(
        self, index: int, episode: Episode, condition: Condition, samples: Ensemble, row: int, sampling: Any
    ) -> EpisodeScore:
        """Compare HSNet's mask with the target: the mean over the views, of which a vote is the binary form."""
        mean = samples.mean.clone()
        mean[row] = self.found[episode]
        return super().compare(index, episode, condition, replace(samples, mean=mean), row, sampling)


def main() -> None:
    args = _arguments()
    folders = [LabelledFolder.open(path) for path in args.data]
    backbone = load_backbone(args.backbone, input_size=args.input_size)
    folder = args.output / f"hsnet__seed_{args.seed}"
    write_text(folder / "base.json", json.dumps({"folds": args.folds, "backbones": [args.backbone], "seed": args.seed}))
    config = TrainConfig.from_files([folder / "base.json", *args.config])
    training = Training(config, join_data(folders), backbone, args)
    network = training.run(folder, 60 * args.minutes, args.checkpoint_every)
    row: dict[str, Any] = {
        "row": "HSNet",
        "seed": args.seed,
        "steps": training.step,
        "minutes": round(training.seconds / 60, 2),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    for data in folders:
        for shots in args.shots:
            row[f"{data.name}, {args.annotation}, {shots}"] = score(network, config, data, shots, backbone, args)
    write_text(folder / "row.json", json.dumps(row, indent=2) + "\n")
    print(json.dumps(row))


def score(
    network: HSNet, config: TrainConfig, data: LabelledFolder, shots: int, backbone: Backbone, args: argparse.Namespace
) -> dict[str, Any]:
    """Score the network, and the decoders of `--against`, on the held-out classes of a data set."""
    record = EpisodeRecord(args.output / "episodes.jsonl")
    plan = Plan(
        folds=tuple(args.folds),
        shots=(shots,),
        annotations=(args.annotation,),
        seeds=(0,),
        episodes=args.episodes,
        split=args.split,
        refine=False,
    )
    rows = list(_scored(network, config.decoder.priors, data, replace(plan, threshold=0.5), backbone, record))
    found = {
        "best": fmean(row.scores.figures()["best_miou"] for row in rows),
        "thresholds": [row.scores.best_threshold for row in rows],
        "at 0.5": fmean(row.scores.miou for row in rows),
        "prior": fmean(row.scores.best_prior for row in rows),
    }
    for path in args.against:
        other = Candidate(str(path), DiffUp.from_pretrained(path, backbone=backbone))
        gap = difference(rows, sweep([other], data, plan, record), "best_miou")
        found[f"less {path}"] = [gap.value, *gap.interval]
    return found


def _scored(
    network: HSNet,
    priors: PriorConfig,
    data: LabelledFolder,
    plan: Plan,
    backbone: Backbone,
    record: EpisodeRecord,
) -> Iterator[Row]:
    # The prior needs no self-affinities, and its figures are those of the decoders' rows.
    prior = DecoderConfig(system="prior", priors=replace(priors, self_affinity=False))
    model = DiffUp(build_decoder(prior), backbone)
    evaluator, resolved = PeerEvaluator(network, model, data, FeatureCache()), plan.resolve(data)
    for setting in settings_of(Candidate("HSNet", model), data, resolved):
        stream = draw(data, resolved, setting.fold, setting.shots, setting.seed)
        known = replace(setting, decoder_hash=hash_weights(network))
        yield score_row(evaluator, known, stream, record, lambda _: None)


def _arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=50, help="steps between checkpoints; default: 50")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="decoders to compare with, in pairs")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
