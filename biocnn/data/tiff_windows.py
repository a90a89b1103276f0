"""Parts of TIFF images, of which no more is decoded than the tiles or strips that they touch."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import tifffile

from biocnn.data.image_sources import Index, is_plane

CACHE_BYTES = 256_000_000
"""Decoded tiles that are kept: a row of 512x512 tiles of an RGB image is 154 MB at 100,000 columns."""
_BOMB_BYTES = 1_000_000_000
# No DEFLATE stream grows by more: https://zlib.net/zlib_tech.html, "Maximum Compression Factor".
_DEFLATE, _DEFLATE_FACTOR = (8, 32946), 1032
# What cannot be compressed grows a little when one tries, and JPEG has headers; tiles of twice their size are damaged.
_OVERHEAD = 65_536


def tiff_window(
    tiff: Any, number: int, letters: str, shape: tuple[int, ...]
) -> tuple[Callable[[Index], np.ndarray] | None, int]:
    """How to read a part of a series of pages at full resolution.

    Args:
        tiff: an open `tifffile.TiffFile`.
        number: of the series.
        letters: axes of the series.
        shape: of the series, before a palette is applied.

    Returns:
        A function as described by `Source.window`, in the values of the file; and the bytes of the largest piece
        that it decodes at once, 0 when nothing is encoded. None and 0 when the pages can only be decoded as a whole:
        their compression needs a package that is absent, or a page has axes other than rows, columns and channels.
    """
    series = tiff.series[number]
    frame, pages = series.keyframe, series.pages
    if len(pages) == 1 and series.dataoffset is not None:
        return _stored_series(tiff, number, shape), 0
    lead = 0
    while prod(shape[:lead]) < len(pages) and lead < len(shape):
        lead += 1
    rest = letters[lead:]
    if prod(shape[:lead]) != len(pages) or any(is_plane(letter) for letter in rest) or not _is_flat(frame, rest):
        return None, 0
    if frame.compression not in tifffile.TIFF.DECOMPRESSORS or frame.predictor not in tifffile.TIFF.UNPREDICTORS:
        return None, 0
    grid = np.arange(len(pages)).reshape(shape[:lead])
    reader = _PageReader(frame)

    def window(index: Index) -> np.ndarray:
        places = dict(zip(rest, index[lead:], strict=True))
        numbers = np.asarray(grid[index[:lead]])
        rows, columns = places["Y"], places["X"]
        assert isinstance(rows, slice)
        assert isinstance(columns, slice)
        parts = [reader.read(pages[place], rows, columns) for place in numbers.ravel().tolist()]
        stack = np.stack(parts).reshape(numbers.shape + tuple(parts[0].shape))
        others = tuple(slice(None) if letter in "YX" else places[letter] for letter in rest)
        return np.asarray(stack[(..., *others)])

    return window, reader.piece_bytes


def _stored_series(tiff: Any, number: int, shape: tuple[int, ...]) -> Callable[[Index], np.ndarray]:
    """Part of a series whose values lie in the file one after the other, uncompressed."""
    series, handle = tiff.series[number], tiff.filehandle
    dtype = series.dtype.newbyteorder(tiff.byteorder)

    def window(index: Index) -> np.ndarray:
        if series.dataoffset + prod(shape) * dtype.itemsize > handle.size:
            raise ValueError(f"it has {handle.size:,} bytes and values that lie beyond: it is truncated")
        # The map goes with the call, so that the pages it touched do not count as memory in use for longer.
        return np.array(np.memmap(handle.path, dtype, "r", series.dataoffset, shape)[index])

    return window


def _is_flat(frame: Any, rest: str) -> bool:
    """Whether a page is rows by columns, with channels at most, in this order of its axes."""
    shape, depth = frame.shape, frame.shaped[1]
    return (
        depth == 1
        and set(rest) >= {"Y", "X"}
        and len(shape) == len(rest) == len(frame.axes)
        and (rest.index("Y"), rest.index("X")) == (frame.axes.find("Y"), frame.axes.find("X"))
    )


class _PageReader:
    """Windows of the pages of a series, with the tiles that were decoded last.

    Attributes:
        piece_bytes: of the largest tile or strip; 0 when the pages are stored as they are.
    """

    def __init__(self, frame: Any) -> None:
        self.frame = frame
        self.separate, _, self.height, self.width, self.samples = frame.shaped
        strip = (min(frame.rowsperstrip, self.height), self.width)
        self.tile = (frame.tilelength, frame.tilewidth) if frame.is_tiled else strip
        self.piece_bytes = 0 if frame.is_final else prod(self.tile) * self.samples * frame.dtype.itemsize
        self.cache: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        self.cached_bytes = 0
        self.checked: set[tuple[str, Any]] = set()
        self.lock = threading.Lock()

    def read(self, page: Any, rows: slice, columns: slice) -> np.ndarray:
        """Window of a page, with the axes of the page."""
        if page is None:
            raise ValueError("it lacks pages that its metadata names")
        with self.lock:
            self._check(page)
            window = self._stored(page, rows, columns) if self.frame.is_final else self._tiled(page, rows, columns)
        sizes = {"Y": window.shape[1], "X": window.shape[2]}
        # Separate and contiguous samples are the same axis; whichever is not there has length 1.
        return window.reshape([sizes.get(letter, -1) for letter in self.frame.axes])

    def _check(self, page: Any) -> None:
        """All of a page lies within its file; tifffile would fill what is missing with zeros."""
        handle = page.parent.filehandle
        if (handle.path, page.index) in self.checked:
            return
        if handle.closed:  # another file of a set that OME metadata names
            handle.open()
        counts = [self._stored_bytes] if self.frame.is_final else page.databytecounts
        if max(map(sum, zip(page.dataoffsets, counts, strict=False)), default=0) > handle.size:
            raise ValueError(f"it has {handle.size:,} bytes and pages that lie beyond: it is truncated")
        self.checked.add((handle.path, page.index))

    @property
    def _stored_bytes(self) -> int:
        return int(prod(self.frame.shaped)) * int(self.frame.dtype.itemsize)

    def _stored(self, page: Any, rows: slice, columns: slice) -> np.ndarray:
        dtype = self.frame.dtype.newbyteorder(page.parent.byteorder)
        shape = (self.separate, self.height, self.width, self.samples)
        values = np.memmap(page.parent.filehandle.path, dtype, "r", page.dataoffsets[0], shape)
        return np.array(values[:, rows, columns])

    def _tiled(self, page: Any, rows: slice, columns: slice) -> np.ndarray:
        length, width = self.tile
        across, down = ceil(self.width / width), ceil(self.height / length)
        shape = (self.separate, rows.stop - rows.start, columns.stop - columns.start, self.samples)
        window = np.full(shape, self.frame.nodata, self.frame.dtype)
        tiles_down = range(rows.start // length, ceil(rows.stop / length))
        tiles_across = range(columns.start // width, ceil(columns.stop / width))
        for plane, i, j in product(range(self.separate), tiles_down, tiles_across):
            tile = self._tile(page, (plane * down + i) * across + j)
            if tile is None:  # left out of the file: it holds nothing
                continue
            top, left = i * length, j * width
            inside = tile[
                max(rows.start - top, 0) : rows.stop - top, max(columns.start - left, 0) : columns.stop - left
            ]
            row, column = max(top - rows.start, 0), max(left - columns.start, 0)
            window[plane, row : row + inside.shape[0], column : column + inside.shape[1]] = inside
        return window

    def _tile(self, page: Any, place: int) -> np.ndarray | None:
        handle, offset, count = page.parent.filehandle, page.dataoffsets[place], page.databytecounts[place]
        if not count:
            return None
        key = (handle.path, offset, place)
        if key in self.cache:
            self.cache.move_to_end(key)
            return self.cache[key]
        if self.frame.compression != 1 and count > 2 * self.piece_bytes + _OVERHEAD:
            raise ValueError(f"a tile of {self.piece_bytes:,} bytes takes {count:,} bytes in the file: it is damaged")
        handle.seek(offset)
        data = handle.read(count)
        self._check_deflate(data)
        tables = {"jpegtables": page.jpegtables, "jpegheader": self.frame.jpegheader}
        decoded, _, _ = self.frame.decode(data, place, **tables)
        tile = np.asarray(decoded[0])
        self.cache[key] = tile
        self.cached_bytes += tile.nbytes
        while self.cached_bytes > CACHE_BYTES and len(self.cache) > 1:
            self.cached_bytes -= self.cache.popitem(last=False)[1].nbytes
        return tile

    def _check_deflate(self, data: bytes) -> None:
        """Refuse a stream that would unpack to more than a tile, where that could fill the memory."""
        if self.frame.compression in _DEFLATE and len(data) * _DEFLATE_FACTOR > _BOMB_BYTES:
            stream = zlib.decompressobj()
            longest = 2 * self.piece_bytes + _OVERHEAD
            if len(stream.decompress(data, longest + 1)) > longest:
                raise ValueError(f"a tile unpacks to more than twice its {self.piece_bytes:,} bytes: it is damaged")
