"""Training the decoder: frozen encoders, cached features, episodes, one loop."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffup.backbones import Backbone
from diffup.backbones.base import hash_weights
from diffup.data.folder import LabelledFolder
from diffup.decoder.base import Decoder
from diffup.decoder.build import build_decoder
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.losses import Losses, answer_loss, decoder_loss
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError, DataError, TrainingError
from diffup.priors.condition import SIZES, Condition, assemble, fused_priors, pool_to_grid
from diffup.priors.config import PriorConfig
from diffup.priors.views import IDENTITY, ONE_SHOT_VIEWS, View
from diffup.training.adversary import Adversary
from diffup.training.augment import move
from diffup.training.bank import Bank, Render, bank_name, feature_bank, file_facts, image_bank
from diffup.training.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from diffup.training.config import TrainConfig
from diffup.training.episodes import CROP, NOTHING_TO_TRAIN_ON, PASTED, WHOLE, Episodes, EpisodeSampler
from diffup.training.perturb import perturb
from diffup.training.render import Renderer

CHECKPOINT = "checkpoint.safetensors"
DECODER = "decoder"
LOG = "log.jsonl"

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_LATER = ("metrics", "adversarial_weight", "r1_weight")
_LATER_OF_DECODER = ("system", "low_level_channels", "low_level_width", "low_level_encoder")


@dataclass(frozen=True)
class Banks:
    """All cached views of a run.

    Args:
        images: image banks by group.
        features: feature banks by group, for each encoder.
    """

    images: dict[str, Bank]
    features: list[dict[str, Bank]]

    def load(self) -> None:
        """Read everything into memory."""
        for group in (self.images, *self.features):
            for bank in group.values():
                bank.arrays = {name: np.array(array) for name, array in bank.arrays.items()}


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: TrainConfig,
    backbones: Sequence[Backbone],
    *,
    backgrounds: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    in_memory: bool = False,
    initial: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    checkpoint_every: int = 200,
    stop_after: int | None = None,
    progress: bool = True,
) -> Path:
    """Train a decoder on a labelled folder, or go on with a run that was interrupted.

    Args:
        data: folder in the format of `diffup.data.folder`.
        out: folder of the run: checkpoint, log, and the decoder so far (averaged weights) in `decoder/`.
        config: the run. A run in `out` goes on only under the same config.
        backbones: the encoders, in the order of `config.backbones`.
        backgrounds: folder of more photos to paste objects onto.
        cache: folder of cached features; `out/cache` by default. Several runs may share it.
        in_memory: load the cached features into memory, for slow disks; else they are memory-mapped.
        initial: decoder folder whose weights the run starts from; random weights by default.
        device: where the decoder trains.
        checkpoint_every: steps between checkpoints.
        stop_after: stop once this many steps are done in all; the run can be gone on with later.
        progress: show progress bars.

    Returns:
        The folder of the decoder.

    Raises:
        ConfigError: a setting does not fit.
        DataError: the folder is not laid out as documented.
        TrainingError: the run in `out` has another config, or there is nothing to train on.
    """
    out, device = Path(out), torch.device(device)
    if len(backbones) != len(config.backbones):
        raise ConfigError(f"backbones: {len(backbones)} encoders given for the {len(config.backbones)} of the config")
    for name, value in (("checkpoint_every", checkpoint_every), ("stop_after", stop_after)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: it must be 1 or more")
    folder = LabelledFolder.open(data)
    held_out = {c for fold in config.folds for c in folder.fold(fold)}
    classes = [c for c in folder.classes if c not in held_out]
    banks = build_banks(folder, classes, config, backbones, Path(cache or out / "cache"), backgrounds, progress)
    if in_memory:
        banks.load()
    if config.decoder.low_level_channels:
        width = banks.features[0][WHOLE].arrays["level0"].shape[1]
        config = config.tied_to(backbones[0].fingerprint, int(width))
    sampler = EpisodeSampler(banks.images, classes, config.episodes, folder.min_area_fraction, folder.ignore)
    start = None if initial is None else load_decoder(initial)
    trainer = Trainer(config, sampler, banks, device, identity=_identity(config, backbones, start), initial=start)
    if (out / CHECKPOINT).exists():
        trainer.resume(out / CHECKPOINT)
        # The run may have been stopped after it wrote the checkpoint and before it wrote the decoder.
        save_decoder(out / DECODER, trainer.averaged, config.decoder)
    end = config.steps if stop_after is None else min(stop_after, config.steps)
    with tqdm(total=config.steps, initial=trainer.step, desc="training", disable=not progress) as bar:
        while trainer.step < end:
            losses = trainer.advance()
            bar.update()
            bar.set_postfix(loss=f"{losses.total.detach():.3f}", refresh=False)
            if trainer.step % checkpoint_every == 0 or trainer.step == end:
                trainer.save(out)
                _log(out / LOG, trainer.step, losses)
    return out / DECODER


def build_banks(
    folder: LabelledFolder,
    classes: Sequence[int],
    config: TrainConfig,
    backbones: Sequence[Backbone],
    cache: Path,
    backgrounds: str | os.PathLike[str] | None,
    progress: bool,
) -> Banks:
    """Render and encode all views, or open them where that is done."""
    names = folder.split("train")
    photos = _photos(backgrounds)
    pairs = folder.pairs("train", classes)
    if all(len(shown) < 2 for shown in pairs.values()):
        raise TrainingError(NOTHING_TO_TRAIN_ON)
    renderer = Renderer(folder, names, pairs, photos, config.views)
    paths = [path for name in names for path in (folder.image_path(name), folder.mask_path(name))]
    files = file_facts([*paths, folder.root / "splits.json"])
    views = {"crops": config.views.crops, "crop_scale": config.views.crop_scale, "jitter": config.views.jitter}
    plans: dict[str, tuple[Render, int, tuple[View, ...], dict[str, Any]]] = {
        WHOLE: (renderer.whole, len(names), ONE_SHOT_VIEWS, {}),
        CROP: (renderer.crop, len(names) * config.views.crops, (IDENTITY,), {**views, "seed": config.views.seed}),
        PASTED: (
            renderer.pasted,
            config.views.pasted,
            (IDENTITY,),
            {"jitter": config.views.jitter, "seed": config.views.seed, "classes": list(classes)},
        ),
    }
    images: dict[str, Bank] = {}
    features: list[dict[str, Bank]] = [{} for _ in backbones]
    for group, (render, length, geometry, facts) in plans.items():
        if length == 0:
            continue
        facts = {**facts, "files": files, "views": [str(view) for view in geometry], "length": length}
        if group == PASTED:
            facts["backgrounds"] = file_facts(photos)
        images[group] = image_bank(cache / bank_name(group, facts), length, render, geometry, progress)
        for banks, backbone in zip(features, backbones, strict=True):
            grid = config.decoder.priors.grid
            path = cache / bank_name(
                group, {**facts, "backbone": backbone.fingerprint, "grid": grid, "bf16": config.bf16}
            )
            banks[group] = feature_bank(path, length, render, geometry, backbone, grid, config.bf16, progress)
    return Banks(images, features)


class Trainer:
    """The state of a run.

    Args:
        config: the run.
        sampler: draws the episodes.
        banks: the cached views.
        device: where the decoder trains.
        identity: JSON text that tells this run from others.
        initial: a decoder to start from, whose weights are copied.

    Raises:
        ConfigError: the initial decoder has another architecture or other priors.
    """

    def __init__(
        self,
        config: TrainConfig,
        sampler: EpisodeSampler,
        banks: Banks,
        device: torch.device,
        identity: str,
        initial: Decoder | None = None,
    ) -> None:
        self.config = config
        self.sampler = sampler
        self.banks = banks
        self.device = device
        self.identity = identity
        self.step = 0
        self.diffusion = Diffusion(config.decoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build_decoder(config.decoder)
            self.adversary = Adversary(config, device) if config.decoder.system == "gan" else None
        if initial is not None:
            if not config.decoder.same_network(initial.config):
                raise ConfigError("initial: that decoder has another architecture or other priors than the config")
            self.model.load_state_dict(initial.state_dict())
        self.model.to(device).to(memory_format=torch.channels_last)
        self.averaged = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def advance(self) -> Losses:
        """One training step. Everything random in it follows from the seed and the step's number."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        features = self.banks.features[self.step % len(self.banks.features)]
        episodes = self.sampler.draw(config.seed, self.step, config.batch_size, features, self.device)
        condition, episodes = self._condition(episodes, generator)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        losses = self._losses(episodes, condition, generator)
        if not bool(losses.total.isfinite()):
            raise TrainingError(
                f"the loss is {float(losses.total.detach())} at step {self.step}; the last checkpoint is intact. Lower "
                "learning_rate, or switch bf16 off"
            )
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_norm)
        self.optimiser.step()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.averaged[name].lerp_(value, 1 - decay)
        return losses

    def _rate(self) -> float:
        return self.config.learning_rate * _schedule(self.step, self.config)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _condition(self, episodes: Episodes, generator: torch.Generator) -> tuple[Condition, Episodes]:
        priors, changes = self._priors(generator), self.config.perturb
        with torch.no_grad():
            maps = fused_priors(episodes.query, episodes.support, priors)
            if self.config.decoder.low_level_channels:
                maps.append(pool_to_grid(episodes.query[0], priors.grid))
            if changes.moves:
                maps, episodes = move(maps, episodes, changes, generator)
            fused, low_level = perturb(maps[: len(SIZES)], changes, generator), maps[len(SIZES) :]
            condition = assemble(fused, episodes.images, episodes.edges, priors)
            return replace(condition, low_level=low_level[0] if low_level else None), episodes

    def _priors(self, generator: torch.Generator) -> PriorConfig:
        """The priors of a batch: the decoder's, under a metric that is drawn where there are several to draw from."""
        priors, metrics = self.config.decoder.priors, self.config.metrics
        if not metrics:
            return priors
        metric, conversion = metrics[int(torch.randint(len(metrics), (), generator=generator))]
        return replace(priors, metric=metric, conversion=conversion)  # type: ignore[arg-type]

    def _losses(self, episodes: Episodes, condition: Condition, generator: torch.Generator) -> Losses:
        if self.config.decoder.system == "diffusion":
            return self._diffusion_losses(episodes, condition, generator)
        return self._answer_losses(episodes, condition, generator)

    def _answer_losses(self, episodes: Episodes, condition: Condition, generator: torch.Generator) -> Losses:
        """Of a decoder that answers in one pass; a GAN's discriminator takes its own step first."""
        config, diffusion, mask = self.config, self.diffusion, episodes.mask
        last = torch.full((len(mask),), diffusion.timesteps - 1, device=self.device)
        noise = torch.randn(mask.shape, generator=generator).to(self.device)
        x = diffusion.observe(noise, condition.prior, last)
        with self._autocast():
            denoised = self.model(x, last / diffusion.timesteps, condition)
        answer = diffusion.estimate(denoised.output.float(), noise, last)
        if self.adversary is not None:
            judged = [(answer.detach(), denoised.error, denoised.iou)]
            losses = answer_loss(denoised.output, judged, mask, episodes.valid, config.decoder)
            self.adversary.advance(mask, answer, condition, self.step, self._rate())
            adversarial = self.adversary.loss(answer, condition)
            total = losses.total + config.adversarial_weight * adversarial
            return replace(losses, total=total, adversarial=adversarial)
        with self._autocast():
            error, iou = self.model.judge(answer.detach(), condition.image)
        # What the branch says of the empty mask modulates the blocks; what it says of the answer is its quality.
        judged = [(x, denoised.error, denoised.iou), (answer.detach(), error, iou)]
        return answer_loss(denoised.output, judged, mask, episodes.valid, config.decoder)

    def _diffusion_losses(self, episodes: Episodes, condition: Condition, generator: torch.Generator) -> Losses:
        config, diffusion = self.config, self.diffusion
        mask, batch = episodes.mask, len(episodes.mask)
        share = torch.rand(batch, generator=generator) ** (1 / (1 + config.noisy_steps))
        t = (share * diffusion.timesteps).long().clamp_max(diffusion.timesteps - 1).to(self.device)
        noise = torch.randn(mask.shape, generator=generator).to(self.device)
        start = self._self_aligned(mask, condition, generator)
        y = diffusion.add_noise(start, noise, t)
        x = diffusion.observe(y, condition.prior, t)
        with self._autocast():
            denoised = self.model(x, t / diffusion.timesteps, condition)
        target = diffusion.target(mask, noise, t)
        return decoder_loss(denoised, x, mask, target, episodes.valid, config.decoder)

    def _self_aligned(self, mask: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """The mask that x_t is made from: for some samples the decoder's own estimate from pure noise."""
        count = round(self.config.self_aligned * len(mask))
        noise = torch.randn(mask.shape, generator=generator).to(self.device)
        if not count or self.config.decoder.prediction != "x0":
            return mask
        some = condition.first(count)
        last = torch.full((count,), self.diffusion.timesteps - 1, device=self.device)
        with torch.no_grad(), self._autocast():
            x = self.diffusion.observe(noise[:count], some.prior, last)
            output = self.model(x, last / self.diffusion.timesteps, some).output.float()
        return torch.cat([self.diffusion.estimate(output, noise[:count], last), mask[count:]])

    def save(self, out: Path) -> None:
        """Write the checkpoint and the decoder so far, each atomically."""
        tensors = {
            "model": dict(self.model.state_dict()),
            "averaged": self.averaged,
            "optimiser": optimiser_tensors(self.optimiser),
            **({} if self.adversary is None else self.adversary.tensors()),
        }
        save_checkpoint(out / CHECKPOINT, tensors, self.step, self.identity)
        save_decoder(out / DECODER, self.averaged, self.config.decoder)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint of the same run stopped.

        Raises:
            TrainingError: the checkpoint is of another run.
        """
        tensors, self.step = load_checkpoint(path, self.identity)
        self.model.load_state_dict(tensors["model"])
        self.averaged = {name: tensor.to(self.device) for name, tensor in tensors["averaged"].items()}
        restore_optimiser(self.optimiser, tensors["optimiser"])
        if self.adversary is not None:
            self.adversary.restore(tensors)


def _schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine decay to zero, as a share of the peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(config.steps - config.warmup, 1)))


def _identity(config: TrainConfig, backbones: Sequence[Backbone], initial: Decoder | None) -> str:
    facts, defaults = json.loads(config.to_json()), json.loads(TrainConfig().to_json())
    # Fields that came later count where they are used, so that older runs can be gone on with.
    for part, usual, names in ((facts, defaults, _LATER), (facts["decoder"], defaults["decoder"], _LATER_OF_DECODER)):
        for name in names:
            if part[name] == usual[name]:
                del part[name]
    facts["backbones"] = [backbone.fingerprint for backbone in backbones]
    facts["initial"] = None if initial is None else hash_weights(initial)
    return json.dumps(facts)


def _photos(folder: str | os.PathLike[str] | None) -> list[Path]:
    if folder is None:
        return []
    photos = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in _SUFFIXES)
    if not photos:
        raise DataError(f"backgrounds={str(folder)!r} holds no {', '.join(sorted(_SUFFIXES))} files")
    return photos


def _log(path: Path, step: int, losses: Losses) -> None:
    parts = {field.name: getattr(losses, field.name) for field in fields(losses)}
    values = {name: round(float(value.detach()), 5) for name, value in parts.items() if value is not None}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")
