"""What becomes of a map larger than memory: its mask and its sum, from bands of its rows.

Bands are consecutive rows of an array, from the first to the last, (h, W) or (h, W, C), each of its own height h of at
least 1. What reads a map twice takes a function that gives its bands anew, such as
:meth:`biocnn.inference.strip_store.StripStore.bands`; they have to be the same again.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Bands = Callable[[], Iterable[np.ndarray]]

_TOUCHING = np.ones((3, 3), bool)  # connectivity 8, as of metrics.calling


def sum_bands(bands: Iterable[np.ndarray]) -> float:
    """Sum of all values in float64, such as the count of a density map; 0 without bands."""
    return math.fsum(float(band.sum(dtype=np.float64)) for band in bands)


def call_bands(bands: Bands, threshold: float, min_component: int = 0) -> Iterator[NDArray[np.bool_]]:
    """Call structure in a map, exactly as :func:`biocnn.metrics.calling.call_structure` does in the whole of it.

    The map is read once, or twice if components are dropped: first, components that meet the border of a band are
    joined across it, and their pixels counted. In memory are a band with its labels, and of every band the components
    at its border.

    Args:
        bands: gives bands (h, W) of probabilities.
        threshold: a called pixel has at least this probability.
        min_component: and at least as many pixels are in its component, of connectivity 8.

    Yields:
        (h, W) bool, the heights those of the bands.

    Raises:
        ValueError: if `min_component` is negative.
    """
    if min_component < 0:
        raise ValueError(f"min_component: expected a number of pixels, 0 or more, received {min_component}")
    if min_component <= 1:
        yield from (band >= threshold for band in bands())
        return
    borders = _borders(bands(), threshold)
    sizes = _joined_sizes(borders)
    for band, border, joined in zip(bands(), borders, sizes, strict=True):
        labels, pixels = _labelled(band, threshold)
        pixels[border.labels] = joined
        keep = pixels >= min_component
        keep[0] = False
        yield keep[labels]


class _Border(NamedTuple):
    """Components of a band that meet its first or last row, of which there are B.

    Attributes:
        labels: (B,) in the band, increasing.
        pixels: (B,) of each within the band.
        first: (W,) places in `labels` along the first row, -1 where nothing is called.
        last: the same along the last row.
    """

    labels: NDArray[np.int64]
    pixels: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def _labelled(band: np.ndarray, threshold: float) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels (h, W) of the components of a band, 0 where nothing is called, and pixels of each label."""
    labels, count = ndimage.label(band >= threshold, _TOUCHING)
    return labels, np.bincount(labels.ravel(), minlength=count + 1)


def _borders(bands: Iterable[np.ndarray], threshold: float) -> list[_Border]:
    borders = []
    for band in bands:
        labels, pixels = _labelled(band, threshold)
        rows = labels[[0, -1]]
        met = np.unique(rows[rows > 0]).astype(np.int64)
        first, last = np.where(rows > 0, np.searchsorted(met, rows), -1)
        borders.append(_Border(met, pixels[met], first, last))
    return borders


def _joined_sizes(borders: list[_Border]) -> list[NDArray[np.int64]]:
    """Pixels of the whole component of each label at a border, (B,) for each band."""
    starts = np.cumsum([0, *(len(border.labels) for border in borders)])
    links = [np.zeros((2, 0), np.int64)]
    for number, (above, below) in enumerate(pairwise(borders)):
        for shift in (-1, 0, 1):
            one = above.last[max(shift, 0) : len(above.last) + min(shift, 0)]
            other = below.first[max(-shift, 0) : len(below.first) + min(-shift, 0)]
            pairs = np.stack([one, other])[:, (one >= 0) & (other >= 0)]
            links.append(np.unique(pairs, axis=1) + starts[number : number + 2, None])
    joins = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(joins.shape[1], np.int8), tuple(joins)), shape=(starts[-1], starts[-1]))
    _, component = connected_components(graph, directed=False)
    totals = np.zeros(starts[-1], np.int64)
    for border, start in zip(borders, starts, strict=False):
        np.add.at(totals, component[start : start + len(border.labels)], border.pixels)
    return [totals[component[start:stop]] for start, stop in pairwise(starts)]
