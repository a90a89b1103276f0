"""Regions of interest, drawn in QuPath, ImageJ or by a program, and the pixels that are inside.

A pixel is inside a region when its centre is, by the even-odd rule: a point is inside if a line from it to infinity
crosses the outlines an odd number of times. So holes are outside, and of an outline that crosses itself all that it
encloses once is inside. A centre on an outline belongs to what is below or to the right, so that regions that share a
border share no pixel and leave none out.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_warn

from biocnn.data.findings import listed
from biocnn.data.point_files import AREAS, read_shapes
from biocnn.errors import DataError

SUFFIXES = (".geojson", ".json", ".roi", ".zip")


@dataclass(frozen=True, eq=False)
class Region:
    """A region of interest.

    Attributes:
        name: unique in its file.
        polygons: closed outlines, those of holes and of further parts included, each (K, 2) float64, row and column in
            pixels with whole numbers at the centres of pixels; the last point need not repeat the first.
    """

    name: str
    polygons: tuple[NDArray[np.float64], ...]


def read_regions(path: str | Path) -> list[Region]:
    """Read regions of interest from GeoJSON or ImageJ.

    GeoJSON (``.geojson``, ``.json``): polygons and multipolygons, called by the property ``name``, else by their
    class. ImageJ (``.roi``, ``.zip``; package `roifile`): polygons, rectangles, ovals, freehand, traced and composite
    selections. Both measure areas from the corner of the first pixel: half a pixel is subtracted. Points and lines in
    the same file are left out. Regions without a name are called by their number, and those of the same name are
    numbered.

    Args:
        path: of the file.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it cannot be read, is of no such kind, holds no region, or has one with less than three corners
            or corners that are no numbers.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} has the suffix {path.suffix!r}; regions are read from {', '.join(SUFFIXES)}.")
    shapes = read_shapes(path)
    areas = [shape for shape in shapes if shape.kind in AREAS]
    if not areas:
        counts = Counter(shape.kind for shape in shapes)
        kinds = listed(f"{count} {kind}" for kind, count in counts.items()) or "nothing"
        raise DataError(f"{path} holds no region, but {kinds}. Draw polygons, rectangles or ovals around the regions.")
    names = [shape.name or f"region {number}" for number, shape in enumerate(areas, 1)]
    regions = []
    for name, shape in zip(_unique(names), areas, strict=True):
        if not shape.parts or any(len(part) < 3 for part in shape.parts):
            raise DataError(f"{path}: region {name!r} has an outline of less than three corners. Remove or redraw it.")
        if not all(np.isfinite(part).all() for part in shape.parts):
            raise DataError(f"{path}: region {name!r} has corners that are NaN or infinite. Remove or redraw it.")
        regions.append(Region(name, shape.parts))
    return regions


def _unique(names: list[str]) -> list[str]:
    """Names in the same order, with a number added to those that repeat."""
    result: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in result:
            number += 1
            candidate = f"{name} ({number})"
        result.append(candidate)
    return result


def region_mask(region: Region, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of an image whose centres are inside a region; exact, as no outline is drawn.

    Args:
        region: in pixels of the image. If it reaches more than one pixel beyond the frame, a warning says so, and the
            part inside remains.
        shape: (H, W) of the image.

    Returns:
        (H, W) bool.

    Raises:
        DataError: if it lies outside the image, or no centre of a pixel is inside.

    Example:
        >>> square = Region("square", (np.array([[0.5, 0.5], [0.5, 3.5], [2.5, 3.5], [2.5, 0.5]]),))
        >>> region_mask(square, (4, 5)).astype(int)
        array([[0, 0, 0, 0, 0],
               [0, 1, 1, 1, 0],
               [0, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])
    """
    corners = np.concatenate(region.polygons)
    least, most = corners.min(axis=0), corners.max(axis=0)
    frame = f"the image of {shape[0]}x{shape[1]} px (rows x columns)"
    extent = f"rows {least[0]:g} to {most[0]:g} and columns {least[1]:g} to {most[1]:g}"
    limit = np.array(shape) - 0.5
    if (most < -0.5).any() or (least > limit).any():
        raise DataError(
            f"Region {region.name!r} ({extent}) lies outside {frame}. Does it belong to another image, or to one of "
            "another resolution?"
        )
    if (least < -1.5).any() or (most > limit + 1).any():
        rank_zero_warn(f"Region {region.name!r} ({extent}) reaches beyond {frame}: only the part inside counts.")
    height, width = shape
    # One more column, for what is crossed to the right of the last pixel. uint8 overflows, which keeps it odd or even.
    crossings = np.zeros((height, width + 1), np.uint8)
    for polygon in region.polygons:
        rows, columns = _crossings(polygon, height)
        np.add.at(crossings, (rows, np.clip(np.ceil(columns), 0, width).astype(np.int64)), 1)
    mask = (np.bitwise_xor.accumulate(crossings, axis=1)[:, :width] & 1).astype(bool)
    if not mask.any():
        raise DataError(f"Region {region.name!r} ({extent}) holds no centre of a pixel of {frame}. Draw it larger.")
    return mask


def _crossings(polygon: NDArray[np.float64], height: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where an outline crosses the centres of rows: rows, and columns that are not whole."""
    following = np.roll(polygon, -1, axis=0)
    # From the upper end to the lower one, so that neighbours that share an edge get the same numbers.
    downward = (polygon[:, 0] <= following[:, 0])[:, None]
    upper, lower = np.where(downward, polygon, following), np.where(downward, following, polygon)
    first, stop = (np.clip(np.ceil(end[:, 0]), 0, height).astype(np.int64) for end in (upper, lower))
    edges = np.repeat(np.arange(len(polygon)), stop - first)
    before = np.cumsum(stop - first) - (stop - first)
    rows = first[edges] + np.arange(len(edges)) - before[edges]
    slope = (lower[edges, 1] - upper[edges, 1]) / (lower[edges, 0] - upper[edges, 0])
    return rows, upper[edges, 1] + (rows - upper[edges, 0]) * slope
