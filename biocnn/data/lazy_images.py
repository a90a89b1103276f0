"""Images larger than memory: opened, and read part by part with the values that `read_image` would return."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from biocnn.data.image_arrays import open_zarr_url
from biocnn.data.image_files import find_opener, named_errors
from biocnn.data.image_sources import Index, Source, is_plane
from biocnn.data.images import MAX_BYTES, find_plane, size_in_plane, upright
from biocnn.errors import DataError

_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, eq=False)
class LazyImage:
    """An image of which parts are read when they are asked for, by one thread at a time.

    Attributes:
        path: of the file, as it was given, or its URL.
        shape: rows, columns, channels.
        dtype: of the values, in the byte order of this computer.
        pixel_size_um: micrometres between neighbours, row then column; None when the file does not say.
        channel_names: as the file has them; ``"red"``, ``"green"``, ``"blue"`` for colours, else numbers from 0.
        by_tile: a read decodes about what it is asked for; otherwise the first one decodes everything.
        part: reads the part that `read` has checked.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    pixel_size_um: tuple[float, float] | None
    channel_names: tuple[str, ...]
    by_tile: bool
    part: Callable[[slice, slice], np.ndarray] = field(repr=False)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """A part of the image, (h, w, C) in its dtype; slices are cut off at the border as in numpy.

        Raises:
            DataError: if the file turns out to be damaged there.
        """
        sides = [part.indices(length) for part, length in zip((rows, columns), self.shape, strict=False)]
        if any(step != 1 for _, _, step in sides):
            raise ValueError(f"rows and columns are read without gaps, received {rows} and {columns}")
        (top, bottom, _), (left, right, _) = sides
        if bottom <= top or right <= left:
            return np.zeros((max(bottom - top, 0), max(right - left, 0), self.shape[2]), self.dtype)
        with named_errors(self.path):
            return self.part(slice(top, bottom), slice(left, right))


