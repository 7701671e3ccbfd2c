"""Data-parallel training in several processes, on several GPUs or machines, through Hugging Face accelerate.

A step is the same for any number of processes: `batch_size` counts the episodes of all processes, each process takes
every n-th of them, and random numbers are drawn for the whole batch, of which a process uses its own rows. Losses are
means over the valid pixels of the whole batch, and a mean of means would weigh processes wrongly. So the network's
outputs, which are small maps, are exchanged, every process computes the loss of the whole batch, and gradients are
summed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from diffup.errors import ConfigError, MissingPackageError
from diffup.utils.optional import install_command

_PATIENCE = timedelta(days=7)
"""Time for which processes wait for the main one, which may have to encode a large data set."""


@dataclass(frozen=True)
class Share:
    """The rows of each batch that a process holds: `index`, `index + count`, ...

    Args:
        index: number of the process, from 0.
        count: number of processes; the batch size is a multiple of it.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch: int) -> range:
        """Return the row numbers of this process.

        Args:
            batch: batch size over all processes.
        """
        return range(self.index, batch, self.count)

    def rand(self, rows: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Draw uniform numbers in [0, 1) for the whole batch and return this process's rows, (rows, *shape).

        Args:
            rows: number of rows of this process.
            *shape: shape of a row.
            generator: random number generator, in the same state in all processes.
        """
        return torch.rand(rows * self.count, *shape, generator=generator)[self.index :: self.count]

    def randn(self, rows: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Draw standard normal numbers for the whole batch and return this process's rows, (rows, *shape).

        Args:
            rows: number of rows of this process.
            *shape: shape of a row.
            generator: random number generator, in the same state in all processes.
        """
        return torch.randn(rows * self.count, *shape, generator=generator)[self.index :: self.count]


ALL = Share()
"""The share of a single process: the whole batch."""


class Processes:
    """The processes of a run, as seen from one of them.

    Args:
        device: device on which this process trains.
        accelerator: the `Accelerator` of accelerate; None for a single process.
    """

    def __init__(self, device: torch.device, accelerator: Any = None) -> None:
        self.device = device
        self.accelerator = accelerator
        self.share = ALL if accelerator is None else Share(accelerator.process_index, accelerator.num_processes)

    @classmethod
    def start(cls, device: str | torch.device, batch_size: int) -> Processes:
        """Join the other processes if a launcher (`accelerate launch`, `torchrun`) has started several.

        Args:
            device: device to train on; with several GPUs each process gets its own.
            batch_size: number of episodes per step, over all processes.

        Raises:
            ConfigError: the batch size is no multiple of the number of processes.
            MissingPackageError: there are several processes, and accelerate is not installed.
        """
        device, count = torch.device(device), int(os.environ.get("WORLD_SIZE", "1"))
        if count < 2:
            return cls(device)
        if batch_size % count:
            raise ConfigError(
                f"batch_size={batch_size} does not divide among {count} processes; it counts the episodes of them all"
            )
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError as error:
            raise MissingPackageError(
                f"training in several processes needs accelerate: {install_command('train')}"
            ) from error
        accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
        return cls(accelerator.device, accelerator)

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes the files."""
        return self.share.index == 0

    def main_first(self) -> AbstractContextManager[None]:
        """Return a context that the other processes enter after the main process has left it."""
        if self.accelerator is None:
            return nullcontext()
        return self.accelerator.main_process_first()  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait until every process has reached this point."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def whole(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Gather tensors of the whole batch; the rows of this process keep their gradient.

        Args:
            *parts: tensors (b, ...) of this process.

        Returns:
            Tensors (B, ...) of the whole batch.
        """
        return parts if self.accelerator is None else tuple(self._whole(part) for part in parts)

    def _whole(self, part: Tensor) -> Tensor:
        part = part.float()
        gathered = list(self.accelerator.gather(part.detach()).chunk(self.share.count))
        gathered[self.share.index] = part
        return torch.cat(gathered)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the processes, in one exchange.

        Args:
            parameters: parameters with gradients.
        """
        if self.accelerator is None:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def is_main() -> bool:
    """Whether this is the first process that a launcher started, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0
