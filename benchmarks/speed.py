"""Cost of all operations in encoder passes, as a table next to the last accepted figures.

The unit is one forward pass of the encoder on one image at its input size, so that figures are comparable between
machines. Each figure is the median of calls that alternate with encoder passes in one run; those in passes are printed
by both clocks, CPU time and wall time.

    python benchmarks/speed.py                          everything
    python benchmarks/speed.py --parts jobs classes     some of it
    python benchmarks/speed.py --write                  and accept the figures: benchmarks/accepted.json
    python benchmarks/speed.py --quick                  with tiny models, to see that it runs
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from fakes import FakeBackbone, make_folder, random_decoder, tiny_config  # noqa: E402
from timing import ACCEPTED, CLOCKS, Figure, Figures, accept, both_clocks, read_accepted, rows, take_turns  # noqa: E402

from diffup import DiffUp, Mask, Prototypes  # noqa: E402
from diffup.backbones import load_backbone  # noqa: E402
from diffup.backbones.encode import encode  # noqa: E402
from diffup.data.folder import LabelledFolder  # noqa: E402
from diffup.inference import Query, condition, read_query  # noqa: E402
from diffup.training.config import EpisodesConfig, TrainConfig, ViewsConfig  # noqa: E402
from diffup.training.prepare import Sources, build_banks  # noqa: E402
from diffup.training.processes import Processes  # noqa: E402
from diffup.training.sampler import EpisodeSampler  # noqa: E402
from diffup.training.trainer import Trainer  # noqa: E402

PAPER = {"steps": 50, "ensemble": 5}
"""Sampling options of the paper."""

FAST = {"ensemble": 1}
"""One sample instead of two."""

START = """
import json, sys, time
at = [time.process_time()]
import torch
torch.set_num_threads(int(sys.argv[1]))
at.append(time.process_time())
from diffup import DiffUp, Box
at.append(time.process_time())
model = DiffUp.from_pretrained(device="cpu")
at.append(time.process_time())
import numpy
photo = numpy.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=numpy.uint8)
for _ in range(2):
    model.segment(photo, photo, Box(100, 100, 300, 300))
    at.append(time.process_time())
print(json.dumps(at))
"""


@dataclass(frozen=True)
class Bench:
    """The model to measure, and the settings of the measurement.

    Args:
        model: the model.
        rounds: number of timed calls of each job.
        clock: name of the clock, one of `CLOCKS`.
        quick: whether to use small numbers everywhere.
    """

    model: DiffUp
    rounds: int
    clock: str = "cpu"
    quick: bool = False
    photo: np.ndarray = field(default_factory=data.astronaut)

    @cached_property
    def query(self) -> Query:
        """The mirrored photo, resized for the encoder."""
        return read_query(self.mirrored, "query", self.model.backbone)

    @property
    def mirrored(self) -> np.ndarray:
        """The query as an image: the mirrored photo."""
        return np.ascontiguousarray(self.photo[:, ::-1])

    @property
    def mask(self) -> Mask:
        """Mask of the class in the photo."""
        mask = np.zeros(self.photo.shape[:2], dtype=bool)
        mask[20:200, 160:290] = True
        return Mask(mask)

    def shots(self, count: int) -> Prototypes:
        """Compute the prototypes of a class with K supports; their content does not affect the cost.

        Args:
            count: K, number of supports.
        """
        return self.model.prototypes([self.photo] * count, [self.mask] * count)

    def encode(self, count: int = 1) -> list[torch.Tensor]:
        """Encode the query.

        Args:
            count: batch size.
        """
        return encode(self.model.backbone, [self.query.resized] * count, count)

    def passes(self, jobs: dict[str, Callable[[], object]], rounds: int | None = None) -> Figures:
        """Measure the cost of each job in encoder passes, which alternate with the jobs.

        Args:
            jobs: functions to measure, by name.
            rounds: number of timed calls; by default that of the bench.
        """
        taken = take_turns({"": self.encode, **jobs}, rounds or self.rounds, both_clocks)
        seconds = {name: dict(zip(CLOCKS, np.array(values).T.tolist(), strict=True)) for name, values in taken.items()}
        unit = {clock: Figure.of(values, "s").value for clock, values in seconds.pop("").items()}
        found = {}
        for name, by_clock in seconds.items():
            figures = {clock: Figure.of(values, "passes", unit[clock]) for clock, values in by_clock.items()}
            (other,) = (figure.value for clock, figure in figures.items() if clock != self.clock)
            found[name] = replace(figures[self.clock], other=other)
        return found


def jobs(bench: Bench) -> Figures:
    """Measure single calls and their parts."""
    model, query, known = bench.model, bench.mirrored, bench.shots(1)
    levels, small = bench.encode(), bench.query.small[None]
    one = condition(levels, known.features, small, model.backbone, model.config)
    step = torch.ones(1)

    def half() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return model.segment(query, known, **FAST)

    five = [np.rot90(bench.photo, turns).copy() for turns in range(4)] + [query]
    masks = [Mask(np.rot90(bench.mask.mask.numpy(), turns).copy()) for turns in range(4)] + [bench.mask]
    return bench.passes(
        {
            "one shot": lambda: model.segment(query, bench.photo, bench.mask),
            "one shot, fast (ensemble=1)": lambda: model.segment(query, bench.photo, bench.mask, **FAST),
            "prototypes kept": lambda: model.segment(query, known),
            "prototypes kept, fast (ensemble=1)": lambda: model.segment(query, known, **FAST),
            "prototypes kept, fast, in bfloat16": half,
            "five shots": lambda: model.segment(query, five, masks),
            "of it: reading the query": lambda: read_query(query, "query", model.backbone),
            "of it: priors": lambda: condition(levels, known.features, small, model.backbone, model.config),
            "of it: decoder, one sample": lambda: model.decoder(torch.zeros(1, 1, 64, 64), step, one),
        }
    )


def paper(bench: Bench) -> Figures:
    """Measure the paper's setting: 50 steps, 5 samples, no cached prototypes."""
    options = {} if bench.quick else PAPER
    call = {"one shot": lambda: bench.model.segment(bench.mirrored, bench.photo, bench.mask, **options)}
    return bench.passes(call, rounds=min(bench.rounds, 2))


