"""Segment photos with a whole exported model: numpy, Pillow and onnxruntime only, without torch and diffup.

    diffup export --whole --prototypes dog.safetensors cat.safetensors -o pets.onnx
    python examples/onnx_whole.py pets.onnx photo.jpg -o masks

    diffup export --whole --prototypes dog.safetensors --prototypes-as-inputs -o any.onnx
    python examples/onnx_whole.py any.onnx photo.jpg --classes any.dog.npz -o masks

The graph resizes and normalises the photo itself. Its probabilities have 64 x 64 positions and are enlarged here,
bilinearly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageOps

Array = npt.NDArray[Any]


def read_photo(path: Path) -> Array:
    """Read a photo, upright: (1, 3, H, W) uint8, RGB."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)[None])


def enlarge(probability: Array, size: tuple[int, int]) -> Array:
    """Resize a map (64, 64) to the photo's (height, width), bilinearly."""
    picture = Image.fromarray(probability.astype(np.float32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def segment(session: Any, photo: Array, classes: dict[str, Path]) -> dict[str, tuple[Array, float, float]]:
    """Segment every class in a photo.

    Args:
        session: session of the whole model.
        photo: (1, 3, H, W) uint8, RGB.
        classes: files of the classes by name, for a model that takes them as inputs; else empty.

    Returns:
        For each class its mask (H, W) bool, presence and quality.
    """
    facts = json.loads(session.get_modelmeta().custom_metadata_map["diffup"])
    if classes:
        names = [(name, facts["threshold"]) for name in classes]
        inputs = [{"photo": photo, **np.load(path, allow_pickle=False)} for path in classes.values()]
    else:
        names = [(item["name"], item["threshold"]) for item in facts["classes"]]
        inputs = [{"photo": photo}]
    runs = [session.run(["probability", "presence", "quality"], given) for given in inputs]
    maps, presences, qualities = (np.concatenate(parts, axis=1)[0] for parts in zip(*runs, strict=True))
    found = {}
    for (name, threshold), small, presence, quality in zip(names, maps, presences, qualities, strict=True):
        mask = (enlarge(small, photo.shape[2:]) > threshold) & (presence >= facts["min_presence"])
        found[name] = (mask, float(presence), float(quality))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Masks from a whole exported model, without torch.")
    parser.add_argument("model", type=Path, help="file that `diffup export --whole` wrote")
    parser.add_argument("photos", type=Path, nargs="+", help="photos to segment")
    parser.add_argument("--classes", type=Path, nargs="+", default=[], help="files of classes, if they are inputs")
    parser.add_argument("-o", "--output", type=Path, default=Path("masks"), help="folder for the masks")
    parser.add_argument("--threads", type=int, default=0, help="threads of onnxruntime; default: all")
    args = parser.parse_args(arguments)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.log_severity_level = 3  # errors only: it warns of what it does not fold
    session = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    classes = {path.stem.removeprefix(f"{args.model.stem}."): path for path in args.classes}
    args.output.mkdir(parents=True, exist_ok=True)
    for path in args.photos:
        for name, (mask, presence, quality) in segment(session, read_photo(path), classes).items():
            target = args.output / f"{path.stem}_{name}.png"
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(target)
            print(f"{target}: {mask.mean():.1%} marked, presence {presence:.2f}, expected IoU {quality:.2f}")


if __name__ == "__main__":
    main()
