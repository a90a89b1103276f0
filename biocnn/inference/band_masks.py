"""The mask of a map larger than memory: a threshold, and the smallest component that counts, band by band."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

_EIGHT = np.ones((3, 3), bool)  # components of masks have connectivity 8


def call_bands(
    bands: Callable[[], Iterable[NDArray[np.float32]]], threshold: float, min_component: int = 0
) -> Iterator[NDArray[np.bool_]]:
    """What :func:`biocnn.metrics.calling.call_structure` makes of a whole map, from bands of its rows.

    Components are labelled in each band alone, and joined where bands touch. Memory is that of a band, and 16 bytes for
    each component of a band.

    Args:
        bands: gives the map from its first row to the last, (h, W), each time it is called, cut in the same way; it is
            called twice if small components are left out.
        threshold: least probability of a pixel.
        min_component: least number of pixels in its component; 0 and 1 keep all.

    Yields:
        The mask of each band, (h, W).
    """
    if min_component <= 1:
        for band in bands():
            yield band >= threshold
        return
    keep = _large_components(bands(), threshold, min_component)
    first = 0
    for band in bands():
        labels, count = ndimage.label(band >= threshold, _EIGHT)
        yield np.append(False, keep[first : first + count])[labels]
        first += count


def _large_components(bands: Iterable[NDArray[np.float32]], threshold: float, least: int) -> NDArray[np.bool_]:
    """Whether each component, numbered from 0 through all bands, belongs to one of at least so many pixels."""
    sizes, pairs = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int64)]
    total, above = 0, None  # labels of the row above, from 1; 0 is background
    for band in bands:
        labels, count = ndimage.label(band >= threshold, _EIGHT)
        sizes.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
        top = np.where(labels[0] > 0, labels[0].astype(np.int64) + total, 0)
        if above is not None:
            pairs.append(_touching(above, top))
        above = np.where(labels[-1] > 0, labels[-1].astype(np.int64) + total, 0)
        total += count
    joins = np.concatenate(pairs) - 1
    graph = sparse.coo_array((np.ones(len(joins), bool), (joins[:, 0], joins[:, 1])), shape=(total, total))
    count, component = sparse.csgraph.connected_components(graph, directed=False)
    area = np.bincount(component, weights=np.concatenate(sizes), minlength=count)
    return np.asarray(area[component] >= least)


def _touching(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of labels (N, 2), each once, that touch across two rows (W,), corners included."""
    width = len(above)
    pairs = [
        np.stack([above[max(-step, 0) : width - max(step, 0)], below[max(step, 0) : width - max(-step, 0)]], axis=1)
        for step in (-1, 0, 1)
    ]
    found = np.concatenate(pairs)
    return np.unique(found[(found > 0).all(axis=1)], axis=0)
