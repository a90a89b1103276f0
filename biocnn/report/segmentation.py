"""What a tested segmentation leaves in its run folder: numbers, a table and pictures.

Notation: `table` is what :meth:`biocnn.metrics.segmentation.SegmentationMetrics.compute` returns, a row for each of N
images; `rules` are those of the same metric. Everything here is of images in this table, so it is called on one
process, after the rows of all have been gathered.
"""

import csv
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biocnn.files import atomic_path
from biocnn.metrics.binary import Floats
from biocnn.metrics.bootstrap import cluster_bootstrap
from biocnn.metrics.segmentation import COUNT_NAMES, summarise
from biocnn.report.figures import learning_curves_figure, save_figure
from biocnn.report.segmentation_figures import (
    CURVES,
    Table,
    betti_names,
    check_rows,
    column_of,
    curves_figure,
    images_figure,
    overlay_sheet,
)

WITH_INTERVAL = ("dice", "iou", "sensitivity", "specificity", "auroc", "cldice")
"""Means that get an interval, besides the Betti errors."""

_logger = logging.getLogger(__name__)


def test_metrics(
    table: Table, rules: Mapping[str, str | float | int], groups: Sequence[str] | None, seed: int
) -> dict[str, Any]:
    """All numbers of a test as one flat dictionary for `metrics.json`.

    Keys: those of :func:`summarise`; a short name for each Betti error, `betti0_error` for `betti0_error_fg8`, whose
    rule is then in the next; `rule_<name>` for each of `rules`; `<name>_low` and `<name>_high`, the ends of a 95 %
    interval of the mean over images, of `WITH_INTERVAL` and the short Betti errors, from a bootstrap over groups;
    `n_groups`, `intervals_over`, `intervals_note` (why they are missing or too narrow, empty if neither),
    `bootstrap_repeats` and `bootstrap_dropped`, the most replicates that any interval had to leave out. Undefined
    numbers are None; an image without a number is left out of its mean and its interval, and a number that fewer than
    two groups have gets no interval.

    Args:
        table: of the test, N rows.
        rules: of the metric that made it.
        groups: N patients or fields of view; None if they are not known: then images are taken as independent, and
            `intervals_over` says so.
        seed: of the bootstrap.

    Raises:
        DataError: if there are not N groups.
    """
    count = check_rows(table, "groups", groups)
    short = betti_names(table)
    result: dict[str, Any] = summarise(table)
    result.update({alias: result[name] for alias, name in short.items()})
    result.update({f"rule_{name}": value for name, value in rules.items()})
    columns = {name: column_of(table, short.get(name, name)) for name in (*WITH_INTERVAL, *short)}
    unit = np.arange(count) if groups is None else np.asarray(groups)
    intervals = cluster_bootstrap(_weighted_means(columns), unit, seed=seed)
    note = intervals.note.replace("group", "image" if groups is None else "group")
    if note:
        _logger.warning("Confidence intervals: %s.", note)
    for name, column in columns.items():
        # Where one group alone has the number, all replicates are equal and the interval would have no width.
        known = np.unique(unit[~np.isnan(column)]).size > 1
        result[f"{name}_low"] = intervals.low[name] if known else None
        result[f"{name}_high"] = intervals.high[name] if known else None
    result["n_groups"] = None if groups is None else intervals.groups
    result["intervals_over"] = "images, taken as independent: no groups are known" if groups is None else "groups"
    result["intervals_note"] = note
    result["bootstrap_repeats"], result["bootstrap_dropped"] = intervals.repeats, max(intervals.dropped.values())
    return result


def _weighted_means(columns: Mapping[str, Floats]) -> Callable[[Floats], dict[str, float]]:
    """Means over the images for which a number is defined, as a function of how often each image counts."""
    names = list(columns)
    values = np.stack([columns[name] for name in names])
    defined = ~np.isnan(values)
    values = np.where(defined, values, 0.0)

    def means(weight: Floats) -> dict[str, float]:
        total = defined @ weight
        mean = np.divide(values @ weight, total, out=np.full(len(names), np.nan), where=total > 0)
        return dict(zip(names, mean.tolist(), strict=True))

    return means


