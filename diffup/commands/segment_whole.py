"""`diffup segment --model`: segments a photo with a whole model that was exported to one file."""

from __future__ import annotations

import argparse
import io
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from diffup import __version__
from diffup.commands.arguments import several
from diffup.commands.paths import existing_file, output_folder, path_or_url, readable_file
from diffup.commands.prototypes import load_classes
from diffup.commands.segment_results import line_of, output_files, write_results
from diffup.errors import ConfigError

if TYPE_CHECKING:
    from diffup.label_map import LabelMap
    from diffup.publish.whole_model import WholeModel

_FIXED = (
    *("supports", "text", "templates", "corrections", "decoder", "backbone", "backbone_weights", "input_size"),
    *("text_backbone", "device", "steps", "ensemble", "seed", "trace"),
)
"""Names of the options that say what is fixed in the file of a whole model, or needs the encoder's features."""


def add_whole(parser: argparse.ArgumentParser) -> None:
    """Add the options of a whole model."""
    whole = parser.add_argument_group("a whole model in one file, instead of supports and decoder")
    whole.add_argument(
        "--model", metavar="FILE", help="file of `diffup export --whole`; its classes are segmented by onnxruntime"
    )
    whole.add_argument(
        "--prototypes",
        metavar="FILE",
        help="prototype files of the classes, if they are inputs of --model",
        **several(path_or_url),
    )


def segment_whole(args: argparse.Namespace, folder: str) -> None:
    """Segment a photo with a whole model and write the results.

    Args:
        args: parsed options of `diffup segment`.
        folder: advice in the error message if the photo is a folder.

    Raises:
        ConfigError: options do not go together.
    """
    if args.model is None:
        raise ConfigError(f"--prototypes: `diffup segment` takes it with --model FILE alone; {folder}")
    given = [name for name in _FIXED if getattr(args, name)]
    if given:
        option = {"supports": "support", "corrections": "click"}.get(given[0], given[0].replace("_", "-"))
        raise ConfigError(
            f"--{option}: it does not go with --model, whose file holds classes, encoder, decoder and noise; of the "
            "options that change results only --threshold, --min-presence and --refine do"
        )
    output_folder(args.output)
    readable_file(args.query, "QUERY", folder)
    existing_file(args.model, "--model", "give a file of `diffup export --whole`")
    classes = load_classes(args.prototypes or [])
    from diffup.publish.whole_model import WholeModel

    model = WholeModel.load(args.model)
    single = len(model.names or classes) == 1
    files = output_files(args, ("mask.png", "overlay.png", *(["overview.png"] if single else [])))
    start = time.perf_counter()
    found = model.segment(
        args.query,
        list(classes.values()),
        threshold=args.threshold,
        min_presence=args.min_presence,
        refine=args.refine,
    )
    seconds = time.perf_counter() - start
    facts = _facts(args, model, found, seconds)
    if single:
        result = found.results[0]
        pictures = {"mask.png": result.to_pil, "overlay.png": result.overlay, "overview.png": result.overview}
        write_results(pictures, files, {"name": found.names[0], **result.summary(), **facts})
    else:
        from PIL import Image

        pictures = {"mask.png": lambda: Image.open(io.BytesIO(found.to_png())), "overlay.png": found.overlay}
        write_results(pictures, files, {**found.summary(), **facts})
    if not args.quiet:
        print(line_of(args.query, found.results[0] if single else found, seconds))
        for path in files.values():
            print(path)


def _facts(args: argparse.Namespace, model: WholeModel, found: LabelMap, seconds: float) -> dict[str, Any]:
    """Part of result.json: inputs, settings, versions."""
    facts = model.facts
    return {
        "seconds": round(seconds, 3),
        "query": args.query,
        "prototypes": [str(path) for path in args.prototypes or []],
        "settings": {
            "model": args.model,
            "decoder_sha256": facts.decoder,
            "backbone": facts.encoder["name"],
            "backbone_fingerprint": facts.encoder["fingerprint"],
            "backbone_licence": facts.encoder_licence,
            "encoder_precision": facts.encoder_precision,
            "input_size": facts.encoder["input_size"],
            "steps": facts.steps,
            "ensemble": facts.ensemble,
            "threshold": [item.threshold for item in found.results],
            "min_presence": found.results[0].min_presence,
            "refine": found.results[0].refine,
        },
        "versions": {
            "diffup": __version__,
            "exported_by": facts.version,
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
        },
    }
