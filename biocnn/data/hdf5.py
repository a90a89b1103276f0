"""HDF5 arrays as memory maps: one seek per row, nothing to lock, safe to hand to worker processes.

A contiguous data set is mapped in place. A chunked or compressed one is decoded once into a ``.npy`` file, because
random rows of it are 5 to 2,000 times slower to read (one chunk is decompressed per row).
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biocnn.errors import DataError, DatasetNotFoundError
from biocnn.files import atomic_path

_ROWS_PER_BLOCK = 1024


class MappedArray:
    """A read-only array on disk, opened when first read and anew in every process.

    Attributes:
        path: file that holds the bytes.
        offset: position of the first byte.
        shape: (N, ...), N rows.
        dtype: of the elements.

    Pickling keeps the description only: a `numpy.memmap` would be pickled by value, and a handle must not cross
    into a forked or spawned worker.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        needed = offset + int(np.prod(shape)) * dtype.itemsize
        found = path.stat().st_size
        if found < needed:
            raise DataError(
                f"{path} is truncated: it declares {shape} {dtype}, which needs {needed:,} bytes, and has "
                f"{found:,}. Fetch it again."
            )
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        self._map: np.memmap[Any, Any] | None = None
        self._pid = -1

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None, "_pid": -1}

    def open(self) -> "np.memmap[Any, Any]":
        """The memory map of this process, shape (N, ...)."""
        if self._map is None or self._pid != os.getpid():
            self._map = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
            self._pid = os.getpid()
        return self._map

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copy rows in the given order.

        Args:
            rows: (B,) integers in 0..N-1, repeats allowed.

        Returns:
            (B, ...) array in memory.
        """
        # `take` is one C loop of memcpy; fancy indexing of a memmap subclass costs about 15 % more.
        return np.asarray(self.open()).take(rows, axis=0)


def _open_dataset(path: Path, key: str) -> tuple[h5py.File, h5py.Dataset]:
    if not path.is_file():
        raise DatasetNotFoundError(f"There is no file {path}. Check the root folder, or fetch the data set.")
    try:
        # locking=False: network file systems of clusters refuse HDF5 locks, and nothing here writes.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened as HDF5 ({error}). It is truncated or not HDF5: fetch it again."
        ) from error
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        keys = sorted(file.keys())
        file.close()
        raise DataError(f"{path} has no data set {key!r}; it holds {keys}.")
    return file, dataset


def read_array(path: str | Path, key: str) -> np.ndarray:
    """Read a whole HDF5 data set into memory; for labels and other small arrays.

    Raises:
        DatasetNotFoundError: if the file is missing.
        DataError: if it is not HDF5, truncated, or has no such data set.
    """
    file, dataset = _open_dataset(Path(path), key)
    with file:
        try:
            return np.asarray(dataset[...])
        except OSError as error:
            raise DataError(f"{path}: {key!r} cannot be read ({error}). Fetch it again.") from error


def array_header(path: str | Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an HDF5 data set without reading it.

    Raises:
        DatasetNotFoundError: if the file is missing.
        DataError: if it is not HDF5, truncated, or has no such data set.
    """
    file, dataset = _open_dataset(Path(path), key)
    with file:
        return tuple(dataset.shape), dataset.dtype


def _cache_path(path: Path, key: str) -> Path:
    status = path.stat()
    stamp = f"{path.resolve()}|{key}|{status.st_size}|{status.st_mtime_ns}"
    name = f"{path.stem}.{hashlib.sha256(stamp.encode()).hexdigest()[:12]}.npy"
    if os.access(path.parent, os.W_OK):
        return path.parent / name
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "biocnn" / name


def _decode(dataset: h5py.Dataset, target: Path) -> None:
    needed = int(np.prod(dataset.shape)) * dataset.dtype.itemsize
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed * 1.05:
        raise DataError(
            f"{dataset.file.filename} is chunked or compressed and has to be decoded once into {target}, which "
            f"needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free. Free some space, or set XDG_CACHE_HOME "
            "and make the data folder read-only to decode elsewhere."
        )
    print(
        f"{dataset.file.filename} is chunked or compressed: decoding it once into {target} "
        f"({needed / 1e9:.2f} GB), so that random patches are read at full speed.",
        flush=True,
    )
    with atomic_path(target) as temporary:
        decoded = np.lib.format.open_memmap(temporary, "w+", dataset.dtype, dataset.shape)
        step = max(_ROWS_PER_BLOCK, (dataset.chunks or (1,))[0])
        for start in range(0, dataset.shape[0], step):
            decoded[start : start + step] = dataset[start : start + step]
        decoded.flush()
        del decoded


def map_array(path: str | Path, key: str) -> MappedArray:
    """Map an HDF5 data set for fast random rows, decoding it once if it is not contiguous.

    The decoded copy lies beside the file (in ``$XDG_CACHE_HOME/biocnn`` when that folder is read-only). Its name
    carries the size and the modification time of the source, so a changed file is decoded anew.

    Args:
        path: HDF5 file.
        key: name of the data set, shape (N, ...).

    Raises:
        DatasetNotFoundError: if the file is missing.
        DataError: if it is not HDF5, truncated, damaged, has no such data set, or there is no room to decode it.
    """
    path = Path(path)
    file, dataset = _open_dataset(path, key)
    with file:
        offset = dataset.id.get_offset()
        if offset is not None:
            return MappedArray(path, offset, tuple(dataset.shape), dataset.dtype)
        target = _cache_path(path, key)
        if not target.is_file():
            try:
                _decode(dataset, target)
            except OSError as error:
                raise DataError(f"{path}: {key!r} cannot be decoded ({error}).") from error
        return _map_npy(target, tuple(dataset.shape), dataset.dtype)


def _map_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> MappedArray:
    with open(path, "rb") as handle:
        version = np.lib.format.read_magic(handle)
        header = (
            np.lib.format.read_array_header_1_0(handle)
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0(handle)
        )
        offset = handle.tell()
    if header[0] != shape or header[1] or header[2] != dtype:
        raise DataError(f"{path} does not hold {shape} {dtype}. Delete it: it will be made again.")
    return MappedArray(path, offset, shape, dtype)
