"""Metrics of a binary classifier, as plain functions of arrays.

Notation: N samples; `label` (N,) holds 0 (negative) and 1 (positive); `score` (N,) is any number that grows
with the evidence for the positive class; `probability` (N,) lies in [0, 1]; `logit` (N,) is finite; `weight`
(N,) is non-negative and counts how often a sample is present, which is what a bootstrap needs. Everything is
computed in float64 whatever dtype comes in.

One class only: the areas under curves and the rate of the class that is missing are undefined and come back
as nan, never as a number that could be averaged by mistake. All weights zero: every metric is nan.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError

Floats = NDArray[np.float64]


def check_label(label: ArrayLike) -> Floats:
    """Return `label` as float64 (N,) after checking that it holds 0 and 1 only.

    Raises:
        DataError: if it is empty, not one-dimensional or holds anything but 0 and 1.
    """
    values = _vector("label", label)
    if not np.isin(values, (0.0, 1.0)).all():
        other = np.unique(values[~np.isin(values, (0.0, 1.0))])[:5]
        raise DataError(f"label: expected 0 (negative) and 1 (positive) only, received also {other.tolist()}")
    return values


def check_logit(logit: ArrayLike, size: int) -> Floats:
    """Return `logit` as float64 (size,) after checking that every value is finite.

    Raises:
        DataError: if the shape differs or a value is nan or infinite.
    """
    values = _vector("logit", logit, size)
    if not np.isfinite(values).all():
        raise DataError(
            f"logit: expected finite values, received {int((~np.isfinite(values)).sum())} of {values.size} "
            "infinite; did the network diverge or overflow in half precision?"
        )
    return values


def check_probability(probability: ArrayLike, size: int) -> Floats:
    """Return `probability` as float64 (size,) after checking that every value lies in [0, 1].

    Raises:
        DataError: if the shape differs or a value is nan or outside [0, 1].
    """
    values = _vector("probability", probability, size)
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"probability: expected values in [0, 1], received [{values.min():.4g}, {values.max():.4g}]; "
            "pass logits through a sigmoid first"
        )
    return values


def check_weight(weight: ArrayLike | None, size: int) -> Floats:
    """Return `weight` as float64 (size,), ones where it is None.

    Raises:
        DataError: if the shape differs or a value is nan, infinite or negative.
    """
    if weight is None:
        return np.ones(size)
    values = _vector("weight", weight, size)
    if values.min() < 0 or not np.isfinite(values).all():
        raise DataError(f"weight: expected finite values of 0 or more, received {values.min()} to {values.max()}")
    return values


def _vector(name: str, value: ArrayLike, size: int | None = None) -> Floats:
    values = np.asarray(value, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"{name}: expected a non-empty array of shape (N,), received shape {values.shape}")
    if size is not None and values.size != size:
        raise DataError(f"{name}: expected shape ({size},) to go with the labels, received {values.shape}")
    if np.isnan(values).any():
        raise DataError(f"{name}: expected numbers, received {int(np.isnan(values).sum())} nan of {values.size}")
    return values


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


@dataclass(frozen=True)
class Ranking:
    """Samples sorted once by score, so that metrics of many weightings need no further sort.

    G is the number of distinct scores. With 32,768 samples one weighting costs below a millisecond, against
    several for sorting anew.

    Attributes:
        order: (N,) int64, sample indices from the highest score to the lowest.
        last: (G,) int64, position in `order` of the last sample of each distinct score.
        label: (N,) float64, labels in that order.
    """

    order: NDArray[np.int64]
    last: NDArray[np.int64]
    label: Floats

    def counts(self, weight: Floats) -> tuple[Floats, Floats]:
        """Weight of true and of false positives when all from each distinct score upwards is called positive.

        Args:
            weight: (N,) float64, in the order of the original samples.

        Returns:
            Two arrays (G,), non-decreasing: true positives and false positives.
        """
        ranked = weight[self.order]
        total = np.cumsum(ranked)[self.last]
        positive = np.cumsum(ranked * self.label)[self.last]
        return positive, total - positive

    def areas(self, weight: Floats) -> tuple[float, float]:
        """Area under the ROC curve and average precision, from one pass; see the functions of these names."""
        positive, negative = self.counts(weight)
        return _area(positive, negative), _average_precision(positive, negative)


def rank_scores(label: ArrayLike, score: ArrayLike) -> Ranking:
    """Sort samples by score for :class:`Ranking`.

    Args:
        label: (N,) of 0 and 1.
        score: (N,), anything but nan; higher means more likely positive.

    Raises:
        DataError: if shapes differ, labels are not 0 and 1, or a score is nan.
    """
    labels = check_label(label)
    scores = _vector("score", score, labels.size)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return Ranking(order=order, last=last, label=labels[order])


def _area(positive: Floats, negative: Floats) -> float:
    # Trapezoids: a tie between a positive and a negative sample counts one half, as in Mann and Whitney's U.
    before = np.concatenate([[0.0], positive[:-1]])
    steps = np.diff(negative, prepend=0.0)
    return _ratio(float(steps @ (positive + before)) / 2, positive[-1] * negative[-1])


def _average_precision(positive: Floats, negative: Floats) -> float:
    called = positive + negative
    # Where nothing has been called positive yet the recall does not move either, so any precision will do.
    precision = positive / np.where(called > 0, called, 1.0)
    return _ratio(float(np.diff(positive, prepend=0.0) @ precision), positive[-1])


def auroc(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: how often a positive sample outscores a negative one, ties counting half.

    Mann & Whitney (1947), Ann. Math. Stat. 18:50; Hanley & McNeil (1982), Radiology 143:29. Higher is better.

    Args:
        label: (N,) of 0 and 1.
        score: (N,), anything but nan.
        weight: (N,) of 0 or more; None counts every sample once.

    Returns:
        A number in [0, 1]; nan when one class is absent or has no weight.

    Raises:
        DataError: if shapes differ or values are out of range.

    Examples:
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
    """
    ranking = rank_scores(label, score)
    return ranking.areas(check_weight(weight, ranking.label.size))[0]


