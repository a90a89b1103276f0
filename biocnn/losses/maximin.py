"""Maximin paths in windows: which pixel decides whether two others are connected.

Pixels have a height. A path is as high as its lowest pixel, ends included; of two pixels, the maximin path is the
highest that leads from one to the other by steps along rows and columns, and its lowest pixel decides the pair. Pixels
are put in one by one, the highest first, and joined by union-find: the pixel that joins two parts decides all pairs
between them (Kruskal on the maximum spanning tree, as in Turaga et al.: Maximin affinity learning of image
segmentation. NIPS 2009). Of two pixels of the same height the one that comes first in its window, by rows, counts as
higher, so that the result is determined.

Compiled by numba at the first call, which takes seconds; the code is kept on disk for the next process.

Notation: N pictures, each (H, W); windows of (h, w).
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from biocnn.compiled import compiled

# A sorting key holds, from the highest bit: not counted, near, height (32 bits), place in the window (30 bits).
_PLACE_BITS, _NEAR_BIT, _NOT_COUNTED_BIT = np.uint64(30), np.uint64(62), np.uint64(63)
_PLACE = np.uint64((1 << 30) - 1)


def window_starts(size: int, window: int) -> NDArray[np.int64]:
    """First pixels of the fewest windows that cover an axis, spread evenly; they overlap if they do not fit.

    Args:
        size: of the axis, in pixels, positive.
        window: in pixels, positive; cut to the size of the axis.

    Returns:
        (ceil(size / window),) int64, from 0 to ``size - window``.
    """
    window = min(window, size)
    count = -(-size // window)
    return np.arange(count) * (size - window) // max(count - 1, 1)


def pair_weights(
    height: NDArray[np.float32],
    near: NDArray[np.bool_],
    background: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    window: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """The share of the pairs that every pixel decides, on average over the windows that have pairs.

    A counted pixel that is not near a structure is an end point. Two end points of a window belong together if they
    are connected by end points ("same"), and they are apart if they are not even connected by background ("apart").
    Pairs that belong together are decided among end points. For pairs that are apart the end points are open, higher
    than all others, so a near pixel decides.

    Args:
        height: (N, H, W), 0 or more, finite.
        near: (N, H, W), pixels on a structure, or too near to it to be an end point.
        background: (N, H, W), where two end points may be connected by truth.
        counted: (N, H, W), False for pixels that are on no path.
        window: h and w, in pixels, positive; cut to the size of the picture.

    Returns:
        Weights for pairs that are apart, and for pairs that belong together, each (N, H, W), of sum 1 in a picture, or
        0 if it has no such pair; and the numbers of windows with pairs of the two kinds, (N, 2).
    """
    rows, columns = height.shape[1:]
    shape = min(window, rows), min(window, columns)
    starts = window_starts(rows, window), window_starts(columns, window)
    # A place is an index into a window with a frame of one pixel around it: neighbours then need no bounds.
    place = np.arange(1, shape[0] + 1)[:, None] * (shape[1] + 2) + np.arange(1, shape[1] + 1)
    order, sizes = _sorted_places(_cut(_keys(height, near, counted), starts, shape), place.ravel())
    passable = np.zeros((len(order), (shape[0] + 2) * (shape[1] + 2)), np.bool_)
    passable[:, place.ravel()] = _cut(background, starts, shape)
    corners = np.stack(np.meshgrid(np.arange(len(height)), *starts, indexing="ij"), -1).reshape(-1, 3)
    apart, same = np.zeros((2, *height.shape), np.float32)
    windows = np.zeros((len(height), 2), np.int64)
    _all_windows(order, sizes, passable, corners, shape[1] + 2, apart, same, windows)
    for weights, number in zip((apart, same), windows.T, strict=True):
        weights /= np.maximum(number, 1)[:, None, None]
    return apart, same, windows


def _cut(
    values: NDArray[Any], starts: tuple[NDArray[np.int64], NDArray[np.int64]], shape: tuple[int, int]
) -> NDArray[Any]:
    """The windows of (N, H, W), (windows, h w), a copy."""
    views = sliding_window_view(values, shape, (1, 2))[:, starts[0]][:, :, starts[1]]
    return views.reshape(-1, shape[0] * shape[1])


def _keys(height: NDArray[np.float32], near: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Keys that sort end points first, then near pixels, then what is not counted, and the highest first in each."""
    # Floats of 0 or more sort like the integers of the same bits; `+ 0` makes 0 of -0.
    bits = (np.ascontiguousarray(height, np.float32) + np.float32(0)).view(np.uint32)
    return (
        ((~bits).astype(np.uint64) << _PLACE_BITS)
        | (near.astype(np.uint64) << _NEAR_BIT)
        | ((~counted).astype(np.uint64) << _NOT_COUNTED_BIT)
    )


