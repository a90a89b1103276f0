"""Arrays in HDF5 and Zarr files, in a folder or behind a URL: which one is the image, its axes and its pixel size."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from zarr.storage import FsspecStore

from biocnn.data.image_sources import Index, Planes, Source, micrometres, plane_index
from biocnn.errors import DataError, DatasetNotFoundError


@contextmanager
def open_hdf5(path: Path, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    """The array `key` of an HDF5 file, or its only one; `axes` are letters instead of those that it names."""
    # locking=False: network file systems of clusters refuse HDF5 locks, and nothing here writes.
    with h5py.File(path, "r", locking=False) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        dataset = found[_choose(found, key)]
        sizes = np.atleast_1d(dataset.attrs.get("element_size_um", ()))  # as ilastik and Fiji write it: Z, Y, X
        sizes_um = dict(zip("ZYX"[-len(sizes) :] if len(sizes) else "", sizes, strict=False))
        names = [dimension.label for dimension in dataset.dims]
        yield [_source(dataset, axes, names, micrometres(sizes_um, dict.fromkeys("ZYX", "um")))]


@contextmanager
def open_zarr(path: Path, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    """The array `key` of a Zarr folder, or its only one, or the full resolution of an OME-Zarr."""
    if not any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")):
        raise ValueError("it is a folder without Zarr metadata")
    yield [_zarr_source(zarr.open(path, mode="r"), key, axes)]


@contextmanager
def open_zarr_url(url: str, key: str | None, axes: str | None) -> Iterator[list[Source]]:
    """The same from a server, such as ``https://...`` or ``s3://...``, by the package fsspec.

    Raises:
        DataError: if fsspec, or the package that it needs for this kind of URL, is not installed.
        DatasetNotFoundError: if there is no Zarr at the URL.
    """
    try:
        store = FsspecStore.from_url(url, read_only=True)
    except ImportError as error:
        raise DataError(
            f"{url} cannot be opened: {error}. Images at a URL need pip install 'biocnn[remote]'."
        ) from error
    try:
        node = zarr.open(store, mode="r")
    except FileNotFoundError as error:
        raise DatasetNotFoundError(
            f"There is no Zarr at {url}. Check the URL; of other kinds of image, download the file first."
        ) from error
    try:
        yield [_zarr_source(node, key, axes)]
    finally:
        store.close()


def _zarr_source(node: Any, key: str | None, axes: str | None) -> Source:
    sizes_um: dict[str, float] = {}
    names: Sequence[str | None] = ()
    channels: tuple[str, ...] = ()
    if isinstance(node, zarr.Group):
        attributes: dict[str, Any] = dict(node.attrs)
        facts = attributes.get("ome", attributes)  # since OME-Zarr 0.5 below "ome"
        scales = facts.get("multiscales")
        if scales and key in (None, scales[0]["datasets"][0]["path"]):
            # OME-Zarr: the first data set is the full resolution.
            key = str(scales[0]["datasets"][0]["path"])
            names = [axis["name"] for axis in scales[0]["axes"]]
            sizes_um = _ome_zarr_pixel_size(scales[0])
            labels = [channel.get("label") for channel in facts.get("omero", {}).get("channels", ())]
            channels = tuple(map(str, labels)) if all(labels) else ()
            node = node[key]  # a server need not be able to list what it has
        else:
            found = {name: item for name, item in node.members(max_depth=None) if isinstance(item, zarr.Array)}
            node = found[_choose(found, key)]
    elif key is not None:
        raise ValueError(f"it is a single array, received key={key!r}")
    names = names or getattr(node.metadata, "dimension_names", None) or ()
    return _source(node, axes, names, sizes_um, channels)


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


def _source(
    array: Any,
    axes: str | None,
    names: Sequence[str | None],
    sizes_um: dict[str, float],
    channel_names: tuple[str, ...] = (),
) -> Source:
    shape = tuple(array.shape)
    letters = axes or "".join(name or "" for name in names).upper()
    if axes is None and (len(letters) != len(shape) or not set("YX") <= set(letters)):
        # Nobody says: up to four entries at the end are channels.
        letters = {2: "YX", 3: "YXC" if shape[-1] <= 4 else "ZYX", 4: "ZYXC"}.get(len(shape), "")

    def read(planes: Planes) -> np.ndarray:
        return np.asarray(array[plane_index(letters, planes)])

    def window(index: Index) -> np.ndarray:
        return np.asarray(array[index])

    dtype = np.dtype(array.dtype)
    return Source(
        letters,
        shape,
        dtype,
        read,
        pixel_size_um=sizes_um,
        window=window,
        piece_bytes=prod(array.chunks or (0,)) * dtype.itemsize,
        channel_names=channel_names,
    )
