"""The discriminator of a GAN run with its optimiser: what the generator of Table 8 trains against."""

from __future__ import annotations

import torch
from torch import Tensor

from diffup.decoder.baselines.gan import Discriminator, discriminator_loss, generator_loss, gradient_penalty
from diffup.errors import TrainingError
from diffup.priors.condition import Condition
from diffup.training.checkpoint import optimiser_tensors, restore_optimiser
from diffup.training.config import TrainConfig
from diffup.training.processes import Processes

PENALTY_EVERY = 16
"""R1 is taken every so many steps at as many times its weight, as StyleGAN2 does: it costs a second backward pass."""


class Adversary:
    """The other side of a GAN run.

    Args:
        config: the run.
        processes: where it trains.
    """

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.model = Discriminator(config.decoder).to(processes.device).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, betas=(0.0, 0.99))

    def loss(self, answer: Tensor, condition: Condition) -> Tensor:
        """The generator's loss, for masks (B, 1, 64, 64) in [-1, 1] that carry its gradient."""
        return generator_loss(*self.processes.whole(self.model(answer, condition)))

    def advance(self, mask: Tensor, answer: Tensor, condition: Condition, step: int, rate: float) -> None:
        """One step of the discriminator.

        Args:
            mask: (B, 1, 64, 64) in [-1, 1], true masks.
            answer: (B, 1, 64, 64) in [-1, 1], generated ones.
            condition: batch of B.
            step: number of the step.
            rate: learning rate.

        Raises:
            TrainingError: its loss is not finite.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.requires_grad_(True)
        scores = self.model(mask, condition), self.model(answer.detach(), condition)
        loss = discriminator_loss(*self.processes.whole(*scores))
        if self.config.r1_weight and step % PENALTY_EVERY == 0:
            weight = self.config.r1_weight * PENALTY_EVERY / self.processes.share.count
            loss = loss + weight * gradient_penalty(self.model, mask, condition)
        if not bool(loss.isfinite()):
            raise TrainingError(
                f"the discriminator's loss is {float(loss.detach())} at step {step}; the last checkpoint is intact. "
                "Lower learning_rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.sum_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_norm)
        self.optimiser.step()
        self.model.requires_grad_(False)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps of it."""
        return {
            "discriminator": dict(self.model.state_dict()),
            "discriminator_optimiser": optimiser_tensors(self.optimiser),
        }

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Undo `tensors`."""
        self.model.load_state_dict(tensors["discriminator"])
        restore_optimiser(self.optimiser, tensors["discriminator_optimiser"])
