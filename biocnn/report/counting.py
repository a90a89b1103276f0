"""What a tested counting model leaves in its run folder: numbers, a table and pictures.

Notation: `table` is what :meth:`biocnn.metrics.counting.CountingMetrics.compute` returns, a row for each of N images.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from biocnn.errors import DataError
from biocnn.inference.tables import write_csv
from biocnn.metrics.conformal import ConformalInterval
from biocnn.metrics.counting import POINT_NAMES, summarise_counts
from biocnn.metrics.floors import IntensityFloor
from biocnn.metrics.points import match_points
from biocnn.report.figures import BLUE, GREEN, GREY, ORANGE, bare, save_figure, say
from biocnn.report.overlay import CALLED, FALSE, FOUND, MISSED, Colour, overlay

Table = Mapping[str, Tensor]
Floats = NDArray[np.float64]
Row = Mapping[str, Any]

_ALIASES = ("precision", "recall", "f1")
_PIXELS_AN_ARM = 512  # of the shorter side for each pixel of the arm of a cross


def test_metrics(
    table: Table,
    interval: ConformalInterval | None,
    floors: Mapping[str, Any],
    intensity: ArrayLike,
    groups: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    """All numbers of a test as one flat dictionary for `metrics.json`.

    Keys: those of :func:`biocnn.metrics.counting.summarise_counts`; `precision`, `recall` and `f1` as short names for
    those that state the tolerance; `interval_alpha`, `interval_images`, `interval_quantile` and `interval_note`;
    `coverage_expected_low` and `coverage_expected_high`, between which chance leaves the coverage of so many images
    like the validation images in 9 of 10 tests; `floor_constant_mae`, the error of the mean training count for every
    image, and `floor_linear_mae`, that of the line through the summed intensity of channel `floor_linear_channel`, both
    fitted on the training images. What is not known is None.

    Args:
        table: of the test, N rows.
        interval: fitted on the validation images.
        floors: of the training, as :func:`biocnn.tasks.counting.floors_of` makes them; may be empty.
        intensity: (N, C) summed intensity of the test images, in the order of the table.
        groups: N slides or fields of view; None if they are not known.
        seed: of the bootstrap.
    """
    result: dict[str, Any] = summarise_counts(table, interval=interval, group=groups, seed=seed)
    for alias in _ALIASES:
        long = next((name for name in result if name.startswith(f"{alias}_tol") and name.endswith("px")), None)
        result[alias] = None if long is None else result[long]
    known = interval.to_dict() if interval is not None else {}
    result |= {f"interval_{name}": known.get(name) for name in ("alpha", "images", "quantile")}
    result["interval_note"] = "the checkpoint has not been validated" if interval is None else interval.note
    true = column_of(table, "true_count")
    if interval is not None and math.isfinite(interval.quantile):
        ends = interval.coverage_range(len(true))
        result["coverage_expected_low"], result["coverage_expected_high"] = ends
    constant, linear = floors.get("constant"), floors.get("linear")
    result["floor_constant_mae"] = None if constant is None else float(np.abs(constant - true).mean())
    line = None if linear is None else IntensityFloor(**linear)
    result["floor_linear_mae"] = None if line is None else float(np.abs(line.predict(intensity) - true).mean())
    result["floor_linear_channel"] = None if line is None else line.channel
    return result


def column_of(table: Table, name: str) -> Floats:
    """One number of all images, float64 (N,), nan where it is undefined."""
    column: Floats = table[name].cpu().double().numpy()
    return column


def test_rows(
    table: Table,
    ids: Sequence[str],
    groups: Sequence[str] | None,
    interval: ConformalInterval | None,
    flags: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """A row for each test image: id, group, counts, interval, errors on a grid, points right and wrong, flags.

    Args:
        table: of the test, N rows.
        ids: N names of images.
        groups: N slides or fields of view; None leaves the column empty.
        interval: of counts; None or an infinite one leaves its columns empty.
        flags: N lists of what makes a count doubtful.

    Raises:
        DataError: if there are not N ids and flags.
    """
    count = len(table["index"])
    if not len(ids) == len(flags) == count:
        raise DataError(f"expected an id and flags for each of {count} images, received {len(ids)} and {len(flags)}")
    found, true = column_of(table, "predicted_count"), column_of(table, "true_count")
    low, high = (np.zeros(count), np.full(count, math.inf)) if interval is None else interval.interval(found)
    more = [name for name in table if name.startswith(("game", *POINT_NAMES)) and name != "game0"]
    rows = []
    for number, name in enumerate(ids):
        rows.append(
            {
                "id": name,
                "group": "" if groups is None else groups[number],
                "true": int(true[number]),
                **count_columns(found[number], low[number], high[number]),
                "error": round(float(found[number] - true[number]), 2),
                **{key: _cell(float(table[key][number]), key) for key in more},
                "flags": "; ".join(flags[number]),
            }
        )
    return rows


def count_columns(count: float, low: float, high: float) -> dict[str, Any]:
    """`count`, `low` and `high` of a table, two decimals; the ends are empty if there is no interval."""
    known = math.isfinite(high)
    return {
        "count": round(float(count), 2),
        "low": round(float(low), 2) if known else "",
        "high": round(float(high), 2) if known else "",
    }


def _cell(value: float, name: str) -> Any:
    if math.isnan(value):
        return ""
    return int(value) if name.startswith(POINT_NAMES) else round(value, 2)


def write_points(path: str | Path, points: ArrayLike) -> None:
    """Write points (N, 2) as CSV with the columns `row` and `column`, which annotations may have, too."""
    places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    rows = [{"row": f"{row:.3f}", "column": f"{column:.3f}"} for row, column in places.tolist()]
    write_csv(path, rows, ("row", "column"))


def points_picture(
    image: ArrayLike,
    found: ArrayLike,
    true: ArrayLike | None = None,
    tolerance: float = 3.0,
    valid: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.uint8], list[tuple[str, Colour]]]:
    """An image, grey and dimmed, with a cross for each point, and what the colours mean.

    With true points those that were found are white, missed ones sky blue and false ones vermilion; without, all are
    yellow.

    Args:
        image: (H, W) or (H, W, C), numbers of any range.
        found: (M, 2) points, row and column.
        true: (N, 2) true points; None if they are not known.
        tolerance: largest distance of a found from a true point, in pixels.
        valid: (H, W), where pixels count; None counts all.

    Returns:
        (H, W, 3) uint8, and pairs of words and colour for :func:`biocnn.report.overlay.write_overlay`.
    """
    places = np.asarray(found, dtype=np.float64).reshape(-1, 2)
    shape = np.shape(image)[:2]
    picture = overlay(image, np.zeros(shape, bool), None, valid)
    if true is None:
        layers = [("points found", places, CALLED)]
    else:
        truth = np.asarray(true, dtype=np.float64).reshape(-1, 2)
        match = match_points(places, truth, tolerance)
        layers = [
            ("false", np.delete(places, match.prediction, 0), FALSE),
            ("missed", np.delete(truth, match.truth, 0), MISSED),
            ("found", places[match.prediction], FOUND),
        ]
    arm = 1 + min(shape) // _PIXELS_AN_ARM
    for _, marks, colour in layers:
        # A point may lie on the border, half a pixel beyond the last centre.
        for row, column in np.clip(np.rint(marks).astype(int), 0, np.array(shape) - 1).tolist():
            picture[max(row - arm, 0) : row + arm + 1, column] = colour
            picture[row, max(column - arm, 0) : column + arm + 1] = colour
    return picture, [(f"{name}: {len(marks)}", colour) for name, marks, colour in layers]


def scatter_figure(table: Table, interval: ConformalInterval | None, metrics: Mapping[str, Any]) -> Figure:
    """Predicted on true counts with their intervals and the line of equality.

    Args:
        table: of the test.
        interval: of counts; none is drawn if it is None or infinite.
        metrics: of :func:`test_metrics`.
    """
    found, true = column_of(table, "predicted_count"), column_of(table, "true_count")
    figure = Figure(figsize=(6.2, 6.2), layout="constrained")
    panel = figure.subplots()
    largest = max(float(found.max()), float(true.max()), 1.0)
    if interval is not None and math.isfinite(interval.quantile):
        low, high = interval.interval(found)
        largest = max(largest, float(high.max()))
        inside = (low <= true) & (true <= high)
        # Colour is never the only difference.
        for which, colour, marker, word in ((inside, BLUE, "o", "holds"), (~inside, ORANGE, "D", "misses")):
            text = f"{100 * (1 - interval.alpha):g} % interval {word} the true count: {which.sum()}"
            # A count below zero is below the lower end, which is never.
            reach = np.maximum([found - low, high - found], 0)[:, which]
            if which.any():
                panel.errorbar(true[which], found[which], reach, fmt=marker, color=colour, ms=4, lw=0.8, label=text)
    else:
        panel.plot(true, found, "o", color=BLUE, markersize=4, label="images; no interval")
    ends = [min(0.0, float(found.min())), 1.03 * largest]
    panel.plot(ends, ends, color=GREY, linewidth=1, zorder=0.5, label="equal")
    panel.set(xlim=ends, ylim=ends, aspect="equal", xlabel="true count", ylabel="predicted count")
    panel.set_title(f"{len(true)} test images: MAE {metrics['mae']:.2f}, bias {metrics['bias']:+.2f} cells")
    panel.legend(frameon=False, fontsize="small", loc="lower right")
    bare(panel)
    return figure


def curves_figure(path: Path) -> Figure:
    """Training loss and validation errors of ``metrics.csv`` against the optimiser step; the least MAE is circled."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    figure = Figure(figsize=(7.5, 5.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    curves = [(0, "train_loss", "training loss", BLUE, "-"), (1, "val_mae", "validation MAE", ORANGE, "o-")]
    curves.append((1, "val_rmse", "validation RMSE", GREEN, "s-"))
    for place, name, text, colour, style in curves:
        points = np.array([(float(row["step"]), float(row[name])) for row in rows if row.get(name)]).reshape(-1, 2)
        if len(points):
            panels[place].plot(*points.T, style, color=colour, markersize=3, linewidth=1.2, label=text)
        if len(points) and name == "val_mae":
            best = points[np.argmin(points[:, 1])]
            text = f"least: {best[1]:.2f}"
            panels[place].plot(*best, "o", color=colour, markersize=9, markerfacecolor="none", label=text)
    for panel, title in zip(panels, ("loss", "error (cells per image)"), strict=True):
        panel.set_ylabel(title)
        if panel.get_legend_handles_labels()[1]:
            panel.set_yscale("log")
            panel.legend(frameon=False, fontsize="small")
        else:
            say(panel, "Nothing has been logged yet.")
        bare(panel)
    panels[0].set_title("Learning curves")
    panels[1].set_xlabel("optimiser step")
    return figure


