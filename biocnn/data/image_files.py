"""Image files of all kinds, opened by their content: pictures, TIFF, HDF5 and Zarr."""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import h5py
import numpy as np
import zarr
from PIL import Image as Pillow

from biocnn.data.image_sources import ORIENTATION, Planes, Source, micrometres, plane_index
from biocnn.data.image_tiff import open_tiff
from biocnn.errors import BiocnnError, DataError, DatasetNotFoundError

_PICTURES = ("PNG", "JPEG", "GIF", "BMP")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
    if not path.exists():
        raise DatasetNotFoundError(f"There is no image {path}. Check the path.")
    try:
        opener = _opener(path)
        if key is not None and opener not in (_open_hdf5, _open_zarr):
            raise ValueError(f"it is neither HDF5 nor Zarr, received key={key!r}")
        with opener(path, key, axes) as sources:
            yield sources
    except BiocnnError:
        raise
    except Exception as error:  # decoders raise a dozen types for damaged files, zlib.error and SyntaxError among them
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _opener(path: Path) -> Callable[[Path, str | None, str | None], Any]:
    if path.is_dir():
        return _open_zarr
    with open(path, "rb") as handle:
        start = handle.read(4)
    if start in _TIFF_SIGNATURES:
        return open_tiff
    return _open_hdf5 if h5py.is_hdf5(path) else _open_picture


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


# HDF5 and Zarr


@contextmanager
def _open_hdf5(path: Path, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    # locking=False: network file systems of clusters refuse HDF5 locks, and nothing here writes.
    with h5py.File(path, "r", locking=False) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        dataset = found[_choose(found, key)]
        sizes = np.atleast_1d(dataset.attrs.get("element_size_um", ()))  # as ilastik and Fiji write it: Z, Y, X
        sizes_um = dict(zip("ZYX"[-len(sizes) :] if len(sizes) else "", sizes, strict=False))
        names = [dimension.label for dimension in dataset.dims]
        yield [_array_source(dataset, axes, names, micrometres(sizes_um, dict.fromkeys("ZYX", "um")))]


@contextmanager
def _open_zarr(path: Path, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    if not any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")):
        raise ValueError("it is a folder without Zarr metadata")
    node = zarr.open(path, mode="r")
    sizes_um: dict[str, float] = {}
    names: Sequence[str | None] = ()
    if isinstance(node, zarr.Group):
        attributes: dict[str, Any] = dict(node.attrs)
        scales = attributes.get("ome", attributes).get("multiscales")  # since OME-Zarr 0.5 below "ome"
        if scales and key in (None, scales[0]["datasets"][0]["path"]):
            # OME-Zarr: the first data set is the full resolution.
            key = str(scales[0]["datasets"][0]["path"])
            names = [axis["name"] for axis in scales[0]["axes"]]
            sizes_um = _ome_zarr_pixel_size(scales[0])
        found = {name: item for name, item in node.members(max_depth=None) if isinstance(item, zarr.Array)}
        node = found[_choose(found, key)]
    elif key is not None:
        raise ValueError(f"it is a single array, received key={key!r}")
    names = names or getattr(node.metadata, "dimension_names", None) or ()
    yield [_array_source(node, axes, names, sizes_um)]


def _ome_zarr_pixel_size(scale: Mapping[str, Any]) -> dict[str, float]:
    steps = [t["scale"] for t in scale["datasets"][0].get("coordinateTransformations", ()) if t["type"] == "scale"]
    if not steps:
        return {}
    sizes = {axis["name"].upper(): step for axis, step in zip(scale["axes"], steps[0], strict=True)}
    units = {axis["name"].upper(): axis.get("unit") for axis in scale["axes"]}
    return micrometres({axis: sizes[axis] for axis in "ZYX" if axis in sizes}, units)


def _choose(found: Mapping[str, Any], key: str | None) -> str:
    name = next(iter(found)) if key is None and len(found) == 1 else (key or "").strip("/")
    if name not in found:
        what = "several arrays; give one as `key`" if key is None and found else f"no array {key!r}"
        raise ValueError(f"it has {what}: it holds {sorted(found)}")
    return name


def _array_source(array: Any, axes: str | None, names: Sequence[str | None], sizes_um: dict[str, float]) -> Source:
    shape = tuple(array.shape)
    letters = axes or "".join(name or "" for name in names).upper()
    if axes is None and (len(letters) != len(shape) or not set("YX") <= set(letters)):
        # Nobody says: up to four entries at the end are channels.
        letters = {2: "YX", 3: "YXC" if shape[-1] <= 4 else "ZYX", 4: "ZYXC"}.get(len(shape), "")

    def read(planes: Planes) -> np.ndarray:
        return np.asarray(array[plane_index(letters, planes)])

    return Source(letters, shape, np.dtype(array.dtype), read, pixel_size_um=sizes_um)
