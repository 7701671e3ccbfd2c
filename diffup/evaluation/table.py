"""Tables of a sweep's rows, with means over folds and seeds and confidence intervals: as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffup.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, difference, intervals, paired, photos
from diffup.evaluation.sweep import Row

_AVERAGED = ("fold", "seed")
FIGURES = (
    "miou",
    "fb_iou",
    "boundary_iou",
    "best_miou",
    "prior_best_miou",
    "gain_over_prior",
    "quality_correlation",
    "presence_auc",
    "false_alarms",
)
"""Names of the headline figures, which have intervals."""

_SHOWN = ("decoder", "backbone", "shots", "annotation", "steps", "ensemble", "fold", "seed")
_HEADERS = {
    "miou": "mIoU",
    "fb_iou": "FB-IoU",
    "boundary_iou": "boundary IoU",
    "best_miou": "best mIoU",
    "best_threshold": "at",
    "prior_best_miou": "prior's best",
    "prior_best_threshold": "at",
    "quality_correlation": "r(quality, IoU)",
    "presence_auc": "presence AUC",
    "false_alarms": "false alarms",
}
_LEGEND = (
    "mIoU, FB-IoU, boundary IoU: percent, at the decoder's threshold or at --threshold; best mIoU: at the threshold\n"
    "that suits these episodes best; prior's best: the same of the mean prior, without the decoder;\n"
    "r(quality, IoU): correlation, over episodes, of the IoU that the decoder expects with the true one;\n"
    "presence AUC, false alarms: percent, queries against photos without the class; false alarms: share of the latter\n"
    "whose presence reaches that of nine in ten queries"
)
_INTERVALS = ("miou", "fb_iou", "boundary_iou", "prior_best_miou")
_GAIN = "mIoU - prior's best"
CLEARLY = 1.0
"""Minimum gain in mIoU points for which the table recommends another threshold."""


@dataclass(frozen=True)
class ScoreTable:
    """The rows of a sweep as plain data.

    Args:
        rows: settings and figures of each row, from `facts`.
        means: averages over rows that differ only in fold and seed, from `means`, with `intervals` as in the rows.
        differences: differences in mIoU of the other means to the first, where they score the same episodes.
    """

    rows: list[dict[str, Any]]
    means: list[dict[str, Any]]
    differences: list[dict[str, Any]]


def tabulate(rows: Sequence[Row], class_names: Mapping[int, str]) -> ScoreTable:
    """Convert the rows of a sweep to plain data, with means, confidence intervals and differences.

    Args:
        rows: rows of a sweep, at least one.
        class_names: class names by id.
    """
    plain = [facts(row, class_names) for row in rows]
    averages, groups = means(plain), [[rows[index] for index in group] for group in _groups(plain)]
    for mean, group in zip(averages, groups, strict=True):
        mean["photos"] = len(photos(group))
        mean["intervals"] = _intervals(group)
    return ScoreTable(plain, averages, _differences(averages, groups, _shared(plain[0])))


def facts(row: Row, class_names: Mapping[int, str]) -> dict[str, Any]:
    """Convert a row to plain data: the setting, numbers of episodes and photos, scores in percent, and intervals.

    Args:
        row: a row of a sweep.
        class_names: class names by id.
    """
    scores = row.scores
    return {
        **asdict(row.setting),
        "input_size": list(row.setting.input_size),
        "episodes": len(row.episodes),
        "photos": len(photos([row])),
        **scores.figures(),
        "best_threshold": scores.best_threshold,
        "prior_best_threshold": scores.best_prior_threshold,
        "intervals": _intervals([row]),
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
    for indices in _groups(rows):
        group = [rows[index] for index in indices]
        mean: dict[str, Any] = {name: group[0][name] for name in _shared(group[0])}
        mean |= {f"{name}s": sorted({row[name] for row in group}) for name in _AVERAGED}
        mean["episodes"] = sum(row["episodes"] for row in group)
        mean |= {figure: statistics.fmean(row[figure] for row in group) for figure in FIGURES}
        mean |= {f"miou_over_{name}s": _spread(group, name) for name in _AVERAGED}
        found.append(mean)
    return found


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Group the indices of rows that differ only in fold and seed."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        setting = [value for name, value in row.items() if name in _shared(row)]
        groups.setdefault(json.dumps(setting), []).append(index)
    return list(groups.values())


def _intervals(rows: Sequence[Row]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals(rows).items()}


def _differences(
    averages: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Row]], settings: Sequence[str]
) -> list[dict[str, Any]]:
    """Differences in mIoU of the other means to the first, with the settings in which they differ."""
    found, first = [], averages[0]
    for mean, group in zip(averages[1:], groups[1:], strict=True):
        if paired(group, groups[0]):
            gain = difference(group, groups[0])
            differing = [name for name in settings if mean[name] != first[name]]
            of, to = ({name: side[name] for name in differing} for side in (mean, first))
            found.append({"of": of, "to": to, "miou": gain.value, "interval": list(gain.interval)})
    return found


def to_json(table: ScoreTable) -> str:
    """Return rows, means and differences as JSON text.

    Args:
        table: rows as plain data, from `tabulate`.
    """
    bootstrap = {"resamples": RESAMPLES, "seed": SEED, "level": LEVEL}
    return json.dumps(_without_nan({**vars(table), "bootstrap": bootstrap}), indent=2) + "\n"


def to_csv(table: ScoreTable) -> str:
    """Return rows as CSV text with a header line, without nested tables; sizes are written as 320x320.

    Args:
        table: rows as plain data, from `tabulate`.
    """
    flat = [
        {
            name: "x".join(map(str, value)) if isinstance(value, list) else value
            for name, value in _without_nan(row).items()
            if not isinstance(value, dict)
        }
        for row in table.rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def to_text(table: ScoreTable) -> str:
    """Return rows and means as a text table, and their confidence intervals as another.

    Settings that all rows share are written once, above.

    Args:
        table: rows as plain data, from `tabulate`.
    """
    rows = table.rows
    varied = [name for name in _SHOWN if len({row[name] for row in rows}) > 1]
    if len({row["fingerprint"] for row in rows}) > len({row["backbone"] for row in rows}):
        varied.insert(0, "fingerprint")  # one encoder with several weights
    common = {
        name: rows[0][name] for name in ("dataset", "protocol", "split", "classes", *_SHOWN) if name not in varied
    }
    common["episodes"] = "/".join(str(count) for count in sorted({row["episodes"] for row in rows}))
    averages = [mean for mean in table.means if len(mean["folds"]) * len(mean["seeds"]) > 1]
    shown = [*rows, *averages]
    names = [[_cell(row.get(name, "mean")) for name in varied] for row in shown]
    figures = [[_cell(row.get(name, "")) for name in _HEADERS] for row in shown]
    ends = [_interval_cells(row) for row in shown]
    return "\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in common.items()),
            *_lines([*varied, *_HEADERS.values()], names, figures),
            *(_spread_line(mean, varied) for mean in averages),
            _LEGEND,
            *_better_thresholds(rows, varied),
            f"{100 * LEVEL:.0f} % intervals, from {RESAMPLES} resamples of the query photos:",
            *_lines([*varied, *(_HEADERS[name] for name in _INTERVALS), _GAIN], names, ends),
            *(_difference_line(entry, varied) for entry in table.differences),
        ]
    )


def _lines(heading: Sequence[str], names: Sequence[Sequence[str]], figures: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose cells are right-aligned."""
    cells = [heading, *([*name, *figure] for name, figure in zip(names, figures, strict=True))]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heading))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]


def _interval_cells(row: Mapping[str, Any]) -> list[str]:
    ends = row["intervals"]
    return [*(_interval(ends[name]) for name in _INTERVALS), _signed(row["gain_over_prior"], ends["gain_over_prior"])]


def _difference_line(entry: Mapping[str, Any], varied: Sequence[str]) -> str:
    names = [name for name in varied if name in entry["of"]] or list(entry["of"])
    of, to = (", ".join(f"{name} {entry[side][name]}" for name in names) for side in ("of", "to"))
    return f"{of} minus {to}: {_signed(entry['miou'], entry['interval'])} mIoU on the same episodes"


def _better_thresholds(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> list[str]:
    """A line for each setting whose mean mIoU would be at least `CLEARLY` points higher at another threshold."""
    lines = []
    for indices in _groups(rows):
        group = [rows[index] for index in indices]
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
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}"
    return str(value)


def _without_nan(value: Any) -> Any:
    """Replace figures that could not be measured by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _interval(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.1f}, {ends[1]:.1f}]"


def _signed(value: float, ends: Sequence[float]) -> str:
    return f"{value:+.1f} [{ends[0]:+.1f}, {ends[1]:+.1f}]"
