"""What a tested patch classifier leaves in its run folder: numbers, a table and pictures."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biocnn.files import atomic_path
from biocnn.metrics.binary import accuracy, auroc, negative_log_likelihood
from biocnn.metrics.calibration import Calibration
from biocnn.metrics.evaluation import evaluate_binary
from biocnn.report.figures import (
    learning_curves_figure,
    mistakes_gallery_figure,
    most_confident_mistakes,
    reliability_figure,
    roc_figure,
    save_figure,
)

_RESULTS = ("metrics.json", "predictions.csv", "figures")


@dataclass(frozen=True)
class Tested:
    """Predictions of one split and what belongs to them; N patches, V views.

    Attributes:
        logit: (N, V) float, before calibration.
        label: (N,) int of 0 and 1.
        ids: N names.
        groups: N slides; None when there is no group rule: then intervals take patches as independent, and say so.
        calibration: fitted on the validation split.
        hashes: (N,) digests of the pixels.
    """

    logit: np.ndarray
    label: np.ndarray
    ids: Sequence[str]
    groups: Sequence[str] | None
    calibration: Calibration
    hashes: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """(N,) calibrated probability of the positive class: sigmoid of the mean logit over the temperature."""
        return self.calibration.apply(self.logit.mean(1))

    @property
    def spread(self) -> np.ndarray:
        """(N,) standard deviation of the calibrated probability over the views; 0 with one view."""
        return np.asarray(self.calibration.apply(self.logit).std(1))


def write_predictions(path: Path, tested: Tested) -> None:
    """Write ``predictions.csv``: id, group, label, probability, spread, called, one row for each patch."""
    called = tested.probability >= tested.calibration.threshold
    columns = zip(
        tested.ids,
        tested.groups or [""] * len(tested.ids),
        tested.label,
        tested.probability,
        tested.spread,
        called.astype(int),
        strict=True,
    )
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "group", "label", "probability", "spread", "called"])
        for name, group, label, probability, spread, call in columns:
            writer.writerow([name, group, label, f"{probability:.6f}", f"{spread:.6f}", call])


def test_metrics(tested: Tested, seed: int) -> dict[str, Any]:
    """All numbers of a test, see :func:`evaluate_binary`, with those of a single view beside those of eight.

    `auroc_one_view`, `accuracy_one_view` and `nll_one_view_uncalibrated` tell what test-time augmentation brings.
    """
    metrics: dict[str, Any] = dict(
        evaluate_binary(
            tested.logit.mean(1),
            tested.label,
            np.asarray(tested.ids if tested.groups is None else tested.groups),
            tested.calibration,
            content_hash=tested.hashes,
            seed=seed,
        )
    )
    metrics["intervals_over"] = "groups"
    if tested.groups is None:
        metrics["n_groups"], metrics["intervals_over"] = None, "patches, too narrow: no groups are known"
    if tested.logit.shape[1] > 1:
        single = tested.logit[:, 0]
        metrics.update(
            auroc_one_view=auroc(tested.label, single),
            accuracy_one_view=accuracy(tested.label, Calibration().apply(single)),
            nll_one_view_uncalibrated=negative_log_likelihood(tested.label, single),
        )
    metrics["views"] = tested.logit.shape[1]
    metrics["mean_spread"] = float(tested.spread.mean())
    return metrics


def write_figures(
    folder: Path, tested: Tested, mistakes: np.ndarray, metrics: dict[str, Any], curves: Path, classes: Sequence[str]
) -> None:
    """Draw ROC, reliability, learning curves and a gallery of the most confident mistakes.

    Args:
        folder: where the PNG files go.
        tested: predictions of the test set.
        mistakes: (K, H, W, 3) uint8 patches at :func:`most_confident_mistakes`.
        metrics: of the test; the interval of the AUC is shown.
        curves: ``metrics.csv`` of the run; no learning curves when it is missing.
        classes: names of class 0 and class 1.
    """
    low, high = metrics.get("auroc_low"), metrics.get("auroc_high")
    interval = None if low is None or high is None else (low, high)
    save_figure(
        roc_figure(tested.label, tested.probability, interval, tested.calibration.threshold), folder / "roc.png"
    )
    before = Calibration().apply(tested.logit.mean(1))
    save_figure(reliability_figure(tested.label, before, tested.probability), folder / "reliability.png")
    where = most_confident_mistakes(tested.label, tested.probability, tested.calibration.threshold)
    gallery = mistakes_gallery_figure(
        mistakes,
        tested.label[where],
        tested.probability[where],
        tested.spread[where],
        [tested.ids[position] if tested.groups is None else tested.groups[position] for position in where],
        class_names=(classes[0], classes[1]),
    )
    save_figure(gallery, folder / "mistakes.png")
    if curves.is_file():
        save_figure(learning_curves_figure(curves), folder / "learning_curves.png")
