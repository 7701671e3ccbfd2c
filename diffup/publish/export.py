"""Export of the decoder to ONNX and `torch.export`, with any batch size, and of a condition to numpy arrays.

Three graphs are exported: one denoising pass of the network, the encoding of the condition included; the quality
branch, which predicts the IoU of the final mask; and whether the query shows the class. The sampler is a few lines of
arithmetic between them; `examples/onnx_numpy.py` shows it in numpy.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from diffup.decoder.base import PRESENCE_LEVEL, Decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.weights import CONFIG
from diffup.errors import ConfigError, ExportError, MissingPackageError
from diffup.priors.affinity import HEADS, KEY_SIDE
from diffup.priors.condition import SIZES, Condition
from diffup.utils.files import replacing, write_text

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)

NETWORK = "network"
"""File name, without ending, of the network, which maps `network_inputs` to `OUTPUTS`."""

QUALITY = "quality"
"""File name, without ending, of the quality branch, which maps `QUALITY_INPUTS` to `OUTPUTS[1:]`."""

PRESENCE = "presence"
"""File name, without ending, of the presence: from the condition's level `level2` to the logit `presence` (B,)."""

INPUTS = ("x", "time", "level0", "level1", "level2", "level3", "prior", "image")
"""Names of the inputs of every network, the arguments of `Decoder.forward` and the fields of `Condition`; B is the
first dimension of each."""

QUALITY_INPUTS = ("mask", "image", "prior")
"""Names of the inputs of the quality branch, the arguments of `Decoder.judge`."""

OUTPUTS = ("output", "error", "iou")
"""Names of the network's outputs, the fields of `Denoised`."""

TOLERANCE = 1e-3
"""Maximum difference of a probability, an IoU or half an error map between an exported decoder and the original."""


def network_inputs(config: DecoderConfig) -> tuple[str, ...]:
    """Names of a network's inputs: `INPUTS`, then `affinity0`, `affinity1`, ... if the condition has self-affinities.

    Args:
        config: the decoder's config.
    """
    count = len(HEADS) if config.priors.self_affinity else 0
    return (*INPUTS, *(f"affinity{index}" for index in range(count)))


class Network(nn.Module):
    """A decoder whose condition is given as separate tensors, as graphs need it.

    Args:
        decoder: the decoder to export.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        level0: Tensor,
        level1: Tensor,
        level2: Tensor,
        level3: Tensor,
        prior: Tensor,
        image: Tensor,
        *affinity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one denoising pass.

        Args:
            x: (B, 1, 64, 64), noisy masks at unit variance.
            time: (B,) in [0, 1), diffusion times t / T.
            level0: (B, M, 64, 64) in [-1, 1], the condition's first level.
            level1: (B, M, 32, 32) in [-1, 1], the condition's second level.
            level2: (B, M, 16, 16) in [-1, 1], the condition's third level.
            level3: (B, M, 8, 8) in [-1, 1], the condition's fourth level.
            prior: (B, 1, 64, 64) in [-1, 1], the mean prior.
            image: (B, 3, 64, 64) in [-1, 1], the query.
            affinity: (B, heads, s * s, 16 * 16) for each side s in `priors.affinity.HEADS`, the self-affinities. Every
                row has its own; a `Condition` lets rows share them.

        Returns:
            The network's output (B, 1, 64, 64), the predicted error map (B, 1, 64, 64), and the predicted IoU (B,).
        """
        for tensor in affinity:
            # Tells the tracer that rows share no affinities: with another number of them, B could not vary freely.
            torch._check(tensor.shape[0] == x.shape[0])
        denoised = self.decoder(x, time, Condition((level0, level1, level2, level3), prior, image, affinity))
        return denoised.output, denoised.error, denoised.iou


class Quality(nn.Module):
    """The quality branch of a decoder, which predicts the error and IoU of a final mask.

    Args:
        decoder: the decoder to export.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, mask: Tensor, image: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the error and the IoU of masks.

        Args:
            mask: (B, 1, 64, 64) in [-1, 1], final masks.
            image: (B, 3, 64, 64) in [-1, 1], the queries.
            prior: (B, 1, 64, 64) in [-1, 1], the mean priors.

        Returns:
            Error map (B, 1, 64, 64), and IoU (B,).
        """
        return self.decoder.judge(mask, image, prior)


