"""The training loop of the decoder: frozen encoders, cached features, episodes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffup.backbones import Backbone
from diffup.backbones.base import hash_weights
from diffup.data.base import TrainingData
from diffup.data.folder import LabelledFolder
from diffup.decoder.base import Decoder, Denoised
from diffup.decoder.build import build_decoder
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.losses import Losses, decoder_loss
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError, TrainingError
from diffup.priors.condition import Condition, assemble, prior_maps
from diffup.priors.config import PriorConfig
from diffup.priors.features import Members
from diffup.priors.level import pool_to_grid
from diffup.priors.text import text_maps
from diffup.text.space import TextSpace
from diffup.training.adversary import Adversary
from diffup.training.augment import move
from diffup.training.checkpoint import (
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    steps_done,
)
from diffup.training.config import TrainConfig
from diffup.training.estimate import estimate
from diffup.training.log import LOG, RunLog, find_tensorboard
from diffup.training.perturb import perturb
from diffup.training.prepare import Banks, Sources, build_banks
from diffup.training.processes import Processes
from diffup.training.sampler import WHOLE, Episodes, EpisodeSampler, near_classes
from diffup.utils.files import sole_writer, sweep, write_text

CHECKPOINT = "checkpoint.safetensors"
DECODER = "decoder"
CONFIG = "config.json"


def train(
    data: TrainingData | str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: TrainConfig,
    backbones: Sequence[Backbone],
    *,
    text_space: TextSpace | None = None,
    backgrounds: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    in_memory: bool = False,
    initial: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    checkpoint_every: int = 200,
    stop_after: int | None = None,
    tensorboard: bool | None = None,
    progress: bool = True,
) -> Path:
    """Train a decoder, or resume an interrupted run.

    If a launcher started several processes (`accelerate launch`, `torchrun`), all of them call this function with the
    same arguments; `out` and `cache` must be folders that they share.

    Args:
        data: a data set, or path of a labelled folder (`diffup.data.folder`).
        out: folder of the run: config, checkpoint, log, and in `decoder/` the decoder so far (averaged weights).
        config: settings of the run. A run in `out` is resumed only with the same settings, or with more steps.
        backbones: the training encoders, in the order of `config.backbones`.
        text_space: the text space that `config.text_backbone` names.
        backgrounds: folder of additional photos onto which objects are pasted.
        cache: folder of cached features, which several runs may share; by default `out/cache`.
        in_memory: whether to load the cached features into memory, for slow disks; by default they are memory-mapped.
        initial: folder of a decoder whose weights the run starts from; by default random weights.
        device: device on which the decoder trains and the encoders run; with several GPUs each process takes its own.
        checkpoint_every: number of steps between checkpoints.
        stop_after: number of steps in total after which to stop; the run can be resumed later.
        tensorboard: whether to write curves to `out/tensorboard`; by default if TensorBoard is installed.
        progress: whether to show progress bars, and before them an estimate of views, disk space and time.

    Returns:
        The folder of the decoder.

    Raises:
        ConfigError: a setting is invalid.
        DataError: the folder is not laid out as documented.
        MissingPackageError: TensorBoard is asked for, or there are several processes, and the package is not installed.
        StorageError: another process trains in `out`, or `out` cannot be written to.
        TrainingError: the run in `out` has another config or other data, or there is nothing to train on.
    """
    out = Path(out)
    if len(backbones) != len(config.backbones):
        raise ConfigError(f"backbones: {len(backbones)} encoders given for the {len(config.backbones)} of the config")
    if bool(config.text_backbone) != (text_space is not None):
        raise ConfigError(f"text_space: the config names {config.text_backbone or 'none'!r}; give that one, or neither")
    for name, value in (("checkpoint_every", checkpoint_every), ("stop_after", stop_after)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: it must be 1 or more")
    tensorboard = find_tensorboard(tensorboard)
    if isinstance(data, str | os.PathLike):
        data = LabelledFolder.open(data)
    start = None if initial is None else load_decoder(initial)
    processes = Processes.start(device, config.batch_size)
    backbones = [backbone.to(processes.device) for backbone in backbones]
    text_space = None if text_space is None else text_space.to(processes.device)
    progress = progress and processes.main
    with contextlib.ExitStack() as held:
        with processes.main_first():
            sources = Sources.find(data, config, backgrounds)
            if processes.main:
                held.enter_context(sole_writer(out / CHECKPOINT, "diffup train"))
                sweep(out, deep=False)
            config = _views_of(config, out, len(sources.names))
            _share_folder(out, config, processes)
            folder = Path(cache or out / "cache")
            if progress:
                end = config.steps if stop_after is None else min(stop_after, config.steps)
                left = max(end - steps_done(out / CHECKPOINT), 0)
                cost = estimate(sources, config, backbones, folder, processes.device, left, text_space)
                tqdm.write(str(cost), sys.stderr)
            banks = build_banks(sources, config, backbones, folder, progress, text_space)
        if in_memory:
            banks.load()
        if config.decoder.low_level_channels:
            width = banks.features[0][WHOLE].arrays["level0"].shape[1]
            config = config.tied_to(backbones[0].fingerprint, int(width))
        near = None
        if config.episodes.absent and config.episodes.near:
            near = near_classes(banks.images[WHOLE], banks.features[0][WHOLE].arrays["level3"], sources.classes)
        sampler = EpisodeSampler(
            banks.images,
            sources.classes,
            config.episodes,
            data.min_area_fraction,
            data.ignore,
            sources.parts,
            sources.labelled,
            near,
        )
        identity = _identity(config, backbones, text_space, start, sources.identity())
        trainer = Trainer(config, sampler, banks, processes, identity, start)
        if (out / CHECKPOINT).exists():
            raised = trainer.resume(out / CHECKPOINT)
            if raised is not None and processes.main:
                _note_raised(trainer, out, raised, progress)
        end = config.steps if stop_after is None else min(stop_after, config.steps)
        _advance(trainer, out, end, checkpoint_every, tensorboard, progress)
        processes.wait()
    return out / DECODER


def _views_of(config: TrainConfig, out: Path, images: int) -> TrainConfig:
    """Return the config with the number of pasted images filled in; a resumed run keeps its own number."""
    begun = out / CONFIG
    if config.views.pasted is not None:
        return config
    number = config.views.pasted_of(images)
    if (out / CHECKPOINT).exists() and begun.exists():
        own = TrainConfig.from_json(begun.read_text("utf-8", "replace")).views.pasted
        number = number if own is None else own
    return replace(config, views=replace(config.views, pasted=number))


def _note_raised(trainer: Trainer, out: Path, planned: int, progress: bool) -> None:
    """Print and log what the raised number of steps changes in the learning rate."""
    config = trainer.config
    before, now = (
        config.learning_rate * _schedule(trainer.step, replace(config, steps=steps))
        for steps in (planned, config.steps)
    )
    write_text(out / CONFIG, config.to_json())
    line = {"step": trainer.step, "steps_before": planned, "steps": config.steps, "learning_rate": now}
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if progress:
        tqdm.write(
            f"steps raised from {planned} to {config.steps}: from step {trainer.step} on the learning rate follows the "
            f"schedule of {config.steps} steps ({now:.2g} instead of {before:.2g}), so the result is not that of a run "
            f"of {config.steps} steps from the start",
            sys.stderr,
        )


def _share_folder(out: Path, config: TrainConfig, processes: Processes) -> None:
    """Create the run's folder, and check that all processes can see it."""
    if processes.main:
        if not (out / CHECKPOINT).exists():  # for a resumed run, another config is refused later
            write_text(out / CONFIG, config.to_json())
    elif not (out / CONFIG).exists():
        raise TrainingError(f"{out} was begun by the first process and cannot be seen here; put it on a shared disk")


