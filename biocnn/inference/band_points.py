"""Points of a density map larger than memory, from bands of its rows, see :mod:`biocnn.inference.bands`."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from biocnn.errors import DataError
from biocnn.inference.bands import Bands, sum_bands
from biocnn.inference.peaks import _check, _peaks, _thin
from biocnn.networks.resolution import output_stride_of
from biocnn.tasks.counting import CountingTask, kernel_width

_TRUNCATE = 4.0  # standard deviations after which a Gaussian ends, scipy's default
_PLATEAU = 64  # rows of the highest plateau that is sure to give one point, as in the whole map


def points_of_bands(
    task: CountingTask, bands: Bands, pixel_size_um: Sequence[float] | None = None
) -> NDArray[np.float32] | None:
    """Points (N, 2) as of :func:`biocnn.inference.counting.density_points` in the whole map; it is read twice.

    Args:
        task: whose network made the map.
        bands: gives bands (h, W) of the density, cells per pixel.
        pixel_size_um: of the image, row and column, for kernels whose width is in micrometres.

    Returns:
        Row and column in pixels, strongest first; None if the width of the training's kernels is not known.
    """
    sigma, stride = kernel_width(task.data_description, pixel_size_um), output_stride_of(task.network)
    if sigma is None:
        return None
    smooth = stride / 2 if stride > 1 else 0.0
    most = max(round(sum_bands(bands())), 0)
    return find_peaks_in_bands(bands(), sigma, min_distance=sigma, smooth=smooth, count=most, refine=True)


def find_peaks_in_bands(
    bands: Iterable[np.ndarray],
    sigma: float | tuple[float, float],
    min_distance: float = 1.0,
    threshold: float = 0.25,
    *,
    smooth: float = 0.0,
    count: int | None = None,
    refine: bool = False,
) -> NDArray[np.float32]:
    """The peaks that :func:`biocnn.inference.peaks.find_peaks` finds in the whole map.

    Peaks are searched band by band, with rows of the bands above and below as far as the filter reaches; which of them
    are kept is decided among all. In memory are three bands, and all peaks. A plateau of more than 64 rows may give a
    point for each band that it meets, but in a density map equal pixels above zero hardly ever touch.

    Args:
        bands: (h, W) float, cells per pixel.
        sigma: as there.
        min_distance: as there.
        threshold: as there.
        smooth: as there.
        count: as there.
        refine: as there.

    Returns:
        (N, 2) float32, row and column; (0, 2) without bands.

    Raises:
        ValueError: if an argument is out of its range.
        DataError: if the map has values that are not finite.
    """
    widths = _check(sigma, min_distance, threshold, smooth, count)
    lone = 1 / (2 * math.pi * math.hypot(widths[0], smooth) * math.hypot(widths[1], smooth))
    reach = int(_TRUNCATE * smooth + 0.5) + 1
    points, heights = [np.zeros((0, 2))], [np.zeros(0)]
    for window, start, own in with_margin(bands, reach + _PLATEAU):
        if not np.isfinite(window).all():
            raise DataError(
                f"The density map has values that are not finite in rows {start} to {start + len(window) - 1}. Look "
                "for such values in the image and in the weights; with half precision, predict with single."
            )
        values: NDArray[np.floating] = window.astype(
            np.float64 if window.dtype == np.float64 else np.float32, copy=False
        )
        if smooth > 0:
            values = ndimage.gaussian_filter(values, smooth, mode="reflect", truncate=_TRUNCATE)
        places, height = _peaks(values, threshold * lone, refine)
        inside = (places[:, 0] >= own.start) & (places[:, 0] < own.stop)
        points.append(places[inside] + (start, 0))
        heights.append(height[inside])
    order = np.argsort(-np.concatenate(heights), kind="stable")
    kept = _thin(np.concatenate(points)[order], min_distance)
    return kept[:count].astype(np.float32)


def with_margin(bands: Iterable[np.ndarray], margin: int) -> Iterator[tuple[np.ndarray, int, slice]]:
    """Windows of rows that have `margin` rows, or the end of the array, on either side of rows of their own.

    Args:
        bands: (h, W).
        margin: in rows, 0 or more.

    Yields:
        Window (h, W), the row at which it starts, and its own rows in it; own rows follow each other.

    >>> [(len(window), start, own) for window, start, own in with_margin([np.zeros((4, 1))] * 2, 1)]
    [(4, 0, slice(0, 3, None)), (6, 2, slice(1, 5, None)), (2, 6, slice(1, 2, None))]
    """
    window, start, done = None, 0, 0
    for band in bands:
        window = band if window is None else np.concatenate([window, band])
        stop = start + len(window) - margin
        if stop > done:
            yield window, start, slice(done - start, stop - start)
            start, done, window = max(stop - margin, start), stop, window[max(stop - margin - start, 0) :]
    if window is not None and done < start + len(window):
        yield window, start, slice(done - start, len(window))