class Presence(nn.Module):
    """The part of a decoder that predicts whether a query shows the class.

    Args:
        decoder: the decoder to export.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.head = decoder.presence_head

    def forward(self, level2: Tensor) -> Tensor:
        """Predict the presence from the condition's third level: (B, M, 16, 16) in [-1, 1] -> (B,), logits."""
        logit: Tensor = self.head(level2)
        return logit


def export_decoder(
    decoder: Decoder, folder: str | os.PathLike[str], formats: Sequence[Format] = FORMATS
) -> dict[Path, float]:
    """Export a decoder, and compare the results of each file with the original on random input.

    The folder then holds `network`, `quality` and `presence`, each as `.onnx` and `.pt2`, and the decoder's
    `config.json`, which has the sampling settings. A file is put in place only after its results have been found equal.

    Args:
        decoder: a decoder of any system but `prior`, without low-level features.
        folder: path of the folder for the files, created if needed.
        formats: formats to write: `onnx` (needs `diffup[onnx]`), `pt2` (`torch.export`), or both.

    Returns:
        The written files, each with the maximum difference from the original: of the probability of the mask or of the
        presence, the IoU, or half the error map.

    Raises:
        ConfigError: a format is unknown, or the decoder cannot be exported.
        MissingPackageError: a package of `diffup[onnx]` is not installed.
        ExportError: an exported network gives other results than the original.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"formats={tuple(formats)!r}: choose of {', '.join(FORMATS)}")
    if decoder.config.system == "prior":
        raise ConfigError("system='prior' has no network to export: its answer is the condition's mean prior")
    if decoder.config.low_level_channels:
        raise ConfigError(
            f"low_level_channels={decoder.config.low_level_channels}: this decoder reads features of "
            f"{decoder.config.backbone} and does not work on a condition alone; export one with low_level_channels=0"
        )
    if "onnx" in formats:
        check_packages()
    decoder = copy.deepcopy(decoder).eval()  # the caller's decoder stays unchanged
    folder = Path(folder)
    written: dict[Path, float] = {}
    modules = {NETWORK: Network(decoder), QUALITY: Quality(decoder), PRESENCE: Presence(decoder)}
    for stem, module in modules.items():
        program = _trace(module, decoder)
        for name in formats:
            path = folder / f"{stem}.{name}"
            with replacing(path) as temporary:
                _write(program, *_names(stem, decoder.config), temporary, name)
                written[path] = _check(module, temporary, name, decoder)
    write_text(folder / CONFIG, decoder.config.to_json())
    return written


def save_condition(path: str | os.PathLike[str], condition: Condition, noise: Tensor, size: tuple[int, int]) -> None:
    """Write the condition of a query to an `.npz` file, for a sampler without torch.

    Args:
        path: path of the file, ending in .npz.
        condition: the decoder's condition, a batch of one.
        noise: (1, n, 64, 64), starting noise of each of the n samples.
        size: (height, width) of the query in pixels.

    Raises:
        ConfigError: the path has another ending, or the condition holds low-level features.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ConfigError(f"path: expected a file name ending in .npz, got {str(path)!r}")
    if condition.low_level is not None:
        raise ConfigError("condition: it holds low-level features, which exported decoders do not take")
    arrays = {f"level{index}": level for index, level in enumerate(condition.levels)}
    arrays |= {f"affinity{index}": affinity for index, affinity in enumerate(condition.affinity)}
    arrays |= {"prior": condition.prior, "image": condition.image, "noise": noise}
    numbers = {name: tensor.float().cpu().numpy() for name, tensor in arrays.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, size=np.array(size), **numbers)  # type: ignore[arg-type]


