"""Run an exported decoder with numpy, onnxruntime and Pillow only, without torch and diffup.

    diffup export -o exported --condition query.jpg --support dog.jpg --mask dog_mask.png
    python examples/onnx_numpy.py exported -o mask.png

The code is the whole sampler of the paper's section III-D: DDIM (eta 0) on y_t = x_t - k_t b P, where P is the prior,
k_t the shift of eq. 13 and b the signal scale.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

Array = npt.NDArray[Any]
Graph = Callable[..., list[Array]]


def load_graph(path: Path, threads: int = 0) -> Graph:
    """Load an ONNX graph as a function from named arrays to the graph's outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda **arrays: session.run(None, arrays)


def noise_schedule(config: dict[str, Any]) -> tuple[Array, Array]:
    """Return abar_t and the shift k_t for every step t = 0 .. T - 1."""
    scale = 1000 / config["timesteps"]
    betas = np.linspace(config["beta_start"] * scale, config["beta_end"] * scale, config["timesteps"])
    abar = np.cumprod(1 - betas)
    root = np.sqrt(abar)
    return abar, {"none": 0 * root, "prior": 1 - root, "quadratic": root * (1 - root)}[config["shift"]]


def estimate(output: Array, y: Array, abar: float, config: dict[str, Any]) -> Array:
    """Compute the clean mask in [-1, 1] from the network's output."""
    if config["prediction"] == "x0":
        return np.tanh(output / 2) if config["loss"] == "bce_dice" else np.clip(output, -1, 1)
    if config["prediction"] == "epsilon":
        mask = (y - np.sqrt(1 - abar) * output) / np.sqrt(abar)
    else:
        mask = np.sqrt(abar) * y - np.sqrt(1 - abar) * output
    return np.clip(mask / config["signal_scale"], -1, 1)


def sample(
    network: Graph, quality: Graph, condition: dict[str, Array], config: dict[str, Any], steps: int | None = None
) -> tuple[Array, Array, float]:
    """Sample the mask of one query.

    Args:
        network: the graph of network.onnx.
        quality: the graph of quality.onnx.
        condition: arrays of condition.npz; its noise (1, n, 64, 64) gives the number of samples n.
        config: content of config.json.
        steps: number of sampling steps; by default the config's.

    Returns:
        Probability (n, 64, 64) in [0, 1] of each sample, its error map (n, 64, 64), and the predicted IoU.
    """
    abar, shifts = noise_schedule(config)
    total, b, diffusion = config["timesteps"], config["signal_scale"], config["system"] == "diffusion"
    steps = steps or config["steps"]
    visited = [round(total * (steps - index) / steps) - 1 for index in range(steps)]
    y = condition["noise"][0][:, None]
    count = len(y) if config["system"] != "one_step" else 1
    y = y[:count]
    names = [name for name in condition if name not in ("noise", "size", "evidence")]
    inputs = {name: np.repeat(condition[name], count, axis=0) for name in names}
    prior = inputs["prior"]
    mask = np.zeros_like(y)
    for t, previous in zip(visited, [*visited[1:], -1], strict=True):
        if diffusion:  # x_t at unit variance
            x = (y + shifts[t] * b * prior) / np.sqrt(abar[t] * b**2 + 1 - abar[t])
        else:  # one_step sees the prior, gan the noise
            x = prior if config["system"] == "one_step" else y
        time = np.full(count, t / total, np.float32)
        output, _, _ = network(x=x.astype(np.float32), time=time, **inputs)
        mask = estimate(output, y, abar[t], config).astype(np.float32)
        before = abar[previous] if previous >= 0 else 1.0
        noise = (y - np.sqrt(abar[t]) * b * mask) / np.sqrt(1 - abar[t])
        y = (np.sqrt(before) * b * mask + np.sqrt(1 - before) * noise).astype(np.float32)
    error, iou = quality(mask=mask, image=inputs["image"], prior=prior)
    return mask[:, 0] * 0.5 + 0.5, error[:, 0], float(iou.mean())


