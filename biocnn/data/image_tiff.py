"""TIFF files: pages, palettes, compressions and pixel sizes, with nothing lost or made up on the way."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from PIL.TiffImagePlugin import TiffImageFile

from biocnn.data.image_sources import ORIENTATION, Index, Planes, Source, is_plane, micrometres, plane_index
from biocnn.data.tiff_windows import tiff_window

_BYTE_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}


@contextmanager
def open_tiff(path: Path, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    """Arrays of a TIFF: one for all pages of the same shape; `key` means nothing here."""
    with tifffile.TiffFile(path) as tiff:
        _check_chain(tiff)
        # A reduced page beside a full one is a thumbnail.
        numbers = [n for n, series in enumerate(tiff.series) if not series.keyframe.is_reduced]
        yield [_tiff_source(tiff, number, axes) for number in numbers or range(len(tiff.series))]


def _check_chain(tiff: Any) -> None:
    """Follow the pages from one to the next; tifffile goes without those that lie beyond the end of the file.

    Raises:
        ValueError: if a page does.
    """
    handle, form = tiff.filehandle, tiff.tiff
    handle.seek(8 if tiff.is_bigtiff else 4)
    seen: set[int] = set()
    while offset := int.from_bytes(handle.read(form.offsetsize), _BYTE_ORDERS[form.byteorder]):
        if offset in seen:
            raise ValueError("its pages go round in a circle")
        seen.add(offset)
        handle.seek(offset)
        count = int.from_bytes(handle.read(form.tagnosize), _BYTE_ORDERS[form.byteorder])
        end = offset + form.tagnosize + count * form.tagsize
        if end + form.offsetsize > handle.size:
            raise ValueError(f"it has {handle.size:,} bytes and pages that lie beyond: it is truncated")
        handle.seek(end)


def _tiff_source(tiff: Any, number: int, axes: str | None) -> Source:
    series = tiff.series[number]
    frame, letters, shape = series.keyframe, axes or series.axes, tuple(series.shape)
    # ImageJ paints grey values and labels with a table for display only; in other files the table is the image.
    table = None
    if frame.photometric == tifffile.PHOTOMETRIC.PALETTE and not tiff.is_imagej and frame.dtype == np.uint8:
        table = np.ascontiguousarray((frame.colormap >> 8).astype(np.uint8).T)
    count, lead = len(series.pages), 0
    while prod(shape[:lead]) < count and lead < len(shape):
        lead += 1
    by_page = prod(shape[:lead]) == count and not any(is_plane(letter) for letter in letters[lead:])

    def read(planes: Planes) -> np.ndarray:
        index = plane_index(letters, planes)
        if planes is None or not by_page:
            array = _tiff_pages(tiff, number, None).reshape(shape)[index]
        else:
            grid = np.arange(count).reshape(shape[:lead])[index[:lead]]
            array = _tiff_pages(tiff, number, grid.ravel().tolist()).reshape(grid.shape + shape[lead:])
        return shown(array)

    def shown(array: np.ndarray) -> np.ndarray:
        if array.dtype == bool:  # one bit per pixel: black and white
            array = array.astype(np.uint8) * np.uint8(255)
        return array if table is None else table[array]

    stored_window, piece_bytes = tiff_window(tiff, number, letters, shape)

    def window(index: Index) -> np.ndarray:
        assert stored_window is not None
        return shown(stored_window(index[: len(letters)]))

    dtype = np.dtype(np.uint8) if series.dtype == bool else series.dtype
    alpha = frame.photometric == tifffile.PHOTOMETRIC.RGB or "S" in letters
    alpha = alpha and tuple(frame.extrasamples)[-1:] in ((1,), (2,))
    orientation = frame.tags.get(ORIENTATION)
    return Source(
        letters if table is None else f"{letters}S",
        shape if table is None else (*shape, 3),
        dtype,
        read,
        by_page,
        _tiff_pixel_size(tiff, number),
        bool(alpha and "S" in letters),
        1 if orientation is None else int(orientation.value),
        None if stored_window is None else window,
        piece_bytes,
        _channel_names(tiff, number),
    )


def _tiff_pages(tiff: Any, number: int, keys: list[int] | None) -> np.ndarray:
    """Decoded pages of a series; all when `keys` is None.

    Raises:
        ValueError: if bytes or pages are missing, which tifffile would fill with zeros, or the compression is not
            known.
    """
    series = tiff.series[number]
    pages = [series.pages[key] for key in (range(len(series.pages)) if keys is None else keys)]
    if any(page is None for page in pages):
        raise ValueError("it lacks pages that its metadata names")
    size = tiff.filehandle.size
    ends = [max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0) for page in pages]
    if any(end > page.parent.filehandle.size for end, page in zip(ends, pages, strict=True)) or (
        series.dataoffset is not None and keys is None and series.dataoffset + series.nbytes > size
    ):
        raise ValueError(f"it has {size:,} bytes and pages that lie beyond: it is truncated")
    try:
        return np.asarray(series.asarray() if keys is None else tiff.asarray(key=keys, series=number))
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        # A compression, such as LZW, that tifffile leaves to a package which need not be installed.
        return np.stack([_page_by_libtiff(Path(page.parent.filehandle.path), page) for page in pages])


def _page_by_libtiff(path: Path, page: Any) -> np.ndarray:
    """One page by OpenCV or Pillow, where these are known to return what is stored: dtype and shape must agree."""
    frame, kinds = page.keyframe, tifffile.PHOTOMETRIC
    orientation = frame.tags.get(ORIENTATION)
    usual = frame.photometric in (kinds.MINISBLACK, kinds.RGB, kinds.YCBCR, kinds.PALETTE)
    if usual and (orientation is None or orientation.value == 1):
        if page.dtype == np.uint8:
            with suppress(SyntaxError), TiffImageFile(path) as picture:  # a SyntaxError is an unusual layout
                picture.seek(page.index)
                decoded = np.asarray(picture)
                if picture.mode in ("L", "P", "RGB", "LA", "RGBA") and decoded.shape == page.shape:
                    return decoded
        # OpenCV knows 16 and 32 bits, but multiplies some colours with their alpha.
        found, pixels = cv2.imreadmulti(str(path), page.index, 1, flags=cv2.IMREAD_UNCHANGED)
        if found and not frame.extrasamples:
            decoded = pixels[0]
            if decoded.ndim == 3:  # blue, green and red
                decoded = decoded[..., [2, 1, 0, *range(3, decoded.shape[2])]]
            if (decoded.shape, decoded.dtype) == (page.shape, page.dtype):
                return np.asarray(decoded)
    raise ValueError(
        f"its compression {frame.compression.name} with {page.dtype} values of shape {page.shape} needs the package "
        "imagecodecs: install it, or save the file uncompressed or with zlib"
    )


def _tiff_pixel_size(tiff: Any, number: int) -> dict[str, float]:
    """Micrometres from OME, ImageJ or resolution tags; dots per inch, such as 72 or 300, are settings for printers."""
    if tiff.ome_metadata:
        pixels = _ome_pixels(tiff, number)
        sizes = {axis: pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"}
        return micrometres(sizes, {axis: pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"})
    tags, imagej = tiff.series[number].keyframe.tags, tiff.imagej_metadata or {}
    rates = {axis: tags[f"{axis}Resolution"].value for axis in "YX" if f"{axis}Resolution" in tags}
    sizes = {axis: units / pixels for axis, (pixels, units) in rates.items() if pixels}
    if found := micrometres(sizes | {"Z": imagej.get("spacing")}, dict.fromkeys("ZYX", imagej.get("unit"))):
        return found
    centimetre = "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3
    return micrometres(sizes, dict.fromkeys("YX", "cm")) if centimetre else {}


def _ome_pixels(tiff: Any, number: int) -> dict[str, Any]:
    """What OME metadata say of a series."""
    content = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    pixels: dict[str, Any] = (content[min(number, len(content) - 1)] if isinstance(content, list) else content)[
        "Pixels"
    ]
    return pixels


def _channel_names(tiff: Any, number: int) -> tuple[str, ...]:
    if not tiff.ome_metadata:
        return ()
    found = _ome_pixels(tiff, number).get("Channel", [])
    names = [channel.get("Name") for channel in (found if isinstance(found, list) else [found])]
    return tuple(map(str, names)) if all(names) else ()
