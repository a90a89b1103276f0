"""What image files say about themselves, and their pixels, for audits and drafts of manifests.

Arrays are (rows, columns) or (rows, columns, channels), in the dtype of the file.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from biocnn.data.image_files import open_sources
from biocnn.data.images import read_image, read_mask, size_in_plane
from biocnn.errors import BiocnnError, DataError

__all__ = ["IMAGE_SUFFIXES", "Header", "pixel_size_um", "read_header", "read_mask", "read_pixels"]

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".gif", ".bmp")


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


def pixel_size_um(path: Path) -> tuple[float, float] | None:
    """Micrometres per pixel, row then column, as the file says; None when it does not, or cannot be read."""
    try:
        with open_sources(path) as sources:
            return size_in_plane(sources[0])
    except BiocnnError:
        return None
