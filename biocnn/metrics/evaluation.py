"""The evaluation of a binary classifier: one flat dictionary, ready for `metrics.json`."""

import logging
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from biocnn.errors import DataError
from biocnn.metrics.binary import (
    Floats,
    check_label,
    check_logit,
    log_losses,
    negative_log_likelihood,
    rank_scores,
)
from biocnn.metrics.bootstrap import cluster_bootstrap
from biocnn.metrics.calibration import Calibration, expected_calibration_error

_logger = logging.getLogger(__name__)

Flat = dict[str, float | int | None]


def evaluate_binary(
    logit: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    calibration: Calibration,
    *,
    content_hash: ArrayLike | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> Flat:
    """Every number worth reporting about a binary classifier on one split.

    Keys, all on calibrated probabilities unless they say otherwise:

    - `auroc`, `average_precision`, `nll` (nats), `brier`, `ece` (top-label, 15 bins), `ece_positive` (the
      same on the probability of the positive class), and `nll_uncalibrated`, `ece_uncalibrated`,
      `ece_positive_uncalibrated` at temperature 1;
    - `accuracy`, `balanced_accuracy`, `sensitivity`, `specificity` at 0.5, and each with `_at_threshold` at
      the threshold of `calibration`;
    - `accuracy_majority`, of always calling the more frequent class; `prevalence`, of the positive class;
    - `n`, `n_groups`, `temperature`, `threshold`;
    - `<key>_low` and `<key>_high`, 95 % intervals from a bootstrap over groups, for all of the above that are
      means or ranks (calibration errors have none: resampling inflates them); `bootstrap_repeats`, and
      `bootstrap_dropped`, the most replicates that any of them had to leave out;
    - with `content_hash`, `n_unique` and each of the values with `_unique` (intervals `_unique_low` and
      `_unique_high`), where only the first sample of each content is counted.

    An undefined number (an area with one class, an interval with one group) is None, which JSON writes as
    null. Areas are computed from logits, which do not saturate; a temperature cannot change them.

    Args:
        logit: (N,), finite, before calibration.
        label: (N,) of 0 and 1.
        group: (N,) of str or int, such as the slide of each patch.
        calibration: fitted on another split.
        content_hash: (N,) of str, bytes or int, equal for samples with equal pixels; None if not known.
        repeats: bootstrap replicates; 0 leaves the intervals and their keys out.
        seed: of the bootstrap.

    Returns:
        A flat dictionary of plain numbers and None, valid as JSON.

    Raises:
        DataError: if shapes differ or values are out of range.
        ValueError: if `repeats` is negative.
    """
    labels = check_label(label)
    logits = check_logit(logit, labels.size)
    groups = _companion("group", group, labels.size)
    result: Flat = {
        "n": labels.size,
        "n_groups": np.unique(groups).size,
        "temperature": float(calibration.temperature),
        "threshold": float(calibration.threshold),
    }
    result.update(_point_metrics(logits, labels, calibration))
    if repeats != 0:
        intervals = cluster_bootstrap(
            _weighted_metrics(logits, labels, calibration), groups, repeats=repeats, seed=seed
        )
        if intervals.note:
            _logger.warning("Confidence intervals over groups: %s.", intervals.note)
        for name in intervals.low:
            result[f"{name}_low"], result[f"{name}_high"] = intervals.low[name], intervals.high[name]
        result["bootstrap_repeats"] = repeats
        result["bootstrap_dropped"] = max(intervals.dropped.values())
    if content_hash is not None:
        _, first = np.unique(_companion("content_hash", content_hash, labels.size), return_index=True)
        result["n_unique"] = first.size
        unique = evaluate_binary(logits[first], labels[first], groups[first], calibration, repeats=repeats, seed=seed)
        result.update({_unique_name(name): value for name, value in unique.items() if name not in _NOT_REPEATED})
    return {name: None if value is None or math.isnan(value) else value for name, value in result.items()}


_NOT_REPEATED = ("n", "n_groups", "temperature", "threshold", "bootstrap_repeats", "bootstrap_dropped")


def _unique_name(name: str) -> str:
    base, _, bound = name.rpartition("_")
    return f"{base}_unique_{bound}" if bound in ("low", "high") else f"{name}_unique"


def _companion(name: str, value: ArrayLike, size: int) -> np.ndarray:
    values = np.asarray(value)
    if values.shape != (size,):
        raise DataError(f"{name}: expected shape ({size},) to go with the labels, received {values.shape}")
    return values


def _point_metrics(logit: Floats, label: Floats, calibration: Calibration) -> dict[str, float]:
    """Every metric without resampling, of checked arrays."""
    prevalence = float(label.mean())
    probability, uncalibrated = calibration.apply(logit), expit(logit)
    return {
        **_weighted_metrics(logit, label, calibration)(np.ones(label.size)),
        "ece": expected_calibration_error(label, probability, kind="top-label"),
        "ece_positive": expected_calibration_error(label, probability, kind="positive"),
        "nll_uncalibrated": negative_log_likelihood(label, logit),
        "ece_uncalibrated": expected_calibration_error(label, uncalibrated, kind="top-label"),
        "ece_positive_uncalibrated": expected_calibration_error(label, uncalibrated, kind="positive"),
        "prevalence": prevalence,
        "accuracy_majority": max(prevalence, 1 - prevalence),
    }


def _weighted_metrics(logit: Floats, label: Floats, calibration: Calibration) -> Callable[[Floats], dict[str, float]]:
    """The metrics that are ranks or means, prepared once as a function of the weight of each sample.

    All means are read off one matrix product, so that a replicate of 32,768 samples takes about a
    millisecond.
    """
    ranking = rank_scores(label, logit)
    probability = calibration.apply(logit)
    called = [(probability >= threshold).astype(np.float64) for threshold in (0.5, calibration.threshold)]
    rows = np.stack(
        [
            label,
            1 - label,
            log_losses(label, logit / calibration.temperature),
            (probability - label) ** 2,
            *[label * positive for positive in called],
            *[(1 - label) * (1 - positive) for positive in called],
        ]
    )

    def metrics(weight: Floats) -> dict[str, float]:
        positives, negatives, loss, squares, *right = (float(value) for value in rows @ weight)
        area, precision = ranking.areas(weight)
        total = positives + negatives
        result = {
            "auroc": area,
            "average_precision": precision,
            "nll": loss / total,
            "brier": squares / total,
        }
        for suffix, found, spared in (("", right[0], right[2]), ("_at_threshold", right[1], right[3])):
            sensitivity = found / positives if positives else math.nan
            specificity = spared / negatives if negatives else math.nan
            result[f"accuracy{suffix}"] = (found + spared) / total
            result[f"balanced_accuracy{suffix}"] = (sensitivity + specificity) / 2
            result[f"sensitivity{suffix}"] = sensitivity
            result[f"specificity{suffix}"] = specificity
        return result

    return metrics
