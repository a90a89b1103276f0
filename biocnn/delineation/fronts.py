"""Minimal paths on a grid: fronts that start from all sources at once, and the places where they meet.

Dijkstra's algorithm with 8 neighbours in 2-D, 26 in 3-D. A step between two pixels costs its length times the mean of
their costs. Where the fronts of two sources meet at least total cost runs the minimal path between them, of those that
stay in the cells of the two sources, as with fast marching in Cohen: Multiple contour finding and perceptual grouping
using minimal paths. J. Math. Imaging Vis. 2001.

Grids are flat, with a frame of one pixel of infinite cost around them, so that neighbours need no bounds.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biocnn.compiled import compiled

Pixels = NDArray[np.int64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Costs (size,) float32 on a framed grid of a shape, and the steps to neighbours: flat, and their lengths."""

    cost: Floats32
    shape: tuple[int, ...]
    steps: Pixels
    lengths: NDArray[np.float64]

    def flat(self, pixels: Pixels) -> Pixels:
        """Flat indices (N,) of pixels (N, D) of the map without the frame."""
        return np.ravel_multi_index(tuple(np.asarray(pixels).T + 1), self.shape).astype(np.int64)

    def pixels(self, flat: Pixels) -> Pixels:
        """Pixels (N, D) of the map without the frame."""
        return np.stack(np.unravel_index(flat, self.shape), axis=-1).astype(np.int64) - 1


def grid_of(cost: NDArray[Any], spacing: NDArray[np.float64]) -> Grid:
    """The grid of a map of costs per unit of length, positive and finite, (H, W) or (D, H, W)."""
    framed = np.pad(cost.astype(np.float32), 1, constant_values=np.inf)
    offsets = np.array([one for one in np.ndindex((3,) * cost.ndim) if one != (1,) * cost.ndim]) - 1
    strides = np.append(np.cumprod(framed.shape[:0:-1])[::-1], 1)
    return Grid(framed.ravel(), framed.shape, offsets @ strides, np.linalg.norm(offsets * spacing, axis=1))


@compiled
def grow(
    cost: Floats32, sources: Pixels, steps: Pixels, lengths: NDArray[np.float64], reach: float
) -> tuple[Floats32, NDArray[np.int32], NDArray[np.int32]]:
    """Fronts from all sources, as far as paths of length `reach`.

    Args:
        cost: (size,), infinite where there is no way.
        sources: (N,) flat indices, all different.
        steps: to the neighbours.
        lengths: of the steps.
        reach: in the unit of `lengths`.

    Returns:
        Total cost from the nearest source, infinite where none reaches; the number of that source, -1 where there is
        none; the pixel before it on the path from there, -1 at sources; each (size,).
    """
    total = np.full(cost.size, np.inf, np.float32)
    way = np.zeros(cost.size, np.float32)
    owner = np.full(cost.size, -1, np.int32)
    before = np.full(cost.size, -1, np.int32)
    heap = [(np.float64(0), np.int64(0)) for _ in range(0)]
    for number in range(len(sources)):
        total[sources[number]] = 0
        owner[sources[number]] = number
        heappush(heap, (np.float64(0), sources[number]))
    while len(heap):
        value, place = heappop(heap)
        if value > total[place]:
            continue
        for direction in range(len(steps)):
            other = place + steps[direction]
            length = lengths[direction]
            if cost[other] == np.inf or way[place] + length > reach:
                continue
            found = np.float32(value + length * (cost[place] + cost[other]) / 2)
            if found < total[other]:
                total[other] = found
                way[other] = way[place] + length
                owner[other] = owner[place]
                before[other] = place
                heappush(heap, (np.float64(found), other))
    return total, owner, before


def meetings(grid: Grid, total: Floats32, owner: NDArray[np.int32]) -> tuple[Pixels, NDArray[np.float64]]:
    """Where the fronts of each pair of sources meet at least cost.

    Returns:
        Two neighbouring pixels, in the cell of one and of the other source, (N, 2), and the total cost of the minimal
        path over them, (N,), the cheapest first; ties in the order of the sources.
    """
    reached = np.flatnonzero(owner >= 0)
    count = int(owner.max(initial=-1)) + 1
    best: list[tuple[Pixels, Pixels, NDArray[np.float64]]] = []
    for step, length in zip(grid.steps, grid.lengths, strict=True):
        if step < 0:
            continue
        meet = reached[(owner[reached + step] >= 0) & (owner[reached + step] != owner[reached])]
        other = meet + step
        value = total[meet].astype(np.float64) + total[other] + length * (grid.cost[meet] + grid.cost[other]) / 2
        low, high = np.minimum(owner[meet], owner[other]), np.maximum(owner[meet], owner[other])
        swap = owner[meet] > owner[other]
        places = np.stack([np.where(swap, other, meet), np.where(swap, meet, other)], axis=1)
        best.append(_cheapest(low.astype(np.int64) * count + high, places, value))
    if not best:
        return np.empty((0, 2), np.int64), np.empty(0)
    key, places, value = (np.concatenate(parts) for parts in zip(*best, strict=True))
    key, places, value = _cheapest(key, places, value)
    order = np.lexsort((key, value))
    return places[order], value[order]


def _cheapest(key: Pixels, places: Pixels, value: NDArray[np.float64]) -> tuple[Pixels, Pixels, NDArray[np.float64]]:
    order = np.lexsort((places[:, 0], value, key))
    key = key[order]
    first = np.ones(len(key), np.bool_)
    first[1:] = key[1:] != key[:-1]
    return key[first], places[order][first], value[order][first]


@compiled
def _trace(before: NDArray[np.int32], place: int, path: Pixels, start: int) -> int:
    """Writes the pixels from `place` to its source behind `start`; returns where they end."""
    while place >= 0:
        if start < len(path):
            path[start] = place
        start += 1
        place = before[place]
    return start


@compiled
def trace_pairs(before: NDArray[np.int32], places: Pixels) -> tuple[Pixels, Pixels]:
    """Paths from source to source over pairs of meeting pixels (N, 2): all pixels, and where each begins, (N + 1,)."""
    nothing = np.empty(0, np.int64)
    starts = np.zeros(len(places) + 1, np.int64)
    for number in range(len(places)):
        middle = _trace(before, places[number, 0], nothing, starts[number])
        starts[number + 1] = _trace(before, places[number, 1], nothing, middle)
    path = np.empty(starts[-1], np.int64)
    for number in range(len(places)):
        middle = _trace(before, places[number, 0], path, starts[number])
        path[starts[number] : middle] = path[starts[number] : middle][::-1].copy()
        _trace(before, places[number, 1], path, middle)
    return path, starts