def _advance(trainer: Trainer, out: Path, end: int, checkpoint_every: int, tensorboard: bool, progress: bool) -> None:
    """Train until `end` steps are done in total; the main process writes the files."""
    main = trainer.processes.main
    log = RunLog(out, trainer.step, trainer.config.batch_size, tensorboard and main)
    with tqdm(total=trainer.config.steps, initial=trainer.step, desc="training", disable=not progress) as bar:
        while trainer.step < end:
            losses = trainer.advance()
            bar.update()
            bar.set_postfix(loss=f"{losses.total.detach():.3f}", refresh=False)
            at_checkpoint = trainer.step % checkpoint_every == 0 or trainer.step == end
            if main and at_checkpoint:
                trainer.save(out)
            if main and (at_checkpoint or log.due(trainer.step)):
                log.write(trainer.step, trainer.figures(losses), line=at_checkpoint)
    log.close()


class Trainer:
    """The state of a run.

    Args:
        config: settings of the run.
        sampler: sampler of the training episodes.
        banks: the cached views.
        processes: the processes that train together.
        identity: JSON text that identifies the run (config, encoders, data).
        initial: a decoder whose weights are copied as initial weights; by default they are random.

    Raises:
        ConfigError: the initial decoder has another architecture or other priors.
    """

    def __init__(
        self,
        config: TrainConfig,
        sampler: EpisodeSampler,
        banks: Banks,
        processes: Processes,
        identity: str,
        initial: Decoder | None = None,
    ) -> None:
        self.config = config
        self.sampler = sampler
        self.banks = banks
        self.processes = processes
        self.device = processes.device
        self.share = processes.share
        self.identity = identity
        self.step = 0
        self.gradient_norm = torch.zeros(())
        self.diffusion = Diffusion(config.decoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build_decoder(config.decoder)
            self.adversary = Adversary(config, processes) if config.decoder.system == "gan" else None
        if initial is not None:
            if differing := config.decoder.other_network(initial.config):
                own = ", ".join(f"{name}={getattr(initial.config, name)!r}" for name in differing)
                raise ConfigError(
                    f"initial: that decoder has another architecture or other priors than the config, {own}; set its "
                    "values in `decoder` of the config"
                )
            self.model.load_state_dict(initial.state_dict())
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.averaged = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def advance(self) -> Losses:
        """Run one training step, whose random numbers depend only on the seed and the number of the step."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        encoder = self.step % len(self.banks.features)
        features, members = self.banks.features[encoder], self.banks.members[encoder]
        episodes = self.sampler.draw(
            config.seed, self.step, config.batch_size, features, self.device, self.share, self.banks.text
        )
        condition, episodes = self._condition(episodes, members, generator)
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
        self.processes.sum_gradients(self.model.parameters())
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_norm)
        self.optimiser.step()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.averaged[name].lerp_(value, 1 - decay)
        return losses

    def figures(self, losses: Losses) -> dict[str, float]:
        """Return the metrics of the last step: losses, learning rate, and gradient norm before clipping.

        Args:
            losses: losses of the step.
        """
        parts = {field.name: getattr(losses, field.name) for field in fields(losses)}
        values = {name: float(value.detach()) for name, value in parts.items() if value is not None}
        rate = self.optimiser.param_groups[0]["lr"]
        return {**values, "learning_rate": rate, "gradient_norm": float(self.gradient_norm)}

    def _rate(self) -> float:
        return self.config.learning_rate * _schedule(self.step, self.config)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _condition(
        self, episodes: Episodes, members: Members, generator: torch.Generator
    ) -> tuple[Condition, Episodes]:
        priors, changes = self._priors(generator), self.config.perturb
        with torch.no_grad():
            low_level = bool(self.config.decoder.low_level_channels)
            if changes.moves:
                episodes = move(episodes, changes, generator, self.share)
            text = episodes.text
            if text is not None:
                last = pool_to_grid(episodes.query[-1], priors.grid)
                text = text_maps(text, last, members[-1] if members else ())
            sides = (episodes.query, episodes.support, episodes.images)
            maps = prior_maps(*sides, priors, low_level, text, members, edges=episodes.edges)
            fused = perturb(maps.fused, changes, priors, generator, self.share)
            return assemble(replace(maps, fused=tuple(fused)), priors), episodes

    def _priors(self, generator: torch.Generator) -> PriorConfig:
        """Return the prior config of a batch: the decoder's, with a random metric if `config.metrics` is set."""
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
        """Compute the losses of a single-pass decoder; for a GAN, train the discriminator first."""
        config, diffusion, mask = self.config, self.diffusion, episodes.mask
        last = torch.full((len(mask),), diffusion.timesteps - 1, device=self.device)
        noise = self.share.randn(*mask.shape, generator=generator).to(self.device)
        x = diffusion.observe(noise, condition.prior, last)
        with self._autocast():
            denoised = self.model(x, last / diffusion.timesteps, condition)
        answer = diffusion.estimate(denoised.output.float(), noise, last)
        losses = self._loss(denoised, x, answer, mask, condition, episodes)
        if self.adversary is None:
            return losses
        self.adversary.advance(mask, answer, condition, self.step, self._rate())
        adversarial = self.adversary.loss(answer, condition)
        return replace(losses, total=losses.total + config.adversarial_weight * adversarial, adversarial=adversarial)

    def _diffusion_losses(self, episodes: Episodes, condition: Condition, generator: torch.Generator) -> Losses:
        config, diffusion = self.config, self.diffusion
        mask, batch = episodes.mask, len(episodes.mask)
        late = self.share.rand(batch, generator=generator) ** (1 / (1 + config.noisy_steps))
        t = (late * diffusion.timesteps).long().clamp_max(diffusion.timesteps - 1).to(self.device)
        noise = self.share.randn(*mask.shape, generator=generator).to(self.device)
        start = self._self_aligned(mask, condition, generator)
        y = diffusion.add_noise(start, noise, t)
        x = diffusion.observe(y, condition.prior, t)
        with self._autocast():
            denoised = self.model(x, t / diffusion.timesteps, condition)
        answer = diffusion.estimate(denoised.output.float(), y, t)
        return self._loss(denoised, x, answer, diffusion.target(mask, noise, t), condition, episodes)

    def _loss(
        self, denoised: Denoised, x: Tensor, answer: Tensor, target: Tensor, condition: Condition, episodes: Episodes
    ) -> Losses:
        """Compute `decoder_loss` over the whole batch.

        The quality branch judges the network's input, which modulates the blocks, and its answer, whose quality users
        see; the GAN has no input and judges its answer itself.
        """
        answer = answer.detach()
        with self._autocast():
            judged = [(answer, *self.model.judge(answer, condition.image, condition.prior))]
        if self.adversary is None:
            judged.append((x, denoised.error, denoised.iou))
        output, target = self.processes.whole(denoised.output, target)
        mask, valid = self.processes.whole(episodes.mask, episodes.valid)
        whole: list[Any] = [self.processes.whole(*part) for part in judged]
        return decoder_loss(output, whole, mask, target, valid, self.config.decoder)

    def _self_aligned(self, mask: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Return the masks from which x_t is made: for some samples the decoder's own estimate from pure noise."""
        aligned = round(self.config.self_aligned * len(mask) * self.share.count)
        count = len(self.share.rows(aligned))
        noise = self.share.randn(*mask.shape, generator=generator).to(self.device)
        if not count or self.config.decoder.prediction != "x0":
            return mask
        some = condition.first(count)
        last = torch.full((count,), self.diffusion.timesteps - 1, device=self.device)
        with torch.no_grad(), self._autocast():
            x = self.diffusion.observe(noise[:count], some.prior, last)
            output = self.model(x, last / self.diffusion.timesteps, some).output.float()
        return torch.cat([self.diffusion.estimate(output, noise[:count], last), mask[count:]])

    def save(self, out: Path) -> None:
        """Write the current decoder, then the checkpoint, each atomically.

        Args:
            out: folder of the run.
        """
        save_decoder(out / DECODER, self.averaged, self.config.decoder)
        tensors = {
            "model": dict(self.model.state_dict()),
            "averaged": self.averaged,
            "optimiser": optimiser_tensors(self.optimiser),
            **({} if self.adversary is None else self.adversary.tensors()),
        }
        save_checkpoint(out / CHECKPOINT, tensors, self.step, self.identity)

    def resume(self, path: Path) -> int | None:
        """Restore the state from a checkpoint of the same run.

        Args:
            path: path of the checkpoint file.

        Returns:
            The number of steps planned before, if it was raised since; else None.

        Raises:
            TrainingError: the checkpoint belongs to another run, or is damaged.
        """
        tensors, self.step, raised = load_checkpoint(path, self.identity)
        self.model.load_state_dict(tensors["model"])
        self.averaged = {name: tensor.to(self.device) for name, tensor in tensors["averaged"].items()}
        restore_optimiser(self.optimiser, tensors["optimiser"])
        if self.adversary is not None:
            self.adversary.restore(tensors)
        return raised


def _schedule(step: int, config: TrainConfig) -> float:
    """Learning rate as a share of its peak: linear warm-up, then cosine decay to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(config.steps - config.warmup, 1)))


def _identity(
    config: TrainConfig,
    backbones: Sequence[Backbone],
    text_space: TextSpace | None,
    initial: Decoder | None,
    photos: dict[str, str],
) -> str:
    facts = json.loads(config.to_json())
    facts["backbones"] = [backbone.fingerprint for backbone in backbones]
    facts["text_backbone"] = None if text_space is None else text_space.fingerprint
    facts["initial"] = None if initial is None else hash_weights(initial)
    return json.dumps({**facts, **photos})