def classes(bench: Bench) -> Figures:
    """Measure the cost for several numbers of classes, with computed prototypes."""
    counts = (1, 2) if bench.quick else (1, 2, 5, 10, 20, 50)
    one = bench.shots(1)
    known = [replace(one, name=f"class {index}") for index in range(max(counts))]
    calls = {count: (lambda part=known[:count]: bench.model.segment(bench.mirrored, part)) for count in counts}
    return bench.passes({f"C = {count}": call for count, call in calls.items()})


def shots(bench: Bench) -> Figures:
    """Measure the cost for several K: of a query with computed prototypes, and of computing them."""
    counts = (1, 2) if bench.quick else (1, 2, 5, 10, 20, 50)
    known = {count: bench.shots(count) for count in counts}
    kept = {f"K = {k}, kept": (lambda p=p: bench.model.segment(bench.mirrored, p)) for k, p in known.items()}
    made = {f"K = {k}, making prototypes": (lambda k=k: bench.shots(k)) for k in counts}
    return bench.passes(kept) | bench.passes(made, rounds=min(bench.rounds, 3))


def settings(bench: Bench) -> Figures:
    """Measure the cost against samples, steps, the photo's side and the encoder's, prototypes kept."""
    model, query, known = bench.model, bench.mirrored, bench.shots(1)
    samples, steps, photos, inputs = (2,), (2,), (128,), ()
    if not bench.quick:
        samples, steps, photos, inputs = (1, 2, 4, 8), (4, 10, 50), (512, 1024, 2048, 4096), (256, 384, 768)
    calls: dict[str, Callable[[], object]] = {}
    for count in samples:
        calls[f"samples {count}"] = lambda count=count: model.segment(query, known, ensemble=count).mask
    for count in steps:
        calls[f"steps {count}, one sample"] = lambda count=count: model.segment(query, known, steps=count, **FAST).mask
    for side in photos:
        photo = np.array(Image.fromarray(query).resize((side, side)))
        calls[f"photo of {side} px"] = lambda photo=photo: model.segment(photo, known).mask
    for side in inputs:
        other = DiffUp(model.decoder, load_backbone(model.backbone.name, input_size=side), model.device)
        own = other.prototypes(bench.photo, bench.mask)
        calls[f"encoder at {side} px"] = lambda other=other, own=own: other.segment(query, own).mask
    return bench.passes(calls, rounds=min(bench.rounds, 3))


