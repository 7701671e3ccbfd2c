"""Label a folder of photos with Ray, on this machine or on a cluster; run it again to resume.

Compute prototypes first (`diffup teach --support dog.jpg --mask dog_mask.png --name dog -o dog.safetensors`), then

    python examples/bulk_labelling_ray.py photos --prototypes dog.safetensors -o labelled

The same command works on a machine of a cluster with `--address auto` and folders that all machines can access.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ray
import ray.data

from diffup import Prototypes
from diffup.labelling.folder import find_images
from diffup.labelling.ray import RayPlan, label_into


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of photos; all machines of a cluster must see it")
    parser.add_argument("--prototypes", type=Path, nargs="+", required=True, help="prototype files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results, seen by all machines")
    parser.add_argument("--backbone", help="name of the encoder; by default the decoder's")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, help="number of workers; by default as many as fit")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per worker, such as 1 or 0.5")
    parser.add_argument("--address", default="local", help="address of the cluster; `auto` on its machines")
    args = parser.parse_args(argv)
    if not ray.is_initialized():
        ray.init(args.address, include_dashboard=False if args.address == "local" else None)
    folder = args.folder.resolve()
    photos = ray.data.from_items([{"path": str(folder / name)} for name in find_images(folder)])
    plan = RayPlan(backbone=args.backbone, batch_size=args.batch_size, concurrency=args.workers, num_gpus=args.gpus)
    report = label_into(photos, args.output, [Prototypes.load(path) for path in args.prototypes], plan)
    print(f"{report.labelled} labelled, {report.known} on record, {len(report.failed)} could not be read")
    for path, error in report.failed.items():
        print(f"  {path}: {error}")
    rows = ray.data.read_parquet(str(report.files[0]), columns=["path", "quality"]).take_all()
    print("look at these first:")
    for row in sorted(rows, key=lambda row: row["quality"] or 0.0)[:5]:
        print(f"  {Path(row['path']).name}: {'nothing found' if row['quality'] is None else round(row['quality'], 2)}")


if __name__ == "__main__":
    main()
