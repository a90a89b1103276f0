"""Pictures of a run: ROC and reliability curves, learning curves, a gallery of mistakes.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to nobody else: no window, no global
state, so it works on a cluster node and in a loop. :func:`save_figure` writes it. Colours are those of Okabe
& Ito (2008), told apart by colour-blind readers, and never the only difference between two curves.
"""

import csv
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError
from biocnn.files import atomic_path
from biocnn.metrics.binary import Floats, auroc, check_label, check_probability, roc_curve
from biocnn.metrics.binary import sensitivity as sensitivity_at
from biocnn.metrics.binary import specificity as specificity_at
from biocnn.metrics.calibration import expected_calibration_error, reliability_curve

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
BINS = 15
FIRM_COUNT = 10
COLUMNS = 4
"""Pictures in a row of the gallery."""

Panels = Sequence[tuple[str, Sequence[tuple[str, str]]]]
"""Panels of learning curves: a title, and the curves as pairs of a column and what the legend calls it. A column may be
a pattern such as ``lr*``; the first that fits is drawn."""

PATCH_PANELS: Panels = (
    ("loss (nats)", [("train_loss", "training loss"), ("val_nll", "validation NLL")]),
    ("validation AUC", [("val_auroc", "validation AUC")]),
    ("learning rate", [("lr*", "learning rate")]),
)


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure, whole or not at all; the suffix of `path` names the format (``.png``, ``.pdf``).

    Args:
        figure: the figure to write.
        path: target file; its folder is made when missing.
        dpi: dots per inch of a pixel format.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def roc_figure(
    label: ArrayLike,
    probability: ArrayLike,
    interval: tuple[float, float] | None = None,
    threshold: float | None = None,
) -> Figure:
    """ROC curve with its area and the operating points.

    One class only: a sentence says that there is no curve.

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) in [0, 1].
        interval: ends of the 95 % interval of the area, if known.
        threshold: probability chosen on validation data, marked beside 0.5.

    Raises:
        DataError: if shapes differ or values are out of range.
    """
    labels = check_label(label)
    probabilities = check_probability(probability, labels.size)
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("Receiver operating characteristic")
    area = auroc(labels, probabilities)
    if np.isnan(area):
        say(axes, "Only one class is present,\nso there is no ROC curve.")
        return figure
    text = f"AUC {area:.3f}"
    if interval is not None and np.isfinite(interval).all():
        text += f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance")
    axes.plot(*roc_curve(labels, probabilities), color=BLUE, linewidth=2, label=text)
    marks = [(0.5, "o", "threshold 0.5")]
    if threshold is not None and threshold != 0.5:
        marks.append((threshold, "D", f"threshold {threshold:.3f} (validation)"))
    for value, marker, name in marks:
        found = sensitivity_at(labels, probabilities, value)
        spared = specificity_at(labels, probabilities, value)
        axes.plot(1 - spared, found, marker, color=ORANGE, markeredgecolor="white", markersize=9, label=name)
    axes.set(
        xlabel="false positive rate (1 - specificity)",
        ylabel="true positive rate (sensitivity)",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axes.legend(loc="lower right", frameon=False)
    bare(axes)
    return figure


def reliability_figure(label: ArrayLike, prob_before: ArrayLike, prob_after: ArrayLike) -> Figure:
    """Observed fraction of positive samples against the predicted probability, before and after calibration.

    Bins of fewer than 10 samples, whose fraction is mostly chance, are hollow and not joined. Below, how many
    samples got which probability. The legend gives the calibration error of the called class (top-label) and of
    the positive class, both with 15 bins. If calibration changed nothing, one curve is drawn.

    Args:
        label: (N,) of 0 and 1.
        prob_before: (N,) in [0, 1], at temperature 1.
        prob_after: (N,) in [0, 1], calibrated.

    Raises:
        DataError: if shapes differ or values are out of range.
    """
    labels = check_label(label)
    before, after = (check_probability(values, labels.size) for values in (prob_before, prob_after))
    if np.array_equal(before, after):
        curves = [("not recalibrated", before, BLUE, "o", "-")]
    else:
        curves = [("before", before, ORANGE, "s", "--"), ("calibrated", after, BLUE, "o", "-")]
    figure = Figure(figsize=(5.8, 7.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfectly calibrated")
    for name, values, colour, marker, line in curves:
        curve = reliability_curve(labels, values, BINS)
        called = expected_calibration_error(labels, values, BINS, "top-label")
        positive = expected_calibration_error(labels, values, BINS, "positive")
        text = f"{name}: ECE {called:.3f} top-label, {positive:.3f} positive"
        few = (curve.count > 0) & (curve.count < FIRM_COUNT)
        firm = curve.count >= FIRM_COUNT
        points = {"color": colour, "markersize": 5}
        joined = np.where(firm, curve.fraction, np.nan)  # the line breaks where a bin holds too few
        upper.plot(curve.confidence, joined, marker + line, label=text, **points)
        hollow = {"markerfacecolor": "none", "label": f"{name}, fewer than {FIRM_COUNT} samples" if few.any() else "_"}
        upper.plot(curve.confidence[few], curve.fraction[few], marker, **hollow, **points)
        lower.stairs(curve.count, curve.edge, color=colour, linewidth=1.6, linestyle=line)
    upper.set(title="Reliability", ylabel="observed fraction positive")
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.legend(loc="best", frameon=False, fontsize="small")
    lower.set(xlabel="predicted probability of the positive class", ylabel="samples")
    bare(upper, lower)
    return figure


def learning_curves_figure(
    metrics_csv_path: str | Path, panels: Panels = PATCH_PANELS, monitor: str | None = None
) -> Figure:
    """Curves of `metrics.csv` against the optimiser step, one panel above the other.

    Needs the column `step`, and `epoch` to name the epochs. Rows are sorted by step, rows cut short are left out
    and blank cells skipped; a missing or blank column leaves its curve or panel out, and with none at all a
    sentence says so. The best point of a validation curve is circled: its lowest if the name holds `loss`, `nll`
    or `error`, else its highest.

    Args:
        metrics_csv_path: the `metrics.csv` of a run folder.
        panels: what to draw; by default the curves of patch classification.
        monitor: the validation column, or a pattern, whose best chose the checkpoint; a line through all panels
            marks it.

    Raises:
        DataError: if the file has no column `step`.
        FileNotFoundError: if the file does not exist.
    """
    columns = _read_columns(Path(metrics_csv_path))
    filled = {name: value for name, value in columns.items() if np.isfinite(value).any()}
    present = [
        (title, [(name, text) for pattern, text in curves if (name := _first(filled, pattern))])
        for title, curves in panels
    ]
    present = [(title, curves) for title, curves in present if curves]
    heights = [2.0 if index == 0 else 1.0 for index in range(len(present))] or [1.0]
    figure = Figure(figsize=(7.5, 1.2 + 1.8 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    axes[0].set_title("Learning curves")
    if not present:
        say(axes[0], "No curve has been logged yet.")
        return figure
    chosen = _first(filled, monitor) if monitor else None
    for panel, (title, curves) in zip(axes, present, strict=True):
        styles = cycle((ORANGE, GREEN, GREY))
        for name, text in curves:
            _draw_curve(panel, columns, name, text, next(styles) if name.startswith("val_") else BLUE)
        if chosen:
            where = columns["step"][np.isfinite(columns[chosen])][_best(chosen, columns)]
            text = f"checkpoint kept (best {chosen})" if panel is axes[0] else "_"
            panel.axvline(where, color=GREY, linestyle=":", linewidth=1.4, zorder=0, label=text)
        panel.set_ylabel(title)
        bare(panel)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(frameon=False, fontsize="small")
    axes[-1].set_xlabel("optimiser step")
    return figure


def _first(columns: dict[str, Floats], pattern: str) -> str | None:
    return next((name for name in columns if fnmatch(name, pattern)), None)


def _best(name: str, columns: dict[str, Floats]) -> int:
    """Place of the best among the cells of a column that are filled; the first of equals, as checkpoints are kept."""
    value = columns[name][np.isfinite(columns[name])]
    lower = any(word in name for word in ("loss", "nll", "bce", "error", "mae", "rmse", "game"))
    return int(np.argmin(value) if lower else np.argmax(value))


def _draw_curve(panel: Axes, columns: dict[str, Floats], name: str, text: str, colour: str) -> None:
    filled = np.isfinite(columns[name])
    step, value = columns["step"][filled], columns[name][filled]
    if name == "train_loss":
        panel.plot(step, value, color=colour, linewidth=0.6, alpha=0.3)
        window = max(1, value.size // 30)
        text += f", mean of {window} records" if window > 1 else ""
        panel.plot(step, _running_mean(value, window), color=colour, linewidth=1.8, label=text)
    elif name.startswith("val_"):
        best = _best(name, columns)
        epoch = columns.get("epoch", np.full(filled.size, np.nan))[filled][best]
        where = f" in epoch {epoch:.0f}" if np.isfinite(epoch) else ""
        label = f"{text}, best {value[best]:.{3 if abs(value[best]) < 10 else 1}f}{where}"
        marker = "s" if colour == GREEN else "o"  # colour is never the only difference
        panel.plot(step, value, f"{marker}-", color=colour, markersize=4, linewidth=1.4, label=label)
        panel.plot(step[best], value[best], marker, color=colour, markersize=9, markerfacecolor="none")
    else:
        panel.plot(step, value, color=GREEN, linewidth=1.6)


def _running_mean(value: Floats, window: int) -> Floats:
    # Near the ends the mean is over what there is, so that the curve neither sags nor is cut short.
    kernel = np.ones(window)
    return np.convolve(value, kernel, "same") / np.convolve(np.ones(value.size), kernel, "same")


def _read_columns(path: Path) -> dict[str, Floats]:
    """Columns of a CSV file as float64 (rows,) sorted by `step`, with nan for cells that are not numbers."""
    with path.open(newline="", encoding="utf-8") as handle:
        header, *rows = list(csv.reader(handle)) or [[]]
    if "step" not in header:
        raise DataError(f"{path}: expected a column 'step', as Lightning's CSVLogger writes, received {header}")
    cells = [[_number(cell) for cell in row] for row in rows if len(row) == len(header)]
    table = np.array(cells, dtype=np.float64).reshape(len(cells), len(header))
    return dict(zip(header, table[np.argsort(table[:, header.index("step")], kind="stable")].T, strict=True))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def most_confident_mistakes(
    label: ArrayLike, probability: ArrayLike, threshold: float = 0.5, count: int = 16
) -> NDArray[np.int64]:
    """Indices of the samples called wrongly, the farthest from their label first.

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) in [0, 1]; positive iff >= `threshold`.
        threshold: a probability.
        count: at most this many are returned.

    Returns:
        (K,) int64 with K <= `count`; empty when everything is called rightly.

    Raises:
        DataError: if shapes differ or values are out of range.

    Examples:
        >>> most_confident_mistakes([0, 1, 1, 0], [0.7, 0.1, 0.8, 0.2]).tolist()
        [1, 0]
    """
    labels = check_label(label)
    probabilities = check_probability(probability, labels.size)
    wrong = np.flatnonzero((probabilities >= threshold) != labels)
    distance = np.abs(probabilities[wrong] - labels[wrong])
    return wrong[np.argsort(-distance, kind="stable")][:count]


def mistakes_gallery_figure(
    images: NDArray[np.uint8],
    label: ArrayLike,
    probability: ArrayLike,
    spread: ArrayLike | None,
    ids: Sequence[str],
    *,
    box: int | None = 32,
    class_names: tuple[str, str] = ("negative", "positive"),
) -> Figure:
    """Images that were called wrongly, in the order given, with label, probability and identity.

    :func:`most_confident_mistakes` chooses them. No image at all: a sentence says that there was no mistake.

    Args:
        images: (K, H, W, 3) uint8, RGB.
        label: (K,) of 0 and 1.
        probability: (K,) in [0, 1], of the positive class.
        spread: (K,) standard deviation of the probability over views, or None.
        ids: K names.
        box: side in pixels of the square marked in the centre, on which the label depends; None for no
            square.
        class_names: names of class 0 and class 1.

    Raises:
        DataError: if shapes do not go together.
    """
    count = len(images)
    spreads = np.full(count, np.nan) if spread is None else np.asarray(spread, dtype=np.float64)
    sizes = [len(np.asarray(label)), len(np.asarray(probability)), spreads.size, len(ids)]
    if any(size != count for size in sizes):
        raise DataError(f"expected label, probability, spread and ids of {count} images, received {sizes}")
    if count == 0:
        figure = Figure(figsize=(5.6, 2.0), layout="constrained")
        say(figure.add_subplot(), "Every sample was called rightly: there is no mistake to show.")
        return figure
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(f"images: expected uint8 (K, H, W, 3), received {images.dtype} {images.shape}")
    labels = check_label(label)
    probabilities = check_probability(probability, count)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(2.3 * COLUMNS, 0.5 + 2.8 * rows), layout="constrained")
    figure.suptitle(f"Most confident mistakes (p is the probability of {class_names[1]!r})")
    for index, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
        if index >= count:
            axes.set_axis_off()
            continue
        # A thin frame, without which a blank patch would have no edge on white paper.
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=GREY, linewidth=0.5)
        axes.imshow(images[index], interpolation="nearest")
        if box is not None:
            _mark_centre(axes, images.shape[1], images.shape[2], box)
        title = f"p = {probabilities[index]:.3f}"
        if np.isfinite(spreads[index]):
            title += f" ± {spreads[index]:.3f}"
        axes.set_title(f"{ids[index]}\nlabelled {class_names[int(labels[index])]}\n{title}", fontsize="small")
    return figure


def _mark_centre(axes: Axes, height: int, width: int, box: int) -> None:
    # Pixel k spans k - 0.5 to k + 0.5. White on black shows on any tissue.
    corner = ((width - box) / 2 - 0.5, (height - box) / 2 - 0.5)
    for colour, thickness in (("black", 2.2), ("white", 0.9)):
        axes.add_patch(Rectangle(corner, box, box, fill=False, edgecolor=colour, linewidth=thickness))


def say(axes: Axes, sentence: str) -> None:
    """Write a sentence in place of a plot, for when there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes)


def bare(*panels: Axes) -> None:
    """Give panels the look of all figures: no box, a light grid behind the data."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
