"""Density maps of points: maps whose sum is the number of points, whatever the frame and the widths.

Every point becomes a Gaussian that is cut at four standard deviations, normalised to sum 1, and mirrored at the border
of the frame (the border lies between pixels, as in scipy's "reflect" and OpenCV's BORDER_REFLECT): what would fall
outside is folded back, so that each kernel has sum 1 inside the frame, however small that is. Points are carried
through augmentation and rasterised last; a map that is warped or resized no longer sums up to the count.

Compiled by numba at the first call, which takes about a second; the code is kept on disk for the next process.

Notation: N points, (row, column) in pixels; a point (r, c) with whole numbers is the centre of pixel [r, c], so a frame
of H rows covers -0.5 to H - 0.5.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from biocnn.compiled import compiled
from biocnn.errors import DataError

TRUNCATE = 4.0
"""Standard deviations at which kernels are cut; scipy's default."""
MIN_SIGMA, MAX_SIGMA = 1e-3, 1e4
"""Least and greatest width in pixels: below one is a single pixel anyway, above a point would take milliseconds."""

BAND = 64
"""Rows that are added up at a time in float64, which stay in the cache: a whole map of 2048x2048 px in float64 takes
three times as long. Adding up in float32 takes half as long, but was wrong by 0.007 for 50,000 points that pile up."""


def rasterise(points: ArrayLike, shape: tuple[int, int], sigma: ArrayLike = 3.0) -> NDArray[np.float32]:
    """The density map of points: a Gaussian of sum 1 inside the frame for each.

    Equal to the same in float64 to 1e-6. The sum, taken in float64, is N to 1e-4 for a thousand points, and to 6e-8 N
    for more, which is as near as float32 comes to a whole number. With whole-numbered points and one width it is what
    `scipy.ndimage.gaussian_filter` makes of the image of dots, at a tenth of the cost of OpenCV's filter
    (`benchmarks/rasterise.py`).

    Args:
        points: (N, 2), row and column in pixels, not necessarily whole; N may be 0.
        shape: (H, W) of the map.
        sigma: standard deviation in pixels: one number, (N,) for each point its own, or (N, 2) along rows and along
            columns, as :func:`kernel_widths` gives them. From 0.001 to 10,000.

    Returns:
        (H, W) float32, 0 or more, in points per pixel.

    Raises:
        ValueError: if an argument has a wrong shape or `sigma` is out of range.
        DataError: if a point lies outside the frame or is NaN.

    Example:
        >>> density = rasterise([[0, 0], [2.5, 1]], (4, 5), sigma=2)
        >>> density.shape, round(float(density.sum()), 5)
        ((4, 5), 2.0)
    """
    height, width = shape
    if height < 1 or width < 1:
        raise ValueError(f"shape: expected at least one row and one column, received {shape}.")
    places = as_points(points)
    check_inside(places, (height, width))
    widths = _as_widths(sigma, len(places))
    density = np.zeros((height, width), np.float32)
    _draw_kernels(density, places, widths)
    return density


def as_points(points: ArrayLike) -> NDArray[np.float64]:
    """Points as (N, 2) float64, contiguous; nothing at all becomes (0, 2).

    Raises:
        ValueError: if they have another shape.
    """
    places = np.ascontiguousarray(points, np.float64)
    if places.size == 0:
        return np.zeros((0, 2))
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"points: expected shape (N, 2), row and column, received {places.shape}.")
    return places