def stream(bench: Bench) -> Figures:
    """Measure `segment_many` per image, from JPEG bytes to the result, for several batch sizes and reading threads."""
    sizes, workers, count = ((1, 2), (1, 2), 4) if bench.quick else ((1, 4, 8), (1, 4), 8)
    files, known = [jpeg(np.roll(bench.photo, 16 * index, axis=1)) for index in range(count)], bench.shots(1)

    def many(batch_size: int, threads: int, **options: int) -> None:
        for result in bench.model.segment_many(files, known, batch_size=batch_size, workers=threads, **options):
            assert not hasattr(result, "error"), result

    calls: dict[str, Callable[[], object]] = {}
    for size in sizes:
        calls[f"batch {size}, encoder alone"] = lambda size=size: [bench.encode(size) for _ in range(count // size)]
        for threads in workers:
            calls[f"batch {size}, workers {threads}"] = lambda size=size, threads=threads: many(size, threads)
    calls[f"batch {sizes[-1]}, workers {workers[-1]}, fast"] = lambda: many(sizes[-1], workers[-1], **FAST)
    taken = take_turns({"": bench.encode, **calls}, min(bench.rounds, 3), CLOCKS[bench.clock])
    unit = Figure.of(taken.pop(""), "s").value
    found = {}
    for name, values in taken.items():
        found[name] = Figure.of(values, "passes an image", unit * count)
        found[f"{name}, rate"] = Figure.of([count / value for value in values], f"images a {bench.clock} second")
    return found


def start(bench: Bench) -> Figures:
    """Measure the CPU seconds of a fresh process up to its first result."""
    names = ("import torch", "import diffup, beyond torch", "load the model", "first one shot", "second one shot")
    command = [sys.executable, "-c", START, str(torch.get_num_threads())]
    taken: list[list[float]] = []
    for _ in range(1 if bench.quick else min(bench.rounds, 3)):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        at = json.loads(done.stdout)
        taken.append([after - before for before, after in pairwise(at)])
    return {name: Figure.of(list(values), "s") for name, values in zip(names, zip(*taken, strict=True), strict=True)}


def peak(bench: Bench) -> Figures:
    """Measure floating-point operations per second, relative to a large matrix product."""
    model, side = bench.model, 64 if bench.quick else 1024
    matrix, step = torch.randn(side, side), torch.ones(1)
    features, small = bench.shots(1).features, bench.query.small[None]
    one = condition(bench.encode(), features, small, model.backbone, model.config)
    images = bench.query.resized[None].to(memory_format=torch.channels_last)
    work: dict[str, Callable[[], object]] = {
        "matrix product": lambda: matrix @ matrix,
        "U-Net, one sample": lambda: model.decoder(torch.zeros(1, 1, 64, 64), step, one),
        "U-Net, two samples": lambda: model.decoder(torch.zeros(2, 1, 64, 64), step.repeat(2), one.repeat(2)),
        "encoder": lambda: model.backbone.pyramid(images),
    }
    taken = take_turns(work, bench.rounds, CLOCKS[bench.clock])
    found, best = {}, 0.0
    for name, job in work.items():
        with FlopCounterMode(display=False) as counter:
            job()
        operations = counter.get_total_flops() / 1e9
        rate = operations / Figure.of(taken[name], "s").value
        best = best or rate
        found[f"{name}, operations"] = Figure(float(f"{operations:.4g}"), "billion")
        found[f"{name}, share of peak"] = Figure.of([operations / t for t in taken[name]], "of 1", best)
    found["peak"] = Figure.of([2 * side**3 / 1e9 / t for t in taken["matrix product"]], "billion a second")
    return found


def training(bench: Bench) -> Figures:
    """Measure training steps with cached features, per sample, and samples per second."""
    episodes = EpisodesConfig(max_shots=2) if bench.quick else EpisodesConfig()
    config = TrainConfig(
        decoder=bench.model.config, views=ViewsConfig(crops=1, pasted=6), episodes=episodes, batch_size=2, warmup=1
    )
    config = config if bench.quick else replace(config, batch_size=TrainConfig().batch_size)
    with tempfile.TemporaryDirectory() as name:
        folder = LabelledFolder.open(make_folder(Path(name) / "data"))
        sources = Sources.find(folder, config)
        banks = build_banks(sources, config, [bench.model.backbone], Path(name) / "cache", progress=False)
        banks.load()
        sampler = EpisodeSampler(banks.images, sources.classes, episodes, folder.min_area_fraction, folder.ignore)
        trainer = Trainer(config, sampler, banks, Processes(torch.device("cpu")), identity="{}")
        taken = take_turns({"": bench.encode, "step": trainer.advance}, min(bench.rounds, 5), CLOCKS[bench.clock])
    unit, size = Figure.of(taken[""], "s").value, config.batch_size
    return {
        f"a sample, batch of {size}": Figure.of(taken["step"], "passes", unit * size),
        f"rate, batch of {size}": Figure.of([size / t for t in taken["step"]], f"samples a {bench.clock} second"),
    }


def jpeg(pixels: np.ndarray) -> bytes:
    """Encode pixels as the JPEG file of a photo of 640 x 480."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


PARTS: dict[str, Callable[[Bench], Figures]] = {
    part.__name__: part for part in (jobs, paper, classes, shots, settings, stream, start, peak, training)
}


def about(part: str) -> str:
    """Return the description of a part, for the table."""
    return " ".join((PARTS[part].__doc__ or "").split())


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the figures, and accept them with `--write`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; default: all")
    parser.add_argument("--backbone", metavar="NAME", help="encoder; default: the decoder's")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each job; default: 7")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; default: 1")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="cpu",
        help="clock of the accepted figures; wall for several threads on an idle machine; default: cpu",
    )
    parser.add_argument("--quick", action="store_true", help="tiny random models, one round")
    parser.add_argument("--write", action="store_true", help="store the figures as accepted")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED, metavar="FILE", help="file of accepted figures")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.quick:
        tiny = DiffUp(random_decoder(tiny_config()), FakeBackbone(input_size=(64, 64)), "cpu")
        bench = Bench(tiny, 1, args.clock, quick=True)
    else:
        bench = Bench(DiffUp.from_pretrained(backbone=args.backbone, device="cpu"), args.rounds, args.clock)
    accepted = read_accepted(args.accepted)
    print(f"{bench.model}, input {bench.model.backbone.input_size}, {args.threads} threads, {args.clock} time")
    for part in args.parts:
        figures = PARTS[part](bench)
        print("\n".join(rows(part, figures, accepted, args.clock)), flush=True)
        if args.write:
            accept(part, about(part), figures, bench.model.backbone.name, args.clock, args.accepted)


if __name__ == "__main__":
    main()