def best_median_worst(table: Table) -> dict[str, int]:
    """Rows of the least, the middle and the largest error of the count; fewer if there are fewer images."""
    order = np.argsort(column_of(table, "game0"), kind="stable")
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    wanted = {1: ("best",), 2: ("best", "worst")}.get(len(order), tuple(places))
    return {name: int(order[places[name]]) for name in wanted}


def points_sheet(pictures: Sequence[NDArray[np.uint8]], table: Table, ids: Sequence[str]) -> Figure:
    """Pictures of the best, the median and the worst image side by side, with their counts.

    Args:
        pictures: (H, W, 3) uint8 for each of :func:`best_median_worst`, in its order.
        table: of the test, N rows.
        ids: N names of images.
    """
    shown = best_median_worst(table)
    figure = Figure(figsize=(4.4 * len(shown), 5.2), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(shown)))
    for panel, picture, (place, row) in zip(panels, pictures, shown.items(), strict=True):
        panel.imshow(picture, interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        counts = f"{float(table['predicted_count'][row]):.1f} of {float(table['true_count'][row]):.0f} cells"
        panel.set_title(f"{place}: {Path(ids[row]).name}\n{counts}", fontsize="medium")
    figure.supxlabel("white: found, sky blue: missed, vermilion: false", fontsize="medium")
    return figure


def write_figures(
    folder: Path,
    table: Table,
    ids: Sequence[str],
    interval: ConformalInterval | None,
    metrics: Mapping[str, Any],
    curves: Path,
    pictures: Sequence[NDArray[np.uint8]],
) -> None:
    """Draw counts.png, learning_curves.png and points.png.

    Args:
        folder: where the PNG files go.
        table: of the test, N rows.
        ids: N names of images.
        interval: of counts.
        metrics: of :func:`test_metrics`.
        curves: ``metrics.csv`` of the run; no learning curves when it is missing.
        pictures: as of :func:`points_sheet`; no sheet when empty.
    """
    save_figure(scatter_figure(table, interval, metrics), folder / "counts.png")
    if curves.is_file():
        save_figure(curves_figure(curves), folder / "learning_curves.png")
    if len(pictures):
        save_figure(points_sheet(pictures, table, ids), folder / "points.png", dpi=200)


def print_summary(metrics: Mapping[str, Any], folder: Path) -> None:
    """Print the headline numbers of a test, what they have to beat, and where everything is."""
    tolerance = next((n.removeprefix("f1_tol") for n in metrics if n.startswith("f1_tol") and n.endswith("px")), "")
    rows = [("MAE", "mae"), ("RMSE", "rmse"), ("bias", "bias"), ("GAME(3)", "game3"), (f"F1 in {tolerance}", "f1")]
    rows += [("coverage", "coverage"), ("floor: constant, MAE", "floor_constant_mae")]
    rows += [("floor: linear, MAE", "floor_linear_mae")]
    lines = [f"  {title:<22} {metrics[name]:.3f}" for title, name in rows if metrics.get(name) is not None]
    if metrics["interval_note"]:
        lines.append(f"  no interval: {metrics['interval_note']}")
    elif metrics["interval_level"] is not None:
        lines.append(f"  the interval promises a coverage of {metrics['interval_level']:.2f}")
    print(
        "\n".join(
            [
                f"test: {metrics['n_images']:,} images, {metrics['n_cells']:,} cells",
                *lines,
                f"numbers:  {folder / 'metrics.json'}",
                f"table:    {folder / 'predictions.csv'}",
                f"pictures: {folder / 'figures'}",
            ]
        )
    )
