"""Floors of counting: what a report has to beat, made of the training images alone.

A network that counts no better than a straight line through the summed intensity has learned nothing about cells.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError
from biocnn.metrics.conformal import check_counts

# Two images fix a line; a third is the least that can tell one channel from another.
LEAST_IMAGES = 3


@dataclass(frozen=True)
class IntensityFloor:
    """The line count = intercept + slope * intensity of one channel.

    Attributes:
        channel: which.
        slope: cells per unit of the intensity.
        intercept: cells.
        mae_left_out: mean absolute error of training images, each by the line through all others, in cells.
    """

    channel: int
    slope: float
    intercept: float
    mae_left_out: float

    def predict(self, intensity: ArrayLike) -> NDArray[np.float64]:
        """Counts (N,) for intensities (N, C) as those of the training images; below 0 they are not cut.

        Raises:
            DataError: if the shape is another, or there are too few channels.
        """
        values = np.asarray(intensity, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] <= self.channel:
            raise DataError(f"intensity: expected (N, C) with C above {self.channel}, received shape {values.shape}")
        return self.intercept + self.slope * values[:, self.channel]


def constant_floor(train_counts: ArrayLike) -> float:
    """The mean count of the training images, as a prediction for every image.

    Raises:
        DataError: if there is no count, or one is negative or not finite.
    """
    _, counts = check_counts(train_counts, train_counts)
    return float(counts.mean())


def summed_intensity(image: ArrayLike) -> NDArray[np.float64]:
    """Sum (C,) over the pixels of each channel of an image (H, W, C) or (H, W), in float64.

    For images of one size. Where sizes differ the intercept stands for less or more background; a line through their
    sums is a floor all the same.

    Raises:
        DataError: if it does not have 2 or 3 axes, or is empty.
    """
    values = np.asarray(image)
    if values.ndim not in (2, 3) or not values.size:
        raise DataError(f"image: expected shape (H, W) or (H, W, C), not empty, received {values.shape}")
    return np.atleast_1d(values.sum(axis=(0, 1), dtype=np.float64))


def intensity_floor(intensity: ArrayLike, train_counts: ArrayLike) -> IntensityFloor:
    """Least squares of the count on the summed intensity, by the channel that predicts left-out images best.

    The errors of left-out images have a closed form, e_i / (1 - h_i) with h_i the leverage (Cook, Weisberg: Residuals
    and influence in regression. 1982, section 2.2), so that no line is fitted twice.

    Args:
        intensity: (N, C), as of :func:`summed_intensity`, of N >= 3 training images.
        train_counts: (N,), 0 or more.

    Returns:
        The line; its slope is 0 and the intercept the mean if no channel varies. Of equal channels, the first.

    Raises:
        DataError: if shapes do not fit, a value is not finite, or there are fewer than 3 images.
    """
    _, counts = check_counts(train_counts, train_counts)
    values = np.asarray(intensity, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != len(counts) or not values.shape[1]:
        raise DataError(f"intensity: expected ({len(counts)}, C) to go with the counts, received {values.shape}")
    if len(counts) < LEAST_IMAGES:
        raise DataError(f"expected at least {LEAST_IMAGES} training images for a line, received {len(counts)}")
    if not np.isfinite(values).all():
        raise DataError("intensity: expected finite sums, received nan or infinity")
    lines = [_line(channel, values[:, channel], counts) for channel in range(values.shape[1])]
    return min(lines, key=lambda line: line.mae_left_out)


def _line(channel: int, intensity: NDArray[np.float64], counts: NDArray[np.float64]) -> IntensityFloor:
    centred = intensity - intensity.mean()
    squares = float(centred @ centred)
    # A channel that is constant but for rounding tells nothing.
    if squares <= 1e-18 * float(intensity @ intensity):
        squares, centred = 1.0, np.zeros_like(centred)
    slope = float(centred @ counts) / squares
    leverage = 1 / len(counts) + centred**2 / squares
    error = counts - counts.mean() - slope * centred
    # A single image away from all others has leverage 1: without it there is no slope, and the mean predicts it.
    alone = leverage > 1 - 1e-12
    without = (counts.sum() - counts) / (len(counts) - 1)
    left_out = np.where(alone, counts - without, error / np.where(alone, 1.0, 1 - leverage))
    intercept = float(counts.mean() - slope * intensity.mean())
    return IntensityFloor(channel, slope, intercept, float(np.abs(left_out).mean()))
