"""Thickness of masks at single pixels, and centrelines that lead to the border of the image."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import euler_number

from biocnn.compiled import compiled
from biocnn.data.graphs import Floats
from biocnn.metrics.overlap import Mask

Steps = NDArray[np.int32]

# A structure that leaves the image meets its border in a section at most this many times as large as one at a right
# angle: up to 48 degrees from it. What runs along the border has a longer section, and ends at the border.
_LARGEST_SECTION = 1.5


def row_distances(mask: Mask) -> Steps:
    """Steps from every pixel of a mask to the nearest background pixel of its row.

    Args:
        mask: (H, W) or (D, H, W) bool.

    Returns:
        (D, H, W), D = 1 for an image; 0 in the background, -1 where the row has none.
    """
    return _row_distances(mask.reshape((1,) * (3 - mask.ndim) + mask.shape))


def distances(in_row: Steps, pixels: NDArray[np.int64], spacing: Floats) -> Floats:
    """Euclidean distance from pixels to the nearest background pixel; nothing beyond the image is one.

    Looks at rows within reach only, which for pixels of a skeleton takes less than a transform of the whole image.

    Args:
        in_row: of :func:`row_distances`.
        pixels: (N, D).
        spacing: (D,), size of a pixel along each axis.

    Returns:
        (N,), in the unit of the spacing; inf where there is no background.
    """
    missing = 3 - pixels.shape[1]
    return _distances(
        in_row,
        np.pad(pixels, ((0, 0), (missing, 0))),
        np.pad(spacing.astype(np.float64), (missing, 0), constant_values=1.0),
    )


def reach_border(skeleton: Mask, mask: Mask, in_row: Steps, spacing: Floats) -> None:
    """Lead the skeleton of a mask to the border of the image, where a structure leaves it; changes `skeleton`.

    Thinning stops short of the border by half the width of the structure. A straight line leads on, from the nearest
    pixel of the skeleton to the middle of the section of the structure with the border.

    Args:
        skeleton: (H, W) or (D, H, W) bool.
        mask: the same shape, bool.
        in_row: :func:`row_distances` of the mask.
        spacing: (D,), size of a pixel along each axis.
    """
    reached: set[tuple[int, ...]] = set()
    for axis, size in enumerate(mask.shape):
        for place in (0, size - 1):
            face = mask.take(place, axis)
            if not face.any():
                continue
            labels, _ = ndimage.label(face, np.ones((3,) * face.ndim))
            area = np.delete(spacing, axis).prod()  # of a pixel of the section, in 2-D its length
            for number, box in enumerate(ndimage.find_objects(labels), 1):
                inner = np.argwhere(labels[box] == number) + [part.start for part in box]
                section = np.insert(inner, axis, place, axis=1)
                radius = distances(in_row, section, spacing).max()
                straight = 2 * radius if mask.ndim == 2 else math.pi * radius**2
                pixels = {tuple(pixel) for pixel in section.tolist()}
                # In a corner of the image a structure has two sections or more.
                if pixels & reached or not len(section) * area <= _LARGEST_SECTION * straight < math.inf:
                    continue
                reached |= pixels
                if not skeleton[tuple(section.T)].any():
                    middle = section[(((section - section.mean(axis=0)) * spacing) ** 2).sum(axis=1).argmin()]
                    _lead(skeleton, mask, middle, radius, spacing)


def _lead(skeleton: Mask, mask: Mask, pixel: NDArray[np.int64], radius: float, spacing: Floats) -> None:
    """Add a line to a skeleton, from its pixel that is nearest to a given one and within two radii."""
    reach = np.ceil(2 * radius / spacing).astype(np.int64) + 1
    low = np.maximum(pixel - reach, 0)
    window = tuple(slice(a, b) for a, b in zip(low, pixel + reach + 1, strict=True))
    near = np.argwhere(skeleton[window])
    if not len(near):
        return
    nearest = near[(((near + low - pixel) * spacing) ** 2).sum(axis=1).argmin()]
    line = np.linspace(pixel - low, nearest, np.abs(nearest + low - pixel).max() + 1)
    larger = skeleton[window].copy()
    larger[tuple(np.rint(line).astype(np.int64).T)] = True
    # It must not leave the mask, nor close a loop.
    same = euler_number(larger, mask.ndim) == euler_number(skeleton[window], mask.ndim)
    if same and not (larger & ~mask[window]).any():
        skeleton[window] = larger


@compiled
def _row_distances(mask: Mask) -> Steps:
    planes, rows, columns = mask.shape
    result = np.empty(mask.shape, dtype=np.int32)
    for plane in range(planes):
        for row in range(rows):
            last = -1
            for column in range(columns):
                if not mask[plane, row, column]:
                    last = column
                    result[plane, row, column] = 0
                else:
                    result[plane, row, column] = column - last if last >= 0 else -1
            last = -1
            for column in range(columns - 1, -1, -1):
                if not mask[plane, row, column]:
                    last = column
                elif last >= 0 and (result[plane, row, column] < 0 or last - column < result[plane, row, column]):
                    result[plane, row, column] = last - column
    return result


@compiled
def _distances(in_row: Steps, pixels: NDArray[np.int64], spacing: Floats) -> Floats:
    planes, rows = in_row.shape[:2]
    result = np.empty(len(pixels))
    for i in range(len(pixels)):
        best = np.inf  # squared
        plane, row, column = pixels[i]
        for up in range(planes):
            if (up * spacing[0]) ** 2 >= best:
                break
            for down in range(rows):
                base = (up * spacing[0]) ** 2 + (down * spacing[1]) ** 2
                if base >= best:
                    break
                for p in (plane - up, plane + up):
                    for r in (row - down, row + down):
                        if 0 <= p < planes and 0 <= r < rows and in_row[p, r, column] >= 0:
                            best = min(best, base + (in_row[p, r, column] * spacing[2]) ** 2)
        result[i] = np.sqrt(best)
    return result
