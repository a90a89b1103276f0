"""Points that mark one cell each, from dot images, tables and files of QuPath, ImageJ and napari.

Points are (N, 2) float64, (row, column) in pixels, whole numbers at the centres of pixels: an image of H rows covers
-0.5 to H - 0.5.
"""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from biocnn.data.density import check_inside
from biocnn.data.images import Image, check_finite, read_image
from biocnn.data.manifest import PointFormat
from biocnn.data.point_files import AREAS, POINTS, read_shapes, read_table
from biocnn.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
SHAPE_SUFFIXES = (".geojson", ".json", ".roi", ".zip")
POINT_SUFFIXES = (*TABLE_SUFFIXES, *SHAPE_SUFFIXES)
"""Suffixes of files of points that are no dot images."""
MAX_TOUCHING = 3
"""Largest number of dots that touch in the 200 images of VGG cells; a square of a brush has 4 pixels."""
_FEW_DOTS = 5
"""Of fewer dots half may touch by chance; of more, a median of 2 pixels is a brush."""

Duplicates = Literal["refuse", "keep", "drop"]


def read_points(
    path: str | Path,
    shape: tuple[int, int],
    *,
    threshold: float | None = None,
    channel: int | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    duplicates: Duplicates = "refuse",
    allow_empty: bool = False,
) -> NDArray[np.float64]:
    """Read the points of one image; the kind of file is told by its suffix.

    - Tables (``.csv``, ``.tsv``, ``.txt``) have a header with ``row`` and ``column``, ``y`` and ``x``, or ``axis-0``
      and ``axis-1``; see :func:`biocnn.data.point_files.read_table`.
    - GeoJSON (``.geojson``, ``.json``): all features that are points. QuPath measures from the corner of the first
      pixel: half a pixel is subtracted. Regions in the same file are left out.
    - ImageJ (``.roi``, ``.zip``; package `roifile`): all point selections, with whole numbers at the centres of
      pixels. Other selections are left out.
    - Anything else is a dot image, in which every dot pixel is one cell. Dots that touch are counted pixel by pixel:
      components would lose 2 of 176 cells per image of VGG cells.

    Args:
        path: of the annotation.
        shape: (H, W) of the image that it belongs to.
        threshold: dot pixels are above it. None for half of the largest value, or 127 in a JPEG, whose compression
            leaves traces: at 0 the adipocyte cells would be 1,135 per image instead of 155. Without it half and one
            and a half times the threshold have to give the same dots.
        channel: of the dot image that holds the dots; None for the largest value of all channels.
        pixel_size_um: micrometres per pixel, row then column, if a table is in micrometres.
        duplicates: what to do with points at exactly the same place: ``"refuse"``, ``"keep"`` all, or ``"drop"`` all
            but the first.
        allow_empty: whether an image without any cell is fine.

    Returns:
        (N, 2) float64, row and column in pixels, in the order of the file; dots by rows.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it cannot be read; holds no point; has points that are NaN, outside the image, or there twice;
            holds areas or masks instead of points; or is a dot image of another size.
    """
    path = Path(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        points = read_table(path, pixel_size_um)
    elif path.suffix.lower() in SHAPE_SUFFIXES:
        points = _read_drawn(path)
    else:
        points = _read_dots(path, shape, threshold, channel)
    if not len(points) and not allow_empty:
        raise DataError(
            f"{path} holds no point. If there is no cell in the image, allow that with allow_empty; if there are, "
            "annotate them or leave the image out."
        )
    check_inside(points, shape, path)
    return _without_duplicates(path, points, duplicates)


def read_annotation(
    path: Path, shape: tuple[int, int], form: PointFormat, pixel_size_um: tuple[float, float] | None
) -> NDArray[np.float64]:
    """Points of an image of a data set, of which there may be none, as its manifest says to read them.

    Args:
        path: of the annotation.
        shape: (H, W) of the image.
        form: of the manifest.
        pixel_size_um: micrometres per pixel of the image, row then column; None if unknown.

    Raises:
        DataError: as :func:`read_points`, and if a table is in micrometres and the pixel size is not known.
    """
    in_um = form.unit == "um" and path.suffix.lower() in TABLE_SUFFIXES
    if in_um and pixel_size_um is None:
        raise DataError(
            f"{path} is in micrometres, as `points: {{unit: um}}` of the manifest says, and its image has no pixel "
            "size. Write pixel_size_um into the manifest."
        )
    return read_points(
        path,
        shape,
        threshold=form.threshold,
        pixel_size_um=pixel_size_um if in_um else None,
        duplicates=form.duplicates,
        allow_empty=True,
    )


def _read_drawn(path: Path) -> NDArray[np.float64]:
    shapes = read_shapes(path)
    parts = [part for shape in shapes if shape.kind in POINTS for part in shape.parts]
    areas = sum(shape.kind in AREAS for shape in shapes)
    if not parts and areas:
        raise DataError(
            f"{path} holds {areas:,} area(s) and no points. Give one point per cell, such as the centres of the areas; "
            "regions of interest belong into a file of their own."
        )
    return np.concatenate([np.zeros((0, 2)), *parts])


def _without_duplicates(path: Path, points: NDArray[np.float64], duplicates: Duplicates) -> NDArray[np.float64]:
    places, first = np.unique(points, axis=0, return_index=True)
    if len(places) == len(points) or duplicates == "keep":
        return points
    first.sort()
    if duplicates == "drop":
        return points[first]
    again = np.setdiff1d(np.arange(len(points)), first)
    row, column = points[again[0]]
    raise DataError(
        f"{path}: {len(again):,} of {len(points):,} points are exactly where an earlier one is, the first "
        f"at row {row:g}, column {column:g}. Were they clicked twice? Remove them, or write "
        "`points: {duplicates: drop}` into the manifest to count each place once, or `keep` to count all."
    )


def _read_dots(path: Path, shape: tuple[int, int], threshold: float | None, channel: int | None) -> NDArray[np.float64]:
    image = read_image(path, channels=channel)
    if image.axes not in ("YX", "YXC"):
        raise DataError(f"{path} is {image.axes} {image.array.shape}: a stack, expected one dot image.")
    if image.array.shape[:2] != tuple(shape):
        raise DataError(
            f"{path} has {image.array.shape[0]}x{image.array.shape[1]} px (rows x columns), its image "
            f"{shape[0]}x{shape[1]}. They do not belong together, or one was resized or turned."
        )
    check_finite(image)
    values = image.array if image.axes == "YX" else image.array.max(axis=2)
    limit = _threshold(image, values) if threshold is None else threshold
    dots = values > limit
    _check_no_areas(path, dots)
    if threshold is None:
        _check_stable(path, values, limit, int(dots.sum()))
    return np.argwhere(dots).astype(np.float64)


def _threshold(image: Image, values: np.ndarray) -> float:
    """Half of what white is in a JPEG, which is never quite black, and half of the largest value otherwise."""
    if image.source.suffix.lower() in (".jpg", ".jpeg"):
        return float(np.iinfo(values.dtype).max // 2)
    return float(values.max()) / 2


def _check_no_areas(path: Path, dots: NDArray[np.bool_]) -> None:
    """Look for masks, dots of a brush, and dark dots on bright ground."""
    if not dots.any():
        return
    if dots.mean() > 0.5:
        raise DataError(
            f"{path}: {dots.mean():.0%} of the pixels are dots. If these are dark dots on bright ground, invert the "
            "image; if it is the microscope image itself, give the annotation."
        )
    mask = dots.astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    solid = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0).any()
    brush = len(sizes) >= _FEW_DOTS and np.median(sizes) > 1
    if solid or brush or np.median(sizes) > MAX_TOUCHING:
        blobs = sizes[sizes > min(MAX_TOUCHING, sizes.max() - 1)]
        raise DataError(
            f"{path}: the annotation has {len(blobs):,} blob(s) of median {np.median(blobs):.0f} px (largest "
            f"{blobs.max():,} px): these are masks or dots of a brush, not dots. Give one pixel per cell, or a table "
            "of the centres with the columns `row` and `column`."
        )


def _check_stable(path: Path, values: np.ndarray, limit: float, count: int) -> None:
    low, high = int((values > 0.5 * limit).sum()), int((values > 1.5 * limit).sum())
    if not low == count == high:
        raise DataError(
            f"{path}: the number of dots depends on the threshold: {low:,} above {0.5 * limit:g}, {count:,} above "
            f"{limit:g}, {high:,} above {1.5 * limit:g}. Was it resized, or saved as a coloured JPEG? Save dots as "
            "PNG, or write `points: {threshold: ...}` into the manifest."
        )
