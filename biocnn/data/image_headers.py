"""What image files say about themselves, and their pixels, for audits and drafts of manifests.

Arrays are (rows, columns) or (rows, columns, channels), in the dtype of the file.
"""

import csv
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from biocnn.data.image_files import open_sources
from biocnn.data.images import read_image, read_mask, size_in_plane
from biocnn.errors import BiocnnError, DataError

__all__ = ["IMAGE_SUFFIXES", "Header", "pixel_size_um", "read_header", "read_mask", "read_pixels", "read_points"]

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".gif", ".bmp")
_ROW_NAMES, _COLUMN_NAMES = ("row", "y", "axis-0"), ("column", "col", "x", "axis-1")


@dataclass(frozen=True)
class Header:
    """Shape of an image file.

    Attributes:
        height: rows.
        width: columns.
        channels: 1 for grey; an alpha channel does not count.
        dtype: such as ``"uint8"``.
        planes: pages or depth steps; 1 for a plain image.
    """

    height: int
    width: int
    channels: int
    dtype: str
    planes: int = 1

    def __str__(self) -> str:
        planes = f"{self.planes} planes of " if self.planes > 1 else ""
        return f"{planes}{self.height}x{self.width}x{self.channels} {self.dtype}"


def read_header(path: Path) -> Header:
    """Shape and dtype that :func:`biocnn.data.images.read_image` would return, without decoding.

    Raises:
        DataError: if the file is no image that can be read, or holds images of several shapes.
    """
    with open_sources(path) as sources:
        if len(sources) > 1:
            raise DataError(f"{path} has {len(sources)} images of different kinds, expected one.")
        source = sources[0]
        sizes = dict(zip(source.axes, source.shape, strict=True))
        height, width = sizes["Y"], sizes["X"]
        if source.orientation >= 5:  # a quarter turn
            height, width = width, height
        channels = sizes.get("C", 1) * (sizes.get("S", 1) - source.alpha)
        return Header(height, width, channels, source.dtype.newbyteorder("=").name, prod(source.plane_shape))


def read_pixels(path: Path) -> np.ndarray:
    """Array of an image file; see :func:`biocnn.data.images.read_image`.

    Raises:
        DataError: if the file cannot be decoded.
    """
    return read_image(path).array


def read_points(path: Path) -> np.ndarray:
    """Points of a dot image or of a table.

    A dot pixel is one above half the largest value of the image; above 127 in a JPEG, whose compression leaves
    faint traces. Touching dots count one by one. A table is a CSV with a column ``row`` (or ``y``) and a column
    ``column`` (or ``x``).

    Args:
        path: image or ``.csv`` file.

    Returns:
        (N, 2) float64, row and column in pixels.

    Raises:
        DataError: if the file cannot be read or has no such columns.
    """
    if path.suffix.lower() == ".csv":
        return _read_table(path)
    dots = read_pixels(path)
    if dots.ndim == 3:
        dots = dots.max(axis=2)  # the colour of a dot does not matter
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return np.argwhere(dots > 127).astype(np.float64)
    return np.argwhere(dots > dots.max(initial=0) / 2).astype(np.float64)


def _read_table(path: Path) -> np.ndarray:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        rows = csv.reader(handle)
        header = [name.strip().lower() for name in next(rows, [])]
        row = next((header.index(name) for name in _ROW_NAMES if name in header), None)
        column = next((header.index(name) for name in _COLUMN_NAMES if name in header), None)
        if row is None or column is None:
            raise DataError(f"{path} has the columns {header}; expected `row` and `column`, or `y` and `x`.")
        try:
            points = [(float(cells[row]), float(cells[column])) for cells in rows if cells]
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}: line {rows.line_num} holds no point ({error}).") from error
    return np.array(points, np.float64).reshape(-1, 2)


def pixel_size_um(path: Path) -> tuple[float, float] | None:
    """Micrometres per pixel, row then column, as the file says; None when it does not, or cannot be read."""
    try:
        with open_sources(path) as sources:
            return size_in_plane(sources[0])
    except BiocnnError:
        return None
