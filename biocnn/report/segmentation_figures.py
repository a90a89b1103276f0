"""Pictures of a tested segmentation: every image, pooled curves, overlays of the best and the worst.

`table` is what :meth:`biocnn.metrics.segmentation.SegmentationMetrics.compute` returns, a row for each of N images.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from biocnn.errors import DataError
from biocnn.metrics.binary import Floats
from biocnn.metrics.overlap import Confusion
from biocnn.metrics.segmentation import COUNT_NAMES, auroc_of_histogram
from biocnn.report.figures import BLUE, GREY, ORANGE, Panels, bare, say
from biocnn.report.overlay import FALSE, FOUND, MISSED

Table = Mapping[str, Tensor]

MAX_NAMES = 60
"""Images whose names are written beside the dots; with more, only their number is."""

CURVES: Panels = (
    ("loss", [("train_loss", "training loss"), ("val_bce", "validation cross-entropy")]),
    ("score", [("val_dice", "validation Dice"), ("val_cldice", "validation clDice")]),
    (
        "Betti error\n(count per image)",
        [
            ("val_betti0_error*", "validation Betti-0 (components)"),
            ("val_betti1_error*", "validation Betti-1 (loops)"),
        ],
    ),
    ("learning rate", [("lr*", "learning rate")]),
)


def betti_names(table: Table) -> dict[str, str]:
    """The Betti errors of a table: short name, such as `betti0_error`, to the one that says the rule."""
    return {name[:12]: name for name in table if re.match(r"betti\d_error", name)}


def column_of(table: Table, name: str) -> Floats:
    """One number of all images, float64 (N,), nan where it is undefined."""
    column: Floats = table[name].cpu().double().numpy()
    return column


def _by_dice(dice: Floats) -> NDArray[np.int64]:
    """Rows from the highest Dice to the lowest, those without last."""
    return np.argsort(-dice, kind="stable")


def check_rows(table: Table, name: str, values: Sequence[str] | None) -> int:
    """Number of images, after checking that there are as many values.

    Raises:
        DataError: if there are not.
    """
    count = len(table["index"])
    if values is not None and len(values) != count:
        raise DataError(f"{name}: expected one for each of the {count} images of the table, received {len(values)}")
    return count


def _shorten(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def best_median_worst(table: Table) -> dict[str, int]:
    """Rows with the highest, the middle and the lowest Dice, to be shown by :func:`overlay_sheet`.

    Of an even number the lower middle is taken; of equals the first. Images without a Dice are left out; with two
    images left there is no median, with one only the best, and without any nothing.

    Args:
        table: of the test.

    Returns:
        Row by `"best"`, `"median"` and `"worst"`, in this order.
    """
    dice = column_of(table, "dice")
    order = _by_dice(dice)
    order = order[~np.isnan(dice[order])]
    if order.size == 0:
        return {}
    places = {"best": 0, "median": order.size // 2, "worst": order.size - 1}
    wanted = {1: ("best",), 2: ("best", "worst")}.get(order.size, tuple(places))
    return {name: int(order[places[name]]) for name in wanted}


def images_figure(table: Table, ids: Sequence[str], metrics: Mapping[str, Any]) -> Figure:
    """Dice, clDice and Betti errors of every image, one row an image, the best Dice on top.

    A line is the mean over images and a band its 95 % interval. What is undefined is said in words.

    Args:
        table: of the test, N rows.
        ids: N names of images, shortened to their last 28 characters.
        metrics: of :func:`test_metrics`.

    Raises:
        DataError: if there are not N ids.
    """
    count = check_rows(table, "ids", ids)
    titles = {"dice": ("Dice", "score"), "cldice": ("clDice", "score")}
    betti = betti_names(table)
    kinds = ("components", "handles" if "betti2_error" in betti else "loops", "cavities")
    titles |= {name: (f"Betti-{name[5]} error", kinds[int(name[5])]) for name in betti}
    order = _by_dice(column_of(table, "dice"))
    height = 1.9 + (max(1.0, 0.23 * count) if count <= MAX_NAMES else 7.0)
    figure = Figure(figsize=(2.0 + 2.1 * len(titles), height), layout="constrained")
    figure.suptitle("Images of the test in order of their Dice\n(line: mean; band: its 95 % interval)")
    panels = figure.subplots(1, len(titles), sharey=True)
    for panel, (name, (title, unit)) in zip(panels, titles.items(), strict=True):
        score = unit == "score"
        _draw_dots(panel, column_of(table, betti.get(name, name))[order], BLUE if score else ORANGE)
        ends, mean = (metrics.get(f"{name}_low"), metrics.get(f"{name}_high")), metrics.get(name)
        if ends[0] is not None and ends[1] is not None:
            panel.axvspan(ends[0], ends[1], color=GREY, alpha=0.25, linewidth=0, zorder=0.5)
        if mean is not None:
            panel.axvline(mean, color=GREY, linewidth=1.2, zorder=1.5)
        text = "no image has one" if mean is None else f"mean {mean:.3f}" if score else f"mean {mean:.1f}"
        panel.set(title=f"{title}\n{text}", xlabel="score, 1 is best" if score else f"{unit}, 0 is best")
        bare(panel)
    few = count <= MAX_NAMES
    panels[0].set_yticks(range(count) if few else [], [_shorten(ids[row]) for row in order] if few else [])
    if not few:
        panels[0].set_ylabel("images (their names are in predictions.csv)")
    panels[0].set_ylim(count - 0.4, -0.6)
    return figure


def _draw_dots(panel: Axes, values: Floats, colour: str) -> None:
    rows = np.arange(values.size)
    panel.plot(values, rows, "o", color=colour, markersize=5 if values.size <= MAX_NAMES else 2)
    for row in rows[np.isnan(values)] if values.size <= MAX_NAMES else ():
        where = panel.get_yaxis_transform()
        panel.text(0.03, row, "undefined", transform=where, va="center", color=GREY, fontsize="x-small", style="italic")
    if not np.nanmax(values, initial=0) > 0:
        panel.set_xlim(-0.05, 1.05)
    panel.locator_params(axis="x", nbins=4)


def curves_figure(table: Table, threshold: float) -> Figure:
    """ROC curve and precision against sensitivity over the pixels of all images, with the threshold of the test.

    The curves are those of the summed histograms; the mark comes from the counted pixels, so it is exact. Without
    background or structure a sentence says that there is no curve.

    Args:
        table: of the test.
        threshold: a probability, from which on a pixel is called structure.
    """
    histogram = table["histogram"].cpu().numpy().sum(axis=0).astype(np.float64)
    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("Pixels of all test images together")
    negative, positive = (np.concatenate([[0.0], np.cumsum(counts[::-1])]) for counts in histogram)
    if not (negative[-1] and positive[-1]):
        for panel in (left, right):
            say(panel, "Only one class is present,\nso there is no curve.")
        return figure
    found, spared = positive / positive[-1], negative / negative[-1]
    called = positive + negative
    precision = np.divide(positive, called, out=np.ones_like(called), where=called > 0)
    average = float(np.diff(found) @ precision[1:])
    count = Confusion(*(int(column_of(table, name).sum()) for name in COUNT_NAMES))
    predicted = count.true_positive + count.false_positive
    # Where nothing was called there is no precision; the point is left out of the right panel.
    marks = [(1 - count.specificity, count.sensitivity)]
    marks.append((count.sensitivity, count.true_positive / predicted if predicted else math.nan))
    share = positive[-1] / called[-1]
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="chance")
    right.axhline(share, color=GREY, linestyle=":", linewidth=1, label=f"chance ({100 * share:.1f} % of the pixels)")
    left.plot(spared, found, color=BLUE, linewidth=2, label=f"AUC {auroc_of_histogram(histogram)[0]:.4f}")
    drawn = called > 0
    right.plot(found[drawn], precision[drawn], color=BLUE, linewidth=2, label=f"average precision {average:.3f}")
    for panel, mark in zip((left, right), marks, strict=True):
        text = f"threshold {threshold:.3f}, Dice {count.dice:.3f}"
        panel.plot(*mark, "D", color=ORANGE, markeredgecolor="white", markersize=9, label=text)
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        bare(panel)
    left.set(title="Receiver operating characteristic", xlabel="false positive rate (1 - specificity)")
    left.set_ylabel("true positive rate (sensitivity)")
    right.set(title="Precision and sensitivity", xlabel="sensitivity (recall)", ylabel="precision")
    left.legend(loc="lower right", frameon=False)
    right.legend(loc="best", frameon=False)
    return figure


def overlay_sheet(pictures: Sequence[NDArray[np.uint8]], table: Table, ids: Sequence[str]) -> Figure:
    """Overlays of the best, the median and the worst image side by side, with their numbers.

    Args:
        pictures: (H, W, 3) uint8 each, of any size, for the rows of :func:`best_median_worst` in its order.
        table: of the test, N rows.
        ids: N names of images.

    Raises:
        DataError: if there are not N ids, or pictures of another number or shape.
    """
    check_rows(table, "ids", ids)
    shown = best_median_worst(table)
    if len(pictures) != len(shown) or not shown:
        raise DataError(f"pictures: expected one for each of {list(shown)}, received {len(pictures)}")
    for picture in pictures:
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise DataError(f"pictures: expected uint8 (H, W, 3), received {picture.dtype} {picture.shape}")
    # In inches, and placed by hand: layout engines leave gaps around panels whose shape is given by what they show.
    side, gap, above, below = 4.2, 0.15, 0.8, 0.5
    ratios = [picture.shape[0] / picture.shape[1] for picture in pictures]
    widths = [min(side, 2 * side / ratio) for ratio in ratios]
    tallest = max(width * ratio for width, ratio in zip(widths, ratios, strict=True))
    wide, high = gap + (side + gap) * len(shown), above + tallest + below
    figure = Figure(figsize=(wide, high))
    betti = betti_names(table)
    for index, (picture, (place, row)) in enumerate(zip(pictures, shown.items(), strict=True)):
        width, height = widths[index], widths[index] * ratios[index]
        left = gap + (side + gap) * index + (side - width) / 2
        panel = figure.add_axes((left / wide, (below + tallest - height) / high, width / wide, height / high))
        panel.imshow(picture)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=GREY, linewidth=0.5)
        scores = [
            f"{title} {column_of(table, name)[row]:.3f}" for name, title in (("dice", "Dice"), ("cldice", "clDice"))
        ]
        errors = [f"Betti-{alias[5]} error {column_of(table, name)[row]:.0f}" for alias, name in betti.items()]
        panel.set_title(f"{place}: {_shorten(ids[row])}\n{', '.join(scores)}\n{', '.join(errors)}", fontsize="medium")
    colours = {"found": FOUND, "missed": MISSED, "false": FALSE}
    patches = [
        Patch(facecolor=f"#{bytes(colour).hex()}", edgecolor=GREY, label=name) for name, colour in colours.items()
    ]
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), frameon=False, fontsize="large")
    return figure
