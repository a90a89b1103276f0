"""Image files of all kinds, opened by their content: pictures, TIFF, HDF5 and Zarr."""

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import h5py
import numpy as np
from PIL import Image as Pillow

from biocnn.data.image_arrays import open_hdf5, open_zarr
from biocnn.data.image_sources import ORIENTATION, Planes, Source
from biocnn.data.image_tiff import open_tiff
from biocnn.errors import BiocnnError, DataError, DatasetNotFoundError

_PICTURES = ("PNG", "JPEG", "GIF", "BMP")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


Opener = Callable[[Path, str | None, str | None], AbstractContextManager[list[Source]]]
"""Opens a file, given `key` and `axes`, for as long as its sources are read."""


@contextmanager
def open_sources(path: Path, key: str | None = None, axes: str | None = None) -> Iterator[list[Source]]:
    """Open an image file by what its first bytes say; arrays are read while it is open.

    Args:
        path: PNG, JPEG, GIF, BMP, TIFF or HDF5 file, or Zarr folder.
        key: array within HDF5 or Zarr; may be left out when there is one only.
        axes: letters of the axes instead of those that the file says or lets guess.

    Yields:
        One source; several for a TIFF whose pages differ in shape.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if it cannot be read, now or when its arrays are.
    """
    with named_errors(path), find_opener(path, key)(path, key, axes) as sources:
        yield sources


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Whatever fails within becomes a :class:`DataError` that names the image, unless it is an error of biocnn."""
    try:
        yield
    except BiocnnError:
        raise
    except Exception as error:  # decoders raise a dozen types for damaged files, zlib.error and SyntaxError among them
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def find_opener(path: Path, key: str | None = None) -> Opener:
    """What opens the file, as its first bytes say.

    Raises:
        DatasetNotFoundError: if there is no such file.
        ValueError: if it has no arrays that `key` could name.
    """
    if not path.exists():
        raise DatasetNotFoundError(f"There is no image {path}. Check the path.")
    opener = _opener(path)
    if key is not None and opener not in (open_hdf5, open_zarr):
        raise ValueError(f"it is neither HDF5 nor Zarr, received key={key!r}")
    return opener


def _opener(path: Path) -> Opener:
    if path.is_dir():
        return open_zarr
    with open(path, "rb") as handle:
        start = handle.read(4)
    if start in _TIFF_SIGNATURES:
        return open_tiff
    return open_hdf5 if h5py.is_hdf5(path) else _open_picture


# PNG, JPEG, GIF, BMP


@contextmanager
def _open_picture(path: Path, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    with open(path, "rb") as handle:
        picture = _pillow(handle)
        if picture.format == "PNG":
            mode, orientation = _png_facts(handle, picture.mode)
        else:
            mode, orientation = picture.mode, int(picture.getexif().get(ORIENTATION, 1))
        # Cameras put previews and depth maps behind the photograph: of a JPEG only the first picture is one.
        frames = int(getattr(picture, "n_frames", 1)) if picture.format in ("GIF", "PNG") else 1
        deep = mode.endswith(";16")
        colours = frames > 1 or mode not in ("1", "L", "LA", "L;16", "P") or not _is_grey(picture)
        letters, shape = ("YXS", (picture.height, picture.width, 3)) if colours else ("YX", picture.size[::-1])
        if frames > 1:
            letters, shape = f"I{letters}", (frames, *shape)

        def read(planes: Planes) -> np.ndarray:
            if deep:
                return _deep_png(path, colours)
            if frames == 1:
                return _pixels(picture, colours)
            pages = []
            for number in range(frames) if planes is None else planes:
                picture.seek(number)
                pages.append(_pixels(picture, colours))
            return np.stack(pages) if planes is None else pages[0]

        if axes is not None and axes != letters:
            raise ValueError(f"its axes are {letters!r}, received axes={axes!r}")
        dtype = np.dtype(np.uint16 if deep else np.uint8)
        yield [Source(letters, shape, dtype, read, orientation=orientation)]


def _pillow(handle: BinaryIO) -> Any:
    """Open a picture without the limit of 179 million pixels of `PIL.Image.open`; readers have a budget in bytes."""
    Pillow.preinit()
    start = handle.read(16)
    for name in _PICTURES:
        factory, accept = Pillow.OPEN[name]
        if accept is None or accept(start):
            handle.seek(0)
            return factory(handle, "")
    raise ValueError("it is none of PNG, JPEG, GIF, BMP, TIFF, HDF5 and Zarr")


def _png_facts(handle: BinaryIO, mode: str) -> tuple[str, int]:
    """Mode and orientation of a PNG, from its chunks; Pillow would have to decode it to find the latter.

    Returns:
        ``"L;16"`` or ``"RGB;16"`` for 16 bits per colour, with alpha or without, else `mode`; and 1 to 8.

    Raises:
        ValueError: if the file ends before its last chunk.
    """
    position, orientation = handle.tell(), 1
    handle.seek(8)
    while len(head := handle.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            depth, colour_type = handle.read(length)[8:10]
            if depth == 16:
                mode = "L;16" if colour_type in (0, 4) else "RGB;16"
        elif kind == b"eXIf":
            exif = Pillow.Exif()
            exif.load(b"Exif\0\0" + handle.read(length))
            orientation = int(exif.get(ORIENTATION, 1))
        elif kind == b"IEND":
            handle.seek(position)
            return mode, orientation
        else:
            handle.seek(length, 1)
        handle.seek(4, 1)
    raise ValueError("the PNG ends before its last chunk: it is truncated")


def _palette(picture: Any) -> np.ndarray:
    return np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)


def _is_grey(picture: Any) -> bool:
    return picture.mode != "P" or not np.ptp(_palette(picture), axis=1).any()


def _pixels(picture: Any, colours: bool) -> np.ndarray:
    """8-bit colours (H, W, 3) or grey values (H, W), never palette indices; alpha is left out."""
    if picture.mode == "P":
        palette = _palette(picture)
        # Indices beyond the palette are black, as decoders have it.
        table = np.zeros((256, 3), np.uint8)
        table[: len(palette)] = palette
        decoded: np.ndarray = table[np.asarray(picture)] if colours else table[:, 0][np.asarray(picture)]
        return decoded
    # `convert` to RGB of RGBA or LA leaves the alpha channel out and does not blend.
    return np.asarray(picture.convert("RGB" if colours else "L"))


def _deep_png(path: Path, colours: bool) -> np.ndarray:
    """16-bit PNG, of which Pillow keeps 8 bits per colour; (H, W, 3) or (H, W)."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("its 16-bit PNG data is damaged")
    if pixels.ndim == 3:  # blue, green, red and alpha; grey with alpha comes as four channels too
        pixels = pixels[..., 2::-1] if colours else pixels[..., 0]
    return np.asarray(pixels)
