"""What image files say about themselves, and their pixels, for audits and drafts of manifests.

Arrays are (rows, columns) or (rows, columns, channels), in the dtype of the file.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from biocnn.errors import DataError

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".gif", ".bmp")
_TIFF_SUFFIXES = (".tif", ".tiff")
_MICROMETRES = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_ROW_NAMES, _COLUMN_NAMES = ("row", "y", "axis-0"), ("column", "col", "x", "axis-1")


@dataclass(frozen=True)
class Header:
    """Shape of an image file.

    Attributes:
        height: rows.
        width: columns.
        channels: 1 for grey; an alpha channel counts.
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
    """Shape and dtype of an image file without decoding it.

    Raises:
        DataError: if the file is no image that can be read.
    """
    try:
        if path.suffix.lower() in _TIFF_SUFFIXES:
            return _tiff_header(path)
        with Image.open(path) as image:
            dtype = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}.get(image.mode, "uint8")
            if path.suffix.lower() == ".png":
                dtype = _png_dtype(path, dtype)
            # A palette is a way to store colours; turned photographs are turned upright before use.
            channels = 3 if image.mode == "P" else len(image.getbands())
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = image.size[::-1] if turned else image.size
            return Header(height, width, channels, dtype)
    except (OSError, ValueError, Image.DecompressionBombError, tifffile.TiffFileError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _tiff_header(path: Path) -> Header:
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        channels = sizes.get("S", 1) * sizes.get("C", 1)
        planes = int(np.prod(series.shape)) // (sizes["Y"] * sizes["X"] * channels)
        return Header(sizes["Y"], sizes["X"], channels, str(series.dtype), planes)


def _png_dtype(path: Path, dtype: str) -> str:
    """Pillow opens 16-bit colour as 8-bit; byte 24 of a PNG, in its header chunk, is the true bit depth."""
    with open(path, "rb") as handle:
        start = handle.read(25)
    return "uint16" if len(start) == 25 and start[24] == 16 else dtype


def read_pixels(path: Path, grey: bool = False) -> np.ndarray:
    """Decode an image file.

    Args:
        path: image file.
        grey: for masks and dot images: apply a palette and return one channel.

    Returns:
        (H, W) or (H, W, C). Palettes are applied, 1-bit images become 0 and 255, EXIF rotation is undone. 16-bit
        colour PNG is reduced to 8 bits per channel.

    Raises:
        DataError: if the file cannot be decoded.
    """
    try:
        if path.suffix.lower() in _TIFF_SUFFIXES:
            try:
                return np.asarray(tifffile.imread(path))
            except ValueError:  # a compression that tifffile leaves to imagecodecs, such as LZW: Pillow knows it
                pass
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("P", "1"):
                image = image.convert("L" if grey or image.mode == "1" else "RGB")
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, tifffile.TiffFileError) as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error


def read_mask(path: Path) -> np.ndarray:
    """Grey values of a mask, (H, W); of several channels the largest value, so that colour does not matter."""
    pixels = read_pixels(path, grey=True)
    return pixels.max(axis=2) if pixels.ndim == 3 else pixels


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
    dots = read_mask(path)
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
    """Micrometres per pixel, row then column, from OME, ImageJ or resolution tags of a TIFF; None when not there.

    Resolutions in dots per inch, such as 72 or 300, are settings for printers and are not used.
    """
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            if tiff.ome_metadata:
                return _ome_pixel_size(tiff.ome_metadata)
            tags = tiff.pages[0].tags  # type: ignore[union-attr]
            unit = str((tiff.imagej_metadata or {}).get("unit", ""))
            if unit not in _MICROMETRES:
                centimetre = tags.get("ResolutionUnit") is not None and int(tags["ResolutionUnit"].value) == 3
                unit = "cm" if centimetre else ""
            if not unit or "XResolution" not in tags or "YResolution" not in tags:
                return None
            sizes = []
            for name in ("YResolution", "XResolution"):
                pixels, units = tags[name].value
                sizes.append(_MICROMETRES[unit] * units / pixels)
            return sizes[0], sizes[1]
    except (OSError, ValueError, ZeroDivisionError, tifffile.TiffFileError):
        return None


def _ome_pixel_size(xml: str) -> tuple[float, float] | None:
    content = tifffile.xml2dict(xml)["OME"]["Image"]
    pixels = (content[0] if isinstance(content, list) else content)["Pixels"]
    sizes = []
    for axis in "YX":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if f"PhysicalSize{axis}" not in pixels or unit not in _MICROMETRES:
            return None
        sizes.append(float(pixels[f"PhysicalSize{axis}"]) * _MICROMETRES[unit])
    return sizes[0], sizes[1]
