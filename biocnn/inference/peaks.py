"""Points from a density map: its peaks.

Notation: N points, (row, column) in pixels; whole numbers are centres of pixels.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.morphology import local_maxima

from biocnn.errors import DataError

_NEIGHBOURS = np.ones((3, 3), bool)
_FLOOR = 1e-3  # of the peak, under which a neighbour counts as this: the logarithm of nothing is no position


def find_peaks(
    density: ArrayLike,
    sigma: float | tuple[float, float],
    min_distance: float = 1.0,
    threshold: float = 0.25,
    *,
    smooth: float = 0.0,
    count: int | None = None,
    refine: bool = False,
) -> NDArray[np.float32]:
    """The peaks of a density map, strongest first.

    A peak is a pixel that is higher than all of its eight neighbours, or a plateau of connected pixels that is higher
    than all around it, which gives one point, its centre of mass. At the border, where there are fewer neighbours,
    cells are found likewise: to leave out a border as wide as the distance, as
    :func:`skimage.feature.peak_local_max` does, drops 6 to 9 cells of an image with 176.

    Cells nearer to each other than about two standard deviations of their kernels share one peak, so there are fewer
    peaks than the sum of the map says: on the true maps of 50 VGG images (median distance to the nearest neighbour 8.5
    pixels), 98 % for a width of 1, 91 % for 2 and 80 % for 3, with an F1 of 0.990, 0.957 and 0.891 within 3 pixels
    (`tests/inference/test_peaks.py`). Keep the width under a quarter of the distance when points are wanted. The sum
    is the better count.

    Args:
        density: (H, W) float, cells per pixel; below zero is allowed.
        sigma: standard deviation of the kernels of the map in pixels, one number or (row, column). A lone cell is
            ``1 / (2 pi sigma^2)`` high, which is the unit of the threshold.
        min_distance: of two points in pixels; of those nearer to each other the stronger is kept. 1 keeps all peaks.
        threshold: least height of a peak in units of a lone cell, 0 or more; peaks have to be above zero too. A cell
            whose kernel is mirrored at the border is up to four times as high as a lone one.
        smooth: standard deviation in pixels of a Gaussian, mirrored at the border, that is applied first; it widens
            the kernels, which the unit of the threshold follows. For noisy maps, and for those that are constant in
            cells of several pixels.
        count: greatest number of points, of which the strongest are kept, such as the rounded sum of the map; all
            peaks by default. No points are made up where there are fewer peaks.
        refine: place a peak of a single pixel at the vertex of a parabola through the logarithms of it and its two
            neighbours along each axis, which is exact for a lone Gaussian; not along an axis on which it lies on the
            border.

    Returns:
        (N, 2) float32, row and column; (0, 2) for an empty, constant or blank map.

    Raises:
        ValueError: if an argument is out of its range, or the map has not two axes.
        DataError: if the map has values that are not finite.

    Example:
        >>> density = np.zeros((5, 7))
        >>> density[0, 0], density[3, 2:4] = 0.2, 0.1
        >>> find_peaks(density, sigma=1)
        array([[0. , 0. ],
               [3. , 2.5]], dtype=float32)
    """
    widths = _check(sigma, min_distance, threshold, smooth, count)
    values = np.asarray(density)
    if values.ndim != 2:
        raise ValueError(f"A density map is (H, W), received {values.shape}; maps of a batch are searched one by one.")
    values = values.astype(np.float64 if values.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(values).all():
        raise DataError(
            f"The density map has {int((~np.isfinite(values)).sum())} values that are not finite. Look for such values "
            "in the image and in the weights; with half precision, predict with single."
        )
    if values.size == 0:
        return np.zeros((0, 2), np.float32)
    if smooth > 0:
        values = ndimage.gaussian_filter(values, smooth, mode="reflect")
    lone = 1 / (2 * math.pi * math.hypot(widths[0], smooth) * math.hypot(widths[1], smooth))
    points, heights = _peaks(values, threshold * lone, refine)
    order = np.argsort(-heights, kind="stable")  # of equal ones the first in reading order
    points = _thin(points[order], min_distance)
    return points[:count].astype(np.float32)


def _check(
    sigma: float | tuple[float, float], min_distance: float, threshold: float, smooth: float, count: int | None
) -> tuple[float, float]:
    rows, columns = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    if not (0 < rows < math.inf and 0 < columns < math.inf):
        raise ValueError(f"sigma must be positive, the width of the kernels in pixels, received {sigma}.")
    for name, value in {"min_distance": min_distance, "threshold": threshold, "smooth": smooth}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more and finite, received {value}.")
    if count is not None and count < 0:
        raise ValueError(f"count must be None or 0 or more, received {count}.")
    return rows, columns


def _peaks(values: NDArray[np.floating], least: float, refine: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (N, 2) and heights (N,) of all peaks above zero and at least `least` high, in reading order."""
    maxima = local_maxima(values, connectivity=2)  # at the border too; none in a constant map
    maxima &= (values >= least) & (values > 0)
    labels, number = ndimage.label(maxima, structure=_NEIGHBOURS)
    rows, columns = np.nonzero(labels)
    label = labels[rows, columns] - 1
    pixels = np.bincount(label, minlength=number)
    points = np.stack([np.bincount(label, places, number) / pixels for places in (rows, columns)], axis=1)
    heights = np.zeros(number)
    heights[label] = values[rows, columns]
    if refine:
        single = np.flatnonzero(pixels == 1)
        points[single] += _offsets(values, points[single].astype(np.int64))
    return points, heights


def _offsets(values: NDArray[np.floating], peaks: NDArray[np.int64]) -> NDArray[np.float64]:
    """From the centres of peaks (N, 2) of one pixel to the vertices of their parabolas, within half a pixel."""
    offsets = np.zeros(peaks.shape)
    top = values[peaks[:, 0], peaks[:, 1]].astype(np.float64)
    for axis in range(2):
        inner = (peaks[:, axis] > 0) & (peaks[:, axis] < values.shape[axis] - 1)
        step = np.eye(2, dtype=np.int64)[axis]
        # Relative to the peak, whose own logarithm is then 0; neighbours are lower, so theirs are negative.
        before, after = (
            np.log(np.maximum(values[tuple((peaks[inner] + side * step).T)] / top[inner], _FLOOR)) for side in (-1, 1)
        )
        offsets[inner, axis] = 0.5 * (before - after) / (before + after)
    return offsets


def _thin(points: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    """Without those that are nearer than `distance` to an earlier one that is kept."""
    if len(points) < 2 or distance <= 0:
        return points
    # Just less, as points at exactly the distance are far enough.
    pairs = cKDTree(points).query_pairs(np.nextafter(distance, 0), output_type="ndarray")
    kept = np.ones(len(points), bool)
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        if kept[first]:
            kept[second] = False
    return points[kept]
