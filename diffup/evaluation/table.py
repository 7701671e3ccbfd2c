"""Tables of a sweep's rows, with means over folds and seeds: as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffup.evaluation.sweep import Row

_AVERAGED = ("fold", "seed")
_FIGURES = ("miou", "fb_iou", "best_miou", "prior_best_miou", "quality_correlation")
_SHOWN = ("decoder", "backbone", "shots", "annotation", "steps", "ensemble", "fold", "seed")
_HEADERS = {
    "miou": "mIoU",
    "fb_iou": "FB-IoU",
    "best_miou": "best mIoU",
    "best_threshold": "at threshold",
    "prior_best_miou": "prior's best",
    "prior_best_threshold": "at threshold",
    "quality_correlation": "r(quality, IoU)",
}
_LEGEND = (
    "mIoU and FB-IoU: percent, at the decoder's threshold or at --threshold; best mIoU: at the threshold that suits\n"
    "these episodes best; prior's best: the same of the mean prior, without the decoder; r(quality, IoU):\n"
    "correlation, over episodes, of the IoU that the decoder expects with the true one"
)
CLEARLY = 1.0
"""Minimum gain in mIoU points for which the table recommends another threshold."""


def facts(row: Row, class_names: Mapping[int, str]) -> dict[str, Any]:
    """Convert a row to plain data: the setting, the number of episodes, and the scores in percent.

    Args:
        row: a row of a sweep.
        class_names: class names by id.
    """
    scores = row.scores
    return {
        **asdict(row.setting),
        "input_size": list(row.setting.input_size),
        "episodes": len(row.episodes),
        "miou": scores.miou,
        "fb_iou": scores.fb_iou,
        "best_threshold": scores.best_threshold,
        "best_miou": scores.miou_by_threshold[scores.best_threshold],
        "prior_best_threshold": scores.best_prior_threshold,
        "prior_best_miou": scores.best_prior,
        "quality_correlation": scores.quality_correlation,
        "class_iou": {class_names[c]: iou for c, iou in scores.class_iou.items()},
        "miou_by_threshold": {str(t): value for t, value in scores.miou_by_threshold.items()},
        "prior_miou_by_threshold": {str(t): value for t, value in scores.prior_miou_by_threshold.items()},
    }


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the scores of rows that differ only in fold and seed, in their order.

    Args:
        rows: rows as plain data, from `facts`.

    Returns:
        For each group of rows: the shared settings, `folds`, `seeds`, the total number of `episodes`, the mean of each
        score, and the standard deviation of the mIoU, `miou_over_folds` (of the folds' means) and `miou_over_seeds` (of
        the seeds' means), None for a single fold or seed.
    """
    found = []
    for group in _groups(rows):
        mean: dict[str, Any] = {name: group[0][name] for name in _shared(group[0])}
        mean |= {f"{name}s": sorted({row[name] for row in group}) for name in _AVERAGED}
        mean["episodes"] = sum(row["episodes"] for row in group)
        mean |= {figure: statistics.fmean(row[figure] for row in group) for figure in _FIGURES}
        mean |= {f"miou_over_{name}s": _spread(group, name) for name in _AVERAGED}
        found.append(mean)
    return found


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Group rows that differ only in fold and seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        setting = [value for name, value in row.items() if name in _shared(row)]
        groups.setdefault(json.dumps(setting), []).append(row)
    return list(groups.values())


def to_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows and means as JSON text.

    Args:
        rows: rows as plain data, from `facts`.
    """
    return json.dumps({"rows": list(rows), "means": means(rows)}, indent=2) + "\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text with a header line, without nested tables; sizes are written as 320x320.

    Args:
        rows: rows as plain data, from `facts`.
    """
    flat = [
        {
            name: "x".join(map(str, value)) if isinstance(value, list) else value
            for name, value in row.items()
            if not isinstance(value, dict)
        }
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def to_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows and means as a text table. Settings that all rows share are written once, above the table.

    Args:
        rows: rows as plain data, from `facts`.
    """
    varied = [name for name in _SHOWN if len({row[name] for row in rows}) > 1]
    if len({row["fingerprint"] for row in rows}) > len({row["backbone"] for row in rows}):
        varied.insert(0, "fingerprint")  # one encoder with several weights
    common = {
        name: rows[0][name] for name in ("dataset", "protocol", "split", "classes", *_SHOWN) if name not in varied
    }
    common["episodes"] = "/".join(str(count) for count in sorted({row["episodes"] for row in rows}))
    cells = [[_HEADERS.get(name, name) for name in (*varied, *_HEADERS)]]
    cells += [[_cell(row[name]) for name in (*varied, *_HEADERS)] for row in rows]
    averages = [mean for mean in means(rows) if len(mean["folds"]) * len(mean["seeds"]) > 1]
    for mean in averages:
        named = {name: mean.get(name, "mean") for name in varied}
        cells.append([_cell(value) for value in (*named.values(), *(mean.get(name, "") for name in _HEADERS))])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    lines += [_spread_line(mean, varied) for mean in averages]
    lines += [_LEGEND, *_better_thresholds(rows, varied)]
    return "\n".join([", ".join(f"{name} {value}" for name, value in common.items()), *lines])


def _better_thresholds(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> list[str]:
    """A line for each setting whose mean mIoU would be at least `CLEARLY` points higher at another threshold."""
    lines = []
    for group in _groups(rows):
        own = statistics.fmean(row["miou"] for row in group)
        at = {t: statistics.fmean(row["miou_by_threshold"][t] for row in group) for t in group[0]["miou_by_threshold"]}
        best = max(at, key=lambda threshold: at[threshold])
        if at[best] - own >= CLEARLY:
            name = ", ".join(f"{column} {group[0][column]}" for column in varied if column not in _AVERAGED)
            lines.append(
                f"{name + ': ' if name else ''}threshold {best} would give {at[best]:.1f} instead of {own:.1f} mIoU on "
                "these episodes; choose it on training classes"
            )
    return lines


def _spread_line(mean: Mapping[str, Any], varied: Sequence[str]) -> str:
    name = ", ".join(f"{column} {mean[column]}" for column in varied if column in mean)
    spreads = [
        f"± {mean[f'miou_over_{over}s']:.2f} over {len(mean[f'{over}s'])} {over}s"
        for over in _AVERAGED
        if mean[f"miou_over_{over}s"] is not None
    ]
    return f"{name or 'mean'}: mIoU {mean['miou']:.2f}, {', '.join(spreads)}"


def _shared(row: Mapping[str, Any]) -> list[str]:
    """Names of the fields that describe the setting, except fold and seed."""
    return [name for name in row if name not in _AVERAGED][: list(row).index("episodes") - len(_AVERAGED)]


def _spread(group: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = sorted({row[name] for row in group})
    if len(values) == 1:
        return None
    return statistics.stdev(statistics.fmean(row["miou"] for row in group if row[name] == value) for value in values)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
