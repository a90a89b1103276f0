"""Small image files for the tests of the readers: noise, palettes, and PNGs of kinds that no library writes."""

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from PIL import Image as Pillow

RNG = np.random.default_rng(3)


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    """Values over the whole range of an integer type; of both signs and beyond 1 for floats."""
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 1000, shape).astype(dtype)
    found = np.iinfo(dtype)
    array = RNG.integers(found.min, found.max, shape, dtype, endpoint=True)
    array.flat[0] = found.max
    return array


def swap(array: np.ndarray) -> np.ndarray:
    """Red, green, blue in the order of OpenCV."""
    return array if array.ndim == 2 else array[..., [2, 1, 0, *range(3, array.shape[2])]]


def opencv(path: Path, array: np.ndarray) -> None:
    """Write grey values, or colours in the order red, green, blue, in the format that the suffix says."""
    assert cv2.imwrite(str(path), swap(array))


def hdf5(path: Path, array: np.ndarray) -> None:
    """Write the only array of an HDF5 file."""
    with h5py.File(path, "w") as file:
        file["volume"] = array


def png_bytes(pixels: np.ndarray, colour_type: int, *extra: bytes) -> bytes:
    """PNG of big-endian samples, chunk by chunk, for what no library here writes."""
    height, width = pixels.shape[:2]
    bits = 8 * pixels.dtype.itemsize
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    content = b"IDAT" + zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    chunks = [header, *extra, content, b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def palette_picture(indices: np.ndarray, colours: list[tuple[int, int, int]]) -> Pillow.Image:
    """Indices (H, W) into a table of colours."""
    picture = Pillow.fromarray(indices.astype(np.uint8), "L").convert("P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata(indices.ravel().tolist())
    return picture
