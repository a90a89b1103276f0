"""Calibration of a binary classifier: how far confidence can be trusted, one temperature, one threshold.

Notation as in :mod:`biocnn.metrics.binary`: `label` (N,) of 0 and 1, `logit` (N,) finite, `probability` (N,)
in [0, 1], `group` (N,) names what must not be split (slide, patient).

References:
    Naeini, Cooper & Hauskrecht (2015), AAAI: expected calibration error with equal-width bins.
    Guo, Pleiss, Sun & Weinberger (2017), ICML, arXiv:1706.04599: temperature scaling; eqs. (3) and (9).
    Youden (1950), Cancer 3:32: the index sensitivity + specificity - 1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from biocnn.errors import DataError
from biocnn.metrics.binary import Floats, check_label, check_logit, check_probability, negative_log_likelihood

TEMPERATURE_RANGE = (0.05, 20.0)
"""Bounds of a fitted temperature. Published fits lie between 1 and 3; one at a bound is no fit."""

Kind = Literal["top-label", "positive"]


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against outcome in M equal-width bins.

    Attributes:
        edge: (M + 1,) float64, bin edges from 0 to 1. Bin m is [edge[m], edge[m + 1]); the last one includes
            1.
        confidence: (M,) float64, mean confidence of the samples of each bin; nan for an empty bin.
        fraction: (M,) float64, fraction of them that came true; nan for an empty bin.
        count: (M,) int64, samples in each bin.
    """

    edge: Floats
    confidence: Floats
    fraction: Floats
    count: NDArray[np.int64]


