"""Sample points on the ridges of a tubularity map, between which candidate paths are sought.

As in Türetken et al.: Reconstructing curvilinear networks using path classifiers and integer programming. TPAMI 2016,
sec. 4.1: the best ridge point is taken, what is near it is left out, and so on. End points and junctions of the
skeleton come first, so that the two sides of a gap are always there.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from biocnn.compiled import compiled
from biocnn.errors import DataError
from biocnn.metrics.skeleton import skeletonize_safely

Pixels = NDArray[np.int64]

SAMPLE_DISTANCE = 10.0  # pixels between samples along a ridge: several to a loop, few enough for 2048 x 2048
APART = 3.0  # pixels between two end points or junctions: the pixels of one junction are nearer to each other
WEAK = 0.4  # of the threshold: where the map is lower, a maximum is not worth a sample


def checked_map(probability: ArrayLike, spacing: Sequence[float] | None) -> tuple[NDArray[np.float32], NDArray]:
    """A tubularity map as float32, and the size of a pixel in the unit of the graph, (D,) float64, 1 if not known.

    Raises:
        DataError: if the map has not 2 or 3 axes, has values that are no probabilities, or the spacing does not fit.
    """
    values = np.asarray(probability)
    if values.ndim not in (2, 3):
        raise DataError(f"probability: expected a map of 2 or 3 axes, received shape {values.shape}.")
    if values.dtype.kind not in "fiub":
        raise DataError(f"probability: expected numbers in 0..1, received dtype {values.dtype}.")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("probability: expected numbers in 0..1, received nan or infinite values; mask them with 0.")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise DataError(
            f"probability: expected numbers in 0..1, received {values.min():g} to {values.max():g}; apply the sigmoid "
            "to logits, and divide 8-bit maps by 255."
        )
    if spacing is None:
        return values, np.ones(values.ndim)
    steps = np.array(spacing, dtype=np.float64)
    if steps.shape != (values.ndim,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise DataError(f"spacing: expected {values.ndim} positive numbers, one for each axis, received {spacing}.")
    return values, steps


def sample_points(
    probability: ArrayLike,
    spacing: Sequence[float] | None = None,
    threshold: float = 0.5,
    distance: float | None = None,
    limit: int = 20_000,
) -> Pixels:
    """Samples of a tubularity map.

    Candidates are the skeleton of the map at `threshold`, and, where a structure may be too faint for it, maxima of the
    smoothed map of at least 0.4 of the threshold. End points, junctions and single pixels of the skeleton are taken
    first, if they are 3 pixels apart; then the others in order of the smoothed map, none nearer than `distance` to
    another sample.

    Args:
        probability: (H, W) or (D, H, W), 0..1.
        spacing: size of a pixel along each axis; None for pixels.
        threshold: above 0, below 1.
        distance: in the unit of `spacing`; None for 10 times the smallest side of a pixel.
        limit: of the number of samples; of more, those are left out that would come last.

    Returns:
        (N, D) int64, pixels, in the order in which they were taken; none for a map without structure.

    Raises:
        DataError: if the map or the spacing cannot be used.
        ValueError: if the threshold is not between 0 and 1, or the distance or limit not positive.
    """
    values, steps = checked_map(probability, spacing)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, received {threshold}.")
    distance = SAMPLE_DISTANCE * float(steps.min()) if distance is None else distance
    if not (0 < distance < math.inf and limit >= 1):
        raise ValueError(f"distance and limit must be positive, received {distance} and {limit}.")
    mask = values >= threshold
    if not values.size or not values.max() >= WEAK * threshold:
        return np.empty((0, values.ndim), np.int64)
    smooth = ndimage.gaussian_filter(values, 1.0)
    skeleton = skeletonize_safely(mask)
    special = skeleton & (_neighbours(skeleton) != 2)
    reach = np.maximum((distance / steps).astype(int), 1)
    highest = ndimage.maximum_filter(smooth, size=2 * reach + 1)
    weak = (smooth == highest) & (smooth >= WEAK * threshold) & ~mask

    apart = min(APART * float(steps.min()), distance)
    first = _thinned(special, smooth, steps, apart, limit, np.empty(0, np.int64))
    second = _thinned((skeleton & ~special) | weak, smooth, steps, distance, limit - len(first), first)
    return np.stack(np.unravel_index(np.concatenate([first, second]), values.shape), axis=1).astype(np.int64)


def _neighbours(skeleton: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The number of neighbours of every pixel that are on the skeleton, if it is on it itself."""
    box = np.ones((3,) * skeleton.ndim, np.int32)
    return ndimage.convolve(skeleton.astype(np.int32), box, mode="constant") - 1


def _thinned(
    places: NDArray[np.bool_], height: NDArray[np.float32], steps: NDArray, distance: float, limit: int, taken: Pixels
) -> Pixels:
    """Flat indices of places, highest first, none within `distance` of another or of those taken."""
    reach = np.floor(distance / steps).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(-one, one + 1) for one in reach], indexing="ij"), -1)
    near = grid.reshape(-1, len(reach))
    near = near[np.linalg.norm(near * steps, axis=1) < distance]
    framed = np.array(places.shape) + 2 * reach
    strides = np.append(np.cumprod(framed[:0:-1])[::-1], 1)

    def framed_index(flat: Pixels) -> Pixels:
        pixels = np.stack(np.unravel_index(flat, places.shape), axis=1)
        return (pixels + reach) @ strides

    flat = np.flatnonzero(places)
    flat = flat[np.argsort(-height.ravel()[flat], kind="stable")]
    chosen = _suppress(framed_index(flat), framed_index(taken), near @ strides, int(framed.prod()), limit)
    return flat[chosen]


@compiled
def _suppress(order: Pixels, taken: Pixels, near: Pixels, size: int, limit: int) -> Pixels:
    """Positions in `order` that are taken, if each one taken blocks the places at `near` around it."""
    blocked = np.zeros(size, np.bool_)
    for place in taken:
        for step in near:
            blocked[place + step] = True
    chosen = np.empty(max(min(limit, len(order)), 0), np.int64)
    count = 0
    for position in range(len(order)):
        if count >= limit:
            break
        if not blocked[order[position]]:
            chosen[count] = position
            count += 1
            for step in near:
                blocked[order[position] + step] = True
    return chosen[:count]
