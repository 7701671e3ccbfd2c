"""Ray against a single process: the same label maps, byte by byte, with a worker killed and the disk full in between.

Passes over the same photos, with the same classes:

1. a single process, `DiffUp.segment_many`;
2. `calm`: Ray, undisturbed (`label_into`);
3. `storm`: Ray, whose first worker is killed with SIGKILL once it has finished a task; later the disk of the output is
   filled to the last byte, the run ends with an error, room is made, and the same call goes on.

Every label map of 2 and 3 is compared with that of 1. Costs are CPU seconds, not seconds on the clock, so that other
work on the machine has little effect. The third pass writes to a small disk of its own, which is filled: a tmpfs that
the script mounts (which takes root), or one that you have mounted, `--output`.

    python benchmarks/maintenance/ray_storm.py PHOTOS --count 500 --workers 2
    python benchmarks/maintenance/ray_storm.py PHOTOS --count 500 --small --passes storm
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # as nice as this process: a busy machine would starve them

import ray.data
import torch
from pyarrow import parquet

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fakes  # noqa: E402

from diffup import Box, DiffUp, LabelMap, Prototypes, __version__  # noqa: E402
from diffup.errors import StorageError  # noqa: E402
from diffup.inference import read_query  # noqa: E402
from diffup.labelling.folder import find_images  # noqa: E402
from diffup.labelling.ray import LABELS, RayPlan, label_into  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
SMALL_DISK = "16m"
LARGEST = 2**28  # bytes; a larger disk is not filled


class Processes:
    """What the processes below this one are called, and how much CPU time they have had, looked at every half second.

    Attributes:
        seconds: CPU seconds of each process that was seen, by its id and the time of its start.
        names: all names that each of them had; Ray's workers are renamed with every task.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[int, int], float] = {}
        self.names: dict[tuple[int, int], str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._ended.set()
        self._thread.join()

    def look(self) -> dict[int, str]:
        """Names of the processes that are there now, by id."""
        found = {}
        for process, start, name, seconds in descendants():
            found[process] = name
            self.seconds[process, start] = seconds
            self.names[process, start] = f"{self.names.get((process, start), '')} {name}"[-1000:]
        return found

    def total(self, part: str = "") -> float:
        """CPU seconds of the processes one of whose names has a part."""
        return sum(seconds for process, seconds in self.seconds.items() if part in self.names[process])

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.look()


def descendants() -> Iterator[tuple[int, int, str, float]]:
    """Id, time of start, name and CPU seconds of every process below this one."""
    facts: dict[int, tuple[int, int, str, float]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            facts[int(folder.name)] = (int(fields[1]), int(fields[19]), name, sum(map(int, fields[11:13])) / TICKS)
    below = {os.getpid()}
    waiting = dict(facts)
    while grown := {process for process, (parent, *_) in waiting.items() if parent in below}:
        for process in grown:
            _, start, name, seconds = waiting.pop(process)
            below.add(process)
            yield process, start, name, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of photos")
    parser.add_argument(
        "--count", type=int, default=500, help="number of photos, the first of the folder; default: 500"
    )
    parser.add_argument("--output", type=Path, help="folder on a small disk of its own; default: a new tmpfs")
    parser.add_argument("--backbone", help="encoder; default: the decoder's own")
    parser.add_argument("--small", action="store_true", help="a tiny encoder and decoder, for the comparison alone")
    parser.add_argument("--passes", nargs="+", choices=["calm", "storm"], default=["calm", "storm"])
    parser.add_argument("--classes", type=int, default=1, help="number of classes; default: 1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--task-size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = [str((args.folder / name).resolve()) for name in find_images(args.folder)[: args.count]]
    with tempfile.TemporaryDirectory() as folder:
        return run(args, paths, Path(folder))


def run(args: argparse.Namespace, paths: list[str], folder: Path) -> int:
    """Run the three passes; return 1 if a label map differs, else 0."""
    decoder = fakes.save_tiny_decoder(folder / "decoder", steps=1) if args.small else None
    backbone = fakes.FakeBackbone() if args.small else args.backbone
    model = DiffUp.from_pretrained(decoder, backbone=backbone, device="cpu")
    known = [teach(model, path, f"object{number}") for number, path in enumerate(paths[: args.classes])]
    print(f"diffup {__version__}, {model}, torch {torch.__version__}, ray {ray.__version__}")
    print(f"Python {platform.python_version()}, {processor()}, {len(paths)} photos, {len(known)} classes", flush=True)

    clock, start = time.monotonic(), time.process_time()
    results = model.segment_many(paths, known, batch_size=args.batch_size, workers=1)
    expected = {path: png(result) for path, result in zip(paths, results, strict=True)}
    report("single process", len(paths), time.process_time() - start, time.monotonic() - clock)

    plan = RayPlan(
        decoder=decoder,
        backbone=backbone,
        device="cpu",
        batch_size=args.batch_size,
        task_size=args.task_size,
        concurrency=args.workers,
        readers=1,
    )
    ray.init(address="local", num_cpus=args.workers + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if args.small:  # whose code the workers cannot import
        ray.cloudpickle.register_pickle_by_value(fakes)
    rows = ray.data.from_items([{"path": path} for path in paths])
    faults = 0
    if "calm" in args.passes:
        clock = time.monotonic()
        with Processes() as processes:
            label_into(rows, folder / "calm", known, plan)
        report("Ray, its workers", len(paths), processes.total("Labeller"), time.monotonic() - clock)
        print(f"  with all other processes of Ray: {processes.total():.0f} CPU s")
        faults += compare("Ray", folder / "calm", expected)
    if "storm" in args.passes:
        with small_disk(args.output) as output:
            clock = time.monotonic()
            with Processes() as processes:
                storm(lambda: label_into(rows, output, known, plan), output, processes)
            report("Ray, disturbed, its workers", len(paths), processes.total("Labeller"), time.monotonic() - clock)
            faults += compare("Ray, disturbed", output, expected)
    ray.shutdown()
    return int(faults > 0)


def teach(model: DiffUp, path: str, name: str) -> Prototypes:
    """Prototypes of a box in the middle of a photo."""
    image = read_query(path, "query", model.backbone)
    height, width = image.size
    box = Box(width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    return model.prototypes(image.pixels, box, name=name)


def processor() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.machine()


def png(result: Any) -> bytes:
    assert isinstance(result, LabelMap), result
    return result.to_png()


def report(what: str, count: int, cpu: float, clock: float) -> None:
    print(
        f"{what}: {cpu:.0f} CPU s, {count / cpu:.2f} images per second and core, {clock:.0f} s by the clock", flush=True
    )


def storm(run: Callable[[], Any], output: Path, processes: Processes) -> None:
    """Run to the end, with a worker killed and the disk full in between."""
    ended = threading.Event()
    disturbing = threading.Thread(target=disturb, args=(output, processes, ended), daemon=True)
    disturbing.start()
    try:
        run()
    except StorageError as error:
        print(f"  the run ended with a StorageError: {str(error).splitlines()[0][:200]}")
    else:
        raise AssertionError("the disk was full, and the run has not ended with an error")
    finally:
        ended.set()
        disturbing.join()
    torn = [path.name for path in output.rglob("*") if path.is_file() and not whole(path)]
    print(f"  {done(output)} photos on record; files that are not whole: {torn or 'none'}")
    assert not torn
    try:
        run()
    except StorageError as error:
        print(f"  the same call, while the disk is still full: {str(error)[:200]}")
    (output / FILLER).unlink()
    outcome = run()
    print(f"  room made, the same call again: {outcome.labelled} labelled, {outcome.known} on record", flush=True)


FILLER = "filler"


def whole(path: Path) -> bool:
    """Whether a file is what a finished run may leave."""
    if path.suffix == ".parquet":
        with contextlib.suppress(Exception):
            return parquet.read_table(path).num_rows > 0
        return False
    return path.name in ("settings.json", FILLER)


def disturb(output: Path, processes: Processes, ended: threading.Event) -> None:
    """Kill a worker after the first part, and fill the disk after the fourth."""
    await_parts(output, 1, ended)
    workers = [process for process, name in processes.look().items() if "Labeller" in name]
    os.kill(workers[0], signal.SIGKILL)
    print(f"  worker {workers[0]} of {len(workers)} killed, {done(output)} photos on record", flush=True)
    await_parts(output, 4, ended)
    with contextlib.suppress(OSError), (output / FILLER).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    print(f"  disk full, {done(output)} photos on record", flush=True)


def await_parts(output: Path, count: int, ended: threading.Event) -> None:
    while len(list((output / LABELS).glob("*.parquet"))) < count:
        if ended.wait(0.1):
            raise TimeoutError(f"the run ended before there were {count} parts; give more photos or smaller tasks")


def done(output: Path) -> int:
    return sum(parquet.read_metadata(path).num_rows for path in (output / LABELS).glob("*.parquet"))


def compare(what: str, output: Path, expected: dict[str, bytes]) -> int:
    """Print how many label maps differ from those of the single process; return the number of differences."""
    rows = [row for path in (output / LABELS).glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    written = {row["path"]: row["labels"] for row in rows}
    twice, missing = len(rows) - len(written), len(expected.keys() - written.keys())
    other = sum(written[path] != expected[path] for path in written)
    print(f"{what}: {len(rows)} label maps, {twice} twice, {missing} missing, {other} other bytes", flush=True)
    return twice + missing + other


@contextlib.contextmanager
def small_disk(given: Path | None) -> Iterator[Path]:
    """A small disk: the one that the caller has mounted, or a new tmpfs."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        facts = os.statvfs(given)
        if facts.f_blocks * facts.f_frsize > LARGEST:
            sys.exit(f"--output: {given} is on a disk of more than {LARGEST // 2**20} MiB, which would be filled")
        yield given / "out"
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", folder], check=True)
        try:
            yield Path(folder, "out")
        finally:
            subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    sys.exit(main())
