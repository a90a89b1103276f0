"""What the numbers of a test mean, in words and units; and what they have to beat.

Notation: `metrics` is the content of a `metrics.json`; `rows` are those of its `predictions.csv`, as text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from biocnn.report.page import Html, element, joined, number, rounded

Metrics = Mapping[str, Any]
Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Measure:
    """A number of a test.

    Attributes:
        name: in `metrics.json`.
        title: for people.
        unit: such as ``"cells per image"``.
        words: what it says.
    """

    name: str
    title: str
    unit: str
    words: str


MEASURES: Mapping[str, Sequence[Measure]] = {
    "segmentation": (
        Measure("dice", "Dice", "0 to 1", "How well found and true pixels overlap: 1 is the same, 0 nothing."),
        Measure("cldice", "clDice", "0 to 1", "The same of centre lines: low where vessels are broken or invented."),
        Measure("betti0_error", "Wrong pieces", "per image", "Pieces too many or too few (Betti-0 error)."),
        Measure("betti1_error", "Wrong loops", "per image", "Loops too many or too few (Betti-1 error)."),
        Measure("sensitivity", "Sensitivity", "share", "Of the pixels of the true structure, those that were found."),
        Measure("specificity", "Specificity", "share", "Of the pixels of the background, those left alone."),
        Measure("iou", "IoU", "0 to 1", "Pixels found rightly, by all that are structure in either."),
        Measure("auroc", "AUC", "0.5 to 1", "How well the map ranks structure above background, at any threshold."),
    ),
    "counting": (
        Measure("mae", "Mean error", "cells per image", "How far a count is off, up or down, on average (MAE)."),
        Measure("mape", "Relative error", "share of the true count", "The same relative to the number of cells."),
        Measure("bias", "Bias", "cells per image", "Whether counts are too low (-) or too high (+) on the whole."),
        Measure("rmse", "RMSE", "cells per image", "Like the mean error, but large errors weigh more."),
        Measure("coverage", "Coverage", "share of images", "How often the interval of a count held the true count."),
        Measure("interval_width", "Interval width", "cells", "Mean width of the interval of a count."),
        Measure("game3", "GAME(3)", "cells per image", "Error summed over an 8 x 8 grid: right count, wrong place."),
        Measure("f1", "Points (F1)", "0 to 1", "How well single cells are found at their place."),
    ),
    "classification": (
        Measure("auroc", "AUC", "0.5 to 1", "Chance that a positive patch gets the higher probability of a pair."),
        Measure("accuracy", "Accuracy", "share, at 0.5", "Patches called rightly at a probability of 0.5."),
        Measure(
            "accuracy_at_threshold", "Accuracy", "share, at the threshold", "The same at the threshold of validation."
        ),
        Measure("sensitivity_at_threshold", "Sensitivity", "share", "Of the positive patches, those called positive."),
        Measure("specificity_at_threshold", "Specificity", "share", "Of the negative patches, those called negative."),
        Measure("average_precision", "Average precision", "0 to 1", "Precision averaged over all sensitivities."),
        Measure("nll", "NLL", "nats", "How surprised the probabilities are by the truth: smaller is better."),
        Measure("ece", "Calibration error", "share", "How far probabilities are from observed frequencies (ECE)."),
    ),
}

HEADLINES = {
    "segmentation": ("dice", "cldice", "betti0_error", "betti1_error"),
    "counting": ("mae", "bias", "coverage", "f1"),
    "classification": ("auroc", "accuracy", "sensitivity_at_threshold", "specificity_at_threshold"),
}


def value_of(metrics: Metrics, name: str) -> float | None:
    """A number of a test; None where it is missing or undefined."""
    value = metrics.get(name)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if known and isinstance(value, float) else value if known else None


def ends_of(metrics: Metrics, name: str) -> tuple[float | None, float | None]:
    """The ends of the 95 % interval of a number; those of points have the tolerance in their names."""
    long = next((key for key in metrics if re.fullmatch(rf"{name}_tol[\d.]+px", key)), name)
    return value_of(metrics, f"{long}_low"), value_of(metrics, f"{long}_high")


def interval_html(metrics: Metrics, name: str) -> Html:
    """The ends of an interval, or that there is none."""
    low, high = ends_of(metrics, name)
    if low is None or high is None:
        return Html("no interval")
    return joined([number(low), " to ", number(high)])


def headline_tiles(job: str, metrics: Metrics) -> list[tuple[str, Html, Html]]:
    """Name, number and interval of the few numbers that matter most."""
    measures = {measure.name: measure for measure in MEASURES.get(job, ())}
    shown = [measures[name] for name in HEADLINES.get(job, ()) if value_of(metrics, name) is not None]
    return [
        (
            f"{measure.title}, {measure.unit}",
            number(value_of(metrics, measure.name)),
            joined(["95 %: ", interval_html(metrics, measure.name)]),
        )
        for measure in shown
    ]


def metric_rows(job: str, metrics: Metrics) -> list[list[object]]:
    """Title and words, number and unit, 95 % interval of each number of the job that the test has."""
    return [
        [
            joined([element("b", measure.title), element("small", measure.words)]),
            joined([number(value_of(metrics, measure.name)), element("small", measure.unit)]),
            interval_html(metrics, measure.name),
        ]
        for measure in MEASURES.get(job, ())
        if value_of(metrics, measure.name) is not None
    ]


def in_words(job: str, metrics: Metrics) -> str:
    """The result in one sentence; empty if the test has no such number."""

    def said(name: str) -> str:
        low, high = ends_of(metrics, name)
        value = value_of(metrics, name)
        text = "not known" if value is None else rounded(value)
        return text if low is None or high is None else f"{text} (95 % interval {rounded(low)} to {rounded(high)})"

    if job == "segmentation" and value_of(metrics, "dice") is not None:
        pieces = value_of(metrics, "betti0_error")
        more = "" if pieces is None else f" A mask has {rounded(pieces)} pieces too many or too few on average."
        return f"On {metrics.get('n_images')} test images, masks overlap the truth with a Dice of {said('dice')}.{more}"
    if job == "counting" and value_of(metrics, "mae") is not None:
        bias = value_of(metrics, "bias") or 0.0
        tends = "too low" if bias < 0 else "too high"
        return (
            f"On {metrics.get('n_images')} test images, a count is off by {said('mae')} cells on average; "
            f"on the whole counts are {rounded(abs(bias))} cells {tends}."
        )
    if job == "classification" and value_of(metrics, "accuracy") is not None:
        return (
            f"Of {rounded(metrics.get('n', 0))} test patches, a share of {said('accuracy')} is called rightly at a "
            f"probability of 0.5; the AUC is {said('auroc')}."
        )
    return ""


@dataclass(frozen=True)
class Floor:
    """What a model has to beat to have learned anything.

    Attributes:
        title: what one would do without a model.
        value: its number.
        measure: the number of the model that it is compared with.
        unit: of both.
        lower_is_better: whether the smaller of the two is the better one.
    """

    title: str
    value: float
    measure: str
    unit: str
    lower_is_better: bool

    def beaten(self, metrics: Metrics) -> bool:
        """Whether the model is better."""
        found = value_of(metrics, self.measure)
        return found is not None and (found < self.value if self.lower_is_better else found > self.value)


def floors_of(job: str, metrics: Metrics, rows: Rows) -> list[Floor]:
    """The floors beside the numbers of a test; that of a segmentation is worked out from its table."""
    found: list[Floor] = []
    if job == "counting":
        texts = {
            "floor_constant_mae": "The mean count of the training images for every image",
            "floor_linear_mae": "A straight line through the summed intensity of an image",
        }
        for name, text in texts.items():
            if (value := value_of(metrics, name)) is not None:
                found.append(Floor(text, value, "mae", "cells per image", True))
    elif job == "classification" and (value := value_of(metrics, "accuracy_majority")) is not None:
        found.append(Floor("Always calling the more frequent class", value, "accuracy", "share", False))
    elif job == "segmentation" and (share := _dice_of_everything(rows)) is not None:
        found.append(Floor("Calling every pixel structure", share, "dice", "Dice", False))
    return found


def _dice_of_everything(rows: Rows) -> float | None:
    """Mean over images of the Dice of a mask that is structure everywhere: 2 S / (S + N), S of N pixels being it."""
    names = ("true_positive", "false_negative", "false_positive", "true_negative")
    try:
        counts = np.array([[float(row[name]) for name in names] for row in rows], dtype=np.float64)
    except (KeyError, ValueError):
        return None
    if not len(counts):
        return None
    structure, total = counts[:, :2].sum(1), counts.sum(1)
    # Without structure there is no Dice, as in the metric.
    dice = 2 * structure[structure > 0] / (structure + total)[structure > 0]
    return float(dice.mean()) if dice.size else None


def warnings_of(job: str, metrics: Metrics, floors: Sequence[Floor]) -> list[str]:
    """What a reader has to know before believing the numbers."""
    found = [
        f"A floor is not beaten: {floor.title.lower()} gives {rounded(floor.value)} {floor.unit}, "
        f"the model {rounded(value_of(metrics, floor.measure) or 0.0)}."
        for floor in floors
        if not floor.beaten(metrics)
    ]
    covered, promised = value_of(metrics, "coverage"), value_of(metrics, "interval_level")
    least = value_of(metrics, "coverage_expected_low")
    if job == "counting" and covered is not None and promised is not None and least is not None and covered < least:
        found.append(
            f"Intervals promise to hold the true count in {100 * promised:.0f} % of images and do so in "
            f"{100 * covered:.0f} %, less than chance explains: test images differ from those of validation."
        )
    if metrics.get("predicts_zero"):
        found.append("The model counts almost nothing anywhere.")
    for name in ("interval_note", "intervals_note"):
        if metrics.get(name):
            found.append(f"Intervals: {metrics[name]}.")
    return found


def floor_rows(floors: Sequence[Floor], metrics: Metrics) -> list[list[object]]:
    """Title, its number, that of the model, unit and verdict of each floor."""
    return [
        [
            floor.title,
            number(floor.value),
            number(value_of(metrics, floor.measure)),
            floor.unit,
            "beaten" if floor.beaten(metrics) else element("span", "not beaten", class_="alarm"),
        ]
        for floor in floors
    ]
