"""Outlines of the objects of a mask along the edges of its pixels, so that their area is the number of pixels.

Two pixels belong to one piece if they share an edge, and to one object if they touch at all, as components are counted
in :mod:`biocnn.metrics.calling`. So an object has one piece, or several that touch at corners only; a piece has an
outer ring and a ring for each hole. No ring passes a corner twice, and rings touch one another at corners only: that is
what GeoJSON and the Simple Features Access of the OGC (06-103r4, 6.1.11) call a valid polygon.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from biocnn.compiled import compiled

_STEPS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # right, down, left, up


class Piece(NamedTuple):
    """Pixels that hang together by their edges.

    Attributes:
        outer: (K, 2) float64 corners of the outline, row and column in pixels with whole numbers at the centres of
            pixels, so corners are halves; the last does not repeat the first. Clockwise as one sees the image.
        holes: of each hole the same, counter-clockwise.
    """

    outer: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...]

    @property
    def area(self) -> float:
        """Area without the holes in square pixels, by the shoelace formula: the number of pixels."""
        return sum(signed_area(ring) for ring in (self.outer, *self.holes))


def signed_area(ring: NDArray[np.float64]) -> float:
    """Area of a ring (K, 2) of rows and columns: positive if it runs clockwise as one sees the image.

    >>> signed_area(np.array([[0.0, 0.0], [0.0, 3.0], [2.0, 3.0], [2.0, 0.0]]))
    6.0
    """
    (row, column), (next_row, next_column) = ring.T, np.roll(ring, -1, axis=0).T
    return float((column * next_row - next_column * row).sum() / 2)


def mask_objects(mask: NDArray[np.bool_]) -> list[tuple[Piece, ...]]:
    """Outlines of all objects of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        For each object, in the order of its first pixel from the top, its pieces; nothing for an empty mask.

    Example:
        >>> objects = mask_objects(np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool))
        >>> [[piece.area for piece in pieces] for pieces in objects]
        [[2.0, 1.0], [1.0]]
        >>> objects[1][0].outer
        array([[ 2.5, -0.5],
               [ 2.5,  0.5],
               [ 3.5,  0.5],
               [ 3.5, -0.5]])
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    pieces = ndimage.label(padded, output=np.int32)[0]
    objects = ndimage.label(padded, np.ones((3, 3), bool), output=np.int32)[0]
    corners, starts, owners = _trace(pieces, _outgoing(padded))
    rings = np.split(corners.astype(np.float64) - 1.5, starts[1:])  # of the frame, and to the centres of pixels
    found: dict[int, list[NDArray[np.float64]]] = {}
    for ring, owner in zip(rings, owners.tolist(), strict=False):
        found.setdefault(owner, []).append(ring)  # the topmost ring of a piece is its outer one
    grouped: dict[int, list[Piece]] = {}
    for first, *holes in found.values():
        row, column = (first[0] + 1.5).astype(np.int64)  # its topmost left corner, of a pixel of the object
        grouped.setdefault(int(objects[row, column]), []).append(Piece(first, tuple(holes)))
    return [tuple(parts) for parts in grouped.values()]


def _outgoing(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """For every corner of the pixels of a padded mask, a bit for each of :data:`_STEPS` that has the mask on its right.

    Entry (r, c) is the upper left corner of pixel (r, c).
    """
    here, above = mask[1:, 1:], mask[:-1, 1:]
    left, beyond = mask[1:, :-1], mask[:-1, :-1]
    bits = (here & ~above, left & ~here, beyond & ~left, above & ~beyond)
    steps = np.zeros(mask.shape, np.uint8)
    steps[1:, 1:] = sum(bit.astype(np.uint8) << number for number, bit in enumerate(bits))
    return steps


def _trace(
    pieces: NDArray[np.int32], outgoing: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """Corners (K, 2) of all rings, where each ring starts among them, and which piece it is of."""
    edges, most = int(np.bitwise_count(outgoing).sum(dtype=np.int64)), int((outgoing & 1).sum(dtype=np.int64))
    corners, starts, owners = np.empty((edges, 2), np.int32), np.empty(most, np.int64), np.empty(most, np.int32)
    used, count = _follow(pieces, outgoing, _STEPS, corners, starts, owners)
    return corners[:used], starts[:count], owners[:count]


@compiled
def _follow(
    pieces: NDArray[np.int32],
    outgoing: NDArray[np.uint8],
    steps: NDArray[np.int64],
    corners: NDArray[np.int32],
    starts: NDArray[np.int64],
    owners: NDArray[np.int32],
) -> tuple[int, int]:
    """Follow all rings, in the order of their first corners; fills the last three.

    Where two pixels of the mask touch at a corner, two rings meet. If both are of one piece, they hang together
    elsewhere, and what is between is a hole: the ring crosses to the other pixel. If not, it stays at its own. Either
    way no ring comes to a corner twice.

    Returns:
        The numbers of corners and of rings.
    """
    used = count = 0
    seen = np.zeros(outgoing.shape, np.bool_)  # corners that were left to the right; every ring does that
    for top in range(outgoing.shape[0]):
        for first in range(outgoing.shape[1]):
            if seen[top, first] or not outgoing[top, first] & 1:
                continue
            starts[count], owners[count] = used, pieces[top, first]
            row, column, direction, turned = top, first, 0, True
            while True:
                if turned:
                    corners[used, 0], corners[used, 1] = row, column
                    used += 1
                if direction == 0:
                    seen[row, column] = True
                row, column = row + steps[direction, 0], column + steps[direction, 1]
                right, left = (direction + 1) % 4, (direction + 3) % 4
                to_right, to_left = outgoing[row, column] >> right & 1, outgoing[row, column] >> left & 1
                if to_right and to_left:
                    across = pieces[row - (direction in (0, 3)), column - (direction in (2, 3))]
                    direction, turned = (left if across == owners[count] else right), True
                elif to_right or to_left:
                    direction, turned = (right if to_right else left), True
                else:
                    turned = False
                if direction == 0 and row == top and column == first:
                    break
            count += 1
    return used, count