def inside_frame(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points lie in the frame, its border included; (N,) bool, False for NaN."""
    return np.asarray(((points >= -0.5) & (points <= np.array(shape) - 0.5)).all(axis=1), bool)


def check_inside(points: NDArray[np.float64], shape: tuple[int, int], source: object = None) -> None:
    """Look for points that are not in the frame.

    Args:
        points: (N, 2).
        shape: (H, W).
        source: path of the file that the points come from, for the message.

    Raises:
        DataError: if a point is NaN or lies outside, with how many and which is the first.
    """
    inside = inside_frame(points, shape)
    if inside.all():
        return
    first = points[~inside][0]
    begin = "" if source is None else f"{source}: "
    count = f"{int((~inside).sum()):,} of {len(points):,} points"
    if unknown := int((~np.isfinite(points)).any(axis=1).sum()):
        raise DataError(f"{begin}{unknown:,} of {len(points):,} points are NaN or infinite. Remove or correct them.")
    swapped = inside_frame(points[:, ::-1], shape).all()
    advice = (
        "With row and column swapped all would lie inside: check which is which."
        if swapped
        else "Check that the points belong to this image, and are in pixels of its full size."
    )
    raise DataError(
        f"{begin}{count} lie outside the frame of {shape[0]}x{shape[1]} px (rows x columns), the first at row "
        f"{first[0]:g}, column {first[1]:g}. {advice}"
    )


def _as_widths(sigma: ArrayLike, count: int) -> NDArray[np.float64]:
    """Widths as (N, 2) float64, contiguous."""
    widths = np.asarray(sigma, np.float64)
    if widths.shape not in ((), (count,), (count, 2)):
        raise ValueError(
            f"sigma: expected one number, ({count},) or ({count}, 2) for {count} points, received {widths.shape}."
        )
    if not ((widths >= MIN_SIGMA) & (widths <= MAX_SIGMA)).all():
        raise ValueError(
            f"sigma: expected {MIN_SIGMA:g} to {MAX_SIGMA:,.0f} pixels, received {widths.min():g} to {widths.max():g}."
        )
    if widths.ndim == 1:
        widths = widths[:, None]
    return np.ascontiguousarray(np.broadcast_to(widths, (count, 2)))


@compiled
def _fold_kernel(place: float, sigma: float, size: int, kernel: NDArray[np.float64]) -> tuple[int, int]:
    """Write the kernel of one axis to `kernel`, folded into 0..size-1, with sum 1; return where it begins and ends.

    `kernel` is as long as the axis; only begin..end-1 is written.
    """
    # Half a pixel more than a whole number on each side, so that a point between two pixels has the same of both.
    reach = int(TRUNCATE * sigma + 0.5) + 0.5
    first, last = math.ceil(place - reach), math.floor(place + reach)
    begin, end = max(first, 0), min(last + 1, size)
    for target in range(begin, end):
        kernel[target] = 0.0
    # Relative to the nearest pixel, whose weight is then 1, so that narrow kernels do not vanish.
    offset = place - math.floor(place + 0.5)
    nearest, scale = offset * offset, -0.5 / (sigma * sigma)
    total = 0.0
    for pixel in range(first, last + 1):
        weight = math.exp(((pixel - place) * (pixel - place) - nearest) * scale)
        target = pixel
        if pixel < 0 or pixel >= size:
            target = pixel % (2 * size)
            if target >= size:
                target = 2 * size - 1 - target
        kernel[target] += weight
        total += weight
    for target in range(begin, end):
        kernel[target] /= total
    return begin, end


@compiled
def _draw_kernels(density: NDArray[np.float32], points: NDArray[np.float64], sigma: NDArray[np.float64]) -> None:
    """Write the sum of the kernels of all points to the map, which is 0."""
    height, width = density.shape
    down, across = np.empty(height), np.empty(width)
    band = np.empty((min(BAND, height), width))
    for start in range(0, height, BAND):
        stop = min(start + BAND, height)
        empty = True
        for number in range(len(points)):
            reach = TRUNCATE * sigma[number, 0] + 1.0
            if points[number, 0] + reach < start or points[number, 0] - reach > stop:
                continue
            if empty:
                band[:] = 0.0
                empty = False
            top, bottom = _fold_kernel(points[number, 0], sigma[number, 0], height, down)
            left, right = _fold_kernel(points[number, 1], sigma[number, 1], width, across)
            for row in range(max(top, start), min(bottom, stop)):
                weight, place = down[row], row - start
                for column in range(left, right):
                    band[place, column] += weight * across[column]
        if not empty:
            for row in range(start, stop):
                for column in range(width):
                    density[row, column] = band[row - start, column]


def kernel_widths(
    points: ArrayLike,
    sigma: float = 3.0,
    unit: Literal["pixel", "um"] = "pixel",
    *,
    pixel_size_um: tuple[float, float] | None = None,
    neighbours: int = 0,
    beta: float = 0.3,
    bounds: tuple[float, float] = (1.0, 15.0),
) -> NDArray[np.float64]:
    """Standard deviations of the kernels: fixed in pixels, fixed in micrometres, or from the nearest neighbours.

    Widths from neighbours (Zhang et al.: Single-image crowd counting via multi-column convolutional neural network.
    CVPR 2016; with `beta` 0.3 and 3 neighbours as in CSRNet) suit crowds whose size in the picture varies with their
    distance. Cells of one size seldom need them. Peaks can be told apart while the width is less than about a quarter
    of the distance to the nearest neighbour.

    Args:
        points: (N, 2), row and column in pixels.
        sigma: fixed standard deviation, in `unit`; not used with `neighbours`.
        unit: ``"pixel"``, or ``"um"`` for micrometres.
        pixel_size_um: micrometres per pixel, row then column; needed for micrometres.
        neighbours: how many nearest neighbours give the width, `beta` times the mean distance to them, all of them if
            there are fewer; 0 for a fixed width.
        beta: width per distance.
        bounds: smallest and largest width from neighbours, in pixels. Duplicate points get the smallest, a point
            without any neighbour the largest.

    Returns:
        (N, 2) float64, in pixels, along rows and along columns.

    Raises:
        ValueError: if an argument is out of range, or the pixel size is missing.

    Example:
        >>> kernel_widths([[0, 0], [0, 10]], neighbours=1)
        array([[3., 3.],
               [3., 3.]])
        >>> kernel_widths([[0, 0]], 4, "um", pixel_size_um=(0.5, 1.0))
        array([[8., 4.]])
    """
    places = as_points(points)
    if neighbours < 0 or not 0 < bounds[0] <= bounds[1] < math.inf or not 0 < beta < math.inf:
        raise ValueError(
            "Expected neighbours of 0 or more, a positive beta, and positive bounds in rising order, received "
            f"neighbours={neighbours}, beta={beta}, bounds={bounds}."
        )
    if neighbours:
        return np.repeat(_neighbour_widths(places, neighbours, beta, bounds)[:, None], 2, axis=1)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, received {sigma!r}.")
    if unit == "pixel":
        return np.full((len(places), 2), float(sigma))
    if unit != "um":
        raise ValueError(f"unit: expected 'pixel' or 'um', received {unit!r}.")
    if pixel_size_um is None or not all(0 < size < math.inf for size in pixel_size_um):
        raise ValueError(
            f"A width of {sigma} um needs a positive pixel size, received {pixel_size_um}. Write pixel_size_um into "
            "the manifest, or give the width in pixels."
        )
    return np.tile(sigma / np.array(pixel_size_um, np.float64), (len(places), 1))


def _neighbour_widths(
    points: NDArray[np.float64], neighbours: int, beta: float, bounds: tuple[float, float]
) -> NDArray[np.float64]:
    if len(points) < 2:
        return np.full(len(points), float(bounds[1]))
    near = min(neighbours, len(points) - 1)
    distance, _ = cKDTree(points).query(points, k=near + 1)
    return np.clip(beta * distance[:, 1:].mean(axis=1), *bounds)  # the first is the point itself, or its duplicate
