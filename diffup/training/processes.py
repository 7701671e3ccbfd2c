"""Several processes that train one decoder, on several GPUs or machines, through Hugging Face accelerate.

A step is the same whatever their number: `batch_size` counts the episodes of all processes, each takes every n-th of
them, and random numbers are drawn for the whole batch, of which a process keeps its own rows. The losses are means over
a batch's valid pixels, and a mean of the parts' means would weigh the parts wrongly; so the network's answers, small
maps, are exchanged, every process computes the loss of the whole batch, and the gradients are summed.
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

_PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which may have a large data set to encode."""


@dataclass(frozen=True)
class Share:
    """The rows of each batch that a process takes: `index`, `index + count`, ...

    Args:
        index: number of the process.
        count: number of processes; the batch is a multiple of it.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch: int) -> range:
        """The rows of a batch of all processes."""
        return range(self.index, batch, self.count)

    def rand(self, rows: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers (rows, *shape): this process's rows of those that are drawn for the whole batch."""
        return torch.rand(rows * self.count, *shape, generator=generator)[self.index :: self.count]

    def randn(self, rows: int, *shape: int, generator: torch.Generator) -> Tensor:
        """Normal numbers, likewise."""
        return torch.randn(rows * self.count, *shape, generator=generator)[self.index :: self.count]


ALL = Share()
"""The share of a process that is alone."""


class Processes:
    """The processes of a run, seen from one of them.

    Args:
        device: where this one trains.
        accelerator: accelerate's; None where the process is alone.
    """

    def __init__(self, device: torch.device, accelerator: Any = None) -> None:
        self.device = device
        self.accelerator = accelerator
        self.share = ALL if accelerator is None else Share(accelerator.process_index, accelerator.num_processes)

    @classmethod
    def start(cls, device: str | torch.device, batch_size: int) -> Processes:
        """Join the other processes, where a launcher (`accelerate launch`, `torchrun`) has started several.

        Args:
            device: where to train; of several GPUs each process has its own.
            batch_size: episodes of a step.

        Raises:
            ConfigError: there are several, and the batch does not divide among them.
            MissingPackageError: there are several, and accelerate is not installed.
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
                'training in several processes needs accelerate: pip install "diffup[train]"'
            ) from error
        accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
        return cls(accelerator.device, accelerator)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.share.index == 0

    def main_first(self) -> AbstractContextManager[None]:
        """A block that the others enter when the main process has left it."""
        if self.accelerator is None:
            return nullcontext()
        return self.accelerator.main_process_first()  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def whole(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Tensors (b, ...) of this process -> those of the whole batch; its own rows keep their gradient."""
        return parts if self.accelerator is None else tuple(self._whole(part) for part in parts)

    def _whole(self, part: Tensor) -> Tensor:
        part = part.float()
        gathered = list(self.accelerator.gather(part.detach()).chunk(self.share.count))
        gathered[self.share.index] = part
        return torch.cat(gathered)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over the processes, in one exchange."""
        if self.accelerator is None:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def is_main() -> bool:
    """Whether a launcher started this process as its first, or none did."""
    return int(os.environ.get("RANK", "0")) == 0
