"""Overlap of a predicted mask with the truth, as plain functions of one image.

Notation: `prediction` and `truth` are masks of one image, bool, (H, W) or (D, H, W), True on the structure
(vessel, neurite, membrane); `valid` has the same shape and is False where pixels must not count (outside the
field of view, padding); None counts all of them.

Rule for what is undefined, here and in the other metrics of masks: a number whose denominator is zero is nan,
never a number that could be averaged by mistake. So without a structure in the truth, and none predicted, Dice
and IoU are nan; whoever averages over images says how many were undefined. With a structure in one of the two
only, they are 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError
from biocnn.metrics.binary import auroc

Mask = NDArray[np.bool_]


def check_mask(name: str, value: ArrayLike, shape: tuple[int, ...] | None = None) -> Mask:
    """Return `value` as a bool array of two or three dimensions.

    Args:
        name: of the mask, for messages.
        value: bool, or numbers that are 0 and 1 only.
        shape: what is expected; None takes any (H, W) or (D, H, W).

    Raises:
        DataError: if it is empty, of another shape, or holds anything but 0 and 1.
    """
    mask = np.asarray(value)
    if shape is not None and mask.shape != shape:
        raise DataError(f"{name}: expected shape {shape} as the others, received {mask.shape}")
    if mask.ndim not in (2, 3) or mask.size == 0:
        raise DataError(f"{name}: expected a mask of one image, (H, W) or (D, H, W), received shape {mask.shape}")
    if mask.dtype == np.bool_:
        return mask
    found = np.unique(mask)
    if not np.isin(found, (0, 1)).all():
        raise DataError(
            f"{name}: expected bool, or 0 and 1, received {found[:5].tolist()}; "
            "threshold probabilities first, and decode grey values, such as `mask > 127`"
        )
    return mask.astype(np.bool_)


def check_pair(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> tuple[Mask, Mask, Mask]:
    """Return prediction, truth and valid as bool arrays of one shape; `valid` is all True where it is None.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.
    """
    truth = check_mask("truth", truth)
    prediction = check_mask("prediction", prediction, truth.shape)
    valid = np.ones(truth.shape, dtype=np.bool_) if valid is None else check_mask("valid", valid, truth.shape)
    if not valid.any():
        raise DataError(f"valid: expected at least one pixel that counts, received none of {valid.size}")
    return prediction, truth, valid


def restrict(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> tuple[Mask, Mask]:
    """Return prediction and truth with everything outside `valid` made background.

    This is what metrics of shape do with `valid`: a structure ends where validity ends.

    Raises:
        DataError: as :func:`check_pair`.
    """
    prediction, truth, inside = check_pair(prediction, truth, valid)
    return prediction & inside, truth & inside


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


@dataclass(frozen=True)
class Confusion:
    """Counts of valid pixels; counts of several images add up with `+`, which gives the pooled numbers.

    All ratios lie in [0, 1] and higher is better; nan where the denominator is zero.

    Attributes:
        true_positive: structure, and predicted.
        false_positive: background, but predicted.
        false_negative: structure, but not predicted.
        true_negative: background, and not predicted.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN): Dice (1945), Ecology 26:297; equal to the F1 score."""
        twice = 2 * self.true_positive
        return _ratio(twice, twice + self.false_positive + self.false_negative)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN): intersection over union, the Jaccard index."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN), the share of the structure that was found; nan without structure."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), the share of the background that was left alone; nan without background."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all valid pixels; on thin structures, mostly the share of background."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)

    def ratios(self) -> dict[str, float]:
        """Dice, IoU, sensitivity, specificity and accuracy by name."""
        return {
            "dice": self.dice,
            "iou": self.iou,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "accuracy": self.accuracy,
        }


def confusion(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> Confusion:
    """Count valid pixels of one image by what they are and what they were called.

    Args:
        prediction: (H, W) or (D, H, W) bool.
        truth: the same shape, bool.
        valid: the same shape, bool; None counts every pixel.

    Raises:
        DataError: if shapes differ, a mask holds anything but 0 and 1, or no pixel is valid.

    Examples:
        >>> confusion([[1, 1], [0, 0]], [[1, 0], [0, 0]]).dice
        0.6666666666666666
        >>> confusion([[0, 0]], [[0, 0]]).dice
        nan
        >>> confusion([[1, 0]], [[0, 0]]).dice
        0.0
    """
    prediction, truth, inside = check_pair(prediction, truth, valid)
    both = int(np.count_nonzero(prediction & truth & inside))
    predicted = int(np.count_nonzero(prediction & inside))
    there = int(np.count_nonzero(truth & inside))
    total = int(np.count_nonzero(inside))
    return Confusion(both, predicted - both, there - both, total - predicted - there + both)


def overlap_scores(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> dict[str, float]:
    """Dice, IoU, sensitivity, specificity and accuracy of one image; see :class:`Confusion`.

    Arguments and errors as in :func:`confusion`.
    """
    return confusion(prediction, truth, valid).ratios()


def auroc_inside(score: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Area under the ROC curve over the valid pixels of one image, exact; higher is better.

    Args:
        score: (H, W) or (D, H, W), probability or logit, anything but nan inside `valid`.
        truth: the same shape, bool.
        valid: the same shape, bool; None counts every pixel.

    Returns:
        A number in [0, 1]; nan where the valid pixels are all of one class.

    Raises:
        DataError: if shapes differ, a score is nan, or no pixel is valid.

    Examples:
        >>> auroc_inside([[0.1, 0.4], [0.35, 0.8]], [[0, 0], [1, 1]])
        0.75
    """
    scores = np.asarray(score)
    _, truth, inside = check_pair(np.zeros(scores.shape, dtype=np.bool_), truth, valid)
    return auroc(truth[inside], scores[inside])
