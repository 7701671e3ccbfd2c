"""The decoder for other run times: ONNX and `torch.export`, with any batch size, and a condition as numpy arrays.

What is exported is one pass of the network, with everything that encodes the condition in it, and the quality branch
alone, which judges the final mask. The sampler between them is a few lines of arithmetic: `examples/onnx_numpy.py` has
them in numpy.
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

from diffup.decoder.base import Decoder
from diffup.decoder.diffusion import Diffusion
from diffup.decoder.weights import CONFIG
from diffup.errors import ConfigError, ExportError, MissingPackageError
from diffup.priors.condition import SIZES, Condition
from diffup.utils.files import replacing, write_text

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)

NETWORK = "network"
"""Stem of the file of the network: `INPUTS` to `OUTPUTS`."""

QUALITY = "quality"
"""Stem of the file of the quality branch: mask (B, 1, 64, 64) in [-1, 1] and image to `OUTPUTS[1:]`."""

INPUTS = ("x", "time", "level0", "level1", "level2", "level3", "prior", "image")
"""Inputs of the network, as `Decoder.forward` and `Condition` describe them; B is the first dimension of all."""

OUTPUTS = ("output", "error", "iou")
"""Outputs of the network, as `Denoised` describes them."""

TOLERANCE = 1e-3
"""Greatest difference of a probability, an IoU or half an error map between an exported decoder and its original."""


class Network(nn.Module):
    """A decoder whose condition comes as separate tensors.

    Args:
        decoder: the decoder.
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`INPUTS` -> `OUTPUTS`."""
        denoised = self.decoder(x, time, Condition((level0, level1, level2, level3), prior, image))
        return denoised.output, denoised.error, denoised.iou


class Quality(nn.Module):
    """A decoder's opinion of a final mask.

    Args:
        decoder: the decoder.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 64, 64), (B, 3, 64, 64), in [-1, 1] -> error map (B, 1, 64, 64), IoU (B,)."""
        return self.decoder.judge(mask, image)


def export_decoder(
    decoder: Decoder, folder: str | os.PathLike[str], formats: Sequence[Format] = FORMATS
) -> dict[Path, float]:
    """Write a decoder in other formats, and hold each file against the original on random input.

    The folder gets `network.onnx` and `quality.onnx`, the same as `.pt2`, and the decoder's `config.json`, which says
    how to sample. A file takes its place only once its results have been found equal.

    Args:
        decoder: a decoder of any system but `prior`, without low-level features.
        folder: made if needed.
        formats: `onnx` (needs `diffup[onnx]`), `pt2` (`torch.export`), or both.

    Returns:
        The files, each with the greatest difference that was found: of the mask's probability, of the IoU, or of half
        the error map.

    Raises:
        ConfigError: an unknown format, or a decoder that cannot stand alone.
        MissingPackageError: a package of `diffup[onnx]` is missing.
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
        _check_packages()
    decoder = copy.deepcopy(decoder).eval()  # the caller's goes on as it is
    folder = Path(folder)
    written: dict[Path, float] = {}
    for stem, module in ((NETWORK, Network(decoder)), (QUALITY, Quality(decoder))):
        program = _trace(module, decoder)
        for name in formats:
            path = folder / f"{stem}.{name}"
            with replacing(path) as temporary:
                _write(program, stem, temporary, name)
                written[path] = _check(module, temporary, name, decoder)
    write_text(folder / CONFIG, decoder.config.to_json())
    return written


def save_condition(path: str | os.PathLike[str], condition: Condition, noise: Tensor, size: tuple[int, int]) -> None:
    """Write the condition of a query as `.npz`, for a sampler without torch.

    Args:
        path: the file, ending in .npz.
        condition: a batch of one.
        noise: (1, n, 64, 64) of `draw_noise`, the start of each sample.
        size: (height, width) of the query in pixels.

    Raises:
        ConfigError: another file ending, or a condition with low-level features.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ConfigError(f"path: expected a file name ending in .npz, got {str(path)!r}")
    if condition.low_level is not None:
        raise ConfigError("condition: it holds low-level features, which exported decoders do not take")
    arrays = {f"level{index}": level for index, level in enumerate(condition.levels)}
    arrays |= {"prior": condition.prior, "image": condition.image, "noise": noise}
    numbers = {name: tensor.float().cpu().numpy() for name, tensor in arrays.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, size=np.array(size), **numbers)  # type: ignore[arg-type]


def example_inputs(decoder: Decoder, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random `INPUTS` of a decoder."""
    generator = torch.Generator().manual_seed(seed)

    def noise(channels: int, side: int) -> Tensor:
        return torch.rand(batch, channels, side, side, generator=generator) * 2 - 1

    channels = decoder.config.priors.condition_channels
    return (
        torch.randn(batch, 1, SIZES[0], SIZES[0], generator=generator),
        torch.rand(batch, generator=generator),
        *(noise(channels, side) for side in SIZES),
        noise(1, SIZES[0]),
        noise(3, SIZES[0]),
    )


def _inputs_of(module: nn.Module, decoder: Decoder, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    inputs = example_inputs(decoder, batch, seed)
    return inputs if isinstance(module, Network) else (inputs[-2], inputs[-1])


def _trace(module: nn.Module, decoder: Decoder) -> torch.export.ExportedProgram:
    """The module as a graph, its batch size free."""
    inputs = _inputs_of(module, decoder, batch=2)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def _write(program: torch.export.ExportedProgram, stem: str, path: Path, kind: Format) -> None:
    if kind == "pt2":
        with _quiet():  # it warns of weights that are parts of a storage; `_check` compares the file's results
            torch.export.save(program, path)
        return
    names = (INPUTS, OUTPUTS) if stem == NETWORK else (("mask", "image"), OUTPUTS[1:])
    with _quiet():
        exported = torch.onnx.export(program, input_names=names[0], output_names=names[1], dynamo=True, verbose=False)
    assert exported is not None  # it is None for the older exporter alone
    exported.save(str(path), external_data=False)


def _check(module: nn.Module, path: Path, kind: Format, decoder: Decoder) -> float:
    """The greatest difference of a file's results from the original's, at other batch sizes than it was traced with."""
    greatest = 0.0
    for batch in (1, 3):
        inputs = _inputs_of(module, decoder, batch, seed=batch)
        with torch.no_grad():
            expected = module(*inputs)
            found = _run(path, kind, inputs)
        for index, (a, b) in enumerate(zip(expected, found, strict=True)):
            a, b = _comparable(a, b, decoder) if isinstance(module, Network) and index == 0 else (a / 2, b / 2)
            greatest = max(greatest, float((a - b).abs().max()))
    if not greatest <= TOLERANCE:
        raise ExportError(
            f"{path.name}: the exported decoder differs from the original by {greatest:.2g}, more than {TOLERANCE}; "
            "report it with the versions of torch, onnx, onnxscript and onnxruntime"
        )
    return greatest


def _comparable(a: Tensor, b: Tensor, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Two outputs of the network as the probabilities that they mean at the last step."""
    diffusion = Diffusion(decoder.config)
    last = torch.full((len(a),), diffusion.timesteps - 1)
    nothing = torch.zeros_like(a)
    return diffusion.estimate(a, nothing, last) / 2, diffusion.estimate(b, nothing, last) / 2


def _run(path: Path, kind: Format, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
    if kind == "pt2":
        results: Sequence[Tensor] = torch.export.load(path).module()(*inputs)
        return results
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    arrays = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return [torch.from_numpy(array) for array in arrays]


def _check_packages() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(f"ONNX needs {package}: pip install diffup[onnx]") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress, which it prints, and without its notes to developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
