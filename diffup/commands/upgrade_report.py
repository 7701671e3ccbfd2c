"""`diffup upgrade-report`: scores decoders with other encoders, and writes an HTML page and JSON."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from diffup.commands.arguments import add_command, add_data, add_sampling, at_least, open_data, several, shared_plan
from diffup.commands.evaluate import RECORD
from diffup.commands.paths import output_folder
from diffup.errors import ConfigError

if TYPE_CHECKING:
    from diffup.data.base import Dataset
    from diffup.evaluation.report import Figure
    from diffup.evaluation.sweep import Candidate, Plan

EXAMPLES = """examples:
  diffup upgrade-report data/coco_mini --fold 0 -o report \\
    --train bundled:efficientnet_lite0=runs/lite0/decoder bundled:efficientnet_lite2=runs/lite2/decoder \\
    --test bundled:efficientnet_lite0 bundled:efficientnet_lite2 timm:mobilenetv2_100.ra_in1k

Writes OUT/report.html and OUT/upgrade.json. Episodes that `diffup evaluate` scored with the same settings into the same
OUT are not scored again."""


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = add_command(
        commands, "upgrade-report", run, "score decoders with other encoders, as an HTML page", EXAMPLES
    )
    add_data(parser)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--train",
        metavar="NAME=FOLDER",
        required=True,
        **several(str),
        help="training encoder and folder of a decoder",
    )
    models.add_argument(
        "--test",
        metavar="NAME[=CHECKPOINT][@PIXELS]",
        required=True,
        **several(str),
        help="encoders to test every decoder with",
    )
    parser.add_argument("--shots", metavar="K", type=int, default=1, help="number of support images; default: 1")
    parser.add_argument(
        "--annotation", metavar="KIND", default="mask", help="kind of the supports' annotations; default: mask"
    )
    parser.add_argument("--steps", metavar="N", type=at_least(1), help="number of DDIM steps; default: the decoder's")
    parser.add_argument("--ensemble", metavar="N", type=at_least(1), help="number of samples; default: the decoder's")
    add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    """Score every pair, draw the pictures, write `report.html` and `upgrade.json`."""
    from diffup.backbones.named import distinct_backbones, load_named
    from diffup.decoder.weights import fetch_decoder, load_decoder
    from diffup.evaluation.record import EpisodeRecord
    from diffup.evaluation.report import UpgradeMatrix, render
    from diffup.evaluation.sweep import Candidate, sweep
    from diffup.model import DiffUp
    from diffup.utils.files import replacing_together

    output_folder(args.output)
    folders, checkpoints = _trained(args.train), distinct_backbones(args.test, "--test")
    data = open_data(args)
    plan = _plan(args).resolve(data)
    decoders = {name: load_decoder(fetch_decoder(folder)) for name, folder in folders.items()}
    encoders = {name: load_named(text, args.input_size, "--test") for name, text in checkpoints.items()}
    pairs = [
        (trained, tested) for tested in encoders for trained in decoders
    ]  # by encoder, so that its features are in the cache
    models = {pair: DiffUp(decoders[pair[0]], encoders[pair[1]], args.device) for pair in pairs}
    candidates = {pair: Candidate(pair[0], model) for pair, model in models.items()}
    record = EpisodeRecord(args.output / RECORD)
    options = {"cache_bytes": args.cache_mib * 2**20, "progress": not args.quiet and sys.stderr.isatty()}
    rows = sweep(list(candidates.values()), data, plan, record, **options)
    each = len(rows) // len(pairs)
    matrix = UpgradeMatrix(
        tuple(decoders), tuple(encoders), {pair: rows[at * each : (at + 1) * each] for at, pair in enumerate(pairs)}
    )
    traces, swaps, errors, note = _pictures(candidates, next(iter(decoders)), tuple(encoders), data, plan)
    with replacing_together([args.output / "upgrade.json", args.output / "report.html"]) as (document, page):
        document.write_text(matrix.to_json(data.classes), encoding="utf-8", errors="backslashreplace")
        page.write_text(render(matrix, traces, swaps, errors, note), encoding="utf-8", errors="backslashreplace")
    if not args.quiet:
        for trained in decoders:
            cells = ", ".join(f"{tested} {matrix.miou(trained, tested):.1f}" for tested in encoders)
            print(f"trained with {trained}: {cells}")
        print(f"report: {args.output / 'report.html'}, {args.output / 'upgrade.json'}")


def _pictures(
    candidates: dict[tuple[str, str], Candidate], trained: str, tested: tuple[str, ...], data: Dataset, plan: Plan
) -> tuple[list[Figure], list[Figure], list[Figure], str]:
    """Pictures of sampling by annotation, of sampling by encoder and of error maps, and why the last are missing."""
    from diffup.evaluation import figures
    from diffup.evaluation.report import Figure
    from diffup.evaluation.sweep import draw

    resolved = plan.resolve(data)
    fold, seed = resolved.folds[0], resolved.seeds[0]
    episodes = draw(data, resolved, fold, resolved.shots[0], seed).episodes
    home = trained if trained in tested else tested[0]
    model, episode = candidates[trained, home].model, episodes[0]

    def strip(behind: str, of: Any, kind: Any, label: str) -> Figure:
        swapped = candidates[trained, behind].model
        options = {"steps": figures.trace_steps(swapped), "trace": True, "refine": plan.refine}
        result = figures.segment_episode(swapped, data, of, kind, seed, 0, **options)
        return Figure(f"{label}: {data.classes[of.class_id]}", figures.sampling_strip(result))

    cases = figures.scenarios(episodes, 0)
    traces = [strip(home, of, kind, f"{label}, {home}") for label, of, kind in cases]
    _, first, kind = cases[0]
    swaps = [strip(behind, first, kind, behind) for behind in tested]
    if model.config.system != "diffusion":
        return traces, swaps, [], f"A decoder of system {model.config.system!r} sees no noisy mask."
    return traces, swaps, [Figure(*pair) for pair in figures.error_strips(model, data, episode, seed, 0)], ""


def _plan(args: argparse.Namespace) -> Plan:
    from diffup.evaluation.sweep import Plan

    return Plan(
        shots=(args.shots,),
        annotations=(args.annotation,),
        steps=(args.steps,),
        ensembles=(args.ensemble,),
        **shared_plan(args),
    )


def _trained(texts: list[str]) -> dict[str, str]:
    """Decoder folders by training encoder."""
    folders: dict[str, str] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ConfigError(f"--train: expected NAME=FOLDER, got {text!r}")
        if name in folders:
            raise ConfigError(f"--train: {name} is given twice, {folders[name]} and {folder}")
        folders[name] = folder
    return folders