def example_inputs(decoder: Decoder, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Draw random network inputs, in the order of `network_inputs`.

    Args:
        decoder: the decoder that they are for.
        batch: batch size B.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(channels: int, side: int) -> Tensor:
        return torch.rand(batch, channels, side, side, generator=generator) * 2 - 1

    def affinity(heads: int, side: int) -> Tensor:
        weights = torch.rand(batch, heads, side**2, KEY_SIDE**2, generator=generator)
        return weights / weights.sum(dim=3, keepdim=True)

    priors = decoder.config.priors
    return (
        torch.randn(batch, 1, SIZES[0], SIZES[0], generator=generator),
        torch.rand(batch, generator=generator),
        *(noise(priors.condition_channels, side) for side in SIZES),
        noise(1, SIZES[0]),
        noise(3, SIZES[0]),
        *(affinity(len(heads), side) for side, heads in HEADS.items() if priors.self_affinity),
    )


def _names(stem: str, config: DecoderConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and of the outputs of a graph."""
    if stem == NETWORK:
        return network_inputs(config), OUTPUTS
    return (QUALITY_INPUTS, OUTPUTS[1:]) if stem == QUALITY else ((f"level{PRESENCE_LEVEL}",), (PRESENCE,))


def _inputs_of(module: nn.Module, decoder: Decoder, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    inputs = example_inputs(decoder, batch, seed)
    if isinstance(module, Network):
        return inputs
    given = dict(zip(INPUTS, inputs, strict=False))
    if isinstance(module, Presence):
        return (given[f"level{PRESENCE_LEVEL}"],)
    return given["prior"].flip(0, 2), given["image"], given["prior"]  # any mask in [-1, 1] but the prior itself


def _trace(module: nn.Module, decoder: Decoder) -> torch.export.ExportedProgram:
    """Trace a module to a graph with a variable batch size."""
    inputs = _inputs_of(module, decoder, batch=2)
    batch = torch.export.Dim("batch", min=1, max=4096)
    rows = [{0: batch} for _ in inputs]
    affinities = rows[len(INPUTS) :]  # one argument of the network, of variable length
    shapes = (*rows[: len(INPUTS)], *([tuple(affinities)] if affinities else []))
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)


def _write(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path, kind: Format
) -> None:
    if kind == "pt2":
        with quiet():  # it warns about weights that share a storage; `_check` compares the file's results
            torch.export.save(program, path)
        return
    with quiet():
        exported = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    assert exported is not None  # only the older exporter returns None
    exported.save(str(path), external_data=False)


def _check(module: nn.Module, path: Path, kind: Format, decoder: Decoder) -> float:
    """Maximum difference of a file's results from the original's, at other batch sizes than it was traced with.

    Raises:
        ExportError: the difference is above `TOLERANCE`.
    """
    greatest = 0.0
    for batch in (1, 3):
        inputs = _inputs_of(module, decoder, batch, seed=batch)
        with torch.no_grad():
            expected = _several(module(*inputs))
            found = _run(path, kind, inputs)
        for index, (a, b) in enumerate(zip(expected, found, strict=True)):
            a, b = (_comparable(value, module, index, decoder) for value in (a, b))
            greatest = max(greatest, float((a - b).abs().max()))
    if not greatest <= TOLERANCE:
        raise ExportError(
            f"{path.name}: the exported decoder differs from the original by {greatest:.2g}, more than {TOLERANCE}; "
            "report it with the versions of torch, onnx, onnxscript and onnxruntime"
        )
    return greatest


def _several(results: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Results of a module: a graph with one output gives a tensor."""
    return (results,) if isinstance(results, Tensor) else results


def _comparable(value: Tensor, module: nn.Module, index: int, decoder: Decoder) -> Tensor:
    """Convert an output to what `TOLERANCE` is about: a probability, an IoU, or half an error map."""
    if isinstance(module, Presence):
        return torch.sigmoid(value)
    if isinstance(module, Network) and index == 0:  # the probability that it gives at the last step
        diffusion = Diffusion(decoder.config)
        last = torch.full((len(value),), diffusion.timesteps - 1)
        return diffusion.estimate(value, torch.zeros_like(value), last) / 2
    return value / 2


def _run(path: Path, kind: Format, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
    if kind == "pt2":
        return _several(torch.export.load(path).module()(*inputs))
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    arrays = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return [torch.from_numpy(array) for array in arrays]


def check_packages() -> None:
    """Check that the packages of `diffup[onnx]` are installed.

    Raises:
        MissingPackageError: one of them is not.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(f"ONNX needs {package}: pip install diffup[onnx]") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's printed progress and its notes to developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
