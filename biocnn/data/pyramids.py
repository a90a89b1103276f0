"""Images that are written from bands of rows, with smaller copies for viewers, in the memory of a few bands."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from biocnn.errors import BiocnnError, DataError

Kind = Literal["map", "mask"]
"""Whether smaller copies show the mean, or, of masks, whatever is there."""
TILE = 512
"""Rows and columns of a tile, and the side below which a copy is not halved again."""


def level_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes (H, W, ...) of the image and of its copies, each half of the one before, until one tile holds it.

    >>> level_shapes((1100, 300))
    [(1100, 300), (550, 150), (275, 75)]
    """
    shapes = [shape]
    while max(shapes[-1][:2]) > TILE:
        height, width = shapes[-1][:2]
        shapes.append(((height + 1) // 2, (width + 1) // 2, *shape[2:]))
    return shapes


def checked_bands(bands: Iterable[np.ndarray], shape: tuple[int, int, int], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Bands of rows cut anew, to `TILE` rows each, the last one less.

    Args:
        bands: consecutive rows (h, W) or (h, W, C) of any h; bool counts as 0 and 255 of uint8.
        shape: (H, W, C) that they make up.
        dtype: that they have.

    Yields:
        (h, W, C) arrays.

    Raises:
        ValueError: if they have another shape or dtype, or are too few or too many rows.
    """
    left = shape[0]
    held = np.empty((min(TILE, left), *shape[1:]), dtype)
    filled = 0
    for band in bands:
        rows = band[..., None] if band.ndim == 2 else band
        rows = rows.astype(np.uint8) * np.uint8(255) if rows.dtype == bool else rows
        if rows.shape[1:] != shape[1:] or rows.dtype != dtype or len(rows) + filled > left:
            raise ValueError(
                f"expected {left - filled} more rows of {shape[1:]} {dtype}, received {rows.shape} {rows.dtype}"
            )
        while len(rows):
            taken = min(len(rows), len(held) - filled)
            held[filled : filled + taken] = rows[:taken]
            filled, rows = filled + taken, rows[taken:]
            if filled == len(held):
                yield held
                left -= filled
                held, filled = np.empty((min(TILE, left), *shape[1:]), dtype), 0
    if left:
        raise ValueError(f"expected {shape[0]} rows, received {shape[0] - left + filled}")


def halved(band: np.ndarray, kind: Kind) -> np.ndarray:
    """Half as many rows and columns of (h, W, C), rounded up; in the same dtype.

    Of a map a value is the mean of the up to four that it stands for, rounded for integers. Of a mask it is the
    largest: a structure one pixel wide stays in sight, where the nearest value would break it up.
    """
    height, width, channels = band.shape
    even = np.pad(band, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    corners = [even[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    if kind == "mask":
        return np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
    total = np.zeros(((height + 1) // 2, (width + 1) // 2, channels), np.promote_types(band.dtype, np.float32))
    for corner in corners:
        total += corner
    total /= 4
    return (np.rint(total) if band.dtype.kind in "ui" else total).astype(band.dtype)


def levels(
    bands: Iterable[np.ndarray], shape: tuple[int, int, int], dtype: np.dtype, kind: Kind, folder: Path
) -> Iterator[Iterator[np.ndarray]]:
    """The bands of the image, then those of each smaller copy; each iterator is used up before the next is asked for.

    While a level goes by, the next one is computed from it and kept in a file, uncompressed.

    Args:
        bands: consecutive rows of the image.
        shape: (H, W, C).
        dtype: of the values.
        kind: how copies are made.
        folder: for the files, which take a third of the bytes of the image.

    Yields:
        Iterators of (h, W, C) bands of `TILE` rows.
    """
    current = checked_bands(bands, shape, dtype)
    shapes = level_shapes(shape)
    for number, below in enumerate(shapes[1:]):
        path = folder / f"{number + 1}.raw"
        with open(path, "wb") as file:
            passed = _passed(current, file, kind)
            yield passed
            next(passed, None)  # who has taken all rows of the image does not notice that there are more
        current = checked_bands(stored_bands(path, below[1:], dtype), (below[0], below[1], below[2]), dtype)
    yield current
    next(current, None)


def _passed(bands: Iterator[np.ndarray], file: BinaryIO, kind: Kind) -> Iterator[np.ndarray]:
    for band in bands:
        file.write(halved(band, kind).data)
        yield band


def stored_bands(path: Path, line: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Rows of shape `line` from a file of bare values, `TILE` at a time."""
    with open(path, "rb") as file:
        while content := file.read(TILE * prod(line) * dtype.itemsize):
            yield np.frombuffer(content, dtype).reshape(-1, *line)


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A folder beside `target`, in which `target.name` is made; at the end this takes the place of `target`.

    Files and folders are renamed within their file system; a folder cannot replace another in one step, so the old
    one is set aside first, and brought back if the new one does not come. After an error the old one is as it was,
    and nothing is left beside it.

    Raises:
        DataError: if it cannot be written, because the disk is full or for want of permission, for instance.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".part") as folder:
            yield Path(folder)
            made = Path(folder) / target.name
            if made.is_file():
                with open(made, "rb+") as handle:
                    os.fsync(handle.fileno())
            if made.is_dir() and target.is_dir():
                aside = Path(folder) / "old"
                os.replace(target, aside)
                try:
                    os.replace(made, target)
                except OSError:
                    os.replace(aside, target)
                    raise
            else:
                os.replace(made, target)
    except BiocnnError:
        raise
    except OSError as error:
        free = f" {shutil.disk_usage(_existing(target)).free / 1e9:,.1f} GB are free there."
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}."
            f"{free + ' Make room and run it again.' if full else ' Check that the folder is there and writable.'}"
            " What was there before is unchanged."
        ) from error


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.is_dir())
