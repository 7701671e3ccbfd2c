"""The discriminator of a GAN run and its optimiser (the GAN baseline of Table 8)."""

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
"""Steps between two R1 penalties, each with this multiple of its weight (lazy regularisation, as in StyleGAN2)."""


class Adversary:
    """The discriminator of a GAN run and its optimiser.

    Args:
        config: settings of the run.
        processes: the processes that train together.
    """

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.model = Discriminator(config.decoder).to(processes.device).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, betas=(0.0, 0.99))

    def loss(self, answer: Tensor, condition: Condition) -> Tensor:
        """Compute the generator's adversarial loss.

        Args:
            answer: (B, 1, 64, 64) in [-1, 1], generated masks, with gradient.
            condition: conditions of the masks, a batch of B.
        """
        return generator_loss(*self.processes.whole(self.model(answer, condition)))

    def advance(self, mask: Tensor, answer: Tensor, condition: Condition, step: int, rate: float) -> None:
        """Train the discriminator for one step.

        Args:
            mask: (B, 1, 64, 64) in [-1, 1], true masks.
            answer: (B, 1, 64, 64) in [-1, 1], generated masks.
            condition: conditions of the masks, a batch of B.
            step: number of the step, from 0.
            rate: learning rate of the step.

        Raises:
            TrainingError: the loss is not finite.
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
        """Return the weights and optimiser state for a checkpoint, by group and name."""
        return {
            "discriminator": dict(self.model.state_dict()),
            "discriminator_optimiser": optimiser_tensors(self.optimiser),
        }

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Restore weights and optimiser state.

        Args:
            tensors: groups of tensors as `tensors()` returned them.
        """
        self.model.load_state_dict(tensors["discriminator"])
        restore_optimiser(self.optimiser, tensors["discriminator_optimiser"])
