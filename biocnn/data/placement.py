"""Where a tile lies in an image: one affine map, the same for image, mask and points.

Pixel (row, column) has its centre at exactly these coordinates. Notation: S side of a tile, H rows, W columns, C
channels of the image.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

# The eight symmetries of the square, acting on (row, column): rotations and reflections by whole pixels.
SYMMETRIES = tuple(
    np.array(matrix, np.float64)
    for first in (1, -1)
    for second in (1, -1)
    for matrix in (((first, 0), (0, second)), ((0, first), (second, 0)))
)

_MAX_CHANNELS = 4  # of OpenCV's warp before version 5
_MARGIN = 2  # px that interpolation looks beyond the outermost sample, rounded up


@dataclass(frozen=True, eq=False)
class Placement:
    """Tile pixel t shows the image at ``centre + matrix @ (t - (S - 1) / 2)``.

    Attributes:
        centre: row and column of the middle of the tile in the image.
        matrix: (2, 2) float64; one of :data:`SYMMETRIES` if nothing is to be interpolated.
        size: S.
    """

    centre: tuple[float, float]
    matrix: np.ndarray
    size: int

    @cached_property
    def is_exact(self) -> bool:
        """Whether every tile pixel is an image pixel, or one beyond the border: a symmetry about a grid point."""
        corner = np.asarray(self.centre) - (self.size - 1) / 2
        return any(np.array_equal(self.matrix, symmetry) for symmetry in SYMMETRIES) and bool(
            (corner == corner.round()).all()
        )

    def cut(self, array: np.ndarray, smooth: bool = False, outside: int | None = None) -> np.ndarray:
        """Cut the tile out of an image.

        Args:
            array: (H, W) or (H, W, C), uint8, uint16, uint32 or float32.
            smooth: interpolate linearly; else the nearest pixel is taken. OpenCV rounds positions to 1/32 px.
            outside: value beyond the border; the image is mirrored there when None.

        Returns:
            (S, S) or (S, S, C), contiguous, of the dtype of `array`; float32 where uint32 was interpolated.
        """
        if self.is_exact:
            return self._copy(array, outside)
        top, left, bottom, right = self._box(array.shape[0], array.shape[1])
        part = array[top:bottom, left:right]
        flags = (cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST) | cv2.WARP_INVERSE_MAP
        border = cv2.BORDER_REFLECT_101 if outside is None else cv2.BORDER_CONSTANT
        (rr, rc), (cr, cc) = self.matrix
        middle = (self.size - 1) / 2
        row, column = self.centre[0] - top, self.centre[1] - left
        # OpenCV counts x, the column, first.
        matrix = np.array([[cc, cr, column - (cc + cr) * middle], [rc, rr, row - (rc + rr) * middle]])

        def warp(channels: np.ndarray) -> np.ndarray:
            shape = (self.size, self.size, *channels.shape[2:])
            value = (outside or 0,) * _MAX_CHANNELS
            source = np.ascontiguousarray(channels, np.float32 if channels.dtype == np.uint32 else None)
            return cv2.warpAffine(source, matrix, shape[:2], flags=flags, borderMode=border, borderValue=value).reshape(
                shape
            )

        if part.ndim == 2 or part.shape[2] <= _MAX_CHANNELS:
            return warp(part)
        starts = range(0, part.shape[2], _MAX_CHANNELS)
        return np.concatenate([warp(part[..., start : start + _MAX_CHANNELS]) for start in starts], axis=2)

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Rows and columns that the tile needs: OpenCV takes no image of more than 32,767 rows or columns."""
        reach = np.abs(self.matrix).sum(1) * (self.size - 1) / 2 + _MARGIN
        low = np.maximum(np.floor(np.asarray(self.centre) - reach), 0).astype(int)
        high = np.minimum(np.ceil(np.asarray(self.centre) + reach) + 1, (height, width)).astype(int)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def _copy(self, array: np.ndarray, outside: int | None) -> np.ndarray:
        height, width = array.shape[:2]
        top, left = (round(place - (self.size - 1) / 2) for place in self.centre)
        bottom, right = top + self.size, left + self.size
        if min(top, left, height - bottom, width - right) >= 0:
            part = array[top:bottom, left:right]
        elif outside is None:
            part = array[np.ix_(_mirrored(top, bottom, height), _mirrored(left, right, width))]
        else:
            part = np.full((self.size, self.size, *array.shape[2:]), outside, array.dtype)
            rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
            inner = array[rows, columns]
            first_row, first_column = rows.start - top, columns.start - left
            part[first_row : first_row + inner.shape[0], first_column : first_column + inner.shape[1]] = inner
        (rr, rc), (cr, cc) = self.matrix.astype(int)
        turned = part[::rr, ::cc] if rr else part[::rc, ::cr].swapaxes(0, 1)
        return np.ascontiguousarray(turned)

    def move(self, points: np.ndarray) -> np.ndarray:
        """Points of the image in coordinates of the tile.

        Args:
            points: (N, 2) row and column.

        Returns:
            (N, 2) float64; within -0.5 and S - 0.5 if they lie in the tile.
        """
        offset = np.asarray(points, np.float64).reshape(-1, 2) - self.centre
        return offset @ np.linalg.inv(self.matrix).T + (self.size - 1) / 2


def _mirrored(start: int, stop: int, length: int) -> np.ndarray:
    """Indices start..stop-1, mirrored at the first and last of `length` entries, which are not repeated.

    >>> _mirrored(-2, 5, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2]
    """
    period = max(2 * (length - 1), 1)
    folded = np.abs(np.arange(start, stop)) % period
    return np.minimum(folded, period - folded)
