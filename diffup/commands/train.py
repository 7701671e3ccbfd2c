"""`diffup train`: trains a decoder on a data set, or resumes an interrupted run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diffup.commands.arguments import add_command, at_least
from diffup.commands.paths import existing_file, existing_folder, output_folder

if TYPE_CHECKING:
    from diffup.data.base import TrainingData
    from diffup.training.config import TrainConfig

EXAMPLES = """examples:
  diffup train data/coco_mini -o runs/trial --quick
  diffup train data/coco_mini data/voc -o runs/all
  diffup train data/coco_mini -o runs/fold0 --fold 0 --backbone bundled:efficientnet_lite0 --backbone timm:resnet50
  diffup train data/coco_mini -o runs/mine --config train.json --cache runs/cache --device cuda
  diffup train VOC2012 --dataset pascal5i --fold 3 -o runs/voc3 --config configs/paper.json configs/table6/no_edges.json
  accelerate launch --multi_gpu -m diffup.cli train COCO --dataset coco20i --fold 0 -o runs/coco0 --batch-size 64

A run that was interrupted goes on when the same command is given again. docs/training.md describes the folders of the
data sets, every field of the config, and training on several GPUs."""

DATASETS = ("folder", "pascal5i", "coco20i")
"""Names of the data sets that can be trained on."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(commands, "train", run, "train a decoder", EXAMPLES)
    parser.add_argument(
        "data", metavar="DATA", type=Path, nargs="+", help="folder of a data set; several are joined by class names"
    )
    parser.add_argument("-o", "--output", metavar="RUN", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--dataset", default="folder", choices=DATASETS, help="kind of the data set; default: a labelled folder"
    )
    parser.add_argument("--masks", metavar="FOLDER", type=Path, help="folder of coco20i's masks; default: DATA/masks")
    parser.add_argument("--year", type=int, help="year of coco20i's image files; default: 2014")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="JSON files of settings; later files override earlier ones, and the options below override all files",
    )
    parser.add_argument(
        "--fold",
        type=int,
        action="append",
        dest="folds",
        metavar="N",
        help="fold whose classes are held out; repeatable",
    )
    parser.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="NAME[=CHECKPOINT][@PIXELS]",
        help="training encoder, with a local file of weights and a side of input images; repeatable",
    )
    parser.add_argument(
        "--text-backbone",
        metavar="NAME",
        help="text space of episodes with named classes; default: no such episodes",
    )
    parser.add_argument("--input-size", metavar="PIXELS", type=int, help="side of the encoders' input images")
    parser.add_argument("--steps", type=int, metavar="N", help="number of training steps; may be raised later")
    parser.add_argument("--quick", action="store_true", help="a trial run of minutes: 300 steps, 50 images, few views")
    parser.add_argument("--batch-size", type=int, metavar="N", help="episodes per step, over all processes")
    parser.add_argument("--seed", type=at_least(0), metavar="N", help="random seed of the run")
    parser.add_argument("--backgrounds", metavar="FOLDER", type=Path, help="folder of photos to paste objects onto")
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help="folder of cached features; default: RUN/cache")
    parser.add_argument("--in-memory", action="store_true", help="load the cached features into memory, for slow disks")
    parser.add_argument("--initial", metavar="FOLDER", type=Path, help="decoder to start from; default: random weights")
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda if available")
    parser.add_argument(
        "--stop-after", type=at_least(1), metavar="N", help="stop after N steps in total; the run can be resumed"
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="write curves to RUN/tensorboard; default: if TensorBoard is installed",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> None:
    """Train a decoder, or resume an interrupted run."""
    from diffup.backbones import load_backbone
    from diffup.backbones.named import backbone_options, distinct_backbones, split_backbone
    from diffup.data.joined import join_data
    from diffup.data.open import open_dataset
    from diffup.text.load import load_text_space
    from diffup.training.processes import is_main
    from diffup.training.trainer import train
    from diffup.utils.options import resolve_device

    output_folder(args.output)
    for folder in args.data:
        existing_folder(folder, "DATA", "give the folder of a data set")
    for path in args.config:
        existing_file(path, "--config", "give a JSON file of settings")
    device = resolve_device(args.device)
    options = {name: split_backbone(text)[1] for name, text in distinct_backbones(args.backbone).items()}
    config = _train_config(args, tuple(options))
    shared = backbone_options(None, args.input_size)
    backbones = [load_backbone(name, **shared | options.get(name, {})) for name in config.backbones]
    parts = [open_dataset(args.dataset, folder, masks=args.masks, year=args.year) for folder in args.data]
    decoder = train(
        join_data(cast("list[TrainingData]", parts)),  # all of `DATASETS` are training data
        args.output,
        config,
        backbones,
        text_space=load_text_space(config.text_backbone) if config.text_backbone else None,
        backgrounds=args.backgrounds,
        cache=args.cache,
        in_memory=args.in_memory,
        initial=args.initial,
        device=device,
        stop_after=args.stop_after,
        tensorboard=args.tensorboard,
        progress=not args.quiet,
    )
    if is_main() and not args.quiet:
        print(f"decoder: {decoder}\nuse it with: diffup segment ... --decoder {decoder}")


def _train_config(args: argparse.Namespace, backbones: tuple[str, ...]) -> TrainConfig:
    """Settings of the config files, or the defaults, overridden by the options."""
    from diffup.training.config import TrainConfig

    config = TrainConfig.from_files(args.config)
    config = config.quick() if args.quick else config
    names = ("folds", "steps", "batch_size", "seed")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.text_backbone is not None:
        given["text_backbone"] = args.text_backbone
    if backbones:
        given["backbones"] = backbones
    return replace(config, **given)