def presence(condition: dict[str, Array], config: dict[str, Any]) -> float:
    """Compute the calibrated probability that the query shows the class at all.

    Args:
        condition: arrays of condition.npz.
        config: content of config.json.
    """
    return sigmoid(float(condition["evidence"][0] @ np.array(config["presence_calibration"])))


def threshold_logit(probability: Array, config: dict[str, Any]) -> float:
    """Choose the threshold of a mask: of 26 logits the one with the greatest expected IoU, in a soft way.

    Args:
        probability: (64, 64) in [0, 1], mean over the samples.
        config: content of config.json; without a temperature the logit is 0.
    """
    if not config.get("temperature"):
        return 0.0
    candidates = np.linspace(-3, 2, 26)
    logits = logits_of(probability).ravel()
    tempered = 1 / (1 + np.exp(-logits / config["temperature"]))
    marked = logits > candidates[:, None]
    overlap = marked @ tempered
    expected = overlap / np.maximum(tempered.sum() + marked.sum(axis=1) - overlap, 1e-6)
    weights = np.exp(100 * (expected - expected.max()))
    return float(weights @ candidates / weights.sum())


def shown(probability: Array, config: dict[str, Any]) -> Array:
    """Shift the logits of probabilities (64, 64) so that the mask's own threshold lies at 1/2."""
    return 1 / (1 + np.exp(threshold_logit(probability, config) - logits_of(probability)))


def logits_of(probability: Array) -> Array:
    inside = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside))


def expected_quality(probability: Array, iou: float, condition: dict[str, Array], config: dict[str, Any]) -> float:
    """Compute the calibrated IoU to be expected of a mask, if the query shows the class.

    Args:
        probability: (64, 64) in [0, 1], mean over the samples.
        iou: the IoU that the quality branch predicts.
        condition: arrays of condition.npz.
        config: content of config.json.
    """
    threshold = sigmoid(threshold_logit(probability, config) + logit(config["threshold"]))
    marked = probability > threshold
    overlap = float(probability[marked].sum())
    if not overlap:
        return 0.0
    expected = overlap / (float(probability.sum()) + int(marked.sum()) - overlap)
    estimates = [logit(expected), logit(iou), math.log(float(marked.mean())), logit(threshold)]
    return sigmoid(float(np.array([*estimates, *condition["evidence"][0]]) @ np.array(config["quality_calibration"])))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def logit(share: float) -> float:
    share = min(max(share, 1e-3), 1 - 1e-3)
    return math.log(share / (1 - share))


def enlarge(probability: Array, size: tuple[int, int]) -> Array:
    """Resize a map (64, 64) to the query's (height, width), bilinearly."""
    picture = Image.fromarray(probability.astype(np.float32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A mask from an exported decoder, without torch.")
    parser.add_argument("folder", type=Path, help="folder that `diffup export --condition` wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("mask.png"))
    parser.add_argument("--steps", type=int, help="number of sampling steps; default: the decoder's")
    args = parser.parse_args(arguments)
    config = json.loads((args.folder / "config.json").read_text(encoding="utf-8"))
    condition = dict(np.load(args.folder / "condition.npz", allow_pickle=False))
    network, quality = (load_graph(args.folder / f"{name}.onnx") for name in ("network", "quality"))
    probability, _, iou = sample(network, quality, condition, config, args.steps)
    height, width = (int(side) for side in condition["size"])
    mean, present = probability.mean(axis=0), presence(condition, config)
    mask = (enlarge(shown(mean, config), (height, width)) > config["threshold"]) & (present >= config["min_presence"])
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(args.output)
    print(f"{args.output}: {mask.mean():.1%} of {width} x {height} pixels marked")
    print(f"presence of the class {present:.2f}, expected IoU {expected_quality(mean, iou, condition, config):.2f}")


if __name__ == "__main__":
    main()
