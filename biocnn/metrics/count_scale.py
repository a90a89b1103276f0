"""The factor by which counts are too low or too high, from validation images."""

import math

import numpy as np
from numpy.typing import ArrayLike

from biocnn.metrics.conformal import check_counts

LIMITS = (0.8, 1.25)
"""A network that is further off has not learned to count: a factor would only hide it."""


def count_factor(prediction: ArrayLike, truth: ArrayLike) -> float:
    """True cells per predicted cell; 1 if they differ by less than a standard error, or by more than a factor may.

    A network that is right on the average of training tiles is off by 1 or 2 % on whole images: its batch norm then has
    the statistics of all images in place of those of a batch, and tiles have more border. This is the one number that
    takes it back. It is used if the sum of all errors is larger than its standard error over images, as it is by chance
    in a third of cases; below that it would add more noise than it takes away. Images have to be independent: give one
    of several from one slide or culture. An interval that is fitted on the same images is the slightest bit too narrow.
    As temperature scaling, the factor changes no order of images and no place of a cell.

    Args:
        prediction: (n,) predicted counts of images that were not trained on; finite.
        truth: (n,) true counts, 0 or more.

    Returns:
        A number within :data:`LIMITS`; 1 if it were outside, and for fewer than three images.

    Raises:
        DataError: if shapes differ, or a value is not finite.
    """
    found, true = check_counts(prediction, truth)
    errors = found - true
    if len(errors) < 3 or found.sum() <= 0 or true.sum() <= 0:
        return 1.0
    standard_error = errors.std(ddof=1) * math.sqrt(len(errors))
    factor = float(true.sum() / found.sum())
    return factor if abs(errors.sum()) > standard_error and LIMITS[0] <= factor <= LIMITS[1] else 1.0


def scaled_mae(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Mean absolute error in cells after :func:`count_factor`; arguments and errors as there."""
    found, true = check_counts(prediction, truth)
    return float(np.abs(found * count_factor(found, true) - true).mean())