def average_precision(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Average precision: the sum over distinct scores of precision times the gain in recall.

    No interpolation, as in scikit-learn's `average_precision_score`. Higher is better; a score that knows
    nothing gets the prevalence.

    Args:
        label: (N,) of 0 and 1.
        score: (N,), anything but nan.
        weight: (N,) of 0 or more; None counts every sample once.

    Returns:
        A number in [0, 1]; nan without positive samples, 1 without negative ones.

    Raises:
        DataError: if shapes differ or values are out of range.

    Examples:
        >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
        0.8333
    """
    ranking = rank_scores(label, score)
    return ranking.areas(check_weight(weight, ranking.label.size))[1]


def roc_curve(label: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Points of the ROC curve, one for each distinct score, from (0, 0) to (1, 1).

    Returns:
        False positive rate and true positive rate, each (G + 1,); all nan but
        the first point for a class that is absent.

    Raises:
        DataError: if shapes differ or values are out of range.
    """
    ranking = rank_scores(label, score)
    positive, negative = ranking.counts(np.ones(ranking.label.size))
    rates = []
    for counts in (negative, positive):
        total = counts[-1] if counts[-1] > 0 else np.nan
        rates.append(np.concatenate([[0.0], counts / total]))
    return rates[0], rates[1]


def _called(label: ArrayLike, probability: ArrayLike, threshold: float) -> tuple[Floats, Floats]:
    labels = check_label(label)
    return labels, (check_probability(probability, labels.size) >= threshold).astype(np.float64)


def accuracy(
    label: ArrayLike, probability: ArrayLike, threshold: float = 0.5, weight: ArrayLike | None = None
) -> float:
    """Fraction of samples called rightly; a sample is called positive iff its probability >= `threshold`.

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) in [0, 1].
        threshold: a probability.
        weight: (N,) of 0 or more; None counts every sample once.

    Raises:
        DataError: if shapes differ or values are out of range.
    """
    labels, called = _called(label, probability, threshold)
    weights = check_weight(weight, labels.size)
    return _ratio(float(weights @ (called == labels)), weights.sum())


def sensitivity(
    label: ArrayLike, probability: ArrayLike, threshold: float = 0.5, weight: ArrayLike | None = None
) -> float:
    """Fraction of positive samples called positive (recall); nan without positive samples.

    Arguments and errors as in :func:`accuracy`.
    """
    labels, called = _called(label, probability, threshold)
    weights = check_weight(weight, labels.size) * labels
    return _ratio(float(weights @ called), weights.sum())


def specificity(
    label: ArrayLike, probability: ArrayLike, threshold: float = 0.5, weight: ArrayLike | None = None
) -> float:
    """Fraction of negative samples called negative; nan without negative samples.

    Arguments and errors as in :func:`accuracy`.
    """
    labels, called = _called(label, probability, threshold)
    weights = check_weight(weight, labels.size) * (1 - labels)
    return _ratio(float(weights @ (1 - called)), weights.sum())


def log_losses(label: Floats, logit: Floats) -> Floats:
    """Negative log likelihood of each sample, in nats, from checked labels (N,) and logits (N,).

    softplus(-logit) for a positive sample and softplus(logit) for a negative one: exact where a probability
    would have been rounded to 0 or 1.
    """
    return np.logaddexp(0.0, np.where(label == 1, -logit, logit))


def negative_log_likelihood(label: ArrayLike, logit: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean negative log likelihood (binary cross-entropy) from logits, in nats; lower is better.

    Args:
        label: (N,) of 0 and 1.
        logit: (N,), finite; logits and not probabilities, because a probability rounded to 1 has lost its
            loss.
        weight: (N,) of 0 or more; None counts every sample once.

    Raises:
        DataError: if shapes differ or values are out of range.

    Examples:
        >>> negative_log_likelihood([0, 1], [1000.0, 1000.0])
        500.0
    """
    labels = check_label(label)
    weights = check_weight(weight, labels.size)
    return _ratio(float(weights @ log_losses(labels, check_logit(logit, labels.size))), weights.sum())


def brier(label: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Brier score: mean squared difference of probability and label, in [0, 1]; lower is better.

    Brier (1950), Mon. Weather Rev. 78:1, in the form for two classes that counts the positive class once.

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) in [0, 1].
        weight: (N,) of 0 or more; None counts every sample once.

    Raises:
        DataError: if shapes differ or values are out of range.
    """
    labels = check_label(label)
    weights = check_weight(weight, labels.size)
    return _ratio(float(weights @ (check_probability(probability, labels.size) - labels) ** 2), weights.sum())