def _sorted_places(keys: NDArray[np.uint64], place: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of every window, sorted, (windows, h w), and how many of them are end points, and counted, (windows, 2).

    `keys` is overwritten.
    """
    keys |= place.astype(np.uint64)
    # Vectorised in numpy: three times as fast as sorting in the compiled loop.
    keys.sort(axis=-1)
    sizes = np.stack([np.count_nonzero(keys >> bit == 0, -1) for bit in (_NEAR_BIT, _NOT_COUNTED_BIT)], -1)
    keys &= _PLACE
    return keys.view(np.int64), sizes


@compiled
def _find(parent: NDArray[np.int64], place: int) -> int:
    """The root of the part that a place belongs to, halving the way to it."""
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = parent[place]
    return place


@compiled
def _join_ends(
    order: NDArray[np.int64],
    steps: NDArray[np.int64],
    parent: NDArray[np.int64],
    size: NDArray[np.int64],
    decided: NDArray[np.int64],
) -> int:
    """Put in the end points, count the pairs that each decides, and return the number of all pairs.

    Afterwards the parts are the regions. `parent` is -1 for places not yet put in; `size` holds the end points of the
    part at its root.
    """
    pairs = 0
    for place in order:
        root, joined = place, 0
        parent[place], size[place] = place, 1
        for step in steps:
            if parent[place + step] >= 0:
                other = _find(parent, place + step)
                if other != root:
                    joined += size[root] * size[other]
                    if size[other] > size[root]:
                        root, other = other, root
                    parent[other] = root
                    size[root] += size[other]
        decided[place] = joined
        pairs += joined
    return pairs


@compiled
def _count_regions(
    order: NDArray[np.int64],
    steps: NDArray[np.int64],
    parent: NDArray[np.int64],
    size: NDArray[np.int64],
    passable: NDArray[np.bool_],
    row: NDArray[np.int64],
) -> NDArray[np.int64]:
    """End points of every part in every true region, (parts, regions); `row` at the root of a part is its number.

    Parts that are connected by background are one region. It erases `passable`.
    """
    parts = 0
    for place in order:
        if parent[place] == place:
            row[place] = parts
            parts += 1
    if parts < 2:
        return np.zeros((0, 0), np.int64)
    region = np.empty(parts, np.int64)
    regions = 0
    stack = np.empty(passable.size, np.int64)
    for start in order:
        if not passable[start]:
            continue
        passable[start] = False
        stack[0], filled = start, 1
        while filled:
            filled -= 1
            place = stack[filled]
            if parent[place] == place:
                region[row[place]] = regions
            for step in steps:
                if passable[place + step]:
                    passable[place + step] = False
                    stack[filled] = place + step
                    filled += 1
        regions += 1
    counts = np.zeros((parts, regions), np.int64)
    for place in order:
        if parent[place] == place:
            counts[row[place], region[row[place]]] = size[place]
    return counts


@compiled
def _join_regions(
    order: NDArray[np.int64],
    steps: NDArray[np.int64],
    parent: NDArray[np.int64],
    row: NDArray[np.int64],
    counts: NDArray[np.int64],
    decided: NDArray[np.int64],
) -> int:
    """Put in the near pixels, count the pairs that are apart that each decides, and return their number."""
    total = np.zeros(len(counts), np.int64)
    ends, together = 0, 0
    for region in range(counts.shape[1]):
        region_size = 0
        for part in range(len(counts)):
            total[part] += counts[part, region]
            region_size += counts[part, region]
        ends += region_size
        together += region_size * region_size
    left = (ends * ends - together) // 2
    for place in order:
        decided[place] = 0
    pairs = 0
    for place in order:
        root = place
        parent[place], row[place] = place, -1
        joined = 0
        for step in steps:
            if parent[place + step] >= 0:
                other = _find(parent, place + step)
                if other != root:
                    mine, yours = row[root], row[other]
                    if mine >= 0 and yours >= 0:
                        joined += total[mine] * total[yours]
                        total[mine] += total[yours]
                        for region in range(counts.shape[1]):
                            joined -= counts[mine, region] * counts[yours, region]
                            counts[mine, region] += counts[yours, region]
                    parent[root] = other
                    root = other
                    row[root] = mine if mine >= 0 else yours
        decided[place] = joined
        pairs += joined
        if pairs == left:
            break
    return pairs


@compiled
def _all_windows(
    order: NDArray[np.int64],
    sizes: NDArray[np.int64],
    passable: NDArray[np.bool_],
    corners: NDArray[np.int64],
    frame: int,
    apart: NDArray[np.float32],
    same: NDArray[np.float32],
    windows: NDArray[np.int64],
) -> None:
    """Add up `apart` and `same` of :func:`pair_weights` over the windows, and count them in `windows`.

    `corners` holds picture, row and column of the windows, (windows, 3), and `frame` is the width of a framed window.
    """
    # Plain loops throughout: array expressions take three times as long to compile.
    steps = np.array([-frame, -1, 1, frame])
    places = passable.shape[1]
    parent, size = np.empty(places, np.int64), np.empty(places, np.int64)
    row, decided = np.empty(places, np.int64), np.empty(places, np.int64)
    for number in range(len(order)):
        ends, near = order[number, : sizes[number, 0]], order[number, sizes[number, 0] : sizes[number, 1]]
        for place in range(places):
            parent[place] = -1
        pairs = _join_ends(ends, steps, parent, size, decided)
        if pairs > 0:
            windows[corners[number, 0], 1] += 1
            _add_shares(ends, decided, pairs, corners[number], frame, same)
        counts = _count_regions(ends, steps, parent, size, passable[number], row)
        if counts.shape[1] < 2:
            continue
        pairs = _join_regions(near, steps, parent, row, counts, decided)
        if pairs > 0:
            windows[corners[number, 0], 0] += 1
            _add_shares(near, decided, pairs, corners[number], frame, apart)


@compiled
def _add_shares(
    order: NDArray[np.int64],
    decided: NDArray[np.int64],
    pairs: int,
    corner: NDArray[np.int64],
    frame: int,
    weights: NDArray[np.float32],
) -> None:
    """Add the shares of the pairs of one window to its picture."""
    for place in order:
        if decided[place] > 0:
            row, column = corner[1] + place // frame - 1, corner[2] + place % frame - 1
            weights[corner[0], row, column] += decided[place] / pairs