def reliability_curve(
    label: ArrayLike, probability: ArrayLike, bins: int = 15, kind: Kind = "positive"
) -> ReliabilityCurve:
    """Mean confidence and observed fraction in equal-width bins over [0, 1].

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) in [0, 1], of the positive class.
        bins: number of bins, at least 1.
        kind: what confidence means. "positive": the probability of the positive class, against the fraction
            of positive samples. "top-label": the probability of the class that was called (at 0.5), against
            the fraction called rightly; with two classes it is never below 0.5, so the lower bins stay empty.

    Raises:
        DataError: if shapes differ or values are out of range.
        ValueError: if `bins` or `kind` is not one of the above.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, received {bins}")
    labels = check_label(label)
    confidence = check_probability(probability, labels.size)
    if kind == "top-label":
        called = confidence >= 0.5
        outcome = (called == labels).astype(np.float64)
        confidence = np.where(called, confidence, 1 - confidence)
    elif kind == "positive":
        outcome = labels
    else:
        raise ValueError(f'kind: expected "top-label" or "positive", received {kind!r}')
    edge = np.linspace(0.0, 1.0, bins + 1)
    # Confidence 1 belongs to the last bin; searching without the last edge leaves no bin beyond it.
    index = np.searchsorted(edge[1:-1], confidence, side="right")
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    return ReliabilityCurve(
        edge=edge,
        confidence=np.bincount(index, confidence, bins) / filled,
        fraction=np.bincount(index, outcome, bins) / filled,
        count=count.astype(np.int64),
    )


def expected_calibration_error(
    label: ArrayLike, probability: ArrayLike, bins: int = 15, kind: Kind = "top-label"
) -> float:
    """Expected calibration error: mean |fraction - confidence| over bins, weighted by their samples.

    Lower is better. Guo et al. (2017), eq. (3). Arguments and errors as in :func:`reliability_curve`. The two
    kinds are different numbers, so say which one is reported. The estimate is biased upwards when bins hold
    few samples.

    Returns:
        A number in [0, 1].

    Examples:
        >>> expected_calibration_error([1, 1, 0, 1], [1.0, 1.0, 1.0, 1.0])
        0.25
    """
    curve = reliability_curve(label, probability, bins, kind)
    filled = curve.count > 0
    gap = np.abs(curve.fraction[filled] - curve.confidence[filled])
    return float(curve.count[filled] @ gap / curve.count.sum())


def fit_temperature(logit: ArrayLike, label: ArrayLike) -> float:
    """Temperature T that minimises the negative log likelihood of sigmoid(logit / T).

    Guo et al. (2017), sec. 4.2. The loss is convex in b = 1 / T with the slope mean((sigmoid(b z) - y) z),
    which grows with b; its root is bracketed and found on log T to about 1e-12.

    Edge cases: T is held within `TEMPERATURE_RANGE`. Logits that separate the classes with the right sign
    (which includes one class only, all called rightly) give the lower bound, logits with the wrong sign the
    upper one. If all logits are zero T has no effect and is 1.

    Args:
        logit: (N,), finite.
        label: (N,) of 0 and 1.

    Raises:
        DataError: if shapes differ or values are out of range.
    """
    labels = check_label(label)
    logits = check_logit(logit, labels.size)
    if not logits.any():
        return 1.0
    low, high = TEMPERATURE_RANGE

    def slope(log_temperature: float) -> float:
        return float(np.mean((expit(logits * np.exp(-log_temperature)) - labels) * logits))

    if slope(np.log(low)) <= 0:
        return low
    if slope(np.log(high)) >= 0:
        return high
    return float(np.exp(brentq(slope, np.log(low), np.log(high), xtol=1e-12)))


def choose_threshold(label: ArrayLike, probability: ArrayLike) -> float:
    """Threshold on the probability that maximises balanced accuracy, that is Youden's J.

    Candidates are the midpoints between neighbouring distinct probabilities, so the threshold does not touch
    a sample. Ties in J go to the candidate nearest to 0.5.

    Edge cases: 0.5 when one class is absent, when all probabilities are equal, or when no candidate does
    better than calling everything alike (J <= 0).

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) in [0, 1].

    Returns:
        A threshold t in (0, 1]; a sample is positive iff its probability >= t.

    Raises:
        DataError: if shapes differ or values are out of range.

    Examples:
        >>> choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9])
        0.25
    """
    labels = check_label(label)
    distinct, index = np.unique(check_probability(probability, labels.size), return_inverse=True)
    positive = np.bincount(index, labels).astype(np.int64)
    negative = np.bincount(index).astype(np.int64) - positive
    # Integers, so that ties are ties: J * positives * negatives for each cut between two distinct values.
    missed, spared = np.cumsum(positive)[:-1], np.cumsum(negative)[:-1]
    gain = spared * positive.sum() - missed * negative.sum()
    if gain.size == 0 or gain.max() <= 0:
        return 0.5
    below, above = distinct[:-1], distinct[1:]
    middle = below + (above - below) / 2
    # Between two neighbouring floats there is no midpoint; the upper one still separates them.
    candidates = np.where(middle > below, middle, above)[gain == gain.max()]
    return float(candidates[np.argmin(np.abs(candidates - 0.5))])


@dataclass(frozen=True)
class Calibration:
    """What turns a logit into a probability and a call; plain data, so that a checkpoint can carry it.

    Attributes:
        temperature: positive number T that logits are divided by; 1 leaves them alone.
        threshold: probability from which a sample is called positive, chosen on the calibrated probabilities.
        kept: whether a fitted temperature improved held-out data; if False, `temperature` is 1.
        ece_before: top-label calibration error at temperature 1; None where none was measured.
        ece_after: the same, cross-fitted with a temperature, also if that was then rejected; None where
            cross-fitting was impossible.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    kept: bool = False
    ece_before: float | None = None
    ece_after: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature: expected a finite number above 0, received {self.temperature}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: expected a probability in [0, 1], received {self.threshold}")

    def apply(self, logit: ArrayLike) -> Floats:
        """Calibrated probability sigmoid(logit / temperature), float64, in the shape of `logit`."""
        return np.asarray(expit(np.asarray(logit, dtype=np.float64) / self.temperature))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, valid as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Rebuild from :meth:`to_dict`.

        Raises:
            DataError: if a key is missing or unknown.
        """
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise DataError(f"calibration: expected the keys {sorted(expected)}, received {sorted(values)}")
        return cls(**values)


def calibrate(
    logit: ArrayLike, label: ArrayLike, group: ArrayLike | None = None, folds: int = 5, seed: int = 0
) -> Calibration:
    """Fit temperature and threshold on validation data; keep the temperature only if it helps unseen data.

    Temperature scaling can worsen calibration. So groups are dealt into folds, each fold gets probabilities
    from the temperature fitted on the other folds, and the temperature (then fitted on everything) is kept
    only if over all samples this cross-fitted top-label calibration error falls and the likelihood gets no
    worse. A temperature at a bound of `TEMPERATURE_RANGE` is never kept: validation data that happen to be
    separable would make every later probability 0 or 1.

    Edge cases: fewer groups than `folds` make fewer folds. Without `group`, or with one group, folds are made
    over samples, which is optimistic when samples resemble each other. One class only, or one sample: there
    is nothing to fit, and temperature 1 and threshold 0.5 come back.

    Args:
        logit: (N,), finite; of the validation split, never of the split that is reported.
        label: (N,) of 0 and 1.
        group: (N,) of str or int, such as the slide of each patch.
        folds: number of folds, at least 2.
        seed: of the dealing into folds, which depends on nothing else but the group names.

    Raises:
        DataError: if shapes differ or values are out of range.
        ValueError: if `folds` is below 2.
    """
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, received {folds}")
    labels = check_label(label)
    logits = check_logit(logit, labels.size)
    before = expected_calibration_error(labels, expit(logits))
    fold = _deal(group, labels.size, folds, seed)
    if labels.min() == labels.max():
        return Calibration(ece_before=before)
    cross_fitted = np.empty_like(logits)
    for index in range(fold.max() + 1):
        held_out = fold == index
        cross_fitted[held_out] = logits[held_out] / fit_temperature(logits[~held_out], labels[~held_out])
    after = expected_calibration_error(labels, expit(cross_fitted))
    worse = negative_log_likelihood(labels, cross_fitted) > negative_log_likelihood(labels, logits)
    fitted = fit_temperature(logits, labels)
    kept = after < before and not worse and fitted not in TEMPERATURE_RANGE
    temperature = fitted if kept else 1.0
    return Calibration(
        temperature=temperature,
        threshold=choose_threshold(labels, expit(logits / temperature)),
        kept=kept,
        ece_before=before,
        ece_after=after,
    )


def _deal(group: ArrayLike | None, size: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each sample (N,): shuffled groups dealt like cards, so folds differ by at most one group."""
    names = np.arange(size) if group is None else np.asarray(group)
    if names.shape != (size,):
        raise DataError(f"group: expected shape ({size},) to go with the labels, received {names.shape}")
    distinct, index = np.unique(names, return_inverse=True)
    if distinct.size == 1:
        distinct = index = np.arange(size)
    seat = np.random.default_rng(seed).permutation(distinct.size)
    return np.asarray(seat % min(folds, distinct.size))[index]
