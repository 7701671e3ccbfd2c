"""The encoder of a whole model, cut out of the graph, with BatchNorm folded or in int8, and put back in its place.

Quantisation is static: weights have a scale for each channel, activations one that photos calibrate. Only the encoder
is run for it. Priors and decoder stay in float32.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from diffup.backbones.base import LEVELS, FrozenBackbone
from diffup.errors import ConfigError
from diffup.inputs.images import describe

if TYPE_CHECKING:
    from onnx import ModelProto

ENCODER_IMAGE = "encoder_image"
"""Name of the value in a whole graph that the encoder reads: the resized photos, (B, 3, h, w) in [0, 1]."""

ENCODER_LEVELS = tuple(f"encoder_level{index}" for index in range(LEVELS))
"""Names of the values in a whole graph that the encoder gives: four float32 maps (B, C_l, h_l, w_l), fine to coarse."""

MIN_PHOTOS = 8
"""Least number of photos that calibrate an encoder."""

MAX_PHOTOS = 24
"""Greatest number of photos that calibrate an encoder; of more, that many are drawn."""

_PREFIX = "changed/"  # of all names that a changed encoder brings
_Photo = TypeVar("_Photo")


def draw_photos(photos: Sequence[_Photo]) -> list[_Photo]:
    """Draw at most `MAX_PHOTOS` photos, always the same, in their order.

    Args:
        photos: the photos to draw from.

    Raises:
        ConfigError: there are fewer than `MIN_PHOTOS`, or it is a path instead of a list.
    """
    if isinstance(photos, str | bytes | os.PathLike):
        raise ConfigError(f"calibration: expected a list of photos, got {describe(photos)}; list the folder's photos")
    if len(photos) < MIN_PHOTOS:
        raise ConfigError(
            f"calibration: {len(photos)} photos, but int8 needs {MIN_PHOTOS} or more, best of what the model will see"
        )
    drawn = random.Random(0).sample(range(len(photos)), min(len(photos), MAX_PHOTOS))
    return [photos[index] for index in sorted(drawn)]


def check_quantisable(backbone: FrozenBackbone) -> None:
    """Check that an encoder is of a kind whose int8 results are known.

    Args:
        backbone: the encoder.

    Raises:
        ConfigError: it has LayerNorm, as ViTs have.
    """
    if any(isinstance(module, nn.LayerNorm) for module in backbone.encoder.modules()):
        raise ConfigError(
            f"calibration: the encoder {backbone.name!r} has LayerNorm, as ViTs have, and int8 was tried with "
            "convolutions and BatchNorm alone; export it in float32"
        )


def quantise_encoder(model: ModelProto, images: Sequence[npt.NDArray[np.float32]]) -> ModelProto:
    """Put the encoder of a whole model in int8.

    Args:
        model: the whole model, in which `ENCODER_IMAGE` and `ENCODER_LEVELS` are names of values; it is not changed.
        images: photos that calibrate the activations, as the encoder gets them: (1, 3, h, w) in [0, 1].

    Returns:
        The model with the same inputs, outputs and metadata.
    """
    return _with_encoder(model, _quantised(_folded_encoder(model), images))


def fold_encoder(model: ModelProto) -> ModelProto:
    """Fold BatchNorm into the encoder's convolutions; a model without BatchNorm is returned as it is.

    onnxruntime does not, because the exporter puts nodes between the weights and BatchNorm that it folds too late.

    Args:
        model: the whole model, in which `ENCODER_IMAGE` and `ENCODER_LEVELS` are names of values; it is not changed.
    """
    if all(node.op_type != "BatchNormalization" for node in model.graph.node):
        return model
    return _with_encoder(model, _folded_encoder(model))


def _folded_encoder(model: ModelProto) -> ModelProto:
    """Cut the encoder out of a whole model, and fold constants and BatchNorm."""
    import onnx
    from onnxscript import optimizer

    encoder = onnx.utils.Extractor(model).extract_model([ENCODER_IMAGE], list(ENCODER_LEVELS))
    folded: ModelProto = optimizer.optimize(encoder)
    return folded


class _Images:
    """A `CalibrationDataReader` of images in memory."""

    def __init__(self, images: Sequence[npt.NDArray[np.float32]]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The encoder's inputs of the next image; None after the last."""
        return next(({ENCODER_IMAGE: image} for image in self._left), None)


def _quantised(encoder: ModelProto, images: Sequence[npt.NDArray[np.float32]]) -> ModelProto:
    """Quantise the graph of an encoder (QDQ), whose BatchNorm is folded; it would stay in float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quant_utils, quantize_static

    quant_utils.add_pre_process_metadata(encoder)  # else onnxruntime asks for that in a warning
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "float32.onnx", Path(name) / "int8.onnx"
        onnx.save(encoder, source)
        quantize_static(
            source,
            target,
            _Images(images),
            per_channel=True,
            activation_type=QuantType.QUInt8,  # processors multiply QUInt8 with QInt8
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def _with_encoder(model: ModelProto, encoder: ModelProto) -> ModelProto:
    """Replace the encoder's nodes in a whole model, and drop all nodes and weights that nothing reads any more."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    inner = onnx.compose.add_prefix(encoder, _PREFIX).graph
    outer = {_PREFIX + name: name for name in (ENCODER_IMAGE, *ENCODER_LEVELS)}
    for node in inner.node:
        node.input[:] = [outer.get(name, name) for name in node.input]
        node.output[:] = [outer.get(name, name) for name in node.output]
    nodes = [node for node in model.graph.node if not set(node.output).intersection(ENCODER_LEVELS)]
    start = next(index for index, node in enumerate(nodes, 1) if ENCODER_IMAGE in node.output)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes[:start], *inner.node, *nodes[start:]])
    changed.graph.initializer.extend(inner.initializer)
    cleaned = onnx_ir.from_proto(changed)
    RemoveUnusedNodesPass()(cleaned)
    found: ModelProto = onnx_ir.to_proto(cleaned)
    return found
