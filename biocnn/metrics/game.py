"""Grid average mean absolute error, GAME: how well a density map counts in the cells of ever finer grids.

A uniform map with the right total has no error of the count; from GAME(1) on it has.

Reference: Guerrero-Gomez-Olmedo, Torre-Jimenez, Lopez-Sastre, Maldonado-Bascon, Onoro-Rubio: Extremely overlapping
vehicle counting. IbPRIA 2015, eq. 5.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biocnn.errors import DataError
from biocnn.metrics.points import check_points


def cell_edges(size: int, cells: int) -> NDArray[np.int64]:
    """Where `cells` half-open cells begin and end along `size` pixels: floor(k * size / cells), (cells + 1,) int64.

    Every pixel is in one cell, whether or not the sizes divide; cells of level L + 1 lie inside those of level L.
    """
    return np.arange(cells + 1) * size // cells


def grid_sums(density: ArrayLike, level: int) -> NDArray[np.float64]:
    """Sums of a density map (H, W) over 2^level x 2^level cells, in float64."""
    values = np.asarray(density, dtype=np.float64)
    for axis in (0, 1):
        edges = cell_edges(values.shape[axis], 2**level)
        total = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        values = np.diff(total.take(edges, axis), axis=axis)
    return values


def grid_counts(points: ArrayLike, shape: tuple[int, int], level: int) -> NDArray[np.float64]:
    """Numbers of points (N, 2) in 2^level x 2^level cells of a map of `shape` (H, W), by the pixels they lie in.

    Raises:
        DataError: if the points are not finite, of another shape, or outside -0.5 to H - 0.5 or W - 0.5.
    """
    counts = np.zeros((2**level, 2**level))
    places = pixels_of(points, shape)
    cell = [
        np.searchsorted(cell_edges(size, 2**level), places[:, axis], side="right") - 1
        for axis, size in enumerate(shape)
    ]
    np.add.at(counts, tuple(cell), 1)
    return counts


def game(predicted: ArrayLike, true: ArrayLike) -> list[float]:
    """GAME(0) to GAME(L) of one image: the sum over 4^l cells of |p - t|.

    It cannot fall from one level to the next, and GAME(0) is the absolute error of the count. Against dots a perfect
    map with kernels of some width does not reach 0; against the true density map it does.

    Args:
        predicted: (2^L, 2^L), as of :func:`grid_sums`.
        true: the same shape, as of :func:`grid_sums` or :func:`grid_counts`.
    """
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    result = [float(np.abs(difference).sum())]
    while len(difference) > 1:
        half = len(difference) // 2
        difference = difference.reshape(half, 2, half, 2).sum((1, 3))
        result.append(float(np.abs(difference).sum()))
    return result[::-1]


def pixels_of(points: ArrayLike, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Row and column, (N, 2) int64, of the pixels in which points (N, 2) of a map of `shape` (H, W) lie.

    Raises:
        DataError: if the points are not finite, of another shape, or outside -0.5 to H - 0.5 or W - 0.5.
    """
    places = check_points("points", points)
    if len(places) and not ((places >= -0.5) & (places <= np.array(shape) - 0.5)).all():
        raise DataError(
            f"points: expected them inside {shape[0]}x{shape[1]} pixels, from -0.5 on, received rows "
            f"{places[:, 0].min():g}..{places[:, 0].max():g}, columns {places[:, 1].min():g}..{places[:, 1].max():g}"
        )
    pixels = np.floor(places + 0.5).astype(np.int64)
    return np.clip(pixels, 0, np.array(shape, dtype=np.int64) - 1)