def from_array(array: np.ndarray, pixel_size_um: tuple[float, float] | None = None, path: str = "<array>") -> LazyImage:
    """An array (H, W) or (H, W, C) that is read as a lazy image; `path` is what messages call it."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{path} has the shape {array.shape}, expected (rows, columns) or (rows, columns, channels).")
    values = array if array.ndim == 3 else array[..., None]
    names = _names((), values.shape[2], colours=False)
    return LazyImage(
        path, values.shape, values.dtype, pixel_size_um, names, True, lambda rows, columns: values[rows, columns].copy()
    )


@contextmanager
def open_lazy(
    path: str | Path,
    *,
    page: int | None = None,
    channels: int | str | Sequence[int | str] | None = None,
    key: str | None = None,
    axes: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[LazyImage]:
    """Open an image to read it in parts; values are those of :func:`biocnn.data.images.read_image`.

    TIFF is decoded tile by tile or strip by strip, the last 256 MB of which are kept; uncompressed TIFF is read from
    where it lies; of HDF5 and Zarr the chunks are read that a part touches. PNG, JPEG, BMP and GIF are decoded whole
    when they are first read, and so are TIFFs of a compression that needs the package imagecodecs when that is not
    there, LZW and JPEG among them. Each process opens the image for itself.

    Args:
        path: image file or Zarr folder; or the URL of an OME-Zarr, ``https://...`` or what else fsspec knows.
        page: one plane of several, counted from 0; has to be given when there are several.
        channels: names or numbers, in the order in which they are wanted; None for all.
        key: name of the array in HDF5 or Zarr; not needed when there is one only.
        axes: letters of the axes as they are in the file, where it says nothing or is wrong.
        max_bytes: memory that decoding may take: of the image where it is decoded whole, else of one tile, strip or
            chunk. It is checked before anything is decoded.

    Yields:
        The image, to be read while it is open. Errors of what is done with it pass through as they are.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it is truncated, damaged, of no known kind, or too large to decode; needs `page`, `key` or
            `axes`; or has no such page, channel or key.

    Example:
        >>> import tempfile, tifffile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tifffile.imwrite(f"{folder}/a.tif", np.arange(10000).reshape(100, 100), tile=(16, 16))
        ...     with open_lazy(f"{folder}/a.tif") as image:
        ...         image.shape, image.read(slice(40, 42), slice(7, 9))[..., 0].tolist()
        ((100, 100, 1), [[4007, 4008], [4107, 4108]])
    """
    name = str(path)
    with ExitStack() as stack:
        with named_errors(name):
            if "://" in name:
                sources = stack.enter_context(open_zarr_url(name, key, axes))
            else:
                sources = stack.enter_context(find_opener(Path(path), key)(Path(path), key, axes))
            source, planes = find_plane(name, sources, page)
            if planes is None and (count := prod(source.plane_shape)) > 1:
                raise DataError(
                    f"{name} has {count} planes {source.axes} {'x'.join(map(str, source.shape))}. Choose one by "
                    f"`page`, 0 to {count - 1}; or say that they are channels, by `axes`."
                )
            image = _lazy(name, source, planes or (0,) * len(source.plane_shape), channels, max_bytes)
        yield image


def _lazy(
    name: str,
    source: Source,
    planes: tuple[int, ...],
    channels: int | str | Sequence[int | str] | None,
    max_bytes: int,
) -> LazyImage:
    sizes = dict(zip(source.axes, source.shape, strict=True))
    colours = sizes.get("S", 1) - source.alpha
    names = _names(source.channel_names, sizes.get("C", 1) * colours, colours == 3 and sizes.get("C", 1) == 1)
    numbers = _numbers(name, channels, names)
    height, width = (sizes["Y"], sizes["X"]) if source.orientation < 5 else (sizes["X"], sizes["Y"])
    window = _checked_window(name, source, planes, max_bytes)
    dtype = source.dtype.newbyteorder("=")

    def part(rows: slice, columns: slice) -> np.ndarray:
        stored = _stored_window(rows, columns, source.orientation, (height, width))
        if "C" in source.axes and colours == 1:
            runs = [numbers] if _is_run(numbers) else [[number] for number in numbers]
            pieces = [_read(source, window, planes, *stored, slice(min(run), max(run) + 1)) for run in runs]
            array = pieces[0][..., np.subtract(numbers, min(numbers))] if len(runs) == 1 else np.concatenate(pieces, -1)
        else:
            array = _read(source, window, planes, *stored, slice(None))[..., numbers]
        return np.ascontiguousarray(upright(array, source.orientation).astype(dtype, copy=False))

    values = prod(sizes[letter] for letter in "YXCS" if letter in sizes) * dtype.itemsize
    by_tile = source.window is not None and source.piece_bytes < values
    taken = tuple(names[number] for number in numbers)
    return LazyImage(name, (height, width, len(numbers)), dtype, size_in_plane(source), taken, by_tile, part)


def _checked_window(
    name: str, source: Source, planes: tuple[int, ...], max_bytes: int
) -> Callable[[Index], np.ndarray]:
    """`window` of a source, or the same of the whole plane, which is decoded once.

    Raises:
        DataError: if a piece, or the plane, takes more memory than is allowed.
    """
    needed = source.bytes_to_read(planes) if source.window is None else source.piece_bytes
    if needed > max_bytes:
        whole = "can only be decoded whole, which" if source.window is None else "is decoded in pieces, of which one"
        raise DataError(
            f"{name}, {source.axes} {'x'.join(map(str, source.shape))} {source.dtype}, {whole} takes "
            f"{needed / 1e9:,.2f} GB, more than the {max_bytes / 1e9:,.2f} GB of the limit. Save it as a tiled TIFF or "
            "OME-Zarr with smaller pieces, install imagecodecs if it is a TIFF with tiles, or raise `max_bytes`."
        )
    if source.window is not None:
        return source.window
    decoded = cache(lambda: source.read(planes))
    in_plane = [not is_plane(letter) for letter in source.axes]

    def window(index: Index) -> np.ndarray:
        return decoded()[tuple(place for place, kept in zip(index, in_plane, strict=True) if kept)]

    return window


def _read(
    source: Source,
    window: Callable[[Index], np.ndarray],
    planes: tuple[int, ...],
    rows: slice,
    columns: slice,
    channels: slice,
) -> np.ndarray:
    """Window of stored rows and columns as (h, w, C), without alpha; C counts all channels of all colours."""
    places = iter(planes)
    wanted = {"Y": rows, "X": columns, "C": channels, "S": slice(None)}
    array = window(tuple(next(places) if is_plane(letter) else wanted[letter] for letter in source.axes))
    letters = [letter for letter in source.axes if not is_plane(letter)]
    array = array.transpose([letters.index(letter) for letter in "YXCS" if letter in letters])
    if source.alpha:
        array = array[..., :-1]
    return array.reshape(*array.shape[:2], -1)


def _stored_window(rows: slice, columns: slice, orientation: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Where the rows and columns of an upright image of this shape are in the file; see `upright`."""
    if orientation in (3, 4, 7, 8):
        rows = slice(shape[0] - rows.stop, shape[0] - rows.start)
    if orientation in (2, 3, 6, 7):
        columns = slice(shape[1] - columns.stop, shape[1] - columns.start)
    return (columns, rows) if orientation in (5, 6, 7, 8) else (rows, columns)


def _is_run(numbers: Sequence[int]) -> bool:
    """Whether the numbers leave out none between the least and the greatest."""
    return len(set(numbers)) == max(numbers) - min(numbers) + 1


def _names(known: tuple[str, ...], count: int, colours: bool) -> tuple[str, ...]:
    if len(known) == count:
        return known
    return _COLOURS if colours else tuple(map(str, range(count)))