def write_table(path: str | Path, table: Table, ids: Sequence[str], groups: Sequence[str] | None = None) -> None:
    """Write `predictions.csv`: id, group and all numbers of each image, in the order of the table.

    Counts are whole numbers, the others have six decimals; what is undefined is left empty.

    Args:
        path: target file; its folder is made when missing.
        table: of the test, N rows.
        ids: N names of images.
        groups: N patients or fields of view; None leaves the column empty.

    Raises:
        DataError: if there are not N ids and groups.
    """
    count = check_rows(table, "ids", ids)
    check_rows(table, "groups", groups)
    names = [name for name in table if name not in ("index", "histogram")]
    columns = [column_of(table, name).tolist() for name in names]
    decimals = [0 if name in COUNT_NAMES or name.startswith("betti") else 6 for name in names]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "group", *names])
        for name, group, row in zip(ids, groups or [""] * count, zip(*columns, strict=True), strict=True):
            cells = zip(row, decimals, strict=True)
            writer.writerow([name, group, *("" if math.isnan(v) else f"{v:.{places}f}" for v, places in cells)])


def write_figures(
    folder: Path,
    table: Table,
    ids: Sequence[str],
    metrics: Mapping[str, Any],
    curves: Path,
    pictures: Sequence[NDArray[np.uint8]] = (),
    monitor: str | None = None,
) -> None:
    """Draw images.png, roc.png, overlays.png and learning_curves.png.

    Args:
        folder: where the PNG files go.
        table: of the test, N rows.
        ids: N names of images.
        metrics: of :func:`test_metrics`.
        curves: ``metrics.csv`` of the run; no learning curves when it is missing.
        pictures: an overlay for each of :func:`best_median_worst`, in its order; no sheet of overlays when empty.
        monitor: validation column that chose the checkpoint, see :func:`learning_curves_figure`.

    Raises:
        DataError: if there are not N ids, or pictures of another number or shape.
    """
    save_figure(images_figure(table, ids, metrics), folder / "images.png")
    save_figure(curves_figure(table, metrics["rule_threshold"]), folder / "roc.png")
    if len(pictures):
        save_figure(overlay_sheet(pictures, table, ids), folder / "overlays.png", dpi=200)
    if curves.is_file():
        save_figure(learning_curves_figure(curves, CURVES, monitor), folder / "learning_curves.png")


def print_summary(metrics: Mapping[str, Any], folder: Path) -> None:
    """Print the headline numbers of a test, the rules behind them and where everything is.

    Args:
        metrics: of :func:`test_metrics`.
        folder: of the run.
    """
    groups = "" if metrics["n_groups"] is None else f" of {metrics['n_groups']} groups"
    rows = [("Dice", "dice", 4), ("clDice", "cldice", 4)]
    short = sorted(name for name in metrics if re.fullmatch(r"betti\d_error", name))
    rows += [(f"Betti-{name[5]} error", name, 2) for name in short]
    lines = [f"  {title:<14} {_with_interval(metrics, name, places)}" for title, name, places in rows]
    pooled = [("Dice", "dice_pooled"), ("sensitivity", "sensitivity_pooled"), ("specificity", "specificity_pooled")]
    pooled.append(("AUC", "auroc_pooled"))
    said = ", ".join(f"{title} {_number(metrics[name], 4)}" for title, name in pooled)
    note = f"; {metrics['intervals_note']}" if metrics["intervals_note"] else ""
    rules = ", ".join(f"{n[5:].replace('_', ' ')} {v}" for n, v in metrics.items() if n.startswith("rule_"))
    print(
        "\n".join(
            [
                f"test: {metrics['n_images']:,} images{groups}; means over images",
                *lines,
                f"  all pixels together: {said}",
                f"  intervals over {metrics['intervals_over']}{note}",
                f"  rules: {rules}",
                f"numbers:  {folder / 'metrics.json'}",
                f"table:    {folder / 'predictions.csv'}",
                f"pictures: {folder / 'figures'}",
            ]
        )
    )


def _with_interval(metrics: Mapping[str, Any], name: str, places: int) -> str:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    text = _number(metrics[name], places)
    if low is not None and high is not None:
        text += f" (95 % interval {low:.{places}f} to {high:.{places}f})"
    missing = metrics.get(f"{name}_undefined", 0)
    return text + (f", undefined for {missing} of {metrics['n_images']} images" if missing else "")


def _number(value: float | None, places: int) -> str:
    return "undefined" if value is None else f"{value:.{places}f}"
