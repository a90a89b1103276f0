"""Thinning of 2-D masks."""

import numpy as np
from numpy.typing import NDArray

from biocnn.compiled import compiled
from biocnn.metrics.overlap import Mask

# Neighbours in a circle, from the one above; bit k of a code is neighbour k.
_CIRCLE = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def thinned(mask: Mask) -> Mask:
    """The centreline of a mask (H, W), one pixel wide, with its components and loops.

    Guo & Hall (1989), Parallel thinning with two-subiteration algorithms, Commun. ACM 32:359, algorithm A1. Beyond the
    image is background. scikit-image's `thin` gives the same; here iterations look at the contour only, which
    `benchmarks/skeleton_graph.py` compares with its `skeletonize`.
    """
    image = np.pad(mask, 1).view(np.uint8)
    circle = np.array([row * image.shape[1] + column for row, column in _CIRCLE])
    _thin(image.ravel(), circle, _REMOVED)
    return image[1:-1, 1:-1].astype(np.bool_)


def _removed() -> NDArray[np.bool_]:
    """Which of the 256 neighbourhoods lose their pixel, (2, 256), in odd and in even iterations."""
    p = [(np.arange(256) >> k & 1).astype(np.bool_) for k in range(8)]
    components = sum((~p[k] & (p[k + 1] | p[(k + 2) % 8])).astype(int) for k in (0, 2, 4, 6))
    first = sum((p[k - 1] | p[k]).astype(int) for k in (0, 2, 4, 6))
    last = sum((p[k] | p[k + 1]).astype(int) for k in (0, 2, 4, 6))
    neighbours = np.minimum(first, last)
    simple = (components == 1) & (neighbours >= 2) & (neighbours <= 3)
    odd = simple & ~((p[0] | p[1] | ~p[3]) & p[2])
    even = simple & ~((p[4] | p[5] | ~p[7]) & p[6])
    return np.stack([odd, even])


_REMOVED = _removed()


@compiled
def _thin(image: NDArray[np.uint8], circle: NDArray[np.int64], removed: NDArray[np.bool_]) -> None:
    """Thin a flat image with a margin of background in place; 1 becomes 2 on the contour."""
    # Only a pixel with background above, below or beside it can be removed.
    sides = circle[::2]
    contour = np.empty(1024, dtype=np.int64)
    length = 0
    for i in range(len(image)):
        if image[i] and not (
            image[i + sides[0]] and image[i + sides[1]] and image[i + sides[2]] and image[i + sides[3]]
        ):
            image[i] = 2
            if length == len(contour):
                contour = np.concatenate((contour, np.empty_like(contour)))
            contour[length] = i
            length += 1
    idle = turn = 0
    while idle < 2:
        going = np.empty(length, dtype=np.int64)
        gone = kept = 0
        for i in contour[:length]:
            code = 0
            for k in range(8):
                code |= (image[i + circle[k]] > 0) << k
            if removed[turn, code]:
                going[gone] = i
                gone += 1
            else:
                contour[kept] = i
                kept += 1
        length = kept
        for i in going[:gone]:
            image[i] = 0
        if length + 4 * gone > len(contour):
            contour = np.concatenate((contour, np.empty(4 * gone, dtype=np.int64)))
        for i in going[:gone]:
            for step in sides:
                if image[i + step] == 1:
                    image[i + step] = 2
                    contour[length] = i + step
                    length += 1
        idle = 0 if gone else idle + 1
        turn = 1 - turn
