"""Size, time and accuracy of a whole model whose encoder is in float32 or int8.

Times are CPU seconds of a photo with one class, one thread, medians in turns. OpenVINO is measured if it is installed.
Accuracy is the IoU of masks, not refined, in one-shot episodes of a labelled folder; prototypes are made by torch.

    python benchmarks/export_whole.py DATA --backbone bundled:efficientnet_lite2 --episodes 72 -o figures.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from timing import take_turns

from diffup.data.folder import LabelledFolder
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.inputs.annotations import Mask
from diffup.inputs.images import to_bytes
from diffup.model import DiffUp
from diffup.prototypes import Prototypes
from diffup.publish.photo_model import resize_photo, support_inputs
from diffup.publish.quantise import MAX_PHOTOS, quantise_encoder
from diffup.publish.whole import PHOTO, export_whole, prepared
from diffup.publish.whole_model import WholeModel
from diffup.utils.files import write_text

Array = npt.NDArray[Any]


def export(model: DiffUp, example: Prototypes, photos: list[Array], folder: Path) -> dict[str, Path]:
    """Write the file in float32, unless it is there, and the same with the encoder in int8."""
    files = {"float32": folder / "float32.onnx", "int8": folder / "int8.onnx"}
    if not files["float32"].exists():
        found = export_whole(model.backbone, model.decoder, [example], files["float32"], as_inputs=True)
        print(f"float32 differs from torch by {found.float32:.1g}", flush=True)
    images = [resize_photo(as_input(photo).float() / 255, model.backbone.input_size).numpy() for photo in photos]
    onnx.save(quantise_encoder(onnx.load(files["float32"]), images), files["int8"])
    return files


def as_input(photo: Array) -> torch.Tensor:
    """Convert a photo (H, W, 3) to the graph's input."""
    return torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous()


def times(
    model: DiffUp, example: Prototypes, photo: Array, files: dict[str, Path], batches: list[int], rounds: int
) -> dict[str, float]:
    """Median CPU milliseconds of a photo, by runtime and precision, and of photos in batches."""
    support = support_inputs(prepared(example, model.config.priors))
    inputs = {PHOTO: as_input(photo).numpy(), **{name: tensor.numpy() for name, tensor in support.items()}}
    several = {f", batch of {size}": inputs | {PHOTO: inputs[PHOTO].repeat(size, axis=0)} for size in batches}
    jobs: dict[str, Callable[[], object]] = {
        "torch float32": lambda: model.segment(photo, example, refine=False).maps,
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    for precision, path in files.items():
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        for batch, given in {"": inputs, **several}.items():
            jobs[f"onnxruntime {precision}{batch}"] = lambda session=session, given=given: session.run(None, given)
        if importlib.util.find_spec("openvino"):
            import openvino

            compiled = openvino.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
            jobs[f"openvino {precision}"] = lambda compiled=compiled: compiled(inputs)
    photos = {name: int(name.partition(", batch of ")[2] or 1) for name in jobs}
    taken = take_turns(jobs, rounds, time.process_time)
    return {name: 1000 * statistics.median(seconds) / photos[name] for name, seconds in taken.items()}


def overlaps(
    model: DiffUp, data: LabelledFolder, episodes: list[Episode], files: dict[str, Path]
) -> dict[str, list[float]]:
    """IoU in percent of every episode, by precision."""
    wholes = {precision: WholeModel.load(path, threads=1) for precision, path in files.items()}
    found: dict[str, list[float]] = {precision: [] for precision in files}
    for episode in episodes:
        (name,) = episode.supports
        support = model.prototypes(data.image(name), Mask(data.mask(name) == episode.class_id), name="class")
        truth = data.mask(episode.query)
        for precision, whole in wholes.items():
            (result,) = whole.segment(data.image(episode.query), support, refine=False).results
            counted = truth != data.ignore
            mask, object_ = result.mask & counted, (truth == episode.class_id) & counted
            found[precision].append(100 * float((mask & object_).sum() / max((mask | object_).sum(), 1)))
        print(
            len(found["int8"]), {name: round(float(np.mean(values)), 2) for name, values in found.items()}, flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="labelled folder, such as coco_mini")
    parser.add_argument("--backbone", default="bundled:efficientnet_lite2")
    parser.add_argument("--backbone-weights", help="local file of the encoder's weights")
    parser.add_argument("--episodes", type=int, default=72)
    parser.add_argument("--batches", type=int, nargs="+", default=[], help="sizes of batches that are timed, too")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each runtime")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the two files and figures.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = LabelledFolder.open(args.data)
    options = {"checkpoint_path": args.backbone_weights} if args.backbone_weights else {}
    model = DiffUp.from_pretrained(backbone=args.backbone, device="cpu", **options)
    episodes = draw_episodes(data, "train", sorted(data.classes), 1, args.episodes, seed=0)
    used = {name for episode in episodes for name in (episode.query, *episode.supports)}
    others = [name for name in data.split("train") if name not in used]
    photos = [to_bytes(data.image(name)) for name in random.Random(0).sample(others, MAX_PHOTOS)]
    (name,) = episodes[0].supports
    example = model.prototypes(data.image(name), Mask(data.mask(name) == episodes[0].class_id), name="class")
    args.output.mkdir(parents=True, exist_ok=True)
    files = export(model, example, photos, args.output)
    figures: dict[str, Any] = {"bytes": {name: path.stat().st_size for name, path in files.items()}}
    figures["ms"] = times(model, example, photos[0], files, args.batches, args.rounds)
    print(json.dumps(figures), flush=True)
    found = overlaps(model, data, episodes, files)
    change = np.subtract(found["int8"], found["float32"])
    figures["mean IoU"] = {name: float(np.mean(values)) for name, values in found.items()}
    figures["change"] = [float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change)))]
    print(json.dumps(figures))
    write_text(args.output / "figures.json", json.dumps(figures | {"iou": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