def _numbers(path: str, channels: int | str | Sequence[int | str] | None, names: tuple[str, ...]) -> list[int]:
    """Places of channels given by name, in upper or lower case, or by number."""
    if channels is None:
        return list(range(len(names)))
    wanted = [channels] if isinstance(channels, int | str) else list(channels)
    known: dict[int | str, int] = {number: number for number in range(len(names))}
    known |= {str(number): number for number in range(len(names))}
    known |= {name.casefold(): number for number, name in reversed(list(enumerate(names)))}
    numbers = [known.get(channel.casefold() if isinstance(channel, str) else channel) for channel in wanted]
    if not wanted or None in numbers:
        raise DataError(
            f"{path} has the channels {', '.join(names)} (0 to {len(names) - 1}), received channels={channels!r}."
        )
    return [number for number in numbers if number is not None]


_PART_BYTES = 64_000_000
"""Pixels of the image that one step of resampling holds."""


def resampled(image: LazyImage, pixel_size_um: tuple[float, float]) -> LazyImage:
    """The image with pixels of another size, computed for the part that is read.

    Corner stays on corner: pixel (i, j) covers the square from (i, j) to (i + 1, j + 1) times the pixel size, before
    and after, so that physical positions are kept; the shape is that of the old image times the ratio of the sizes,
    rounded. Along an axis that shrinks, a value is the mean over the length of the new pixel, each old pixel weighted
    by how much of it lies within (the area average; what a camera with larger pixels would have seen). Along one that
    grows it is interpolated linearly between the centres of old pixels, and beyond the last of these constant. A value
    does not depend on the part in which it is read. Integers are rounded, and so is bool; sums of values of 8 and 16
    bits and of float32 are float32, others float64.

    Args:
        image: to be resampled; it has to know its pixel size.
        pixel_size_um: the new one, micrometres between rows and between columns.

    Raises:
        DataError: if the image does not know its pixel size, or the new one is not positive and finite.
    """
    if image.pixel_size_um is None:
        raise DataError(f"{image.path} does not say its pixel size, so it cannot be brought to {pixel_size_um} um.")
    if not all(np.isfinite(size) and size > 0 for size in pixel_size_um):
        raise DataError(f"Pixel sizes are positive numbers of micrometres, received {pixel_size_um}.")
    ratios = [new / old for new, old in zip(pixel_size_um, image.pixel_size_um, strict=True)]
    height, width = (max(1, round(length / ratio)) for length, ratio in zip(image.shape, ratios, strict=False))
    exact = image.dtype.itemsize <= 2 or image.dtype == np.float32
    working = np.dtype(np.float32 if exact else np.float64)

    def rows_of(rows: slice, columns: slice) -> np.ndarray:
        up, down, row_weights = _taps(rows, ratios[0], image.shape[0])
        left, right, column_weights = _taps(columns, ratios[1], image.shape[1])
        values = image.read(slice(up, down), slice(left, right)).astype(working)
        values = _weighted(_weighted(values, *row_weights).swapaxes(0, 1), *column_weights).swapaxes(0, 1)
        if image.dtype.kind in "bui":
            values = np.rint(values)
        return values.astype(image.dtype)

    def part(rows: slice, columns: slice) -> np.ndarray:
        # A few rows after the other, as many as keep what is read of a strongly shrunk image small.
        line = ratios[0] * ratios[1] * (columns.stop - columns.start) * image.shape[2] * working.itemsize
        step = max(1, int(_PART_BYTES / line))
        starts = range(rows.start, rows.stop, step)
        return np.concatenate([rows_of(slice(start, min(start + step, rows.stop)), columns) for start in starts])

    return LazyImage(
        image.path,
        (height, width, image.shape[2]),
        image.dtype,
        (pixel_size_um[0], pixel_size_um[1]),
        image.channel_names,
        image.by_tile,
        part,
    )


def _taps(part: slice, ratio: float, length: int) -> tuple[int, int, tuple[np.ndarray, np.ndarray]]:
    """Old pixels that new ones are made of, along one axis.

    Args:
        part: new pixels, from start to stop.
        ratio: size of a new pixel in old ones.
        length: number of old pixels.

    Returns:
        First old pixel and the one after the last; and for each new pixel the indices of its old ones, counted from
        the first, and their weights, which sum to 1; both (N, T).
    """
    new = np.arange(part.start, part.stop)[:, None]
    if ratio > 1:
        begin, end = new * ratio, np.minimum((new + 1) * ratio, length)
        old = np.floor(begin).astype(int) + np.arange(int(np.ceil(ratio)) + 1)
        weights = np.clip(np.minimum(end, old + 1) - np.maximum(begin, old), 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        centre = np.clip((new + 0.5) * ratio - 0.5, 0, length - 1)
        old = np.floor(centre).astype(int) + np.arange(2)
        weights = np.clip(1 - np.abs(centre - old), 0, None)
    # What has no weight is not looked at: 0 times NaN is NaN.
    old = np.where(weights > 0, old, old[np.arange(len(old)), weights.argmax(axis=1)][:, None])
    first = int(old.min())
    return first, int(old.max()) + 1, (old - first, weights)


def _weighted(values: np.ndarray, old: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums along the first axis, always added in the same order; (N, ...) from (M, ...)."""
    total = np.zeros((len(old), *values.shape[1:]), values.dtype)
    for tap in range(old.shape[1]):
        total += values[old[:, tap]] * weights[:, tap].astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return total
