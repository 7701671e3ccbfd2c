"""Logging of a run: a line of `log.jsonl` at each checkpoint, and TensorBoard curves more often."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

from diffup.errors import MissingPackageError
from diffup.utils.journal import Journal
from diffup.utils.optional import install_command

LOG = "log.jsonl"
CURVES = "tensorboard"

CURVES_EVERY = 20
"""Number of steps between two points of the TensorBoard curves."""


class RunLog:
    """Writes the metrics of a run to its log and to TensorBoard.

    Args:
        out: folder of the run.
        step: number of steps done. Later points of the curves, from a run killed before its checkpoint, are hidden.
        batch_size: number of episodes per step.
        tensorboard: whether to write TensorBoard curves.
    """

    def __init__(self, out: Path, step: int, batch_size: int, tensorboard: bool) -> None:
        self.journal = Journal(out / LOG, shared=False)  # no other process writes to a run's folder
        self.batch_size = batch_size
        self.writer = _writer(out / CURVES, step) if tensorboard else None
        self.step, self.time = step, time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether the curves have a point at a step.

        Args:
            step: number of steps done.
        """
        return self.writer is not None and step % CURVES_EVERY == 0

    def write(self, step: int, figures: dict[str, float], line: bool) -> None:
        """Write the metrics of a step.

        Args:
            step: number of steps done.
            figures: metrics by name; `samples_per_second` since the last call is added.
            line: whether to write a line of the log too.
        """
        now = time.perf_counter()
        speed = (step - self.step) * self.batch_size / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        figures = {**figures, "samples_per_second": speed}
        if line:
            rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
            self.journal.append([{"step": step, **rounded}])
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the TensorBoard writer."""
        if self.writer is not None:
            self.writer.close()


def find_tensorboard(wanted: bool | None) -> bool:
    """Decide whether to write TensorBoard curves.

    Args:
        wanted: what the user asked for; None for curves if TensorBoard is installed.

    Raises:
        MissingPackageError: curves are asked for, and TensorBoard is not installed.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if wanted and not installed:
        raise MissingPackageError(f"TensorBoard curves need tensorboard: {install_command('train')}")
    return installed if wanted is None else wanted


def _writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # takes seconds

    return SummaryWriter(str(folder), purge_step=step + 1)
