"""Time of a denoising pass with onnxruntime and `torch.export`, relative to torch in the same run.

taskset -c 1 python benchmarks/export.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

from diffup.decoder.weights import load_decoder
from diffup.model import RELEASED
from diffup.publish.export import Network, example_inputs, export_decoder, network_inputs


def measure(runs: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Measure the median seconds of each function; calls alternate, so that other work affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repetition:  # the first is the warm-up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="batch sizes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    decoder = load_decoder(RELEASED)
    plain = Network(decoder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = export_decoder(decoder, folder)
        session = onnxruntime.InferenceSession(str(folder / "network.onnx"), options, ["CPUExecutionProvider"])
        program = torch.export.load(folder / "network.pt2").module()
    for path, difference in written.items():
        print(f"{path.name}: greatest difference {difference:.1e}")
    print("CPU seconds of a pass relative to torch, one thread, median")
    for batch in args.batch:
        inputs = example_inputs(decoder, batch)
        arrays = {name: tensor.numpy() for name, tensor in zip(network_inputs(decoder.config), inputs, strict=True)}
        with torch.no_grad():
            taken = measure(
                {
                    "torch": lambda inputs=inputs: plain(*inputs),
                    "onnxruntime": lambda arrays=arrays: session.run(None, arrays),
                    "torch.export": lambda inputs=inputs: program(*inputs),
                },
                args.repetitions,
            )
        ratios = ", ".join(f"{name} {value / taken['torch']:.2f}" for name, value in taken.items())
        print(f"batch {batch}: {ratios}  (torch: {taken['torch'] * 1000:.0f} ms)")


if __name__ == "__main__":
    main()
