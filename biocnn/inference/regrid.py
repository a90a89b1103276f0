"""From the grid of the network back to that of the image, band by band: maps and densities.

Both grids begin at the same corner. Along an axis n source pixels, each as long as `scale` target pixels, become m
target pixels; n * scale may differ from m by half a source pixel, as :func:`biocnn.data.lazy_images.resampled` rounds
shapes: the last source pixel is taken to end where the target ends.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Kind = Literal["value", "amount"]
"""What a pixel holds: a value, such as a probability, which is averaged; or an amount, such as cells, which is shared
out, so that the sum stays."""
Pair = tuple[float, float]


def axis_weights(source: int, target: int, scale: float, kind: Kind) -> sparse.csr_array:
    """Weights (m, n) that take an axis of n pixels to one of m.

    Amounts, and values on a coarser grid, go by the overlap of the pixels (first-order conservative remapping, Jones
    1999, Monthly Weather Review 127, 2204-2210); values on a finer grid by linear interpolation between centres.

    Args:
        source: n.
        target: m.
        scale: length of a source pixel in target pixels.
        kind: of what pixels hold.

    Returns:
        float64; rows of a value sum to 1, columns of an amount do.

    Examples:
        >>> axis_weights(2, 4, 2.0, "amount").toarray()[:, 0].tolist()
        [0.5, 0.5, 0.0, 0.0]
        >>> axis_weights(2, 4, 2.0, "value").toarray()[1].tolist()
        [0.75, 0.25]
    """
    if kind == "value" and scale > 1:
        centre = np.clip((np.arange(target) + 0.5) / scale - 0.5, 0, source - 1)
        below = np.minimum(centre.astype(np.int64), max(source - 2, 0))
        share = centre - below
        rows, columns = np.tile(np.arange(target), 2), np.concatenate([below, np.minimum(below + 1, source - 1)])
        return sparse.csr_array((np.concatenate([1 - share, share]), (rows, columns)), shape=(target, source))
    ends = np.append(np.arange(source) * scale, target)
    edges = np.unique(np.concatenate([ends, np.arange(target + 1.0)]))
    middle, overlap = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    rows, columns = middle.astype(np.int64), np.searchsorted(ends, middle) - 1
    weights = overlap / np.diff(ends)[columns] if kind == "amount" else overlap
    return sparse.csr_array((weights, (rows, columns)), shape=(target, source))


def regrid_bands(
    bands: Iterable[np.ndarray], source: tuple[int, int], target: tuple[int, int], scale: Pair, kind: Kind
) -> Iterator[NDArray[np.float32]]:
    """Take an array to another grid while its rows come in; memory holds a band and a few rows.

    Args:
        bands: consecutive rows (h, W) of the source, from first to last.
        source: (H, W) of all of it.
        target: rows and columns of the other grid.
        scale: rows and columns of the target along a pixel of the source.
        kind: of what pixels hold.

    Yields:
        Consecutive rows of the target, (h, columns); none for a band that completes no row.
    """
    down, across = (axis_weights(n, m, step, kind) for n, m, step in zip(source, target, scale, strict=True))
    last_needed = np.maximum.reduceat(down.indices, down.indptr[:-1])
    first_needed = np.minimum.reduceat(down.indices, down.indptr[:-1])
    kept = np.zeros((0, target[1]))
    first = done = 0  # source row of the first kept one, target rows that are out
    for band in bands:
        kept = np.concatenate([kept, (across @ np.asarray(band, np.float64).T).T])
        ready = int(np.searchsorted(last_needed, first + len(kept)))
        if ready > done:
            yield (down[done:ready, first : first + len(kept)] @ kept).astype(np.float32)
            done = ready
        if done < target[0]:
            drop = int(first_needed[done]) - first
            kept, first = kept[drop:], first + drop


def regrid(values: np.ndarray, target: tuple[int, int], scale: Pair, kind: Kind) -> NDArray[np.float32]:
    """Take an array (H, W) to another grid, see :func:`regrid_bands`."""
    return np.concatenate(list(regrid_bands([values], (values.shape[0], values.shape[1]), target, scale, kind)))


def move_points(points: NDArray[np.floating], target: tuple[int, int], scale: Pair) -> NDArray[np.float32]:
    """Points (N, 2), row and column with whole numbers at centres of pixels, on another grid; none leaves it."""
    moved = (np.asarray(points, np.float64) + 0.5) * scale - 0.5
    return np.clip(moved, -0.5, np.array(target) - 0.5).astype(np.float32)
