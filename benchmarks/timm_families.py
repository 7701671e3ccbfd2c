"""Test one model of every timm family as an encoder: which give a valid feature pyramid, and how the others fail.

A family is a module of timm and the leading letters of the architecture's name: `resnet` and `seresnet` of
`timm/models/resnet.py` are two. Of each the architecture with the fewest parameters is built with random weights for
small images; its four levels are checked against the protocol, and an image is encoded alone and in a batch. Nothing is
downloaded.

    python benchmarks/timm_families.py --record families.jsonl
    python benchmarks/timm_families.py --record families.jsonl --table docs/results.md

Results are appended to the record, and families in it are not tested again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from marked import put_between

from diffup.backbones import Backbone, check_pyramid, load_backbone
from diffup.backbones.conformance import check_backbone
from diffup.errors import DiffUpError

SIZES = (128, 112, 256, None)  # pixels, tried in this order; None is the default of the encoder
MARKS = ("<!-- timm families -->", "<!-- end of timm families -->")


@dataclass(frozen=True)
class Row:
    """The result of one family.

    `outcome` is "ok", "failed" (a check), "refused" (with a DiffUpError), "crashed" or "skipped".
    """

    module: str
    stem: str
    model: str
    parameters: int
    outcome: str
    size: tuple[int, int] | None = None
    strides: tuple[float, ...] = ()
    channels: tuple[int, ...] = ()
    message: str = ""


def families() -> dict[tuple[str, str], list[str]]:
    """Return the architectures by (module, leading letters), without timm's own test models."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            stem = re.match(r"[a-z]+", name.removeprefix("tf_"))
            if stem and not name.startswith("test_"):
                found[module, stem[0]].append(name)
    return dict(sorted(found.items()))


def smallest(names: Sequence[str]) -> tuple[int, str]:
    """Return the architecture with the fewest parameters and their number in millions, counted on the meta device."""
    return min((count_parameters(name), name) for name in names)


def count_parameters(name: str) -> int:
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
    except Exception:  # some cannot be created on the meta device, and raise any kind of error
        model = timm.create_model(name, num_classes=0)
    return sum(parameter.numel() for parameter in model.parameters())


def walk(module: str, stem: str, names: Sequence[str], limit: float, conformance: bool) -> Row:
    """Build the smallest model of a family and check its pyramid."""
    parameters, model = smallest(names)
    if parameters > limit * 1e6:
        return Row(module, stem, model, parameters, "skipped", message=f"more than {limit:g} M parameters")
    refusal = ""
    for size in SIZES:
        options = {} if size is None else {"input_size": size}
        try:
            backbone = load_backbone(f"timm:{model}", pretrained=False, **options)
            return Row(module, stem, model, parameters, **describe(backbone, conformance))
        except DiffUpError as error:
            refusal = str(error)
        except Exception as error:  # a bug, which the table shows
            return Row(module, stem, model, parameters, "crashed", message=f"{type(error).__name__}: {error}")
    return Row(module, stem, model, parameters, "refused", message=refusal)


def describe(backbone: Backbone, conformance: bool) -> dict[str, Any]:
    """Return outcome, size, strides and channels of an encoder."""
    height, width = backbone.input_size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    levels = check_pyramid(backbone.pyramid(images), backbone.name, 2)
    alone = backbone.pyramid(images[1:])
    problems = [
        f"level {index}: an image's features depend on the rest of the batch"
        for index, (a, b) in enumerate(zip(levels, alone, strict=True))
        if not torch.allclose(a[1:], b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    ]
    if conformance:
        problems += [f"{finding.check}: {finding.message}" for finding in check_backbone(backbone).problems]
    return {
        "outcome": "failed" if problems else "ok",
        "size": (height, width),
        "strides": tuple(round(height / level.shape[2], 1) for level in levels),
        "channels": tuple(level.shape[1] for level in levels),
        "message": "; ".join(problems),
    }


def read_record(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(**{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}) for row in rows]


def summary(rows: Sequence[Row]) -> str:
    count = Counter(row.outcome for row in rows)
    tried = len(rows) - count["skipped"]
    return (
        f"timm {timm.__version__}: of {len(rows)} families {tried} were tried, and {count['ok']} of them "
        f"({100 * count['ok'] / max(tried, 1):.1f} %) give a valid pyramid; {count['refused']} are refused with an "
        f"error, {count['failed']} fail a check, {count['crashed']} crash, {count['skipped']} are skipped."
    )


def table(rows: Sequence[Row]) -> str:
    """Format the results as a Markdown table, one line per family."""
    lines = [
        summary(rows),
        "",
        "| timm module | family | smallest model | M | input | strides | channels |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.module, row.stem)):
        cells = [row.module, f"{row.stem}\\*", f"`{row.model}`", f"{row.parameters / 1e6:.1f}"]
        if row.size is None:
            cells += [f"**{row.outcome}**", row.message.replace("|", "\\|").replace("\n", " "), ""]
        else:
            cells += ["x".join(map(str, row.size)), listed(row.strides), listed(row.channels)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, help="file of results, a JSON line per family")
    parser.add_argument(
        "--limit", type=float, default=120.0, metavar="M", help="maximum size in millions of parameters; default: 120"
    )
    parser.add_argument("--conformance", action="store_true", help="run all checks of check_backbone; slower")
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="modules of timm to test")
    parser.add_argument("--table", type=Path, metavar="PAGE", help="page whose table is replaced")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    rows = read_record(args.record)
    done = {(row.module, row.stem) for row in rows}
    for (module, stem), names in families().items():
        if (module, stem) in done or (args.only and module not in args.only):
            continue
        torch.manual_seed(0)
        row = walk(module, stem, names, args.limit, args.conformance)
        rows.append(row)
        with args.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(f"{row.outcome:8} {module}/{stem} {row.model} {listed(row.strides)} {row.message}", flush=True)
    print(summary(rows))
    if args.table is not None:
        put_between(args.table, *MARKS, table(rows))
    return int(any(row.outcome in ("failed", "crashed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
