"""OME-TIFF with a pyramid, written from bands of rows of images larger than memory."""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from biocnn.data.pyramids import TILE, Kind, level_shapes, levels, stored_bands, written_beside

_BIG = 2_000_000_000
# What waits to be compressed; tifffile would take half a gigabyte where it has several threads.
_WAITING_BYTES = 1 << 26
_TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")


def write_ome_tiff(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike,
    bands: Iterable[np.ndarray],
    pixel_size_um: tuple[float, float] | None,
    channel_names: Sequence[str] | None = None,
    kind: Kind = "map",
) -> None:
    """Write an OME-TIFF in tiles of 512 x 512, compressed by zlib, with copies of half the size in SubIFDs.

    Memory is that of a few bands of 512 rows, whatever the height. Smaller copies wait beside the file, uncompressed,
    and so do images of several channels: each channel is a page, but three of uint8 without names, which are colours.
    An existing file is replaced when the new one is whole.

    Args:
        path: file to write, by custom ending in ``.ome.tif``.
        shape: (H, W) or (H, W, C).
        dtype: integers up to 32 bits, float32 or float64; bool is written as 0 and 255 of uint8.
        bands: consecutive rows, (h, W) or (h, W, C), of any h.
        pixel_size_um: micrometres between rows and between columns; None if unknown, then nothing is said.
        channel_names: one for each channel.
        kind: ``"map"``: copies show the mean; ``"mask"``: the largest value, so that thin structures stay in sight.

    Raises:
        DataError: if it cannot be written, because the disk is full or for want of permission, for instance.
        ValueError: if the bands do not fit `shape` and `dtype`, or OME-TIFF has no such dtype.
    """
    path = Path(path)
    full = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    kept = np.dtype(np.uint8) if np.dtype(dtype) == bool else np.dtype(dtype)
    if kept.name not in _TYPES:
        raise ValueError(f"OME-TIFF has no {kept}; it has {', '.join(_TYPES)}")
    if channel_names is not None and len(channel_names) != full[2]:
        raise ValueError(f"received {len(channel_names)} names for {full[2]} channels")
    colours = full[2] == 3 and kept == np.uint8 and channel_names is None
    axes, photometric = ("YXS", "rgb") if colours else ("CYX" if full[2] > 1 else "YX", "minisblack")
    tags = _metadata(axes, pixel_size_um, channel_names)
    options: dict[str, Any] = {"tile": (TILE, TILE), "dtype": kept, "photometric": photometric}
    options |= {"compression": "zlib", "buffersize": _WAITING_BYTES}
    if pixel_size_um is not None:
        options |= {"resolution": [1e4 / size for size in pixel_size_um[::-1]], "resolutionunit": "CENTIMETER"}
    copies = len(level_shapes(full)) - 1
    with written_beside(path) as folder:
        big = prod(full) * kept.itemsize * 4 / 3 > _BIG
        with tifffile.TiffWriter(folder / path.name, ome=True, bigtiff=big) as writer:
            for number, rows in enumerate(levels(bands, full, kept, kind, folder)):
                height, width = level_shapes(full)[number][:2]
                size: tuple[int, ...] = (height, width, 3) if colours else (height, width)
                if axes == "CYX":
                    tiles, size = _tiles_by_channel(rows, (height, width, full[2]), folder), (full[2], height, width)
                else:
                    tiles = _tiles(rows, colours)
                place: dict[str, Any] = {"subfiletype": 1} if number else {"subifds": copies, "metadata": tags}
                if number and pixel_size_um is not None:
                    place["resolution"] = [rate / 2**number for rate in options["resolution"]]
                writer.write(tiles, shape=size, **(options | place))


def _metadata(
    axes: str, pixel_size_um: tuple[float, float] | None, channel_names: Sequence[str] | None
) -> dict[str, Any]:
    tags: dict[str, Any] = {"axes": axes}
    if pixel_size_um is not None:
        for axis, size in zip("YX", pixel_size_um, strict=True):
            tags |= {f"PhysicalSize{axis}": float(size), f"PhysicalSize{axis}Unit": "µm"}
    if channel_names is not None:
        tags["Channel"] = {"Name": list(channel_names)}
    return tags


def _tiles(bands: Iterable[np.ndarray], colours: bool) -> Iterator[np.ndarray]:
    """Tiles in the order of the file; those at the border are smaller, and padded by the writer."""
    for band in bands:
        for left in range(0, band.shape[1], TILE):
            tile = band[:, left : left + TILE]
            yield np.ascontiguousarray(tile if colours else tile[..., 0])


def _tiles_by_channel(bands: Iterator[np.ndarray], shape: tuple[int, int, int], folder: Path) -> Iterator[np.ndarray]:
    """Tiles of one channel after the other; the bands, which have all of them, go to files first."""
    paths = [folder / f"channel{channel}.raw" for channel in range(shape[2])]
    for path in paths:
        path.unlink(missing_ok=True)
    dtype = None
    for band in bands:
        dtype = band.dtype
        for channel, path in enumerate(paths):
            with open(path, "ab") as file:
                file.write(np.ascontiguousarray(band[..., channel]).data)
    for path in paths:
        assert dtype is not None
        yield from _tiles((band[..., None] for band in stored_bands(path, shape[1:2], dtype)), colours=False)
