"""The factor by which counts are too low or too high, from validation images."""

import math

import numpy as np
from numpy.typing import ArrayLike

from biocnn.metrics.conformal import check_counts


def count_factor(prediction: ArrayLike, truth: ArrayLike) -> float:
    """True cells per predicted cell, or 1 if chance alone explains that these are not as many.

    A network that is right on the average of training tiles is off by 1 or 2 % on whole images: its batch norm then has
    the statistics of all images in place of those of a batch, and tiles have more border. This is the one number that
    takes it back. It is used if the sum of all errors is larger than its standard error over images; else it would add
    more noise than it takes away. As temperature scaling, it changes no order of images and no place of a cell.

    Args:
        prediction: (n,) predicted counts of images that were not trained on; finite.
        truth: (n,) true counts, 0 or more.

    Returns:
        A positive number; 1 for fewer than three images, or if either sum is not positive.

    Raises:
        DataError: if shapes differ, or a value is not finite.
    """
    found, true = check_counts(prediction, truth)
    errors = found - true
    if len(errors) < 3 or found.sum() <= 0 or true.sum() <= 0:
        return 1.0
    standard_error = errors.std(ddof=1) * math.sqrt(len(errors))
    return float(true.sum() / found.sum()) if abs(errors.sum()) > standard_error else 1.0


def scaled_mae(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Mean absolute error in cells after :func:`count_factor`; arguments and errors as there."""
    found, true = check_counts(prediction, truth)
    return float(np.abs(found * count_factor(found, true) - true).mean())
