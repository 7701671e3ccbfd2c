"""An encoder in int8 within a whole graph: a hand-made graph, so that nothing is traced."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from diffup.backbones import load_backbone
from diffup.errors import ConfigError
from diffup.publish.quantise import (
    ENCODER_IMAGE,
    ENCODER_LEVELS,
    MAX_PHOTOS,
    MIN_PHOTOS,
    check_quantisable,
    draw_photos,
    fold_encoder,
    quantise_encoder,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIDE = 32
WIDTHS = (3, 16, 24, 32, 48)


def whole_graph() -> Any:
    """Photo of any size -> encoder of four convolutions with BatchNorm and ReLU -> mean of each level.

    The weights of the first convolution are read behind the encoder, too.
    """
    rng = np.random.default_rng(0)
    arrays = {
        "white": np.array(255, np.float32),
        "size": np.array([1, 3, SIDE, SIDE], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "all_axes": np.array([0, 1, 2, 3], np.int64),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["photo"], ["float"], to=onnx.TensorProto.FLOAT),
        make("Div", ["float", "white"], ["pixels"]),
        make("Resize", ["pixels", "", "", "size"], [ENCODER_IMAGE], mode="linear"),
    ]
    last = ENCODER_IMAGE
    for index, (width, channels) in enumerate(pairwise(WIDTHS)):
        arrays[f"weight{index}"] = (rng.normal(size=(channels, width, 3, 3)) / np.sqrt(9 * width)).astype(np.float32)
        norm = [f"{name}{index}" for name in ("scale", "bias", "mean", "var")]
        arrays |= {name: rng.uniform(0.5, 1.5, channels).astype(np.float32) for name in norm}
        conv = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        nodes += [
            make("Conv", [last, f"weight{index}"], [f"conv{index}"], **conv),
            make("BatchNormalization", [f"conv{index}", *norm], [f"norm{index}"]),
            make("Relu", [f"norm{index}"], [f"relu{index}"]),
            make("Identity", [f"relu{index}"], [ENCODER_LEVELS[index]]),
        ]
        last = f"relu{index}"
    means = [f"level_mean{index}" for index in range(4)]
    nodes += [
        make("ReduceMean", [name, "axes"], [mean], keepdims=0) for name, mean in zip(ENCODER_LEVELS, means, strict=True)
    ]
    nodes += [
        make("ReduceMean", ["weight0", "all_axes"], ["weight_mean"], keepdims=0),
        make("Concat", means, ["means"], axis=0),
        make("Add", ["means", "weight_mean"], ["probability"]),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "whole",
        [value("photo", onnx.TensorProto.UINT8, [1, 3, "height", "width"])],
        [value("probability", onnx.TensorProto.FLOAT, [4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
        value_info=[value(ENCODER_IMAGE, onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])]
        + [
            value(name, onnx.TensorProto.FLOAT, [1, WIDTHS[index + 1], SIDE >> (index + 1), SIDE >> (index + 1)])
            for index, name in enumerate(ENCODER_LEVELS)
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {"diffup": "{}", "other": "kept"})
    return model


def run(model: Any, photo: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["probability"], {"photo": photo})[0]
    return found


def test_the_encoder_alone_becomes_int8(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(1)
    model = whole_graph()
    before = model.SerializeToString()
    changed = quantise_encoder(model, [rng.random((1, 3, SIDE, SIDE), dtype=np.float32) for _ in range(8)])
    assert model.SerializeToString() == before and not caplog.records
    onnx.checker.check_model(changed, full_check=True)
    assert (changed.graph.input, changed.graph.output) == (model.graph.input, model.graph.output)
    assert {entry.key: entry.value for entry in changed.metadata_props} == {"diffup": "{}", "other": "kept"}
    assert len(changed.SerializeToString()) < 0.5 * len(before)
    kinds = [node.op_type for node in changed.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 4 and "QuantizeLinear" in kinds
    weights = {item.name: item.data_type for item in changed.graph.initializer if item.dims[1:] == [3, 3, 3]}
    assert weights.pop("weight0") == onnx.TensorProto.FLOAT  # it is read outside of the encoder
    assert list(weights.values()) == [onnx.TensorProto.INT8]
    for height, width in ((40, 60), (32, 32), (90, 20)):
        photo = rng.integers(0, 256, (1, 3, height, width), dtype=np.uint8)
        expected, found = run(model, photo), run(changed, photo)
        assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_batch_norm_is_folded() -> None:
    model = whole_graph()
    changed = fold_encoder(model)
    kinds = [node.op_type for node in changed.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 4 and "QuantizeLinear" not in kinds
    assert fold_encoder(changed) is changed
    photo = np.random.default_rng(1).integers(0, 256, (1, 3, 40, 60), dtype=np.uint8)
    assert np.allclose(run(changed, photo), run(model, photo), rtol=1e-4)
    again = quantise_encoder(changed, [photo[..., :SIDE, :SIDE].astype(np.float32) / 255] * 8)
    assert "QuantizeLinear" in [node.op_type for node in again.graph.node]


def test_photos_are_drawn_always_the_same_and_in_their_order() -> None:
    assert draw_photos(range(MIN_PHOTOS)) == list(range(MIN_PHOTOS))
    drawn = draw_photos(range(100))
    assert len(drawn) == MAX_PHOTOS and drawn == sorted(set(drawn)) == draw_photos(range(100))
    assert drawn[-1] > MAX_PHOTOS
    for few in range(MIN_PHOTOS):
        with pytest.raises(ConfigError, match=rf"calibration: {few} photos, but int8 needs {MIN_PHOTOS} or more"):
            draw_photos(range(few))


def test_encoders_with_layer_norm_are_refused() -> None:
    check_quantisable(load_backbone("timm:test_efficientnet", pretrained=False, input_size=64))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'timm:test_vit' has LayerNorm"):
        check_quantisable(load_backbone("timm:test_vit", pretrained=False, input_size=160))  # type: ignore[arg-type]
